"""Models and data of a hub: what is fetched and what is not, going on after a break, without a network, refusals, and
pushing. The hub is a stand-in on this machine, spoken to over HTTP."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import hub as stand_in
import pytest
import torch
import yaml
from safetensors.torch import save

from anyformer import checkpoints, families, model, text
from anyformer.checkpoints import adapters, card, hub
from anyformer.checkpoints.tensors import unload
from anyformer.data import find_files, read_documents
from anyformer.errors import CheckpointError, DataError, SpecError
from anyformer.spec import Alibi, EmbeddingHead


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small model with a tokenizer."""
    built = model.build(families.llama("tiny"), seed=0)
    built.family, built.tokenizer = "llama", text.byte_level()
    directory = tmp_path_factory.mktemp("model")
    built.save(directory)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[stand_in.Hub]:
    """A hub, with no waiting between attempts."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with stand_in.running() as running:
        stand_in.use(running, str(tmp_path / "home"), monkeypatch)
        yield running


def stop(server: stand_in.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nothing answers at the hub's address."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(server.endpoint, "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_only_what_is_read_is_fetched(server: stand_in.Hub, files: dict[str, bytes]) -> None:
    """Configs, safetensors and tokenizer, once; no pickles, other frameworks' weights, pictures or subfolders."""
    others = ("pytorch_model.bin", "tf_model.h5", "consolidated.safetensors", "picture.png", "onnx/config.json")
    server.add("org/name", files | dict.fromkeys((*others, "README.md", "training_args.bin"), b"never read"))
    loaded = model.load("org/name")
    assert sorted(server.fetched()) == sorted(files)
    expected = families.llama("tiny")
    assert (loaded.spec, loaded.family) == (expected, "llama") and loaded.tokenizer is not None
    model.load("org/name")
    assert server.fetched() == []


def test_the_commit_is_remembered_and_needs_no_network(server: stand_in.Hub, files: dict[str, bytes]) -> None:
    """A model knows which commit it is; by that name it opens again, the same, without one request, though the branch
    has moved on."""
    repository = server.add("org/name", files)
    first = model.load("org/name")
    assert first.origin == f"org/name@{repository.branches['main']}"
    other = model.build(families.llama("tiny"), seed=1)
    repository.commit({**files, "model.safetensors": _weights(other)})
    second = model.load("org/name")
    server.requests.clear()
    assert first.origin is not None
    again = model.load(first.origin)
    assert server.requests == []
    table = "decoder.embeddings.tokens.weight"
    assert torch.equal(again.state_dict()[table], first.state_dict()[table])
    assert torch.equal(second.state_dict()[table], other.state_dict()[table])
    assert checkpoints.fetch("org/name") == second.origin


def _weights(built: model.Transformer) -> bytes:
    tensors, _ = unload(built.state_dict(), built.spec, families.llama.tensors(built.spec))
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"})


def test_revisions(server: stand_in.Hub, files: dict[str, bytes]) -> None:
    """A branch, a pull request's reference and a commit, in the name or as an argument; one that is not there is
    named, and two of them are too many."""
    repository = server.add("org/name", {"README.md": b"nothing yet"})
    empty = repository.branches["main"]
    repository.commit(files, "v1.0")
    repository.branches["refs/pr/1"] = sha = repository.branches["v1.0"]
    for reference, revision in (
        ("org/name@v1.0", None),
        ("org/name", "v1.0"),
        ("org/name@refs/pr/1", None),
        ("org/name", sha),
    ):
        assert checkpoints.open(reference, revision=revision).origin == f"org/name@{sha}"
    with pytest.raises(CheckpointError, match=r"org/name has no revision 'v9'; see http.*/org/name/commits/main"):
        checkpoints.open("org/name@v9")
    with pytest.raises(CheckpointError, match=r"org/name@v1.0: a revision, here 'main'"):
        checkpoints.open("org/name@v1.0", revision="main")
    with pytest.raises(CheckpointError, match=f"org/name@{empty} holds neither config.json nor spec.json"):
        checkpoints.open(f"org/name@{empty}")


