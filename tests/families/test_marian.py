"""Marian's own: a bias of the logits, tables that languages share or not, and files as they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import odd
import pytest
import torch
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer import families
from anyformer.errors import CheckpointError, SpecError
from anyformer.generation import Settings


def test_config_of_a_published_file() -> None:
    """The attributes that opus-mt-en-de's config.json has besides the sizes: those of unused variants, and settings of
    generation, which begins with padding and never writes it."""
    generation = {
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 58100,
        "decoder_start_token_id": 58100,
        "forced_eos_token_id": 0,
        "bad_words_ids": [[58100]],
        "num_beams": 6,
        "max_length": 512,
    }
    old = {
        "_num_labels": 3,
        "add_bias_logits": False,
        "add_final_layer_norm": False,
        "classif_dropout": 0.0,
        "classifier_dropout": 0.0,
        "decoder_layerdrop": 0.0,
        "decoder_vocab_size": 58101,
        "encoder_layerdrop": 0.0,
        "extra_pos_embeddings": 58101,
        "gradient_checkpointing": False,
        "is_encoder_decoder": True,
        "normalize_before": False,
        "normalize_embedding": False,
        "num_hidden_layers": 6,
        "share_encoder_decoder_embeddings": True,
        "static_position_embeddings": True,
    }
    assert families.marian.parse({**families.marian.presets["opus-mt"], **old, **generation})[0] == families.marian(
        "opus-mt"
    )
    settings = Settings.of(generation)
    assert (settings.start, settings.eos, settings.pad) == (58100, (0,), 58100)
    assert (settings.forced_eos, settings.bad_words) == ((0,), ((58100,),))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("normalize_before", True),
        ("normalize_embedding", True),
        ("add_final_layer_norm", True),
        ("static_position_embeddings", False),
        ("is_encoder_decoder", False),
    ],
)
def test_variants_that_are_other_models(name: str, value: Any) -> None:
    """Each is refused by its name."""
    with pytest.raises(SpecError, match=rf"{name} is .*ignore=\['{name}'\]"):
        families.marian("tiny", **{name: value})


def test_tables_that_contradict_each_other() -> None:
    """One table for two vocabularies, and one that is shared by two and not by the third, are refused."""
    with pytest.raises(SpecError, match="vocab_size and decoder_vocab_size are one thing and differ"):
        families.marian("tiny", decoder_vocab_size=1000)
    with pytest.raises(SpecError, match="tie_word_embeddings is false and share_encoder_decoder_embeddings true"):
        families.marian("tiny", tie_word_embeddings=False)
    apart = families.marian("tiny", share_encoder_decoder_embeddings=False, decoder_vocab_size=1000)
    assert [stack.embeddings.vocabulary for stack in apart.stacks().values()] == [1024, 1000]


def test_a_bias_that_was_never_trained(tmp_path: Path) -> None:
    """Where the config says that there is none, transformers' nought is carried; any other is refused by name."""
    af.build(families.marian("tiny", final_logits_bias=False), seed=0).save(tmp_path / "ours")
    model = odd.reference().MarianMTModel.from_pretrained(tmp_path / "ours")
    assert not model.final_logits_bias.any()
    model.save_pretrained(tmp_path / "theirs")
    again = af.load(tmp_path / "theirs", device="cpu")
    assert again.spec.head == families.original("tiny").head
    assert again.carried is not None and "all nought" in again.carried.reasons["final_logits_bias"]
    file = tmp_path / "theirs" / "model.safetensors"
    save_file({**load_file(file), "final_logits_bias": torch.eye(1, 1024)}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="holds final_logits_bias, which its config has no place for"):
        af.load(tmp_path / "theirs", device="cpu")


def test_tables_of_waves_are_carried(tmp_path: Path) -> None:
    """transformers saves the waves of a model without a head; they are left aside, and saved again."""
    spec = families.marian("tiny", architectures=["MarianModel"])
    theirs = odd.reference_model(families.marian, spec, "MarianModel", seed=0)
    theirs.save_pretrained(tmp_path)
    ours = af.load(tmp_path, device="cpu")
    assert ours.carried is not None
    assert {"encoder.embed_positions.weight", "decoder.embed_positions.weight"} <= ours.carried.reasons.keys()
    ours.save(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == theirs.state_dict().keys() - {
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
    }
