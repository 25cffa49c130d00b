"""Phi-3, Phi-3.5 and Phi-4 (Abdin et al. 2024, https://arxiv.org/abs/2404.14219): LLaMA's blocks with projections fused
in the file, a window in some sizes, and LongRoPE in those of long context."""

from __future__ import annotations

from typing import Any

from anyformer.families.config import Config
from anyformer.families.decoder import (
    pre_norm,
    read_attention,
    read_decoder,
    read_feed_forward,
    size,
    write_decoder,
    write_feed_forward,
    write_window,
)
from anyformer.families.decoder import tensors as decoder_tensors
from anyformer.families.family import Family, Gguf, architectures, branch, decoder_of, given
from anyformer.families.gguf_names import DECODER, GATE_UP, QKV, WINDOW, turned
from anyformer.families.gguf_names import tensors as gguf_tensors
from anyformer.families.names import Table, Tensor
from anyformer.families.rotary import rotary_share
from anyformer.spec import Attention, FeedForward, LongRopeScaling, Rotary, Transformer


def read(config: Config) -> Transformer:
    config.assume(rms_norm_eps=1e-5, max_position_embeddings=4096, original_max_position_embeddings=4096)
    dim, heads = config.size("hidden_size"), config.size("num_attention_heads")
    config.expect("head_dim", dim // heads)
    window = config.size("sliding_window", default=None)
    original = config.size("original_max_position_embeddings")
    attention = read_attention(config, share=1.0, original=original, window=window and (window, None))
    if not isinstance(given(attention.position, Rotary, "rotary positions").scaling, LongRopeScaling | None):
        config.refuse("the rope_type of rope_scaling or rope_parameters must be 'default' or 'longrope' in phi3")
    block = pre_norm(config, attention, read_feed_forward(config))
    dropout = config.number("resid_pdrop", default=0.0)
    branches = tuple(part.replace(dropout=dropout) for part in block.branches)
    return read_decoder(config, block.replace(branches=branches))


def write(spec: Transformer) -> dict[str, Any]:
    attention, _ = branch(decoder_of(spec), "attention", Attention)
    position = given(attention.position, Rotary, "rotary positions")
    attributes = {
        **write_decoder(spec),
        **write_feed_forward(branch(decoder_of(spec), "feed_forward", FeedForward)[0]),
        "sliding_window": write_window(spec),
        "partial_rotary_factor": rotary_share(position, attention.head_dim),
        "resid_pdrop": decoder_of(spec).pattern[0].branches[0].dropout,
    }
    if position.scaling is not None:
        attributes["original_max_position_embeddings"] = given(
            position.scaling, LongRopeScaling, "rotary positions without scaling or with LongRoPE"
        ).original_context
    del attributes["head_dim"]
    return attributes


def tensors(spec: Transformer) -> Table:
    queries = tuple(f"decoder.layers.*.attention.{name}.*" for name in ("query", "key", "value"))
    gates = tuple(f"decoder.layers.*.feed_forward.{name}.*" for name in ("gate", "up"))
    return (
        Tensor("model.layers.*.self_attn.qkv_proj.*", queries),
        Tensor("model.layers.*.mlp.gate_up_proj.*", gates),
        *decoder_tensors(spec),
    )


def _gguf_write(spec: Transformer) -> dict[str, Any]:
    """The context before scaling, which files hold whether there is scaling or not."""
    return {"rope.scaling.original_context_length": write(spec).get("original_max_position_embeddings", 4096)}


# fmt: off
_SHORT = [
    1.0, 1.02, 1.03, 1.03, 1.05, 1.05, 1.05, 1.05, 1.05, 1.07, 1.1, 1.11, 1.16, 1.16, 1.17, 1.29, 1.34, 1.68, 1.79,
    1.82, 1.85, 1.88, 1.91, 1.94, 1.99, 2.02, 2.02, 2.02, 2.02, 2.02, 2.02, 2.03, 2.03, 2.03, 2.03, 2.03, 2.03, 2.03,
    2.03, 2.03, 2.08, 2.09, 2.19, 2.22, 2.59, 2.73, 2.75, 2.84,
]
_LONG = [
    1.08, 1.11, 1.14, 1.34, 1.59, 1.6, 1.62, 2.62, 3.23, 3.23, 4.79, 7.4, 7.7, 9.09, 12.2, 17.67, 24.46, 28.57, 30.42,
    30.84, 32.59, 32.93, 42.32, 44.96, 50.34, 50.45, 57.55, 57.93, 58.21, 60.14, 62.61, 62.62, 62.71, 63.14, 63.14,
    63.77, 63.93, 63.96, 63.97, 64.03, 64.07, 64.08, 64.12, 64.41, 64.48, 64.51, 64.53, 64.84,
]
# fmt: on
_LONGROPE = {"rope_type": "longrope", "short_factor": _SHORT, "long_factor": _LONG}

family = Family(
    name="phi3",
    title="Phi-3",
    paper="https://arxiv.org/abs/2404.14219",
    model_types=("phi3",),
    architectures=architectures("Phi3"),
    presets={
        "tiny": size(64, 2, 4, 2, 176, 512, 512),
        "mini-4k": size(3072, 32, 32, 32, 8192, 32064, 4096, sliding_window=2047),
        "3.5-mini": size(3072, 32, 32, 32, 8192, 32064, 131072, sliding_window=262144, rope_scaling=_LONGROPE),
        "medium-4k": size(5120, 40, 40, 10, 17920, 32064, 4096, sliding_window=2047),
        "phi-4": size(5120, 40, 40, 10, 17920, 100352, 16384, rope_theta=250000.0),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="model.",
    defaults={
        "attention_bias": False,
        "mlp_bias": False,
        "lm_head_bias": False,
        "full_attn_mod": 1,
        "interpolate_factor": 1,
    },
    # Said outright in every file that is written: what transformers takes for granted lies beyond a small vocabulary.
    generation={"eos_token_id": None, "pad_token_id": None},
    ignored={"embd_pdrop": "no dropout of embeddings is ever computed from it"},
    gguf=Gguf(
        "phi3",
        keys={**DECODER, **WINDOW, "original_max_position_embeddings": "rope.scaling.original_context_length"},
        tensors=gguf_tensors(QKV, GATE_UP),
        read=turned("partial_rotary_factor"),
        write=_gguf_write,
        scalings=("longrope",),
    ),
)