def test_shards(server: stand_in.Hub, tmp_path: Path) -> None:
    """A model in several files: those that its index names."""
    built = model.build(families.llama("tiny"), seed=0)
    checkpoints.write(
        tmp_path / "m", spec=built.spec, tensors=built.state_dict(), family="llama", shard_bytes=1_000_000
    )
    sharded = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    assert "model-00002-of-00002.safetensors" in sharded
    server.add("org/name", {**sharded, "model-00001-of-00009.safetensors": b"of another export"})
    found = checkpoints.open("org/name")
    assert sorted(server.fetched()) == sorted(name for name in sharded if not name.endswith(".safetensors"))
    assert found.tensors["decoder.norm.weight"].shape == (128,)
    assert server.fetched() == [name for name in sorted(sharded) if name.endswith(".safetensors")]
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in built.named_parameters())


def test_an_index_that_names_pickles(server: stand_in.Hub, files: dict[str, bytes]) -> None:
    """An index cannot have anything but safetensors fetched."""
    index = {"weight_map": {"a": "pytorch_model.bin", "b": "../../x.safetensors"}}
    described = {name: data for name, data in files.items() if name != "model.safetensors"}
    index_file = {"model.safetensors.index.json": json.dumps(index).encode()}
    server.add("org/name", described | index_file | {"pytorch_model.bin": b"never read"})
    with pytest.raises(CheckpointError, match=r"names '../../x.safetensors', which lies outside the directory"):
        model.load("org/name")
    assert sorted(server.fetched()) == sorted([*described, "model.safetensors.index.json"])


def test_looking_at_a_model_fetches_no_weights(server: stand_in.Hub, files: dict[str, bytes]) -> None:
    """Its headers are enough to say what it is; loading it then fetches them, and opens no header twice."""
    server.add("org/name", files)
    found = checkpoints.open("org/name")
    assert (found.spec, found.dtype, found.family) == (families.llama("tiny"), torch.float32, "llama")
    assert [request.range for request in _transfers(server, "model.safetensors")] == ["bytes=0-100000"]
    server.requests.clear()
    model.load("org/name")
    assert server.fetched() == ["model.safetensors"]


def test_a_lost_connection_and_a_lost_process(server: stand_in.Hub, files: dict[str, bytes]) -> None:
    """What was fetched before a transfer broke off is not fetched again: not in the same call, and not by a later one
    after all attempts of the first have failed."""
    name = "model.safetensors"
    server.add("org/name", files)
    server.cuts[name] = [400_000, 100_000]
    checkpoints.fetch("org/name")
    assert [request.range for request in _transfers(server, name)] == [None, "bytes=400000-", "bytes=500000-"]

    server.add("org/other", {**files, name: files[name][:-1] + b"x"})
    server.requests.clear()
    server.cuts[name] = [300_000, *[0] * 6]
    with pytest.raises(CheckpointError, match=r"fetching org/other.* broke off .*; try again: it goes on from where"):
        checkpoints.fetch("org/other")
    server.cuts.clear()
    server.requests.clear()
    checkpoints.fetch("org/other")
    assert [request.range for request in _transfers(server, name)] == ["bytes=300000-"]


def _transfers(server: stand_in.Hub, name: str) -> list[stand_in.Request]:
    return [request for request in server.requests if request.method == "GET" and request.path.endswith(name)]


def test_parts_that_do_not_fit_are_thrown_away(server: stand_in.Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """What lies there of an earlier attempt is checked against the file's hash once it is whole."""
    server.add("org/name", files)
    blobs = tmp_path / "home" / "hub" / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    partial = blobs / f"{stand_in.digest(files['model.safetensors'])}.partial"
    partial.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=r"the parts of model.safetensors do not fit together\); try again"):
        checkpoints.fetch("org/name")
    assert model.load("org/name").spec == families.llama("tiny")
    assert not partial.exists()


