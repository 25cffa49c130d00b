"""Speculative decoding: something cheap proposes the next tokens, and the model checks all of them in one pass.

A proposed token x, drawn from q, is accepted with probability min(1, p(x) / q(x)), p being what the model itself says
there. At the first that is not, a token is drawn from what is left, max(0, p - q) made whole; after the last, from p.
So every token is drawn from p exactly, whatever q is (Leviathan et al. 2023, "Fast Inference from Transformers via
Speculative Decoding", section 2.3 and appendix A.1; Chen et al. 2023, "Accelerating Large Language Model Decoding with
Speculative Sampling", theorem 1). Greedily, the tokens accepted are those that the model itself would have taken.

    text        ... the cat sat       proposed    on   the  mat  .
    one pass    p after           sat    on   the   mat  .
    accepted                      on     the        the third is not: "sofa" is drawn from what is left
    text        ... the cat sat on the sofa

Both p and q are what the settings make of logits: after penalties, temperature, top-k and all the rest. A row keeps its
own pace and its own numbers, so that it says the same whatever shares its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from anyformer.errors import InputError
from anyformer.generation.constraints import Constraint
from anyformer.generation.decoding import Decoder, Step, most_new, read
from anyformer.generation.drafting import Drafter, DraftModel, PromptLookup, Proposal, Proposer, Row
from anyformer.generation.penalties import Said
from anyformer.generation.prompts import Prompts
from anyformer.generation.sampling import Draws, distribution, drawn, likeliest, seeds_of
from anyformer.generation.settings import Settings
from anyformer.parts.cache import Cache


class Verifier(Decoder, Protocol):
    """What speculation needs of the model that checks."""

    def each_logits(self, tokens: Tensor, cache: Cache, *, valid: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] after each of the tokens [B, T], which the cache then holds."""
        ...


