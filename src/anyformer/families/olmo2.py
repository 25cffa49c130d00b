"""OLMo 2: LLaMA's blocks with their norms on what the mixers give instead of what they read, and queries and keys
normalised over all heads at once (OLMo et al. 2025, https://arxiv.org/abs/2501.00656, section 3.1)."""

from __future__ import annotations

from typing import Any

from anyformer.families import decoder
from anyformer.families.config import Config
from anyformer.families.decoder import (
    read_attention,
    read_biases,
    read_decoder,
    read_feed_forward,
    read_norm,
    size,
    write_biases,
    write_decoder,
    write_feed_forward,
)
from anyformer.families.family import Family, Gguf, branch, decoder_of
from anyformer.families.gguf_names import DECODER
from anyformer.families.gguf_names import tensors as gguf_tensors
from anyformer.families.names import Table, Tensor
from anyformer.spec import Block, Branch, FeedForward, Transformer


def read(config: Config) -> Transformer:
    config.assume(max_position_embeddings=2048, rms_norm_eps=1e-5)
    norm = read_norm(config)
    attention = read_attention(config, query_key_norm=norm, query_key_norm_over="width", **read_biases(config))
    mixers = (attention, read_feed_forward(config))
    branches = tuple(Branch(mixer=mixer, norm=norm, placement="output") for mixer in mixers)
    return read_decoder(config, Block(branches=branches))


def write(spec: Transformer) -> dict[str, Any]:
    feed_forward, _ = branch(decoder_of(spec), "feed_forward", FeedForward)
    return {**write_decoder(spec), **write_biases(spec), **write_feed_forward(feed_forward)}


def tensors(spec: Transformer) -> Table:
    return (
        Tensor("model.layers.*.post_attention_layernorm.weight", "decoder.layers.*.attention_norm.weight"),
        Tensor("model.layers.*.post_feedforward_layernorm.weight", "decoder.layers.*.feed_forward_norm.weight"),
        *decoder.tensors(spec),
    )


def _published(dim: int, layers: int, heads: int, kv_heads: int, hidden: int) -> dict[str, Any]:
    return size(dim, layers, heads, kv_heads, hidden, 100352, 4096, rope_theta=500000.0, rms_norm_eps=1e-6)


family = Family(
    name="olmo2",
    title="OLMo 2",
    paper="https://arxiv.org/abs/2501.00656",
    model_types=("olmo2",),
    architectures={
        "Olmo2ForCausalLM": "language_model",
        "Olmo2Model": "embedding",
        "Olmo2ForSequenceClassification": "sequence_classification",
    },
    presets={
        "tiny": size(64, 2, 4, 2, 176, 512, 512, rms_norm_eps=1e-6),
        "1b": _published(2048, 16, 16, 16, 8192),
        "7b": _published(4096, 32, 32, 32, 11008),
        "13b": _published(5120, 40, 40, 40, 13824),
        "32b": _published(5120, 64, 40, 8, 27648),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="model.",
    gguf=Gguf(
        "olmo2",
        # Every head has an equal share of the width, whatever the file says of it.
        keys={name: key for name, key in DECODER.items() if name != "head_dim"},
        tensors=gguf_tensors(
            {
                "blk.*.post_attention_norm.weight": "layers.*.attention_norm.weight",
                "blk.*.post_ffw_norm.weight": "layers.*.feed_forward_norm.weight",
            }
        ),
        fixed={"tie_word_embeddings": False},
    ),
)
