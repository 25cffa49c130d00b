"""BART: the encoder-decoder of 2017 with learned positions, pretrained to undo noise (Lewis et al. 2019,
https://arxiv.org/abs/1910.13461)."""

from __future__ import annotations

from typing import Any

from anyformer.families.config import Config, activation_name
from anyformer.families.family import Family, branch, decoder_of, given
from anyformer.families.names import Row, Table, Tensor, Unused
from anyformer.spec import (
    Attention,
    Block,
    Branch,
    EmbeddingHead,
    Embeddings,
    FeedForward,
    Initialization,
    LanguageModelHead,
    Learned,
    Norm,
    Stack,
    Transformer,
)

_NORM = Norm(kind="layer", bias=True)
#: The first rows of the table of positions stand for none.
_OFFSET = 2


def read(config: Config) -> Transformer:
    for name in ("is_encoder_decoder", "tie_word_embeddings"):
        config.expect(name, True)
    vocabulary = config.size("vocab_size", default=50265)
    position = Learned(size=config.size("max_position_embeddings", default=1024), offset=_OFFSET)
    return Transformer(
        encoder=read_stack(config, "encoder", vocabulary, position=position, norm=_NORM),
        decoder=read_stack(config, "decoder", vocabulary, position=position, norm=_NORM),
        shared_embedding=True,
        head=config.head(LanguageModelHead(tied=True), EmbeddingHead()),
        context=position.size,
        initialization=Initialization(std=config.number("init_std", default=0.02)),
    )


def read_stack(config: Config, name: str, vocabulary: int, **embeddings: Any) -> Stack:
    """The encoder or decoder of BART and Marian, whose configs have the same attributes; `embeddings` is what the
    family's have besides the table."""
    decodes, dim = name == "decoder", config.size("d_model", "hidden_size")
    # Files say the encoder's twice, under the names of all models.
    heads = config.size(f"{name}_attention_heads", *([] if decodes else ["num_attention_heads"]), default=16)
    depth = config.size(f"{name}_layers", *([] if decodes else ["num_hidden_layers"]), default=12)
    dropout = config.number("dropout", default=0.1)
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=dim // heads,
        visibility="causal" if decodes else "full",
        bias=True,
        output_bias=True,
        dropout=config.number("attention_dropout", default=0.0),
    )
    feed_forward = FeedForward(
        hidden=config.size(f"{name}_ffn_dim", default=4096),
        activation=config.activation("activation_function", default="gelu"),
        bias=True,
        dropout=config.number("activation_dropout", default=0.0),
    )
    across = [attention.replace(source="cross", visibility="full")] if decodes else []
    branches = (
        Branch(mixer=mixer, norm=_NORM, placement="post", dropout=dropout)
        for mixer in (attention, *across, feed_forward)
    )
    return Stack(
        dim=dim,
        depth=depth,
        pattern=(Block(branches=tuple(branches)),),
        embeddings=Embeddings(
            vocabulary=vocabulary,
            scale=dim**0.5 if config.flag("scale_embedding", default=False) else None,
            dropout=dropout,
            **embeddings,
        ),
    )


def write(spec: Transformer) -> dict[str, Any]:
    attributes = write_stacks(spec)
    position = given(spec.output.embeddings.position, Learned, "learned positions")
    return {**attributes, "max_position_embeddings": position.size}


def write_stacks(spec: Transformer) -> dict[str, Any]:
    """What `read_stack` reads, and the rest that BART and Marian have in common."""
    encoder, decoder = given(spec.encoder, Stack, "an encoder"), decoder_of(spec)
    attributes: dict[str, Any] = {}
    for name, stack in (("encoder", encoder), ("decoder", decoder)):
        attention, _ = branch(stack, "attention", Attention)
        feed_forward, _ = branch(stack, "feed_forward", FeedForward)
        attributes |= {
            f"{name}_layers": stack.depth,
            f"{name}_attention_heads": attention.heads,
            f"{name}_ffn_dim": feed_forward.hidden,
            "attention_dropout": attention.dropout,
            "activation_dropout": feed_forward.dropout,
            "activation_function": activation_name(feed_forward.activation),
        }
    return {
        **attributes,
        "vocab_size": encoder.embeddings.vocabulary,
        "d_model": encoder.dim,
        "dropout": encoder.embeddings.dropout,
        "scale_embedding": encoder.embeddings.scale is not None,
        "init_std": spec.initialization.std or 0.02,
        "is_encoder_decoder": True,
    }


