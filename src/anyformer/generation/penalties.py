"""What an answer must not say, or had better not say again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from anyformer.errors import InputError
from anyformer.generation.prompts import Prompts
from anyformer.generation.settings import Settings, listed

#: e to this is as much as float32 can count.
_MOST_GROWTH = 80.0


class Said:
    """What each row has said so far, as far as the settings ask for it, and what follows for its next token. The
    prompts are padded on the left.

    `ids` [B, T] are those of the past, the prompt and the answer, -1 for padding, which was never said; None where no
    setting asks. `source` [B, S] is what must not be copied.
    """

    def __init__(self, settings: Settings, prompts: Prompts) -> None:
        self.settings, self.prompt_length = settings, len(prompts.past) + prompts.ids.shape[1]
        again = settings.frequency_penalty or settings.presence_penalty or settings.repetition_penalty != 1.0
        said, source = _unpadded(prompts.ids, prompts.valid), prompts.source
        if prompts.past:
            said = torch.cat((said.new_tensor(prompts.past).expand(len(said), -1), said), 1)
        self.ids: Tensor | None = said if again or settings.bans or settings.exponential_decay else None
        self.source = said if source is None else _unpadded(source, prompts.source_valid)
        lengths = (said >= 0).sum(1)
        #: How many tokens each answer has at least, [B].
        self.fewest = (settings.min_length - lengths).clamp(min=settings.min_new_tokens)
        #: Whether an id is forced upon each answer as its first, [B].
        self.led = lengths == (-1 if settings.forced_bos is None else 1)
        self._never = torch.tensor(sorted(settings.never), dtype=torch.long, device=said.device)
        self._first = torch.tensor(settings.begin_suppress, dtype=torch.long, device=said.device)
        self._words = [word for word in settings.bad_words if len(word) > 1]

    def add(self, ids_B: Tensor) -> None:
        """Take in what each row has said next."""
        if self.ids is not None:
            self.ids = torch.cat((self.ids, ids_B[:, None]), 1)

    def reorder(self, rows: Tensor | Sequence[int]) -> None:
        """Let row i continue what row rows[i] has said."""
        self.led = self.led[rows]
        if self.ids is not None:
            self.ids, self.fewest = self.ids[rows], self.fewest[rows]
            self.source = self.source[rows] if self.settings.encoder_no_repeat_ngram else self.source

    def adjusted(self, scores_BV: Tensor) -> Tensor:
        """Logits, or logarithms of probabilities, after the penalties and without what must not be said."""
        if self.ids is None:
            return scores_BV
        settings, answer, scores_BV = self.settings, self.ids[:, self.prompt_length :], scores_BV.float()
        if settings.repetition_penalty != 1.0:
            scores_BV = penalized(scores_BV, self.ids, settings.repetition_penalty)
        if settings.frequency_penalty or settings.presence_penalty:
            scores_BV = lowered(scores_BV, answer, settings.frequency_penalty, settings.presence_penalty)
        if self._words:
            scores_BV = without(scores_BV, self.ids, self._words)
        if settings.no_repeat_ngram:
            scores_BV = unrepeated(scores_BV, self.ids, self.ids, settings.no_repeat_ngram)
        if settings.encoder_no_repeat_ngram:
            scores_BV = unrepeated(scores_BV, self.ids, self.source, settings.encoder_no_repeat_ngram)
        if settings.min_length or settings.min_new_tokens:
            scores_BV = unended(scores_BV, self.fewest > answer.shape[1], settings.eos)
        if settings.exponential_decay is not None:
            scores_BV = hastened(scores_BV, answer.shape[1], settings.eos, *settings.exponential_decay)
        if len(self._never):
            scores_BV = scores_BV.index_fill(1, self._never, -torch.inf)
        if len(self._first) and answer.shape[1] <= 1:
            begins = self.led == bool(answer.shape[1])
            scores_BV = scores_BV.where(~begins[:, None], scores_BV.index_fill(1, self._first, -torch.inf))
        return scores_BV

    def forced(self, ids_B: Tensor, *, first: bool, last: bool) -> Tensor:
        """The ids chosen, as the first or last of an answer it may be, but where another must come whatever the logits
        say."""
        if last and self.settings.forced_eos:
            return torch.full_like(ids_B, self.settings.forced_eos[0])
        if first and self.settings.forced_bos is not None:
            return torch.where(self.led, self.settings.forced_bos, ids_B)
        return ids_B

    def must_go_on(self, scores_BV: Tensor, constrained: bool) -> None:
        """Raises `InputError` where bans, and the constraint if there is one, leave a row no token at all. A device is
        asked only where they could: mostly a vocabulary is larger than all that may be banned."""
        if self.ids is None or not self.settings.bans:
            return
        settings, V = self.settings, scores_BV.shape[1]
        most = len(self._never) + len(self._first) + len(self._words) + len(settings.eos)
        most += self.ids.shape[1] if settings.no_repeat_ngram else 0
        most += self.source.shape[1] if settings.encoder_no_repeat_ngram else 0
        if not constrained and most < V:
            return
        if bool(scores_BV.amax(1).isneginf().any()):
            said = self.ids.shape[1] - self.prompt_length
            raise InputError(f"an answer of {said} tokens cannot go on: {leaving_none(settings, constrained)}")


def leaving_none(settings: Settings, constrained: bool) -> str:
    """Why there may be no token to go on with, and what to do."""
    asked = listed([*settings.bans, "the constraint"] if constrained else settings.bans)
    return f"{asked} leave{'s' if len(settings.bans) + constrained == 1 else ''} it no token; take some of that back"


def _unpadded(ids: Tensor, valid: Tensor | None) -> Tensor:
    """Ids, -1 where they are padding."""
    return ids if valid is None else torch.where(valid, ids, -1)


def penalized(logits_BV: Tensor, seen_BT: Tensor, penalty: float) -> Tensor:
    """Logits of seen ids divided by the penalty, or multiplied where negative (Keskar et al. 2019, section 4.1)."""
    # The row's last id stands in for what was not said: an id counts once, however often it stands there.
    seen_BT = torch.where(seen_BT < 0, seen_BT[:, -1:], seen_BT)
    scores = logits_BV.gather(1, seen_BT)
    return logits_BV.scatter(1, seen_BT, torch.where(scores < 0, scores * penalty, scores / penalty))


def lowered(logits_BV: Tensor, answer_BN: Tensor, frequency: float, presence: float) -> Tensor:
    """Logits of ids that the answer has said c > 0 times lowered by c · frequency + presence (as OpenAI's API defines
    its frequency and presence penalties)."""
    once = logits_BV.scatter(1, answer_BN, logits_BV.gather(1, answer_BN) - presence)
    return once.scatter_add(1, answer_BN, once.new_full((), -frequency).expand_as(answer_BN))


def without(logits_BV: Tensor, seen_BT: Tensor, words: Sequence[Sequence[int]]) -> Tensor:
    """Logits in which an id is impossible where it would complete one of the words, sequences of ids."""
    logits = logits_BV.clone()
    T, V = seen_BT.shape[1], logits.shape[1]
    for *begun, last in words:
        if len(begun) <= T and 0 <= last < V:
            # Id by id: a device that is handed a tensor of them would be waited for.
            completes = seen_BT.new_ones(len(seen_BT), dtype=torch.bool)
            for place, id in enumerate(begun, T - len(begun)):
                completes &= seen_BT[:, place] == id
            logits[:, last].masked_fill_(completes, -torch.inf)
    return logits


def unrepeated(logits_BV: Tensor, said_BT: Tensor, among_BS: Tensor, n: int) -> Tensor:
    """Logits in which an id is impossible where it would complete n ids that stand `among` others in that order (Paulus
    et al. 2018, "A Deep Reinforced Model for Abstractive Summarization", section 2.5: trigrams)."""
    (T, S), V = (said_BT.shape[1], among_BS.shape[1]), logits_BV.shape[1]
    if n > min(S, T + 1):
        return logits_BV
    runs_BWn, begun_B1n = among_BS.unfold(1, n, 1), said_BT[:, None, T - n + 1 :]
    # A source may have ids that no answer can say.
    known_BW = (runs_BWn >= 0).all(-1) & (runs_BWn[..., -1] < V)
    again_BW = (runs_BWn[..., :-1] == begun_B1n).all(-1) & known_BW
    last_BW = runs_BWn[..., -1].clamp(0, V - 1)
    counts_BV = torch.zeros_like(logits_BV).scatter_add(1, last_BW, again_BW.to(logits_BV.dtype))
    return logits_BV.masked_fill(counts_BV > 0, -torch.inf)


def hastened(logits_BV: Tensor, answered: int, eos: Sequence[int], start: int, factor: float) -> Tensor:
    """Logits l of the ids that end a text raised by |l| · (factor^k - 1), where the answer is k > 0 tokens longer than
    `start` (`exponential_decay_length_penalty` of transformers)."""
    if answered <= start:
        return logits_BV
    growth = math.expm1(min((answered - start) * math.log(factor), _MOST_GROWTH))
    logits = logits_BV.clone()
    for id in eos:
        ends_B = logits_BV[:, id]
        logits[:, id] = torch.where(ends_B.isfinite(), ends_B + ends_B.abs() * growth, ends_B)
    return logits


def unended(logits_BV: Tensor, early_B: Tensor, eos: Sequence[int]) -> Tensor:
    """Logits in which the ids that end a text are impossible where it is too early for that."""
    logits = logits_BV.clone()
    for id in eos:
        logits[:, id].masked_fill_(early_B, -torch.inf)
    return logits