def test_a_full_disk(server: stand_in.Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Named as such, with where it is full."""
    from huggingface_hub import file_download

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    server.add("org/name", files)
    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(
        CheckpointError, match=r"cannot be stored in .*home/hub: No space left on device; what is there"
    ):
        checkpoints.open("org/name")


def test_without_a_network(server: stand_in.Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cache holds loads when the hub is switched off or does not answer; what it does not hold is told apart
    from a wrong name. Half a model is none."""
    from huggingface_hub import constants

    server.add("org/name", files)
    server.add("org/half", files)
    checkpoints.fetch("org/name")
    hub.snapshot(hub.Place("org/half"), ["config.json"])
    server.requests.clear()
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        assert checkpoints.open("org/name").spec == families.llama("tiny")
        for absent in ("org/absent", "org/half", "org/name@v2"):
            with pytest.raises(
                CheckpointError, match=rf"HF_HUB_OFFLINE is set, and '{absent}.*' is neither on this machine"
            ):
                checkpoints.open(absent)
        assert server.requests == []
    stop(server, monkeypatch)
    assert checkpoints.open("org/name").spec == families.llama("tiny")
    with pytest.raises(CheckpointError, match=r"cannot be reached, and 'org/absent' is neither on this machine nor"):
        checkpoints.open("org/absent")


def test_gated_private_and_missing(
    server: stand_in.Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in one sentence with the way out; a member's token opens the first two."""
    server.add("org/gated", files, gated=True)
    server.add("org/private", files, private=True)
    with pytest.raises(
        CheckpointError, match=r"org/gated is gated: accept its terms at http://.*/org/gated, then log in"
    ):
        checkpoints.open("org/gated")
    for name in ("org/private", "org/missing"):
        with pytest.raises(
            CheckpointError, match=rf"no '{name}' on this machine, and http.* has no model {name}.*hf auth"
        ):
            checkpoints.open(name)
    monkeypatch.setenv("HF_TOKEN", stand_in.TOKEN)
    for name in ("org/gated", "org/private"):
        assert checkpoints.open(name).spec == families.llama("tiny")


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        (
            ["pytorch_model.bin"],
            r"org/name.* holds no safetensors, only Python pickles \(pytorch_model.bin\), which can run",
        ),
        (["a-q4.gguf"], r"org/name.* holds no safetensors; name one of its GGUF files: org/name/a-q4.gguf"),
        (["tf_model.h5"], r"org/name.* holds no safetensors; it holds .*tf_model.h5"),
    ],
)
def test_weights_in_other_formats(
    held: list[str], sentence: str, server: stand_in.Hub, files: dict[str, bytes]
) -> None:
    """A repository without safetensors is refused with what to do, and none of its weights is fetched."""
    described = {name: data for name, data in files.items() if name != "model.safetensors"}
    server.add("org/name", described | dict.fromkeys(held, b"weights"))
    with pytest.raises(CheckpointError, match=sentence):
        checkpoints.open("org/name")
    assert not set(server.fetched()) & set(held)


def test_what_cannot_be_read_is_refused_before_its_weights_are_fetched(
    server: stand_in.Hub, files: dict[str, bytes]
) -> None:
    """An unknown family, and an unknown attribute of a known one (which `ignore` lets pass)."""
    config = json.loads(files["config.json"])
    server.add("org/mystery", {**files, "config.json": json.dumps({**config, "model_type": "mystery"}).encode()})
    server.add("org/odd", {**files, "config.json": json.dumps({**config, "novelty": 1}).encode()})
    with pytest.raises(SpecError, match="no family reads the model type 'mystery'"):
        checkpoints.open("org/mystery")
    with pytest.raises(SpecError, match="no such attribute is known: 'novelty'"):
        checkpoints.open("org/odd")
    assert "model.safetensors" not in server.fetched()
    assert model.load("org/odd", ignore=["novelty"]).spec == families.llama("tiny")


def test_a_gguf_file_of_a_repository(server: stand_in.Hub) -> None:
    """The one file that is named is fetched, in a folder or not, and remembered with its commit; one that is not there
    is named."""
    repository = server.add("org/name", {"q4/a.gguf": b"GGUF and no more", "b.gguf": b"GGUF"})
    with pytest.raises(CheckpointError, match=r"/q4/a.gguf"):
        checkpoints.open("org/name/q4/a.gguf")
    assert server.fetched() == ["q4/a.gguf"]
    assert checkpoints.fetch("org/name/b.gguf") == f"org/name@{repository.branches['main']}/b.gguf"
    assert checkpoints.fetch("org/name@main/q4/a.gguf") == f"org/name@{repository.branches['main']}/q4/a.gguf"
    with pytest.raises(CheckpointError, match=r"org/name/c.gguf is not there: .* has no such file"):
        checkpoints.open("org/name/c.gguf")


def test_pooling_comes_with_an_encoder(server: stand_in.Hub, tmp_path: Path) -> None:
    """modules.json and the folders that it names are fetched too: the vectors are those of the model that was put
    there."""
    built = model.build(families.bert("tiny").replace(head=EmbeddingHead(pooling="max")), seed=0).eval()
    built.tokenizer = text.byte_level()
    built.save(tmp_path / "m")
    saved = {
        path.relative_to(tmp_path / "m").as_posix(): path for path in (tmp_path / "m").rglob("*") if path.is_file()
    }
    assert "1_Pooling/config.json" in saved
    server.add("org/name", {name: path.read_bytes() for name, path in saved.items()})
    loaded = model.load("org/name", device="cpu")
    assert loaded.spec == built.spec
    assert torch.equal(loaded.embed(["some text"]), built.embed(["some text"]))


