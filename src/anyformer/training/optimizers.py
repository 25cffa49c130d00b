"""Optimizers by name: each takes a model and gives the optimizers that together hold every parameter once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from anyformer.model.laid import is_laid, mesh_of
from anyformer.training.adamw import AdamW
from anyformer.training.muon import Muon
from anyformer.training.optimizer import Optimizer


def learning(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that learn, by name; a tied one by its first."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter maps vectors to vectors. The biases of a mixture's experts lie side by side and do not."""
    return parameter.ndim >= 2 and not name.endswith("bias")


def decay_groups(parameters: dict[str, Tensor], weight_decay: float) -> list[dict]:
    """Matrices decay; vectors and scalars (norms, biases, sinks), which have no scale to lose, do not. A group lies
    over one mesh of processes, as torch's fused kernel wants it."""
    groups: dict[tuple[bool, Any], list[Tensor]] = {}
    for name, parameter in parameters.items():
        groups.setdefault((is_matrix(name, parameter), mesh_of(parameter)), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda group: not group[0][0])
    return [{"params": params, "weight_decay": weight_decay if decays else 0.0} for (decays, _), params in ordered]


def adamw(model: nn.Module, weight_decay: float) -> list[Optimizer]:
    """AdamW for everything."""
    return [AdamW(decay_groups(learning(model), weight_decay))]


def muon(model: nn.Module, weight_decay: float) -> list[Optimizer]:
    """Muon for the matrices between embeddings and head, one projection at a time; AdamW for everything else, also the
    stacked matrices of experts.
    """
    parameters = learning(model)
    hidden = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.ndim == 2 and is_matrix(name, parameter) and ".layers." in f".{name}"
    }
    rest = {name: parameter for name, parameter in parameters.items() if name not in hidden}
    # Either may be empty: of an adapted model nothing but matrices in the layers learns.
    made: list[Optimizer] = []
    if hidden:
        kind = _muon_for(hidden.values())
        made.append(kind([{"params": list(hidden.values()), "weight_decay": weight_decay}]))
    if rest:
        made.append(AdamW(decay_groups(rest, weight_decay)))
    return made


def _muon_for(parameters: Iterable[Tensor]) -> type[Muon]:
    """The Muon for parameters that this process has all of, or that lie over many."""
    if not any(is_laid(parameter) for parameter in parameters):
        return Muon
    from anyformer.training.scale.sharded_muon import ShardedMuon

    return ShardedMuon


#: What an optimizer is called in a recipe -> (model, weight decay) -> optimizers. Every step sets their learning rate.
OPTIMIZERS: dict[str, Callable[[nn.Module, float], list[Optimizer]]] = {"adamw": adamw, "muon": muon}


def optimizers(name: str, model: nn.Module, weight_decay: float) -> list[Optimizer]:
    """The optimizers of that name, which hold each parameter of the model that learns exactly once, tied ones too."""
    made = OPTIMIZERS[name](model, weight_decay)
    assert_each_once(model, made)
    return made


def assert_each_once(model: nn.Module, made: Sequence[Optimizer]) -> None:
    """Our own mistake if not: a parameter in no group would never learn, one in two would learn twice."""
    grouped = [id(parameter) for optimizer in made for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, learning(model).values())), (
        "every parameter must stand in exactly one optimizer group"
    )


def set_learning_rate(made: Sequence[Optimizer], learning_rate: float) -> None:
    """Use `learning_rate` in every group from the next step on."""
    for optimizer in made:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate


def moments(made: Sequence[Optimizer], model: nn.Module) -> dict[str, Tensor]:
    """All tensors of the optimizers' states as `parameter.key`, by the model's parameter names."""
    names = {parameter: name for name, parameter in learning(model).items()}
    return {
        f"{names[parameter]}.{key}": value
        for optimizer in made
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_moments(made: Sequence[Optimizer], model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give fresh optimizers the state that `moments` read from others of the same model."""
    parameters = learning(model)
    owner = {
        parameter: optimizer for optimizer in made for group in optimizer.param_groups for parameter in group["params"]
    }
    for key, tensor in tensors.items():
        name, _, what = key.rpartition(".")
        parameter = parameters[name]
        owner[parameter].state[parameter][what] = tensor.to(parameter.device)
