"""What a model costs, read off its spec: parameters, FLOPs and bytes. No module is built, no torch imported.

A FLOP is one addition or one multiplication, so a product of [m, k] and [k, n] is 2·m·k·n of them. Only products are
counted, as torch's own counter does: norms, activations and softmax are far below a hundredth of the work.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from anyformer.errors import PlanError, SpecError
from anyformer.planning.shapes import shapes
from anyformer.spec import (
    Block,
    LanguageModelHead,
    Learned,
    MaskedLanguageModelHead,
    Mixer,
    SequenceClassificationHead,
    TokenClassificationHead,
    Transformer,
)

#: Bytes of a number of each dtype.
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
#: What keys and values may be kept as; None: as they are.
CACHES = (None, "int8")
#: The context that costs are counted at where neither the caller nor the spec names one.
CONTEXT = 2048


@dataclass(frozen=True)
class Parameters:
    """Numbers that a model holds, each counted once.

    active     those that one token meets: of a mixture's experts, the `top_k` chosen
    embedding  the tables of tokens, positions and segments (a head of its own not among them)
    parts      the total by part: embeddings, attention, feed_forward, norms ...
    """

    total: int
    active: int
    embedding: int
    parts: dict[str, int]


@lru_cache(maxsize=8)
def parameters(spec: Transformer) -> Parameters:
    """The parameters of the model that `spec` describes; exactly those of the one that `model.build` makes."""
    parts: Counter[str] = Counter()
    for name, shape in shapes(spec).items():
        parts[_part(name)] += prod(shape)
    idle = sum(_idle(block, stack.dim) for stack in spec.stacks().values() for block in stack.layers())
    return Parameters(parts.total(), parts.total() - idle, parts["embeddings"], dict(parts))


def _part(name: str) -> str:
    """Which part a parameter is of, by its name: decoder.layers.3.attention.query.weight is of attention."""
    steps = name.split(".")
    if steps[0] == "head":
        return "head"
    part = steps[3] if steps[1] == "layers" else steps[1]
    if part.endswith("norm"):
        return "norms"
    return "attention" if part == "relative" else part


def _idle(block: Block, dim: int) -> int:
    """How many numbers of a layer a token does not meet."""
    mixers = [branch.mixer for branch in block.branches]
    return sum(sum(mixer.parameters(dim).values()) - sum(mixer.active(dim).values()) for mixer in mixers)


def forward_flops(
    spec: Transformer, tokens: int, *, source: int | None = None, cached: int = 0, dense: bool = False
) -> dict[str, int]:
    """FLOPs of one forward pass over a row of `tokens` tokens, by part.

    - `source`: the source's tokens of an encoder-decoder; as many as `tokens` unless given.
    - `cached`: how many tokens before these a cache holds. The encoder and the keys it gives to cross-attention are
      then in there too.
    - `dense`: count the pairs of query and key that a mask hides as well, as a kernel that masks after computing does
      (and torch's counter with it). Otherwise exactly those that may see each other.

    The parts are the mixers' names (their matrices), `scores` (queries with keys, and weights with values, in all
    attention) and `head`. A prefix mask is counted without a prefix.
    """
    source = tokens if source is None else source
    source_dim = spec.encoder.dim if spec.encoder is not None else None
    flops: Counter[str] = Counter()
    for name, stack in spec.stacks().items():
        encodes = name == "encoder" and spec.decoder is not None
        if encodes and cached:
            continue
        length = source if encodes else tokens
        for block in stack.layers():
            for mixer in (branch.mixer for branch in block.branches):
                flops[mixer.name] += _matrix_flops(mixer, stack.dim, source_dim, length, cached, source)
                flops["scores"] += mixer.score_flops(length, cached, source, dense)
    flops["head"] += _head_flops(spec, tokens)
    return dict(flops)


def _matrix_flops(mixer: Mixer, dim: int, source_dim: int | None, tokens: int, cached: int, source: int) -> int:
    active = mixer.active(dim, source_dim)
    matrices = [name for name, shape in mixer.shapes(dim, source_dim).items() if len(shape) > 1 and name[-4:] != "bias"]
    return sum(2 * active[name] * mixer.rows(name, tokens, cached, source) for name in matrices)


def _head_flops(spec: Transformer, tokens: int) -> int:
    dim = spec.output.dim
    match spec.head:
        case LanguageModelHead():
            return 2 * tokens * dim * spec.output.embeddings.vocabulary
        case MaskedLanguageModelHead():
            return 2 * tokens * dim * (dim + spec.output.embeddings.vocabulary)
        case SequenceClassificationHead() as head:
            return 2 * dim * (head.labels + (0 if head.activation is None else dim))
        case TokenClassificationHead() as head:
            return 2 * tokens * dim * head.labels
        case _:
            return 0


def weight_bytes(spec: Transformer, dtype: str = "bfloat16") -> int:
    """Bytes of all weights in `dtype`."""
    return parameters(spec).total * size_of(dtype)


def kv_bytes(
    spec: Transformer,
    tokens: int,
    *,
    source: int | None = None,
    dtype: str = "bfloat16",
    quantize: str | None = None,
) -> int:
    """Bytes of the keys and values of one row of `tokens` tokens: a window keeps no more than it can look back.

    With an encoder, those of a source as long as `tokens` too, unless `source` says how long it is. 0 for an encoder.
    With `quantize="int8"` each token's are kept in 8 bits, and only a source's in `dtype`. Raises `SpecError` for other
    ways to keep them.
    """
    if quantize not in CACHES:
        raise SpecError(f"a cache is quantised to int8, not to '{quantize}'; or leave that out")
    layers = spec.decoder.layers() if spec.decoder is not None else []
    mixers = [branch.mixer for block in layers for branch in block.branches]
    width, source = size_of(dtype), tokens if source is None else source
    return sum(_kept_bytes(mixer, mixer.kept(tokens, source), width, quantize) for mixer in mixers)


def _kept_bytes(mixer: Mixer, numbers: int, width: int, quantize: str | None) -> int:
    """Bytes of so many numbers of a mixer's, in 8 bits where they are rows of tokens (`parts/kernels/int8_rows.py`): a
    byte each, one more where they are odd, and two for the scale of each 32."""
    rows = mixer.kept_rows()
    if quantize is None or not rows:
        return width * numbers
    return numbers // sum(rows) * sum(row + row % 2 + 2 * -(-row // 32) for row in rows)


def size_of(dtype: str) -> int:
    """Bytes of a number of this dtype. Raises `SpecError` naming those there are."""
    if dtype not in BYTES:
        raise SpecError(f"there is no dtype '{dtype}' to count bytes in; there are {', '.join(BYTES)}")
    return BYTES[dtype]


def default_context(spec: Transformer) -> int:
    """The context to count costs at where the caller names none: the one trained for, else the positions learned."""
    if spec.context is not None:
        return spec.context
    position = spec.output.embeddings.position
    return position.size if isinstance(position, Learned) else CONTEXT


def check_length(spec: Transformer, tokens: int, what: str) -> None:
    """See that the model has a position for each token. Raises `PlanError` where it learns fewer."""
    learned = [stack.embeddings.position for stack in spec.stacks().values()]
    longest = min((position.size for position in learned if isinstance(position, Learned)), default=tokens)
    if tokens > longest:
        raise PlanError(f"{what} of {tokens:,} tokens is longer than the {longest:,} positions that the model learns")
