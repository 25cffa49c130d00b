"""The average of a model's weights over its latest steps, steadier than any one of them (Polyak & Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from anyformer.model.laid import local
from anyformer.training.optimizers import learning


class Average:
    """a ← d·a + (1 - d)·w after every step, in float32, for each parameter w that learns.

    d is `decay`, and less at first: after step t (from 0) no more than (1 + t) / (10 + t), so that next to nothing of
    the weights that a run begins with stays in the average of even a short one.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = learning(model)
        self.averages = {name: weight.detach().float().clone() for name, weight in self.weights.items()}

    def update(self, step: int) -> None:
        """Take in the weights as step `step` left them."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, weights = ([local(tensor) for tensor in held.values()] for held in (self.averages, self.weights))
        get_ema_multi_avg_fn(decay)(averages, weights, step)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model has the averages for weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self.weights.items():
            held = weight.clone()
            weight.copy_(self.averages[name])
            self.averages[name].copy_(held)

    @torch.no_grad()
    def load(self, averages: dict[str, Tensor]) -> None:
        """Take up what `averages` held of another of the same model."""
        for name, average in self.averages.items():
            average.copy_(averages[name])
