"""Learning rates over a run."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.training.schedules import SCHEDULES, learning_rate, usual_peak


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 500), st.integers(0, 100), st.floats(0, 1))
def test_rates_rise_to_the_peak_and_never_rise_after(schedule: str, steps: int, warmup: int, final: float) -> None:
    """Warm-up in equal steps, then monotone, never beyond the peak nor below what is to be left."""
    rates = [
        learning_rate(step, steps, peak=0.5, schedule=schedule, warmup=warmup, final=final) for step in range(steps)
    ]
    for step, rate in enumerate(rates[:warmup]):
        assert rate == pytest.approx(0.5 * (step + 1) / warmup)
    falling = rates[warmup:]
    assert falling == sorted(falling, reverse=True)
    assert not falling or falling[0] == 0.5
    assert all(0.5 * final * (1 - 1e-12) <= rate <= 0.5 for rate in falling)


def test_each_schedule_is_its_formula() -> None:
    """Half-way between peak and what is left, a quarter of the way, and just before the end."""

    def rate(schedule: str, step: int) -> float:
        return learning_rate(step, 100, peak=1.0, schedule=schedule, final=0.1)

    assert [rate("constant", step) for step in (0, 50, 99)] == [1.0, 1.0, 1.0]
    assert [rate("linear", step) for step in (0, 25, 50)] == pytest.approx([1.0, 0.775, 0.55])
    assert [rate("cosine", step) for step in (0, 25, 50)] == pytest.approx(
        [1.0, 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2, 0.55]
    )


def test_the_schedule_of_2017() -> None:
    """d^-1/2 · min(step^-1/2, step · warmup^-3/2) of the paper's equation 3, scaled to its highest value."""
    warmup = 40
    for at in range(200):
        step = at + 1
        published = min(step**-0.5, step * warmup**-1.5) / warmup**-0.5
        found = learning_rate(at, 200, peak=1.0, schedule="inverse_square_root", warmup=warmup)
        # Ours ends its warm-up at the highest rate, and counts from there.
        assert found == pytest.approx(published if step <= warmup else ((step - 1) / warmup) ** -0.5)


def test_stable_then_falling() -> None:
    """Four fifths of the run at the highest rate, whatever the warm-up; then a fall to nothing, steep at first."""
    rates = [learning_rate(at, 100, peak=1.0, schedule="warmup_stable_decay", warmup=10) for at in range(101)]
    assert rates[10:81] == pytest.approx([1.0] * 71)
    assert rates[85] == pytest.approx(0.5)  # a quarter of the fall's steps, half of its height
    assert rates[100] == pytest.approx(0.0)


def test_a_float_warmup_is_a_share_of_the_steps() -> None:
    """0.1 of 50 steps are 5."""
    shares = [learning_rate(step, 50, peak=1.0, schedule="linear", warmup=0.1) for step in range(50)]
    counted = [learning_rate(step, 50, peak=1.0, schedule="linear", warmup=5) for step in range(50)]
    assert shares == counted and shares[4] == 1.0 > shares[3]


@pytest.mark.parametrize(("dim", "published"), [(768, 6e-4), (1024, 3e-4), (2048, 2e-4), (4096, 1.2e-4), (5140, 1e-4)])
def test_the_usual_peak_is_near_what_gpt_3_was_trained_at(dim: int, published: float) -> None:
    """Within a factor of two at each published width; a tenth of it where weights are trained already."""
    assert published / 2 < usual_peak(dim, is_fresh=True) < published * 2
    assert usual_peak(dim, is_fresh=False) == pytest.approx(usual_peak(dim, is_fresh=True) / 10)
