"""The same bytes whatever the number of threads, and whenever the writing was stopped."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer import text
from anyformer.data import Document, EncodedPart, encode_documents, open_corpus, read_manifest, shards, write_corpus

BYTES = text.byte_level()
ENCODE = partial(encode_documents, tokenizer=BYTES)
DOCUMENTS = [Document(f"{i}", f"text {i}\n" * (i % 7 + 1), "validation" if i % 9 == 4 else "train") for i in range(60)]


def write(directory: Path, documents: Iterable[Document] = DOCUMENTS, encode: Any = ENCODE, **options: Any) -> None:
    write_corpus(directory, documents, encode, vocabulary=BYTES.vocabulary_size, **{"about": {}, **options})


def contents(directory: Path) -> dict[str, bytes]:
    """All files, by their names."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small shards, of small batches."""
    monkeypatch.setattr(shards, "SHARD", 100)
    monkeypatch.setattr(shards, "BATCH", 30)


def counting(seen: list[str]) -> Any:
    """An encoder that notes what it is given."""

    def encode(documents: Iterable[Document]) -> Iterator[EncodedPart]:
        batch = list(documents)
        seen.extend(document.name for document in batch)
        return encode_documents(batch, BYTES)

    return encode


@given(
    st.lists(st.tuples(st.text(st.sampled_from("aé\n"), min_size=1, max_size=30), st.booleans()), max_size=12),
    st.integers(1, 60),
    st.integers(1, 40),
    st.integers(1, 4),
    st.integers(0, 12),
)
@settings(max_examples=30)
def test_any_documents_in_any_shards_are_one_corpus(
    texts: list[tuple[str, bool]], shard: int, batch: int, workers: int, stop: int
) -> None:
    """Written in one go or stopped anywhere and gone on with, by one thread or several: the same files, and, put end to
    end, what a single shard holds."""
    documents = [Document("", each, "train" if is_train else "validation") for each, is_train in texts]

    def until_stopped() -> Iterator[Document]:
        yield from documents[:stop]
        raise InterruptedError

    with TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        whole, sharded, stopped = (Path(place, name) for name in ("whole", "sharded", "stopped"))
        write(whole, documents)
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(shards, "SHARD", shard)
        patch.setattr(shards, "BATCH", batch)
        write(sharded, documents, workers=1)
        with pytest.raises(InterruptedError):
            write(stopped, until_stopped(), workers=workers)
        write(stopped, documents, workers=workers)
        assert contents(stopped) == contents(sharded)
        for split in ("train", "validation"):
            one, many = open_corpus(whole, split), open_corpus(sharded, split)
            assert one.documents == many.documents and one.bytes == many.bytes
            if one.documents:
                assert one.tokens.tolist() == many.tokens[:].tolist()  # type: ignore[union-attr]
                assert one.starts.tolist() == many.starts[:].tolist()  # type: ignore[union-attr]
        assert read_manifest(whole)["splits"] == read_manifest(sharded)["splits"]


def test_a_shard_is_as_large_as_stated_and_described(tmp_path: Path, small: None) -> None:
    """Full but for the last, no fuller than by a batch; sizes and sums in the manifest are those of the files."""
    write(tmp_path, about={"encodings": ["utf-8"]})
    manifest = read_manifest(tmp_path)
    ids = [sum(sum(amount["columns"].values()) for amount in shard["splits"].values()) for shard in manifest["shards"]]
    assert len(ids) > 5 and all(100 <= count < 200 for count in ids[:-1])
    assert manifest["encodings"] == ["utf-8"] and sum(shard["read"] for shard in manifest["shards"]) == 60
    for shard in manifest["shards"]:
        for name, said in shard["files"].items():
            raw = (tmp_path / shard["name"] / name).read_bytes()
            assert said == {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    assert not list(tmp_path.rglob("*.partial")) and not (tmp_path / "plan.json").exists()


def test_a_full_disk_leaves_whole_shards_to_go_on_from(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half shard gives its space back; afterwards only what came behind the whole ones is tokenised."""
    synced = 0

    def full(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        if synced > 12:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / "a")
    left = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert left == ["00000", "plan.json"] or (left[:2] == ["00000", "00001"] and not list(tmp_path.rglob(".0*")))
    seen: list[str] = []
    write(tmp_path / "a", encode=counting(seen))
    write(tmp_path / "b")
    assert 0 < len(seen) < 60 and seen[-1] == "59" and contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("change", ["damage", "cut", "about", "lost"])
def test_what_is_not_as_planned_is_made_again(tmp_path: Path, small: None, change: str) -> None:
    """A shard that is damaged and those behind it; all of them where they were about something else."""

    def until_stopped() -> Iterator[Document]:
        yield from DOCUMENTS[:-1]
        raise InterruptedError

    with pytest.raises(InterruptedError):
        write(tmp_path / "a", until_stopped(), about={"file": 1})
    path = tmp_path / "a" / "00001" / "train.tokens.ids"
    match change:
        case "damage":
            path.write_bytes(bytes(len(path.read_bytes())))
        case "cut":
            path.write_bytes(path.read_bytes()[:-2])
        case "lost":
            (tmp_path / "a" / "00001" / "shard.json").unlink()
    about = {"file": 2 if change == "about" else 1}
    seen: list[str] = []
    write(tmp_path / "a", encode=counting(seen), about=about)
    write(tmp_path / "b", about=about)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    first = read_manifest(tmp_path / "b")["shards"][0]["read"]
    assert len(seen) == (60 if change == "about" else 60 - first)


def test_an_encoder_that_fails_ends_the_writing(tmp_path: Path, small: None) -> None:
    """What it raises in its thread is raised here, and no half shard stays."""

    def encode(documents: Iterable[Document]) -> Iterator[EncodedPart]:
        for document in documents:
            if document.name == "30":
                raise ValueError("a label that nobody knows")
        return encode_documents(documents, BYTES)

    with pytest.raises(ValueError, match="a label that nobody knows"):
        write(tmp_path, encode=encode, workers=3)
    assert not list(tmp_path.rglob(".0*")) and not (tmp_path / "manifest.json").exists()


KILLED = """
import sys, time
from functools import partial
from pathlib import Path
from anyformer import text
from anyformer.data import Document, encode_documents, shards, write_corpus

shards.SHARD, shards.BATCH = 100, 30
tokenizer = text.byte_level()

def slowly(documents):
    time.sleep(0.01)
    return encode_documents(documents, tokenizer)

documents = [Document(f"{i}", f"text {i}\\n" * (i % 7 + 1), "validation" if i % 9 == 4 else "train") for i in range(60)]
write_corpus(Path(sys.argv[1]), documents, slowly, vocabulary=tokenizer.vocabulary_size, about={})
"""


def test_a_killed_tokenisation_goes_on_to_the_same_bytes(tmp_path: Path, small: None) -> None:
    """`kill -9` while it writes, then once more by another number of threads: only what was missing is tokenised."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "a")])
    while not (tmp_path / "a" / "00001").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "a" / "manifest.json").exists()
    kept = [json.loads(path.read_text()) for path in sorted((tmp_path / "a").glob("0*/shard.json"))]
    seen: list[str] = []
    write(tmp_path / "a", encode=counting(seen), workers=3)
    write(tmp_path / "b", workers=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(kept) >= 2 and len(seen) == 60 - sum(shard["read"] for shard in kept)
