"""DeepSeek-V3 and all of its shape, R1 and Moonlight among them: DeepSeek-AI 2024, https://arxiv.org/abs/2412.19437.

Its attention keeps one short row a token for all heads (section 2.1.1; `latent_attention.py`); its experts stand in
groups, and a correction of the choice balances them instead of a loss (section 2.1.2).
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from pydantic import model_validator

from anyformer.families import decoder
from anyformer.families.config import Config, activation_name
from anyformer.families.decoder import (
    ROUTER_IGNORED,
    expert_tensors,
    pre_norm,
    read_decoder,
    read_feed_forward,
    size,
    write_stack,
)
from anyformer.families.family import Family, Gguf, GgufSource, architectures, branch, decoder_of, given
from anyformer.families.gguf_facts import SOFTMAX
from anyformer.families.gguf_names import DECODER, EXPERTS
from anyformer.families.gguf_names import tensors as gguf_tensors
from anyformer.families.latent_attention import LatentAttention
from anyformer.families.names import Heads, Table, Tensor, Transpose, Unused
from anyformer.families.rotary import rotary, rotary_attributes
from anyformer.spec import FeedForward, RoutedExperts, Transformer, register_mixer
from anyformer.spec.base import PositiveFloat, PositiveInt


@register_mixer
class GroupedExperts(RoutedExperts, frozen=True):
    """A token's experts are the best of its best groups (DeepSeek-V3, section 2.1.2, eq. 12 to 16).

    Shares are sigmoids. A group is as good as its two best experts; `top_groups` of `groups` may be chosen from. A
    learned correction of each expert's share counts in the choice and not in the weight; a rule of training sets it
    (no gradient does). Weights are multiplied by `factor`.
    """

    kind: Literal["grouped_experts"] = "grouped_experts"
    groups: PositiveInt
    top_groups: PositiveInt
    factor: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _groups_fit(self) -> GroupedExperts:
        if self.experts % self.groups or self.experts < 2 * self.groups:
            raise ValueError(f"groups={self.groups} must divide experts={self.experts} into groups of two at least")
        if self.top_groups > self.groups or self.top_k > self.top_groups * self.experts // self.groups:
            raise ValueError(f"top_groups={self.top_groups} of groups={self.groups} do not hold top_k={self.top_k}")
        return self

    def shapes(self, dim: int, source_dim: int | None = None) -> dict[str, tuple[int, ...]]:
        return super().shapes(dim, source_dim) | {"correction": (self.experts,)}

    def module(self) -> Any:
        return _grouped_experts()


@cache
def _grouped_experts() -> type:
    from collections.abc import Callable
    from typing import Self

    import torch
    import torch.nn.functional as F

    from anyformer.parts.experts import Experts
    from anyformer.parts.kernels import native

    class Module(Experts):
        correction: torch.nn.Parameter

        def __init__(self, experts: GroupedExperts, dim: int) -> None:
            super().__init__(experts, dim)
            self.groups, self.top_groups, self.factor = experts.groups, experts.top_groups, experts.factor
            self.correction.requires_grad_(False)

        def route(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            weight = self.router.weight
            if native.few(x_ND) and weight.dtype == x_ND.dtype and self.correction.dtype == torch.float32:
                # Logits stay in float32, whatever they are made of.
                logits_NE = native.heads(x_ND[:, None], weight[None], dtype=torch.float32)[:, 0]
                how = self.correction, self.groups, self.top_groups, self.factor
                return native.choose(logits_NE, self.top_k, self.normalize, True, *how)
            wide = torch.promote_types(x_ND.dtype, torch.float32)
            shares_NE = F.linear(x_ND.to(wide), weight.to(wide)).sigmoid()
            grouped = (shares_NE + self.correction).unflatten(-1, (self.groups, -1))
            best = grouped.topk(2, -1).values.sum(-1).topk(self.top_groups, -1).indices
            closed = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
            open_NE = grouped.masked_fill(closed[..., None], -torch.inf).flatten(-2)
            chosen_NK = open_NE.topk(self.top_k, -1).indices
            weight_NK = shares_NE.gather(-1, chosen_NK)
            if self.normalize:
                weight_NK = weight_NK / (weight_NK.sum(-1, keepdim=True) + 1e-20)
            return shares_NE, weight_NK * self.factor, chosen_NK

        def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
            # Published in float32 among bfloat16, which would move the choice.
            exact = self.correction.data
            module: Any = super()._apply(fn, recurse)
            if self.correction.dtype != exact.dtype:
                self.correction.data = exact.to(self.correction.device)
            return module

    return Module


def read(config: Config) -> Transformer:
    config.assume(max_position_embeddings=4096, q_lora_rank=1536, first_k_dense_replace=3, n_shared_experts=1)
    packed = config.section("quantization_config")  # the file's affair: its tensors are unpacked as they are read
    for name, known in (("quant_method", "fp8"), ("fmt", "e4m3"), ("weight_block_size", [128, 128])):
        packed.expect(name, known)
    packed.taken |= {"activation_scheme", "modules_to_not_convert", "scale_fmt"}
    attention = read_attention(config)
    depth, dense = config.size("num_hidden_layers"), config.integer("first_k_dense_replace")
    if dense >= depth:
        config.refuse(f"first_k_dense_replace={dense} leaves no layer of num_hidden_layers={depth} with experts")
    sparse = pre_norm(config, attention, read_experts(config))
    if not dense:
        return read_decoder(config, sparse)
    plain = pre_norm(config, attention, read_feed_forward(config))
    return read_decoder(config, plain.replace(repeat=dense), sparse.replace(repeat=depth - dense))


def read_attention(config: Config) -> LatentAttention:
    heads = config.size("num_attention_heads", "num_key_value_heads")
    key_dim = config.size("qk_nope_head_dim", default=128)
    turned = config.size("qk_rope_head_dim", "head_dim", default=64)
    if config.size("qk_head_dim", default=key_dim + turned) != key_dim + turned:
        config.refuse("qk_head_dim is not qk_nope_head_dim + qk_rope_head_dim; remove it")
    position = rotary(config, head_dim=turned, context=config.size("max_position_embeddings"))
    forms = [config.section(name) for name in ("rope_scaling", "rope_parameters")]
    mscales = {form.number("mscale_all_dim", default=0.0) for form in forms if form.attributes}
    if len(mscales) > 1:
        config.refuse("rope_scaling and rope_parameters contradict each other; remove one of them")
    return LatentAttention(
        heads=heads,
        latent=config.size("kv_lora_rank", default=512),
        query_latent=config.size("q_lora_rank", default=None),
        key_dim=key_dim,
        rotary_dim=turned,
        value_dim=config.size("v_head_dim", default=128),
        position=position.replace(interleaved=config.flag("rope_interleave", default=True)),
        mscale=max(mscales, default=0.0),
        bias=config.flag("attention_bias", default=False),
        dropout=config.number("attention_dropout", default=0.0),
    )


def read_experts(config: Config) -> GroupedExperts:
    hidden = config.size("moe_intermediate_size", default=2048)
    return GroupedExperts(
        experts=config.size("n_routed_experts", "num_local_experts", default=256),
        top_k=config.size("num_experts_per_tok", default=8),
        hidden=hidden,
        activation=config.activation("hidden_act", default="silu"),
        normalize=config.flag("norm_topk_prob", default=True),
        shared_hidden=hidden * config.size("n_shared_experts"),
        groups=config.size("n_group", default=8),
        top_groups=config.size("topk_group", default=4),
        factor=config.number("routed_scaling_factor", default=2.5),
    )


def write(spec: Transformer) -> dict[str, Any]:
    stack = decoder_of(spec)
    attention, norm = branch(stack, "attention", LatentAttention)
    layers = [[branch.mixer for branch in block.branches] for block in stack.layers()]
    found = {type(mixer): mixer for layer in layers for mixer in layer}
    experts = given(found.get(GroupedExperts), GroupedExperts, "layers with grouped experts")
    dense = found.get(FeedForward)
    return {
        **write_stack(spec, norm),
        **write_attention(attention),
        "first_k_dense_replace": sum(experts not in layer for layer in layers),
        "intermediate_size": dense.hidden if isinstance(dense, FeedForward) else experts.hidden * experts.top_k,
        "hidden_act": activation_name(experts.activation),
        "moe_intermediate_size": experts.hidden,
        "n_routed_experts": experts.experts,
        "n_shared_experts": (experts.shared_hidden or 0) // experts.hidden,
        "num_experts_per_tok": experts.top_k,
        "norm_topk_prob": experts.normalize,
        "n_group": experts.groups,
        "topk_group": experts.top_groups,
        "routed_scaling_factor": experts.factor,
    }


def write_attention(attention: LatentAttention) -> dict[str, Any]:
    """What `read_attention` reads."""
    positions = rotary_attributes(attention.position)
    if attention.mscale:
        positions["rope_scaling"]["mscale_all_dim"] = attention.mscale
        if positions["rope_scaling"].get("attention_factor") == 1:
            # As published: what two equal factors come to, and what older readers know.
            del positions["rope_scaling"]["attention_factor"]
            positions["rope_scaling"]["mscale"] = attention.mscale
    return {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.heads,
        "kv_lora_rank": attention.latent,
        "q_lora_rank": attention.query_latent,
        "qk_nope_head_dim": attention.key_dim,
        "qk_rope_head_dim": attention.rotary_dim,
        "v_head_dim": attention.value_dim,
        **positions,
        "rope_interleave": attention.position.interleaved,
        "attention_bias": attention.bias,
        "attention_dropout": attention.dropout,
    }


def tensors(spec: Transformer) -> Table:
    attention, _ = branch(decoder_of(spec), "attention", LatentAttention)
    layer, ours = "model.layers.*.self_attn", "decoder.layers.*.attention"
    saved, shared = "model.layers.*.mlp.shared_experts", "decoder.layers.*.experts.shared"
    return (
        Tensor(f"{layer}.q_a_proj.*", f"{ours}.query_latent.*"),
        Tensor(f"{layer}.q_a_layernorm.weight", f"{ours}.query_norm.weight"),
        Tensor(f"{layer}.{'q_proj' if attention.query_latent is None else 'q_b_proj'}.weight", f"{ours}.query.weight"),
        Tensor(f"{layer}.kv_a_proj_with_mqa.*", (f"{ours}.latent.*", f"{ours}.rotary_key.*")),
        Tensor(f"{layer}.kv_a_layernorm.weight", f"{ours}.latent_norm.weight"),
        Tensor(f"{layer}.kv_b_proj.weight", (f"{ours}.key.weight", f"{ours}.value.weight"), groups=attention.heads),
        *expert_tensors("mlp", "gate_proj", "up_proj", "down_proj"),
        Tensor("model.layers.*.mlp.gate.e_score_correction_bias", "decoder.layers.*.experts.correction"),
        *(Tensor(f"{saved}.{name}_proj.weight", f"{shared}.{name}.weight") for name in ("gate", "up", "down")),
        *decoder.tensors(spec),
        Unused(f"model.layers.{spec.output.depth}.**", "predicts the token after the next, to train and to speculate"),
    )


def _gguf_read(source: GgufSource) -> dict[str, Any]:
    config = source.metadata
    head, turned = config.size("attention.key_length_mla"), config.size("rope.dimension_count")
    if head <= turned:
        config.refuse(f"{config.path}attention.key_length_mla must be more than the {turned} channels that turn")
    yarn = config.text("rope.scaling.type", default="none") == "yarn"
    if yarn and not config.number("rope.scaling.yarn_log_multiplier", default=0.0):
        # The authors scale scores by it, llama.cpp by another number where a file is silent.
        config.refuse(f"{config.path}rope.scaling.yarn_log_multiplier is missing, which YaRN needs there")
    dense = config.integer("leading_dense_block_count", default=0)
    return {"first_k_dense_replace": dense, "qk_nope_head_dim": head - turned, "qk_rope_head_dim": turned}


def _gguf_write(spec: Transformer) -> dict[str, Any]:
    """What silence would say otherwise there: that weights are as they are, and that queries have latent rows."""
    said = write(spec)
    return {"expert_weights_norm": said["norm_topk_prob"], "attention.q_lora_rank": said["q_lora_rank"] or 0}


def _gguf_tensors(spec: Transformer) -> Table:
    attention, _ = branch(decoder_of(spec), "attention", LatentAttention)
    layer, ours, heads = "blk.*", "decoder.layers.*", Heads(attention.heads)
    query = "attn_q" if attention.query_latent is None else "attn_q_b"
    rows = (f"{ours}.attention.latent.weight", f"{ours}.attention.rotary_key.weight")
    shared = ("gate", "up", "down")
    return (
        Tensor(f"{layer}.attn_q_a.weight", f"{ours}.attention.query_latent.weight"),
        Tensor(f"{layer}.attn_q_a_norm.weight", f"{ours}.attention.query_norm.weight"),
        Tensor(f"{layer}.{query}.weight", f"{ours}.attention.query.weight"),
        Tensor(f"{layer}.attn_kv_a_mqa.weight", rows),
        Tensor(f"{layer}.attn_kv_a_norm.weight", f"{ours}.attention.latent_norm.weight"),
        Tensor(f"{layer}.attn_k_b.weight", f"{ours}.attention.key.weight", (Transpose(), heads)),
        Tensor(f"{layer}.attn_v_b.weight", f"{ours}.attention.value.weight", (heads,)),
        Tensor(f"{layer}.exp_probs_b.bias", f"{ours}.experts.correction"),
        *(Tensor(f"{layer}.ffn_{name}_shexp.weight", f"{ours}.experts.shared.{name}.weight") for name in shared),
        *gguf_tensors(EXPERTS)(spec),
    )


def _size(dim: int, layers: int, heads: int, hidden: int, vocabulary: int, context: int, **more: Any) -> dict[str, Any]:
    return size(dim, layers, heads, heads, hidden, vocabulary, context, **more)


family = Family(
    name="deepseek_v3",
    title="DeepSeek-V3",
    paper="https://arxiv.org/abs/2412.19437",
    model_types=("deepseek_v3",),
    architectures=architectures("DeepseekV3"),
    presets={
        "tiny": _size(
            *(64, 3, 4, 96, 512, 512),
            first_k_dense_replace=1,
            q_lora_rank=48,
            kv_lora_rank=32,
            qk_nope_head_dim=16,
            qk_rope_head_dim=8,
            v_head_dim=16,
            moe_intermediate_size=32,
            n_routed_experts=8,
            num_experts_per_tok=2,
            n_group=4,
            topk_group=2,
        ),
        "moonlight-16b-a3b": _size(
            *(2048, 27, 16, 11264, 163840, 8192),
            first_k_dense_replace=1,
            q_lora_rank=None,
            moe_intermediate_size=1408,
            n_routed_experts=64,
            n_shared_experts=2,
            num_experts_per_tok=6,
            n_group=1,
            topk_group=1,
            routed_scaling_factor=2.446,
            rope_theta=50000.0,
            rms_norm_eps=1e-5,
        ),
        "671b": _size(
            *(7168, 61, 128, 18432, 129280, 163840),
            rope_scaling={
                "rope_type": "yarn",
                "factor": 40.0,
                "original_max_position_embeddings": 4096,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        ),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="model.",
    defaults={"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1},
    ignored={
        **ROUTER_IGNORED,
        "intermediate_size": "the width of layers without experts, of which there are none",
        "num_nextn_predict_layers": "layers that predict the token after the next are no part of the model itself",
        "num_mtp_layers": "layers that predict the token after the next are no part of the model itself",
        "ep_size": "on how many machines experts were spread while it was trained",
        "aux_loss_alpha": "a loss of the authors' own training, which the published model does not have",
        "seq_aux": "a loss of the authors' own training, which the published model does not have",
    },
    gguf=Gguf(
        "deepseek2",
        keys={
            **{name: key for name, key in DECODER.items() if name not in ("num_key_value_heads", "head_dim")},
            "kv_lora_rank": "attention.kv_lora_rank",
            "q_lora_rank": "attention.q_lora_rank",
            "v_head_dim": "attention.value_length_mla",
            "moe_intermediate_size": "expert_feed_forward_length",
            "n_routed_experts": "expert_count",
            "n_shared_experts": "expert_shared_count",
            "num_experts_per_tok": "expert_used_count",
            "n_group": "expert_group_count",
            "topk_group": "expert_group_used_count",
            "norm_topk_prob": "expert_weights_norm",
            "routed_scaling_factor": "expert_weights_scale",
        },
        tensors=_gguf_tensors,
        read=_gguf_read,
        write=_gguf_write,
        # DeepSeek-V2's files have the same architecture, and are silent where its routing differs.
        assumed={
            "expert_gating_func": SOFTMAX,
            "expert_weights_norm": False,
            **dict.fromkeys(("expert_group_count", "expert_group_used_count"), 1),
        },
        ignored={"feed_forward_length": "the width of layers without experts, of which there may be none"},
    ),
)
