"""What decoders in the line of GPT-2 share: normalised branches, a feed-forward of two matrices, plain heads."""

from __future__ import annotations

from anyformer.families.config import Config
from anyformer.families.names import Table, Tensor, Unused
from anyformer.spec import (
    Attention,
    Block,
    Branch,
    EmbeddingHead,
    Embeddings,
    FeedForward,
    Head,
    LanguageModelHead,
    Norm,
    SequenceClassificationHead,
    Stack,
    TokenClassificationHead,
)

#: Buffers that old files of these families hold.
BUFFERS = (
    Unused("**.attn.bias", "the causal mask, saved by old versions of transformers"),
    Unused("**.attn.masked_bias", "the number that stood for a masked score, saved by old versions of transformers"),
    Unused("**.attention.bias", "the causal mask, saved by old versions of transformers"),
    Unused("**.attention.masked_bias", "the number that stood for a masked score, saved by old versions"),
)


def megatron_tensors(layer: str, attention: str, heads: int) -> Table:
    """The names of layers of decoders that were trained with Megatron-LM; `attention` is what the family calls its."""
    ours = "decoder.layers.*"
    qkv = (f"{ours}.attention.query.*", f"{ours}.attention.key.*", f"{ours}.attention.value.*")
    return (
        Tensor(f"{layer}.input_layernorm.*", f"{ours}.attention_norm.*"),
        Tensor(f"{layer}.{attention}.query_key_value.*", qkv, groups=heads),
        Tensor(f"{layer}.{attention}.dense.*", f"{ours}.attention.output.*"),
        Tensor(f"{layer}.post_attention_layernorm.*", f"{ours}.feed_forward_norm.*"),
        Tensor(f"{layer}.mlp.dense_h_to_4h.*", f"{ours}.feed_forward.up.*"),
        Tensor(f"{layer}.mlp.dense_4h_to_h.*", f"{ours}.feed_forward.down.*"),
    )


def widths(config: Config, dim: tuple[str, ...], heads: tuple[str, ...]) -> tuple[int, int, int]:
    """D, H and C by the names of the first two, where every head has an equal share of the stream's width."""
    D, H = config.size(*dim), config.size(*heads)
    if D % H:
        config.refuse(f"{heads[0]}={H} does not divide {dim[0]}={D}; every head needs an equal share of the width")
    return D, H, D // H


def decoder(
    attention: Attention,
    feed_forward: FeedForward,
    norm: Norm,
    embeddings: Embeddings,
    *,
    dim: int,
    depth: int,
    dropout: float = 0.0,
    parallel: bool = False,
    shared: bool = False,
) -> Stack:
    """Pre-norm blocks of two branches, `parallel` or not, with one `shared` norm or two, and a final norm."""
    attend = Branch(mixer=attention, norm=norm, dropout=dropout)
    feed = Branch(mixer=feed_forward, norm="shared" if shared else norm, dropout=dropout)
    block = Block(branches=(attend, feed), parallel=parallel)
    return Stack(dim=dim, depth=depth, pattern=(block,), embeddings=embeddings, norm=norm)


def read_head(config: Config, *, tied: bool, bias: bool = False, dropout: float = 0.1) -> Head:
    """The heads; `tied` and `dropout` (of classifying tokens) where the config does not say."""
    return config.head(
        LanguageModelHead(tied=config.flag("tie_word_embeddings", default=tied), bias=bias),
        EmbeddingHead(),
        SequenceClassificationHead(labels=config.labels(), pooling="last", activation=None, bias=False),
        TokenClassificationHead(labels=config.labels(), dropout=config.number("classifier_dropout", default=dropout)),
    )


def write_head(head: Head) -> dict[str, float]:
    """What `read_head` reads, beyond what is written for all families."""
    return {"classifier_dropout": head.dropout} if isinstance(head, TokenClassificationHead) else {}


def head_tensors(head: Head, output: str = "lm_head") -> Table:
    """The names of the heads; `output` is what the family calls the output matrix."""
    modules = {"language_model": output, "sequence_classification": "score", "token_classification": "classifier"}
    return (Tensor(f"{modules[head.kind]}.*", "head.output.*"),) if head.kind in modules else ()
