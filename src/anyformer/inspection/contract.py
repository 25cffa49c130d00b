"""The contract, tried on a user's own model: whatever way an answer is computed, it is the same answer.

every kernel = the reference · cached = uncached · chunked = whole · padded in a batch = alone · packed = separate ·
saved and loaded again = before · here = in the reference implementation, where that is installed
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from anyformer import spec
from anyformer.errors import AnyformerError
from anyformer.model import Transformer, load
from anyformer.parts import kernels

#: Largest difference allowed, relative to the largest number of the reference answer, by dtype. float32 is the bar of
#: the contract; the others are a few units in the last place, grown over the layers.
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}

#: Read by models that have a tokenizer; others get random ids.
TEXT = (
    "A model is a description and its numbers. Ask it once with everything before it, and once a token at a time; ask "
    "it alone, and in a crowd of strangers; write it down, read it back, and ask again. If the answers differ, one of "
    "the ways of asking is wrong, and every result that was measured that way is wrong with it. The careful reader "
    "will find that none of this is about intelligence, and that all of it comes first."
)


@dataclass(frozen=True)
class Check:
    """One line of the contract: what was compared, how far apart the answers were at most, and what is allowed."""

    name: str
    difference: float | None
    bound: float | None
    verdict: Literal["same", "differs", "skipped"]
    note: str = ""


@dataclass(frozen=True)
class Question:
    """What a model is asked: ids [1, T], and for an encoder-decoder the source [1, S]."""

    tokens: Tensor
    source: Tensor | None

    def upto(self, length: int) -> Question:
        """Its first `length` tokens."""
        return Question(self.tokens[:, :length], self.source)


def verify(
    model: Transformer | str | os.PathLike[str],
    *,
    against_transformers: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[Check]:
    """Try every clause of the contract on a model (or on what `load` makes of a reference), in evaluation mode."""
    asked = model if isinstance(model, Transformer) else load(model)
    was_training = asked.training
    asked.eval()
    checks: list[Check] = []
    try:
        with torch.inference_mode():
            for name, trial in _trials(asked, against_transformers, seed):
                if progress is not None:
                    progress(name)
                checks.append(_judge(name, trial, BOUNDS.get(asked.dtype, 1e-2)))
    finally:
        asked.train(was_training)
    return checks


def _judge(name: str, trial: Callable[[], tuple[float | None, str]], bound: float) -> Check:
    try:
        difference, note = trial()
    except AnyformerError as error:
        return Check(name, None, None, "skipped", str(error))
    if difference is None:
        return Check(name, None, None, "skipped", note)
    # Written so that a NaN differs.
    return Check(name, difference, bound, "same" if difference <= bound else "differs", note)


def _trials(
    model: Transformer, against_transformers: bool, seed: int
) -> Iterator[tuple[str, Callable[[], tuple[float | None, str]]]]:
    question = _question(model, seed)
    with kernels.use("reference"):
        truth = answer(model, question)
    for name in kernels.KERNELS:
        if name != "reference":
            yield f"kernel {name} = reference", lambda name=name: _kernel(model, question, truth, name)
    yield "kernel chosen = reference", lambda: (apart(answer(model, question), truth), "")
    if model.decoder is not None:
        yield "cached = uncached", lambda: (apart(_in_chunks(model, question, 1), answer(model, question)), "")
        yield "chunked = whole", lambda: (apart(_in_chunks(model, question, 7), answer(model, question)), "")
    yield "padded in a batch = alone", lambda: _padded(model, question)
    yield "packed = separate", lambda: _packed(model, question)
    yield "saved and loaded = before", lambda: _saved(model, question)
    if against_transformers:
        yield "here = in transformers", lambda: _transformers(model, question)


def _question(model: Transformer, seed: int) -> Question:
    """Ids that reach beyond every window where the model's positions allow it."""
    windows = [side for mixer in model.spec.output.attentions() for side in mixer.window or () if side is not None]
    length = max(96, min(2 * max(windows, default=0) + 65, 2048))
    length = min(length, model.positions or length)
    generator = torch.Generator().manual_seed(seed)

    def ids(stack: spec.Stack, length: int) -> Tensor:
        row = model.tokenizer.encode(TEXT, special=False) if model.tokenizer is not None else []
        row = [token for token in row if token < stack.embeddings.vocabulary][:length]
        drawn = torch.randint(0, stack.embeddings.vocabulary, (length - len(row),), generator=generator)
        return torch.cat((torch.tensor(row, dtype=torch.long), drawn))[None].to(model.device)

    source = ids(model.spec.encoder, 41) if model.spec.encoder is not None and model.decoder is not None else None
    return Question(ids(model.spec.output, length), source)


