"""Checkpoints that are cut, forged, incomplete or of another kind: one clear sentence each, exit code 2, no change.

Each case spoils a sound directory in one way. What is said names the file, attribute or tensor; fuzzing then looks for
spoilt files that end in anything but such a sentence.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from anyformer import checkpoints, families
from anyformer.checkpoints.weights import INDEX, WEIGHTS
from anyformer.cli import main
from anyformer.errors import AnyformerError
from anyformer.planning.shapes import shapes
from anyformer.spec import Transformer

SPEC = families.llama("tiny")


def write(path: Path, spec: Transformer = SPEC, **more: Any) -> Path:
    tensors = {name: torch.full(shape, 0.5) for name, shape in shapes(spec).items()}
    checkpoints.write(path, spec=spec, tensors=tensors, generation={"eos_token_id": 0}, **more)
    return path


def sharded(path: Path) -> Path:
    return write(path, shard_bytes=400_000)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def config(path: Path, **changes: Any) -> None:
    """Change config.json (spec.json, which would contradict it, goes)."""
    (path / "spec.json").unlink()
    edit(path / "config.json", lambda data: {**data, **changes})


def tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of the one file."""
    saved = load_file(path / WEIGHTS)
    change(saved)
    save_file(saved, path / WEIGHTS)


def cut(path: Path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def index(path: Path, name: str, file: str) -> None:
    edit(path / INDEX, lambda data: {**data, "weight_map": {**data["weight_map"], name: file}})


class Evil:
    """A pickle that would leave a trace if anybody read it."""

    trace = "pickle was read"

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, (self.trace,))


