"""The processes of a run: one, or those that torchrun started, and what they must agree on.

`Alone` is one process, which agrees with itself and imports nothing of torch.distributed. `Ranks` are many, on a
DeviceMesh of the recipe's `scale`:

    data × shard × context × expert × tensor      the last one nearest: its ranks speak most, and belong on one machine

Ranks that differ in data, shard or expert read rows of their own; those that differ in context read stretches of the
same rows; those that differ in tensor read the same.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from anyformer.errors import TrainingError
from anyformer.model import Transformer
from anyformer.model.building import best_device
from anyformer.training.optimizers import learning
from anyformer.training.scale.sizes import ALONE, Sizes, sizes_for
from anyformer.training.scale.snapshots import write_whole
from anyformer.training.state import Checkpoints, Counters, read_json

if TYPE_CHECKING:
    from anyformer.training.recipe import Scale

T = TypeVar("T")

#: How long the others wait for what the first rank does alone: it may tokenise a corpus. A collective that waits so
#: long is taken for dead (after ten minutes with NCCL), so they wait at the store.
PATIENCE = timedelta(days=7)
_WAITS = itertools.count()


def leads() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


class Alone:
    """One process. Everything that many would have to agree on is as it is."""

    rank, rows = 0, 1
    sizes: Sizes = ALONE

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes metrics, shows progress, and says what is wrong."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return best_device()

    def first(self, make: Callable[[], T]) -> T:
        """`make()` on the first rank, then on the others, which find done what it leaves on disk."""
        return make()

    def sum(self, value: float) -> float:
        """The sum over all ranks that read rows of their own."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether it holds on any rank."""
        return flag

    def share(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """The items that are this rank's, as many on each rank, and whether each counts: one that only fills up does
        not."""
        return [(item, True) for item in items]

    def seed(self, seed: int) -> int:
        """A seed of this rank's own for what is drawn within a model (dropout)."""
        return seed

    def lay(self, model: Transformer, precision: str) -> None:
        """Lay a hollow model over the ranks in place; its products are computed in `precision`."""

    def settle(self) -> None:
        """Leave the model's parameters as they are kept, after a pass without gradients."""

    def clip(self, model: Transformer, limit: float) -> float:
        """Clip the gradient of the whole model to the norm `limit`; its norm before."""
        return torch.nn.utils.clip_grad_norm_(model.parameters(), limit).item()

    def begin(self, index: int, count: int) -> None:
        """Say that micro-batch `index` of `count` comes next."""

    def checkpoints(self, run: Path, keep: int) -> Checkpoints:
        """The checkpoints of the run in `run`."""
        return Checkpoints(run, keep)

    def newest(self, saved: Checkpoints, tell: Callable[[str], None]) -> tuple[Path, Counters] | None:
        """The newest whole checkpoint, the same on all ranks."""
        return saved.newest_whole(tell)

    def save(self, model: Transformer, directory: Path) -> None:
        """Write the whole model as one checkpoint like any other."""
        model.save(directory)

    def write(self, directory: Path, model: Transformer, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write a model, and the tensors of an optimizer and the like beside it, for `snapshots` to read."""
        write_whole(directory, model, tensors)


class Ranks(Alone):
    """Many processes, of which this is one; made by `joined`."""

    def __init__(self, sizes: Sizes) -> None:
        import torch.distributed as dist

        from anyformer.training.scale.meshes import Meshes

        self.sizes, self.rank, self.size = sizes, dist.get_rank(), dist.get_world_size()
        self._device = _own_device()
        self.meshes = Meshes(self._device.type, sizes)
        place = dict(zip(sizes, np.unravel_index(self.rank, tuple(sizes.values())), strict=True))
        self.rows = sizes["data"] * sizes["shard"] * sizes["expert"]
        #: This rank among those with rows of their own.
        self.row = int((place["data"] * sizes["shard"] + place["shard"]) * sizes["expert"] + place["expert"])
        self._laid: dict[Transformer, Any] = {}

    @property
    def device(self) -> torch.device:
        return self._device

    def first(self, make: Callable[[], T]) -> T:
        failure: Exception | None = None
        made: Any = None
        if self.leads:
            try:
                made = make()
            except Exception as error:
                failure = error
        self._await_first()
        if self.any(failure is not None):
            # The first rank says what is wrong; the others need not say it again.
            raise failure if failure is not None else SystemExit(2)
        return made if self.leads else make()

    def sum(self, value: float) -> float:
        return self._reduced(value, "sum") * self.rows / self.size

    def any(self, flag: bool) -> bool:
        return bool(self._reduced(float(flag), "max"))

    def share(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        each = -(-len(items) // self.rows)
        places = range(self.row, each * self.rows, self.rows)
        return [(items[min(place, len(items) - 1)], place < len(items)) for place in places]

    def seed(self, seed: int) -> int:
        return (seed + self.row) % 2**64

    def lay(self, model: Transformer, precision: str) -> None:
        from anyformer.training.scale.parallel import lay

        self._laid[model] = lay(model, self.meshes, precision)

    def settle(self) -> None:
        for laid in self._laid.values():
            laid.settle()

    def clip(self, model: Transformer, limit: float) -> float:
        return self._laid[model].clip(limit)

    def begin(self, index: int, count: int) -> None:
        for laid in self._laid.values():
            laid.is_last(index + 1 == count)

    def checkpoints(self, run: Path, keep: int) -> Checkpoints:
        from anyformer.training.scale.sharded import ShardedCheckpoints

        return ShardedCheckpoints(run, keep)

    def newest(self, saved: Checkpoints, tell: Callable[[str], None]) -> tuple[Path, Counters] | None:
        # The first rank alone reads all of a checkpoint to find out whether it is whole.
        found = saved.newest_whole(tell) if self.leads else None
        self._await_first()
        step = int(self._reduced(found[1].step if found is not None else -1, "max"))
        if step < 0:
            return None
        path = saved.path(step)
        return path, Counters(**read_json(path / "state.json"))

    def save(self, model: Transformer, directory: Path) -> None:
        from anyformer.training.scale.sharded import save_whole

        save_whole(model, directory, self.leads)

    def write(self, directory: Path, model: Transformer, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        from anyformer.training.scale.sharded import write_shards

        write_shards(directory, {"model": learning(model), **tensors})

    def _await_first(self) -> None:
        """Wait until the first rank is here, however long that takes."""
        from torch.distributed.distributed_c10d import _get_default_store

        store, here = _get_default_store(), f"anyformer/{next(_WAITS)}"
        if self.leads:
            store.set(here, "")
        else:
            store.wait([here], PATIENCE)

    def _reduced(self, value: float, how: str) -> float:
        import torch.distributed as dist

        held = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(held, dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MAX)
        return held.item()


def _own_device() -> torch.device:
    """The accelerator of this process among those of its machine, made the current one; else the CPU."""
    kind, local = best_device().type, int(os.environ.get("LOCAL_RANK", "0"))
    if kind == "cpu":
        return torch.device(kind)
    torch.accelerator.set_device_index(local)
    return torch.device(kind, local)


@contextmanager
def joined(scale: Scale) -> Iterator[Alone]:
    """The processes of this run: those that torchrun started, or this one alone.

    Raises `TrainingError` where they are not as many as `scale` needs.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        sizes = sizes_for(scale, count)
    except TrainingError:
        if leads():
            raise
        # All find the same, and the first one says it.
        raise SystemExit(2) from None
    if count == 1:
        yield Alone()
        return
    import torch.distributed as dist

    if dist.is_initialized():
        yield Ranks(sizes)
        return
    device = _own_device()
    dist.init_process_group(device_id=None if device.type == "cpu" else device)
    try:
        yield Ranks(sizes)
    finally:
        dist.destroy_process_group()
