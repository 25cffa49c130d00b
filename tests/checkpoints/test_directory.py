"""Checkpoint directories: Hugging Face's files, spec.json, what is carried, what disagrees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anyformer import checkpoints, families, text
from anyformer.checkpoints import Carried, directory
from anyformer.checkpoints.weights import INDEX, WEIGHTS
from anyformer.errors import CheckpointError, SpecError
from anyformer.planning.shapes import shapes
from anyformer.spec import Alibi, EmbeddingHead, LanguageModelHead, TokenClassificationHead, Transformer


def numbers(spec: Transformer, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes(spec).items()}


def write(path: Path, spec: Transformer, family: str | None = None, **more: Any) -> Path:
    checkpoints.write(path, spec=spec, tensors=numbers(spec, more.pop("dtype", torch.float32)), family=family, **more)
    return path


def edit(path: Path, **changes: Any) -> None:
    """Change a JSON file; None removes a key."""
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))


def listing(path: Path) -> list[str]:
    return sorted(found.name for found in path.iterdir())


LLAMA, BERT, T5 = (getattr(families, name)("tiny") for name in ("llama", "bert", "t5"))


@pytest.mark.parametrize("family", families.registered().values(), ids=lambda family: family.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_ways(tmp_path: Path, family: families.Family, dtype: torch.dtype) -> None:
    """Every family and every head: spec, numbers, type and generation come back as they were."""
    for architecture, kind in family.architectures.items():
        spec = family("tiny", architectures=[architecture])
        generation = {**family.generation, "pad_token_id": 0, "eos_token_id": [2, 3]}
        # A family that computes with the padding id says it in config.json; null there says that there is none.
        generation["pad_token_id"] = family.write(spec).get("pad_token_id", 0)
        if generation["pad_token_id"] is None:
            del generation["pad_token_id"]
        path = write(tmp_path / architecture, spec, family.name, generation=generation, dtype=dtype)
        found = checkpoints.open(path)
        assert (found.spec, found.family, found.dtype) == (spec, (family.format or family).name, dtype)
        assert found.generation == generation
        assert found.tokenizer is None
        for name, tensor in numbers(spec, dtype).items():
            assert torch.equal(found.tensors[name], tensor)
        config = json.loads((path / "config.json").read_text())
        assert config["torch_dtype"] == str(dtype).removeprefix("torch.")
        assert family.architectures[config["architectures"][0]] == kind


def test_the_files_of_a_checkpoint(tmp_path: Path) -> None:
    """Exactly the files that belong to it."""
    assert listing(write(tmp_path / "bert", BERT)) == ["config.json", WEIGHTS, "spec.json"]
    path = write(tmp_path / "llama", LLAMA, "llama", generation={"eos_token_id": 2}, tokenizer=text.byte_level())
    assert {"config.json", "generation_config.json", WEIGHTS, "spec.json", "tokenizer.json"} <= set(listing(path))
    found = checkpoints.open(path)
    assert found.tokenizer is not None and found.tokenizer.encode("ab") == text.byte_level().encode("ab")


def test_a_family_is_found_for_a_bare_spec(tmp_path: Path) -> None:
    """A spec that some family's format can express is saved in it, whoever built it."""
    assert checkpoints.open(write(tmp_path, LLAMA)).family == "llama"


def test_what_no_family_can_express(tmp_path: Path) -> None:
    """spec.json alone describes it, under our own names, and it loads as it was."""
    assert LLAMA.decoder is not None
    data = LLAMA.model_dump()
    data["decoder"]["pattern"][0]["branches"][0]["mixer"]["position"] = Alibi().model_dump()
    spec = Transformer.from_data(data)
    assert checkpoints.expressible(spec) is None
    path = write(tmp_path, spec, "llama")
    assert listing(path) == [WEIGHTS, "spec.json"]
    found = checkpoints.open(path)
    assert (found.spec, found.family) == (spec, None)
    assert load_file(path / WEIGHTS).keys() == shapes(spec).keys()


def test_spec_json_says_more(tmp_path: Path) -> None:
    """What only guides training is kept by spec.json, where config.json has no word for it."""
    spec = LLAMA.replace(initialization=LLAMA.initialization.replace(depth_scaled=True))
    assert checkpoints.open(write(tmp_path, spec)).spec == spec
    (tmp_path / "spec.json").unlink()
    assert checkpoints.open(tmp_path).spec == LLAMA


