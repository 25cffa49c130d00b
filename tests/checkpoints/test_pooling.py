"""The embedding heads of sentence-transformers directories, against that library's own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anyformer.checkpoints.pooling import MODULES, head_files, module_files, read_head
from anyformer.errors import CheckpointError
from anyformer.spec import EmbeddingHead


def write(directory: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return directory


def modules(*names: str, prefix: str = "sentence_transformers.models.") -> list[dict[str, Any]]:
    return [
        {"idx": index, "name": str(index), "path": f"{index}_{name}" if index else "", "type": prefix + name}
        for index, name in enumerate(names)
    ]


HEADS = [
    EmbeddingHead(pooling=pooling, normalize=normalize)
    for pooling in ("first", "mean", "max", "last")
    for normalize in (True, False)
]


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_both_ways(tmp_path: Path, head: EmbeddingHead) -> None:
    """Every head is written and read back, and its files are all found."""
    write(tmp_path, head_files(head, 24))
    assert read_head(tmp_path) == head
    assert [path.as_posix() for path in module_files(tmp_path)] == [MODULES, "1_Pooling/config.json"]


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_the_library_reads_the_same(tmp_path: Path, head: EmbeddingHead) -> None:
    """sentence-transformers' own module takes our settings for the same pooling."""
    library = pytest.importorskip("sentence_transformers.sentence_transformer.modules.pooling")
    write(tmp_path, head_files(head, 24))
    pooling = library.Pooling.load(str(tmp_path / "1_Pooling"))
    names = {"first": "cls", "mean": "mean", "max": "max", "last": "lasttoken"}
    assert (pooling.pooling_mode, pooling.embedding_dimension) == (names[head.pooling], 24)


def test_no_modules(tmp_path: Path) -> None:
    """A directory without modules.json says nothing of pooling."""
    assert read_head(tmp_path) is None and module_files(tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"),
        ({"pooling_mode_mean_sqrt_len_tokens": False, "pooling_mode_max_tokens": True}, "max"),
        ({"embedding_dimension": 24, "pooling_mode": "lasttoken", "include_prompt": True}, "last"),
        ({"pooling_mode": ["cls"]}, "first"),
        ({"word_embedding_dimension": 24}, "mean"),
    ],
)
def test_old_and_new_settings(tmp_path: Path, settings: dict[str, Any], pooling: str) -> None:
    """Flags, one word, or nothing."""
    prefix = "sentence_transformers.sentence_transformer.modules."
    write(tmp_path, {MODULES: modules("Transformer", "Pooling", prefix=prefix), "1_Pooling/config.json": settings})
    assert read_head(tmp_path) == EmbeddingHead.from_data({"pooling": pooling, "normalize": False})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({MODULES: modules("Transformer", "Dense")}, "asks for a module 'Dense', which nothing here computes"),
        ({MODULES: {"a": 1}}, "is not a list of modules"),
        ({MODULES: b"["}, "is not JSON"),
        ({MODULES: modules("Transformer", "Pooling")}, "1_Pooling/config.json cannot be read: No such file"),
        (
            {MODULES: modules("Transformer", "Pooling"), "1_Pooling/config.json": {"pooling_mode": "weightedmean"}},
            "asks for the pooling weightedmean; known are first, mean, max, last",
        ),
        (
            {MODULES: modules("Transformer", "Pooling"), "1_Pooling/config.json": {"pooling_mode": ["cls", "mean"]}},
            "asks for the pooling cls, mean",
        ),
        (
            {MODULES: modules("Transformer", "Pooling"), "1_Pooling/config.json": {"include_prompt": False}},
            "leaves the prompt out of the pooling",
        ),
        (
            {MODULES: [{"type": "x.Pooling", "path": "../elsewhere"}]},
            "names '../elsewhere', which lies outside the directory",
        ),
    ],
)
def test_what_no_head_computes(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    """Modules and settings beyond our heads are refused by name, as are paths that lead out of the directory."""
    with pytest.raises(CheckpointError, match=message):
        read_head(write(tmp_path, files))
