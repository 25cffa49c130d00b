"""GPT-NeoX and Pythia: attention and feed-forward side by side, each with a norm of its own; a quarter of each head
turns with the position (Black et al. 2022, https://arxiv.org/abs/2204.06745; Biderman et al. 2023,
https://arxiv.org/abs/2304.01373)."""

from __future__ import annotations

from typing import Any

from anyformer.families.config import Config, activation_name
from anyformer.families.family import Family, Gguf, GgufSource, architectures, branch, decoder_of, given
from anyformer.families.gguf_names import QKV, SHAPE, turned
from anyformer.families.gguf_names import tensors as gguf_tensors
from anyformer.families.gpt import BUFFERS, decoder, head_tensors, megatron_tensors, read_head, widths, write_head
from anyformer.families.names import Table, Tensor
from anyformer.families.rotary import rotary, rotary_attributes, rotary_share
from anyformer.spec import Attention, Embeddings, FeedForward, Initialization, Norm, Rotary, Transformer

#: What the base and the share of rotary positions are called in files before `rope_parameters`.
NAMES = ("rotary_emb_base", "rotary_pct")


def read(config: Config) -> Transformer:
    dim, heads, head_dim = widths(config, ("hidden_size",), ("num_attention_heads",))
    context = config.size("max_position_embeddings", default=2048)
    bias = config.flag("attention_bias", default=True)
    # Late versions 4 of transformers write base and share a second time, and read the first.
    config.expect("rope_theta", config.number("rotary_emb_base", default=10000.0))
    config.expect("partial_rotary_factor", config.number("rotary_pct", default=0.25))
    dropout = config.number("hidden_dropout", "hidden_dropout_prob", default=0.0)
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        visibility="causal",
        position=rotary(config, head_dim=head_dim, context=context, share=0.25, names=NAMES),
        bias=bias,
        output_bias=bias,
        dropout=config.number("attention_dropout", "attention_probs_dropout_prob", default=0.0),
    )
    feed_forward = FeedForward(
        hidden=config.size("intermediate_size"), activation=config.activation("hidden_act", default="gelu"), bias=True
    )
    stack = decoder(
        attention,
        feed_forward,
        Norm(kind="layer", eps=config.number("layer_norm_eps", default=1e-5), bias=True),
        Embeddings(vocabulary=config.size("vocab_size", default=50432), dropout=dropout),
        dim=dim,
        depth=config.size("num_hidden_layers"),
        dropout=dropout,
        parallel=config.flag("use_parallel_residual", default=True),
    )
    start = Initialization(std=config.number("initializer_range", default=0.02))
    return Transformer(decoder=stack, head=read_head(config, tied=False), context=context, initialization=start)


def write(spec: Transformer) -> dict[str, Any]:
    stack = decoder_of(spec)
    attention, norm = branch(stack, "attention", Attention)
    feed_forward, _ = branch(stack, "feed_forward", FeedForward)
    position = given(attention.position, Rotary, "rotary positions")
    rope = rotary_attributes(position)
    return {
        "vocab_size": stack.embeddings.vocabulary,
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": attention.heads,
        "intermediate_size": feed_forward.hidden,
        "hidden_act": activation_name(feed_forward.activation),
        "layer_norm_eps": norm.eps,
        "max_position_embeddings": spec.context or 2048,
        "rotary_emb_base": rope["rope_theta"],
        "rotary_pct": rotary_share(position, attention.head_dim),
        "rope_scaling": rope["rope_scaling"],
        "attention_bias": attention.bias,
        "attention_dropout": attention.dropout,
        "hidden_dropout": stack.embeddings.dropout,
        "use_parallel_residual": stack.pattern[0].parallel,
        "initializer_range": spec.initialization.std or 0.02,
        **write_head(spec.head),
    }


def tensors(spec: Transformer) -> Table:
    attention, _ = branch(decoder_of(spec), "attention", Attention)
    return (
        Tensor("gpt_neox.embed_in.weight", "decoder.embeddings.tokens.weight"),
        *megatron_tensors("gpt_neox.layers.*", "attention", attention.heads),
        Tensor("gpt_neox.final_layer_norm.*", "decoder.norm.*"),
        *head_tensors(spec.head, "embed_out"),
        *BUFFERS,
    )


def _gguf_read(source: GgufSource) -> dict[str, Any]:
    return {
        **turned("rotary_pct")(source),
        "hidden_act": source.metadata.text("hidden_activation", default="gelu"),
    }


def _gguf_write(spec: Transformer) -> dict[str, Any]:
    """Which of the two forms of GELU it is; llama.cpp, which does not ask, computes the faster one for both."""
    feed_forward, _ = branch(decoder_of(spec), "feed_forward", FeedForward)
    return {"hidden_activation": "gelu_fast"} if feed_forward.activation == "gelu_tanh" else {}


def _size(dim: int, layers: int, heads: int, hidden: int, vocabulary: int = 50304, **more: Any) -> dict[str, Any]:
    shape = {"hidden_size": dim, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {"vocab_size": vocabulary, **shape, "intermediate_size": hidden, **more}


family = Family(
    name="gpt_neox",
    title="GPT-NeoX",
    paper="https://arxiv.org/abs/2204.06745",
    model_types=("gpt_neox",),
    architectures=architectures("GPTNeoX"),
    presets={
        "tiny": _size(64, 2, 4, 256, 512, max_position_embeddings=128),
        "pythia-14m": _size(128, 6, 4, 512),
        "pythia-31m": _size(256, 6, 8, 1024),
        "pythia-70m": _size(512, 6, 8, 2048),
        "pythia-160m": _size(768, 12, 12, 3072),
        "pythia-410m": _size(1024, 24, 16, 4096),
        "pythia-1b": _size(2048, 16, 8, 8192),
        "pythia-1.4b": _size(2048, 24, 16, 8192),
        "pythia-2.8b": _size(2560, 32, 32, 10240),
        "pythia-6.9b": _size(4096, 32, 32, 16384, 50432),
        "pythia-12b": _size(5120, 36, 40, 20480, 50688),
        "20b": _size(6144, 44, 64, 24576, 50432, hidden_act="gelu_fast"),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="gpt_neox.",
    ignored={
        "is_decoder": "it is one whatever this says",
        "masked_softmax_fusion": "how the program that trained it fuses its steps",
    },
    gguf=Gguf(
        "gptneox",
        keys={
            **SHAPE,
            "layer_norm_eps": "attention.layer_norm_epsilon",
            "rotary_emb_base": "rope.freq_base",
            "use_parallel_residual": "use_parallel_residual",
        },
        tensors=gguf_tensors(QKV),
        fixed={"tie_word_embeddings": False},
        read=_gguf_read,
        write=_gguf_write,
    ),
)
