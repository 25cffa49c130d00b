"""What the decoders that came after LLaMA have in common: rotary positions, root-mean-square norms, a gated
feed-forward; each family says itself what it does otherwise."""

from __future__ import annotations

from typing import Any

from anyformer.families.config import Config, activation_name
from anyformer.families.family import branch, decoder_of, given
from anyformer.families.names import Table, Tensor
from anyformer.families.rotary import rotary, rotary_attributes
from anyformer.spec import (
    Attention,
    Block,
    Branch,
    EmbeddingHead,
    Embeddings,
    FeedForward,
    Initialization,
    LanguageModelHead,
    Mixer,
    MixtureOfExperts,
    Norm,
    Rotary,
    SequenceClassificationHead,
    Stack,
    TokenClassificationHead,
    Transformer,
)


def read_attention(
    config: Config, *, base: float = 10000.0, share: float | None = None, original: int | None = None, **more: Any
) -> Attention:
    """Causal grouped-query attention with rotary positions; `base`, `share` and `original` are theirs, `more` what the
    family sets besides."""
    heads = config.size("num_attention_heads")
    head_dim = config.size("head_dim", default=config.size("hidden_size") // heads)
    return Attention(
        heads=heads,
        kv_heads=config.size("num_key_value_heads", default=heads),
        head_dim=head_dim,
        visibility="causal",
        position=rotary(
            config,
            head_dim=head_dim,
            context=config.size("max_position_embeddings"),
            base=base,
            share=share,
            original=original,
        ),
        dropout=config.number("attention_dropout", default=0.0),
        **more,
    )


def read_biases(config: Config) -> dict[str, bool]:
    """`attention_bias`, in families where it stands for all four projections."""
    bias = config.flag("attention_bias", default=False)
    return {"bias": bias, "output_bias": bias}


def read_feed_forward(config: Config) -> FeedForward:
    return FeedForward(
        hidden=config.size("intermediate_size"), activation=config.activation("hidden_act", default="silu"), gated=True
    )


def read_experts(config: Config, *, hidden: int, normalize: bool) -> MixtureOfExperts:
    return MixtureOfExperts(
        experts=config.size("num_local_experts", "num_experts"),
        top_k=config.size("num_experts_per_tok"),
        hidden=hidden,
        activation=config.activation("hidden_act", default="silu"),
        normalize=normalize,
        balance=config.number("router_aux_loss_coef", default=0.001),
    )


def read_window(config: Config) -> int | None:
    """`sliding_window` as Qwen has it, where `use_sliding_window` says whether it counts."""
    if not config.flag("use_sliding_window", default=False):
        return None
    config.assume(sliding_window=4096)
    return config.size("sliding_window", default=None)


def read_norm(config: Config) -> Norm:
    return Norm(kind="rms", eps=config.number("rms_norm_eps", default=1e-6))


def pre_norm(config: Config, *mixers: Mixer) -> Block:
    """A block that normalises what each mixer reads."""
    return Block(branches=tuple(Branch(mixer=mixer, norm=read_norm(config)) for mixer in mixers))


def read_decoder(config: Config, *pattern: Block) -> Transformer:
    """The whole model around a stack's pattern, with any of the heads that transformers puts on its decoders."""
    stack = Stack(
        dim=config.size("hidden_size"),
        depth=config.size("num_hidden_layers"),
        pattern=pattern,
        embeddings=Embeddings(vocabulary=config.size("vocab_size")),
        norm=read_norm(config),
    )
    head = config.head(
        LanguageModelHead(tied=config.flag("tie_word_embeddings", default=False)),
        SequenceClassificationHead(labels=config.labels(), pooling="last", activation=None, bias=False),
        TokenClassificationHead(labels=config.labels(), dropout=config.number("classifier_dropout", default=0.1)),
        EmbeddingHead(),
    )
    start = Initialization(std=config.number("initializer_range", default=0.02))
    return Transformer(decoder=stack, head=head, context=config.size("max_position_embeddings"), initialization=start)


def write_decoder(spec: Transformer) -> dict[str, Any]:
    """What `read_decoder` and `read_attention` read."""
    attention, norm = branch(decoder_of(spec), "attention", Attention)
    return {
        **write_stack(spec, norm),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        **rotary_attributes(given(attention.position, Rotary, "rotary positions")),
        "attention_dropout": attention.dropout,
    }


def write_stack(spec: Transformer, norm: Norm) -> dict[str, Any]:
    """What `read_decoder` reads."""
    stack = decoder_of(spec)
    attributes = {
        "vocab_size": stack.embeddings.vocabulary,
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.depth,
        "rms_norm_eps": norm.eps,
        "max_position_embeddings": spec.context or 2048,
        "initializer_range": spec.initialization.std or 0.02,
    }
    if isinstance(spec.head, TokenClassificationHead):
        attributes["classifier_dropout"] = spec.head.dropout
    return attributes


def write_biases(spec: Transformer) -> dict[str, Any]:
    """What `read_biases` reads."""
    return {"attention_bias": branch(decoder_of(spec), "attention", Attention)[0].bias}


def write_feed_forward(feed_forward: FeedForward) -> dict[str, Any]:
    """What `read_feed_forward` reads."""
    return {"intermediate_size": feed_forward.hidden, "hidden_act": activation_name(feed_forward.activation)}


def write_experts(experts: MixtureOfExperts) -> dict[str, Any]:
    """What `read_experts` reads."""
    return {
        "num_local_experts": experts.experts,
        "num_experts_per_tok": experts.top_k,
        "hidden_act": activation_name(experts.activation),
        "router_aux_loss_coef": experts.balance,
    }


def write_window(spec: Transformer) -> int | None:
    """The number of keys that a query of the first layer sees, itself included; None for all of them."""
    window = branch(decoder_of(spec), "attention", Attention)[0].window
    return window and window[0]


def tensors(spec: Transformer) -> Table:
    """LLaMA's names. A family puts lines of its own before these: the first that fits a parameter counts."""
    return (
        Tensor("model.embed_tokens.weight", "decoder.embeddings.tokens.weight"),
        Tensor("model.layers.*.input_layernorm.weight", "decoder.layers.*.attention_norm.weight"),
        Tensor("model.layers.*.self_attn.q_proj.*", "decoder.layers.*.attention.query.*"),
        Tensor("model.layers.*.self_attn.k_proj.*", "decoder.layers.*.attention.key.*"),
        Tensor("model.layers.*.self_attn.v_proj.*", "decoder.layers.*.attention.value.*"),
        Tensor("model.layers.*.self_attn.o_proj.*", "decoder.layers.*.attention.output.*"),
        Tensor("model.layers.*.self_attn.q_norm.weight", "decoder.layers.*.attention.query_norm.weight"),
        Tensor("model.layers.*.self_attn.k_norm.weight", "decoder.layers.*.attention.key_norm.weight"),
        Tensor("model.layers.*.post_attention_layernorm.weight", "decoder.layers.*.feed_forward_norm.weight"),
        Tensor("model.layers.*.mlp.gate_proj.*", "decoder.layers.*.feed_forward.gate.*"),
        Tensor("model.layers.*.mlp.up_proj.*", "decoder.layers.*.feed_forward.up.*"),
        Tensor("model.layers.*.mlp.down_proj.*", "decoder.layers.*.feed_forward.down.*"),
        Tensor("model.norm.weight", "decoder.norm.weight"),
        Tensor("lm_head.weight" if spec.head.kind == "language_model" else "score.weight", "head.output.weight"),
        Tensor("score.bias", "head.output.bias"),
    )


def expert_tensors(module: str, gate: str, up: str, down: str) -> Table:
    """Lines for the experts of each layer, whose matrices stand one by one in the file."""
    layer, ours = f"model.layers.*.{module}", "decoder.layers.*.experts"
    names = {gate: "gate", up: "up", down: "down"}
    return (
        Tensor("model.layers.*.post_attention_layernorm.weight", f"{ours}_norm.weight"),
        Tensor(f"{layer}.gate.weight", f"{ours}.router.weight"),
        *(Tensor(f"{layer}.experts.#.{saved}.weight", f"{ours}.{name}") for saved, name in names.items()),
    )


#: Attributes that say nothing about what a mixture of experts computes.
ROUTER_IGNORED = {"output_router_logits": "what a call returns; the balancing loss goes by router_aux_loss_coef"}


def size(
    dim: int, layers: int, heads: int, kv_heads: int, hidden: int, vocabulary: int, context: int, **more: Any
) -> dict[str, Any]:
    """A preset's attributes."""
    return {
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": hidden,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        **more,
    }
