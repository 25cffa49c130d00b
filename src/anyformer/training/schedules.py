"""Learning rates over a run: each a function of how far the run is, behind one linear warm-up."""

from __future__ import annotations

import math
from collections.abc import Callable


def constant(progress: float) -> float:
    """The whole rate to the end."""
    return 1.0


def linear(progress: float) -> float:
    """From 1 to 0 in a straight line."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine (Loshchilov & Hutter 2017, eq. 5)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


#: What a schedule is called in a recipe -> the share of the rate left at a progress of 0 to 1 beyond the warm-up.
SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "linear": linear, "cosine": cosine}


def learning_rate(
    step: int, steps: int, *, peak: float, schedule: str, warmup: int | float = 0, final: float = 0.0
) -> float:
    """The learning rate of step `step` (from 0) of `steps`.

    It rises in equal steps to `peak`, reached at the end of `warmup` (a number of steps, or if a float a share of them
    all), and falls along `schedule` towards `final` · peak, which the step after the last would have.
    """
    rising = round(warmup * steps) if isinstance(warmup, float) else warmup
    if step < rising:
        return peak * (step + 1) / rising
    progress = (step - rising) / max(1, steps - rising)
    return peak * (final + (1.0 - final) * SCHEDULES[schedule](progress))


def usual_peak(dim: int, *, is_fresh: bool) -> float:
    """The learning rate that a model `dim` wide is usually trained at with Adam: about half over its width, as in
    GPT-3's table for 125M to 13B parameters (Brown et al. 2020, table 2.1); a tenth of it for trained weights."""
    return 0.5 / dim if is_fresh else 0.05 / dim
