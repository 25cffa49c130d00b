"""GPT-J: attention and feed-forward side by side, from one norm; rotary positions for neighbouring channels (Wang and
Komatsuzaki 2021, https://github.com/kingoflolz/mesh-transformer-jax)."""

from __future__ import annotations

from typing import Any

from anyformer.families.config import Config
from anyformer.families.family import Family, branch, decoder_of, given
from anyformer.families.gpt import BUFFERS, decoder, head_tensors, read_head, widths
from anyformer.families.gpt2 import SUMMARY, read_feed_forward, write_decoder
from anyformer.families.names import Table, Tensor
from anyformer.spec import Attention, Embeddings, Initialization, Norm, Rotary, Transformer


def read(config: Config) -> Transformer:
    dim, heads, head_dim = widths(config, ("n_embd", "hidden_size"), ("n_head", "num_attention_heads"))
    turned = config.size("rotary_dim", default=64)
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        visibility="causal",
        position=Rotary(dim=None if turned == head_dim else turned, interleaved=True),
        dropout=config.number("attn_pdrop", default=0.0),
    )
    stack = decoder(
        attention,
        read_feed_forward(config, dim),
        Norm(kind="layer", eps=config.number("layer_norm_epsilon", default=1e-5), bias=True),
        Embeddings(
            vocabulary=config.size("vocab_size", default=50400), dropout=config.number("embd_pdrop", default=0.0)
        ),
        dim=dim,
        depth=config.size("n_layer", "num_hidden_layers"),
        dropout=config.number("resid_pdrop", default=0.0),
        parallel=True,
        shared=True,
    )
    return Transformer(
        decoder=stack,
        head=read_head(config, tied=False, bias=True),
        context=config.size("n_positions", "max_position_embeddings", default=2048),
        initialization=Initialization(std=config.number("initializer_range", default=0.02)),
    )


def write(spec: Transformer) -> dict[str, Any]:
    attention, _ = branch(decoder_of(spec), "attention", Attention)
    position = given(attention.position, Rotary, "rotary positions")
    return {
        **write_decoder(spec),
        "n_positions": spec.context or 2048,
        "rotary_dim": position.dim or attention.head_dim,
    }


def tensors(spec: Transformer) -> Table:
    layer, ours = "transformer.h.*", "decoder.layers.*"
    return (
        Tensor("transformer.wte.weight", "decoder.embeddings.tokens.weight"),
        Tensor(f"{layer}.ln_1.*", f"{ours}.attention_norm.*"),
        Tensor(f"{layer}.attn.q_proj.*", f"{ours}.attention.query.*"),
        Tensor(f"{layer}.attn.k_proj.*", f"{ours}.attention.key.*"),
        Tensor(f"{layer}.attn.v_proj.*", f"{ours}.attention.value.*"),
        Tensor(f"{layer}.attn.out_proj.*", f"{ours}.attention.output.*"),
        Tensor(f"{layer}.mlp.fc_in.*", f"{ours}.feed_forward.up.*"),
        Tensor(f"{layer}.mlp.fc_out.*", f"{ours}.feed_forward.down.*"),
        Tensor("transformer.ln_f.*", "decoder.norm.*"),
        *head_tensors(spec.head),
        *BUFFERS,
    )


family = Family(
    name="gptj",
    title="GPT-J",
    paper="https://github.com/kingoflolz/mesh-transformer-jax",
    model_types=("gptj",),
    architectures={
        "GPTJForCausalLM": "language_model",
        "GPTJModel": "embedding",
        "GPTJForSequenceClassification": "sequence_classification",
    },
    presets={
        "tiny": {"vocab_size": 512, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 128},
        "6b": {"vocab_size": 50400, "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "n_positions": 2048},
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="transformer.",
    defaults={"rotary": True, "scale_attn_weights": True},
    ignored=SUMMARY,
)
