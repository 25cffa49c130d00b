"""Safetensors files and shards: what is there, what is not, and what is not what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anyformer.checkpoints.weights import (
    INDEX,
    WEIGHTS,
    SafetensorsSource,
    read_header,
    read_json,
    write_weights,
)
from anyformer.errors import CheckpointError

TENSORS = {
    "a": torch.arange(12.0).reshape(3, 4),
    "b": torch.arange(5).to(torch.bfloat16),
    "c": torch.ones(2, 2, dtype=torch.float16),
    "d": torch.zeros((), dtype=torch.int64),
}


def sizes(tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    return {name: tensor.nbytes for name, tensor in tensors.items()}


@pytest.mark.parametrize(("limit", "files"), [(10**9, 1), (48, 2), (10, 4), (1, 4)])
def test_shards(tmp_path: Path, limit: int, files: int) -> None:
    """Tensors go into files of at most so many bytes (a larger tensor into its own), and are read as they were."""
    write_weights(tmp_path, TENSORS, sizes(TENSORS), limit)
    written = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(written) == files
    if files == 1:
        assert written == [WEIGHTS] and not (tmp_path / INDEX).exists()
    else:
        assert written[0] == f"model-00001-of-0000{files}.safetensors"
        assert read_json(tmp_path / INDEX)["metadata"]["total_size"] == sum(sizes(TENSORS).values())
    source = SafetensorsSource(tmp_path)
    assert source.saved.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert source.read(name).dtype == tensor.dtype and torch.equal(source.read(name), tensor)
        assert source.saved[name].shape == tuple(tensor.shape)


def test_tensors_are_made_a_shard_at_a_time(tmp_path: Path) -> None:
    """What is not asked for is not made: a shard is on the disk before the next one's tensors exist."""
    made: list[tuple[str, int]] = []

    class Counting(dict[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            made.append((name, len(list(tmp_path.glob("*.safetensors")))))
            return super().__getitem__(name)

    write_weights(tmp_path, Counting(TENSORS), sizes(TENSORS), limit=48)
    assert made == [("a", 0), ("b", 1), ("c", 1), ("d", 1)]


def test_the_format_others_expect(tmp_path: Path) -> None:
    """The metadata say `pt`, without which older versions of transformers refuse a file."""
    write_weights(tmp_path, TENSORS, sizes(TENSORS), 10**9)
    header = (tmp_path / WEIGHTS).read_bytes()[8:200]
    assert b'"__metadata__":{"format":"pt"}' in header


def test_reading_maps_and_does_not_load(tmp_path: Path) -> None:
    """Opening reads the header alone, and a tensor that is read is a view of the mapped file."""
    write_weights(tmp_path, TENSORS, sizes(TENSORS), 10**9)
    source = SafetensorsSource(tmp_path)
    assert not source._open
    first, second = source.read("a"), source.read("a")
    assert first.data_ptr() == second.data_ptr()


def test_an_index_must_be_true(tmp_path: Path) -> None:
    """A tensor that the index places in a shard is there."""
    write_weights(tmp_path, TENSORS, sizes(TENSORS), limit=48)
    index = read_json(tmp_path / INDEX)
    index["weight_map"]["ghost"] = "model-00002-of-00002.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors lacks ghost"):
        SafetensorsSource(tmp_path)


def test_a_single_file_wins(tmp_path: Path) -> None:
    """Where both lie in a directory, the single file is read, as transformers does."""
    write_weights(tmp_path, TENSORS, sizes(TENSORS), limit=48)
    save_file({"other": torch.ones(1)}, tmp_path / WEIGHTS)
    assert list(SafetensorsSource(tmp_path).saved) == ["other"]


@pytest.mark.parametrize("cut", [0, 4, 8, 40, -1, -30])
def test_cut_short(tmp_path: Path, cut: int) -> None:
    """A file cut anywhere is refused with the bytes expected and found."""
    save_file(TENSORS, tmp_path / WEIGHTS)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:cut])
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS} (is cut short: \d+ bytes expected|has \d bytes, too few)"):
        read_header(tmp_path / WEIGHTS)


def test_the_bytes_expected_are_exact(tmp_path: Path) -> None:
    """The message gives the whole file's size."""
    save_file(TENSORS, tmp_path / WEIGHTS)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=f"{len(whole)} bytes expected, {len(whole) - 1} found"):
        read_header(tmp_path / WEIGHTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff" * 64, "claims a header of 18446744073709551615 bytes"),
        ((10**9).to_bytes(8, "little") + b"{}", "claims a header of 1000000000 bytes"),
        (b"PK\x03\x04\x00\x00\x00\x00" + b"\x00" * 90, "no safetensors file"),
        ((4).to_bytes(8, "little") + b"nope", "its header is not what the format asks for"),
        ((2).to_bytes(8, "little") + b"[]", "its header is not what the format asks for"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', "its header is not what the format asks for"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer"),
    ],
)
def test_not_safetensors(tmp_path: Path, content: bytes, message: str) -> None:
    """Whatever is not safetensors is named as that, however absurd its header."""
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_header(tmp_path / WEIGHTS)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 8]},
        {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
    ],
)
def test_headers_that_contradict_themselves(tmp_path: Path, entry: dict[str, object]) -> None:
    """Offsets, shapes and types that do not fit each other."""
    header = json.dumps({"a": entry}).encode()
    (tmp_path / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + b"\x00" * 8)
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} is no safetensors file"):
        read_header(tmp_path / WEIGHTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON: Expecting property name"),
        (b"[1]", "holds a JSON list where an object is needed"),
        (b'{"a": "\xe9"}', "is not UTF-8 text: byte 7 is 0xe9"),
    ],
)
def test_json_that_is_none(tmp_path: Path, content: bytes, message: str) -> None:
    """The file and the place."""
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"x.json {message}"):
        read_json(tmp_path / "x.json")


def test_saved_files_load_in_the_library(tmp_path: Path) -> None:
    """What is written is what safetensors itself reads."""
    write_weights(tmp_path, TENSORS, sizes(TENSORS), 10**9)
    loaded = load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())
