"""Finding what was hidden: single tokens (BERT), or stretches (T5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from anyformer.data import NO_TARGET, Window, Windows
from anyformer.errors import TrainingError
from anyformer.model import Transformer
from anyformer.training.objectives.objective import (
    Batch,
    Conditional,
    TextObjective,
    documents_of,
    right_answers,
    window_batch,
)

if TYPE_CHECKING:
    from anyformer.training.recipe import Training

#: Of the tokens that a model shall find: how many are hidden (Devlin et al. 2019, section 3.1; Raffel et al. 2020,
#: section 3.1.4), and how long the stretches are that spans are cut out in, on average.
HIDDEN_SHARE, MEAN_SPAN = 0.15, 3.0
#: What stands where a span was cut out, as T5's vocabularies write it.
SENTINELS = tuple(f"<extra_id_{index}>" for index in range(100))


class Masked(TextObjective):
    """Find 15% of the tokens, hidden anew at every step (Devlin et al. 2019, section 3.1; Liu et al. 2019, dynamic
    masking): four fifths of them stand as the mask token, a tenth as a random one, a tenth as they are. With
    `training.whole_words`, all tokens of a word or none."""

    name, shapes, head = "masked", ("encoder",), "masked_language_model"
    roles: ClassVar[Mapping[str, str]] = {"mask_token": "<|mask|>"}

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        special = [self.tokenizer.id_of(token) for token in self.tokenizer.special_tokens.values()]
        self.special = np.array([token for token in special if token is not None])
        assert self.tokenizer.mask is not None
        self.mask = self.tokenizer.mask
        self.begins_word: np.ndarray | None = None

    def begin(self, settings: Training, start: Callable[[], Transformer]) -> None:
        self.begins_word = np.array(self.tokenizer.begins_word()) if settings.whole_words else None

    def batch(self, windows: Sequence[Window], generator: np.random.Generator) -> Batch:
        hidden = [self.hide(window, own) for window, own in zip(windows, generator.spawn(len(windows)))]
        return window_batch([tokens for tokens, _ in hidden], [targets for _, targets in hidden], windows)

    def measure(self, model: Transformer, batch: Batch) -> dict[str, Tensor]:
        return right_answers(model, batch)

    def hide(self, window: Window, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [T] to read and targets [T] to find; special tokens and padding are never asked for."""
        T = len(window.tokens)
        is_special = np.isin(window.tokens, self.special)
        asked = generator.random(T)[self._words(window, is_special)] < HIDDEN_SHARE
        asked &= (np.arange(T) < window.filled) & ~is_special
        how = generator.random(T)
        random_ids = generator.integers(0, self.tokenizer.vocabulary_size, T)
        shown = np.where(how < 0.8, self.mask, np.where(how < 0.9, random_ids, window.tokens))
        return np.where(asked, shown, window.tokens), np.where(asked, window.tokens, NO_TARGET)

    def _words(self, window: Window, is_special: np.ndarray) -> np.ndarray:
        """For each token, the first of the word that it belongs to, [T]; itself where words are not asked for."""
        places = np.arange(len(window.tokens))
        if self.begins_word is None:
            return places
        begins = self.begins_word[window.tokens] | is_special
        begins[1:] |= is_special[:-1]
        begins[np.cumsum((0, *window.documents[:-1]))] = True
        return np.maximum.accumulate(np.where(begins, places, 0))


class Spans(Conditional, TextObjective):
    """Say what was cut out: stretches of about three tokens, 15% of each document, each replaced by a sentinel of its
    own (Raffel et al. 2020, section 3.1.4).

        document   Thank you for inviting me to your party last week
        source     Thank you <0> me to your party <1> week
        targets    <0> for inviting <1> last (end)
    """

    name, tokens = "spans", SENTINELS

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        sentinels = [self.tokenizer.id_of(token) for token in SENTINELS]
        self.sentinels = [token for token in sentinels if token is not None]
        if self.tokenizer.eos is None:
            raise TrainingError("training.objective 'spans': the tokenizer has no end-of-text token, which it needs")
        self.end = self.tokenizer.eos

    def batch(self, windows: Sequence[Window], generator: np.random.Generator) -> Batch:
        own = zip(windows, generator.spawn(len(windows)))
        return self.conditional(
            [self.cut(document, drawn) for window, drawn in own for document in documents_of(window)]
        )

    def lengths(self, examples: Windows) -> tuple[float, float | None]:
        source, wanted = self.cut(range(examples.length), np.random.default_rng(0))
        return (len(wanted), len(source)) if self.has_encoder else (len(source) + len(wanted) - 1, None)

    def cut(self, document: Sequence[int], generator: np.random.Generator) -> tuple[list[int], list[int]]:
        """(what is left of a document, sentinels in the gaps; what is to be said of it)."""
        source, wanted = [], []
        for index, (kept, gone) in enumerate(self._stretches(document, generator)):
            source += [*kept, self.sentinels[index]]
            wanted += [self.sentinels[index], *gone]
        return source or list(document), [*wanted, self.end]

    def _stretches(
        self, document: Sequence[int], generator: np.random.Generator
    ) -> list[tuple[Sequence[int], Sequence[int]]]:
        """A document as stretches that are kept and cut out in turn; none where it is too short for both."""
        hidden = min(max(round(HIDDEN_SHARE * len(document)), 1), len(document) - 1)
        if hidden < 1:
            return []
        count = min(max(round(hidden / MEAN_SPAN), 1), len(document) - hidden, len(self.sentinels))
        kept, gone = (_parted(total, count, generator) for total in (len(document) - hidden, hidden))
        ends = list(accumulate(chain.from_iterable(zip(kept, gone)), initial=0))
        pieces = [document[begin:end] for begin, end in pairwise(ends)]
        return list(zip(pieces[::2], pieces[1::2]))


def _parted(total: int, parts: int, generator: np.random.Generator) -> list[int]:
    """`total` as a random sum of `parts` positive numbers, every one of these sums as likely."""
    borders = np.sort(generator.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff([0, *borders, total]).tolist()
