"""A law of loss over parameters and tokens, fitted to runs: Hoffmann et al. 2022, section 3.3 and appendix D.3.

    L(N, D) = E + A / N^α + B / D^β         log L = logsumexp(a − α·log N, b − β·log D, e)

The sum over runs of Huber's loss (δ = 10⁻³) between the logarithms of what is foretold and what was measured is
minimised by L-BFGS from the best points of a grid; intervals come from fitting again to samples of the runs, drawn with
replacement (Efron 1979), as Besiroglu et al. 2024 do (https://arxiv.org/abs/2404.10102).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from anyformer.errors import PlanError
from anyformer.laws.minimizing import minimized
from anyformer.laws.runs import Runs
from anyformer.planning.scaling import Law

#: Where Huber's loss turns from a square into a line, in nats of log loss.
DELTA = 1e-3
#: Hoffmann et al. 2022, appendix D.3: starts for (a, b, e, α, β); the best `STARTS` of them are followed down.
GRID = (
    (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    (-1.0, -0.5, 0.0, 0.5, 1.0),
    (0.0, 0.5, 1.0, 1.5, 2.0),
    (0.0, 0.5, 1.0, 1.5, 2.0),
)
STARTS, SAMPLES = 100, 1000
#: The fewest runs that a law of five numbers is fitted to, and of how many sizes and numbers of tokens.
FEWEST_RUNS, FEWEST_DIFFERENT = 8, 3
#: Intervals hold this share of the samples.
LEVEL = 0.8


@dataclass(frozen=True)
class FittedLaw:
    """A law and how sure it is.

    - `logs`: (ln A, ln B, ln E, α, β). `samples` [S, 5]: the same, of each sample of the runs.
    - `objective`: the sum of Huber's loss. `runs`: how many there were. `budgets`: the least and the most FLOPs of one.
    """

    law: Law
    logs: tuple[float, ...]
    samples: np.ndarray
    objective: float
    runs: int
    budgets: tuple[float, float]

    def intervals(self) -> dict[str, tuple[float, float]]:
        """The central 80% of what the samples give for A, B, E, α, β and the exponent of the parameters."""
        a, b, e, alpha, beta = self.samples.T
        values = {"A": np.exp(a), "B": np.exp(b), "E": np.exp(e), "alpha": alpha, "beta": beta}
        return {name: central(drawn) for name, drawn in (values | {"exponent": beta / (alpha + beta)}).items()}

    def parameters(self, flops: float) -> float:
        """The compute-optimal ones for a budget."""
        return self.law.parameters(flops)

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats a token."""
        return self.law.loss(parameters, tokens)

    def interval(self, flops: float) -> tuple[float, float]:
        """The central 80% of the samples' compute-optimal parameters for a budget."""
        a, b, _, alpha, beta = self.samples[(self.samples[:, 3:] > 0).all(1)].T
        balance = np.log(alpha / beta) + a - b
        return central(np.exp((balance + beta * np.log(flops / 6)) / (alpha + beta)))


def fit(runs: Runs, *, samples: int = SAMPLES, seed: int = 0) -> FittedLaw:
    """The law that fits runs best. Raises `PlanError` saying how many more runs it would take, or that the loss of
    these does not fall with size and tokens."""
    _check(runs)
    # Around their means, logarithms of size and tokens hardly trade off against the constants that go with them.
    n, d, measured = np.log(runs.parameters), np.log(runs.tokens), np.log(runs.losses)
    middle = np.array([n.mean(), d.mean()])
    n, d = n - middle[0], d - middle[1]

    def objective(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _objective(x, weights, n, d, measured)

    grid = np.array(list(product(*GRID)))
    grid[:, :2] -= grid[:, 3:] * middle
    every = np.ones((1, len(measured)))
    starts = grid[np.argsort(objective(grid, every)[0], kind="stable")[:STARTS]]
    found, values = minimized(lambda x, which: objective(x, every), starts)
    best = found[np.argmin(values)]
    drawn = np.random.default_rng(seed).multinomial(len(measured), np.full(len(measured), 1 / len(measured)), samples)
    spread, _ = minimized(lambda x, which: objective(x, drawn[which]), np.tile(best, (samples, 1)))
    logs, sampled = (_uncentred(each, middle) for each in (best[None], spread))
    a, b, e, alpha, beta = (float(value) for value in logs[0])
    if min(alpha, beta) <= 0:
        more = "parameters" if alpha <= 0 else "tokens"
        raise PlanError(
            f"the law that fits these runs best has a loss that does not fall with more {more} (alpha {alpha:.3f}, "
            f"beta {beta:.3f}): they end too early, or differ by noise; add runs over wider ranges of both"
        )
    law = Law(A=float(np.exp(a)), B=float(np.exp(b)), E=float(np.exp(e)), alpha=alpha, beta=beta)
    total = float(np.min(values)) * DELTA * len(measured)
    budgets = (float(runs.flops.min()), float(runs.flops.max()))
    return FittedLaw(law, (a, b, e, alpha, beta), sampled, total, len(measured), budgets)


def _check(runs: Runs) -> None:
    sizes, lengths = (len(np.unique(np.round(np.log(each), 2))) for each in (runs.parameters, runs.tokens))
    missing = max(FEWEST_RUNS - len(runs.losses), FEWEST_DIFFERENT - sizes, FEWEST_DIFFERENT - lengths)
    if missing > 0:
        raise PlanError(
            f"a law of five numbers takes {FEWEST_RUNS} runs or more, of at least {FEWEST_DIFFERENT} sizes and "
            f"{FEWEST_DIFFERENT} numbers of tokens; here are {len(runs.losses)}, of {sizes} and {lengths}: train at "
            f"least {missing} more"
        )


def _objective(
    x: np.ndarray, weights: np.ndarray, n: np.ndarray, d: np.ndarray, measured: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The mean of Huber's loss over `DELTA` [P] and its gradient [P, 5], of laws `x` [P, 5], with each run counted as
    often as `weights` [P or 1, R] say."""
    a, b, e, alpha, beta = (column[:, None] for column in x.T)
    terms = np.stack(np.broadcast_arrays(a - alpha * n, b - beta * d, e))
    highest = terms.max(axis=0)
    shares = np.exp(terms - highest)
    total = shares.sum(axis=0)
    residual = highest + np.log(total) - measured
    small = np.abs(residual) <= DELTA
    huber = np.where(small, residual**2 / (2 * DELTA), np.abs(residual) - DELTA / 2)
    count = weights.sum(axis=1)
    pull = weights * np.clip(residual / DELTA, -1, 1) / total
    of_n, of_d, of_e = (pull * share for share in shares)
    gradient = np.stack([of_n.sum(1), of_d.sum(1), of_e.sum(1), -(of_n * n).sum(1), -(of_d * d).sum(1)], axis=1)
    return (weights * huber).sum(axis=1) / count, gradient / count[:, None]


def _uncentred(x: np.ndarray, middle: np.ndarray) -> np.ndarray:
    return np.concatenate([x[:, :2] + x[:, 3:] * middle, x[:, 2:]], axis=1)


def central(values: np.ndarray) -> tuple[float, float]:
    """The central 80% of some values."""
    low, high = np.quantile(values[np.isfinite(values)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
