"""Checkpoints that many processes write together, each its own part, and that any number of them can read.

    step-00000200/shards/shard-00001-model-00001-of-00001.safetensors    what rank 0 holds of each tensor
                         shard-00002-...                                  rank 1
                  state.json, manifest.json                               as ever

The files are those of torch.distributed.checkpoint with its Hugging Face storage: safetensors whose headers say where
in the whole a part lies. Its planners unpickle what is no tensor; these refuse to.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor, distribute_tensor

from anyformer import checkpoints
from anyformer.disk import aside_of, sha256
from anyformer.errors import TrainingError
from anyformer.model import Transformer
from anyformer.model.building import best_device
from anyformer.model.laid import whole
from anyformer.training.lora import Adapted
from anyformer.training.optimizers import learning
from anyformer.training.scale.snapshots import Tensors
from anyformer.training.state import Checkpoints, Counters, empty_aside, put_in_place, seal

SHARDS = "shards"


class ShardedCheckpoints(Checkpoints):
    """The checkpoints of a run of many processes, written by all of them together."""

    def save(self, counters: Counters, write: Callable[[Path], None]) -> Path:
        path = self.path(counters.step)
        leads = dist.get_rank() == 0
        if leads:
            (empty_aside(path) / SHARDS).mkdir()
        dist.barrier()
        aside = aside_of(path)
        try:
            write(aside)
            sums = _gathered(_own_file(aside))
            if leads:
                seal(aside, counters, {f"{SHARDS}/{name}": found for name, found in sums.items()})
                put_in_place(aside, path)
                self.prune()
        except Exception:
            # Nothing that is half written takes up a disk that may be full.
            if leads:
                shutil.rmtree(aside, ignore_errors=True)
            raise
        dist.barrier()
        return path


def write_shards(directory: Path, tensors: Tensors) -> None:
    """Write this rank's part of tensors that lie over all ranks. Every rank calls it."""
    writer = HuggingFaceStorageWriter(str(directory / SHARDS), save_distributed=True)
    try:
        state_dict_saver.save(_flat(tensors), storage_writer=writer, planner=_SavePlanner())
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise OSError(f"process {rank} could not write its part of a checkpoint: {cause}") from None


def read_shards(directory: Path, like: Callable[[str, str], Tensor]) -> dict[str, dict[str, Tensor]]:
    """Read what `write_shards` wrote, however many ranks there were and are.

    `like(what, name)` gives the tensor to fill, laid as it shall be.
    """
    reader = HuggingFaceStorageReader(str(directory / SHARDS))
    found: dict[str, dict[str, Tensor]] = {}
    for key, about in reader.read_metadata().state_dict_metadata.items():
        if not isinstance(about, TensorStorageMetadata):
            raise TrainingError(f"{directory} holds '{key}', which is no tensor, and nothing else is read")
        what, _, name = key.partition(".")
        found.setdefault(what, {})[name] = like(what, name)
    with warnings.catch_warnings():
        # One process has no process group, which is as it should be.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        state_dict_loader.load(_flat(found), storage_reader=reader, planner=_LoadPlanner())
    return found


def save_whole(model: Transformer, directory: Path, leads: bool) -> None:
    """Gather a model that lies over ranks (or its adapter), one tensor after another, and write it from the first
    rank."""
    kept: dict[str, Tensor] = {}
    for name, tensor in (learning(model) if isinstance(model, Adapted) else model.state_dict()).items():
        gathered = whole(tensor)
        if leads:
            kept[name] = gathered.detach().cpu()
    if leads and isinstance(model, Adapted):
        model.write(directory, kept)
    elif leads:
        checkpoints.write(
            directory,
            spec=model.spec,
            tensors=kept,
            family=model.family,
            generation=model.generation,
            tokenizer=model.tokenizer,
            carried=model.carried,
        )
    dist.barrier()


def part_of(parameter: Tensor, numbers: Tensor) -> Tensor:
    """`numbers`, which every rank has, laid over the ranks as a parameter is."""
    if not isinstance(parameter, DTensor):
        return numbers
    return distribute_tensor(
        numbers.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


class _SavePlanner(DefaultSavePlanner):
    def resolve_data(self, write_item: object) -> Tensor:  # type: ignore[override]
        data = super().resolve_data(write_item)  # type: ignore[arg-type]
        assert isinstance(data, Tensor), "only tensors are saved here"
        return data


class _LoadPlanner(DefaultLoadPlanner):
    def load_bytes(self, read_item: object, value: object) -> None:
        raise TrainingError("a checkpoint holds something that is no tensor, which is never read")


def _flat(tensors: Tensors) -> dict[str, Tensor]:
    """Tensors by `what.name`; scalars, which the storage does not know, as views of one dimension."""
    return {
        f"{what}.{name}": tensor if tensor.ndim else tensor.view(1)
        for what, held in tensors.items()
        for name, tensor in held.items()
    }


def _own_file(directory: Path) -> Path:
    return directory / SHARDS / f"shard-{dist.get_rank() + 1:05d}-model-00001-of-00001.safetensors"


def _gathered(file: Path) -> dict[str, str]:
    """The sha256 of every rank's file, by name."""
    own = torch.zeros(33, dtype=torch.uint8)
    if file.exists():
        own = torch.tensor([1, *bytes.fromhex(sha256(file))], dtype=torch.uint8)
    own = own.to(best_device())
    sums = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(sums, own)
    names = (file.name.replace(f"{dist.get_rank() + 1:05d}", f"{rank + 1:05d}", 1) for rank in range(len(sums)))
    return {name: bytes(found[1:].tolist()).hex() for name, found in zip(names, sums) if found[0]}
