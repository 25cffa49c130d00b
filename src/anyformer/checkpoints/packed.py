"""What a file keeps packed is read as the matrices it stands for: no other room knows of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from anyformer.checkpoints.weights import Saved, Source


class PackedSource:
    """Another source's tensors, those in `packed` put together of several; `parts` are no tensors of their own then."""

    def __init__(self, source: Source, packed: Mapping[str, Saved], parts: Collection[str]) -> None:
        self.where, self.source, self.packed = source.where, source, packed
        whole = {name: saved for name, saved in source.saved.items() if name not in parts}
        self.saved: Mapping[str, Saved] = {**whole, **packed}

    def read(self, name: str) -> Tensor:
        """The tensor as the file has it, or what its parts stand for."""
        return self.unpack(name) if name in self.packed else self.source.read(name)

    def unpack(self, name: str) -> Tensor:
        """What the parts of a packed tensor stand for, of the shape and type that `packed` says."""
        raise NotImplementedError
