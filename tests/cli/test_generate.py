"""anyformer generate writes what the model generates."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anyformer import families, spec, text
from anyformer.model import build, load


def test_writes_what_the_model_generates(anyformer: Callable, talker: Path) -> None:
    """Standard output is the continuation and a line break, as `Transformer.generate` gives it."""
    (wanted,) = load(talker).generate(["Once upon"], max_new_tokens=9)
    ran = anyformer("generate", talker, "Once upon", "-n", "9")
    assert (ran.code, ran.out, ran.err) == (0, f"{wanted}\n", "")


def test_settings_reach_the_model(anyformer: Callable, talker: Path) -> None:
    """Sampling settings do what they do in Python: the same seed draws the same, another one something else."""
    settings = {"max_new_tokens": 9, "temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.01}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    (wanted,) = load(talker).generate(["x"], seed=5, **settings)
    seeds = [anyformer("generate", talker, "x", *arguments, "--seed", seed).out for seed in (5, 5, 6)]
    assert seeds[0] == seeds[1] == f"{wanted}\n" != seeds[2]
    assert anyformer("generate", talker, "x", "-n", "9", "--repetition-penalty", "9").out != f"{wanted}\n"


def test_beams_and_answers(anyformer: Callable, talker: Path) -> None:
    """--beams searches, --answers gives as many, a line each, the best first; what excludes each other is refused."""
    wanted = load(talker).generate(["x"], beams=3, answers=2, length_penalty=0.0, max_new_tokens=5)
    how = ("-n", 5, "--beams", 3, "--length-penalty", 0)
    assert anyformer("generate", talker, "x", *how, "--answers", 2).out == "".join(f"{text}\n" for text in wanted)
    assert anyformer("generate", talker, "x", *how).out == f"{wanted[0]}\n"
    said = json.loads(anyformer("generate", talker, "x", *how, "--answers", 2, "--json").out)
    assert (said["text"], [answer["text"] for answer in said["answers"]]) == (wanted[0], wanted)
    refused = anyformer("generate", talker, "x", "--beams", 2, "--answers", 3)
    assert refused.code == 2 and "2 beams give no 3 answers" in refused.err


def test_json_says_what_was_asked_and_all_of_the_answer(anyformer: Callable, talker: Path) -> None:
    """--json holds the prompt, the text, its ids and how likely they are, why it ends, and the settings given."""
    ran = anyformer("generate", talker, "x", "-n", "4", "--logprobs", 2, "--json")
    (wanted,) = load(talker).answers(["x"], max_new_tokens=4, logprobs=2)
    settings = {"max_new_tokens": 4, "logprobs": 2}
    said = {"model": str(talker), "prompt": "x", **wanted.plain(), "settings": settings}
    assert json.loads(ran.out) == said and said["reason"] == "length" and len(said["likeliest"][0]) == 2
    refused = anyformer("generate", talker, "x", "--logprobs", 2)
    assert refused.code == 2 and refused.err == "anyformer: --logprobs are shown as JSON alone; add --json\n"


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 1.0, "typical_p": 0.5, "seed": 3, "frequency_penalty": 0.5, "presence_penalty": 1.0},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"no_repeat_ngram": 1, "min_new_tokens": 9},
        {"beams": 4, "beam_groups": 2, "diversity_penalty": 1.0, "early_stopping": "true"},
    ],
)
def test_every_way_of_choosing_has_its_options(anyformer: Callable, talker: Path, given: dict[str, Any]) -> None:
    """They are called what the settings are, and do what these do."""
    (wanted,) = load(talker).generate(["x"], max_new_tokens=9, **given)
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    assert anyformer("generate", talker, "x", "-n", 9, *arguments).out == f"{wanted}\n"


def test_stop_strings_end_the_text(anyformer: Callable, talker: Path) -> None:
    """Several may be given; the reason is in the JSON."""
    (whole,) = load(talker).generate(["x"], max_new_tokens=9)
    how = ("generate", talker, "x", "-n", 9, "--stop", whole[3:5], "--stop", "unheard of")
    assert anyformer(*how).out == f"{whole[: whole.find(whole[3:5])]}\n"
    assert json.loads(anyformer(*how, "--json").out)["reason"] == "stop"


def test_answers_keep_a_form(anyformer: Callable, talker: Path, tmp_path: Path) -> None:
    """A regular expression; a schema, as it is or out of a file; a grammar; a file that is not there is named."""
    pytest.importorskip("llguidance")
    assert anyformer("generate", talker, "x", "--regex", "[0-9]{4}").out.strip().isdigit()
    (tmp_path / "schema.json").write_text(
        '{"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}'
    )
    said = anyformer("generate", talker, "x", "--json-schema", tmp_path / "schema.json")
    assert json.loads(said.out)["a"] in (1, 2)
    said = anyformer("generate", talker, "x", "--json-schema", '{"type": "boolean"}')
    assert said.out in ("true\n", "false\n")
    (tmp_path / "grammar.lark").write_text('start: "yes" | "no"')
    assert anyformer("generate", talker, "x", "--grammar", tmp_path / "grammar.lark").out in ("yes\n", "no\n")
    missing = anyformer("generate", talker, "x", "--grammar", tmp_path / "none.lark")
    assert missing.code == 2 and missing.err.endswith("none.lark: No such file or directory\n")


def test_guesses_change_how_fast_and_nothing_else(anyformer: Callable, talker: Path) -> None:
    """With a draft, or by prompt lookup, the text is the same; a note beside it, and the JSON, say how many of the
    guessed tokens were right. A draft that does not fit is refused."""
    (wanted,) = load(talker).generate(["x y x y x"], max_new_tokens=20)
    for how in (("--draft", talker), ("--prompt-lookup", 4)):
        ran = anyformer("generate", talker, "x y x y x", "-n", 20, *how)
        assert (ran.out, ran.code) == (f"{wanted}\n", 0) and " guessed tokens were right: " in ran.err
        said = json.loads(anyformer("generate", talker, "x y x y x", "-n", 20, *how, "--json").out)
        counted = said["speculation"]
        assert said["text"] == wanted and counted["said"] == len(said["ids"])
        assert 0 < counted["passes"] <= counted["said"] and counted["accepted"] <= counted["proposed"]
    assert counted["acceptance"] in (None, counted["accepted"] / max(1, counted["proposed"]))
    refused = anyformer("generate", talker, "x", "--draft", "t5:tiny")
    assert refused.code == 2 and "the draft is of shape encoder-decoder" in refused.err


def test_the_prompt_comes_from_standard_input(command: list[str], talker: Path) -> None:
    """- reads the whole of standard input, line breaks and all; what is not UTF-8 is refused with its place."""
    (wanted,) = load(talker).generate(["two\nlines é"], max_new_tokens=4)
    arguments = [*command, "generate", str(talker), "-", "-n", "4"]
    ran = subprocess.run(arguments, input="two\nlines é".encode(), capture_output=True, check=True)
    assert ran.stdout.decode() == f"{wanted}\n"
    refused = subprocess.run(arguments, input=b"ab\xff", capture_output=True, check=False)
    assert refused.returncode == 2 and b"not UTF-8 at byte 2" in refused.stderr


def test_dtype_is_that_asked_for(anyformer: Callable, talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--dtype casts the model before it generates."""
    from anyformer.model import Transformer

    seen: list[str] = []
    stream = Transformer.stream
    monkeypatch.setattr(
        Transformer, "stream", lambda self, *a, **more: seen.append(str(self.dtype)) or stream(self, *a, **more)
    )
    assert anyformer("generate", talker, "x", "-n", "1", "--dtype", "bfloat16").code == 0
    assert anyformer("generate", talker, "x", "-n", "1").code == 0
    assert seen == ["torch.bfloat16", "torch.float32"]


