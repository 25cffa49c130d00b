"""Those who watch a model: methods of the modules that they want to see are wrapped while they do, and no others.

A wrap stands on the instance alone, in front of its class's method, and is taken away without a trace. What passes is
shown beside the way that it takes: the same kernels are called with the same tensors, so the same bits come out. Only
what a watcher changes takes another way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from anyformer.errors import InputError
from anyformer.inspection.tracing.blocks import Wrap, wraps_of_block
from anyformer.inspection.tracing.place import Place, Watcher
from anyformer.model import Transformer
from anyformer.model.block import Block
from anyformer.model.stack import Stack

_watchers: WeakKeyDictionary[nn.Module, list[Watcher]] = WeakKeyDictionary()
_undoing: WeakKeyDictionary[nn.Module, list[Callable[[], object]]] = WeakKeyDictionary()


class Watching(Watcher):
    """A watcher for the time of a `with`. Without watchers the model is as it was before the first.

    Raises `InputError` for what nobody can watch, when it is made and when it is entered."""

    def __init__(self, model: Transformer) -> None:
        check_watchable(model)
        self.model = model

    def __enter__(self) -> Self:
        check_watchable(self.model)
        _rewrap(self.model, [*_watchers.get(self.model, ()), self])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _rewrap(self.model, [other for other in _watchers.get(self.model, ()) if other is not self])


def check_watchable(model: nn.Module) -> None:
    """Raises `InputError` for what nobody can watch: a compiled model, one that drops at random, or no model."""
    if any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules()):
        raise InputError(
            "a compiled model cannot be traced, as its code no longer calls what it was made of; trace the model as it "
            "was before torch.compile (compiled._orig_mod), or build it again and load its weights"
        )
    if not isinstance(model, Transformer):
        raise InputError(f"only a Transformer can be traced, not a {type(model).__name__}; give the model itself")
    if model.training and any(_drops(module) for module in model.modules()):
        raise InputError("this model is in training mode and drops at random; call model.eval() before tracing it")


def _drops(module: nn.Module) -> bool:
    """Whether a module drops something at random while it is trained."""
    if isinstance(module, Block):
        return any(dropout for *_, dropout in module.branches)
    dropout = getattr(module, "dropout", None)
    return isinstance(dropout, float) and dropout > 0


def _rewrap(model: Transformer, watchers: list[Watcher]) -> None:
    """Take all wraps away, then wrap what these watchers want to see."""
    for undo in reversed(_undoing.pop(model, [])):
        undo()
    _watchers[model] = watchers
    undoing = _undoing[model] = []
    # Those who change what passes come first: whoever only looks sees what the model goes on with.
    place = Place("", sorted(watchers, key=lambda watcher: not watcher.changes))
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        if stack is not None and any(site.startswith(f"{name}.") for each in watchers for site in each.sites):
            # A watched stack's steps are neither recorded nor made again from a recording.
            undoing.append(stack.layers.register_forward_hook(_nothing).remove)
            for wrap in _wraps_of_stack(stack, place.of(name)):
                undoing.append(_install(*wrap))
    if model.head is not None and place.wants("logits"):
        undoing.append(_install(*_result(model.head, "logits", place)))


def _wraps_of_stack(stack: Stack, place: Place) -> Iterator[Wrap]:
    if place.wants("embeddings"):
        yield _result(stack.embeddings, "embeddings", place)
    for index, block in enumerate(stack.layers):
        assert isinstance(block, Block)
        yield from wraps_of_block(block, place.of(f"layers.{index}"))
    if place.wants("hidden"):
        yield _result(stack, "hidden", place)


def _result(module: nn.Module, name: str, place: Place) -> Wrap:
    """What a module gives is what passes at this site."""

    def forward(original: Callable[..., Tensor], *args: Any, **named: Any) -> Tensor:
        return place.see(name, original(*args, **named))

    return module, "forward", forward


def _install(module: nn.Module, method: str, wrapper: Callable[..., Any]) -> Callable[[], object]:
    """Put a wrapper, called with the original before its arguments, in front of a method; what undoes it."""
    own = vars(module)
    before = own.get(method)
    own[method] = partial(wrapper, getattr(module, method))
    return partial(own.pop, method) if before is None else partial(own.__setitem__, method, before)


def _nothing(*_: object) -> None:
    """A hook that does nothing but to be there."""
