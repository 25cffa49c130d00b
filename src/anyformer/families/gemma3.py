"""Gemma 3, its text model (Gemma Team 2025, https://arxiv.org/abs/2503.19786): Gemma 2 with normalised queries and keys
instead of soft caps, five local layers to a global one, and a rotary base for each kind."""

from __future__ import annotations

from typing import Any

from anyformer.families.config import Config
from anyformer.families.family import Family, Gguf, decoder_of
from anyformer.families.gemma2 import (
    DEFAULTS,
    GGUF_KEYS,
    GGUF_NAMES,
    IGNORED,
    gguf_read,
    read_attention,
    read_model,
    read_norm,
    size,
    write_model,
)
from anyformer.families.gemma2 import tensors as gemma2_tensors
from anyformer.families.gguf_names import tensors as gguf_tensors
from anyformer.families.layer_types import GLOBAL, LOCAL, read_kinds, read_rotary, write_rotary
from anyformer.families.names import Table, Tensor
from anyformer.spec import Transformer

_BASES = {GLOBAL: "rope_theta", LOCAL: "rope_local_base_freq"}
#: The last of so many layers is global.
_EVERY = "sliding_window_pattern"


def read(config: Config) -> Transformer:
    context = config.size("max_position_embeddings", default=131072)
    attention = read_attention(config)
    positions = read_rotary(
        config, _BASES, {GLOBAL: 1e6, LOCAL: 1e4}, scaled=(GLOBAL,), head_dim=attention.head_dim, context=context
    )
    attention = attention.replace(query_key_norm=read_norm(config))
    window = (config.size("sliding_window", default=4096), None)
    mixers = {
        LOCAL: attention.replace(position=positions[LOCAL], window=window),
        GLOBAL: attention.replace(position=positions[GLOBAL]),
    }
    depth, every = config.size("num_hidden_layers"), config.size(_EVERY, default=6)
    if every > 1000:
        config.refuse(f"{_EVERY} is {every}; it must be at most 1000")
    kinds = read_kinds(config, depth, (LOCAL,) * (every - 1) + (GLOBAL,), _EVERY)
    return read_model(config, kinds, mixers, context, config.number("final_logit_softcapping", default=None))


def write(spec: Transformer) -> dict[str, Any]:
    stack = decoder_of(spec)
    attributes = {**write_model(spec), **write_rotary(stack, _BASES)}
    # What versions before `layer_types` go by; only the usual order can be said so.
    cycle = [block.repeat for block in stack.pattern]
    if len(cycle) == 2 and cycle[1] == 1:
        attributes[_EVERY] = cycle[0] + 1
    return attributes


def tensors(spec: Transformer) -> Table:
    layer, ours = "model.layers.*.self_attn", "decoder.layers.*.attention"
    return (
        Tensor(f"{layer}.q_norm.weight", f"{ours}.query_norm.weight"),
        Tensor(f"{layer}.k_norm.weight", f"{ours}.key_norm.weight"),
        *gemma2_tensors(spec),
    )


_TEXT = {"sliding_window": 1024, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
_SMALL = {"sliding_window": 512, "max_position_embeddings": 32768}

family = Family(
    name="gemma3",
    title="Gemma 3",
    paper="https://arxiv.org/abs/2503.19786",
    model_types=("gemma3_text",),
    architectures={
        "Gemma3ForCausalLM": "language_model",
        "Gemma3TextModel": "embedding",
        "Gemma3TextForSequenceClassification": "sequence_classification",
    },
    presets={
        "tiny": size(
            *(128, 3, 4, 2, 32, 352, 512),
            query_pre_attn_scalar=32,
            sliding_window=64,
            max_position_embeddings=512,
            sliding_window_pattern=3,
        ),
        "270m": size(640, 18, 4, 1, 256, 2048, 262144, **_SMALL),
        "1b": size(1152, 26, 4, 1, 256, 6912, 262144, **_SMALL),
        "4b": {**size(2560, 34, 8, 4, 256, 10240, 262208), **_TEXT},
        "12b": {**size(3840, 48, 16, 8, 256, 15360, 262208), **_TEXT},
        "27b": {**size(5376, 62, 32, 16, 128, 21504, 262208, query_pre_attn_scalar=168), **_TEXT},
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="model.",
    defaults={**DEFAULTS, "attn_logit_softcapping": None},
    ignored={**IGNORED, "_sliding_window_pattern": "spelled out by layer_types"},
    generation={"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0},
    gguf=Gguf(
        "gemma3",
        keys={**GGUF_KEYS, "rope_local_base_freq": "rope.freq_base_swa"},
        tensors=gguf_tensors(GGUF_NAMES),
        read=gguf_read(every=6, largest=62),
        scalings=("linear",),
        assumed={"rope.freq_base_swa": 10000.0},
    ),
)
