"""What a model is asked for: each objective turns windows of text into the inputs of a step, and a step into a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from anyformer import spec
from anyformer.data import NO_TARGET, Window
from anyformer.errors import TrainingError


@dataclass(frozen=True)
class Batch:
    """The inputs of one call of a model, its keyword arguments, and how many targets they hold (known on the host)."""

    inputs: dict[str, Any]
    target_count: int

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        moved = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in self.inputs.items()
        }
        return Batch(moved, self.target_count)


class Objective(Protocol):
    """What the trainer needs of one. A random one draws from `generator`, which is a function of seed and step."""

    def check(self, model: spec.Transformer) -> None:
        """Raise `TrainingError` where a model of this spec cannot have this objective."""

    def batch(self, windows: Sequence[Window], generator: np.random.Generator) -> Batch:
        """Windows as the inputs of one call."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum over the targets of their loss, what the model itself adds to be minimised), float32 scalars.

        Sums, so that micro-batches add up to the step whatever number of targets each has.
        """
        ...


class Causal:
    """Predict each token from those before it in its document, log P(x_t | x_<t) (Bengio et al. 2003, eq. 1)."""

    def check(self, model: spec.Transformer) -> None:
        if model.shape != "decoder" or model.head.kind != "language_model":
            raise TrainingError(
                f"training.objective 'causal' needs a decoder with a language-model head; this model is of shape "
                f"'{model.shape}' with head '{model.head.kind}'"
            )
        if any(attention.visibility != "causal" for attention in model.output.attentions()):
            raise TrainingError("training.objective 'causal' needs attention of visibility 'causal' in every layer")

    def batch(self, windows: Sequence[Window], generator: np.random.Generator) -> Batch:
        targets = np.stack([window.targets for window in windows])
        inputs = {
            "tokens": torch.from_numpy(np.stack([window.tokens for window in windows])),
            "targets": torch.from_numpy(targets),
            "documents": tuple(window.documents for window in windows),
        }
        return Batch(inputs, int((targets != NO_TARGET).sum()))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        out = model(**batch.inputs)
        return out.loss * batch.target_count, torch.as_tensor(out.auxiliary_loss) * batch.target_count


#: What an objective is called in a recipe.
OBJECTIVES: dict[str, Objective] = {"causal": Causal()}
