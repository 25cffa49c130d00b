"""Protocol buffers, as far as reading a file takes: the fields of a message as they lie in its bytes.

    message = field*      field = key value      key = number << 3 | kind
    kind 0: a varint, 7 bits a byte from the low end, the top bit says that more follow
    kind 1, 5: 8 or 4 bytes      kind 2: a length (varint) and as many bytes: a string, or a message inside

Source: the Protocol Buffers documentation, section "Encoding".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

VARINT, BYTES, FLOAT = 0, 2, 5
_WIDTHS = {1: 8, 5: 4}


class Damaged(ValueError):
    """The bytes are no message; the text says where and why."""


class Field(NamedTuple):
    """A field: what `kind` says it is, and the bytes from `begin` to `end` that hold its value."""

    number: int
    kind: int
    data: bytes
    begin: int
    end: int

    def integer(self) -> int:
        """The value of a varint, which is signed (64 bits, two's complement)."""
        value, _ = _varint(self._of(VARINT), self.begin, self.end)
        return value - (1 << 64) if value >> 63 else value

    def real(self) -> float:
        """The value of a float in single precision."""
        return struct.unpack_from("<f", self._of(FLOAT), self.begin)[0]

    def bytes(self) -> bytes:
        """The value of a field with a length."""
        return self._of(BYTES)[self.begin : self.end]

    def string(self) -> str:
        """The value of a field with a length, which must be UTF-8."""
        try:
            return self.bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise Damaged(f"byte {self.begin + error.start} is not UTF-8") from None

    def fields(self) -> Iterator[Field]:
        """The fields of a message inside."""
        return fields(self._of(BYTES), self.begin, self.end)

    def _of(self, kind: int) -> bytes:
        if self.kind != kind:
            raise Damaged(f"field {self.number}, at byte {self.begin}, is of kind {self.kind} instead of {kind}")
        return self.data


def fields(data: bytes, begin: int, end: int) -> Iterator[Field]:
    """The fields of the message from byte `begin` to `end`, in order. Raises `Damaged` where it breaks off."""
    while begin < end:
        key, begin = _varint(data, begin, end)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            _, after = _varint(data, begin, end)
        elif kind == BYTES:
            length, begin = _varint(data, begin, end)
            after = begin + length
        elif kind in _WIDTHS:
            after = begin + _WIDTHS[kind]
        else:
            raise Damaged(f"byte {begin} begins a field of kind {kind}, which there is none of")
        if after > end:
            raise Damaged(f"it breaks off inside the field that begins at byte {begin}")
        yield Field(number, kind, data, begin, after)
        begin = after


def _varint(data: bytes, begin: int, end: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = 0
    for at in range(begin, min(end, begin + 10)):
        value |= (data[at] & 0x7F) << 7 * (at - begin)
        if data[at] < 0x80:
            return value & (1 << 64) - 1, at + 1
    raise Damaged(f"the number at byte {begin} has no end")
