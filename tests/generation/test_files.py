"""What files say of generation."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import odd as odd_families
import pytest
import torch

from anyformer import families
from anyformer.generation import Settings
from anyformer.generation.files import NAMES
from anyformer.model import load


def test_every_key_leads_to_a_setting() -> None:
    """And no two to the same."""
    assert set(NAMES.values()) <= set(Settings.model_fields) and len(set(NAMES.values())) == len(NAMES)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"encoder_no_repeat_ngram_size": 4}, {"encoder_no_repeat_ngram": 4}),
        ({"suppress_tokens": [1, 2]}, {"suppress": (1, 2)}),
        ({"suppress_tokens": []}, {}),
        ({"begin_suppress_tokens": [220, 50257]}, {"begin_suppress": (220, 50257)}),
        ({"exponential_decay_length_penalty": [20, 1.01]}, {"exponential_decay": (20, 1.01)}),
        ({"encoder_repetition_penalty": 1.0, "guidance_scale": 1, "sequence_bias": None, "max_time": None}, {}),
    ],
)
def test_what_a_file_says(said: dict[str, Any], found: dict[str, Any]) -> None:
    """By the names that it has for it; and what changes nothing is passed over in silence."""
    assert Settings.of(said) == Settings(**found)


def test_how_long_an_answer_to_a_source_may_be() -> None:
    """`max_length` counts the start token; it yields to `max_new_tokens` and to the caller; of a decoder it is no wish
    for answers as long as its context."""
    file = {"max_length": 142, "decoder_start_token_id": 2}
    assert Settings.of(file).max_new_tokens == 141
    assert Settings.of({**file, "max_new_tokens": 30}).max_new_tokens == 30
    assert Settings.of(file, max_new_tokens=7).max_new_tokens == 7
    assert Settings.of({"max_length": 4096}).max_new_tokens == Settings().max_new_tokens


def test_what_nothing_here_knows_is_warned_of() -> None:
    """In one sentence that names all of it, and the rest of the file holds."""
    file = {"sequence_bias": [[[3], -5.0]], "epsilon_cutoff": 1e-3, "top_k": 3, "transformers_version": "5"}
    with pytest.warns(UserWarning, match="ask for sequence_bias, epsilon_cutoff, which nothing here knows") as said:
        assert Settings.of(file) == Settings(top_k=3)
    assert len(said) == 1


def test_a_file_that_asks_for_it_is_followed_from_disk(tmp_path: Path) -> None:
    """Saved by transformers and loaded here, beside a source of which nothing may be copied: the same ids, as far as
    `max_length` goes."""
    transformers = odd_families.reference()
    family = families.named("t5")
    architecture = "T5ForConditionalGeneration"
    theirs = odd_families.reference_model(family, odd_families.odd_spec(family, 1, architecture), architecture, seed=1)
    source = torch.arange(6, 27).reshape(3, 7)
    plain = {"do_sample": False, "max_length": 12, "pad_token_id": 0, "decoder_start_token_id": 0}
    theirs.generation_config = transformers.GenerationConfig(**plain)
    free = theirs.generate(source, use_cache=False)[:, 1:]
    theirs.generation_config = transformers.GenerationConfig(
        **plain,
        eos_token_id=3,
        encoder_no_repeat_ngram_size=1,
        suppress_tokens=[int(free[0, 0])],
        begin_suppress_tokens=free[:, 0].tolist(),
        exponential_decay_length_penalty=(5, 1.5),
    )
    wanted = theirs.generate(source, use_cache=False)[:, 1:]
    theirs.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load(tmp_path, device="cpu").generate(source)
    assert torch.equal(found, wanted) and not torch.equal(found, free)
