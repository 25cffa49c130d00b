"""T5: text to text, with learned biases for buckets of distance instead of positions (Raffel et al. 2020,
https://arxiv.org/abs/1910.10683). Version 1.1 and Flan-T5 gate their feed-forward and leave the output unscaled."""

from __future__ import annotations

from typing import Any

from anyformer.families.config import ACTIVATIONS, Config
from anyformer.families.family import Family, Gguf, GgufSource, branch, given
from anyformer.families.names import Table, Tensor, Unused
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
    RelativeBuckets,
    Stack,
    Transformer,
)


def read(config: Config) -> Transformer:
    dim, depth = config.size("d_model", "hidden_size"), config.size("num_layers", "num_hidden_layers")
    depths = {"encoder": depth, "decoder": config.size("num_decoder_layers", default=depth)}
    tied = config.flag("tie_word_embeddings", default=True)
    # Before it had a name of its own, the scale went by whether the embeddings are tied.
    scaled = config.flag("scale_decoder_outputs", default=tied)
    head = config.head(LanguageModelHead(tied=tied, scale=dim**-0.5 if scaled else None), EmbeddingHead())
    both = head.kind == "language_model"
    if both:
        config.expect("is_encoder_decoder", True)
    stacks = {name: _stack(config, name, dim, depths[name]) for name in ("encoder", "decoder")}
    return Transformer(
        encoder=stacks["encoder"],
        decoder=stacks["decoder"] if both else None,
        shared_embedding=both,
        head=head,
        context=config.size("n_positions", default=512),
        initialization=Initialization(std=None, embedding_std=config.number("initializer_factor", default=1.0)),
    )


def _stack(config: Config, name: str, dim: int, depth: int) -> Stack:
    decodes, heads = name == "decoder", config.size("num_heads", "num_attention_heads")
    norm = Norm(kind="rms", eps=config.number("layer_norm_epsilon", default=1e-6))
    dropout = config.number("dropout_rate", default=0.1)
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=config.size("d_kv", "head_dim", default=64),
        visibility="causal" if decodes else "full",
        scale=1.0,
        dropout=dropout,
    )
    mixers = (
        attention,
        *([attention.replace(source="cross", visibility="full")] if decodes else []),
        _feed_forward(config, dropout),
    )
    return Stack(
        dim=dim,
        depth=depth,
        pattern=(Block(branches=tuple(Branch(mixer=mixer, norm=norm, dropout=dropout) for mixer in mixers)),),
        embeddings=Embeddings(vocabulary=config.size("vocab_size"), dropout=dropout),
        norm=norm,
        relative=RelativeBuckets(
            buckets=config.size("relative_attention_num_buckets", default=32),
            max_distance=config.size("relative_attention_max_distance", default=128),
            bidirectional=not decodes,
        ),
        dropout=dropout,
    )


def _feed_forward(config: Config, dropout: float) -> FeedForward:
    """`feed_forward_proj` is an activation, `gated-` before it where the form is gated; `gated-gelu` means the tanh
    form. The two attributes that spell this out win over it."""
    form = config.text("feed_forward_proj", default="relu")
    gated, activation = form.startswith("gated-"), form.removeprefix("gated-")
    activation = "gelu_new" if form == "gated-gelu" else activation
    if activation not in ACTIVATIONS:
        config.refuse(f"feed_forward_proj is '{form}'; known activations: {', '.join(ACTIVATIONS)}")
    return FeedForward(
        hidden=config.size("d_ff"),
        activation=config.activation("dense_act_fn", default=activation),
        gated=config.flag("is_gated_act", default=gated),
        dropout=dropout,
    )


def write(spec: Transformer) -> dict[str, Any]:
    stack, head = given(spec.encoder, Stack, "an encoder"), spec.head
    attention, norm = branch(stack, "attention", Attention)
    feed_forward, _ = branch(stack, "feed_forward", FeedForward)
    relative = given(stack.relative, RelativeBuckets, "relative buckets that a stack shares")
    decoder = spec.decoder or stack
    activation = "gelu_new" if feed_forward.activation == "gelu_tanh" else feed_forward.activation
    plain = "gelu" if feed_forward.gated and activation == "gelu_new" else activation
    return {
        "vocab_size": stack.embeddings.vocabulary,
        "d_model": stack.dim,
        "d_kv": attention.head_dim,
        "d_ff": feed_forward.hidden,
        "num_layers": stack.depth,
        "num_decoder_layers": decoder.depth,
        "num_heads": attention.heads,
        "relative_attention_num_buckets": relative.buckets,
        "relative_attention_max_distance": relative.max_distance,
        "dropout_rate": stack.dropout,
        "layer_norm_epsilon": norm.eps,
        "initializer_factor": spec.initialization.embedding_std or 1.0,
        "feed_forward_proj": f"gated-{plain}" if feed_forward.gated else plain,
        "dense_act_fn": activation,
        "is_gated_act": feed_forward.gated,
        "is_encoder_decoder": spec.decoder is not None,
        "n_positions": spec.context or 512,
        **({"scale_decoder_outputs": head.scale is not None} if isinstance(head, LanguageModelHead) else {}),
    }


