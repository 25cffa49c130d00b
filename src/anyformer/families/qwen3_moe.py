"""Qwen3's mixture form: Qwen3 with experts for the feed-forward of most layers, or of all (Yang et al. 2025,
https://arxiv.org/abs/2505.09388, section 2)."""

from __future__ import annotations

from typing import Any

from anyformer.families import decoder
from anyformer.families.config import Config
from anyformer.families.decoder import (
    ROUTER_IGNORED,
    expert_tensors,
    pre_norm,
    read_attention,
    read_biases,
    read_decoder,
    read_experts,
    read_feed_forward,
    read_norm,
    read_window,
    size,
    write_biases,
    write_decoder,
    write_experts,
    write_window,
)
from anyformer.families.family import Family, Gguf, architectures, decoder_of, given
from anyformer.families.gguf_names import DECODER, EXPERTS
from anyformer.families.gguf_names import tensors as gguf_tensors
from anyformer.families.layer_types import pattern
from anyformer.families.names import Table
from anyformer.spec import Attention, Block, FeedForward, MixtureOfExperts, Transformer

#: More layers than this are spelled out for nobody.
DEEPEST = 10000


def read(config: Config) -> Transformer:
    config.assume(max_position_embeddings=32768, num_key_value_heads=4, num_experts_per_tok=8)
    if not config.has("num_local_experts"):
        config.assume(num_experts=128)
    window = read_window(config)
    if window is not None:
        # Versions differ in whether the layers before `max_window_layers` have the window too.
        config.expect("max_window_layers", 0)
    attention = read_attention(
        config, window=window and (window, None), query_key_norm=read_norm(config), **read_biases(config)
    )
    hidden = config.size("moe_intermediate_size", default=768)
    experts = read_experts(config, hidden=hidden, normalize=config.flag("norm_topk_prob", default=False))
    return read_decoder(config, *_pattern(config, attention, experts))


def _pattern(config: Config, attention: Attention, experts: MixtureOfExperts) -> tuple[Block, ...]:
    """Every `decoder_sparse_step`-th layer has experts, except for `mlp_only_layers`."""
    depth, step = config.size("num_hidden_layers"), config.size("decoder_sparse_step", default=1)
    dense: Any = config.value("mlp_only_layers", default=[])
    sound = isinstance(dense, list) and all(type(index) is int and 0 <= index < depth for index in dense)
    if not sound or len(set(dense)) < len(dense) or (dense and depth > DEEPEST):
        config.refuse(f"mlp_only_layers must hold different layers, counted from 0, of {min(depth, DEEPEST)}")
    sparse = pre_norm(config, attention, experts)
    if step == 1 and not dense:
        return (sparse,)
    plain = pre_norm(config, attention, read_feed_forward(config))
    if not dense and step <= depth:
        return (plain.replace(repeat=step - 1), sparse)
    kinds = ["sparse" if (index + 1) % step == 0 and index not in dense else "plain" for index in range(depth)]
    if "sparse" not in kinds:
        config.refuse("decoder_sparse_step and mlp_only_layers leave no layer with experts; qwen3 has none")
    cycle = next(size for size in range(1, depth + 1) if kinds[size:] == kinds[: depth - size])
    return pattern(kinds[:cycle], {"sparse": sparse, "plain": plain})


def write(spec: Transformer) -> dict[str, Any]:
    stack = decoder_of(spec)
    mixers = [[branch.mixer for branch in block.branches] for block in stack.layers()]
    found = {type(mixer): mixer for layer in mixers for mixer in layer}
    experts = given(found.get(MixtureOfExperts), MixtureOfExperts, "layers with experts")
    dense = found.get(FeedForward)
    return {
        **write_decoder(spec),
        **write_biases(spec),
        **write_experts(experts),
        "moe_intermediate_size": experts.hidden,
        "norm_topk_prob": experts.normalize,
        "intermediate_size": dense.hidden if isinstance(dense, FeedForward) else experts.hidden * experts.top_k,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [index for index, layer in enumerate(mixers) if experts not in layer],
        "use_sliding_window": write_window(spec) is not None,
        "sliding_window": write_window(spec),
    }


def tensors(spec: Transformer) -> Table:
    return (*expert_tensors("mlp", "gate_proj", "up_proj", "down_proj"), *decoder.tensors(spec))


def _published(dim: int, layers: int, heads: int, hidden: int, expert_hidden: int) -> dict[str, Any]:
    routed = {"moe_intermediate_size": expert_hidden, "num_experts": 128, "num_experts_per_tok": 8}
    shape = size(dim, layers, heads, 4, hidden, 151936, 40960, head_dim=128, rope_theta=1e6)
    return {**shape, **routed, "norm_topk_prob": True}


_TINY = {"head_dim": 32, "moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2}

family = Family(
    name="qwen3_moe",
    title="Qwen3 (mixture of experts)",
    paper="https://arxiv.org/abs/2505.09388",
    model_types=("qwen3_moe",),
    architectures=architectures("Qwen3Moe"),
    presets={
        "tiny": size(64, 2, 4, 2, 96, 512, 512, norm_topk_prob=True, **_TINY),
        "30b-a3b": _published(2048, 48, 32, 6144, 768),
        "235b-a22b": _published(4096, 94, 64, 12288, 1536),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="model.",
    ignored={
        **ROUTER_IGNORED,
        "intermediate_size": "the width of layers without experts, of which there are none",
        "max_window_layers": "of use only with use_sliding_window",
        "sliding_window": "of use only with use_sliding_window",
    },
    gguf=Gguf(
        "qwen3moe",
        keys={
            **{name: key for name, key in DECODER.items() if name != "intermediate_size"},
            "moe_intermediate_size": "expert_feed_forward_length",
            "num_experts": "expert_count",
            "num_experts_per_tok": "expert_used_count",
        },
        tensors=gguf_tensors(EXPERTS),
        fixed={"norm_topk_prob": True},
        ignored={"feed_forward_length": "the width of layers without experts, of which there are none"},
    ),
)
