"""What is concluded from seconds, bytes and FLOPs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from anyformer import families, model
from anyformer.errors import InputError
from anyformer.inspection.bench import OURS, Comparison, Opened, Phase, Report, Work, bench, report


def reported(read_rate: float, matrix_rate: float) -> tuple[Report, Phase]:
    phase = Phase("decode", "tokens", 10, 10, 1000, 4000, Comparison({OURS: [2.0, 1.0, 3.0]}))
    nothing = dict.fromkeys(("weight_bytes", "step_weight_bytes", "cache_bytes", "peak_bytes"), 0)
    known = {"model": "m", "shape": "decoder", "device": "cpu", "threads": 1, "work": Work(9), "rounds": 3, "sides": {}}
    return Report(**known, **nothing, read_rate=read_rate, matrix_rate=matrix_rate, phases=(phase,)), phase


@pytest.mark.parametrize(
    ("read_rate", "matrix_rate", "limit", "shares"),
    [
        (1000.0, 8000.0, "memory", (0.5, 0.25)),
        (1000.0, 2000.0, "arithmetic", (0.5, 1.0)),
        (1e6, 1e6, "neither", (0.0005, 0.002)),
    ],
)
def test_the_limit_is_what_takes_most_of_the_time(
    read_rate: float, matrix_rate: float, limit: str, shares: tuple[float, float]
) -> None:
    """Bytes and FLOPs over the machine's rates, as shares of the median; below a half, neither."""
    found, phase = reported(read_rate, matrix_rate)
    assert found.shares(phase) == pytest.approx(shares)
    assert found.limit(phase) == limit


@pytest.mark.parametrize(("name", "new", "phases"), [("llama", 4, ["prefill", "decode"]), ("bert", 0, ["embed"])])
def test_a_model_is_measured(monkeypatch: pytest.MonkeyPatch, name: str, new: int, phases: list[str]) -> None:
    """Every phase has its rounds, its work and its bytes; of the machine's rates, the better of two counts."""
    rates = iter([(1e9, 3e9), (2e9, 1e9)])
    monkeypatch.setattr(report, "_rates", lambda here, work: next(rates))
    preset = f"{name}:tiny"
    made = model.build(getattr(families, name)("tiny"), seed=0).eval()
    told: list[str] = []
    found = bench(Opened(made, preset), Work(200, 6, new, 2), rounds=2, progress=told.append)
    assert [phase.name for phase in found.phases] == phases
    assert all(len(phase.seconds.seconds[OURS]) == 2 for phase in found.phases)
    assert all(min(phase.seconds.seconds[OURS]) > 0 and phase.bytes and phase.flops for phase in found.phases)
    assert (found.read_rate, found.matrix_rate) == (2e9, 3e9)
    assert [phase.count for phase in found.phases] == ([12, 6] if new else [2])
    assert found.weight_bytes == sum(parameter.numel() * 4 for parameter in made.parameters())
    assert told[-1] == "measuring"
    assert replace(found, rounds=9).rounds == 9


@pytest.mark.parametrize(
    ("name", "work", "said"),
    [
        ("gpt2", Work(200, 100, 30), "gpt2:tiny has learned 128 positions, too few for 30 new tokens after 100"),
        ("bart", Work(200, 8, 129), "bart:tiny has learned 128 positions, too few for 129 new tokens; ask for fewer"),
    ],
)
def test_more_tokens_than_positions_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, work: Work, said: str
) -> None:
    """Before anything runs: generation would stop early, and its steps be fewer than what is divided by. The last
    token that is chosen takes no position."""
    monkeypatch.setattr(report, "_rates", lambda here, work: (1e9, 1e9))
    made = model.build(getattr(families, name)("tiny"), seed=0).eval()
    with pytest.raises(InputError, match=said):
        bench(Opened(made, f"{name}:tiny"), work, rounds=1)
    fits = replace(work, new_tokens=work.new_tokens - 1)
    assert bench(Opened(made, f"{name}:tiny"), fits, rounds=1).phases[-1].steps == fits.new_tokens - 1


def test_one_new_token_leaves_nothing_to_decode() -> None:
    """It comes of the prompt."""
    made = model.build(families.llama("tiny"), seed=0).eval()  # type: ignore[attr-defined]
    assert [phase.name for phase in bench(Opened(made, "llama:tiny"), Work(200, 6, 1), rounds=1).phases] == ["prefill"]
