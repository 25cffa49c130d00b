"""ModernBERT (Warner et al. 2024, https://arxiv.org/abs/2412.13663): an encoder with norms before its branches, rotary
positions, gated feed-forwards, and attention that is local in two layers of three."""

from __future__ import annotations

from typing import Any

from anyformer.families.config import Config, activation_name
from anyformer.families.family import Family, Gguf, GgufSource, given
from anyformer.families.gguf_names import GATE_UP, QKV, SHAPE, layer_types
from anyformer.families.gguf_names import tensors as gguf_tensors
from anyformer.families.layer_types import (
    GLOBAL,
    LOCAL,
    attention_of,
    attentions,
    pattern,
    read_kinds,
    read_rotary,
    write_kinds,
    write_rotary,
)
from anyformer.families.names import Table, Tensor
from anyformer.spec import (
    Attention,
    Block,
    Branch,
    EmbeddingHead,
    Embeddings,
    FeedForward,
    Head,
    Initialization,
    MaskedLanguageModelHead,
    Norm,
    Stack,
    Transformer,
)

_BASES = {GLOBAL: "global_rope_theta", LOCAL: "local_rope_theta"}
#: The first of so many layers is global.
_EVERY = "global_attn_every_n_layers"
#: The id of padding where no file says another; the reference refuses one beyond the vocabulary.
_PADDING = 50283
#: More layers than any model has; they are spelled out, for the first is unlike the others.
_DEEPEST = 10_000


def read(config: Config) -> Transformer:
    dim, depth = config.size("hidden_size"), config.size("num_hidden_layers")
    every, context = config.size(_EVERY, default=3), config.size("max_position_embeddings", default=8192)
    if max(depth, every) > _DEEPEST:
        config.refuse(f"num_hidden_layers={depth} or {_EVERY}={every} is more than {_DEEPEST}")
    cycle = read_kinds(config, depth, (GLOBAL,) + (LOCAL,) * (every - 1), _EVERY)
    kinds = [cycle[index % len(cycle)] for index in range(depth)]
    norm = Norm(kind="layer", eps=config.number("norm_eps", default=1e-5), bias=config.flag("norm_bias", default=False))
    blocks = _blocks(config, dim, context, norm)
    # The first layer reads what the embeddings' norm has just normalised.
    attend, feed = blocks[kinds[0]].branches
    first = Block(branches=(attend.replace(norm=None), feed))
    stack = Stack(
        dim=dim,
        depth=depth,
        pattern=(first, *pattern(kinds[1:], blocks)),
        embeddings=Embeddings(
            vocabulary=config.size("vocab_size"), norm=norm, dropout=config.number("embedding_dropout", default=0.0)
        ),
        norm=norm,
    )
    return Transformer(
        encoder=stack,
        head=_head(config, norm),
        context=context,
        initialization=Initialization(std=config.number("initializer_range", default=0.02), depth_scaled=True),
    )


def _blocks(config: Config, dim: int, context: int, norm: Norm) -> dict[str, Block]:
    heads, bias = config.size("num_attention_heads"), config.flag("attention_bias", default=False)
    positions = read_rotary(
        config, _BASES, {GLOBAL: 160000.0, LOCAL: 10000.0}, scaled=_BASES, head_dim=dim // heads, context=context
    )
    # `local_attention` counts both sides and not the token itself, which a window here counts on either side.
    both_sides = config.size("local_attention", default=128)
    if both_sides % 2:
        config.refuse(f"local_attention is {both_sides}; it must be even, as many tokens before as after")
    reach = both_sides // 2 + 1
    dropout = config.number("attention_dropout", default=0.0)
    feed_forward = FeedForward(
        hidden=config.size("intermediate_size"),
        activation=config.activation("hidden_activation", default="gelu"),
        gated=True,
        bias=config.flag("mlp_bias", default=False),
        dropout=config.number("mlp_dropout", default=0.0),
    )
    blocks = {}
    for kind, position in positions.items():
        attention = Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=dim // heads,
            visibility="full",
            window=(reach, reach) if kind == LOCAL else None,
            position=position,
            bias=bias,
            output_bias=bias,
            dropout=dropout,
        )
        attend = Branch(mixer=attention, norm=norm, dropout=dropout)
        blocks[kind] = Block(branches=(attend, Branch(mixer=feed_forward, norm=norm)))
    return blocks


def _head(config: Config, norm: Norm) -> Head:
    masked = MaskedLanguageModelHead(
        tied=config.flag("tie_word_embeddings", default=True),
        bias=config.flag("decoder_bias", default=True),
        dense_bias=config.flag("classifier_bias", default=False),
        activation=config.activation("classifier_activation", default="gelu"),
        norm=norm,
    )
    return config.head(masked, EmbeddingHead())