def test_an_adapter_brings_its_model(server: stand_in.Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """A repository that holds an adapter alone is fetched with the model that it names, at the revision that it names;
    and it can be named beside a model."""
    repository = server.add("org/base", files)
    there = repository.commit({**files, "README.md": b"of no use"})
    name = "decoder.layers.0.attention.query.weight"
    change = adapters.LowRank(torch.ones(2, 128), torch.ones(128, 2), 0.5)
    spec = families.llama("tiny")
    adapters.write(tmp_path, {name: change}, {}, spec=spec, family="llama", base="org/base", revision=there)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    server.add("org/adapter", {**written, "README.md": b"a card"})
    loaded = model.load("org/adapter", device="cpu")
    assert "README.md" not in server.fetched()
    base = model.load("org/base", device="cpu")
    assert torch.equal(loaded.get_parameter(name), base.get_parameter(name) + 1)
    beside = model.load("org/base", device="cpu", adapter="org/adapter")
    assert torch.equal(loaded.get_parameter(name), beside.get_parameter(name))
    assert loaded.tokenizer is not None and (loaded.origin or "").startswith("org/adapter@")


def test_what_is_on_the_disk_wins(
    server: stand_in.Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that exists is never looked for on a hub, and no revision of it makes sense."""
    monkeypatch.chdir(tmp_path)
    Path("org/name").mkdir(parents=True)
    for name, data in files.items():
        Path("org/name", name).write_bytes(data)
    assert checkpoints.open("org/name").origin == "org/name"
    assert checkpoints.fetch("org/name") == "org/name"
    with pytest.raises(CheckpointError, match="org/name: a revision, here 'main', is one of a repository on a hub"):
        checkpoints.open("org/name", revision="main")
    assert server.requests == []


@pytest.mark.parametrize(
    ("reference", "place"),
    [
        ("org/name", ("org/name", None, None)),
        ("org/na-me.v1_0@main", ("org/na-me.v1_0", "main", None)),
        ("org/name@refs/pr/3", ("org/name", "refs/pr/3", None)),
        ("org/name@v1/a/b.gguf", ("org/name", "v1", "a/b.gguf")),
        ("org/name/b.gguf", ("org/name", None, "b.gguf")),
        ("name", None),
        ("./org/name", None),
        ("/org/name", None),
        ("~/org/name", None),
        ("org/name/model.safetensors", None),
        ("org/name/", None),
        ("llama:tiny", None),
    ],
)
def test_names_on_a_hub(reference: str, place: tuple[str | None, ...] | None) -> None:
    """What is a name on a hub, and what is none; a place written out is read as the same place."""
    found = hub.model_place(reference)
    assert (None if found is None else found[:3]) == place
    assert found is None or hub.model_place(str(found)) == found


def test_a_data_set(server: stand_in.Hub, tmp_path: Path) -> None:
    """Its text files, but neither its card nor what is excluded, from the revision that is named, also once nothing
    answers any more; with a glob, those that fit it."""
    repository = server.add(
        "datasets/org/texts",
        {"README.md": b"the card", "b.txt": b"second", "a/a.txt": b"first", "a/old.txt": b"old", "LICENSE": b"free"},
    )
    sha = repository.branches["main"]
    found = find_files("hub:org/texts", exclude=["old.*"])
    assert [document.text for document in read_documents(found)] == ["first", "second"]
    assert all(sha in str(path) for path in found)
    repository.commit({"c.txt": b"third"})
    assert [path.name for path in find_files("hub:org/texts")] == ["c.txt"]
    server.requests.clear()
    assert [path.name for path in find_files(f"hub:org/texts@{sha}/a/*.txt")] == ["a.txt", "old.txt"]
    assert server.fetched() == []
    with pytest.raises(DataError, match=r"no text files at 'hub:org/texts/\*.log'"):
        find_files("hub:org/texts/*.log")


def test_a_data_set_of_records(server: stand_in.Hub) -> None:
    """Rows of JSON lines and tables, compressed as hubs have them; what describes them is none of them."""
    rows = gzip.compress(b'{"text": "first"}\n{"text": "second"}\n')
    server.add("datasets/org/rows", {"README.md": b"card", "dataset_infos.json": b"{}", "data/train.jsonl.gz": rows})
    assert [document.text for document in read_documents(find_files("hub:org/rows"))] == ["first", "second"]


def test_data_that_cannot_be_read(server: stand_in.Hub) -> None:
    """Other kinds of files are refused before anything is fetched, with the glob that reads the rest; a missing data
    set and a name of another form are told apart."""
    server.add("datasets/org/mixed", {"a.txt": b"text", "data/train.arrow": b"ARROW1"})
    with pytest.raises(DataError, match=r"org/mixed holds data/train.arrow, .* such as 'hub:org/mixed/\*.txt'"):
        find_files("hub:org/mixed")
    assert server.fetched() == []
    assert [path.name for path in find_files("hub:org/mixed/*.txt")] == ["a.txt"]
    with pytest.raises(DataError, match=r"has no data set org/none that you may see"):
        find_files("hub:org/none")
    with pytest.raises(DataError, match=r"'none' names no data set on a hub; write org/name"):
        find_files("hub:none")


def test_data_without_a_network(server: stand_in.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set that was read before is read again; one of which only a part was fetched is not taken for whole."""
    server.add("datasets/org/texts", {"a.txt": b"first", "b.txt": b"second"})
    server.add("datasets/org/part", {"a.txt": b"first", "b.txt": b"second"})
    whole = find_files("hub:org/texts")
    find_files("hub:org/part/a.txt")
    stop(server, monkeypatch)
    assert find_files("hub:org/texts") == whole
    with pytest.raises(DataError, match=r"'org/part' is neither on this machine nor whole in the cache"):
        find_files("hub:org/part")


def test_large_data_is_gone_on_with(server: stand_in.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file of a data set that broke off goes on where it stopped; one that is not asked for stays away."""
    text = b"some text\n" * 30_000
    server.add("datasets/org/texts", {"a.txt": text, "b.txt": text[1:], "c.txt": b"small"})
    monkeypatch.setattr(hub, "LARGE", 100_000)
    server.cuts["a.txt"] = [200_000, *[0] * 6]
    with pytest.raises(DataError, match=r"fetching org/texts.* broke off"):
        find_files("hub:org/texts/[ac].txt")
    server.cuts.clear()
    server.requests.clear()
    assert [path.read_bytes() for path in find_files("hub:org/texts/[ac].txt")] == [text, b"small"]
    assert [request.range for request in _transfers(server, "a.txt")] == ["bytes=200000-"]
    assert not _transfers(server, "b.txt")


def test_a_recipe_keeps_the_commits_that_it_began_with(server: stand_in.Hub, files: dict[str, bytes]) -> None:
    """Names on a hub get their commit when a recipe is read, so that a run that is resumed reads the same again; and
    the model trains."""
    from anyformer import training

    model_commit = server.add("org/name", files).branches["main"]
    data_commit = server.add("datasets/org/texts", {"a.txt": b"some text\n" * 400}).branches["main"]
    recipe = training.read_recipe(
        {
            "run": {"directory": "run"},
            "model": {"from": "org/name"},
            "data": {"train": "hub:org/texts/*.txt"},
            "training": {"steps": 1},
        }
    )
    assert recipe.model.source == f"org/name@{model_commit}"
    assert recipe.data.train == (f"hub:org/texts@{data_commit}/*.txt",)
    server.requests.clear()
    assert training.read_recipe(recipe.to_data()) == recipe
    assert server.requests == []


def test_pushing(
    server: stand_in.Hub,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One commit holds all that saving writes, and a card; what is pulled is what was pushed. Pushed again,
    files that no longer hold are gone, and the card that is there stays."""
    monkeypatch.setenv("HF_TOKEN", stand_in.TOKEN)
    server.add("org/name", files)
    loaded = model.load("org/name", device="cpu")
    capsys.readouterr()
    where = loaded.push_to_hub("me/mine", private=True, license="mit")
    assert capsys.readouterr() == ("", "")
    repository = server.repositories["me/mine"]
    assert where == f"me/mine@{repository.branches['main']}" and repository.private
    assert len(repository.commits) == 2  # that of its making, and this one
    assert repository.head.keys() == {*files, ".gitattributes", "README.md"}
    again = model.load("me/mine", device="cpu")
    assert again.origin == where and again.spec == loaded.spec
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    front = yaml.safe_load(repository.head["README.md"].decode().split("---")[1])
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "base_model": "org/name",
        "tags": ["anyformer", "llama"],
    }

    repository.commit({**repository.head, "README.md": b"by hand", "model-00001-of-00002.safetensors": b"old"})
    loaded.push_to_hub("me/mine")
    assert repository.head.keys() == {*files, ".gitattributes", "README.md"}
    assert repository.head["README.md"] == b"by hand"
    loaded.push_to_hub("me/mine", revision="dev", message="Try it")
    assert set(repository.branches) == {"main", "dev"}


def test_pushing_is_refused(server: stand_in.Hub, files: dict[str, bytes]) -> None:
    """Without a token the sentence says how to log in, and the hub is as it was; what is no name is refused first."""
    server.add("org/name", files)
    with pytest.raises(CheckpointError, match=r"org/mine.*401.*log in with: hf auth login"):
        model.load("org/name").push_to_hub("org/mine")
    assert server.repositories.keys() == {"org/name"}
    for name in ("mine", "org/mine@main", "./mine", "org/"):
        with pytest.raises(CheckpointError, match=f"is named org/name, which '{name}' is not"):
            model.load("org/name").push_to_hub(name)


@pytest.mark.parametrize("family", ["llama", "bert", "t5", "mixtral"])
def test_a_card_says_what_the_model_is(family: str) -> None:
    """Its front matter is YAML, its figures are those of the plan, and both ways of loading name the repository."""
    described = families.named(family)("tiny")
    written = card.write(described, "me/mine", family=family)
    front = yaml.safe_load(written.split("---")[1])
    tasks = {"llama": "text-generation", "mixtral": "text-generation", "bert": "fill-mask", "t5": None}
    assert front["library_name"] == "transformers" and front.get("pipeline_tag") == tasks[family]
    assert "license" not in front and "base_model" not in front
    from anyformer import planning

    assert f"| parameters | {planning.count(described):,} |" in written
    assert planning.describe(described).strip() in written
    assert 'af.load("me/mine")' in written and '.from_pretrained("me/mine")' in written


def test_a_card_of_what_no_other_tool_loads() -> None:
    """Where no family has words for the model, the card promises nothing of transformers."""
    described = families.t5("tiny")
    assert described.decoder is not None
    block = described.decoder.pattern[0]
    attention = block.branches[0].mixer.replace(position=Alibi())
    block = block.replace(branches=(block.branches[0].replace(mixer=attention), *block.branches[1:]))
    described = described.replace(decoder=described.decoder.replace(pattern=(block,), relative=None))
    assert checkpoints.expressible(described) is None
    written = card.write(described, "me/mine")
    assert "from_pretrained" not in written and "library_name: anyformer" in written


def test_on_the_command_line(server: stand_in.Hub, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever a model is named a hub's name will do; inspect says which commit it is; what is wrong is one line, and
    nothing else is said where there is no terminal."""
    from anyformer.cli import main

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    sha = server.add("org/name", files).branches["main"]
    code, out, err = run("generate", "org/name", "x", "-n", "2", "--device", "cpu")
    assert (code, err) == (0, "") and out
    assert f"from           org/name@{sha}, family llama" in run("inspect", "org/name@main")[1]
    code, out, err = run("inspect", "org/absent")
    assert (code, out) == (2, "") and err.startswith("anyformer: there is no 'org/absent' on this machine")
    assert len(err.splitlines()) == 1


def test_nothing_waits_for_the_hub_s_library_that_names_no_hub(tmp_path: Path, files: dict[str, bytes]) -> None:
    """A directory is read without huggingface-hub's client; a process of its own then finds its hub and its cache by
    the environment, and says nothing of what it fetches where there is no terminal."""
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    code = (
        "import sys\n"
        "from anyformer import checkpoints\n"
        "print(checkpoints.open(sys.argv[1]).origin, 'huggingface_hub.file_download' in sys.modules)\n"
        "print(checkpoints.open('org/name').origin)"
    )
    with stand_in.running() as server:
        sha = server.add("org/name", files).branches["main"]
        own = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", code, str(tmp_path)]
        ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **own})
    assert (ran.stdout.split(), ran.stderr) == ([str(tmp_path), "False", f"org/name@{sha}"], "")
