"""A step of decoding that has been made once, made again by one native call.

Between two steps of one cache little changes: the stream that comes in, the angles of the new positions, the slots
that keys go to, how many keys there are and which are hidden. The first step runs through the layers as any pass does,
while its native calls are noted; for the next ones only those numbers are put in place. So the layers are described
once, in `model/block.py`, and Python's share of a token is the same for thirty of them as for one.

A step that does anything else than native calls (another kernel, a hook) is not recorded, and runs as ever. A
mixture's does where a family of one's own has another router than those here, or an activation that the kernel has no
name for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from anyformer.parts.cache import Plan
from anyformer.parts.context import Context
from anyformer.parts.kernels import few, native
from anyformer.parts.kernels.native import loading
from anyformer.parts.kernels.native.tape import Note, Replay, record
from anyformer.parts.masks import Bias, Mask
from anyformer.parts.positions import RotaryAngles

#: How new keys may enter a layer for a step to be made again: all of them into their slots, nothing moved.
_HOW = ("slice", "ring", "scatter")


class Recording:
    """The layers' part of one step, to be made again for the same cache and shape of input."""

    def __init__(self, x: Tensor, y: Tensor, notes: Sequence[Note], context: Context, layers: nn.ModuleList) -> None:
        cache = context.cache
        assert cache is not None
        self.x, self.y, self.replay = x, y, Replay(notes)
        self.hooks = hooks_of(layers)
        horizons = {store.data_ptr(): layer.horizon for layer in cache.layers for store in layer.stored}
        plans = {layer.horizon: context.plan(layer) for layer in cache.layers if layer.stored}
        #: Of every horizon a layer, and how keys enter it.
        self.layers = {layer.horizon: layer for layer in cache.layers if layer.stored}
        self.stored = {horizon: layer.stored for horizon, layer in self.layers.items()}
        self.how = {horizon: plan.how for horizon, plan in plans.items()}
        turning = {tables[0].data_ptr(): angles for angles, tables in context.turning()}
        self.turns: list[tuple[Any, RotaryAngles]] = []
        self.keeps: list[tuple[Any, int | None]] = []
        self.looks: dict[tuple[int | None, Mask, Bias | None], list[Any]] = {}
        for call, about in ((note.call, note.about) for note in notes):
            match call:
                case loading.Rotary():
                    self.turns.append((call, turning[call.cos]))
                case loading.Keep() if call.store in horizons:
                    self.keeps.append((call, horizons[call.store]))
                case loading.Attention() if call.k in horizons:
                    visible, bias = about
                    self.looks.setdefault((horizons[call.k], visible.mask, bias), []).append(call)
        self.held: list[Any] = []

    def outgrown(self) -> bool:
        """Whether a step of another shape has since moved the cache to larger storage."""
        return any(layer.stored is not self.stored[horizon] for horizon, layer in self.layers.items())

    def step(self, x: Tensor, context: Context) -> Tensor | None:
        """What the layers make of x; None where this is not the step that was recorded."""
        if any(self.hooks):
            return None
        plans = {horizon: context.plan(layer) for horizon, layer in self.layers.items()}
        if any(plan.how != self.how[horizon] or not self.layers[horizon].room(plan) for horizon, plan in plans.items()):
            return None
        held: list[Any] = [plans]
        self._turn(context, held)
        for call, horizon in self.keeps:
            _aim(call, plans[horizon])
        for (horizon, mask, bias), calls in self.looks.items():
            plan = plans[horizon]
            added = few.added(context.visible(mask, plan.keys), bias)
            held.append(added)
            address = None if added is None else added.data_ptr()
            strides = native.strides_of(added)
            for call in calls:
                call.S, call.added, call.added_strides = plan.keys.length, address, strides
        self.x.copy_(x)
        self.replay()
        self.held = held  # what the calls now point to, until they are pointed elsewhere
        return self.y.clone()

    def _turn(self, context: Context, held: list[Any]) -> None:
        for call, angles in self.turns:
            tables = context.rotary(angles, context.queries)
            held.append(tables)
            call.cos, call.sin = tables[0].data_ptr(), tables[1].data_ptr()


def _aim(call: Any, plan: Plan) -> None:
    """Point a call at the slots of a plan."""
    if plan.slots is not None:
        call.slots = plan.slots.data_ptr()
    else:
        call.first = plan.start % plan.ring if plan.how == "ring" else plan.start


#: What a recording takes note of, and what leaves nothing to note.
_PLAIN = {"aten::new_empty", "aten::empty"}
_PLAIN |= {structure.function.replace("_", "::", 1) for structure in loading.STRUCTURES}  # type: ignore[attr-defined]


class _OnlyNative(TorchDispatchMode):
    """Sees every operation of torch; `others` are those that a recording would leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.others: set[str] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # No compiler looks at a recording, and to keep it out torch would import it: two seconds.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = func.is_view or func._schema.name in _PLAIN
        if not plain:
            self.others.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def hooks_of(module: nn.Module) -> list[dict[Any, Any]]:
    """Where a module and those within keep hooks, which a step that is made again would not call."""
    return [hooks for each in module.modules() for hooks in (each._forward_hooks, each._forward_pre_hooks)]


def recordable(x: Tensor, context: Context, layers: nn.ModuleList) -> bool:
    """Whether it is worth trying: a step of few tokens on a cache that has some, outside of anybody's watch."""
    cache = context.cache
    return (
        cache is not None
        and cache.length > 0
        and not layers.training
        and native.few(x)
        and not layers._forward_hooks
        and not torch._C._len_torch_dispatch_stack()
    )


def run(layers: nn.ModuleList, x: Tensor, context: Context) -> Tensor:
    """The layers one after the other, x [B, T, D] -> [B, T, D]; a step that has been recorded, by its recording."""
    if not recordable(x, context, layers):
        return through(layers, x, context)
    cache = context.cache
    assert cache is not None
    key = (tuple(x.shape), x.dtype)
    found = cache.recordings.get(key)
    if found is not None and found.outgrown():
        # All others are, too, and would keep the old storage from being freed.
        cache.recordings.clear()
        found = None
    if found is not None and (y := found.step(x, context)) is not None:
        return y
    if key in cache.unrecordable:
        return through(layers, x, context)
    kept = x.clone()
    prepare(layers, context)
    with record() as notes, _OnlyNative() as watch:
        y = through(layers, kept, context)
    plans = [context.plan(layer) for layer in cache.layers if layer.stored]
    if watch.others or any(plan.how not in _HOW for plan in plans):
        cache.unrecordable.add(key)
        return y
    cache.recordings[key] = Recording(kept, y, notes, context, layers)
    return y.clone()


def prepare(layers: nn.ModuleList, context: Context) -> None:
    """Make what layers share before any of them runs, and room in their caches, so that all they do is to compute."""
    cache = context.cache
    assert cache is not None
    for layer, kept in zip(layers, cache.layers):
        if kept.stored:
            plan = context.plan(kept)
            kept.make_room(plan, cache.slots(plan.stop))
        for module in layer.children():
            if ready := getattr(module, "prepare_step", None):
                ready(context, kept)


def through(layers: nn.ModuleList, x: Tensor, context: Context) -> Tensor:
    """The layers one after the other."""
    for index, layer in enumerate(layers):
        x = layer(x, context, None if context.cache is None else context.cache.layers[index])
    return x
