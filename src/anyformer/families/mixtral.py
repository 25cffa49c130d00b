"""Mixtral: Mistral with a mixture of experts for its feed-forward (Jiang et al. 2024, https://arxiv.org/abs/2401.04088,
section 2). Its files hold the matrices of each expert apart: w1 is the gate, w3 goes up and w2 down."""

from __future__ import annotations

from typing import Any

from anyformer.families import decoder
from anyformer.families.config import Config
from anyformer.families.decoder import (
    ROUTER_IGNORED,
    expert_tensors,
    pre_norm,
    read_attention,
    read_decoder,
    read_experts,
    size,
    write_decoder,
    write_experts,
    write_window,
)
from anyformer.families.family import Family, Gguf, architectures, branch, decoder_of
from anyformer.families.gguf_names import DECODER, EXPERTS, WINDOW
from anyformer.families.gguf_names import tensors as gguf_tensors
from anyformer.families.names import Table
from anyformer.spec import MixtureOfExperts, Transformer


def read(config: Config) -> Transformer:
    config.assume(max_position_embeddings=131072, num_key_value_heads=8, rms_norm_eps=1e-5)
    config.assume(num_experts_per_tok=2)
    if not config.has("num_experts"):
        config.assume(num_local_experts=8)
    window = config.size("sliding_window", default=None)
    attention = read_attention(config, base=1e6, window=window and (window, None))
    experts = read_experts(config, hidden=config.size("intermediate_size"), normalize=True)
    return read_decoder(config, pre_norm(config, attention, experts))


def write(spec: Transformer) -> dict[str, Any]:
    experts, _ = branch(decoder_of(spec), "experts", MixtureOfExperts)
    attributes = write_decoder(spec)
    if attributes["head_dim"] == attributes["hidden_size"] // attributes["num_attention_heads"]:
        del attributes["head_dim"]  # published files leave out what follows from the others
    return {
        **attributes,
        **write_experts(experts),
        "intermediate_size": experts.hidden,
        "sliding_window": write_window(spec),
    }


def tensors(spec: Transformer) -> Table:
    return (*expert_tensors("block_sparse_moe", "w1", "w3", "w2"), *decoder.tensors(spec))


_ROUTED = {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_experts_per_tok": 2, "sliding_window": None}

family = Family(
    name="mixtral",
    title="Mixtral",
    paper="https://arxiv.org/abs/2401.04088",
    model_types=("mixtral",),
    architectures=architectures("Mixtral"),
    presets={
        "tiny": size(64, 2, 4, 2, 96, 512, 512, num_local_experts=4, **_ROUTED),
        "8x7b": size(4096, 32, 32, 8, 14336, 32000, 32768, num_local_experts=8, router_aux_loss_coef=0.02, **_ROUTED),
        "8x22b": size(6144, 56, 48, 8, 16384, 32000, 65536, num_local_experts=8, **_ROUTED),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="model.",
    defaults={"router_jitter_noise": 0.0},
    ignored=ROUTER_IGNORED,
    gguf=Gguf(
        "llama",
        keys={**DECODER, **WINDOW, "num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"},
        tensors=gguf_tensors(EXPERTS, paired=True),
        scalings=("linear", "yarn", "longrope", "llama3"),
        requires=("expert_count", "expert_used_count"),
    ),
)
