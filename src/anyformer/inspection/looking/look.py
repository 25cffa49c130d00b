"""Everything that is seen of a model while it reads one text, small enough to be kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anyformer.errors import InputError
from anyformer.inspection.heads import HeadScores, head_scores, repeated_scores
from anyformer.inspection.lens import ANSWERING, Lens, lens
from anyformer.inspection.tracing import Trace, sites, trace
from anyformer.model import Transformer
from anyformer.text import Tokenizer

#: A text of more tokens is too long to be looked at: attention's weights grow with its square.
LONGEST = 2048
#: Pictures of heads have so many points a side at most; each is the largest of the weights that it stands for.
PICTURE = 64
#: So many random tokens come twice, to find induction heads.
REPEATED = 32
#: An encoder-decoder that is given no target writes one of at most so many tokens.
WRITTEN = 32


@dataclass(frozen=True)
class Look:
    """What was seen.

    tokens    the pieces of the text by stack: `encoder`, `decoder`
    wanted    of the stack that answers: the id that would be right at each position, -1 where nobody knows
    lens      what each layer would answer; None where the head has no answer at each position
    heads     scores of self-attention on the text; None of a single token
    repeats   and on random tokens that come twice; None where the model has not learned so many positions
    patterns  [H, T', S'] of each attention: its weights, `PICTURE` points a side at most
    norms     [T] of each site of the stream, and of what each branch adds: the length of the vector at each token
    routing   [E, T] of each mixture: how much each expert counts at each token
    """

    model: Transformer
    tokens: dict[str, list[str]]
    wanted: list[int]
    lens: Lens | None
    heads: HeadScores | None
    repeats: HeadScores | None
    patterns: dict[str, Tensor]
    norms: dict[str, Tensor]
    routing: dict[str, Tensor]

    @property
    def stack(self) -> str:
        """The stack that answers."""
        return "decoder" if "decoder" in self.tokens else "encoder"

    def positions(self) -> list[int]:
        """Where an answer is of interest: after a decoder's last token; at an encoder's masks, else at all tokens."""
        pieces = self.tokens[self.stack]
        if self.stack == "decoder":
            return [len(pieces) - 1]
        mask = None if self.model.tokenizer is None else self.model.tokenizer.special_tokens.get("mask_token")
        return [index for index, piece in enumerate(pieces) if piece == mask] or list(range(len(pieces)))

    def piece(self, id: int) -> str:
        """An answer as text: a token, or the number of a label."""
        labels = self.model.spec.head.kind == "token_classification"
        return f"label {id}" if labels else piece_of(self.model.tokenizer, id)


@torch.no_grad()
def look(model: Transformer, text: str, target: str | None = None, top: int = 5) -> Look:
    """Read a text and see what passes. An encoder-decoder writes `target`, or what it would write itself.

    Raises `InputError` for a text that is empty or longer than the context, for a model without a tokenizer, and for a
    target that the model has no use for."""
    tokens, given = inputs_of(model, text, target)
    stack = "decoder" if model.decoder is not None else "encoder"
    rows = {"encoder": given.get("source", tokens), "decoder": tokens} if given else {stack: tokens}
    with trace(model, *filter(_seen, sites(model)), reduce=_reduced) as t:
        model(tokens, **given)
    ids = tokens[0].tolist()
    return Look(
        model,
        {name: [piece_of(model.tokenizer, id) for id in row[0].tolist()] for name, row in rows.items()},
        [*ids[1:], -1] if stack == "decoder" else ids,
        lens(model, tokens, top, **given) if isinstance(model.spec.head, ANSWERING) else None,
        head_scores(model, tokens, **given) if min(row.shape[1] for row in rows.values()) > 1 else None,
        repeats_of(model),
        {site.removesuffix(".weights"): value for site, value in t.items() if site.endswith("attention.weights")},
        {site: value for site, value in t.items() if site.endswith(("embeddings", "residual_after", "output"))},
        {site.removesuffix(".choices"): _loads(model, t, site) for site in t if site.endswith("experts.choices")},
    )


def inputs_of(model: Transformer, text: str, target: str | None = None) -> tuple[Tensor, dict[str, Any]]:
    """The ids [1, T] that the stack that answers reads, and the encoder's where that is another."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError("this model has no tokenizer, and cannot read a text; look at one that has")
    read = torch.tensor([_encoded(model, tokenizer, text, "text")], device=model.device)
    if model.spec.shape != "encoder-decoder":
        if target is not None:
            raise InputError(
                f"a target is what an encoder-decoder writes, and this is an {model.spec.shape}; leave it out"
            )
        return read, {}
    begin = model.beginning(read, None, model.settings()).ids
    if target is None:
        new = model.generate(read, max_new_tokens=WRITTEN)[:, : WRITTEN - 1]
    else:
        new = torch.tensor([_encoded(model, tokenizer, target, "target")], device=model.device)
    return torch.cat((begin, new), 1), {"source": read}


