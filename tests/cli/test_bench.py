"""anyformer bench measures what the machine does with a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from anyformer import machine
from anyformer.cli.bench import _bytes, _figure, _sentence
from anyformer.inspection.bench import OURS, Comparison, Phase, Report, Work

SHORT = ("--rounds", "2", "--prompt-tokens", "8", "--new-tokens", "3")


@pytest.fixture(autouse=True)
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of known rates: to measure them takes seconds."""
    monkeypatch.setattr(machine, "read_rate", lambda device: 2e9)
    monkeypatch.setattr(machine, "matrix_rate", lambda spec, rows, dtype, device: 3e9)


def test_a_table_of_speeds(anyformer: Callable, talker: Path) -> None:
    """Prompts and new tokens a second, what is stored, this machine's rates, and a sentence for each phase."""
    ran = anyformer("bench", talker, *SHORT)
    assert ran.code == 0, ran.err
    rows = ("prefill, tokens/s", "first token after, ms", "decode, tokens/s", "weights", "cache", "this machine")
    assert [row for row in rows if row not in ran.out] == []
    assert "reads 2.0 GB/s, multiplies 3 GFLOP/s" in ran.out
    assert ran.out.count("is limited by") == 2


def test_an_encoder_embeds(anyformer: Callable) -> None:
    """Its speed is in sentences, and it has no cache."""
    ran = anyformer("bench", "bert:tiny", "--rounds", "1", "--batch", "2", "--prompt-tokens", "8")
    assert ran.code == 0, ran.err
    assert "embed, sentences/s" in ran.out
    assert "cache" not in ran.out


def test_json_has_every_figure(anyformer: Callable, talker: Path) -> None:
    """Rounds one by one, shares of the machine, and the other side's speed with the ratio."""
    ran = anyformer("bench", talker, *SHORT, "--batch", "2", "--against", "transformers", "--json")
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert said["machine"] == {"read_bytes_per_second": 2e9, "matrix_flops_per_second": 3e9}
    assert len(said["phases"]["decode"]["seconds"]) == 2
    decode = said["phases"]["decode"]
    middle = sorted(decode["seconds"])
    assert decode["share_of_read_rate"] == pytest.approx(decode["bytes"] / 2e9 / (sum(middle) / 2))
    theirs = said["against"]["transformers"]
    assert set(theirs) == {"version", "dtype", "prefill", "decode"}
    assert theirs["decode"]["times_as_fast"]["lowest"] <= theirs["decode"]["times_as_fast"]["highest"]


def test_what_is_not_there_is_said_before_anything_is_measured(anyformer: Callable, talker: Path) -> None:
    """A side that nobody knows: one sentence, exit code 2, even before the model is looked for."""
    for model in (talker, "no/such"):
        ran = anyformer("bench", model, "--against", "vllm")
        assert ran.code == 2
        assert "there are transformers, llama.cpp" in ran.err
        assert ran.out == ""


def test_a_cache_in_8_bits_is_said(anyformer: Callable, talker: Path) -> None:
    """Beside its bytes."""
    ran = anyformer("bench", talker, *SHORT, "--quantize-cache", "int8")
    assert ran.code == 0, ran.err
    assert "in 8 bits in the end" in ran.out


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        ("float32", "fewer bytes would be faster (--dtype bfloat16, --quantize int8)."),
        ("Q8_0", "fewer bytes would be faster (--quantize int4)."),
        ("Q4_0", "reading 1 kB takes 500."),
    ],
)
def test_what_is_limited_by_memory_is_told_how_to_read_less(dtype: str, advice: str) -> None:
    """As long as there is a way: fewer bits than these."""
    phase = Phase("decode", "tokens", 1, 1, 1000, 0, Comparison({OURS: [1.0]}))
    sides, sizes = {OURS: {"dtype": dtype}}, (0, 0, 0, None)
    report = Report(
        "m", "decoder", "cpu", 1, Work(9), 1, sides, *sizes, read_rate=2e3, matrix_rate=1.0, phases=(phase,)
    )
    assert _sentence(report, phase).endswith(advice)


@pytest.mark.parametrize(
    ("figure", "shown"), [(4.0, "4.00"), (4.314, "4.31"), (150.0, "150"), (999.7, "1,000"), (28475.2, "28,475")]
)
def test_figures_line_up(figure: float, shown: str) -> None:
    """Three digits at least, and never a power of ten."""
    assert _figure(figure) == shown


def test_bytes_have_three_digits() -> None:
    """In the unit that they round to."""
    assert [_bytes(count) for count in (999, 999_700, 1_740_000)] == ["999 B", "1 MB", "1.74 MB"]