def tensors(spec: Transformer) -> Table:
    """The names of BART and Marian."""
    tables = [f"model.{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")]
    lines: list[Tensor | Unused] = [
        Tensor("lm_head.weight", "head.output.weight"),
        Tensor("final_logits_bias", "head.output.bias", layout=(Row(),)),
        Unused("final_logits_bias", "a bias that was never trained and is all nought", zero=True),
    ]
    if spec.shared_embedding:
        lines.append(Tensor("model.shared.weight", "encoder.embeddings.tokens.weight", aliases=tuple(tables)))
    for stack, table in zip(("encoder", "decoder"), tables):
        layer, ours = f"model.{stack}.layers.*", f"{stack}.layers.*"
        for module, role in (("self_attn", "attention"), ("encoder_attn", "cross_attention")):
            lines += [
                Tensor(f"{layer}.{module}.q_proj.*", f"{ours}.{role}.query.*"),
                Tensor(f"{layer}.{module}.k_proj.*", f"{ours}.{role}.key.*"),
                Tensor(f"{layer}.{module}.v_proj.*", f"{ours}.{role}.value.*"),
                Tensor(f"{layer}.{module}.out_proj.*", f"{ours}.{role}.output.*"),
                Tensor(f"{layer}.{module}_layer_norm.*", f"{ours}.{role}_norm.*"),
            ]
        lines += [
            Tensor(table, f"{stack}.embeddings.tokens.weight"),
            Tensor(f"model.{stack}.embed_positions.weight", f"{stack}.embeddings.positions.weight"),
            Tensor(f"model.{stack}.layernorm_embedding.*", f"{stack}.embeddings.norm.*"),
            Tensor(f"{layer}.fc1.*", f"{ours}.feed_forward.up.*"),
            Tensor(f"{layer}.fc2.*", f"{ours}.feed_forward.down.*"),
            Tensor(f"{layer}.final_layer_norm.*", f"{ours}.feed_forward_norm.*"),
            Unused(f"model.{stack}.version", "a number that fairseq counted its formats by"),
        ]
    return lines


def size(dim: int, layers: int, heads: int, hidden: int, **more: Any) -> dict[str, Any]:
    """A preset's attributes, the same for encoder and decoder."""
    sides = {
        f"{name}_{what}": value
        for name in ("encoder", "decoder")
        for what, value in (("layers", layers), ("attention_heads", heads), ("ffn_dim", hidden))
    }
    return {"vocab_size": 50265, "d_model": dim, **sides, **more}


#: Attributes of both that change nothing.
IGNORED = {
    "encoder_layerdrop": "which layers training leaves out at random",
    "decoder_layerdrop": "which layers training leaves out at random",
    "classifier_dropout": "dropout of a classification head",
    "classif_dropout": "dropout of a classification head",
}

family = Family(
    name="bart",
    title="BART",
    paper="https://arxiv.org/abs/1910.13461",
    model_types=("bart",),
    architectures={"BartForConditionalGeneration": "language_model", "BartModel": "embedding"},
    presets={
        "tiny": size(64, 2, 4, 256, vocab_size=1024, max_position_embeddings=128),
        "base": size(768, 6, 12, 3072),
        "large": size(1024, 12, 16, 4096),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="model.",
    defaults={
        "add_bias_logits": False,
        "add_final_layer_norm": False,
        "extra_pos_embeddings": _OFFSET,
        "normalize_before": False,
        "normalize_embedding": True,
        "static_position_embeddings": False,
    },
    ignored={
        **IGNORED,
        "force_bos_token_to_be_generated": "a setting of generation (before version 4.10)",
        **dict.fromkeys(
            ("replacing_rate", "student_encoder_layers", "student_decoder_layers"), "a note on how it was distilled"
        ),
    },
    generation={
        "decoder_start_token_id": 2,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    },
)