def pickled(path: Path, name: str) -> None:
    (path / WEIGHTS).unlink()
    (path / name).write_bytes(pickle.dumps(Evil()))


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda p: (p / WEIGHTS).unlink(), r"holds neither model.safetensors nor .*index.json"),
    "cut short": (lambda p: cut(p / WEIGHTS, 1000), r"model.safetensors is cut short: \d+ bytes expected, \d+ found"),
    "empty weights": (lambda p: (p / WEIGHTS).write_bytes(b""), r"model.safetensors has 0 bytes"),
    "absurd header": (lambda p: (p / WEIGHTS).write_bytes(b"\xff" * 99), r"claims a header of \d{20} bytes"),
    "not safetensors": (lambda p: (p / WEIGHTS).write_bytes(b"\x10" + b"\0" * 99), r"is no safetensors file"),
    "lfs pointer": (lambda p: (p / WEIGHTS).write_text("version https://git-lfs"), r"Git LFS pointer.*git lfs pull"),
    "pytorch_model.bin": (
        lambda p: pickled(p, "pytorch_model.bin"),
        r"pytorch_model.bin is a Python pickle.*save_file",
    ),
    "model.pt": (lambda p: pickled(p, "model.pt"), r"model.pt is a Python pickle"),
    "model.ckpt": (lambda p: pickled(p, "model.ckpt"), r"model.ckpt is a Python pickle"),
    "no description": (
        lambda p: [(p / name).unlink() for name in ("config.json", "spec.json")],
        r"holds neither config.json nor spec.json",
    ),
    "config not JSON": (lambda p: (p / "config.json").write_text("{'a': 1}"), r"config.json is not JSON"),
    "config no object": (lambda p: (p / "config.json").write_text("[]"), r"config.json holds a JSON list"),
    "config Latin-1": (lambda p: (p / "config.json").write_bytes(b'{"a": "\xe9"}'), r"config.json is not UTF-8"),
    "unknown attribute": (lambda p: config(p, mystery=1), r"config.json: no such attribute is known: 'mystery'"),
    "unknown model type": (
        lambda p: config(p, model_type="mamba"),
        r"the model type 'mamba'; known are .*bert,.*llama",
    ),
    "model type no string": (lambda p: config(p, model_type=["llama"]), r"the model type \['llama'\]"),
    "unknown architecture": (
        lambda p: config(p, architectures=["LlamaForQuestionAnswering"]),
        r"the architecture 'LlamaForQuestionAnswering' is not known; llama has LlamaForCausalLM",
    ),
    "heads": (lambda p: config(p, num_key_value_heads=3), r"kv_heads=3 does not divide heads=4"),
    "endless layers": (
        lambda p: config(p, num_hidden_layers=10**12),
        r"holds \d+ tensors, too few for the 1000000000000 layers that its config asks for in the decoder",
    ),
    "missing attribute": (lambda p: config(p, hidden_size=None), r"config.json: hidden_size is missing"),
    "no number": (lambda p: config(p, hidden_size="128"), r'hidden_size is "128"; it must be a whole number above 0'),
    "unknown scaling": (lambda p: config(p, rope_scaling={"type": "spiral"}), r"rope_type is 'spiral'; known kinds"),
    "quantised": (lambda p: config(p, quantization_config={"bits": 4}), r"quantization_config is .* only null"),
    "missing tensor": (
        lambda p: tensors(p, lambda saved: saved.pop("model.norm.weight")),
        r"lacks model.norm.weight; its config asks for it",
    ),
    "tensor left over": (
        lambda p: tensors(p, lambda saved: saved.update({"model.layers.2.mlp.x": torch.ones(1)})),
        r"holds model.layers.2.mlp.x, which its config has no place for",
    ),
    "tensor of another shape": (
        lambda p: tensors(p, lambda saved: saved.update({"model.norm.weight": torch.ones(7)})),
        r"model.norm.weight has shape \(7,\), and the config asks for \(128,\)",
    ),
    "tensor of another type": (
        lambda p: tensors(p, lambda saved: saved.update({"model.norm.weight": torch.ones(128).to(torch.int32)})),
        r"model.norm.weight is of type I32; parameters may be F64, F32, F16, BF16",
    ),
    "another tied matrix": (
        lambda p: tensors(p, lambda saved: saved.update({"lm_head.weight": torch.ones(512, 128)})),
        r"lm_head.weight differs from model.embed_tokens.weight",
    ),
    "disagreement": (
        lambda p: edit(p / "config.json", lambda data: {**data, "rms_norm_eps": 1.0}),
        r"spec.json and config.json disagree: decoder.*eps is 1e-05 in spec.json, 1.0 in config.json",
    ),
    "spec of another kind": (
        lambda p: edit(p / "spec.json", lambda data: {**data, "mystery": 1}),
        r"spec.json: Transformer has no key 'mystery'",
    ),
    "deep in the spec": (
        lambda p: edit(p / "spec.json", lambda data: {**data, "decoder": {**data["decoder"], "dim": "wide"}}),
        r"spec.json: Transformer is wrong at 'decoder.dim'",
    ),
    "generation not JSON": (lambda p: (p / "generation_config.json").write_text("x"), r"generation_config.json is not"),
}

SPOILT_SHARDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing shard": (
        lambda p: (p / "model-00002-of-00005.safetensors").unlink(),
        r"index.json names 'model-00002-of-00005.safetensors', which is not there",
    ),
    "shard cut short": (lambda p: cut(p / "model-00002-of-00005.safetensors", 9), r"00002-of-00005.safetensors is cut"),
    "outside": (lambda p: index(p, "x", "../x.safetensors"), r"names '../x.safetensors', which lies outside"),
    "absolute": (lambda p: index(p, "x", "/etc/passwd"), r"names '/etc/passwd', which lies outside"),
    "other slashes": (lambda p: index(p, "x", "..\\x"), r"which lies outside the directory"),
    "drive": (lambda p: index(p, "x", "C:x"), r"which lies outside the directory"),
    "tensor not in its shard": (
        lambda p: index(p, "ghost", "model-00001-of-00005.safetensors"),
        r"model-00001-of-00005.safetensors lacks ghost",
    ),
    "no map": (lambda p: (p / INDEX).write_text("{}"), r"has no weight_map"),
    "map no map": (lambda p: (p / INDEX).write_text('{"weight_map": {"a": 1}}'), r"has no weight_map"),
    "index not JSON": (lambda p: (p / INDEX).write_text("{"), r"index.json is not JSON"),
}

CASES = [(write, *case) for case in SPOILT.values()] + [(sharded, *case) for case in SPOILT_SHARDS.values()]


