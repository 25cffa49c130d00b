"""gpt-oss: a mixture of experts with biases and a clamped activation, a learned sink a head, and a window in every
other layer (OpenAI 2025, https://arxiv.org/abs/2508.10925, section 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from anyformer.families import decoder
from anyformer.families.config import Config
from anyformer.families.decoder import (
    ROUTER_IGNORED,
    pre_norm,
    read_attention,
    read_biases,
    read_decoder,
    size,
    write_biases,
    write_decoder,
)
from anyformer.families.family import Family, Gguf, GgufSource, architectures, branch, decoder_of
from anyformer.families.gguf_names import DECODER, EXPERTS, WINDOW, layer_types
from anyformer.families.gguf_names import tensors as gguf_tensors
from anyformer.families.layer_types import GLOBAL, LOCAL, attentions, pattern, read_kinds, write_kinds
from anyformer.families.names import Table, Tensor, Transpose
from anyformer.spec import RoutedExperts, Transformer, register_mixer
from anyformer.spec.base import PositiveFloat

if TYPE_CHECKING:
    from torch import Tensor as Values

#: What the reference takes for granted where a file says nothing of rotary scaling.
_YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}


@register_mixer
class ClampedExperts(RoutedExperts, frozen=True):
    """Experts with biases, the router too; of gate g and up u, both clamped to `limit` (g from above only), one makes
    g · σ(`gain` · g) · (u + 1)."""

    kind: Literal["clamped_experts"] = "clamped_experts"
    activation: Literal["silu"] = "silu"
    gated: Literal[True] = True
    normalize: Literal[True] = True
    shared_hidden: None = None
    shared_gate: Literal[False] = False
    limit: PositiveFloat = 7.0
    gain: PositiveFloat = 1.702

    def shapes(self, dim: int, source_dim: int | None = None) -> dict[str, tuple[int, ...]]:
        inward = (self.experts, self.hidden)
        biases = {"router.bias": (self.experts,), "gate_bias": inward, "up_bias": inward}
        return {**super().shapes(dim), **biases, "down_bias": (self.experts, dim)}

    def module(self) -> Any:
        from anyformer.parts.experts import Experts

        class Module(Experts):
            def __init__(self, experts: ClampedExperts, dim: int) -> None:
                super().__init__(experts, dim)
                self.limit, self.gain = experts.limit, experts.gain

            def activate(self, up: Values, gate: Values | None) -> Values:
                assert gate is not None
                gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
                return gate * (self.gain * gate).sigmoid() * (up + 1)

            def native_activation(self) -> tuple[str, float, float]:
                return "clamped", self.limit, self.gain

        return Module


def read(config: Config) -> Transformer:
    config.assume(max_position_embeddings=131072, num_key_value_heads=8, head_dim=64, rms_norm_eps=1e-5)
    config.assume(attention_bias=True, sliding_window=128, num_experts_per_tok=4)
    if not config.has("num_experts"):
        config.assume(num_local_experts=128)
    if not config.has("rope_scaling") and not config.has("rope_parameters"):
        config.attributes["rope_scaling"] = _YARN
    packed = config.section("quantization_config")  # the file's affair: its tensors are unpacked as they are read
    packed.expect("quant_method", "mxfp4")
    packed.taken.add("modules_to_not_convert")
    attention = read_attention(config, base=150000.0, sinks=True, **read_biases(config))
    experts = ClampedExperts(
        experts=config.size("num_local_experts", "num_experts"),
        top_k=config.size("num_experts_per_tok", "experts_per_token"),
        hidden=config.size("intermediate_size"),
        limit=config.number("swiglu_limit", default=7.0),
        gain=config.number("swiglu_alpha", default=1.702),
        balance=config.number("router_aux_loss_coef", default=0.001),
    )
    kinds = read_kinds(config, config.size("num_hidden_layers"), (LOCAL, GLOBAL))
    windows = {LOCAL: (config.size("sliding_window"), None)} if LOCAL in kinds else {}
    mixers = {kind: attention.replace(window=windows.get(kind)) for kind in kinds}
    return read_decoder(config, *pattern(kinds, {kind: pre_norm(config, mixers[kind], experts) for kind in mixers}))


def write(spec: Transformer) -> dict[str, Any]:
    stack = decoder_of(spec)
    experts, _ = branch(stack, "experts", ClampedExperts)
    attributes = {
        **write_decoder(spec),
        **write_biases(spec),
        "num_local_experts": experts.experts,
        "num_experts_per_tok": experts.top_k,
        "intermediate_size": experts.hidden,
        "swiglu_limit": experts.limit,
        "swiglu_alpha": experts.gain,
        "router_aux_loss_coef": experts.balance,
        "layer_types": write_kinds(stack),
    }
    # Silence would mean YaRN.
    attributes["rope_scaling"] = attributes["rope_scaling"] or {"rope_type": "default"}
    local = attentions(stack).get(LOCAL)
    if local is not None and local.window is not None:
        attributes["sliding_window"] = local.window[0]
    return attributes


def tensors(spec: Transformer) -> Table:
    layer, ours = "model.layers.*.mlp", "decoder.layers.*.experts"
    weights, biases = (f"{ours}.gate", f"{ours}.up"), (f"{ours}.gate_bias", f"{ours}.up_bias")
    rows = branch(decoder_of(spec), "experts", ClampedExperts)[0].hidden  # one of the gate, one of up, and so on
    return (
        Tensor("model.layers.*.self_attn.sinks", "decoder.layers.*.attention.sinks"),
        Tensor("model.layers.*.post_attention_layernorm.weight", f"{ours}_norm.weight"),
        Tensor(f"{layer}.router.*", f"{ours}.router.*"),
        Tensor(f"{layer}.experts.gate_up_proj", weights, (Transpose(),), groups=rows, axis=1),
        Tensor(f"{layer}.experts.gate_up_proj_bias", biases, groups=rows, axis=1),
        Tensor(f"{layer}.experts.down_proj", f"{ours}.down", (Transpose(),)),
        Tensor(f"{layer}.experts.down_proj_bias", f"{ours}.down_bias"),
        *decoder.tensors(spec),
    )


def _gguf_read(source: GgufSource) -> dict[str, Any]:
    """The kinds of layers; llama.cpp loads none of these models without a window."""
    source.metadata.size("attention.sliding_window")
    return layer_types(2)(source)


_GGUF_NAMES = {
    "blk.*.attn_sinks.weight": "layers.*.attention.sinks",
    "blk.*.post_attention_norm.weight": "layers.*.experts_norm.weight",
    "blk.*.ffn_gate_inp.bias": "layers.*.experts.router.bias",
    **{f"blk.*.ffn_{name}_exps.bias": f"layers.*.experts.{name}_bias" for name in ("gate", "up", "down")},
}


def _published(layers: int, experts: int) -> dict[str, Any]:
    shape = size(2880, layers, 64, 8, 2880, 201088, 131072, head_dim=64, rms_norm_eps=1e-5, rope_theta=150000.0)
    return {**shape, "rope_scaling": _YARN, "num_local_experts": experts, "router_aux_loss_coef": 0.9}


_TINY = {
    "head_dim": 32,
    "sliding_window": 64,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "rope_scaling": {**_YARN, "factor": 4.0, "original_max_position_embeddings": 128},
}

family = Family(
    name="gpt_oss",
    title="gpt-oss",
    paper="https://arxiv.org/abs/2508.10925",
    model_types=("gpt_oss",),
    architectures=architectures("GptOss"),
    presets={
        "tiny": size(64, 2, 4, 2, 48, 512, 512, **_TINY),
        "20b": _published(24, 32),
        "120b": _published(36, 128),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="model.",
    ignored={
        **ROUTER_IGNORED,
        "hidden_act": "experts have an activation of their own",
        "initial_context_length": "the context before scaling, which rope_scaling says",
        "sliding_window": "of use only to layers with a window",
    },
    gguf=Gguf(
        "gpt-oss",
        keys={
            **DECODER,
            **WINDOW,
            "intermediate_size": "expert_feed_forward_length",
            "num_local_experts": "expert_count",
            "num_experts_per_tok": "expert_used_count",
        },
        tensors=gguf_tensors(_GGUF_NAMES, EXPERTS),
        # Silence means no rotary scaling there, and YaRN in a config.json.
        fixed={"attention_bias": True, "tie_word_embeddings": False, "rope_scaling": {"rope_type": "default"}},
        read=_gguf_read,
        yarn={"truncate": False},
    ),
)
