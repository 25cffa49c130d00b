"""GPT-2: a decoder with learned positions, its matrices stored transposed (Radford et al. 2019,
https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf)."""

from __future__ import annotations

from typing import Any

from anyformer.families.config import Config, activation_name
from anyformer.families.family import Family, Gguf, branch, decoder_of, given
from anyformer.families.gguf_names import QKV
from anyformer.families.gguf_names import tensors as gguf_tensors
from anyformer.families.gpt import BUFFERS, decoder, head_tensors, read_head, widths, write_head
from anyformer.families.names import Table, Tensor, Transpose
from anyformer.spec import Attention, Embeddings, FeedForward, Initialization, Learned, Norm, Transformer


def read(config: Config) -> Transformer:
    dim, heads, head_dim = widths(config, ("n_embd", "hidden_size"), ("n_head", "num_attention_heads"))
    context = config.size("n_positions", "max_position_embeddings", default=1024)
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        visibility="causal",
        bias=True,
        output_bias=True,
        scale=None if config.flag("scale_attn_weights", default=True) else 1.0,
        dropout=config.number("attn_pdrop", default=0.1),
    )
    stack = decoder(
        attention,
        read_feed_forward(config, dim),
        Norm(kind="layer", eps=config.number("layer_norm_epsilon", default=1e-5), bias=True),
        Embeddings(
            vocabulary=config.size("vocab_size", default=50257),
            position=Learned(size=context),
            dropout=config.number("embd_pdrop", default=0.1),
        ),
        dim=dim,
        depth=config.size("n_layer", "num_hidden_layers"),
        dropout=config.number("resid_pdrop", default=0.1),
    )
    start = Initialization(std=config.number("initializer_range", default=0.02), depth_scaled=True)
    return Transformer(decoder=stack, head=read_head(config, tied=True), context=context, initialization=start)


def read_feed_forward(config: Config, dim: int) -> FeedForward:
    """The feed-forward of GPT-2 and GPT-J."""
    return FeedForward(
        hidden=config.size("n_inner", default=4 * dim),
        activation=config.activation("activation_function", default="gelu_new"),
        bias=True,
    )


def write(spec: Transformer) -> dict[str, Any]:
    attention, _ = branch(decoder_of(spec), "attention", Attention)
    position = given(decoder_of(spec).embeddings.position, Learned, "learned positions")
    return {**write_decoder(spec), "n_positions": position.size, "scale_attn_weights": attention.scale is None}


def write_decoder(spec: Transformer) -> dict[str, Any]:
    """The attributes that GPT-2 and GPT-J have in common, but for the number of positions."""
    stack = decoder_of(spec)
    attention, norm = branch(stack, "attention", Attention)
    feed_forward, _ = branch(stack, "feed_forward", FeedForward)
    activation = "gelu_new" if feed_forward.activation == "gelu_tanh" else activation_name(feed_forward.activation)
    return {
        "vocab_size": stack.embeddings.vocabulary,
        "n_embd": stack.dim,
        "n_layer": stack.depth,
        "n_head": attention.heads,
        "n_inner": None if feed_forward.hidden == 4 * stack.dim else feed_forward.hidden,
        "activation_function": activation,
        "resid_pdrop": stack.pattern[0].branches[0].dropout,
        "embd_pdrop": stack.embeddings.dropout,
        "attn_pdrop": attention.dropout,
        "layer_norm_epsilon": norm.eps,
        "initializer_range": spec.initialization.std or 0.02,
        **write_head(spec.head),
    }


def tensors(spec: Transformer) -> Table:
    layer, ours, turned = "transformer.h.*", "decoder.layers.*", (Transpose(),)
    qkv = (f"{ours}.attention.query.*", f"{ours}.attention.key.*", f"{ours}.attention.value.*")
    return (
        Tensor("transformer.wte.weight", "decoder.embeddings.tokens.weight"),
        Tensor("transformer.wpe.weight", "decoder.embeddings.positions.weight"),
        Tensor(f"{layer}.ln_1.*", f"{ours}.attention_norm.*"),
        Tensor(f"{layer}.attn.c_attn.*", qkv, turned),
        Tensor(f"{layer}.attn.c_proj.*", f"{ours}.attention.output.*", turned),
        Tensor(f"{layer}.ln_2.*", f"{ours}.feed_forward_norm.*"),
        Tensor(f"{layer}.mlp.c_fc.*", f"{ours}.feed_forward.up.*", turned),
        Tensor(f"{layer}.mlp.c_proj.*", f"{ours}.feed_forward.down.*", turned),
        Tensor("transformer.ln_f.*", "decoder.norm.*"),
        *head_tensors(spec.head),
        *BUFFERS,
    )


#: Attributes of a head that picks among several continuations, which only GPT-2's double-headed model has.
SUMMARY: dict[str, str] = dict.fromkeys(
    ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
    "of a head that picks among several continuations",
)


def _size(dim: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {"vocab_size": 50257, "n_embd": dim, "n_layer": layers, "n_head": heads, "n_positions": 1024, **more}


family = Family(
    name="gpt2",
    title="GPT-2",
    paper="https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf",
    model_types=("gpt2",),
    architectures={
        "GPT2LMHeadModel": "language_model",
        "GPT2Model": "embedding",
        "GPT2ForSequenceClassification": "sequence_classification",
        "GPT2ForTokenClassification": "token_classification",
    },
    presets={
        "tiny": _size(64, 2, 4, vocab_size=512, n_positions=128),
        "distil": _size(768, 6, 12),
        "small": _size(768, 12, 12),
        "medium": _size(1024, 24, 16),
        "large": _size(1280, 36, 20),
        "xl": _size(1600, 48, 25),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="transformer.",
    defaults={"scale_attn_by_inverse_layer_idx": False},
    ignored={
        **SUMMARY,
        "n_ctx": "the size of a buffer in old versions; n_positions is the length",
        "reorder_and_upcast_attn": "in which type scores are computed; here always float32",
        "n_special": "how many tokens fine-tuning added, in old versions; vocab_size counts them",
        "predict_special_tokens": "whether fine-tuning was to predict those tokens, in old versions",
    },
    gguf=Gguf(
        "gpt2",
        keys={
            "n_embd": "embedding_length",
            "n_layer": "block_count",
            "n_head": "attention.head_count",
            "n_inner": "feed_forward_length",
            "n_positions": "context_length",
            "layer_norm_epsilon": "attention.layer_norm_epsilon",
        },
        tensors=gguf_tensors(QKV),
    ),
)
