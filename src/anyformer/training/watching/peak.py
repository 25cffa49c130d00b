"""How fast this machine multiplies matrices: what the speed of a run is measured against.

The matrices are the model's own, in the run's precision and at most as many rows as a micro-batch has, so that the
share of it that a run reaches says what everything else costs: attention, norms, the optimizer, waiting for memory.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from anyformer.disk import write_json
from anyformer.machine import matrix_rate
from anyformer.parts.kernels import native
from anyformer.training.state import read_json

if TYPE_CHECKING:
    from anyformer.training.trainer import Trainer

#: A precision at less than this share of the rate of float32 is noted.
SLOWER = 0.9


def peak_tokens(directory: Path, trainer: Trainer, note: Callable[[str], None] = lambda text: None) -> float:
    """Tokens a second that a run would train on if its machines did nothing but the products that the model needs
    (the planner's count). Measured once in a run's `directory` for each kind of machine; where it multiplies float32
    faster than the run's precision, as some CPUs do, that is noted.

    It draws no random number of the process: the run is the same with and without it.
    """
    path, settings, device = directory / "peak.json", trainer.settings, trainer.device
    processes = prod(trainer.ranks.sizes.values())
    machine = platform.processor() or platform.machine()
    where = f"{machine} {device}, {processes} x {torch.get_num_threads()} threads, {settings.precision}"
    known = read_json(path) if path.exists() else {}
    if where not in known:
        dtypes = {settings.precision: getattr(torch, settings.precision), "float32": torch.float32}
        rates = {
            name: matrix_rate(trainer.model.spec, trainer.micro_tokens, dtype, device) for name, dtype in dtypes.items()
        }
        rate = rates[settings.precision]
        if rate < SLOWER * rates["float32"]:
            note(
                f"this machine multiplies {settings.precision} at {rate / rates['float32']:.0%} of the rate of "
                f"float32; training.precision 'float32' would be no slower"
            )
            if device.type == "cpu" and not native.narrow_pays():
                rate = rates["float32"]  # as which it multiplies what is bfloat16
        tokens = rate * processes * settings.batch_tokens / trainer.flops
        known |= {where: {"flop_per_second": rate, "tokens_per_second": tokens}}
        write_json(path, known)
    return known[where]["tokens_per_second"]
