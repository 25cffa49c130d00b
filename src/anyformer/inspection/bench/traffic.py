"""What a pass over a model reads from memory and computes: what its time is measured against.

A decoded token needs every weight once, however many rows are decoded together, and each row's keys and values; of a
mixture of experts the ones chosen, of a table one row, and of cross-attention only what is not in the cache. A prompt
needs the products of all its tokens, but for those of the head, which reads the last one only.
"""

from __future__ import annotations

from math import prod

from torch import nn

from anyformer.inspection.bench.sides import Work
from anyformer.model import Transformer
from anyformer.planning import forward_flops, kv_bytes
from anyformer.spec import Mixer


def stored_bytes(*modules: nn.Module | None) -> int:
    """Bytes of all that some modules store, a tensor that they share once."""
    held = [module for module in modules if module is not None]
    tensors = {tensor.data_ptr(): tensor for module in held for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def step_weight_bytes(model: Transformer, batch: int = 1) -> int:
    """Bytes of weights that decoding a token reads, for `batch` rows at a time (each with experts of its own)."""
    described, stack = model.spec.output, model.output_stack
    source_dim = model.spec.encoder.dim if model.spec.encoder is not None else None
    read = float(stored_bytes(stack.norm, stack.relative, model.head))
    for block, layer in zip(described.layers(), stack.layers):
        shares = {branch.name: _share(branch.mixer, described.dim, source_dim, batch) for branch in block.branches}
        read += sum(stored_bytes(part) * shares.get(name, 1.0) for name, part in layer.named_children())
    return round(read)


def cache_bytes(model: Transformer, work: Work, tokens: int) -> int:
    """Bytes of keys and values, of all rows, when a decoder has come so far as `tokens`, its prompt among them."""
    reads_source = model.spec.shape == "encoder-decoder"
    length, source = (tokens - work.prompt_tokens + 1, work.prompt_tokens) if reads_source else (tokens, 0)
    dtype = str(model.dtype).removeprefix("torch.")
    return work.batch * kv_bytes(model.spec, length, source=source, dtype=dtype, quantize=work.quantize_cache)


def prompt_flops(model: Transformer, work: Work) -> int:
    """FLOPs of reading all prompts up to their first new tokens, or of embedding them."""
    T = work.prompt_tokens
    if model.spec.shape == "encoder-decoder":
        return work.batch * sum(forward_flops(model.spec, 1, source=T).values())
    flops = forward_flops(model.spec, T)
    head = flops.pop("head") if model.spec.shape == "decoder" else 0
    flops["head"] = head // T
    return work.batch * sum(flops.values())


def step_flops(model: Transformer, work: Work, tokens: int) -> int:
    """FLOPs of one token more for each row, when a decoder has come so far as `tokens`."""
    reads_source = model.spec.shape == "encoder-decoder"
    cached = tokens - work.prompt_tokens if reads_source else tokens - 1
    return work.batch * sum(forward_flops(model.spec, 1, cached=cached, source=work.prompt_tokens).values())


def _share(mixer: Mixer, dim: int, source_dim: int | None, batch: int) -> float:
    """Which part of a mixer's numbers a step reads."""
    every = {name: prod(shape) for name, shape in mixer.shapes(dim, source_dim).items()}
    active = mixer.active(dim, source_dim)
    read = [min(every[name], batch * active[name]) for name in every if mixer.rows(name, 1, 1, 1)]
    return sum(read) / sum(every.values())