def repeats_of(model: Transformer) -> HeadScores | None:
    """Scores on random tokens that come twice, after the token that begins texts; None where they find no place."""
    first = None if model.tokenizer is None else model.tokenizer.bos
    learned = [stack.embeddings.positions for stack in (model.encoder, model.decoder) if stack is not None]
    room = min((getattr(positions, "size", 2 * REPEATED + 1) for positions in learned), default=0)
    return None if room <= 2 * REPEATED else repeated_scores(model, REPEATED, first=first)


def piece_of(tokenizer: Tokenizer | None, id: int) -> str:
    """A token as text; where it is none by itself (a part of a character, the mark of a word's beginning), its name."""
    if tokenizer is None:
        return f"<{id}>"
    named = tokenizer.token_of(id)
    said = tokenizer.decode([id], skip_special=False)
    if named is not None and ("▁" in named or not said or "\ufffd" in said):
        return named.replace("▁", " ") or named
    return said or f"<{id}>"


def _encoded(model: Transformer, tokenizer: Tokenizer, text: str, what: str) -> list[int]:
    """The ids of a text, of which there must be some, and no more than the model can take."""
    ids = tokenizer.encode(text)
    limits = [limit for limit in (model.positions, model.spec.context, LONGEST) if limit is not None]
    if not ids:
        raise InputError(f"the {what} is empty; give a few words to look at")
    if len(ids) > min(limits):
        why = "the model's context" if min(limits) < LONGEST else "what can be looked at"
        raise InputError(f"the {what} is {len(ids):,} tokens, and {why} is {min(limits):,}; shorten it")
    return ids


def _seen(site: str) -> bool:
    """Whether a site is on the page: patterns, routes, and the streams whose lengths are drawn."""
    branch, _, what = site.rpartition(".")
    if branch.endswith("experts"):
        return what in ("choices", "weights", "output")
    layer = branch.rpartition(".")[2].isdigit()
    return what in ("weights", "embeddings", "output") or (what == "residual_after" and layer)


def _reduced(site: str, value: Tensor) -> Tensor:
    """What is kept of a value."""
    if site.endswith(("experts.choices", "experts.weights")):
        return value[0].cpu()
    if site.endswith(".weights"):
        points = [min(side, PICTURE) for side in value.shape[2:]]
        return F.adaptive_max_pool2d(value[0].float(), points).cpu()
    return value[0].float().norm(dim=-1).cpu()


def _loads(model: Transformer, t: Trace, site: str) -> Tensor:
    """How much each expert counts at each token, [E, T]."""
    branch = site.removesuffix(".choices")
    experts: int = model.get_submodule(branch).experts  # type: ignore[assignment]
    weights, choices = t[f"{branch}.weights"].float(), t[site]
    return weights.new_zeros(len(choices), experts).scatter(1, choices, weights).T
