"""What a model is asked for: each objective turns windows of text into the inputs of a step, and a step into a loss.

causal   the next token                             decoder
masked   tokens that were hidden                    encoder
spans    stretches that were cut out, in their order    encoder-decoder
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from anyformer import spec
from anyformer.data import NO_TARGET, Window
from anyformer.errors import TrainingError
from anyformer.model import Transformer

#: Of the tokens that a model shall find: how many are hidden (Devlin et al. 2019, section 3.1; Raffel et al. 2020,
#: section 3.1.4), and how long the stretches are that spans are cut out in, on average.
HIDDEN_SHARE, MEAN_SPAN = 0.15, 3.0
#: What stands where a span was cut out, as T5's vocabularies write it.
SENTINELS = tuple(f"<extra_id_{index}>" for index in range(100))


@dataclass(frozen=True)
class Batch:
    """The inputs of one call of a model, its keyword arguments, and how many targets they hold (known on the host)."""

    inputs: dict[str, Any]
    target_count: int

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        moved = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in self.inputs.items()
        }
        return Batch(moved, self.target_count)


class Objective:
    """What the trainer needs of one; made for the model that it is to be asked of."""

    name: ClassVar[str]
    shape: ClassVar[str]
    head: ClassVar[str]
    #: Special tokens that the tokenizer must have, by role; and without one.
    roles: ClassVar[Mapping[str, str]] = {}
    tokens: ClassVar[tuple[str, ...]] = ()
    #: Whether its loss is that of the text itself, so that it amounts to bits a byte.
    is_likelihood: ClassVar[bool] = False

    def __init__(self, model: Transformer) -> None:
        assert model.tokenizer is not None
        self.tokenizer = model.tokenizer

    @classmethod
    def check(cls, model: spec.Transformer) -> None:
        """Raise `TrainingError` where a model of this spec cannot have this objective."""
        if (model.shape, model.head.kind) != (cls.shape, cls.head):
            needed = f"{'an' if cls.shape[0] == 'e' else 'a'} {cls.shape} with a {cls.head.replace('_', '-')} head"
            raise TrainingError(
                f"training.objective '{cls.name}' needs {needed}; this model is of shape '{model.shape}' with head "
                f"'{model.head.kind}'"
            )

    def lengths(self, window: int) -> tuple[int, int | None]:
        """How many tokens the model reads of a whole window of one document; and its encoder, of an encoder-decoder."""
        return window, None

    def batch(self, windows: Sequence[Window], generator: np.random.Generator) -> Batch:
        """Windows as the inputs of one call. What is random is drawn from `generator`, a function of seed and step."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum over the targets of their loss, what the model itself adds to be minimised), float32 scalars.

        Sums, so that micro-batches add up to the step whatever number of targets each has.
        """
        out = model(**batch.inputs)
        return out.loss * batch.target_count, torch.as_tensor(out.auxiliary_loss) * batch.target_count


class Causal(Objective):
    """Predict each token from those before it in its document, log P(x_t | x_<t) (Bengio et al. 2003, eq. 1)."""

    name, shape, head = "causal", "decoder", "language_model"
    is_likelihood = True

    @classmethod
    def check(cls, model: spec.Transformer) -> None:
        super().check(model)
        if any(attention.visibility != "causal" for attention in model.output.attentions()):
            raise TrainingError("training.objective 'causal' needs attention of visibility 'causal' in every layer")

    def batch(self, windows: Sequence[Window], generator: np.random.Generator) -> Batch:
        return _batch([window.tokens for window in windows], [window.targets for window in windows], windows)


class Masked(Objective):
    """Find 15% of the tokens, hidden anew at every step (Devlin et al. 2019, section 3.1; Liu et al. 2019, dynamic
    masking): four fifths of them stand as the mask token, a tenth as a random one, a tenth as they are."""

    name, shape, head = "masked", "encoder", "masked_language_model"
    roles: ClassVar[Mapping[str, str]] = {"mask_token": "<|mask|>"}

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        special = [self.tokenizer.id_of(token) for token in self.tokenizer.special_tokens.values()]
        self.special = np.array([token for token in special if token is not None])
        assert self.tokenizer.mask is not None
        self.mask = self.tokenizer.mask

    def batch(self, windows: Sequence[Window], generator: np.random.Generator) -> Batch:
        hidden = [self.hide(window, generator) for window in windows]
        return _batch([tokens for tokens, _ in hidden], [targets for _, targets in hidden], windows)

    def hide(self, window: Window, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [T] to read and targets [T] to find; special tokens and padding are never asked for."""
        T = len(window.tokens)
        asked = generator.random(T) < HIDDEN_SHARE
        asked &= (np.arange(T) < window.filled) & ~np.isin(window.tokens, self.special)
        how = generator.random(T)
        random_ids = generator.integers(0, self.tokenizer.vocabulary_size, T)
        shown = np.where(how < 0.8, self.mask, np.where(how < 0.9, random_ids, window.tokens))
        return np.where(asked, shown, window.tokens), np.where(asked, window.tokens, NO_TARGET)


