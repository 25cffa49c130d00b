"""Optimizers by name: each takes a model and gives a `torch.optim.Optimizer` over all of its parameters, once each."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; vectors and scalars (norms, biases, sinks), which have no scale to lose, do not.

    Every parameter of the model that learns stands in exactly one group, tied ones included.
    """
    learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    # The biases of a mixture's experts lie side by side and are no matrix.
    vectors = [parameter for name, parameter in learning if parameter.ndim < 2 or name.endswith("bias")]
    matrices = [parameter for name, parameter in learning if parameter.ndim >= 2 and not name.endswith("bias")]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    assert_each_once(model, groups)
    return [group for group in groups if group["params"]]


def assert_each_once(model: nn.Module, groups: list[dict]) -> None:
    """Our own mistake if not: a parameter in no group would never learn, one in two would learn twice."""
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    learning = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(learning), "every parameter must stand in exactly one optimizer group"


def adamw(model: nn.Module, weight_decay: float) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2), β = (0.9, 0.95)."""
    return AdamW(decay_groups(model, weight_decay), betas=(0.9, 0.95), eps=1e-8, fused=True)


#: What an optimizer is called in a recipe -> (model, weight decay) -> the optimizer. Every step sets its learning rate.
OPTIMIZERS: dict[str, Callable[[nn.Module, float], Optimizer]] = {"adamw": adamw}


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Use `learning_rate` in every group from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def moments(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """All tensors of the optimizer's state as `parameter.key`, by the model's parameter names."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}.{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_moments(optimizer: Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a fresh optimizer the state that `moments` read from another one of the same model."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition(".")
        states.setdefault(parameter, {})[key] = tensor
    packed = optimizer.state_dict()
    packed["state"] = {index: states[name] for index, name in enumerate(order) if name in states}
    optimizer.load_state_dict(packed)
