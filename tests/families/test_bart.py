"""BART's own: a buffer of logits' biases that every file holds, and that only counts where it is not nought."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer import families
from anyformer.errors import CheckpointError, SpecError


def test_final_logits_bias(tmp_path: Path) -> None:
    """All nought, it is left aside with its reason and saved again; otherwise it is refused by name."""
    af.build(families.bart("tiny"), seed=0).save(tmp_path)
    file = tmp_path / "model.safetensors"
    saved = load_file(file)
    save_file({**saved, "final_logits_bias": torch.zeros(1, 1024)}, file, {"format": "pt"})
    model = af.load(tmp_path, device="cpu")
    assert model.carried is not None and "all nought" in model.carried.reasons["final_logits_bias"]
    model.save(tmp_path / "again")
    assert torch.equal(load_file(tmp_path / "again" / "model.safetensors")["final_logits_bias"], torch.zeros(1, 1024))
    save_file({**saved, "final_logits_bias": torch.eye(1, 1024)}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="holds final_logits_bias, which its config has no place for"):
        af.load(tmp_path, device="cpu")


def test_config_of_a_published_file() -> None:
    """The attributes that bart-large's config.json has held since 2020, those of unused variants among them."""
    old = {
        "num_hidden_layers": 12,
        "add_bias_logits": False,
        "add_final_layer_norm": False,
        "classif_dropout": 0.1,
        "classifier_dropout": 0.0,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "normalize_before": False,
        "normalize_embedding": True,
        "scale_embedding": False,
        "static_position_embeddings": False,
        "is_encoder_decoder": True,
        "forced_eos_token_id": 2,
        "early_stopping": True,
    }
    assert families.bart.parse({**families.bart.presets["large"], **old})[0] == families.bart("large")
    with pytest.raises(SpecError, match=r"normalize_before is true.*ignore=\['normalize_before'\]"):
        families.bart("large", normalize_before=True)
