"""What a run begins with."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anyformer import families, text
from anyformer.data import shards
from anyformer.errors import DataError, TrainingError
from anyformer.model import build
from anyformer.spec.dropout import with_dropout
from anyformer.training import prepare, read_recipe, train
from anyformer.training.prepare import described, starting_model

Recipes = Callable[..., dict[str, Any]]


def test_dropout_is_the_recipes_where_it_says_so(recipe: Recipes) -> None:
    """In the spec of a fresh model, of a preset too; without the key, as the spec has it."""
    data = recipe(dropout=0.2)
    model = starting_model(read_recipe(data), text.byte_level())
    plain = starting_model(read_recipe(recipe()), text.byte_level())
    assert model.spec == with_dropout(plain.spec, 0.2) != plain.spec
    preset = {**data, "model": {"preset": "gpt2:tiny"}, "training": {**data["training"], "attention_dropout": 0.0}}
    found = described(read_recipe(preset))
    assert found.decoder is not None
    branch = found.decoder.pattern[0].branches[0]
    assert (found.decoder.embeddings.dropout, branch.dropout, branch.mixer.dropout) == (0.2, 0.2, 0.0)


def test_a_checkpoint_brings_its_dropout_along_unless_the_recipe_has_another(recipe: Recipes, tmp_path: Any) -> None:
    """With the same weights, and in the checkpoints of the run, which go on with it."""
    before = build(families.gpt2("tiny", vocab_size=300), seed=0)
    before.tokenizer = text.byte_level()
    before.save(tmp_path / "before")
    data = {**recipe(), "model": {"from": str(tmp_path / "before")}}
    model = starting_model(read_recipe(data), text.byte_level())
    assert model.spec == before.spec and before.spec.output.embeddings.dropout == 0.1
    model = starting_model(read_recipe(data, ["training.dropout=0.0"]), text.byte_level())
    assert model.spec == with_dropout(before.spec, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize(("objective", "more"), [("causal", {"lora": {"rank": 2}}), ("preferences", {})])
def test_a_run_that_began_with_another_model_does_not_go_on(
    recipe: Recipes, tmp_path: Path, objective: str, more: dict[str, Any]
) -> None:
    """What adapters and preferences are learned beside is read at every start; with other weights, in silence, the
    rest would be another run's."""
    for name, seed in (("base", 0), ("other", 1)):
        model = build(families.llama("tiny", vocab_size=257), seed=seed)
        model.tokenizer = text.byte_level()
        model.save(tmp_path / name)
    rows = ({"prompt": f"{i}", "chosen": "yes", "rejected": "no", "text": f"take {i}"} for i in range(40))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {**recipe(objective=objective, steps=1), **more}
    data |= {"model": {"from": str(tmp_path / "base")}, "data": {"train": str(tmp_path / "rows.jsonl"), "held_out": 5}}
    run = train(data, progress=False).directory
    assert train(resume=run, progress=False).finished
    weights = (tmp_path / "base" / "model.safetensors").read_bytes()
    (tmp_path / "base" / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(TrainingError, match=r"model.from: .*base is not what it was when the run began"):
        train(resume=run, progress=False)
    (tmp_path / "base" / "model.safetensors").write_bytes(weights)
    assert train(resume=run, progress=False).finished


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_a_full_disk_while_tokenising_is_gone_on_from(recipe: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says how; the tokenizer is not learnt again, and what comes out is the same to the byte."""
    monkeypatch.setattr(shards, "SHARD", 500)
    monkeypatch.setattr(shards, "BATCH", 200)
    learnt: list[int] = []
    real_fsync, real_train = os.fsync, text.train_bpe

    def full(descriptor: int) -> None:
        if ".00003." in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        real_fsync(descriptor)

    def learn(texts: Any, vocabulary: int) -> Any:
        learnt.append(vocabulary)
        return real_train(texts, vocabulary)

    monkeypatch.setattr(prepare.text, "train_bpe", learn)
    directories = {}
    for name in ("stopped", "whole"):
        data = {**recipe(name, steps=2), "tokenizer": {"train": {"vocabulary": 300}}}
        directories[name] = Path(data["run"]["directory"])
        if name == "stopped":
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                with pytest.raises(TrainingError, match=r"No space left on device; .* anyformer train --resume"):
                    train(data, progress=False)
            assert (directories[name] / ".data.partial" / "00002").exists()
            train(resume=directories[name], progress=False)
        else:
            train(data, progress=False)
    assert learnt == [300, 300]
    assert files_of(directories["stopped"] / "data") == files_of(directories["whole"] / "data")
    assert len(json.loads((directories["whole"] / "data" / "manifest.json").read_text())["shards"]) == 4


def test_data_that_cannot_be_used_leaves_nothing_behind(recipe: Recipes, tmp_path: Path) -> None:
    """A row in the middle that is torn: the file and line are named, and the directory is free for another try."""
    rows = [json.dumps({"text": f"the king takes pawn {i}"}) for i in range(200)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*rows[:100], '{"text": "the ki', *rows[100:]]))
    with pytest.raises(DataError, match=r"rows.jsonl, line 101 is not JSON"):
        train(recipe(steps=1), overrides=[f"data.train={path}"], progress=False)
    assert not (tmp_path / "run").exists()
    path.write_text("\n".join(rows))
    overrides = [f"data.train={path}", "data.held_out=7"]
    directory = train(recipe(steps=1), overrides=overrides, progress=False).directory
    splits = json.loads((directory / "data" / "manifest.json").read_text())["splits"]
    assert (splits["train"]["documents"], splits["validation"]["documents"]) == (193, 7)


def test_a_text_that_changes_while_it_is_tokenised_is_named(
    recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held out was measured on it as it was; the directory is free for another try."""
    path = tmp_path / "log.txt"
    path.write_text("the king takes the queen\n" * 100)
    real = prepare.write_corpus

    def written(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        with path.open("a") as file:
            file.write("and a rook\n")

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "write_corpus", written)
        with pytest.raises(DataError, match=r"log.txt was changed while it was tokenised"):
            train(recipe(steps=1), overrides=[f"data.train={path}"], progress=False)
    assert not (tmp_path / "run").exists()
    assert train(recipe(steps=1), overrides=[f"data.train={path}"], progress=False).finished


def test_what_is_left_out_to_the_last_record_is_said(recipe: Recipes, tmp_path: Path) -> None:
    """Of what is trained on, and of what is measured on."""
    short, long = tmp_path / "short.tsv", tmp_path / "long.tsv"
    short.write_text("king\tqueen\n" * 20)
    long.write_text("king " * 20 + "\tqueen\n")
    for training, validation, said in (
        (long, short, "no record to train on is left: .* 'seq2seq' .* training.sequence_length=32 tokens"),
        (short, long, "nothing of data.validation is left: .* training.sequence_length=32 tokens"),
    ):
        data = recipe(objective="seq2seq", steps=1)
        data["data"] = {"train": str(training), "validation": str(validation)}
        with pytest.raises(DataError, match=said):
            train(data, progress=False)


def test_what_another_recipe_left_is_not_used(recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill leaves a tokenisation behind; the directory taken for another tokenizer makes its own."""
    monkeypatch.setattr(shards, "SHARD", 500)
    monkeypatch.setattr(shards, "BATCH", 200)
    real = shards._write_shard

    def killed(path: Path, *args: Any) -> Any:
        if path.name == "00002":
            raise KeyboardInterrupt
        return real(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(steps=1), progress=False)
    run = tmp_path / "run"
    assert (run / ".data.partial" / "00001").exists()
    (run / "run.json").unlink()
    train({**recipe(steps=1), "tokenizer": {"train": {"vocabulary": 300}}}, progress=False)
    train({**recipe("fresh", steps=1), "tokenizer": {"train": {"vocabulary": 300}}}, progress=False)
    assert files_of(run / "data") == files_of(tmp_path / "fresh" / "data")
