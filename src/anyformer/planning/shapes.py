"""The name and shape of every parameter of a model, read off its spec: no module is built, no torch imported."""

from __future__ import annotations

from math import prod

from anyformer.spec import Block, Head, Learned, Stack, Transformer
from anyformer.spec.mixers import linear_shapes, norm_shapes

Shapes = dict[str, tuple[int, ...]]


def shapes(spec: Transformer) -> Shapes:
    """{parameter name: shape} of the model that `spec` describes, in the order in which data flows.

    Each parameter stands once: a tied head has no `head.output.weight` here, and a shared embedding is the encoder's.
    """
    named: Shapes = {}
    source_dim = spec.encoder.dim if spec.encoder is not None else None
    for name, stack in spec.stacks().items():
        named |= _under(name, _stack(stack, source_dim))
    if spec.shared_embedding:
        del named["decoder.embeddings.tokens.weight"]
    return named | _under("head", _head(spec.head, spec.output.dim, spec.output.embeddings.vocabulary))


def count(spec: Transformer) -> int:
    """How many parameters the model has, tied ones counted once."""
    return sum(prod(shape) for shape in shapes(spec).values())


def _stack(stack: Stack, source_dim: int | None) -> Shapes:
    named = _under("embeddings", _embeddings(stack))
    if stack.relative is not None:
        heads = next(mixer.heads for mixer in stack.attentions() if mixer.source == "self")
        named["relative.weight"] = (stack.relative.buckets, heads)
    for index, block in enumerate(stack.layers()):
        named |= _under(f"layers.{index}", _block(block, stack.dim, source_dim))
    return named | norm_shapes("norm", stack.norm, stack.dim)


def _embeddings(stack: Stack) -> Shapes:
    embeddings = stack.embeddings
    named: Shapes = {"tokens.weight": (embeddings.vocabulary, stack.dim)}
    if isinstance(embeddings.position, Learned):
        named["positions.weight"] = (embeddings.position.size + embeddings.position.offset, stack.dim)
    if embeddings.segments:
        named["segments.weight"] = (embeddings.segments, stack.dim)
    return named | norm_shapes("norm", embeddings.norm, stack.dim)


def _block(block: Block, dim: int, source_dim: int | None) -> Shapes:
    named: Shapes = {}
    for branch in block.branches:
        named |= _under(branch.name, branch.mixer.shapes(dim, source_dim))
        if branch.norm != "shared":
            named |= norm_shapes(f"{branch.name}_norm", branch.norm, dim)
            if branch.placement == "both":
                named |= norm_shapes(f"{branch.name}_output_norm", branch.norm, dim)
    return named


def _head(head: Head, dim: int, vocabulary: int) -> Shapes:
    match head.kind:
        case "language_model":
            return _output(vocabulary, dim, head.tied, head.bias)
        case "masked_language_model":
            dense = linear_shapes("dense", dim, dim, head.dense_bias) | norm_shapes("norm", head.norm, dim)
            return dense | _output(vocabulary, dim, head.tied, head.bias)
        case "sequence_classification":
            dense = {} if head.activation is None else linear_shapes("dense", dim, dim, bias=True)
            return dense | linear_shapes("output", head.labels, dim, head.bias)
        case "token_classification":
            return linear_shapes("output", head.labels, dim, head.bias)
        case "embedding":
            return {}


def _output(vocabulary: int, dim: int, tied: bool, bias: bool) -> Shapes:
    named = linear_shapes("output", vocabulary, dim, bias)
    if tied:
        del named["output.weight"]
    return named


def _under(prefix: str, named: Shapes) -> Shapes:
    return {f"{prefix}.{name}": shape for name, shape in named.items()}
