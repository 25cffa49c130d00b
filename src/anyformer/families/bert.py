"""BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805), and the encoder that its descendants share."""

from __future__ import annotations

from typing import Any

from anyformer.errors import SpecError
from anyformer.families.config import Config, activation_name
from anyformer.families.family import Family, Gguf, GgufSource, architectures, branch, given
from anyformer.families.gguf_names import SHAPE
from anyformer.families.gguf_names import tensors as gguf_tensors
from anyformer.families.names import Table, Tensor, Unused
from anyformer.spec import (
    Attention,
    Block,
    Branch,
    EmbeddingHead,
    Embeddings,
    FeedForward,
    Head,
    Initialization,
    Learned,
    MaskedLanguageModelHead,
    Norm,
    SequenceClassificationHead,
    Stack,
    TokenClassificationHead,
    Transformer,
)


def read(config: Config) -> Transformer:
    size = config.size("max_position_embeddings", default=512)
    return read_encoder(config, Learned(size=size), read_head(config, config.activation("hidden_act", default="gelu")))


def read_encoder(config: Config, position: Learned, head: Head) -> Transformer:
    """The encoder of BERT and RoBERTa, whose configs have the same attributes."""
    norm = Norm(kind="layer", eps=config.number("layer_norm_eps", default=1e-12), bias=True)
    dropout = config.number("hidden_dropout_prob", default=0.1)
    stack = encoder(
        Embeddings(
            vocabulary=config.size("vocab_size"),
            position=position,
            segments=config.integer("type_vocab_size", default=2),
            norm=norm,
            dropout=dropout,
        ),
        dim=config.size("hidden_size"),
        depth=config.size("num_hidden_layers"),
        heads=config.size("num_attention_heads"),
        hidden=config.size("intermediate_size"),
        activation=config.activation("hidden_act", default="gelu"),
        norm=norm,
        dropout=dropout,
        attention_dropout=config.number("attention_probs_dropout_prob", default=0.1),
    )
    start = Initialization(std=config.number("initializer_range", default=0.02))
    return Transformer(encoder=stack, head=head, context=position.size, initialization=start)


def encoder(
    embeddings: Embeddings,
    *,
    dim: int,
    depth: int,
    heads: int,
    hidden: int,
    activation: Any,
    norm: Norm,
    dropout: float,
    attention_dropout: float,
) -> Stack:
    """Layers that see all of a text, with biases everywhere; each branch is added to the stream, then normalised."""
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=dim // heads,
        visibility="full",
        bias=True,
        output_bias=True,
        dropout=attention_dropout,
    )
    feed_forward = FeedForward(hidden=hidden, activation=activation, bias=True)
    block = post_norm_block(attention, feed_forward, norm, dropout)
    return Stack(dim=dim, depth=depth, pattern=(block,), embeddings=embeddings)


def read_head(config: Config, activation: Any) -> Head:
    """The heads of BERT and RoBERTa; `activation` is that of masked language modelling."""
    norm = Norm(kind="layer", eps=config.number("layer_norm_eps", default=1e-12), bias=True)
    dropout = config.number("classifier_dropout", default=config.number("hidden_dropout_prob", default=0.1))
    tied = config.flag("tie_word_embeddings", default=True)
    return config.head(
        MaskedLanguageModelHead(tied=tied, activation=activation, norm=norm),
        EmbeddingHead(),
        SequenceClassificationHead(labels=config.labels(), dropout=dropout),
        TokenClassificationHead(labels=config.labels(), dropout=dropout),
    )


def post_norm_block(attention: Attention, feed_forward: FeedForward, norm: Norm, dropout: float) -> Block:
    """The block of 2017: each branch added to the stream, then normalised."""
    branches = (
        Branch(mixer=mixer, norm=norm, placement="post", dropout=dropout) for mixer in (attention, feed_forward)
    )
    return Block(branches=tuple(branches))


def write(spec: Transformer) -> dict[str, Any]:
    position = write_position(spec)
    return {**write_encoder(spec), "max_position_embeddings": position.size}


def write_position(spec: Transformer) -> Learned:
    """The learned positions that a config of this kind presupposes."""
    return given(given(spec.encoder, Stack, "an encoder").embeddings.position, Learned, "learned positions")


def write_encoder(spec: Transformer) -> dict[str, Any]:
    """What `read_encoder` and `read_head` read."""
    stack = given(spec.encoder, Stack, "an encoder")
    attention, norm = branch(stack, "attention", Attention)
    feed_forward, _ = branch(stack, "feed_forward", FeedForward)
    # The reference looks them up whatever the config says, and fails where there are none.
    if not stack.embeddings.segments:
        raise SpecError("it needs token types")
    attributes = {
        "vocab_size": stack.embeddings.vocabulary,
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": attention.heads,
        "intermediate_size": feed_forward.hidden,
        "hidden_act": activation_name(feed_forward.activation),
        "hidden_dropout_prob": stack.embeddings.dropout,
        "attention_probs_dropout_prob": attention.dropout,
        "type_vocab_size": stack.embeddings.segments,
        "layer_norm_eps": norm.eps,
        "initializer_range": spec.initialization.std or 0.02,
    }
    if isinstance(spec.head, SequenceClassificationHead | TokenClassificationHead):
        attributes["classifier_dropout"] = spec.head.dropout
    return attributes


