"""Marian: the encoder-decoder of 2017 as translation models are trained with it (Junczys-Dowmunt et al. 2018,
https://arxiv.org/abs/1804.00344; OPUS-MT, Tiedemann & Thottingal 2020). In its waves all sines stand before all
cosines, and the logits have a bias."""

from __future__ import annotations

from typing import Any

from anyformer.families.bart import IGNORED, read_stack, size, write_stacks
from anyformer.families.bart import tensors as bart_tensors
from anyformer.families.config import Config
from anyformer.families.family import Family
from anyformer.families.names import Table, Unused
from anyformer.spec import EmbeddingHead, Initialization, LanguageModelHead, Sinusoidal, Transformer

_WAVES = Sinusoidal(interleaved=False)


def read(config: Config) -> Transformer:
    config.expect("is_encoder_decoder", True)
    shared = config.flag("share_encoder_decoder_embeddings", default=True)
    tied = config.flag("tie_word_embeddings", default=True)
    if shared and not tied:
        config.refuse(
            "tie_word_embeddings is false and share_encoder_decoder_embeddings true, which versions of transformers "
            "take for different models; make the second false"
        )
    vocabulary = config.size("vocab_size", *(["decoder_vocab_size"] if shared else []), default=58101)
    target = config.size("decoder_vocab_size", default=vocabulary)
    biased = config.flag("final_logits_bias", default=True)
    return Transformer(
        encoder=read_stack(config, "encoder", vocabulary, position=_WAVES),
        decoder=read_stack(config, "decoder", target, position=_WAVES),
        shared_embedding=shared,
        head=config.head(LanguageModelHead(tied=tied, bias=biased), EmbeddingHead()),
        context=config.size("max_position_embeddings", default=1024),
        initialization=Initialization(std=config.number("init_std", default=0.02)),
    )


def write(spec: Transformer) -> dict[str, Any]:
    # The one attribute that transformers does not know: to it, a bias that the file lacks is nought.
    unbiased = isinstance(spec.head, LanguageModelHead) and not spec.head.bias
    return {
        **write_stacks(spec),
        "decoder_vocab_size": spec.output.embeddings.vocabulary,
        "share_encoder_decoder_embeddings": spec.shared_embedding,
        "max_position_embeddings": spec.context or 1024,
        **({"final_logits_bias": False} if unbiased else {}),
    }


def tensors(spec: Transformer) -> Table:
    waves = "sines and cosines, which follow from the width"
    return (
        *bart_tensors(spec),
        *(Unused(f"model.{stack}.embed_positions.weight", waves) for stack in ("encoder", "decoder")),
    )


_OPUS = {"scale_embedding": True, "activation_function": "swish", "max_position_embeddings": 512}

family = Family(
    name="marian",
    title="Marian",
    paper="https://arxiv.org/abs/1804.00344",
    model_types=("marian",),
    architectures={"MarianMTModel": "language_model", "MarianModel": "embedding"},
    presets={
        "tiny": size(64, 2, 4, 256, vocab_size=1024, **_OPUS),
        "opus-mt": size(512, 6, 8, 2048, vocab_size=58101, **_OPUS),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="model.",
    defaults={
        "add_final_layer_norm": False,
        "normalize_before": False,
        "normalize_embedding": False,
        "static_position_embeddings": True,
    },
    ignored={
        **IGNORED,
        "add_bias_logits": "the bias of the logits counts whatever this says",
        "extra_pos_embeddings": "rows before the first position of a table; waves have no table",
    },
    # Ids that every vocabulary has. A pair of languages has its own, and its files say so.
    generation={"decoder_start_token_id": 1, "pad_token_id": 1, "eos_token_id": 0},
)
