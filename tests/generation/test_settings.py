"""Settings: the file's defaults, the caller's over them, and what neither may ask."""

from __future__ import annotations

from typing import Any

import pytest

from anyformer.errors import InputError
from anyformer.generation import Settings


def test_greedy_is_the_default() -> None:
    """Where nothing is said, the likeliest token; sampling settings of a file that does not sample do not make it."""
    assert Settings.of({}) == Settings()
    assert Settings().temperature == 0
    assert Settings.of({"temperature": 0.7}).temperature == 0
    assert Settings.of({"temperature": 0.7, "do_sample": False}).temperature == 0


@pytest.mark.parametrize(
    ("config", "temperature"),
    [
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0.3}, 0.3),
        ({"do_sample": True, "temperature": None}, 1.0),
    ],
)
def test_a_file_that_samples_does(config: dict, temperature: float) -> None:
    """At its temperature, or at one."""
    assert Settings.of(config).temperature == temperature


def test_the_caller_wins_over_the_file_and_the_file_over_the_defaults() -> None:
    """Key by key; None leaves a setting to the file; what a file says beside generation is passed over."""
    config = {
        "do_sample": True,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": None,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "pad_token_id": 0,
        "decoder_start_token_id": 4,
        "transformers_version": "4.40",
        "max_new_tokens": 9,
    }
    found = Settings.of(config, temperature=0.0, top_k=None, min_p=0.1, eos=5)
    assert found == Settings(temperature=0.0, top_k=7, min_p=0.1, bos=1, eos=(5,), pad=0, start=4, max_new_tokens=9)
    assert Settings.of(config).eos == (2, 3)
    assert Settings.of({"eos_token_id": 2}).eos == (2,)
    assert Settings.of(config, eos=[6, 7]).eos == (6, 7)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -0.5}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, "max_new_tokens"),
        ({"eos": "</s>"}, "eos"),
        ({"eos": 2.5}, "eos"),
        ({"forced_eos": "</s>"}, "forced_eos"),
        ({"bad_words": [[]]}, "bad_words.0"),
        ({"bad_words": [5]}, "bad_words.0"),
        ({"bad_words": 5}, "bad_words"),
        ({"max_tokens": 5}, "max_tokens"),
    ],
)
def test_a_setting_that_cannot_be_is_named(given: dict[str, Any], name: str) -> None:
    """One sentence, from the caller or from the file."""
    with pytest.raises(InputError, match=f"the generation setting '{name}") as error:
        Settings.of({}, **given)
    assert "\n" not in str(error.value) and "cannot be used" in str(error.value)


def test_a_file_may_be_wrong_too() -> None:
    """The same sentence."""
    with pytest.raises(InputError, match="the generation setting 'top_p' cannot be used"):
        Settings.of({"top_p": -1})


def test_ids_that_are_forced_and_words_that_are_banned() -> None:
    """A file's names for them; one id or several; a bad word that is an end token alone does not count."""
    file = {"forced_bos_token_id": 7, "forced_eos_token_id": [2], "bad_words_ids": [[58100], [3, 4], [2]]}
    found = Settings.of({**file, "eos_token_id": 2})
    assert (found.forced_bos, found.forced_eos) == (7, (2,))
    assert found.bad_words == ((58100,), (3, 4), (2,))
    assert found.banned == ((58100,), (3, 4))
    assert Settings.of(file).banned == found.bad_words
    assert Settings.of({"forced_eos_token_id": 2}).forced_eos == (2,)
    assert Settings.of(file, bad_words=(), forced_eos=(), forced_bos=3) == Settings(forced_bos=3)


def test_how_the_caller_chooses_takes_the_place_of_how_the_file_does() -> None:
    """A file's beams hold unless the caller draws; a file that samples does not where the caller searches."""
    beams = {"num_beams": 6, "length_penalty": 0.6, "early_stopping": True, "num_return_sequences": 2}
    found = Settings.of(beams)
    assert (found.beams, found.length_penalty, found.early_stopping, found.answers) == (6, 0.6, True, 2)
    assert Settings.of(beams, temperature=0.7).beams == Settings.of(beams, temperature=0.7).answers == 1
    assert Settings.of(beams, temperature=0).beams == 6
    assert Settings.of(beams, beams=1).answers == 1
    sampled = {"do_sample": True, "temperature": 0.4}
    assert Settings.of(sampled, beams=3).temperature == 0 and Settings.of(sampled, beams=1).temperature == 0.4
    assert Settings.of({**sampled, "early_stopping": "never"}).early_stopping == "never"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"beams": 2, "temperature": 1.0}, "beam search draws nothing: set temperature to 0, or beams to 1"),
        ({"beams": 2, "answers": 3}, "2 beams give no 3 answers; ask for fewer, or give more beams"),
        ({"answers": 2}, "taking the likeliest token gives one answer; for several, set beams, or a temperature"),
    ],
)
def test_settings_that_exclude_each_other(given: dict[str, Any], complaint: str) -> None:
    """One sentence that says which, and what to do."""
    with pytest.raises(InputError, match=f"^{complaint}"):
        Settings.of({}, **given)