class Spans(Objective):
    """Say what was cut out: stretches of about three tokens, 15% of each document, each replaced by a sentinel of its
    own (Raffel et al. 2020, section 3.1.4).

        document   Thank you for inviting me to your party last week
        source     Thank you <0> me to your party <1> week
        targets    <0> for inviting <1> last (end)
    """

    name, shape, head = "spans", "encoder-decoder", "language_model"
    tokens = SENTINELS

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        sentinels = [self.tokenizer.id_of(token) for token in SENTINELS]
        self.sentinels = [token for token in sentinels if token is not None]
        start, end = model.generation.get("decoder_start_token_id"), self.tokenizer.eos
        if start is None or end is None:
            missing = "decoder_start_token_id in its generation_config.json" if start is None else "end-of-text token"
            raise TrainingError(f"training.objective 'spans': the model has no {missing}, which it needs")
        self.start, self.end = int(start), end

    def batch(self, windows: Sequence[Window], generator: np.random.Generator) -> Batch:
        rows = [[self.cut(document, generator) for document in _documents(window)] for window in windows]
        sources, source_documents = _padded([[source for source, _ in row] for row in rows], 0)
        targets, documents = _padded([[wanted for _, wanted in row] for row in rows], NO_TARGET)
        tokens, _ = _padded([[[self.start, *wanted[:-1]] for _, wanted in row] for row in rows], 0)
        inputs = {
            "tokens": torch.from_numpy(tokens),
            "targets": torch.from_numpy(targets),
            "source": torch.from_numpy(sources),
            "documents": documents,
            "source_documents": source_documents,
        }
        return Batch(inputs, int((targets != NO_TARGET).sum()))

    def lengths(self, window: int) -> tuple[int, int | None]:
        source, wanted = self.cut(range(window), np.random.default_rng(0))
        return len(wanted), len(source)

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


def _documents(window: Window) -> list[list[int]]:
    """The documents of a window, without padding."""
    ends = [end for end in accumulate(window.documents, initial=0) if end <= window.filled]
    return [window.tokens[begin:end].tolist() for begin, end in pairwise(ends)]


def _padded(rows: list[list[list[int]]], filler: int) -> tuple[np.ndarray, tuple[tuple[int, ...], ...]]:
    """Documents end to end, padded to the longest row: [B, T], and the lengths of the documents, padding the last."""
    longest = max(sum(map(len, row)) for row in rows)
    padding = [longest - sum(map(len, row)) for row in rows]
    together = [[*chain.from_iterable(row), *[filler] * missing] for row, missing in zip(rows, padding)]
    lengths = tuple((*map(len, row), *([missing] if missing else [])) for row, missing in zip(rows, padding))
    return np.array(together, np.int64), lengths


def _batch(tokens: list[np.ndarray], targets: list[np.ndarray], windows: Sequence[Window]) -> Batch:
    wanted = np.stack(targets)
    inputs = {
        "tokens": torch.from_numpy(np.stack(tokens)),
        "targets": torch.from_numpy(wanted),
        "documents": tuple(window.documents for window in windows),
    }
    return Batch(inputs, int((wanted != NO_TARGET).sum()))


#: What an objective is called in a recipe.
OBJECTIVES: dict[str, type[Objective]] = {objective.name: objective for objective in (Causal, Masked, Spans)}
