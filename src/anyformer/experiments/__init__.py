"""Every claim of the field, at laptop scale, with its evidence: a file each in `claims/`."""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches

from anyformer.errors import ExperimentError
from anyformer.experiments import claims
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.running import picture, run

__all__ = [
    "Experiment",
    "Lab",
    "Numbers",
    "Verdict",
    "does_not_hold",
    "experiment",
    "holds",
    "names",
    "picture",
    "run",
    "unclear",
]


def names() -> list[str]:
    """What experiments there are."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(claims.__path__))


def experiment(name: str) -> Experiment:
    """The experiment of that name. Raises `ExperimentError` where there is none."""
    if name not in names():
        near = get_close_matches(name, names(), n=3, cutoff=0.5)
        nearest = f"did you mean {' or '.join(near)}? There are" if near else "there are"
        raise ExperimentError(f"there is no experiment '{name}'; {nearest} {', '.join(names())}")
    return importlib.import_module(f"{claims.__name__}.{name.replace('-', '_')}").EXPERIMENT
