"""What an answer must not say, or had better not say again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anyformer.generation.settings import Settings


class Said:
    """What each row has said so far, as far as the settings ask for it, and what follows for its next token.

    `ids` [B, T] are those of the `past`, the prompt and the answer, -1 for padding, which was never said; None where no
    setting asks.
    """

    def __init__(
        self, settings: Settings, prompt: Tensor, valid: Tensor | None = None, past: Sequence[int] = ()
    ) -> None:
        self.settings, self.prompt_length = settings, len(past) + prompt.shape[1]
        again = settings.frequency_penalty or settings.presence_penalty or settings.repetition_penalty != 1.0
        never = settings.bad_words or settings.no_repeat_ngram or settings.min_length or settings.min_new_tokens
        said = prompt if valid is None else torch.where(valid, prompt, -1)
        if past:
            said = torch.cat((prompt.new_tensor(past).expand(len(prompt), -1), said), 1)
        self.ids: Tensor | None = said if again or never else None
        #: How many tokens each answer has at least, [B].
        self.fewest = (settings.min_length - (said >= 0).sum(1)).clamp(min=settings.min_new_tokens)

    def add(self, ids_B: Tensor) -> None:
        """Take in what each row has said next."""
        if self.ids is not None:
            self.ids = torch.cat((self.ids, ids_B[:, None]), 1)

    def reorder(self, rows: Tensor | Sequence[int]) -> None:
        """Let row i continue what row rows[i] has said."""
        if self.ids is not None:
            self.ids, self.fewest = self.ids[rows], self.fewest[rows]

    def adjusted(self, scores_BV: Tensor) -> Tensor:
        """Logits, or logarithms of probabilities, after the penalties and without what must not be said."""
        if self.ids is None:
            return scores_BV
        settings, answer, scores_BV = self.settings, self.ids[:, self.prompt_length :], scores_BV.float()
        if settings.repetition_penalty != 1.0:
            scores_BV = penalized(scores_BV, self.ids, settings.repetition_penalty)
        if settings.frequency_penalty or settings.presence_penalty:
            scores_BV = lowered(scores_BV, answer, settings.frequency_penalty, settings.presence_penalty)
        if settings.bad_words:
            scores_BV = without(scores_BV, self.ids, settings.banned)
        if settings.no_repeat_ngram:
            scores_BV = unrepeated(scores_BV, self.ids, settings.no_repeat_ngram)
        if settings.min_length or settings.min_new_tokens:
            scores_BV = unended(scores_BV, self.fewest > answer.shape[1], settings.eos)
        return scores_BV


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


def unrepeated(logits_BV: Tensor, seen_BT: Tensor, n: int) -> Tensor:
    """Logits in which an id is impossible where it would complete n ids that stood there before in that order (Paulus
    et al. 2018, "A Deep Reinforced Model for Abstractive Summarization", section 2.5: trigrams)."""
    if seen_BT.shape[1] < n:
        return logits_BV
    runs_BWn, begun_B1n = seen_BT.unfold(1, n, 1), seen_BT[:, None, seen_BT.shape[1] - n + 1 :]
    again_BW = (runs_BWn[..., :-1] == begun_B1n).all(-1) & (runs_BWn >= 0).all(-1)
    counts_BV = torch.zeros_like(logits_BV).scatter_add(1, runs_BWn[..., -1].clamp(min=0), again_BW.to(logits_BV.dtype))
    return logits_BV.masked_fill(counts_BV > 0, -torch.inf)


def unended(logits_BV: Tensor, early_B: Tensor, eos: Sequence[int]) -> Tensor:
    """Logits in which the ids that end a text are impossible where it is too early for that."""
    logits = logits_BV.clone()
    for id in eos:
        logits[:, id].masked_fill_(early_B, -torch.inf)
    return logits