def tensors(spec: Transformer) -> Table:
    lines: list[Tensor | Unused] = [
        Tensor(
            "shared.weight",
            "encoder.embeddings.tokens.weight",
            aliases=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        ),
        Tensor("lm_head.weight", "head.output.weight"),
    ]
    for stack, feed_forward in (("encoder", "layer.1"), ("decoder", "layer.2")):
        layer, ours = f"{stack}.block.*", f"{stack}.layers.*"
        attentions = [("attention", "layer.0.SelfAttention", "layer.0")]
        attentions += [("cross_attention", "layer.1.EncDecAttention", "layer.1")] if stack == "decoder" else []
        for role, module, place in attentions:
            for short, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
                lines.append(Tensor(f"{layer}.{module}.{short}.weight", f"{ours}.{role}.{name}.weight"))
            lines.append(Tensor(f"{layer}.{place}.layer_norm.weight", f"{ours}.{role}_norm.weight"))
        gated = (
            spec.stacks().get(stack) is not None and branch(spec.stacks()[stack], "feed_forward", FeedForward)[0].gated
        )
        names = [("wi_0", "gate"), ("wi_1", "up")] if gated else [("wi", "up")]
        for short, name in (*names, ("wo", "down")):
            lines.append(
                Tensor(f"{layer}.{feed_forward}.DenseReluDense.{short}.weight", f"{ours}.feed_forward.{name}.weight")
            )
        lines += [
            Tensor(f"{layer}.{feed_forward}.layer_norm.weight", f"{ours}.feed_forward_norm.weight"),
            Tensor(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{stack}.relative.weight"),
            Tensor(f"{stack}.final_layer_norm.weight", f"{stack}.norm.weight"),
        ]
    unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    lines.append(Unused(unread, "a table that cross-attention never had a use for"))
    if spec.decoder is None:
        lines.append(Unused("decoder.**", "the decoder, where only the encoder is asked for"))
    return lines


def gguf_tensors(spec: Transformer) -> Table:
    lines = [
        Tensor("token_embd.weight", "encoder.embeddings.tokens.weight"),
        Tensor("output.weight", "head.output.weight"),
    ]
    for short, stack in (("enc", "encoder"), ("dec", "decoder")):
        layer, ours = f"{short}.blk.*", f"{stack}.layers.*"
        for place, role in (("attn", "attention"), ("cross_attn", "cross_attention")):
            for letter, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
                lines.append(Tensor(f"{layer}.{place}_{letter}.weight", f"{ours}.{role}.{name}.weight"))
            lines.append(Tensor(f"{layer}.{place}_norm.weight", f"{ours}.{role}_norm.weight"))
        for name in ("gate", "up", "down"):
            lines.append(Tensor(f"{layer}.ffn_{name}.weight", f"{ours}.feed_forward.{name}.weight"))
        lines += [
            Tensor(f"{layer}.ffn_norm.weight", f"{ours}.feed_forward_norm.weight"),
            Tensor(f"{short}.blk.0.attn_rel_b.weight", f"{stack}.relative.weight"),
            Tensor(f"{short}.output_norm.weight", f"{stack}.norm.weight"),
        ]
    return (*lines, Unused("dec.blk.**.cross_attn_rel_b.weight", "a bias that no cross-attention has"))


def _gguf_read(source: GgufSource) -> dict[str, Any]:
    gated = "enc.blk.0.ffn_gate.weight" in source.shapes
    return {"feed_forward_proj": "gated-gelu" if gated else "relu"}


def _size(dim: int, head_dim: int, hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    shape = {"d_model": dim, "d_kv": head_dim, "d_ff": hidden, "num_layers": layers, "num_heads": heads}
    return {"vocab_size": 32128, **shape, **more}


_V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_GATED = {
    "small": _size(512, 64, 1024, 8, 6, **_V1_1),
    "base": _size(768, 64, 2048, 12, 12, **_V1_1),
    "large": _size(1024, 64, 2816, 24, 16, **_V1_1),
    "xl": _size(2048, 64, 5120, 24, 32, **_V1_1),
    "xxl": _size(4096, 64, 10240, 24, 64, **_V1_1),
}

family = Family(
    name="t5",
    title="T5",
    paper="https://arxiv.org/abs/1910.10683",
    model_types=("t5",),
    architectures={
        "T5ForConditionalGeneration": "language_model",
        "T5WithLMHeadModel": "language_model",
        "T5EncoderModel": "embedding",
    },
    presets={
        "tiny": _size(64, 16, 128, 2, 4, vocab_size=1024),
        "small": _size(512, 64, 2048, 6, 8),
        "base": _size(768, 64, 3072, 12, 12),
        "large": _size(1024, 64, 4096, 24, 16),
        "3b": _size(1024, 128, 16384, 24, 32),
        "11b": _size(1024, 128, 65536, 24, 128),
        **{f"{line}-{name}": preset for line in ("v1.1", "flan") for name, preset in _GATED.items()},
    },
    read=read,
    write=write,
    tensors=tensors,
    tied="file",
    ignored={
        "is_encoder_decoder": "an encoder alone is saved with either value",
        "classifier_dropout": "dropout of a classification head",
    },
    generation={"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1},
    gguf=Gguf(
        "t5",
        keys={
            "d_model": "embedding_length",
            "d_kv": "attention.key_length",
            "d_ff": "feed_forward_length",
            "num_layers": "block_count",
            "num_decoder_layers": "decoder_block_count",
            "num_heads": "attention.head_count",
            "n_positions": "context_length",
            "relative_attention_num_buckets": "attention.relative_buckets_count",
            "layer_norm_epsilon": "attention.layer_norm_rms_epsilon",
        },
        tensors=gguf_tensors,
        fixed={"is_encoder_decoder": True},
        read=_gguf_read,
        encoder="t5encoder",
    ),
)