def test_disagreement_is_an_error(tmp_path: Path) -> None:
    """config.json and spec.json must say the same; the path and both values are told."""
    write(tmp_path, LLAMA)
    edit(tmp_path / "config.json", rms_norm_eps=1e-3)
    with pytest.raises(
        CheckpointError, match=r"disagree: decoder.*norm.eps is 1e-05 in spec.json, 0.001 in config.json"
    ):
        checkpoints.open(tmp_path)
    write(tmp_path, LLAMA)
    edit(tmp_path / "config.json", architectures=["LlamaModel"])
    with pytest.raises(CheckpointError, match="disagree: head is"):
        checkpoints.open(tmp_path)
    write(tmp_path, LLAMA)
    edit(tmp_path / "spec.json", head=LLAMA.head.replace(soft_cap=3.0).model_dump())
    with pytest.raises(SpecError, match=r"no counterpart for head.soft_cap"):
        checkpoints.open(tmp_path)


def test_a_spec_with_an_unknown_key(tmp_path: Path) -> None:
    """The file and the key's path."""
    write(tmp_path, LLAMA)
    (tmp_path / "config.json").unlink()
    edit(tmp_path / "spec.json", mystery=1)
    with pytest.raises(SpecError, match=r"spec.json: Transformer has no key 'mystery'"):
        checkpoints.open(tmp_path)


def test_saving_over_another_checkpoint(tmp_path: Path) -> None:
    """Nothing of what was there before is left to contradict what is there now; files of others stay."""
    (tmp_path / "metrics.jsonl").write_text("{}")
    write(tmp_path, LLAMA, "llama", generation={"eos_token_id": 1}, shard_bytes=100_000)
    assert (tmp_path / INDEX).exists() and len(list(tmp_path.glob("model-*.safetensors"))) > 2
    write(tmp_path, BERT, "bert")
    assert listing(tmp_path) == ["config.json", "metrics.jsonl", WEIGHTS, "spec.json"]
    assert checkpoints.open(tmp_path).spec == BERT
    write(tmp_path, LLAMA, "llama", shard_bytes=100_000)
    assert not (tmp_path / WEIGHTS).exists()
    assert checkpoints.open(tmp_path).spec == LLAMA


def test_saving_over_itself(tmp_path: Path) -> None:
    """Tensors still mapped from the very file that is replaced are saved as they were."""
    write(tmp_path, LLAMA)
    found = checkpoints.open(tmp_path)
    checkpoints.write(tmp_path, spec=found.spec, tensors=found.tensors, family=found.family, carried=found.carried)
    again = checkpoints.open(tmp_path)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in numbers(LLAMA).items())


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up while weights are written changes nothing."""
    write(tmp_path, LLAMA)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory, "write_weights", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        write(tmp_path, BERT)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_generation_defaults(tmp_path: Path) -> None:
    """Ids and settings of an old config.json, and the family's under them; generation_config.json takes the place of
    the settings, as in transformers, and stands over the ids."""
    write(tmp_path, T5, "t5")
    for name in ("spec.json", "generation_config.json"):
        (tmp_path / name).unlink()
    edit(tmp_path / "config.json", max_length=20, num_beams=4, bos_token_id=9, eos_token_id=None)
    assert checkpoints.open(tmp_path).generation == {
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "max_length": 20,
        "num_beams": 4,
        "bos_token_id": 9,
    }
    (tmp_path / "generation_config.json").write_text('{"num_beams": 2, "eos_token_id": [1, 7]}')
    found = checkpoints.open(tmp_path).generation
    assert (found["num_beams"], found["eos_token_id"], found["bos_token_id"]) == (2, [1, 7], 9)
    assert "max_length" not in found


def test_what_a_family_assumes_is_written(tmp_path: Path) -> None:
    """Others need not know what a family takes for granted: T5 starts from its padding."""
    write(tmp_path, T5)
    for name in ("config.json", "generation_config.json"):
        said = json.loads((tmp_path / name).read_text())
        assert (said["decoder_start_token_id"], said["pad_token_id"], said["eos_token_id"]) == (0, 0, 1)


def test_special_tokens_outside_the_vocabulary(tmp_path: Path) -> None:
    """They load; they are generation's affair."""
    write(tmp_path, LLAMA, "llama", generation={"pad_token_id": 99_999})
    assert checkpoints.open(tmp_path).generation["pad_token_id"] == 99_999


