"""The matrices that a GGUF file holds in block formats, under our names and in the file's own bytes.

Rows may be moved about (the order of queries and keys), stacked and cut apart; where the table does more to a matrix,
there are no blocks of it, and its dequantised tensor stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from torch import Tensor

from anyformer.checkpoints.gguf import PLAIN_TYPES, GgufFile
from anyformer.checkpoints.tensors import Lazy, to_ours, to_saved
from anyformer.families.names import Line
from anyformer.parts.blocks import FORMATS, Blocks
from anyformer.planning.shapes import Shapes


def kept(file: GgufFile, places: Iterable[tuple[Line, list[str]]], wanted: Shapes) -> Lazy[Blocks]:
    """What of the file stays in blocks, by our names; `places` as `Loaded` has them, `wanted` the spec's shapes."""
    makers: dict[str, Callable[[], Blocks]] = {}
    for line, names in places:
        types = {file.tensors[name].type for name in names}
        if len(types) == 1 and types <= FORMATS.keys() and keeps_rows(line, wanted):
            for index, ours in enumerate(line.ours):
                makers[ours] = partial(_read, file, line, names, wanted, index)
    return Lazy(makers)


def quantised(file: GgufFile, places: Iterable[tuple[Line, list[str]]]) -> frozenset[str]:
    """Our names of what the file holds in few bits, in whatever format."""
    packed = (line for line, names in places if any(file.tensors[name].type not in PLAIN_TYPES for name in names))
    return frozenset(ours for line in packed for ours in line.ours)


def keeps_rows(line: Line, wanted: Shapes) -> bool:
    """Whether each row of our matrices is a row of the saved ones."""
    columns = len(wanted[line.ours[0]]) - 1
    apart = len(line.ours) > 1 and line.entry.axis % (columns + 1) == columns
    return columns > 0 and not apart and all(layout.whole_rows for layout in line.entry.layout)


def saved_blocks(line: Line, blocks: Mapping[str, Blocks]) -> Tensor:
    """The bytes of a saved tensor, put together of our blocks where the line keeps rows."""
    return to_saved(line, [blocks[name].data for name in line.ours])


def _read(file: GgufFile, line: Line, names: Sequence[str], wanted: Shapes, index: int) -> Blocks:
    data = to_ours(line, [file.stored(name) for name in names], wanted)[index]
    return Blocks(data.contiguous(), FORMATS[file.tensors[names[0]].type])
