"""Linear probes: what can be read off a layer by a linear map (Alain & Bengio 2016, https://arxiv.org/abs/1610.01644).

A probe is ridge regression in closed form, onto numbers or onto classes told by one-hot vectors. That a probe reads
something says little by itself: beside its accuracy stand that of always saying the commonest class, and that of a
control task, where each type of token has a class drawn at random (Hewitt & Liang 2019,
https://arxiv.org/abs/1909.03368): what the probe learns by heart it learns there too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anyformer.errors import InputError
from anyformer.inspection.tracing import trace
from anyformer.model import Transformer


@dataclass(frozen=True)
class Probe:
    """A fitted probe, and how well it reads what it has not seen: `weight` [D + 1, outputs], the last row the constant.

    score      accuracy of classes, R² of numbers, on the held-out part
    baseline   accuracy of the training part's commonest class; 0 for numbers (their mean)
    control    accuracy of a probe of the control task; None without `types`
    examples   how many were trained on, and how many held out
    """

    weight: Tensor
    score: float
    baseline: float
    control: float | None
    examples: tuple[int, int]

    @property
    def selectivity(self) -> float | None:
        """Score above the control task's."""
        return None if self.control is None else self.score - self.control

    def __call__(self, features: Tensor) -> Tensor:
        """What it reads off features [N, D]: [N, outputs]; of classes, the likeliest is the largest."""
        return _with_constant(features) @ self.weight


def probe(
    features: Tensor,
    labels: Tensor,
    *,
    groups: Tensor | None = None,
    types: Tensor | None = None,
    held_out: float = 0.25,
    penalty: float = 1.0,
    seed: int = 0,
) -> Probe:
    """Fit a probe to features [N, D] and labels: classes, int64 [N], or numbers, float [N] or [N, outputs].

    A part of the examples is held out and scored: whole `groups` ([N] ids: the texts that examples come from), so that
    nothing of a held-out text has been seen. `types` [N] (the token ids) ask for the control task. `penalty` is that of
    the squared weights, in examples: features are brought to mean 0 and deviation 1.

    Raises `InputError` for shapes that do not fit, numbers that are none, and too few groups or classes.
    """
    _check(features, labels, groups, types, held_out)
    features = features.detach().double()
    of = torch.arange(len(features)) if groups is None else groups.unique(return_inverse=True)[1].cpu()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(int(of.max()) + 1, generator=generator)
    count = min(max(1, round(held_out * len(order))), len(order) - 1)
    test = torch.isin(of, order[:count]).to(features.device)
    if not labels.dtype.is_floating_point:
        weight, score, baseline = _classify(features, labels, test, penalty)
        control = None if types is None else _classify(features, _drawn(types, labels, generator), test, penalty)[1]
    else:
        weight, control, baseline = _ridge(features[~test], labels[~test], penalty), None, 0.0
        score = _explained(_with_constant(features[test]) @ weight, labels[test])
    return Probe(weight, score, baseline, control, (int((~test).sum()), int(test.sum())))


@torch.no_grad()
def features(
    model: Transformer, batches: Iterable[Mapping[str, Any]], pattern: str = "**.layers.*.residual_after"
) -> dict[str, Tensor]:
    """What passes at the sites that a pattern names, [N, D] by site, over batches of what the model is given: `tokens`
    [B, T], and `valid` and whatever else it takes. N counts the tokens that are valid, batch by batch, row by row.

    Raises `InputError` for sites that have no row of numbers a token, such as attention's weights."""
    found: dict[str, list[Tensor]] = {}
    for given in batches:
        with trace(model, pattern) as t:
            model(**given)
        tokens = given["tokens"]
        for site, value in t.items():
            mine = tokens if site.startswith("decoder") or "source" not in given else given["source"]
            if value.shape[:2] != mine.shape or value.dim() != 3:
                raise InputError(f"'{site}' is {list(value.shape)} and holds no row of numbers for each token")
            mask = given.get("valid" if mine is tokens else "source_valid")
            found.setdefault(site, []).append(value.flatten(0, 1) if mask is None else value[mask])
    if not found:
        raise InputError("there are no batches to read features from")
    return {site: torch.cat(values) for site, values in found.items()}


def _classify(x: Tensor, labels: Tensor, test: Tensor, penalty: float) -> tuple[Tensor, float, float]:
    """A probe's weight, its accuracy on the test part, and that of the training part's commonest class."""
    weight = _ridge(x[~test], F.one_hot(labels, int(labels.max()) + 1).double()[~test], penalty)
    said = (_with_constant(x[test]) @ weight).argmax(-1)
    commonest = labels[~test].mode().values
    return weight, float((said == labels[test]).double().mean()), float((commonest == labels[test]).double().mean())


def _ridge(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """The weights [D + 1, outputs] of least squares with a penalty, over features brought to mean 0 and deviation 1."""
    y = y.double()[:, None] if y.dim() == 1 else y.double()
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp(min=1e-8)
    z = (x - mean) / deviation
    gram = z.T @ z + penalty * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(gram, z.T @ (y - y.mean(0))) / deviation[:, None]
    return torch.cat((weight, y.mean(0, keepdim=True) - mean @ weight))


def _with_constant(x: Tensor) -> Tensor:
    return F.pad(x.double(), (0, 1), value=1.0)


def _explained(said: Tensor, wanted: Tensor) -> float:
    """R²: 1 less the squared error over that of the mean."""
    wanted = wanted.double()[:, None] if wanted.dim() == 1 else wanted.double()
    return float(1 - (said - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum().clamp(min=1e-30))


def _drawn(types: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The control task: every type has one class, drawn as often as the classes occur."""
    kinds, which = types.unique(return_inverse=True)
    drawn = labels.cpu()[torch.randint(0, len(labels), (len(kinds),), generator=generator)]
    return drawn.to(labels.device)[which]


def _check(features: Tensor, labels: Tensor, groups: Tensor | None, types: Tensor | None, held_out: float) -> None:
    if features.dim() != 2 or not len(features):
        raise InputError(f"features must be [N, D] with at least one example, not {list(features.shape)}")
    for name, given in (("labels", labels), ("groups", groups), ("types", types)):
        if given is not None and len(given) != len(features):
            raise InputError(f"there are {len(features)} examples, but {len(given)} {name}; give one for each")
    if not features.isfinite().all():
        raise InputError("features must be numbers, and some are NaN or infinite")
    if not 0 < held_out < 1:
        raise InputError(f"the part held out must be between 0 and 1, not {held_out}")
    if len(features if groups is None else groups.unique()) < 2:
        raise InputError("a probe needs two examples (or groups) at least, one of them to be held out")
    if labels.dtype.is_floating_point:
        return
    if labels.dim() != 1 or int(labels.min()) < 0:
        raise InputError("classes must be numbers from 0 on, one for each example")
    if len(labels.unique()) < 2:
        raise InputError("a probe tells classes apart, and all labels are the same")
