"""DistilBERT: BERT at half the depth, without segments, taught by BERT (Sanh et al. 2019,
https://arxiv.org/abs/1910.01108)."""

from __future__ import annotations

from typing import Any

from anyformer.families.bert import encoder, write_position
from anyformer.families.config import Config, activation_name
from anyformer.families.family import Family, architectures, branch, given
from anyformer.families.names import Table, Tensor
from anyformer.spec import (
    Attention,
    EmbeddingHead,
    Embeddings,
    FeedForward,
    Initialization,
    Learned,
    MaskedLanguageModelHead,
    Norm,
    SequenceClassificationHead,
    Stack,
    TokenClassificationHead,
    Transformer,
)

_NORM = Norm(kind="layer", eps=1e-12, bias=True)


def read(config: Config) -> Transformer:
    dropout, activation = config.number("dropout", default=0.1), config.activation("activation", default="gelu")
    position = Learned(size=config.size("max_position_embeddings", default=512))
    stack = encoder(
        Embeddings(vocabulary=config.size("vocab_size"), position=position, norm=_NORM, dropout=dropout),
        dim=config.size("dim", "hidden_size"),
        depth=config.size("n_layers", "num_hidden_layers"),
        heads=config.size("n_heads", "num_attention_heads"),
        hidden=config.size("hidden_dim"),
        activation=activation,
        norm=_NORM,
        dropout=dropout,
        attention_dropout=config.number("attention_dropout", default=0.1),
    )
    tied = config.flag("tie_word_embeddings", default=True)
    pooled_dropout = config.number("seq_classif_dropout", default=0.2)
    head = config.head(
        MaskedLanguageModelHead(tied=tied, activation=activation, norm=_NORM),
        EmbeddingHead(),
        SequenceClassificationHead(labels=config.labels(), activation="relu", dropout=pooled_dropout),
        TokenClassificationHead(labels=config.labels(), dropout=dropout),
    )
    start = Initialization(std=config.number("initializer_range", default=0.02))
    return Transformer(encoder=stack, head=head, context=position.size, initialization=start)


def write(spec: Transformer) -> dict[str, Any]:
    position = write_position(spec)
    stack = given(spec.encoder, Stack, "an encoder")
    attention, _ = branch(stack, "attention", Attention)
    feed_forward, _ = branch(stack, "feed_forward", FeedForward)
    attributes = {
        "vocab_size": spec.output.embeddings.vocabulary,
        "dim": spec.output.dim,
        "n_layers": spec.output.depth,
        "n_heads": attention.heads,
        "hidden_dim": feed_forward.hidden,
        "activation": activation_name(feed_forward.activation),
        "dropout": spec.output.embeddings.dropout,
        "attention_dropout": attention.dropout,
        "max_position_embeddings": position.size,
        "initializer_range": spec.initialization.std or 0.02,
    }
    if isinstance(spec.head, SequenceClassificationHead):
        attributes["seq_classif_dropout"] = spec.head.dropout
    return attributes


def tensors(spec: Transformer) -> Table:
    layer, ours = "distilbert.transformer.layer.*", "encoder.layers.*"
    heads: dict[str, Table] = {
        "masked_language_model": (
            Tensor("vocab_transform.*", "head.dense.*"),
            Tensor("vocab_layer_norm.*", "head.norm.*"),
            Tensor("vocab_projector.*", "head.output.*"),
        ),
        "sequence_classification": (
            Tensor("pre_classifier.*", "head.dense.*"),
            Tensor("classifier.*", "head.output.*"),
        ),
        "token_classification": (Tensor("classifier.*", "head.output.*"),),
    }
    return (
        Tensor("distilbert.embeddings.word_embeddings.weight", "encoder.embeddings.tokens.weight"),
        Tensor("distilbert.embeddings.position_embeddings.weight", "encoder.embeddings.positions.weight"),
        Tensor("distilbert.embeddings.LayerNorm.*", "encoder.embeddings.norm.*"),
        Tensor(f"{layer}.attention.q_lin.*", f"{ours}.attention.query.*"),
        Tensor(f"{layer}.attention.k_lin.*", f"{ours}.attention.key.*"),
        Tensor(f"{layer}.attention.v_lin.*", f"{ours}.attention.value.*"),
        Tensor(f"{layer}.attention.out_lin.*", f"{ours}.attention.output.*"),
        Tensor(f"{layer}.sa_layer_norm.*", f"{ours}.attention_norm.*"),
        Tensor(f"{layer}.ffn.lin1.*", f"{ours}.feed_forward.up.*"),
        Tensor(f"{layer}.ffn.lin2.*", f"{ours}.feed_forward.down.*"),
        Tensor(f"{layer}.output_layer_norm.*", f"{ours}.feed_forward_norm.*"),
        *heads.get(spec.head.kind, ()),
    )


def _size(dim: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {"vocab_size": 30522, "dim": dim, "n_layers": layers, "n_heads": heads, "hidden_dim": 4 * dim, **more}


family = Family(
    name="distilbert",
    title="DistilBERT",
    paper="https://arxiv.org/abs/1910.01108",
    model_types=("distilbert",),
    architectures=architectures("DistilBert", masked=True),
    presets={
        "tiny": _size(128, 2, 2, vocab_size=1024, max_position_embeddings=128),
        "base": _size(768, 6, 12),
        "multilingual": _size(768, 6, 12, vocab_size=119547),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="distilbert.",
    defaults={"tie_weights_": True},
    ignored={
        "sinusoidal_pos_embds": "how the table of positions began; what it became is in the file",
        "qa_dropout": "dropout of a question answering head",
    },
)
