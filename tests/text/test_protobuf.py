"""Protocol buffers: every value that the library writes is read, other bytes are refused by where they stop."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from anyformer.text.protobuf import Damaged, Field, fields


def read(data: bytes) -> list[Field]:
    return list(fields(data, 0, len(data)))


@given(
    id=st.integers(-(1 << 31), (1 << 31) - 1),
    score=st.floats(width=32, allow_nan=False),
    piece=st.text(max_size=300),
    charsmap=st.binary(max_size=300),
)
def test_what_the_library_writes_is_read(id: int, score: float, piece: str, charsmap: bytes) -> None:
    """Numbers of either sign, single precision, text and bytes of any length, in messages inside messages."""
    model = ModelProto()
    model.pieces.add(piece=piece, score=score)
    model.trainer_spec.pad_id = id
    model.normalizer_spec.precompiled_charsmap = charsmap
    pieces, trainer, normalizer = read(model.SerializeToString())
    assert [pieces.number, trainer.number, normalizer.number] == [1, 2, 3]
    text, number = pieces.fields()
    assert (text.number, text.string(), number.number, number.real()) == (1, piece, 2, score)
    assert [(field.number, field.integer()) for field in trainer.fields()] == [(43, id)]
    assert [(field.number, field.bytes()) for field in normalizer.fields()] == [(2, charsmap)]


@given(data=st.binary(max_size=40))
def test_any_bytes_are_fields_or_are_refused(data: bytes) -> None:
    """Fields follow each other without a gap to the end; else `Damaged` says where it stops."""
    try:
        found = read(data)
    except Damaged as error:
        assert "byte" in str(error)
    else:
        assert not data or found[-1].end == len(data)
        assert all(this.end < after.begin for this, after in pairwise(found))


def test_a_value_of_another_kind_is_refused() -> None:
    """A field is read only as what it was written as."""
    (number,) = read(b"\x08\x96\x01")
    assert number.integer() == 150
    for value in (number.bytes, number.string, number.real, lambda: list(number.fields())):
        with pytest.raises(Damaged, match="field 1, at byte 1, is of kind 0 instead of"):
            value()
    (text,) = read(b"\x12\x02\xc3\x28")
    with pytest.raises(Damaged, match="byte 2 is not UTF-8"):
        text.string()