def encoder_tensors(prefix: str) -> tuple[Tensor, ...]:
    """The names of BERT and RoBERTa, which differ in nothing but what they begin with."""
    layer, ours = f"{prefix}.encoder.layer.*", "encoder.layers.*"
    return (
        Tensor(f"{prefix}.embeddings.word_embeddings.weight", "encoder.embeddings.tokens.weight"),
        Tensor(f"{prefix}.embeddings.position_embeddings.weight", "encoder.embeddings.positions.weight"),
        Tensor(f"{prefix}.embeddings.token_type_embeddings.weight", "encoder.embeddings.segments.weight"),
        Tensor(f"{prefix}.embeddings.LayerNorm.*", "encoder.embeddings.norm.*"),
        Tensor(f"{layer}.attention.self.query.*", f"{ours}.attention.query.*"),
        Tensor(f"{layer}.attention.self.key.*", f"{ours}.attention.key.*"),
        Tensor(f"{layer}.attention.self.value.*", f"{ours}.attention.value.*"),
        Tensor(f"{layer}.attention.output.dense.*", f"{ours}.attention.output.*"),
        Tensor(f"{layer}.attention.output.LayerNorm.*", f"{ours}.attention_norm.*"),
        Tensor(f"{layer}.intermediate.dense.*", f"{ours}.feed_forward.up.*"),
        Tensor(f"{layer}.output.dense.*", f"{ours}.feed_forward.down.*"),
        Tensor(f"{layer}.output.LayerNorm.*", f"{ours}.feed_forward_norm.*"),
    )


def masked_tensors(head: Head, module: str, norm: str) -> Table:
    """The names of a masked language model's head, whose bias stands twice: tied, one is the other's alias, and
    untied, transformers reads the one inside `decoder`."""
    bias = Tensor(f"{module}.bias", "head.output.bias", aliases=(f"{module}.decoder.bias",))
    if isinstance(head, MaskedLanguageModelHead) and not head.tied:
        bias = Tensor(f"{module}.decoder.bias", "head.output.bias")
    return (
        Tensor(f"{norm}.*", "head.norm.*"),
        Tensor(f"{module}.decoder.weight", "head.output.weight"),
        bias,
        Unused(f"{module}.bias", "unused where the output matrix is not tied"),
    )


def _gguf_read(source: GgufSource) -> dict[str, Any]:
    return {"type_vocab_size": source.shapes.get("token_types.weight", (0,))[0]}


def _gguf_write(spec: Transformer) -> dict[str, Any]:
    return {"tokenizer.ggml.token_type_count": spec.output.embeddings.segments or 1}


POOLER = "the pooler of BERT's second pretraining task, which only sequence classification reads"


def tensors(spec: Transformer) -> Table:
    heads: dict[str, Table] = {
        "masked_language_model": (
            Tensor("cls.predictions.transform.dense.*", "head.dense.*"),
            *masked_tensors(spec.head, "cls.predictions", "cls.predictions.transform.LayerNorm"),
            Unused("cls.seq_relationship.**", "the head of BERT's second pretraining task"),
        ),
        "sequence_classification": (
            Tensor("bert.pooler.dense.*", "head.dense.*"),
            Tensor("classifier.*", "head.output.*"),
        ),
        "token_classification": (Tensor("classifier.*", "head.output.*"),),
    }
    return (*encoder_tensors("bert"), *heads.get(spec.head.kind, ()), Unused("bert.pooler.**", POOLER))


def size(dim: int, layers: int, heads: int, hidden: int, **more: Any) -> dict[str, Any]:
    """A preset's attributes."""
    shape = {"hidden_size": dim, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {"vocab_size": 30522, **shape, "intermediate_size": hidden, **more}


family = Family(
    name="bert",
    title="BERT",
    paper="https://arxiv.org/abs/1810.04805",
    model_types=("bert",),
    architectures={**architectures("Bert", masked=True), "BertForPreTraining": "masked_language_model"},
    presets={
        "tiny": size(128, 2, 2, 512, vocab_size=1024, max_position_embeddings=128),
        "mini": size(256, 4, 4, 1024),
        "small": size(512, 4, 8, 2048),
        "medium": size(512, 8, 8, 2048),
        "base": size(768, 12, 12, 3072),
        "base-cased": size(768, 12, 12, 3072, vocab_size=28996),
        "large": size(1024, 24, 16, 4096),
        "minilm-l6": size(384, 6, 12, 1536, architectures=["BertModel"]),
        "minilm-l12": size(384, 12, 12, 1536, architectures=["BertModel"]),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="bert.",
    defaults={"position_embedding_type": "absolute"},
    ignored={
        "directionality": "a note of the program that trained it",
        **dict.fromkeys(
            (
                "pooler_fc_size",
                "pooler_num_attention_heads",
                "pooler_num_fc_layers",
                "pooler_size_per_head",
                "pooler_type",
            ),
            "of a pooler that the reference does not have",
        ),
    },
    gguf=Gguf(
        "bert",
        keys={**SHAPE, "layer_norm_eps": "attention.layer_norm_epsilon"},
        tensors=gguf_tensors(
            {
                "blk.*.attn_output_norm.*": "layers.*.attention_norm.*",
                "blk.*.layer_output_norm.*": "layers.*.feed_forward_norm.*",
            }
        ),
        read=_gguf_read,
        write=_gguf_write,
    ),
)