def write(spec: Transformer) -> dict[str, Any]:
    stack = given(spec.encoder, Stack, "an encoder")
    attention, feed_forward = attention_of(stack.pattern[0]), stack.pattern[0].branches[-1].mixer
    feed_forward = given(feed_forward, FeedForward, "a feed-forward that is the last branch of each layer")
    norm, local = given(stack.norm, Norm, "a final norm"), attentions(stack).get(LOCAL)
    attributes = {
        "vocab_size": stack.embeddings.vocabulary,
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.depth,
        "layer_types": write_kinds(stack),
        "num_attention_heads": attention.heads,
        "intermediate_size": feed_forward.hidden,
        "hidden_activation": activation_name(feed_forward.activation),
        "max_position_embeddings": spec.context or 8192,
        **write_rotary(stack, _BASES),
        "norm_eps": norm.eps,
        "norm_bias": norm.bias,
        "attention_bias": attention.bias,
        "attention_dropout": attention.dropout,
        "embedding_dropout": stack.embeddings.dropout,
        "mlp_bias": feed_forward.bias,
        "mlp_dropout": feed_forward.dropout,
        "initializer_range": spec.initialization.std or 0.02,
    }
    if local is not None and local.window is not None:
        attributes["local_attention"] = 2 * ((local.window[0] or 1) - 1)
    if stack.embeddings.vocabulary <= _PADDING:
        attributes["pad_token_id"] = None
    if isinstance(spec.head, MaskedLanguageModelHead):
        attributes |= {"classifier_bias": spec.head.dense_bias, "decoder_bias": spec.head.bias}
        attributes |= {"classifier_activation": activation_name(spec.head.activation)}
    return attributes


def tensors(spec: Transformer) -> Table:
    layer, ours = "model.layers.*", "encoder.layers.*"
    return (
        Tensor("model.embeddings.tok_embeddings.weight", "encoder.embeddings.tokens.weight"),
        Tensor("model.embeddings.norm.*", "encoder.embeddings.norm.*"),
        Tensor(f"{layer}.attn_norm.*", f"{ours}.attention_norm.*"),
        Tensor(f"{layer}.attn.Wqkv.*", tuple(f"{ours}.attention.{name}.*" for name in ("query", "key", "value"))),
        Tensor(f"{layer}.attn.Wo.*", f"{ours}.attention.output.*"),
        Tensor(f"{layer}.mlp_norm.*", f"{ours}.feed_forward_norm.*"),
        Tensor(f"{layer}.mlp.Wi.*", (f"{ours}.feed_forward.gate.*", f"{ours}.feed_forward.up.*")),
        Tensor(f"{layer}.mlp.Wo.*", f"{ours}.feed_forward.down.*"),
        Tensor("model.final_norm.*", "encoder.norm.*"),
        Tensor("head.dense.*", "head.dense.*"),
        Tensor("head.norm.*", "head.norm.*"),
        Tensor("decoder.*", "head.output.*"),
    )


def _size(dim: int, layers: int, heads: int, hidden: int, **more: Any) -> dict[str, Any]:
    shape = {"hidden_size": dim, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": hidden}
    return {"vocab_size": 50368, **shape, **more}


def _gguf_read(source: GgufSource) -> dict[str, Any]:
    activation = source.metadata.text("hidden_activation", default="gelu")
    return {**layer_types(3, last=False)(source), "hidden_activation": activation}


def _gguf_write(spec: Transformer) -> dict[str, Any]:
    """The activation, where it is one of those that llama.cpp takes from the file."""
    name = write(spec)["hidden_activation"]
    return {"hidden_activation": name} if name in ("gelu", "silu") else {}


family = Family(
    name="modernbert",
    title="ModernBERT",
    paper="https://arxiv.org/abs/2412.13663",
    model_types=("modernbert",),
    architectures={"ModernBertForMaskedLM": "masked_language_model", "ModernBertModel": "embedding"},
    presets={
        "tiny": _size(64, 4, 4, 128, vocab_size=1024, max_position_embeddings=512, local_attention=32),
        "base": _size(768, 22, 12, 1152),
        "large": _size(1024, 28, 16, 2624),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="model.",
    defaults={"position_embedding_type": "absolute", "embedding_norm": True},
    ignored={
        "initializer_cutoff_factor": "beyond how many deviations no weight starts",
        "classifier_pooling": "of a classification head",
        "classifier_dropout": "of a classification head",
        "classifier_bias": "of a head, where there is one",
        "layer_norm_eps": "a name that tools for BERT look for; norm_eps is what counts",
        "deterministic_flash_attn": "which kernel computes it",
        "reference_compile": "how the reference is run",
        "repad_logits_with_grad": "how the reference is run",
        "sparse_prediction": "for which tokens training computes logits",
        "sparse_pred_ignore_index": "for which tokens training computes logits",
    },
    gguf=Gguf(
        "modern-bert",
        keys={
            **SHAPE,
            "norm_eps": "attention.layer_norm_epsilon",
            "global_rope_theta": "rope.freq_base",
            "local_rope_theta": "rope.freq_base_swa",
            "local_attention": "attention.sliding_window",
        },
        tensors=gguf_tensors(QKV, GATE_UP),
        read=_gguf_read,
        write=_gguf_write,
        assumed={"rope.freq_base_swa": 10000.0},
        scalings=(),
    ),
)