@pytest.mark.parametrize(("make", "spoil", "message"), CASES, ids=[*SPOILT, *SPOILT_SHARDS])
def test_spoilt_checkpoints(
    make: Callable[[Path], Path],
    spoil: Callable[[Path], Any],
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One sentence that names what is wrong and where, from Python and from the command line, and exit code 2."""
    path = make(tmp_path / "model")
    checkpoints.open(path)
    spoil(path)
    before = {found: found.read_bytes() for found in path.rglob("*") if found.is_file()}
    with pytest.raises(AnyformerError) as caught:
        checkpoints.open(path)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(SystemExit) as left:
        main(["inspect", str(path)])
    assert left.value.code == 2
    said = capfd.readouterr()
    assert said.out == "" and len(said.err.strip().splitlines()) == 1
    assert re.search(message, said.err) and "Traceback" not in said.err
    assert {found: found.read_bytes() for found in path.rglob("*") if found.is_file()} == before


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl"])
def test_pickles_named_outright(tmp_path: Path, name: str) -> None:
    """A pickled file is refused by its name, unread, with the way to convert it."""
    (tmp_path / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(AnyformerError, match=rf"{name} is a Python pickle, which can run any code.*safetensors"):
        checkpoints.open(tmp_path / name)


def test_other_files(tmp_path: Path) -> None:
    """A file that is no checkpoint at all, and a GGUF file that is none."""
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(AnyformerError, match=r"notes.txt is no checkpoint; name a directory"):
        checkpoints.open(tmp_path / "notes.txt")
    (tmp_path / "x.gguf").write_text("hello")
    with pytest.raises(AnyformerError, match=r"x.gguf is not a GGUF file"):
        checkpoints.open(tmp_path / "x.gguf")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def opens_or_says_why(path: Path) -> None:
    """Opening works, or ends in one sentence."""
    try:
        found = checkpoints.open(path)
        assert all(found.tensors[name] is not None for name in found.tensors)
    except AnyformerError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture(scope="module")
def sound_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharded(tmp_path_factory.mktemp("sound") / "shards")


@settings(max_examples=150)
@given(data=st.data())
def test_any_attribute_of_any_value(data: st.DataObject, sound: Path) -> None:
    """Whatever stands in a config.json, each attribute of each family, opening works or says why not."""
    family = data.draw(st.sampled_from(list(families.registered().values())))
    attributes: dict[str, Any] = {**family.express(family("tiny")), "rope_parameters": None}
    name = data.draw(st.sampled_from(sorted(attributes)))
    (sound / "spec.json").unlink(missing_ok=True)
    (sound / "config.json").write_text(json.dumps({**attributes, name: data.draw(JSON)}))
    opens_or_says_why(sound)


@settings(max_examples=80)
@given(data=st.data())
def test_any_place_of_a_spec(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever stands anywhere in a spec.json."""
    spec = SPEC.model_dump(mode="json")
    inner: Any = spec
    while isinstance(inner, dict | list) and inner:
        key = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else list(range(len(inner)))))
        if not isinstance(inner[key], dict | list) or data.draw(st.booleans()):
            inner[key] = data.draw(JSON)
            break
        inner = inner[key]
    try:
        Transformer.from_data(spec)
    except AnyformerError as error:
        assert "\n" not in str(error)


@settings(max_examples=150)
@given(at=st.integers(0, 3000), byte=st.integers(0, 255), length=st.none() | st.integers(0, 4000))
def test_any_byte_of_a_header(at: int, byte: int, length: int | None, sound: Path) -> None:
    """A file of weights with any byte of its header changed, or cut anywhere in it."""
    path = sound.parent / "bytes"
    write(path)
    content = bytearray((path / WEIGHTS).read_bytes())
    content[at] = byte
    (path / WEIGHTS).write_bytes(content[:length] if length is not None else content)
    opens_or_says_why(path)


@settings(max_examples=60)
@given(data=JSON, file=st.text(max_size=12))
def test_any_index(data: Any, file: str, sound_shards: Path) -> None:
    """Whatever stands in an index of shards."""
    for content in (data, {"weight_map": data}, {"weight_map": {"a": file}}):
        (sound_shards / INDEX).write_text(json.dumps(content))
        opens_or_says_why(sound_shards)
