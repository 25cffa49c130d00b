"""Mistral: LLaMA's blocks, each query seeing a window of keys, in the first version at least (Jiang et al. 2023,
https://arxiv.org/abs/2310.06825, section 2). Its `sliding_window` counts keys, the query's own included."""

from __future__ import annotations

from typing import Any

from anyformer.families.config import Config
from anyformer.families.decoder import (
    pre_norm,
    read_attention,
    read_decoder,
    read_feed_forward,
    size,
    tensors,
    write_decoder,
    write_feed_forward,
    write_window,
)
from anyformer.families.family import Family, Gguf, architectures, branch, decoder_of
from anyformer.families.gguf_names import DECODER, WINDOW
from anyformer.families.gguf_names import tensors as gguf_tensors
from anyformer.spec import FeedForward, Transformer


def read(config: Config) -> Transformer:
    config.assume(max_position_embeddings=131072, num_key_value_heads=8, sliding_window=4096)
    window = config.size("sliding_window", default=None)
    attention = read_attention(config, window=window and (window, None))
    return read_decoder(config, pre_norm(config, attention, read_feed_forward(config)))


def write(spec: Transformer) -> dict[str, Any]:
    feed_forward, _ = branch(decoder_of(spec), "feed_forward", FeedForward)
    return {**write_decoder(spec), **write_feed_forward(feed_forward), "sliding_window": write_window(spec)}


def _published(dim: int, layers: int, heads: int, hidden: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    more = {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None, **more}
    return size(dim, layers, heads, 8, hidden, vocabulary, **{"context": 32768, **more})


family = Family(
    name="mistral",
    title="Mistral",
    paper="https://arxiv.org/abs/2310.06825",
    model_types=("mistral",),
    architectures=architectures("Mistral"),
    presets={
        "tiny": size(64, 2, 4, 2, 176, 512, 512, sliding_window=64, rms_norm_eps=1e-5),
        "7b": _published(4096, 32, 32, 14336, 32000, rope_theta=10000.0, sliding_window=4096),
        "7b-v0.2": _published(4096, 32, 32, 14336, 32000),
        "7b-v0.3": _published(4096, 32, 32, 14336, 32768),
        "nemo-12b": _published(5120, 40, 32, 14336, 131072, head_dim=128, context=131072),
        "small-24b": _published(5120, 40, 32, 32768, 131072, head_dim=128, rope_theta=1e8),
        "large-123b": _published(12288, 88, 96, 28672, 32768, head_dim=128, context=131072),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="model.",
    gguf=Gguf(
        "llama",
        keys={**DECODER, **WINDOW},
        tensors=gguf_tensors(paired=True),
        scalings=("linear", "yarn", "longrope", "llama3"),
        requires=("attention.sliding_window",),
    ),
)
