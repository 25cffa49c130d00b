"""How well a language model predicts a text: loss, perplexity, bits per byte, every token scored exactly once.

A text longer than the model's window is read in windows that overlap, and only what is new in a window is scored, so
that a token has at least `window - stride` tokens before it (all but those at the text's beginning):

    tokens    s a b c d e f g h i     window 6, stride 3; s is the start token
    window 0  . A B C D E F           what follows each of s a b c d e
    window 1        . . . . G H I     what follows c d e f g h, of which only the last three count
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from anyformer.errors import InputError
from anyformer.model import Transformer
from anyformer.model.heads import IGNORED

#: The longest window that is taken unasked, in tokens.
WINDOW = 2048
#: Tokens of a batch: as many windows are read side by side as fit into it, at least one.
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Evaluation:
    """What a text cost: `nats` of information over `tokens` scored tokens, which are `bytes` bytes of UTF-8.

    Evaluations of several texts add up to that of all.
    """

    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats a token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """e to the loss; infinite where that is beyond any number."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits for each byte of the text: what can be compared between tokenizers."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def __add__(self, other: Evaluation) -> Evaluation:
        return Evaluation(self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes)


def evaluate(
    model: Transformer,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    progress: Callable[[int, int], object] = lambda done, tokens: None,
) -> Evaluation:
    """Score every token of `text` once, each given those before it.

    - `window`: how many tokens are read at a time (the model's context, at most 2,048, unless given); `stride`: how far
      the window moves (half of it unless given).
    - The first token is predicted from the start token that the model knows (bos, else its end of text). Where it has
      neither, the first token goes unscored.
    - `progress` is told how many tokens are done, of how many.

    Raises `InputError` for a model that does not predict texts from left to right, and a window that it cannot read.
    """
    window, stride = _window(model, window, stride)
    ids = token_ids(model, text)
    rows = list(spans(len(ids) - 1, window, stride))
    nats, scored = 0.0, 0
    was_training = model.training
    model.eval()
    try:
        side_by_side = max(1, BATCH_TOKENS // window)
        for start in range(0, len(rows), side_by_side):
            batch = rows[start : start + side_by_side]
            nats += _nats(model, ids, batch)
            scored += sum(end - new for _, end, new in batch)
            progress(scored, len(ids) - 1)
    finally:
        model.train(was_training)
    return Evaluation(nats, scored, len(text.encode()))


def spans(predictions: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Windows over a row: (begin, end, new) where tokens [begin, end) are read and the predictions [new, end) counted,
    prediction i being of token i + 1."""
    end = 0
    while end < predictions:
        new, end = end, min(predictions, end + stride if end else window)
        yield max(0, end - window), end, new


def token_ids(model: Transformer, text: str) -> list[int]:
    """A text's ids behind the start token that the model knows, if any."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError("this model has no tokenizer, so it cannot read texts; load one that has, or train one")
    known = (model.generation.get("bos_token_id"), tokenizer.bos, tokenizer.eos)
    start = next((token for token in known if token is not None), None)
    return [*([] if start is None else [start]), *tokenizer.encode(text, special=False)]


@torch.inference_mode()
def _nats(model: Transformer, ids: Sequence[int], batch: Sequence[tuple[int, int, int]]) -> float:
    """Cross-entropy of the predictions that count. Short rows are filled up behind, where no causal model looks."""
    longest = max(end - begin for begin, end, _ in batch)
    tokens = torch.zeros(len(batch), longest, dtype=torch.long)
    targets = torch.full_like(tokens, IGNORED)
    for row, (begin, end, new) in enumerate(batch):
        tokens[row, : end - begin] = torch.tensor(ids[begin:end])
        targets[row, new - begin : end - begin] = torch.tensor(ids[new + 1 : end + 1])
    out = model(tokens.to(model.device), targets=targets.to(model.device))
    return out.loss.item() * out.target_count.item()


def _window(model: Transformer, window: int | None, stride: int | None) -> tuple[int, int]:
    spec = model.spec
    causal = all(mixer.visibility != "full" for mixer in spec.output.attentions())
    if spec.shape != "decoder" or spec.head.kind != "language_model" or not causal:
        raise InputError(
            f"only a causal language model predicts a text from left to right; this model is of shape '{spec.shape}' "
            f"with a head of kind '{spec.head.kind}'"
        )
    window = window if window is not None else min(model.positions or spec.context or WINDOW, WINDOW)
    if model.positions is not None and window > model.positions:
        raise InputError(
            f"a window of {window} is longer than the {model.positions} positions that the model has learned"
        )
    stride = stride if stride is not None else max(1, window // 2)
    if not 1 <= stride <= window:
        raise InputError(f"a stride of {stride} does not fit a window of {window}; it must be from 1 to the window")
    return window, stride


__all__ = ["Evaluation", "evaluate", "spans", "token_ids"]
