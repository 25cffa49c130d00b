"""GGUF files: the header, every tensor type, the real file, and whatever damage a file can have."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyformer.checkpoints.gguf import PLAIN_TYPES, TENSOR_TYPES, GgufFile
from anyformer.errors import CheckpointError

T = GGMLQuantizationType
PLAIN = {T.F32, T.F16, T.BF16, T.F64, T.I8, T.I16, T.I32, T.I64}


def write(path: Path, tensors: dict[str, tuple[np.ndarray, T | None]], **metadata: object) -> Path:
    """A GGUF file as the reference writes it."""
    writer = GGUFWriter(path, "llama")
    for key, value in metadata.items():
        adders = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        adders[type(value)](key, value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def small(path: Path) -> Path:
    """A file with a little of everything in its header and two tensors."""
    table = np.arange(96, dtype=np.float32).reshape(3, 32)
    blocks = np.random.default_rng(0).integers(0, 100, (2, 36), dtype=np.uint8)
    tensors = {"token_embd.weight": (table, None), "blk.0.ffn_up.weight": (blocks, T.Q4_0)}
    return write(
        path, tensors, name="small", count=7, eps=1e-5, tokens=["a", "▁b", ""], scores=[0.5, -1.0], kinds=[1, 3]
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return small(tmp_path_factory.mktemp("gguf") / "small.gguf").read_bytes()


def refused(path: Path, data: bytes) -> str:
    """The one sentence that opening these bytes gives, which names the file."""
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        GgufFile(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_metadata_and_tensors_are_those_written(tmp_path: Path) -> None:
    """Every kind of metadata value and the tensors' shapes, rows first, come back as they were written."""
    file = GgufFile(small(tmp_path / "small.gguf"))
    expected = {"name": "small", "count": 7, "tokens": ["a", "▁b", ""], "scores": [0.5, -1.0], "kinds": [1, 3]}
    assert {key: file.metadata[key] for key in expected} == expected
    assert file.metadata["eps"] == 1e-5
    assert {name: (info.shape, info.type) for name, info in file.tensors.items()} == {
        "token_embd.weight": ((3, 32), "F32"),
        "blk.0.ffn_up.weight": ((2, 64), "Q4_0"),
    }
    assert torch.equal(file.read("token_embd.weight"), torch.arange(96, dtype=torch.float32).view(3, 32))


