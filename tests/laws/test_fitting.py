"""Laws come back out of runs that follow them, and out of the real ones as others found them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anyformer.errors import PlanError
from anyformer.laws import Runs, fit, read_runs
from anyformer.planning.scaling import CORRECTED, Law

POINTS = Path(__file__).parents[3] / "shared" / "data" / "chinchilla_points.csv"
LAW = Law(A=300.0, B=900.0, E=1.7, alpha=0.33, beta=0.31)


def grown(law: Law, noise: float = 0.0, budgets: tuple[float, ...] = (1e17, 1e18, 1e19, 1e20)) -> Runs:
    """Runs of nine sizes at each of some budgets, as a law has them."""
    flops = np.repeat(budgets, 9)
    best = np.array([law.parameters(each) for each in flops])
    parameters = best * np.tile(np.geomspace(0.2, 5, 9), len(budgets))
    tokens = flops / 6 / parameters
    losses = np.array([law.loss(n, d) for n, d in zip(parameters, tokens)])
    return Runs(parameters, tokens, losses * np.exp(noise * np.random.default_rng(0).normal(size=len(losses))))


def test_a_law_comes_back_out_of_its_runs() -> None:
    """Without noise, its numbers to three digits."""
    found = fit(grown(LAW), samples=2).law
    for name in ("A", "B", "E", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(LAW, name), rel=5e-3), name
    assert found.exponent == pytest.approx(LAW.exponent, abs=1e-3)


def test_intervals_hold_the_law() -> None:
    """With noise of half a per cent they are wider than nothing, and hold exponent and optimum."""
    found = fit(grown(LAW, noise=0.005), samples=200)
    low, high = found.intervals()["exponent"]
    assert low < high and low - 0.02 < LAW.exponent < high + 0.02
    low, high = found.interval(1e19)
    assert low < found.parameters(1e19) < high and 0.8 * low < LAW.parameters(1e19) < 1.25 * high
    assert found.loss(1e8, 1e10) == pytest.approx(LAW.loss(1e8, 1e10), rel=0.01)


def test_the_same_runs_give_the_same_law() -> None:
    """To the bit, samples too."""
    first, second = (fit(grown(LAW, noise=0.01), samples=20) for _ in range(2))
    assert first.logs == second.logs and np.array_equal(first.samples, second.samples)


@pytest.mark.skipif(not POINTS.exists(), reason="the points of Hoffmann et al.'s figure are not beside the repository")
def test_the_law_of_chinchillas_runs_is_the_corrected_one() -> None:
    """With the five runs of highest loss left out, the log-parameters that Besiroglu et al. 2024 found; and about their
    standard error of the exponent, 0.02."""
    runs = read_runs([POINTS])
    assert len(runs.losses) == 245
    found = fit(runs.without_worst(5), samples=200)
    assert found.runs == 240
    assert found.logs == pytest.approx((6.169, 7.670, 0.597, 0.3473, 0.3671), abs=1.5e-3)
    assert found.law.parameters(5.76e23) == pytest.approx(CORRECTED.parameters(5.76e23), rel=0.02)
    _, _, _, alpha, beta = found.samples.T
    assert (beta / (alpha + beta)).std() == pytest.approx(0.02, abs=0.004)


@pytest.mark.parametrize(
    ("kept", "said"),
    [(slice(0, 5), "here are 5, of 5 and 5: train at least 3 more"), (slice(0, 36, 9), "train at least 4 more")],
)
def test_too_few_runs_are_refused(kept: slice, said: str) -> None:
    """The sentence says how many more it takes."""
    runs = grown(LAW)
    with pytest.raises(PlanError, match=said):
        fit(Runs(runs.parameters[kept], runs.tokens[kept], runs.losses[kept]))


def test_runs_of_one_size_are_refused() -> None:
    """However many: a law over sizes needs three of them."""
    tokens = np.geomspace(1e8, 1e10, 20)
    with pytest.raises(PlanError, match="here are 20, of 1 and 20: train at least 2 more"):
        fit(Runs(np.full(20, 1e8), tokens, 2 + 100 / tokens**0.3))


def test_runs_that_no_law_fits_are_refused() -> None:
    """Where larger models are worse the whole way, there is no best size to tell."""
    sizes, lengths = np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e8, 1e11, 5))
    worse = Runs(sizes.ravel(), lengths.ravel(), 2 * (sizes.ravel() / 1e6) ** 0.1 + 300 / lengths.ravel() ** 0.4)
    with pytest.raises(PlanError, match=r"does not fall with more parameters .alpha -"):
        fit(worse, samples=3)
