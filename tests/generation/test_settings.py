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
        ({"typical_p": 0.0}, "typical_p"),
        ({"typical_p": 1.5}, "typical_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty"),
        ({"presence_penalty": "much"}, "presence_penalty"),
        ({"penalty_alpha": 1.5}, "penalty_alpha"),
        ({"penalty_alpha": -0.1}, "penalty_alpha"),
        ({"beam_groups": 0}, "beam_groups"),
        ({"diversity_penalty": -1.0}, "diversity_penalty"),
        ({"stop": ""}, "stop.0"),
        ({"stop": ["a", 5]}, "stop.1"),
        ({"stop": 5}, "stop"),
        ({"logprobs": -1}, "logprobs"),
        ({"seed": "x"}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": []}, "seed"),
        ({"seed": [1, None]}, "seed"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, "max_new_tokens"),
        ({"eos": "</s>"}, "eos"),
        ({"eos": 2.5}, "eos"),
        ({"forced_eos": "</s>"}, "forced_eos"),
        ({"length_penalty": 1000.0}, "length_penalty"),
        ({"repetition_penalty": 1e300}, "repetition_penalty"),
        ({"frequency_penalty": 1e300}, "frequency_penalty"),
        ({"presence_penalty": -1e300}, "presence_penalty"),
        ({"beams": 2, "beam_groups": 2, "diversity_penalty": 1e300}, "diversity_penalty"),
        ({"bad_words": [[]]}, "bad_words.0"),
        ({"bad_words": [5]}, "bad_words.0"),
        ({"bad_words": 5}, "bad_words"),
    ],
)
def test_a_setting_that_cannot_be_is_named(given: dict[str, Any], name: str) -> None:
    """One sentence, from the caller or from the file."""
    with pytest.raises(InputError, match=f"the generation setting '{name}") as error:
        Settings.of({}, **given)
    assert "\n" not in str(error.value) and "cannot be used" in str(error.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("num_beams", "it is called beams here"),
        ("do_sample", "a temperature above 0 samples, 0 does not"),
        ("max_tokens", "there are max_new_tokens"),
        ("qqq", "there are temperature, top_p, beams among others"),
    ],
)
def test_a_setting_that_there_is_not_is_told_from_those_that_there_are(name: str, meant: str) -> None:
    """Also by the name that it has in transformers."""
    with pytest.raises(InputError, match=f"there is no generation setting '{name}'; {meant}"):
        Settings.of({}, **{name: 5})


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
    assert found.never == {58100}
    assert Settings.of(file).never == {58100, 2}
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


def test_each_way_of_choosing_takes_the_place_of_the_others() -> None:
    """A file's groups of beams, or its contrastive search, hold until the caller draws or searches in another way."""
    groups = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "typical_p": 0.9, "stop_strings": ["x"]}
    found = Settings.of(groups)
    assert (found.beam_groups, found.diversity_penalty, found.typical_p, found.stop) == (2, 0.5, 0.9, ("x",))
    for other in ({"beams": 3}, {"beams": 1}, {"temperature": 0.5}, {"penalty_alpha": 0.5, "top_k": 3}):
        found = Settings.of(groups, **other)
        assert (found.beam_groups, found.diversity_penalty) == (1, 0.0), other
    assert Settings.of(groups, diversity_penalty=2.0).beam_groups == 2
    contrast = {"penalty_alpha": 0.6, "top_k": 4}
    assert Settings.of(contrast).penalty_alpha == 0.6
    assert Settings.of(contrast, max_new_tokens=3).penalty_alpha == 0.6
    assert Settings.of(contrast, temperature=0.7).penalty_alpha == Settings.of(contrast, beams=2).penalty_alpha == 0
    assert Settings.of({**contrast, "do_sample": True}) == Settings(temperature=1.0, top_k=4)
    assert Settings.of({"do_sample": True}, **contrast) == Settings(**contrast)


