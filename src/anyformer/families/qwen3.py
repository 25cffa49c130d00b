"""Qwen3: LLaMA's blocks with queries and keys normalised head by head, and windows on some layers where a config asks
for them (Yang et al. 2025, https://arxiv.org/abs/2505.09388, section 2)."""

from __future__ import annotations

from typing import Any

from anyformer.families.config import Config
from anyformer.families.decoder import (
    pre_norm,
    read_attention,
    read_biases,
    read_decoder,
    read_feed_forward,
    read_norm,
    read_window,
    size,
    tensors,
    write_biases,
    write_decoder,
    write_feed_forward,
)
from anyformer.families.family import Family, Gguf, architectures, branch, decoder_of
from anyformer.families.gguf_names import DECODER
from anyformer.families.gguf_names import tensors as gguf_tensors
from anyformer.families.layer_types import GLOBAL, LOCAL, attentions, pattern, read_kinds, write_kinds
from anyformer.spec import Block, FeedForward, Transformer


def read(config: Config) -> Transformer:
    config.assume(max_position_embeddings=32768, num_key_value_heads=32, head_dim=128)
    window = read_window(config)
    attention = read_attention(config, query_key_norm=read_norm(config), **read_biases(config))
    attentions = {GLOBAL: attention, LOCAL: attention.replace(window=window and (window, None))}
    feed_forward = read_feed_forward(config)
    blocks = {kind: pre_norm(config, attention, feed_forward) for kind, attention in attentions.items()}
    return read_decoder(config, *_pattern(config, window, blocks))


def _pattern(config: Config, window: int | None, blocks: dict[str, Block]) -> tuple[Block, ...]:
    """By `layer_types`; before there were any, the layers from `max_window_layers` on had the window."""
    depth = config.size("num_hidden_layers")
    if config.has("layer_types"):
        kinds = read_kinds(config, depth, (GLOBAL,))
        if LOCAL in kinds and window is None:
            config.refuse(f"layer_types asks for '{LOCAL}', use_sliding_window and sliding_window give no window")
        return pattern(kinds, blocks)
    first = min(config.integer("max_window_layers", default=28), depth) if window else depth
    if first in (0, depth):
        return (blocks[GLOBAL if first else LOCAL],)
    return (blocks[GLOBAL].replace(repeat=first), blocks[LOCAL].replace(repeat=depth - first))


def write(spec: Transformer) -> dict[str, Any]:
    stack = decoder_of(spec)
    feed_forward, _ = branch(stack, "feed_forward", FeedForward)
    local = attentions(stack).get(LOCAL)
    return {
        **write_decoder(spec),
        **write_biases(spec),
        **write_feed_forward(feed_forward),
        "use_sliding_window": local is not None,
        "sliding_window": local.window[0] if local is not None and local.window is not None else None,
        "layer_types": write_kinds(stack),
    }


def _published(dim: int, layers: int, heads: int, hidden: int, **more: Any) -> dict[str, Any]:
    return size(dim, layers, heads, 8, hidden, 151936, 40960, head_dim=128, rope_theta=1e6, **more)


family = Family(
    name="qwen3",
    title="Qwen3",
    paper="https://arxiv.org/abs/2505.09388",
    model_types=("qwen3",),
    architectures=architectures("Qwen3"),
    presets={
        "tiny": size(64, 2, 4, 2, 176, 512, 512, head_dim=32, tie_word_embeddings=True),
        "0.6b": _published(1024, 28, 16, 3072, tie_word_embeddings=True),
        "1.7b": _published(2048, 28, 16, 6144, tie_word_embeddings=True),
        "4b": _published(2560, 36, 32, 9728, tie_word_embeddings=True),
        "8b": _published(4096, 36, 32, 12288),
        "14b": _published(5120, 40, 40, 17408),
        "32b": _published(5120, 64, 64, 25600),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="model.",
    ignored={
        "max_window_layers": "layer_types spells out which layers have a window, or none has one",
        "sliding_window": "of use only with use_sliding_window",
    },
    gguf=Gguf("qwen3", keys=DECODER, tensors=gguf_tensors()),
)
