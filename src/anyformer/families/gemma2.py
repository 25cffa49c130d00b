"""Gemma 2 (Gemma Team 2024, https://arxiv.org/abs/2408.00118): norms on both sides of each branch, soft caps on scores
and logits, windows on every other layer. Gemma 3 is built the same way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from anyformer.families.config import Config, activation_name
from anyformer.families.family import Family, Gguf, GgufSource, architectures, branch, decoder_of, given
from anyformer.families.gguf_names import DECODER, WINDOW, layer_types
from anyformer.families.gguf_names import tensors as gguf_tensors
from anyformer.families.layer_types import GLOBAL, LOCAL, attentions, pattern, read_kinds, write_kinds
from anyformer.families.llama import tensors as llama_tensors
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
    Norm,
    Rotary,
    SequenceClassificationHead,
    Stack,
    TokenClassificationHead,
    Transformer,
)

_CYCLE = (LOCAL, GLOBAL)


def read(config: Config) -> Transformer:
    context = config.size("max_position_embeddings", default=8192)
    attention = read_attention(config)
    whole = attention.replace(
        position=rotary(config, head_dim=attention.head_dim, context=context),
        soft_cap=_cap(config, "attn_logit_softcapping", 50.0),
    )
    window = (config.size("sliding_window", default=4096), None)
    kinds = read_kinds(config, config.size("num_hidden_layers"), _CYCLE)
    mixers = {LOCAL: whole.replace(window=window), GLOBAL: whole}
    return read_model(config, kinds, mixers, context, _cap(config, "final_logit_softcapping", 30.0))


def read_attention(config: Config) -> Attention:
    """What the attention of all layers has in common."""
    heads, bias = config.size("num_attention_heads"), config.flag("attention_bias", default=False)
    return Attention(
        heads=heads,
        kv_heads=config.size("num_key_value_heads", default=heads),
        head_dim=config.size("head_dim", default=256),
        visibility="causal",
        scale=config.size("query_pre_attn_scalar", default=256) ** -0.5,
        bias=bias,
        output_bias=bias,
        dropout=config.number("attention_dropout", default=0.0),
    )


def read_norm(config: Config) -> Norm:
    """The norm of all places."""
    return Norm(kind="rms", eps=config.number("rms_norm_eps", default=1e-6), unit_offset=True)


def read_model(
    config: Config, kinds: tuple[str, ...], mixers: Mapping[str, Attention], context: int, soft_cap: float | None
) -> Transformer:
    """The model around the attention of each kind of layer."""
    dim, norm = config.size("hidden_size"), read_norm(config)
    feed_forward = FeedForward(
        hidden=config.size("intermediate_size"),
        activation=config.activation("hidden_activation", "hidden_act", default="gelu_pytorch_tanh"),
        gated=True,
    )
    blocks = {
        kind: Block(branches=tuple(Branch(mixer=each, norm=norm, placement="both") for each in (mixer, feed_forward)))
        for kind, mixer in mixers.items()
    }
    stack = Stack(
        dim=dim,
        depth=config.size("num_hidden_layers"),
        pattern=pattern(kinds, blocks),
        embeddings=Embeddings(vocabulary=config.size("vocab_size"), scale=dim**0.5),
        norm=norm,
    )
    head = config.head(
        LanguageModelHead(tied=config.flag("tie_word_embeddings", default=True), soft_cap=soft_cap),
        SequenceClassificationHead(labels=config.labels(), pooling="last", activation=None, bias=False),
        TokenClassificationHead(labels=config.labels(), dropout=config.number("classifier_dropout", default=0.1)),
        EmbeddingHead(),
    )
    start = Initialization(std=config.number("initializer_range", default=0.02))
    return Transformer(decoder=stack, head=head, context=context, initialization=start)


def _cap(config: Config, name: str, usual: float) -> float | None:
    """A soft cap, which is `usual` where it is not mentioned, and none where it is null."""
    return config.number(name, default=None if name in config.attributes else usual)


def write(spec: Transformer) -> dict[str, Any]:
    attention, _ = branch(decoder_of(spec), "attention", Attention)
    return {
        **write_model(spec),
        **rotary_attributes(given(attention.position, Rotary, "rotary positions")),
        "attn_logit_softcapping": attention.soft_cap,
    }


def write_model(spec: Transformer) -> dict[str, Any]:
    """What `read_attention` and `read_model` read."""
    stack = decoder_of(spec)
    attention, norm = branch(stack, "attention", Attention)
    feed_forward, _ = branch(stack, "feed_forward", FeedForward)
    local = attentions(stack).get(LOCAL)
    attributes = {
        "vocab_size": stack.embeddings.vocabulary,
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.depth,
        "layer_types": write_kinds(stack),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "query_pre_attn_scalar": round(attention.scale**-2) if attention.scale is not None else attention.head_dim,
        "intermediate_size": feed_forward.hidden,
        "hidden_activation": activation_name(feed_forward.activation),
        "rms_norm_eps": norm.eps,
        "max_position_embeddings": spec.context or 8192,
        "attention_bias": attention.bias,
        "attention_dropout": attention.dropout,
        "initializer_range": spec.initialization.std or 0.02,
    }
    if local is not None and local.window is not None:
        attributes["sliding_window"] = local.window[0]
    if isinstance(spec.head, LanguageModelHead):
        attributes["final_logit_softcapping"] = spec.head.soft_cap
    if isinstance(spec.head, TokenClassificationHead):
        attributes["classifier_dropout"] = spec.head.dropout
    return attributes


def tensors(spec: Transformer) -> Table:
    layer, ours = "model.layers.*", "decoder.layers.*"
    return (
        Tensor(f"{layer}.post_attention_layernorm.weight", f"{ours}.attention_output_norm.weight"),
        Tensor(f"{layer}.pre_feedforward_layernorm.weight", f"{ours}.feed_forward_norm.weight"),
        Tensor(f"{layer}.post_feedforward_layernorm.weight", f"{ours}.feed_forward_output_norm.weight"),
        *llama_tensors(spec),
    )


def size(
    dim: int, layers: int, heads: int, kv_heads: int, head_dim: int, hidden: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    """A preset's attributes."""
    return {
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": hidden,
        "vocab_size": vocabulary,
        **more,
    }


