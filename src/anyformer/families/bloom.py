"""BLOOM: ALiBi in place of positions, and a norm right after the embeddings (BigScience Workshop 2022,
https://arxiv.org/abs/2211.05100)."""

from __future__ import annotations

from typing import Any

from anyformer.families.config import Config
from anyformer.families.family import Family, Gguf, architectures, branch, decoder_of
from anyformer.families.gguf_names import QKV
from anyformer.families.gguf_names import tensors as gguf_tensors
from anyformer.families.gpt import decoder, head_tensors, megatron_tensors, read_head, widths, write_head
from anyformer.families.names import Table, Tensor
from anyformer.spec import Alibi, Attention, Embeddings, FeedForward, Initialization, Norm, Transformer


def read(config: Config) -> Transformer:
    dim, heads, head_dim = widths(config, ("hidden_size", "n_embed"), ("n_head", "num_attention_heads"))
    norm = Norm(kind="layer", eps=config.number("layer_norm_epsilon", default=1e-5), bias=True)
    dropout = config.number("hidden_dropout", default=0.0)
    config.expect("n_inner", 4 * dim)
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        visibility="causal",
        position=Alibi(),
        bias=True,
        output_bias=True,
        dropout=config.number("attention_dropout", default=0.0),
    )
    stack = decoder(
        attention,
        FeedForward(hidden=4 * dim, activation="gelu_tanh", bias=True),
        norm,
        Embeddings(vocabulary=config.size("vocab_size", default=250880), norm=norm),
        dim=dim,
        depth=config.size("n_layer", "num_hidden_layers"),
        dropout=dropout,
    )
    return Transformer(
        decoder=stack,
        head=read_head(config, tied=True, dropout=dropout),
        context=config.size("seq_length", default=None),
        initialization=Initialization(std=config.number("initializer_range", default=0.02)),
    )


def write(spec: Transformer) -> dict[str, Any]:
    stack = decoder_of(spec)
    attention, norm = branch(stack, "attention", Attention)
    return {
        "vocab_size": stack.embeddings.vocabulary,
        "hidden_size": stack.dim,
        "n_layer": stack.depth,
        "n_head": attention.heads,
        "layer_norm_epsilon": norm.eps,
        "hidden_dropout": stack.pattern[0].branches[0].dropout,
        "attention_dropout": attention.dropout,
        "initializer_range": spec.initialization.std or 0.02,
        **({"seq_length": spec.context} if spec.context is not None else {}),
        **write_head(spec.head),
    }


def tensors(spec: Transformer) -> Table:
    attention, _ = branch(decoder_of(spec), "attention", Attention)
    return (
        Tensor("transformer.word_embeddings.weight", "decoder.embeddings.tokens.weight"),
        Tensor("transformer.word_embeddings_layernorm.*", "decoder.embeddings.norm.*"),
        *megatron_tensors("transformer.h.*", "self_attention", attention.heads),
        Tensor("transformer.ln_f.*", "decoder.norm.*"),
        *head_tensors(spec.head),
    )


def _size(dim: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    shape = {"hidden_size": dim, "n_layer": layers, "n_head": heads}
    return {"vocab_size": 250880, **shape, "seq_length": 2048, **more}


_FUSED = "how the program that trained it fuses its steps"

family = Family(
    name="bloom",
    title="BLOOM",
    paper="https://arxiv.org/abs/2211.05100",
    model_types=("bloom",),
    architectures=architectures("Bloom"),
    presets={
        "tiny": _size(64, 2, 4, vocab_size=512, seq_length=128),
        "560m": _size(1024, 24, 16),
        "1b1": _size(1536, 24, 16),
        "1b7": _size(2048, 24, 16),
        "3b": _size(2560, 30, 32),
        "7b1": _size(4096, 30, 32),
        "176b": _size(14336, 70, 112),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="transformer.",
    defaults={"apply_residual_connection_post_layernorm": False},
    ignored={
        "slow_but_exact": "in how many pieces it is computed",
        "attention_softmax_in_fp32": "in which type the softmax is computed; here always float32",
        "offset_alibi": "a number added to all scores of a row, which the softmax takes out again",
        **dict.fromkeys(("bias_dropout_fusion", "masked_softmax_fusion", "skip_bias_add", "skip_bias_add_qkv"), _FUSED),
    },
    gguf=Gguf(
        "bloom",
        keys={
            "hidden_size": "embedding_length",
            "n_layer": "block_count",
            "n_head": "attention.head_count",
            "seq_length": "context_length",
            "layer_norm_epsilon": "attention.layer_norm_epsilon",
        },
        tensors=gguf_tensors(QKV),
    ),
)