def test_a_preset_reads_bytes_and_says_so(anyformer: Callable) -> None:
    """Fresh weights of a preset have no tokenizer: bytes serve, and a note beside the output says it."""
    ran = anyformer("generate", "llama:tiny", "x", "-n", "3")
    assert ran.code == 0 and "llama:tiny is a preset: it reads bytes" in ran.err


def test_an_encoder_decoder_answers(anyformer: Callable, tmp_path: Path) -> None:
    """The prompt of an encoder-decoder is its source: another one, another answer."""
    described = families.t5("tiny", vocab_size=300)  # type: ignore[attr-defined]
    large = spec.Initialization(std=0.5)
    built = build(described.replace(head=spec.LanguageModelHead(), initialization=large), seed=2)
    built.family, built.tokenizer, built.generation = "t5", text.byte_level(), {"decoder_start_token_id": 0}
    built.save(tmp_path)
    (wanted,) = load(tmp_path).generate(["abc"], max_new_tokens=8)
    assert anyformer("generate", tmp_path, "abc", "-n", "8").out == f"{wanted}\n"
    assert anyformer("generate", tmp_path, "xyz", "-n", "8").out != f"{wanted}\n"


def test_an_encoder_generates_nothing(anyformer: Callable) -> None:
    """An encoder is refused in a sentence that says what it is."""
    ran = anyformer("generate", "bert:tiny", "x")
    assert ran.code == 2 and "bert:tiny is an encoder" in ran.err


def test_a_real_model_knows_the_capital_of_france(anyformer: Callable, smollm2: Path) -> None:
    """SmolLM2 out of its GGUF file continues as it should."""
    assert "Paris" in anyformer("generate", smollm2, "The capital of France is", "-n", "4").out
