"""LLaMA 1 to 3.x and all of its shape, SmolLM among them: Touvron et al. 2023, https://arxiv.org/abs/2302.13971, and
Grattafiori et al. 2024, https://arxiv.org/abs/2407.21783."""

from __future__ import annotations

from math import pi
from typing import Any

from anyformer.errors import SpecError
from anyformer.families.config import Config, activation_name
from anyformer.families.family import Family, Gguf, GgufSource, branch, given
from anyformer.families.names import PairedRows, Table, Tensor, Unused
from anyformer.families.rotary import rotary, rotary_attributes
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
    Rotary,
    SequenceClassificationHead,
    Stack,
    TokenClassificationHead,
    Transformer,
)


def read(config: Config) -> Transformer:
    dim, heads = config.size("hidden_size"), config.size("num_attention_heads")
    head_dim = config.size("head_dim", default=dim // heads)
    context = config.size("max_position_embeddings", "max_sequence_length", default=2048)
    norm = Norm(kind="rms", eps=config.number("rms_norm_eps", default=1e-6))
    bias = config.flag("attention_bias", default=False)
    attention = Attention(
        heads=heads,
        kv_heads=config.size("num_key_value_heads", default=heads),
        head_dim=head_dim,
        visibility="causal",
        position=rotary(config, head_dim=head_dim, context=context),
        bias=bias,
        output_bias=bias,
        dropout=config.number("attention_dropout", default=0.0),
    )
    feed_forward = FeedForward(
        hidden=config.size("intermediate_size"),
        activation=config.activation("hidden_act", default="silu"),
        gated=True,
        bias=config.flag("mlp_bias", default=False),
    )
    stack = Stack(
        dim=dim,
        depth=config.size("num_hidden_layers"),
        pattern=(Block(branches=(Branch(mixer=attention, norm=norm), Branch(mixer=feed_forward, norm=norm))),),
        embeddings=Embeddings(vocabulary=config.size("vocab_size")),
        norm=norm,
    )
    head = config.head(
        LanguageModelHead(tied=config.flag("tie_word_embeddings", default=False)),
        SequenceClassificationHead(labels=config.labels(), pooling="last", activation=None, bias=False),
        TokenClassificationHead(labels=config.labels(), dropout=config.number("classifier_dropout", default=0.1)),
        EmbeddingHead(),
    )
    start = Initialization(std=config.number("initializer_range", default=0.02))
    return Transformer(decoder=stack, head=head, context=context, initialization=start)


def write(spec: Transformer) -> dict[str, Any]:
    stack = given(spec.decoder, Stack, "a decoder")
    attention, norm = branch(stack, "attention", Attention)
    feed_forward, _ = branch(stack, "feed_forward", FeedForward)
    attributes = {
        "vocab_size": stack.embeddings.vocabulary,
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "intermediate_size": feed_forward.hidden,
        "hidden_act": activation_name(feed_forward.activation),
        "rms_norm_eps": norm.eps,
        "max_position_embeddings": spec.context or 2048,
        **rotary_attributes(given(attention.position, Rotary, "rotary positions")),
        "attention_bias": attention.bias,
        "attention_dropout": attention.dropout,
        "mlp_bias": feed_forward.bias,
        "initializer_range": spec.initialization.std or 0.02,
    }
    if isinstance(spec.head, TokenClassificationHead):
        attributes["classifier_dropout"] = spec.head.dropout
    return attributes


def tensors(spec: Transformer) -> Table:
    return (
        Tensor("model.embed_tokens.weight", "decoder.embeddings.tokens.weight"),
        Tensor("model.layers.*.input_layernorm.weight", "decoder.layers.*.attention_norm.weight"),
        Tensor("model.layers.*.self_attn.q_proj.*", "decoder.layers.*.attention.query.*"),
        Tensor("model.layers.*.self_attn.k_proj.*", "decoder.layers.*.attention.key.*"),
        Tensor("model.layers.*.self_attn.v_proj.*", "decoder.layers.*.attention.value.*"),
        Tensor("model.layers.*.self_attn.o_proj.*", "decoder.layers.*.attention.output.*"),
        Tensor("model.layers.*.post_attention_layernorm.weight", "decoder.layers.*.feed_forward_norm.weight"),
        Tensor("model.layers.*.mlp.gate_proj.*", "decoder.layers.*.feed_forward.gate.*"),
        Tensor("model.layers.*.mlp.up_proj.*", "decoder.layers.*.feed_forward.up.*"),
        Tensor("model.layers.*.mlp.down_proj.*", "decoder.layers.*.feed_forward.down.*"),
        Tensor("model.norm.weight", "decoder.norm.weight"),
        Tensor("lm_head.weight" if spec.head.kind == "language_model" else "score.weight", "head.output.weight"),
        Tensor("score.bias", "head.output.bias"),
    )


def read_gguf(source: GgufSource) -> dict[str, Any]:
    """llama.cpp's metadata keys; Llama 3.1's scaling is stored as a tensor of divisors instead."""
    metadata = source.metadata
    dim, heads = metadata.size("embedding_length"), metadata.size("attention.head_count")
    head_dim = metadata.size("attention.key_length", default=dim // heads)
    base, context = metadata.number("rope.freq_base", default=10000.0), metadata.size("context_length")
    for name, wanted in (
        ("rope.dimension_count", head_dim),
        ("attention.value_length", head_dim),
        ("rope.scaling.type", "none"),
        ("expert_count", 0),
        ("expert_used_count", 0),
    ):
        metadata.expect(name, wanted)
    vocabulary = source.shapes["token_embd.weight"][0]
    metadata.expect("vocab_size", vocabulary)
    scaling = None
    if "rope_freqs.weight" in source.shapes:
        scaling = _scaling(source.values("rope_freqs.weight"), base, metadata.where)
    return {
        "vocab_size": vocabulary,
        "hidden_size": dim,
        "num_hidden_layers": metadata.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.size("attention.head_count_kv", default=heads),
        "head_dim": head_dim,
        "intermediate_size": metadata.size("feed_forward_length"),
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": context,
        "rope_theta": base,
        "rope_scaling": scaling,
        "attention_bias": "blk.0.attn_q.bias" in source.shapes,
        "mlp_bias": "blk.0.ffn_gate.bias" in source.shapes,
        "tie_word_embeddings": "output.weight" not in source.shapes,
    }


def gguf_tensors(spec: Transformer) -> Table:
    attention, _ = branch(spec.decoder, "attention", Attention)
    query, key = (PairedRows(attention.heads),), (PairedRows(attention.kv_heads),)
    return (
        Tensor("token_embd.weight", "decoder.embeddings.tokens.weight"),
        Tensor("blk.*.attn_norm.weight", "decoder.layers.*.attention_norm.weight"),
        Tensor("blk.*.attn_q.*", "decoder.layers.*.attention.query.*", query),
        Tensor("blk.*.attn_k.*", "decoder.layers.*.attention.key.*", key),
        Tensor("blk.*.attn_v.*", "decoder.layers.*.attention.value.*"),
        Tensor("blk.*.attn_output.*", "decoder.layers.*.attention.output.*"),
        Tensor("blk.*.ffn_norm.weight", "decoder.layers.*.feed_forward_norm.weight"),
        Tensor("blk.*.ffn_gate.*", "decoder.layers.*.feed_forward.gate.*"),
        Tensor("blk.*.ffn_up.*", "decoder.layers.*.feed_forward.up.*"),
        Tensor("blk.*.ffn_down.*", "decoder.layers.*.feed_forward.down.*"),
        Tensor("output_norm.weight", "decoder.norm.weight"),
        Tensor("output.weight", "head.output.weight"),
        Unused("rope_freqs.weight", "the divisors of Llama 3.1's scaling, read into the spec"),
    )


def _scaling(divisors: list[float], base: float, where: str) -> dict[str, Any]:
    """Llama 3.1's scaling from its divisors of the rotary frequencies, one for each pair of channels."""
    low, high, original, factor = 1.0, 4.0, 8192, round(max(divisors), 3)
    for index, divisor in enumerate(divisors):
        turns = original / (2 * pi * base ** (index / len(divisors)))
        ramp = min(1.0, max(0.0, (turns - low) / (high - low)))
        if abs(divisor * ((1 - ramp) / factor + ramp) - 1) > 1e-4:
            raise SpecError(f"{where}: rope_freqs.weight does not hold the divisors of Llama 3.1's rotary scaling")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _size(
    dim: int, layers: int, heads: int, kv_heads: int, hidden: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": hidden,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5,
        **more,
    }


def _llama3(factor: float) -> dict[str, Any]:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    return {"rope_theta": 500000.0, "rope_scaling": scaling, "max_position_embeddings": 131072}


_SMOL = {"max_position_embeddings": 8192, "tie_word_embeddings": True}
_TWO = {"max_position_embeddings": 4096}

family = Family(
    name="llama",
    title="LLaMA",
    paper="https://arxiv.org/abs/2302.13971",
    model_types=("llama",),
    architectures={
        "LlamaForCausalLM": "language_model",
        "LlamaModel": "embedding",
        "LlamaForSequenceClassification": "sequence_classification",
        "LlamaForTokenClassification": "token_classification",
    },
    presets={
        "tiny": _size(128, 2, 4, 2, 352, 512, max_position_embeddings=512, tie_word_embeddings=True),
        "135m": _size(576, 30, 9, 3, 1536, 49152, rope_theta=100000.0, **_SMOL),
        "360m": _size(960, 32, 15, 5, 2560, 49152, rope_theta=100000.0, **_SMOL),
        "1.7b": _size(2048, 24, 32, 32, 8192, 49152, rope_theta=130000.0, **_SMOL),
        "1b": _size(2048, 16, 32, 8, 8192, 128256, tie_word_embeddings=True, **_llama3(32.0)),
        "3b": _size(3072, 28, 24, 8, 8192, 128256, tie_word_embeddings=True, **_llama3(32.0)),
        "7b": _size(4096, 32, 32, 32, 11008, 32000, **_TWO),
        "8b": _size(4096, 32, 32, 8, 14336, 128256, **_llama3(8.0)),
        "13b": _size(5120, 40, 40, 40, 13824, 32000, **_TWO),
        "70b": _size(8192, 80, 64, 8, 28672, 128256, **_llama3(8.0)),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="model.",
    defaults={"rope_interleaved": False},
    ignored={"is_llama_config": "a note of the converter that wrote SmolLM"},
    gguf=Gguf("llama", read_gguf, gguf_tensors),
)
