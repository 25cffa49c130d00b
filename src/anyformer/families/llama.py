"""LLaMA 1 to 3.x and all of its shape, SmolLM among them: Touvron et al. 2023, https://arxiv.org/abs/2302.13971, and
Grattafiori et al. 2024, https://arxiv.org/abs/2407.21783."""

from __future__ import annotations

from typing import Any

from anyformer.families.config import Config
from anyformer.families.decoder import (
    pre_norm,
    read_attention,
    read_biases,
    read_decoder,
    read_feed_forward,
    size,
    tensors,
    write_biases,
    write_decoder,
    write_feed_forward,
)
from anyformer.families.family import Family, Gguf, architectures, branch, decoder_of
from anyformer.families.gguf_names import DECODER
from anyformer.families.gguf_names import tensors as gguf_tensors
from anyformer.spec import FeedForward, Transformer


def read(config: Config) -> Transformer:
    config.assume(max_position_embeddings=config.size("max_position_embeddings", "max_sequence_length", default=2048))
    feed_forward = read_feed_forward(config).replace(bias=config.flag("mlp_bias", default=False))
    return read_decoder(config, pre_norm(config, read_attention(config, **read_biases(config)), feed_forward))


def write(spec: Transformer) -> dict[str, Any]:
    feed_forward, _ = branch(decoder_of(spec), "feed_forward", FeedForward)
    return {
        **write_decoder(spec),
        **write_biases(spec),
        **write_feed_forward(feed_forward),
        "mlp_bias": feed_forward.bias,
    }


def _size(
    dim: int, layers: int, heads: int, kv_heads: int, hidden: int, vocabulary: int, context: int, **more: Any
) -> dict[str, Any]:
    return size(dim, layers, heads, kv_heads, hidden, vocabulary, context, rms_norm_eps=1e-5, **more)


def _llama3(factor: float) -> dict[str, Any]:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    return {"rope_theta": 500000.0, "rope_scaling": scaling}


_TIED = {"tie_word_embeddings": True}

family = Family(
    name="llama",
    title="LLaMA",
    paper="https://arxiv.org/abs/2302.13971",
    model_types=("llama",),
    architectures=architectures("Llama"),
    presets={
        "tiny": _size(128, 2, 4, 2, 352, 512, 512, **_TIED),
        "135m": _size(576, 30, 9, 3, 1536, 49152, 8192, rope_theta=100000.0, **_TIED),
        "360m": _size(960, 32, 15, 5, 2560, 49152, 8192, rope_theta=100000.0, **_TIED),
        "1.7b": _size(2048, 24, 32, 32, 8192, 49152, 8192, rope_theta=130000.0, **_TIED),
        "1b": _size(2048, 16, 32, 8, 8192, 128256, 131072, **_TIED, **_llama3(32.0)),
        "3b": _size(3072, 28, 24, 8, 8192, 128256, 131072, **_TIED, **_llama3(32.0)),
        "7b": _size(4096, 32, 32, 32, 11008, 32000, 4096),
        "8b": _size(4096, 32, 32, 8, 14336, 128256, 131072, **_llama3(8.0)),
        "13b": _size(5120, 40, 40, 40, 13824, 32000, 4096),
        "70b": _size(8192, 80, 64, 8, 28672, 128256, 131072, **_llama3(8.0)),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="model.",
    defaults={"rope_interleaved": False},
    ignored={"is_llama_config": "a note of the converter that wrote SmolLM"},
    gguf=Gguf(
        "llama",
        keys=DECODER,
        tensors=gguf_tensors(paired=True),
        present={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"},
        scalings=("linear", "yarn", "longrope", "llama3"),
    ),
)