def test_settings_survive_being_handed_on() -> None:
    """As a dictionary, as whoever answers in batches hands them to `generate`."""
    for given in (
        {"seed": [1, 2], "stop": "x", "temperature": 1.0},
        {"beams": 4, "beam_groups": 2, "diversity_penalty": 1},
    ):
        found = Settings.of({"num_beams": 3}, **given)
        assert Settings.of({"num_beams": 3}, **found.model_dump()) == found


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"beams": 2, "temperature": 1.0}, "beam search draws nothing: set temperature to 0, or beams to 1"),
        (
            {"penalty_alpha": 0.6, "top_k": 4, "temperature": 1.0},
            "contrastive search draws nothing: set temperature to 0",
        ),
        ({"penalty_alpha": 0.6, "top_k": 4, "beams": 2}, "contrastive search has no beams: set beams to 1, or"),
        ({"penalty_alpha": 0.6}, "contrastive search weighs the top_k likeliest tokens: set top_k, to 4 for one"),
        ({"beams": 4, "beam_groups": 3, "diversity_penalty": 1.0}, "4 beams make no 3 groups of one size; set another"),
        ({"beams": 4, "beam_groups": 2}, "without a diversity_penalty all beam_groups say the same; set one above 0"),
        ({"beams": 4, "diversity_penalty": 1.0}, "a diversity_penalty acts between groups of beams; set beam_groups"),
        ({"beams": 2, "answers": 3}, "2 beams give no 3 answers; ask for fewer, or give more beams"),
        ({"answers": 2}, "taking the likeliest token gives one answer; for several, set beams, or a temperature"),
    ],
)
def test_settings_that_exclude_each_other(given: dict[str, Any], complaint: str) -> None:
    """One sentence that says which, and what to do."""
    with pytest.raises(InputError, match=f"^{complaint}"):
        Settings.of({}, **given)


@pytest.mark.parametrize("name", ["bos", "eos", "pad", "start", "forced_bos", "forced_eos", "bad_words"])
@pytest.mark.parametrize("id", [-1, 10, 2**70])
def test_ids_beyond_the_vocabulary_are_refused(name: str, id: int) -> None:
    """With the setting, the id and the vocabulary's size; the last id that there is will do."""
    given = {name: [[3, id]] if name == "bad_words" else id}
    sentence = f"'{name}' cannot be used: there is no token {id}, as this model's vocabulary of 10 goes from 0 to 9$"
    with pytest.raises(InputError, match=sentence):
        Settings.of({}, **given).within(10, given)
    known = {name: [[3, 9]] if name == "bad_words" else 9}
    assert Settings.of({}, **known).within(10, known) == Settings.of({}, **known)


def test_what_a_file_says_of_tokens_that_there_are_not_is_left_out() -> None:
    """They never come up; but what would be forced does."""
    file = {"eos_token_id": [2, 50256], "bos_token_id": 50256, "pad_token_id": -1, "bad_words_ids": [[1, 99], [4, 5]]}
    assert Settings.of(file).within(10) == Settings(eos=(2,), bad_words=((4, 5),))
    assert Settings.of(file, eos=3).within(10, {"eos"}).eos == (3,)
    for forced in ("forced_bos_token_id", "forced_eos_token_id"):
        with pytest.raises(
            InputError, match=f"'{forced.removesuffix('_token_id')}' cannot be used: there is no token 99"
        ):
            Settings.of({forced: 99}).within(10)


def test_bad_words_leave_a_token() -> None:
    """All of them alone are too many; an end token alone does not count, so one that is banned leaves it."""
    every = [[id] for id in range(10)]
    with pytest.raises(InputError, match="bad_words ban each of the 10 tokens that this model knows"):
        Settings.of({}, bad_words=every).within(10)
    Settings.of({}, bad_words=every, eos=3).within(10)
    Settings.of({}, bad_words=[*every[:9], [9, 9]]).within(10)


@pytest.mark.parametrize("given", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"typical_p": 0.9, "beams": 2}])
def test_a_draw_that_there_is_not_is_not_narrowed_down(given: dict[str, Any]) -> None:
    """A file's are no fault of the caller's, nor is a client's that asks for temperature 0."""
    with pytest.raises(
        InputError, match=f"^{next(iter(given))} narrows down a draw, and nothing is drawn: set a temperature"
    ):
        Settings.of({}, **given)
    Settings.of({"do_sample": True}, **{name: value for name, value in given.items() if name != "beams"})
    Settings.of({}, temperature=0.0, **given)
    Settings.of({"top_k": 50, "top_p": 0.9})


def test_a_search_that_there_is_not_is_not_ended() -> None:
    """Nor is a file's asked for in vain, or one that is handed on."""
    with pytest.raises(InputError, match=r"^early_stopping says when beam search is over, and none is made: set beams"):
        Settings.of({}, early_stopping=True)
    assert Settings.of({"num_beams": 4}, early_stopping="never").early_stopping == "never"
    Settings.of({}, **Settings.of({"early_stopping": True}).model_dump())