def test_what_is_ignored_is_carried(tmp_path: Path) -> None:
    """Ignored attributes and tensors are written back as they were; the type of number follows the weights."""
    spec = families.bert("tiny", architectures=["BertModel"])
    write(tmp_path / "a", spec, "bert")
    (tmp_path / "a" / "spec.json").unlink()
    edit(tmp_path / "a" / "config.json", use_cache=False, id2label={"0": "no", "1": "yes"}, dtype="float32")
    pooler = {"pooler.dense.weight": torch.ones(128, 128), "embeddings.position_ids": torch.arange(4)[None]}
    save_file({**load_file(tmp_path / "a" / WEIGHTS), **pooler}, tmp_path / "a" / WEIGHTS)
    found = checkpoints.open(tmp_path / "a")
    assert found.carried.tensors.keys() == pooler.keys()
    assert found.carried.reasons["use_cache"] == "the caller's choice"
    half = {name: tensor.half() for name, tensor in found.tensors.items()}
    checkpoints.write(tmp_path / "b", spec=spec, tensors=half, family="bert", carried=found.carried)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (config["use_cache"], config["id2label"]) == (False, {"0": "no", "1": "yes"})
    assert config["torch_dtype"] == "float16" and "dtype" not in config
    saved = load_file(tmp_path / "b" / WEIGHTS)
    assert all(torch.equal(saved[name], tensor) for name, tensor in pooler.items())


def test_what_is_carried_stays_in_its_family(tmp_path: Path) -> None:
    """Attributes and tensors of one format mean nothing in another."""
    carried = Carried(attributes={"use_cache": False}, tensors={"extra": torch.ones(1)}, files={"a.txt": b"a"})
    write(tmp_path, LLAMA, "bert", carried=carried)
    assert "use_cache" not in json.loads((tmp_path / "config.json").read_text())
    assert "extra" not in load_file(tmp_path / WEIGHTS) and not (tmp_path / "a.txt").exists()


def test_names_of_labels(tmp_path: Path) -> None:
    """Kept while there are as many labels, renumbered when there are not."""
    spec = families.bert("tiny", architectures=["BertForTokenClassification"], num_labels=3)
    names = {"0": "PER", "1": "LOC", "2": "ORG"}
    carried = Carried(attributes={"id2label": names, "label2id": {"PER": 0, "LOC": 1, "ORG": 2}})
    write(tmp_path / "same", spec, "bert", carried=carried)
    assert json.loads((tmp_path / "same" / "config.json").read_text())["id2label"] == names
    fewer = spec.replace(head=TokenClassificationHead(labels=2, dropout=0.1))
    write(tmp_path / "fewer", fewer, "bert", carried=carried)
    written = json.loads((tmp_path / "fewer" / "config.json").read_text())
    assert written["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"} and len(written["label2id"]) == 2


def test_ignore_gets_past_unknown_attributes_and_tensors(tmp_path: Path) -> None:
    """What the caller ignores is not carried, so that what is saved loads without asking again."""
    write(tmp_path / "a", LLAMA, "llama")
    (tmp_path / "a" / "spec.json").unlink()
    edit(tmp_path / "a" / "config.json", mystery=1)
    save_file({**load_file(tmp_path / "a" / WEIGHTS), "riddle.0": torch.ones(1)}, tmp_path / "a" / WEIGHTS)
    with pytest.raises(SpecError, match="'mystery'"):
        checkpoints.open(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"holds riddle.0"):
        checkpoints.open(tmp_path / "a", ignore=["mystery"])
    found = checkpoints.open(tmp_path / "a", ignore=["mystery", "riddle.*"])
    checkpoints.write(
        tmp_path / "b", spec=found.spec, tensors=found.tensors, family=found.family, carried=found.carried
    )
    assert checkpoints.open(tmp_path / "b").spec == LLAMA


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["first", "mean", "max", "last"])
def test_embedding_heads(tmp_path: Path, pooling: Any, normalize: bool) -> None:
    """How to pool stands in sentence-transformers' files, written where it is not the usual."""
    head = EmbeddingHead(pooling=pooling, normalize=normalize)
    spec = families.bert("tiny", architectures=["BertModel"]).replace(head=head)
    write(tmp_path, spec, "bert")
    assert (tmp_path / "modules.json").exists() is (head != EmbeddingHead())
    assert checkpoints.open(tmp_path).spec == spec
    (tmp_path / "spec.json").unlink()
    assert checkpoints.open(tmp_path).spec == spec