def answer(model: Transformer, question: Question, **how: Any) -> Tensor:
    """What is compared: a language model's logits [B, T, V], else hidden states [B, T, D], in float32."""
    out = model(question.tokens, source=question.source, **how)
    logits = out.logits if out.logits is not None and out.logits.dim() == 3 else out.hidden
    return logits.float()


def apart(found: Tensor, wanted: Tensor) -> float:
    """max |found - wanted| / max |wanted|."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def _kernel(model: Transformer, question: Question, truth: Tensor, name: str) -> tuple[float | None, str]:
    with kernels.use(name, fall_back=True) as use:
        difference = apart(answer(model, question), truth)
    assert use is not None
    why = "; ".join(sorted(use.refused))
    return (difference, f"elsewhere the reference: {why}" if why else "") if use.served else (None, why)


def _in_chunks(model: Transformer, question: Question, size: int) -> Tensor:
    """The answer with a cache, after a first chunk of 16, `size` tokens at a time (at most 64 steps, then the rest)."""
    cache = model.new_cache(1)
    T = question.tokens.shape[1]
    edges = [0, *range(min(16, T), min(16 + 64 * size, T), size), T]
    parts = []
    for start, stop in pairwise(edges):
        piece = Question(question.tokens[:, start:stop], question.source if start == 0 else None)
        parts.append(answer(model, piece, cache=cache))
    return torch.cat(parts, 1)


def _padded(model: Transformer, question: Question) -> tuple[float, str]:
    """Two rows, the shorter padded: on the left where a decoder continues, on the right where an encoder reads."""
    short, T = question.tokens.shape[1] // 2, question.tokens.shape[1]
    left = model.decoder is not None
    pad = torch.zeros_like(question.tokens[:, short:])
    parts = (pad, question.tokens[:, :short]) if left else (question.tokens[:, :short], pad)
    tokens = torch.cat((torch.cat(parts, 1), question.tokens))
    index = torch.arange(T, device=tokens.device)
    real = index >= T - short if left else index < short
    valid = torch.stack((real, torch.ones_like(real)))
    source = None if question.source is None else question.source.expand(2, -1)
    both = answer(model, Question(tokens, source), valid=valid)
    alone = answer(model, question.upto(short))
    worst = max(apart(both[:1, real], alone), apart(both[1:], answer(model, question)))
    return worst, "padded on the left" if left else "padded on the right"


def _packed(model: Transformer, question: Question) -> tuple[float | None, str]:
    """Two documents in one row against each on its own."""
    first, T = question.tokens.shape[1] // 3, question.tokens.shape[1]
    lengths = ((first, T - first),)
    pieces = (question.tokens[:, :first], question.tokens[:, first:])
    if question.source is None:
        together = answer(model, question, documents=lengths)
        separate = [answer(model, Question(piece, None)) for piece in pieces]
    else:
        half = question.source.shape[1] // 2
        sources = (question.source[:, :half], question.source[:, half:])
        source_lengths = ((half, question.source.shape[1] - half),)
        together = answer(model, question, documents=lengths, source_documents=source_lengths)
        separate = [answer(model, Question(piece, source)) for piece, source in zip(pieces, sources)]
    return apart(together, torch.cat(separate, 1)), ""


def _saved(model: Transformer, question: Question) -> tuple[float, str]:
    with tempfile.TemporaryDirectory() as directory:
        model.save(directory)
        again = load(directory, device=model.device)
    same = all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    return apart(answer(again, question), answer(model, question)), "" if same else "tensors differ in their bits"


def _transformers(model: Transformer, question: Question) -> tuple[float | None, str]:
    if importlib.util.find_spec("transformers") is None:
        return None, "transformers is not installed"
    from anyformer import checkpoints

    if checkpoints.expressible(model.spec, model.family) is None:
        return None, "no family's format can express this model"
    with tempfile.TemporaryDirectory() as directory:
        model.save(directory)
        theirs = _their_model(directory, model.dtype).to(model.device)
    given = question.tokens if question.source is None else question.source
    extra = {} if question.source is None else {"decoder_input_ids": question.tokens}
    out = theirs(input_ids=given, **extra)
    found = out["logits"] if "logits" in out and out["logits"].dim() == 3 else out["last_hidden_state"]
    return apart(answer(model, question), found.float()), ""


def _their_model(directory: str, dtype: torch.dtype) -> Any:
    """The class that the saved config names, loaded by the reference implementation."""
    transformers = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # it warns of special ids beyond a tiny vocabulary
    name = transformers.AutoConfig.from_pretrained(directory).architectures[0]
    return getattr(transformers, name).from_pretrained(directory, dtype=dtype).eval()