def test_every_metadata_number_type(tmp_path: Path) -> None:
    """Integers of every width, floats and booleans keep their values, alone and in arrays."""
    writer = GGUFWriter(tmp_path / "numbers.gguf", "llama")
    values: dict[str, int | float | bool] = {
        "uint8": 255,
        "int8": -128,
        "uint16": 65535,
        "int16": -32768,
        "uint32": 2**32 - 1,
        "int32": -(2**31),
        "uint64": 2**64 - 1,
        "int64": -(2**63),
        "float32": 0.1,
        "float64": 0.1,
        "bool": True,
    }
    for name, value in values.items():
        getattr(writer, f"add_{name}")(name, value)
    writer.add_array("flags", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    metadata = GgufFile(tmp_path / "numbers.gguf").metadata
    assert {name: metadata[name] for name in values} == values
    assert metadata["bool"] is True
    assert metadata["flags"] == [True, False]


def test_block_sizes_are_those_of_ggml() -> None:
    """Our table of tensor types says what the reference's says, for every type it knows."""
    assert {(t.value, t.name, *sizes) for t, sizes in GGML_QUANT_SIZES.items()} <= {
        (number, kind.name, kind.elements, kind.size) for number, kind in TENSOR_TYPES.items()
    }


@pytest.mark.parametrize("kind", sorted(set(T) - PLAIN), ids=lambda kind: kind.name)
def test_quantised_types_are_read_as_the_reference_reads_them(kind: T, tmp_path: Path) -> None:
    """Random blocks, three dimensions, give the reference's numbers in any dtype; what it cannot read is refused."""
    elements, size = GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(1).integers(0, 256, (2, 3, 2 * size), dtype=np.uint8)
    path = write(tmp_path / "q.gguf", {"first": (np.ones(5, np.float32), None), "x": (blocks, kind)})
    try:
        with np.errstate(all="ignore"):
            expected = torch.from_numpy(dequantize(GGUFReader(path).tensors[1].data, kind))
    except NotImplementedError:
        with pytest.raises(CheckpointError, match=rf"q\.gguf: tensor 'x' is of type {kind.name}"):
            GgufFile(path).read("x")
        return
    found = GgufFile(path).read("x")
    assert found.shape == (2, 3, 2 * elements)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    half = GgufFile(path).read("x", torch.bfloat16)
    torch.testing.assert_close(half, expected.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", PLAIN_TYPES.values())
def test_plain_types_share_the_mapped_memory(name: str, tmp_path: Path) -> None:
    """Unquantised tensors come back exact, converted when asked, and without a copy in their own dtype."""
    dtype = getattr(torch, name)
    values = torch.arange(-6, 6).view(3, 4).to(dtype)
    bits = values.view(torch.int16) if dtype == torch.bfloat16 else values
    kind = {torch.bfloat16: T.BF16}.get(dtype)
    data = bits.numpy().view(np.uint8) if kind is not None else bits.numpy()
    file = GgufFile(write(tmp_path / "plain.gguf", {"x": (data, kind)}))
    assert torch.equal(file.read("x", dtype), values)
    assert torch.equal(file.read("x"), values.float())
    once, again = file.read("x", dtype), file.read("x", dtype)
    assert once.data_ptr() == again.data_ptr()


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    """What is read may be changed in memory; the bytes on disk stay."""
    path = small(tmp_path / "small.gguf")
    before = path.read_bytes()
    GgufFile(path).read("token_embd.weight").zero_()
    assert path.read_bytes() == before


def test_unknown_tensor_names_are_refused(tmp_path: Path) -> None:
    """Asking for a tensor that is not there names it and the file."""
    with pytest.raises(CheckpointError, match=r"small\.gguf has no tensor 'nothing'"):
        GgufFile(small(tmp_path / "small.gguf")).read("nothing")


def test_version_2_is_read_like_version_3(tmp_path: Path, sound: bytes) -> None:
    """The two versions differ in nothing that little-endian files show."""
    path = tmp_path / "v2.gguf"
    path.write_bytes(sound[:4] + struct.pack("<I", 2) + sound[8:])
    assert GgufFile(path).metadata["tokens"] == ["a", "▁b", ""]


def test_what_is_no_gguf_file_is_refused(tmp_path: Path, sound: bytes) -> None:
    """Missing, empty, a directory, something else, another version, big-endian: a sentence each."""
    path = tmp_path / "bad.gguf"
    with pytest.raises(CheckpointError, match="No such file"):
        GgufFile(path)
    with pytest.raises(CheckpointError, match="directory"):
        GgufFile(tmp_path)
    assert "empty" in refused(path, b"")
    assert "not a GGUF file" in refused(path, b"PK\x03\x04 a zip file")
    assert "not a GGUF file" in refused(path, b"G")
    assert "cut short" in refused(path, b"GGUF\x03")
    assert "version 1;" in refused(path, sound[:4] + struct.pack("<I", 1) + sound[8:])
    assert "version 77;" in refused(path, sound[:4] + struct.pack("<I", 77) + sound[8:])
    assert "big-endian" in refused(path, sound[:4] + struct.pack(">I", 3) + sound[8:])


def test_every_truncation_is_told(tmp_path: Path, sound: bytes) -> None:
    """Cut anywhere, in the header or in the data, the file is refused; in the data, with the bytes that are missing."""
    whole = GgufFile(small(tmp_path / "small.gguf"))
    end = max(info.offset + info.size for info in whole.tensors.values())
    data_start = min(info.offset for info in whole.tensors.values())
    for size in range(end):
        message = refused(tmp_path / "cut.gguf", sound[:size])
        if size >= data_start:
            assert f"{end - size} bytes past the end" in message


@pytest.mark.parametrize("count", [2**63, 2**64 - 1, 10**9, 10**5])
@pytest.mark.parametrize("at", [8, 16])
def test_absurd_counts_are_refused_before_they_are_believed(count: int, at: int, tmp_path: Path, sound: bytes) -> None:
    """A count of tensors or keys that the file cannot hold costs neither memory nor time."""
    assert f"announces {count}" in refused(tmp_path / "c.gguf", sound[:at] + struct.pack("<Q", count) + sound[at + 8 :])


def test_absurd_lengths_are_refused_before_they_are_believed(tmp_path: Path, sound: bytes) -> None:
    """Lengths of strings and arrays are held against the bytes that are left."""
    huge = struct.pack("<Q", 2**62)
    in_array = sound.index("▁b".encode())
    assert "cut short" in refused(tmp_path / "s.gguf", sound[:24] + huge + sound[32:])
    assert "strings in the value of 'tokens'" in refused(
        tmp_path / "a.gguf", sound.replace(struct.pack("<IQQ", 8, 3, 1), struct.pack("<IQQ", 8, 2**62, 1))
    )
    assert "numbers in the value of 'scores'" in refused(
        tmp_path / "n.gguf", sound.replace(struct.pack("<IQf", 6, 2, 0.5), struct.pack("<IQf", 6, 2**62, 0.5))
    )
    assert "cut short" in refused(tmp_path / "l.gguf", sound[: in_array - 8] + huge + sound[in_array:])


def test_impossible_tensors_are_refused(tmp_path: Path, sound: bytes) -> None:
    """Unknown type, impossible dimensions, and an offset outside the file name the tensor."""
    start = sound.index(b"token_embd.weight") + len(b"token_embd.weight")
    described = struct.pack("<IQQIQ", 2, 32, 3, 0, 0)
    assert sound[start : start + len(described)] == described

    def with_description(*values: int) -> str:
        changed = struct.pack("<IQQIQ", *values)
        return refused(tmp_path / "t.gguf", sound[:start] + changed + sound[start + len(changed) :])

    assert "'token_embd.weight' is of unknown type 4" in with_description(2, 32, 3, 4, 0)
    assert "has 0 dimensions" in with_description(0, 32, 3, 0, 0)
    assert "has 4000000000 dimensions" in with_description(4_000_000_000, 32, 3, 0, 0)
    assert "cannot be of type F32" in with_description(2, 0, 3, 0, 0)
    assert "cannot be of type Q4_0" in with_description(2, 33, 3, 2, 0)
    assert "'token_embd.weight' ends at byte" in with_description(2, 32, 3, 0, 2**40)
    assert "'token_embd.weight' ends at byte" in with_description(2, 2**63, 2**63, 0, 0)


def test_names_that_stand_twice_are_refused(tmp_path: Path, sound: bytes) -> None:
    """Two tensors or two keys of one name leave no telling which is meant."""
    assert "key 'count' twice" in refused(tmp_path / "keys.gguf", sound.replace(b"kinds", b"count"))
    ones = np.ones(4, np.float32)
    two = write(tmp_path / "two.gguf", {"a.weight": (ones, None), "b.weight": (ones, None)})
    assert "tensor 'a.weight' twice" in refused(tmp_path / "t.gguf", two.read_bytes().replace(b"b.weight", b"a.weight"))


def test_a_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    """A shard is whole in itself, but not a model; the message says how to join it."""
    path = write(tmp_path / "part.gguf", {"x": (np.ones(4, np.float32), None)}, **{"split.count": 3})
    with pytest.raises(CheckpointError, match="one of 3 parts"):
        GgufFile(path)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_give_errors_and_nothing_else(data: st.DataObject, tmp_path: Path, sound: bytes) -> None:
    """Flipped bytes and cuts either leave a readable file or raise `CheckpointError`: no other error, no hang."""
    damaged = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(damaged[: data.draw(st.integers(len(sound) // 2, len(sound)))])
    try:
        file = GgufFile(path)
        for name in file.tensors:
            file.read(name)
    except CheckpointError as error:
        assert str(path) in str(error)


def test_the_real_file_is_read_as_the_reference_reads_it(smollm2: Path) -> None:
    """SmolLM2-135M-Instruct: its metadata, shapes and a tensor of each type equal the reference's."""
    ours = GgufFile(smollm2)
    assert ours.metadata["general.architecture"] == "llama"
    assert len(ours.metadata["tokenizer.ggml.tokens"]) == ours.metadata["llama.vocab_size"] == 49152
    assert len(ours.tensors) == 272
    assert ours.tensors["token_embd.weight"].shape == (49152, 576)
    samples = {info.type: info for info in reversed(ours.tensors.values())}
    assert set(samples) == {"F32", "Q4_1", "Q8_0"}
    for info in samples.values():
        raw = np.memmap(smollm2, np.uint8, "r", info.offset, (info.size,)).reshape(*info.shape[:-1], -1)
        expected = torch.from_numpy(dequantize(np.array(raw), T[info.type])).view(info.shape)
        assert torch.equal(ours.read(info.name), expected)
