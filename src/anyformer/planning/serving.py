"""What serving a model takes on one device: bytes that stand while it answers, and how fast it can.

weights    once, in the dtype that it is served in
cache      keys and values of every sequence, as long as the context
working    a piece of the prompts on its way through the widest layer, or logits
"""

from __future__ import annotations

from dataclasses import dataclass

from anyformer.planning.counts import forward_flops, kv_bytes, size_of, weight_bytes
from anyformer.planning.devices import Device
from anyformer.planning.pieces import passing, piece
from anyformer.spec import (
    LanguageModelHead,
    MaskedLanguageModelHead,
    RoutedExperts,
    SequenceClassificationHead,
    TokenClassificationHead,
    Transformer,
)

#: What of its memory's bandwidth a device is taken to attain as it decodes: an assumption, from which rates follow.
READING = 0.7


@dataclass(frozen=True)
class Load:
    """What is served: `batch` sequences of `context` tokens at once, weights and cache in `dtype`; or, quantised, the
    cache in 8 bits (`kv_bytes`)."""

    context: int
    batch: int = 1
    dtype: str = "bfloat16"
    quantize_cache: str | None = None


def serving_memory(spec: Transformer, load: Load) -> dict[str, int]:
    """Bytes by what they are. Raises `SpecError` for a dtype that there is not."""
    memory = {"weights": weight_bytes(spec, load.dtype)}
    if spec.decoder is not None:
        memory["cache"] = load.batch * _cache(spec, load)
    return memory | {"working": _working(spec, load)}


def _cache(spec: Transformer, load: Load) -> int:
    """Bytes that a sequence keeps."""
    return kv_bytes(spec, load.context, dtype=load.dtype, quantize=load.quantize_cache)


def _working(spec: Transformer, load: Load) -> int:
    """The most of: a piece of a decoder's prompts, or all that an encoder reads, in the widest layer; and logits."""
    width = size_of(load.dtype)
    most = load.batch * _logits(spec, load.context) * width
    for name, stack in spec.stacks().items():
        tokens = load.context if name == "encoder" else min(load.context, piece(spec, load.batch, load.context))
        most = max(most, passing(stack, load.batch, load.context, tokens, width))
    return most


def _logits(spec: Transformer, tokens: int) -> int:
    """Numbers that the head gives for a sequence: of all its tokens, or of one."""
    match spec.head:
        case MaskedLanguageModelHead():
            return tokens * spec.output.embeddings.vocabulary
        case TokenClassificationHead() as head:
            return tokens * head.labels
        case SequenceClassificationHead() as head:
            return head.labels
        case LanguageModelHead():
            return spec.output.embeddings.vocabulary
        case _:
            return 0


@dataclass(frozen=True)
class ServingTime:
    """- `prefill`: seconds until the first token of prompts as long as the context.
    - `per_token`: seconds of a step that gives each sequence one token at the end of the context; `tokens_per_second`
      of all sequences together. None of a model that does not generate.
    """

    prefill: float
    per_token: float | None
    tokens_per_second: float | None


def serving_time(spec: Transformer, load: Load, device: Device, *, attained: float) -> ServingTime:
    """How fast a device can answer: prompts at `attained` of its rate of products; tokens at whichever takes longer,
    those products or reading what they need (weights that the sequences' tokens meet, and all of the cache)."""
    rate = attained * device.rate(load.dtype)
    prefill = load.batch * sum(forward_flops(spec, load.context).values()) / rate
    if spec.decoder is None:
        return ServingTime(prefill, None, None)
    step = forward_flops(spec, 1, source=load.context, cached=max(0, load.context - 1))
    cache = load.batch * _cache(spec, load)
    reading = (_read_weights(spec, load.batch) * size_of(load.dtype) + cache) / (READING * device.bandwidth)
    seconds = max(load.batch * sum(step.values()) / rate, reading)
    return ServingTime(prefill, seconds, load.batch / seconds)


def _read_weights(spec: Transformer, batch: int) -> float:
    """Numbers of the decoder and the head that a step reads. Of a mixture's experts, those that so many tokens meet
    where each chooses as if by lot: E·(1 - (1 - k/E)^batch)."""
    stack = spec.decoder
    assert stack is not None
    numbers = float(_logits(spec, 1) * stack.dim)
    for branch in (branch for block in stack.layers() for branch in block.branches):
        counted, mixer = branch.mixer.parameters(stack.dim), branch.mixer
        met = 1.0
        if isinstance(mixer, RoutedExperts):
            met = 1 - (1 - mixer.top_k / mixer.experts) ** batch
        stacked = getattr(mixer, "STACKED", ())
        numbers += sum(size * (met if name in stacked else 1.0) for name, size in counted.items())
    return numbers
