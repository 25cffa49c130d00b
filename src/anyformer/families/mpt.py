"""MPT: ALiBi in place of positions, and no bias anywhere (MosaicML 2023, https://www.databricks.com/blog/mpt-7b)."""

from __future__ import annotations

from typing import Any

from anyformer.families.config import DEFAULTS, IGNORED, Config
from anyformer.families.family import Family, Gguf, architectures, branch, decoder_of
from anyformer.families.gguf_names import QKV
from anyformer.families.gguf_names import tensors as gguf_tensors
from anyformer.families.gpt import decoder, head_tensors, read_head, widths, write_head
from anyformer.families.names import Table, Tensor
from anyformer.spec import Alibi, Attention, Embeddings, FeedForward, Initialization, Norm, Transformer

#: What published models have in `attn_config`; the reference computes nothing else whatever it says.
ATTENTION = {
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_type": "multihead_attention",
    "attn_uses_sequence_id": False,
    "clip_qkv": None,
    "prefix_lm": False,
    "qk_ln": False,
}


def read(config: Config) -> Transformer:
    dim, heads, head_dim = widths(config, ("d_model", "hidden_size"), ("n_heads", "num_attention_heads"))
    norm = config.text("norm_type", default="low_precision_layernorm")
    if norm not in ("low_precision_layernorm", "layernorm"):
        config.refuse(f"norm_type is {norm!r}; only layernorm, of either precision, is understood here")
    inner = config.section("attn_config")
    # transformers writes all that a configuration of its own has into this section too.
    inner.taken |= {*IGNORED, "architectures", "model_type", "attn_impl"}
    for name, wanted in {**DEFAULTS, **ATTENTION}.items():
        inner.expect(name, wanted)
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        visibility="causal",
        position=Alibi(),
        scale=inner.number("softmax_scale", default=None),
        dropout=inner.number("attn_pdrop", default=0.0),
    )
    stack = decoder(
        attention,
        FeedForward(hidden=4 * dim),
        Norm(kind="layer", eps=config.number("layer_norm_epsilon", default=1e-5)),
        Embeddings(
            vocabulary=config.size("vocab_size", default=50368), dropout=config.number("emb_pdrop", default=0.0)
        ),
        dim=dim,
        depth=config.size("n_layers", "num_hidden_layers"),
        dropout=config.number("resid_pdrop", default=0.0),
    )
    return Transformer(
        decoder=stack,
        head=read_head(config, tied=True),
        context=config.size("max_seq_len", default=2048),
        initialization=Initialization(std=config.number("initializer_range", default=0.02)),
    )


def write(spec: Transformer) -> dict[str, Any]:
    stack = decoder_of(spec)
    attention, norm = branch(stack, "attention", Attention)
    # transformers takes a whole number here, and nothing else.
    inner = {**ATTENTION, "softmax_scale": attention.scale, "attn_pdrop": attention.dropout or 0}
    return {
        "vocab_size": stack.embeddings.vocabulary,
        "d_model": stack.dim,
        "n_layers": stack.depth,
        "n_heads": attention.heads,
        "max_seq_len": spec.context or 2048,
        "attn_config": inner,
        "layer_norm_epsilon": norm.eps,
        "emb_pdrop": stack.embeddings.dropout,
        "resid_pdrop": stack.pattern[0].branches[0].dropout,
        "initializer_range": spec.initialization.std or 0.02,
        **write_head(spec.head),
    }


def tensors(spec: Transformer) -> Table:
    layer, ours = "transformer.blocks.*", "decoder.layers.*"
    qkv = (f"{ours}.attention.query.weight", f"{ours}.attention.key.weight", f"{ours}.attention.value.weight")
    return (
        Tensor("transformer.wte.weight", "decoder.embeddings.tokens.weight"),
        Tensor(f"{layer}.norm_1.weight", f"{ours}.attention_norm.weight"),
        Tensor(f"{layer}.attn.Wqkv.weight", qkv),
        Tensor(f"{layer}.attn.out_proj.weight", f"{ours}.attention.output.weight"),
        Tensor(f"{layer}.norm_2.weight", f"{ours}.feed_forward_norm.weight"),
        Tensor(f"{layer}.ffn.up_proj.weight", f"{ours}.feed_forward.up.weight"),
        Tensor(f"{layer}.ffn.down_proj.weight", f"{ours}.feed_forward.down.weight"),
        Tensor("transformer.norm_f.weight", "decoder.norm.weight"),
        *head_tensors(spec.head),
    )


def _size(dim: int, layers: int, heads: int, context: int, vocabulary: int = 50432) -> dict[str, Any]:
    shape = {"d_model": dim, "n_layers": layers, "n_heads": heads}
    return {"vocab_size": vocabulary, **shape, "max_seq_len": context}


family = Family(
    name="mpt",
    title="MPT",
    paper="https://www.databricks.com/blog/mpt-7b",
    model_types=("mpt",),
    architectures={**architectures("Mpt"), "MPTForCausalLM": "language_model"},
    presets={
        "tiny": _size(64, 2, 4, 128, 512),
        "7b": _size(4096, 32, 32, 2048),
        "7b-8k": _size(4096, 32, 32, 8192),
        "30b": _size(7168, 48, 64, 8192),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="transformer.",
    defaults={"expansion_ratio": 4, "no_bias": True, "logit_scale": None, "embedding_fraction": 1.0},
    ignored={
        "learned_pos_emb": "of models without ALiBi",
        "init_device": "where a program makes the weights",
        "init_config": "how a program draws fresh weights",
        "tokenizer_name": "the tokenizer's files say what it is",
        "verbose": "what a program prints",
    },
    gguf=Gguf(
        "mpt",
        keys={
            "d_model": "embedding_length",
            "n_layers": "block_count",
            "n_heads": "attention.head_count",
            "max_seq_len": "context_length",
            "layer_norm_epsilon": "attention.layer_norm_epsilon",
        },
        tensors=gguf_tensors(QKV),
    ),
)