#: What GGUF files of Gemma 2 and 3 say, and how their second norms are called.
GGUF_KEYS = {**DECODER, **WINDOW, "final_logit_softcapping": "final_logit_softcapping"}
GGUF_NAMES = {
    "blk.*.post_attention_norm.weight": "layers.*.attention_output_norm.weight",
    "blk.*.post_ffw_norm.weight": "layers.*.feed_forward_output_norm.weight",
}


def gguf_read(every: int, largest: int) -> Callable[[GgufSource], dict[str, Any]]:
    """Reads the kinds of layers, and the scale of scores, by which the size of `largest` layers differs from others."""
    kinds = layer_types(every)

    def read(source: GgufSource) -> dict[str, Any]:
        config = source.metadata
        whole = config.size("embedding_length") // config.size("attention.head_count")
        scalar = whole if config.size("block_count") == largest else config.size("attention.key_length")
        return {**kinds(source), "query_pre_attn_scalar": scalar}

    return read


#: Attributes of both generations that nothing here computes.
DEFAULTS = {"use_bidirectional_attention": False}
IGNORED = {
    "cache_implementation": "which cache generation uses",
    "sliding_window_size": "an older name, beside sliding_window, which is what counts",
}

family = Family(
    name="gemma2",
    title="Gemma 2",
    paper="https://arxiv.org/abs/2408.00118",
    model_types=("gemma2",),
    architectures=architectures("Gemma2"),
    presets={
        "tiny": size(
            128, 2, 4, 2, 32, 352, 512, query_pre_attn_scalar=32, sliding_window=64, max_position_embeddings=512
        ),
        "2b": size(2304, 26, 8, 4, 256, 9216, 256000),
        "9b": size(3584, 42, 16, 8, 256, 14336, 256000),
        "27b": size(4608, 46, 32, 16, 128, 36864, 256000, query_pre_attn_scalar=144),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="model.",
    defaults=DEFAULTS,
    ignored=IGNORED,
    generation={"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0},
    gguf=Gguf(
        "gemma2",
        keys={**GGUF_KEYS, "attn_logit_softcapping": "attn_logit_softcapping"},
        tensors=gguf_tensors(GGUF_NAMES),
        fixed={"tie_word_embeddings": True},
        read=gguf_read(every=2, largest=46),
        scalings=("linear",),
        assumed={"attention.sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
)
