"""A step of decoding that a GPU has made once, made again by replaying its CUDA graph.

A graph launches the same kernels again, on the same addresses and of the same sizes: nothing in it may follow what the
host counts. What moves between two steps is how far each row has come, and that the device knows as well, since rows of
different lengths are told apart by `Cache.counts`. So a step is recorded on a copy of the cache whose `counts` stand in
one place and whose own length is that of a whole bucket. It is a step of ragged rows as any other: all slots of the
bucket are read, and the mask, made on the device from `counts`, hides those that a row has not reached.

    length 1 .. 256 -> 256 slots      257 .. 512 -> 512      513 .. 768 -> 768      1,025 .. 1,280 -> 1,280

Past its bucket a step is recorded anew. Between two replays the host only puts ids and counts in their places: it never
waits for the device. The layers are described once, in `model/block.py`; on a CPU, `model/recording.py` does this work.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from anyformer.model.recording import hooks_of
from anyformer.parts.cache import Cache
from anyformer.parts.context import Context

_LOG = logging.getLogger(__name__)

#: The smallest bucket, and what every bucket is a multiple of: masks of other widths are copied to aligned ones.
LEAST = 256


class Graph(Protocol):
    """Work on a device that can be made again."""

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        """Make it twice, once to be ready and once to remember; where its result will lie from now on."""
        ...

    def replay(self) -> None:
        """Make it again, on what lies in the same places."""
        ...


class CudaGraph:
    """A CUDA graph."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.graph = device, torch.cuda.CUDAGraph()

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        with torch.cuda.device(self.device):
            now, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(now)
            with torch.cuda.stream(side):
                # What only a first call does (handles, workspaces, tables, compilers) is no part of a step.
                work()
            now.wait_stream(side)
            # Other threads may do to the device what they like: a server reads prompts in one of them.
            with torch.cuda.graph(self.graph, stream=side, capture_error_mode="thread_local"):
                return work()

    def replay(self) -> None:
        self.graph.replay()


#: By type of device.
GRAPHS: dict[str, Callable[[torch.device], Graph]] = {"cuda": CudaGraph}


@dataclass(frozen=True)
class Refused:
    """Why a step cannot be recorded."""

    reason: str


class Step:
    """One token more for each row, over fixed addresses, while no row outgrows the bucket."""

    def __init__(self, stack: nn.Module, make: Callable[..., Tensor], ids_BT: Tensor, cache: Cache) -> None:
        self.make, self.bucket = make, bucket(cache.length + 1, cache.capacity)
        self.hooks = hooks_of(stack)
        #: What the graph reads stays where it is, also where the model has since been given other weights.
        self.weights = [parameter.detach() for parameter in stack.parameters()]
        self.ids_BT = torch.empty_like(ids_BT)
        self.cache = copy.copy(cache)
        self.cache.length, self.cache.recordings = self.bucket - 1, {}
        self.cache.counts = torch.empty(len(ids_BT), dtype=torch.long, device=ids_BT.device)
        for layer in self.cache.layers:
            if layer.stored:
                plan = self.cache.plan(layer.horizon, self.cache.queries(1, None, None))
                layer.make_room(plan, cache.slots(plan.stop))
        self.reads = _read(cache)
        self.graph = GRAPHS[ids_BT.device.type](ids_BT.device)
        self._put(ids_BT, cache)
        self.y_BTD = self.graph.record(self.run)

    def serves(self, cache: Cache) -> bool:
        """Whether the cache is still where it was, and within the bucket."""
        now = _read(cache)
        same = len(now) == len(self.reads) and all(a is b for a, b in zip(now, self.reads))
        return same and cache.length < self.bucket

    def run(self) -> Tensor:
        """The step as it is recorded: a pass of the stack with whatever it makes on the way, masks and tables too."""
        return self.make(
            self.ids_BT,
            Context(self.cache.queries(1, None, None), source_tokens=self.cache.source, cache=self.cache),
        )

    def __call__(self, ids_BT: Tensor, cache: Cache) -> Tensor:
        """What the stack makes of ids [B, 1], [B, 1, D]."""
        self._put(ids_BT, cache)
        self.graph.replay()
        return self.y_BTD.clone()

    def _put(self, ids_BT: Tensor, cache: Cache) -> None:
        assert self.cache.counts is not None
        self.ids_BT.copy_(ids_BT)
        if cache.counts is None:
            self.cache.counts.fill_(cache.length)
        else:
            self.cache.counts.copy_(cache.counts)


def run(stack: nn.Module, make: Callable[..., Tensor], ids_BT: Tensor, context: Context) -> Tensor | None:
    """What `make(ids, context)`, the pass of a stack, gives for one token more a row, from a recorded step [B, 1, D];
    None where the stack must run itself: no such device, no such step, or one that cannot be recorded.

    The first step of a cache is never recorded, as it may well be the last."""
    cache = context.cache
    if ids_BT.device.type not in GRAPHS or cache is None or not _plain(stack, ids_BT, context, cache):
        return None
    key = ("graph", len(ids_BT))
    found: Any = cache.recordings.get(key)
    if key not in cache.recordings:
        cache.recordings[key] = None
        return None
    if isinstance(found, Refused):
        return None
    if found is None or not found.serves(cache):
        if any(hooks_of(stack)):
            return None
        found = cache.recordings[key] = None  # so that its memory is free before there is another
        try:
            found = cache.recordings[key] = Step(stack, make, ids_BT, cache)
        except RuntimeError as problem:
            # What torch says when a device is to be waited for; or that there is too little memory for two.
            cache.recordings[key] = Refused(str(problem))
            _LOG.debug("steps are made one by one, for they cannot be recorded: %s", why_not(cache))
            return None
    return None if any(found.hooks) else found(ids_BT, cache)


def why_not(cache: Cache) -> str | None:
    """Why the last steps of a cache could not be recorded; None where they were, or none was tried."""
    return next((found.reason for found in cache.recordings.values() if isinstance(found, Refused)), None)


def bucket(length: int, capacity: int | None = None) -> int:
    """How many slots a step reads that reaches `length`: at most a quarter or `LEAST` more, so that a text of n tokens
    is recorded O(log n) times; and no more than `capacity`."""
    grain = max(LEAST, 1 << max((length - 1).bit_length() - 3, 0))
    found = -(-length // grain) * grain
    return found if capacity is None else min(found, capacity)


def _plain(stack: nn.Module, ids_BT: Tensor, context: Context, cache: Cache) -> bool:
    """Whether this is one token more for each row, on a cache that has some, and outside of anybody's watch."""
    size = getattr(stack.get_submodule("embeddings").positions, "size", None)
    reached = cache.length + 1
    whole = bucket(reached, cache.capacity)
    return (
        ids_BT.shape[1] == 1
        and cache.length > 0
        and context.queries.valid is None
        and context.source is None
        and not stack.training
        and not torch.is_grad_enabled()
        # What lies beyond the positions learned is for the pass itself to complain about.
        and (size is None or reached <= size)
        # The angles of the whole bucket must be those of the length reached.
        and all(stretch.regime(whole) == stretch.regime(reached) for stretch in cache.stretches)
        and not torch.is_autocast_enabled(ids_BT.device.type)
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
    )


def _read(cache: Cache) -> list[Any]:
    """All that a step reads of a cache, besides the counts."""
    return [cache.prefix, cache.source, *(kept for layer in cache.layers for kept in (layer.stored, layer.crossed))]