@dataclass
class Tally:
    """What speculation was worth: tokens proposed, those of them accepted, tokens said in all, and passes of the model,
    over its prompts and after."""

    proposed: int = 0
    accepted: int = 0
    said: int = 0
    passes: int = 0

    @property
    def acceptance(self) -> float | None:
        """The share of proposed tokens that were accepted; None where none was proposed."""
        return self.accepted / self.proposed if self.proposed else None

    def plain(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return {**asdict(self), "acceptance": self.acceptance}


@dataclass(frozen=True, slots=True)
class Speculation:
    """Where proposals come from: a `draft` model, or by prompt lookup. `tally` counts what becomes of them."""

    draft: Drafter | None = None
    tally: Tally | None = None


@torch.no_grad()
def speculate(
    model: Verifier,
    prompts: Prompts,
    settings: Settings,
    speculation: Speculation,
    *,
    cache: Cache | None = None,
    constraint: Constraint | None = None,
) -> Iterator[Step]:
    """Yield what `choices` yields, several steps after a pass: proposals come from a draft, or by prompt lookup,
    `settings.prompt_lookup` at a time.

    Greedily the tokens are those of `choices`, outside ties; drawn ones follow its distribution, by other numbers. A
    step is yielded when every row has come so far. Prompt lookup continues the `cache` of one row; closed between the
    steps of a pass, it leaves more in the cache than was yielded, which `truncate` takes back. Raises `InputError` for
    other caches.
    """
    prompts, draft = prompts.checked(), speculation.draft
    tally = Tally() if speculation.tally is None else speculation.tally
    if cache is not None and (draft is not None or len(prompts) > 1):
        raise InputError("only prompt lookup continues a cache, and that of one row; give no draft, or no cache")
    before = 0 if cache is None else cache.length
    most = most_new(model, before + prompts.ids.shape[1], settings)
    rows = _rows(prompts, settings, constraint)
    proposer: Proposer
    margin = settings.prompt_lookup if draft is None else DraftModel.most
    if cache is None:
        cache = model.new_cache(len(rows), margin=margin, quantize=settings.quantize_cache)
    logits = read(model, prompts, cache, more=settings.max_new_tokens + margin)[:, None]
    if draft is None:
        sources = [[*prompts.past, *its] for its in prompts.sources()]
        proposer = PromptLookup(margin, sources, logits.shape[-1])
    else:
        proposer = DraftModel(draft, prompts, settings, logits.shape[-1])
    proposal, going, shown = Proposal([[] for _ in rows]), rows, 0
    while True:
        tally.passes += 1
        held = [before + len(row.text) + len(tokens) for row, tokens in zip(going, proposal.tokens)]
        scores = _scores(going, logits, proposal, settings, most, before == 0)
        said = _new(going, scores, proposal, settings)
        for row, tokens, new, plain_TV, scores_TV in zip(going, proposal.tokens, said, logits, scores):
            _take(row, tokens, new, plain_TV, scores_TV, settings, most, tally)
        lengths = [before + len(row.text) - 1 for row in going]
        if lengths != held:
            cache.truncate(lengths)
        ready = min((row.said for row in rows if not row.over), default=max(row.said for row in rows))
        for at in range(shown, ready):
            yield _step(rows, at, settings, logits)
        shown = ready
        alive = [at for at, row in enumerate(going) if not row.over]
        if not alive:
            return
        if len(alive) < len(going):
            cache.reorder(torch.tensor(alive, device=prompts.device))
        going = [going[at] for at in alive]
        proposer.settle(going, alive)
        widest = cache.steady(proposer.most + 1) - 1
        # The last token of all needs no proposal: the pass that checks those before it gives it.
        proposal = proposer.propose(going, [min(row.width, widest, most - row.said - 1) for row in going])
        ids, real = _right_padded([[row.text[-1], *its] for row, its in zip(going, proposal.tokens)], prompts.ids)
        logits = model.each_logits(ids, cache, valid=real)


def _rows(prompts: Prompts, settings: Settings, constraint: Constraint | None) -> list[Row]:
    """The answers of a batch before they have begun."""
    texts, count = prompts.rows(), len(prompts)
    draws: list[Draws | None] = [None] * count
    if settings.temperature > 0:
        draws = [Draws((seed,), 1, prompts.device) for seed in seeds_of(settings.seed, count)]
    constraints = [None] * count if constraint is None else constraint.rows()
    histories = [Said(settings, prompts.of_rows([row])) for row in range(count)]
    return [Row(*each) for each in zip(range(count), texts, histories, draws, constraints)]


def _right_padded(rows: Sequence[list[int]], like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Ids [B, T] with short rows padded on the right, and which are real (None where all are)."""
    longest = max(map(len, rows))
    ids = like.new_tensor([row + [0] * (longest - len(row)) for row in rows])
    if all(len(row) == longest for row in rows):
        return ids, None
    return ids, torch.arange(longest, device=like.device) < like.new_tensor([len(row) for row in rows])[:, None]


def _scores(
    rows: Sequence[Row], logits_BTV: Tensor, proposal: Proposal, settings: Settings, most: int, begins: bool
) -> Tensor:
    """What the settings but for temperature and the like make of logits, each after the tokens proposed before it."""
    forces = settings.forced_eos or settings.forced_bos is not None
    if not forces and all(row.history.ids is None and row.constraint is None for row in rows):
        return logits_BTV
    scores_BTV, none = logits_BTV.float().clone(), torch.tensor([-1], device=logits_BTV.device)
    for row, scores_TV, tokens in zip(rows, scores_BTV, proposal.tokens):
        history, constraint = copy(row.history), None if row.constraint is None else row.constraint.copy()
        for at in range(len(tokens) + 1):
            here = history.adjusted(scores_TV[at : at + 1])
            forced = history.forced(none, first=begins and row.said + at == 0, last=row.said + at == most - 1)
            if forced is not none and int(forced) >= 0:
                here = torch.full_like(here, -torch.inf).index_fill_(1, forced, 0.0)
            elif constraint is not None:
                here = constraint.allowed(here)
            scores_TV[at] = here[0]
            if at == len(tokens) or bool(here[0, tokens[at]].isneginf()):
                # What is proposed after an impossible token is never looked at.
                break
            token = torch.tensor(tokens[at : at + 1], device=scores_TV.device)
            history.add(token)
            if constraint is not None:
                constraint.advance(token)
    return scores_BTV


def _new(rows: Sequence[Row], scores_BTV: Tensor, proposal: Proposal, settings: Settings) -> list[list[int]]:
    """What each row says next: the proposed tokens that are accepted, and one of the model's own."""
    if settings.temperature == 0:
        wanted = likeliest(scores_BTV.flatten(0, 1)).unflatten(0, scores_BTV.shape[:2]).tolist()
        agreed = [_agreed(tokens, its) for tokens, its in zip(proposal.tokens, wanted)]
        return [its[: count + 1] for its, count in zip(wanted, agreed)]
    shares_BTV = distribution(scores_BTV.flatten(0, 1).float(), settings).unflatten(0, scores_BTV.shape[:2])
    counts, own = accepted(shares_BTV, proposal, [row.uniform(len(its) + 1) for row, its in zip(rows, proposal.tokens)])
    both = torch.stack((counts, own)).tolist()
    return [[*tokens[:count], token] for tokens, count, token in zip(proposal.tokens, *both)]


def _agreed(tokens: Sequence[int], wanted: Sequence[int]) -> int:
    """How many tokens two lists begin with alike."""
    return next((at for at, pair in enumerate(zip(tokens, wanted)) if pair[0] != pair[1]), len(tokens))


def accepted(shares_BTV: Tensor, proposal: Proposal, numbers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """How many of its proposed tokens each row accepts, [B], and the token that follows them, [B].

    `shares_BTV` is what the model draws from before each of them and after the last; numbers[i] has, for each token of
    row i and the one that follows, a uniform number in (0, 1].
    """
    B, T, V = shares_BTV.shape
    device, row = shares_BTV.device, torch.arange(B, device=shares_BTV.device)
    real_BK, tokens_BK = torch.zeros(B, T - 1, dtype=torch.bool), torch.zeros(B, T - 1, dtype=torch.long)
    for at, its in enumerate(proposal.tokens):
        real_BK[at, : len(its)], tokens_BK[at, : len(its)] = True, torch.tensor(its, dtype=torch.long)
    real_BK, tokens_BK = real_BK.to(device), tokens_BK.to(device)
    drawn_from = one_hot(tokens_BK, V).to(shares_BTV) if proposal.shares is None else proposal.shares[:, : T - 1]
    drawn_from = drawn_from * real_BK[:, :, None]
    tests_BK = torch.nn.utils.rnn.pad_sequence([its[:-1] for its in numbers], batch_first=True)
    p, q = (each[:, : T - 1].gather(2, tokens_BK[:, :, None])[:, :, 0] for each in (shares_BTV, drawn_from))
    counts = (real_BK & (tests_BK * q <= p)).long().cumprod(1).sum(1)
    # After the last one nothing was proposed, and nothing is to be taken away.
    q_BV = torch.cat((drawn_from, torch.zeros_like(shares_BTV[:, :1])), 1)[row, counts]
    p_BV = shares_BTV[row, counts]
    left_BV = (p_BV - q_BV).clamp(min=0)
    left_BV = torch.where(left_BV.sum(-1, keepdim=True) > 0, left_BV, p_BV)
    return counts, drawn(left_BV, torch.stack([its[-1] for its in numbers]))


def _take(
    row: Row,
    tokens: list[int],
    new: list[int],
    logits_TV: Tensor,
    scores_TV: Tensor,
    settings: Settings,
    most: int,
    tally: Tally,
) -> None:
    """Let a row go on with the new tokens, to its end at most, some of which had been proposed. Raises `InputError`
    where there was none to choose from."""
    tally.proposed, tally.accepted = tally.proposed + len(tokens), tally.accepted + len(new) - 1
    row.adapt(len(tokens), len(new) - 1)
    for id, logits, scores in zip(new, logits_TV, scores_TV):
        row.history.must_go_on(scores[None], row.constraint is not None)
        row.text.append(id)
        row.logits.append(logits)
        row.said, tally.said = row.said + 1, tally.said + 1
        row.over = id in settings.eos or row.said == most
        if row.over:
            return
        token = torch.tensor([id], device=logits.device)
        row.history.add(token)
        if row.constraint is not None:
            row.constraint.advance(token)


def _step(rows: Sequence[Row], at: int, settings: Settings, like: Tensor) -> Step:
    """What the rows have said in their step `at`, and what the model had said of it."""
    ids = [row.text[at - row.said] if at < row.said else settings.filler for row in rows]
    logits = [row.logits.pop(0) if at < row.said else torch.zeros_like(like[0, 0]) for row in rows]
    return Step(torch.tensor(ids, device=like.device), torch.stack(logits))
