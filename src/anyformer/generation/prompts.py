"""What a batch of answers begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anyformer.errors import InputError


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device | str) -> tuple[Tensor, Tensor | None]:
    """Ids [B, T] with short rows padded on the left, and which are real (None where all are)."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    valid = torch.arange(longest, device=device)[None] >= longest - lengths[:, None]
    return ids, None if all(len(row) == longest for row in rows) else valid


def unpadded(ids: Tensor, valid: Tensor | None) -> list[list[int]]:
    """The rows of ids [B, T], those of them that are `valid`."""
    return ids.tolist() if valid is None else [row[real].tolist() for row, real in zip(ids, valid)]


@dataclass(frozen=True, slots=True)
class Prompts:
    """What each answer of a batch begins with.

    ids         [B, T], what the decoder reads before it says anything (with an encoder: its start token)
    source      [B, S], what the encoder reads; None where there is none
    valid, source_valid
                which of each are no padding, wherever that stands; None where all are
    past        what the cache that one row goes on from has read of it: penalties and prompt lookup know of that, too
    """

    ids: Tensor
    valid: Tensor | None = None
    source: Tensor | None = None
    source_valid: Tensor | None = None
    past: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.ids.device

    def rows(self) -> list[list[int]]:
        """The ids of each without padding."""
        return unpadded(self.ids, self.valid)

    def sources(self) -> list[list[int]]:
        """The source of each without padding; empty where there is none."""
        return [[] for _ in self.ids] if self.source is None else unpadded(self.source, self.source_valid)

    def checked(self) -> Prompts:
        """The same with all padding of the ids on the left, so that each row ends with its last token, and no more of
        it than the longest row asks for. Raises
        `InputError` for ids that are not [B, T], or of which a row has no token; for padding that is not marked by
        truth values of that shape; and where there is no prompt at all."""
        if self.ids.dim() != 2:
            raise InputError(f"the prompt must be ids [B, T], not {list(self.ids.shape)}; add the batch dimension")
        if len(self.ids) == 0:
            raise InputError(f"there are no prompts in ids {list(self.ids.shape)}; give at least one")
        if self.ids.shape[1] == 0:
            raise InputError("the prompt is empty; give at least one token to continue from")
        if self.valid is None:
            return self
        if self.valid.shape != self.ids.shape:
            raise InputError(f"valid is {list(self.valid.shape)}, but the prompt is {list(self.ids.shape)}")
        if self.valid.dtype != torch.bool:
            raise InputError(f"valid must be bool, true where there is no padding, not {self.valid.dtype}; add .bool()")
        shortest, longest = torch.stack(self.valid.sum(1).aminmax()).tolist()
        if shortest == 0:
            raise InputError("a prompt is all padding; give at least one token to continue from")
        order = torch.argsort(self.valid.long(), dim=1, stable=True)[:, -longest:]
        valid = self.valid.gather(1, order) if shortest < longest else None
        return replace(self, ids=self.ids.gather(1, order), valid=valid)

    def each(self, times: int) -> Prompts:
        """Each of them so many times, one after the other."""
        parts = (self.ids, self.valid, self.source, self.source_valid)
        ids, *others = (None if part is None else part.repeat_interleave(times, 0) for part in parts)
        assert ids is not None
        return Prompts(ids, *others, past=self.past)

    def of_rows(self, rows: Sequence[int]) -> Prompts:
        """These rows, without padding that others asked for."""
        parts = (self.ids, self.valid, self.source, self.source_valid)
        ids, *others = (None if part is None else part[list(rows)] for part in parts)
        assert ids is not None
        its = Prompts(ids, *others, past=self.past)
        ids, valid = left_padded(its.rows(), 0, self.device)
        if self.source is None:
            return Prompts(ids, valid, past=self.past)
        return Prompts(ids, valid, *left_padded(its.sources(), 0, self.device), past=self.past)
