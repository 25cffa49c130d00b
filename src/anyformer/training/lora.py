"""LoRA: the weights stay as they are, and what is learned is a change of low rank beside each of some matrices.

    y = W x + α/r · B A x        A [r, in], B [out, r], B zero at first (Hu et al. 2022, section 4.1)

peft puts the changes into the model, and `checkpoints.adapters` writes and reads its files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from torch import Tensor, nn

from anyformer import spec
from anyformer.checkpoints import adapters
from anyformer.errors import TrainingError
from anyformer.model import Transformer
from anyformer.model.laid import parts, place, whole
from anyformer.parts.experts import Experts
from anyformer.parts.feedforward import FeedForward
from anyformer.spec.base import Part
from anyformer.training.optimizers import learning

ALL = "all"
#: What peft calls an adapter that is the only one.
NAME = "default"
#: Heads that belong to a task, not to the model: they learn whole.
TASK_HEADS = ("sequence_classification", "token_classification")


class Lora(Part, frozen=True):
    """How the changes look: their `rank` r, `alpha` α (the change counts α/r), the `dropout` of what A reads, and the
    `targets`: ends of the names of linear layers (`query`, `cross_attention.query`), or `all` of those in the blocks.
    """

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("query", "value")

    @property
    def scale(self) -> float:
        """α / r."""
        return self.alpha / self.rank

    @field_validator("targets", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


def targets(model: Transformer, settings: Lora) -> list[str]:
    """The names of the linear layers that the settings mean.

    Raises `TrainingError` for a target that the model does not have, listing those it has, and for a rank that a
    matrix cannot have.
    """
    linears = _linears(model)
    for target in settings.targets:
        if target != ALL and not any(_ends_in(name, target) for name in linears):
            ends = dict.fromkeys(name.rpartition(".")[2] for name in linears)
            mixture = "; in a mixture of experts only attention takes adapters" if _has_experts(model) else ""
            raise TrainingError(
                f"lora.targets: the model has no linear layer '{target}' in its blocks; it has {', '.join(ends)}, or "
                f"'{ALL}' of them{mixture}"
            )
    chosen = {
        name: linear
        for name, linear in linears.items()
        if any(target == ALL or _ends_in(name, target) for target in settings.targets)
    }
    for name, linear in chosen.items():
        if settings.rank > min(linear.weight.shape):
            raise TrainingError(
                f"lora.rank={settings.rank} is larger than {name} allows, a matrix of {linear.out_features} x "
                f"{linear.in_features}; choose a rank well below {min(linear.weight.shape)}, or other lora.targets"
            )
    return list(chosen)


def _linears(model: Transformer) -> dict[str, nn.Linear]:
    """The linear layers of the blocks that can take an adapter, by name: beside a mixture of experts those of attention
    alone, for peft takes names of feed-forwards there for the experts', and these are no linear layers."""
    closed = (Experts, FeedForward) if _has_experts(model) else ()
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, closed))
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name and not name.startswith(inside)
    }


def _has_experts(model: nn.Module) -> bool:
    return any(isinstance(module, Experts) for module in model.modules())


