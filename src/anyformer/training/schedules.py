"""Learning rates over a run: each a function of how far the run is, behind one linear warm-up.

`progress` is the share done of what follows the warm-up, `warm` the share of the whole run that the warm-up takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

#: The share of a run over which `warmup_stable_decay` falls.
DECAY = 0.2


def constant(progress: float, warm: float) -> float:
    """The whole rate to the end."""
    return 1.0


def linear(progress: float, warm: float) -> float:
    """From 1 to 0 in a straight line."""
    return 1.0 - progress


def cosine(progress: float, warm: float) -> float:
    """From 1 to 0 along half a cosine (Loshchilov & Hutter 2017, eq. 5)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def inverse_square_root(progress: float, warm: float) -> float:
    """Falls with the square root of the step, from 1 at the end of the warm-up (Vaswani et al. 2017, eq. 3). Without a
    warm-up there is no such end, and it stays at 1."""
    return math.sqrt(warm / (warm + progress * (1.0 - warm))) if warm else 1.0


def warmup_stable_decay(progress: float, warm: float) -> float:
    """1 until the last fifth of the run, then down to 0 as 1 - √x (Hu et al. 2024; Hägele et al. 2024, eq. 1): a run
    can be made longer from where it was still at 1."""
    left = (1.0 - progress) * (1.0 - warm)
    return 1.0 if left >= DECAY else 1.0 - math.sqrt(1.0 - left / DECAY)


#: What a schedule is called in a recipe -> (progress, warm) -> the share of the highest rate.
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "inverse_square_root": inverse_square_root,
    "warmup_stable_decay": warmup_stable_decay,
}


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
    return peak * (final + (1.0 - final) * SCHEDULES[schedule](progress, rising / steps))


def usual_peak(dim: int, *, is_fresh: bool) -> float:
    """The learning rate that a model `dim` wide is usually trained at with Adam: about half over its width, as in
    GPT-3's table for 125M to 13B parameters (Brown et al. 2020, table 2.1); a tenth of it for trained weights."""
    return 0.5 / dim if is_fresh else 0.05 / dim