def test_another_pooling_than_the_one_that_was_read(tmp_path: Path) -> None:
    """modules.json follows the head: rewritten when it changed, gone when there is no embedding head any more."""
    spec = families.bert("tiny", architectures=["BertModel"])
    write(tmp_path / "a", spec.replace(head=EmbeddingHead(pooling="first")), "bert")
    found = checkpoints.open(tmp_path / "a")
    assert "modules.json" in found.carried.files
    write(tmp_path / "b", spec.replace(head=EmbeddingHead(pooling="max")), "bert", carried=found.carried)
    assert checkpoints.open(tmp_path / "b").spec.head == EmbeddingHead(pooling="max")
    write(tmp_path / "c", BERT, "bert", carried=found.carried)
    assert not (tmp_path / "c" / "modules.json").exists()
    assert checkpoints.open(tmp_path / "c").spec == BERT


def test_modules_of_a_model_that_had_a_head(tmp_path: Path) -> None:
    """modules.json asks for embeddings whatever the architecture; the head's tensors are carried."""
    write(tmp_path, BERT, "bert")
    (tmp_path / "spec.json").unlink()
    modules = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    found = checkpoints.open(tmp_path)
    assert found.spec.head == EmbeddingHead(pooling="first", normalize=False)
    assert "cls.predictions.bias" in found.carried.tensors
    checkpoints.write(tmp_path / "b", spec=found.spec, tensors=found.tensors, family="bert", carried=found.carried)
    assert json.loads((tmp_path / "b" / "config.json").read_text())["architectures"] == ["BertModel"]
    again = checkpoints.open(tmp_path / "b")
    assert again.spec == found.spec
    assert torch.equal(again.carried.tensors["cls.predictions.bias"], found.carried.tensors["cls.predictions.bias"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("said", [True, False])
def test_t5_is_tied_as_its_file_is(tmp_path: Path, tied: bool, said: bool) -> None:
    """Whatever `tie_word_embeddings` says: tied exactly if the output matrix is absent or equal."""
    head = LanguageModelHead(tied=tied, scale=64**-0.5)
    write(tmp_path, T5.replace(head=head), "t5")
    (tmp_path / "spec.json").unlink()
    edit(tmp_path / "config.json", tie_word_embeddings=said)
    assert checkpoints.open(tmp_path).spec.head == head
    saved = load_file(tmp_path / WEIGHTS)
    equal = {
        "lm_head.weight": saved["shared.weight"].clone(),
        "encoder.embed_tokens.weight": saved["shared.weight"].clone(),
    }
    save_file({**saved, **equal}, tmp_path / WEIGHTS)
    assert checkpoints.open(tmp_path).spec.head == head.replace(tied=True)


def test_llama_is_tied_as_its_config_says(tmp_path: Path) -> None:
    """Where the config is clear, a file that contradicts it is an error and not a choice."""
    untied = LLAMA.replace(head=LanguageModelHead(tied=False))
    write(tmp_path, untied, "llama")
    (tmp_path / "spec.json").unlink()
    edit(tmp_path / "config.json", tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        checkpoints.open(tmp_path)
    write(tmp_path, LLAMA, "llama")
    (tmp_path / "spec.json").unlink()
    edit(tmp_path / "config.json", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lacks lm_head.weight"):
        checkpoints.open(tmp_path)


def test_what_stands_beside_a_tokenizer_is_carried_without_one(tmp_path: Path) -> None:
    """Files that name special tokens go along with the model, also where no vocabulary is there."""
    write(tmp_path / "a", LLAMA, "llama")
    (tmp_path / "a" / "special_tokens_map.json").write_bytes(b'{ "eos_token": "</s>" }')
    found = checkpoints.open(tmp_path / "a")
    assert found.tokenizer is None
    write(tmp_path / "b", LLAMA, "llama", carried=found.carried)
    assert (tmp_path / "b" / "special_tokens_map.json").read_bytes() == b'{ "eos_token": "</s>" }'