def _ends_in(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


class Adapted(Transformer):
    """A model whose weights stay as they are, with changes beside some of its matrices, which learn.

    .lora       how the changes look
    .base       what names the checkpoint that the model was (a path, or `org/name@commit`), or ""
    """

    lora: Lora
    base: str

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write what learns as an adapter of the base model, in peft's files and under the names of the reference's
        modules: `peft.PeftModel.from_pretrained` reads it, and `load`."""
        self.write(directory, learning(self))

    def write(self, directory: str | os.PathLike[str], learned: Mapping[str, Tensor]) -> None:
        """The same of what learns as it is given, by name."""
        scale = self.lora.scale
        changes = {
            f"{name}.weight": adapters.LowRank(
                learned[f"{name}.lora_A.{NAME}.weight"], learned[f"{name}.lora_B.{NAME}.weight"], scale
            )
            for name in self.changes()
        }
        repository, _, commit = (self.base, "", "") if Path(self.base).exists() else self.base.partition("@")
        adapters.write(
            Path(directory),
            changes,
            {name: learned[name] for name in self.whole()},
            spec=self.spec,
            family=self.family,
            base=repository,
            revision=commit or None,
            dropout=self.lora.dropout,
        )

    @torch.no_grad()
    def restore(self, directory: Path) -> None:
        """Give what learns the numbers that `save` wrote of it, to the bit."""
        changes, whole = {f"{name}.weight": layer for name, layer in self.changes().items()}, self.whole()
        found, replaced = adapters.read(directory, changes, whole, spec=self.spec, family=self.family)
        for name, halves in found.items():
            for parameter, tensor in zip(_halves(changes[name]), halves, strict=True):
                place(parameter, tensor)
        for name, tensor in replaced.items():
            place(whole[name], tensor)

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        """Draw every A anew, uniform within 1/√in as peft has it, and make every B zero."""
        generator = torch.Generator(self.device).manual_seed(seed)
        for layer in self.changes().values():
            A, B = _halves(layer)
            drawn = torch.empty(A.shape, dtype=A.dtype, device=self.device)
            place(A, nn.init.kaiming_uniform_(drawn, a=5**0.5, generator=generator))
            B.zero_()

    @torch.no_grad()
    def merge(self) -> Transformer:
        """Make the changes part of the weights, W + α/r · B A: the model becomes one like any other, all of which
        learns, and is returned."""
        for name, layer in self.changes().items():
            linear, (A, B) = layer.get_base_layer(), _halves(layer)
            weight, change = parts(linear.weight, whole(B) @ whole(A) * self.lora.scale)
            weight.add_(change)
            self.set_submodule(name, linear)
        self.requires_grad_(True)
        self.__class__ = Transformer  # type: ignore[assignment]
        return self

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Within, the model computes what it did before it was adapted."""
        changes = self.changes().values()
        for layer in changes:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in changes:
                layer.enable_adapters(True)

    def changes(self) -> dict[str, Any]:
        """peft's layers, by the names of the linear layers in whose place they stand."""
        return {name: module for name, module in self.named_modules() if hasattr(module, "lora_A")}

    def whole(self) -> dict[str, Tensor]:
        """The parameters that learn as they are: those of a classifier's head."""
        return {name: parameter for name, parameter in learning(self).items() if ".lora_" not in name}

    def own(self) -> dict[str, Tensor]:
        """The parameters of the model that was adapted, by the names that they had."""
        named = self.named_parameters()
        return {name.replace(".base_layer.", "."): parameter for name, parameter in named if ".lora_" not in name}


def _halves(layer: Any) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] of one of peft's layers."""
    return layer.lora_A[NAME].weight, layer.lora_B[NAME].weight


def adapt(model: Transformer, settings: Lora, *, base: str = "", seed: int = 0) -> Adapted:
    """Freeze a model, but for a classifier's head, and put changes beside the linear layers that the settings name; A
    is drawn from `seed` (of a hollow model later, by `draw`). The model itself is what becomes adapted; it computes the
    same as before, until it learns.

    Raises `TrainingError` as `targets`, and where peft is not installed.
    """
    names, peft = targets(model, settings), _peft()
    config = peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=names
    )
    with torch.random.fork_rng():
        peft.inject_adapter_in_model(config, model, NAME)
    if model.spec.head.kind in TASK_HEADS:
        assert model.head is not None
        model.head.requires_grad_(True)
    model.__class__ = Adapted
    assert isinstance(model, Adapted)
    model.lora, model.base = settings, base
    if model.device.type != "meta":
        model.draw(seed)
    return model


def check(description: spec.Transformer, settings: Lora, base: str) -> None:
    """Find out from a model's spec, and from what names its checkpoint, whether it can be adapted; raise as `adapt`."""
    if Path(base).is_dir() and adapters.is_adapter(Path(base)):
        raise TrainingError(
            f"model.from: {base} is an adapter; begin another one with the whole model that came of its run, or train "
            f"all weights (leave out lora)"
        )
    with torch.device("meta"):
        targets(Transformer(description), settings)
    _peft()


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError:
        raise TrainingError("LoRA needs the library peft; install it: pip install 'anyformer[lora]'") from None
    return peft
