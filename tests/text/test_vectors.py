"""Real vocabularies with the ids that their own tokenizers give, and real chat templates.

They come with the source package of llama-cpp-python, which `make test` fetches into tests/.data where it can
(`tests/fetch_vectors.sh`); or the environment variable ANYFORMER_LLAMA_CPP_SOURCE says where the package lies. Without
it these tests skip.

Of its nineteen vocabularies fifteen come with vectors: texts (.inp) and ids (.out). The other four are tested in other
ways: nomic-bert-moe (unigram) and baichuan (BPE) against SentencePiece itself; gpt-neox and aquila, byte-level BPE
without the name of their split, by the texts coming back.
"""

from __future__ import annotations

import base64
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from jinja2 import TemplateError
from sentencepiece import sentencepiece_model_pb2
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template

from anyformer import text
from anyformer.checkpoints.gguf import GgufFile
from anyformer.errors import TextError
from anyformer.text import Tokenizer
from anyformer.text.bytelevel import byte_alphabet
from anyformer.text.templates import render

PACKAGE = "llama_cpp_python-0.3.36.tar.gz"
MODELS = "vendor/llama.cpp/models/"
VECTORS = (
    *(
        "bert-bge",
        "command-r",
        "deepseek-coder",
        "deepseek-llm",
        "falcon",
        "gemma-4",
        "gpt-2",
        "llama-bpe",
        "llama-spm",
    ),
    *("mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder"),
)
#: Vocabularies that come without vectors: byte-level BPE, and SentencePiece's.
BYTE_LEVEL, SENTENCEPIECE = ("aquila", "gpt-neox"), ("baichuan", "nomic-bert-moe")
CITY = {"type": "string", "description": "Its name"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": CITY}, "required": ["city"]},
        },
    }
]
MESSAGES = [
    {"role": "system", "content": "Be <kind>."},
    {"role": "user", "content": "Hi <é>"},
    {"role": "assistant", "content": "Ho"},
    {"role": "user", "content": "?"},
]
#: Conversations by name: what is said, and what tools there are.
CONVERSATIONS = {
    "system": (MESSAGES, None),
    "no system": (MESSAGES[1:], None),
    "tools": (MESSAGES, TOOLS),
    "tools, no system": (MESSAGES[1:], TOOLS),
}
#: The templates that do not take every conversation, which ones they refuse, and why.
REFUSALS = {
    "CohereForAI-c4ai-command-r-plus-tool_use": (("system", "no system"), "not iterable; it was not given: .*tools"),
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": (("system", "no system"), "not iterable; it was not given: tools"),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": (("system", "no system"), "not iterable; it was not given: tools"),
    "fireworks-ai-llama-3-firefunction-v2": (tuple(CONVERSATIONS), "undefined; it was not given: .*functions"),
    "google-gemma-2-2b-it": (("system", "tools"), "System role not supported"),
    "llama-cpp-deepseek-r1": (("tools", "tools, no system"), "generator is not JSON serializable"),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of vocabularies, their vectors and the templates, out of the source package."""
    package = Path(os.environ.get("ANYFORMER_LLAMA_CPP_SOURCE", Path(__file__).parents[1] / ".data" / PACKAGE))
    if not package.is_file():
        pytest.skip(f"{PACKAGE} is not here; tests/fetch_vectors.sh fetches it")
    directory = tmp_path_factory.mktemp("vectors")
    with tarfile.open(package) as archive:
        for member in archive:
            if member.isfile() and MODELS in member.name:
                member.name = member.name.split(MODELS)[1]
                archive.extract(member, directory, filter="data")
    return directory


def vectors(path: Path) -> list[tuple[str, list[int]]]:
    """Texts and their ids: texts apart by a mark on a line of its own, ids on a line for each."""
    texts = path.with_name(path.name + ".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    ids = [[int(id) for id in line.split()] for line in path.with_name(path.name + ".out").read_text().splitlines()]
    assert len(texts) - len(ids) in (0, 1), "the last text may be followed by a mark too"
    return list(zip(texts, ids, strict=False))


def piecewise(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join(stream.push(id) for id in ids) + stream.finish()


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name: str, models: Path) -> None:
    """Every text gives the ids that the model's own tokenizer gave, and comes back from them, whole and streamed."""
    path = models / f"ggml-vocab-{name}.gguf"
    tokenizer = text.from_gguf(GgufFile(path).metadata)
    cases = vectors(path)
    assert len(cases) > 40
    for written, ids in cases:
        assert tokenizer.encode(written, special=False) == ids
        assert piecewise(tokenizer, ids) == tokenizer.decode(ids)
        if name != "bert-bge":
            assert tokenizer.decode(ids) == written


def tiktoken_file(keys: Mapping[str, Any]) -> bytes:
    """A byte-level vocabulary in tiktoken's format: the tokens' bytes, without the special ones."""
    byte_of = {letter: byte for byte, letter in byte_alphabet().items()}
    normal = [token for token, kind in zip(keys["tokens"], keys["token_type"], strict=True) if kind == 1]
    tokens = (bytes(byte_of[letter] for letter in token) for token in normal)
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


#: What the files of the models that these vocabularies came from hold, written from a GGUF file's keys.
ORIGINALS: dict[str, dict[str, Callable[[Mapping[str, Any]], bytes]]] = {
    "llama-bpe": {"tokenizer.model": tiktoken_file},
    "qwen2": {"qwen.tiktoken": tiktoken_file},
    "llama-spm": {"tokenizer.model": lambda keys: sentencepiece_of(keys).serialized_model_proto()},
    "gpt-2": {
        "vocab.json": lambda keys: json.dumps({token: id for id, token in enumerate(keys["tokens"])}).encode(),
        "merges.txt": lambda keys: "\n".join(["#version: 0.2", *keys["merges"], ""]).encode(),
    },
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_vectors_of_the_original_files(name: str, models: Path, tmp_path: Path) -> None:
    """A real vocabulary in the files that the model itself has gives the same ids: Llama 3 and Qwen in tiktoken's
    format, Llama 2 as a SentencePiece model, GPT-2 as vocabulary and merges."""
    path = models / f"ggml-vocab-{name}.gguf"
    keys = {key.removeprefix("tokenizer.ggml."): value for key, value in GgufFile(path).metadata.items()}
    for file, content in ORIGINALS[name].items():
        (tmp_path / file).write_bytes(content(keys))
    tokenizer = text.read(tmp_path)
    for written, ids in vectors(path):
        assert tokenizer.encode(written, special=False) == ids
        assert tokenizer.decode(ids) == written


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "bert-bge"])
def test_saved_vocabularies_load_in_transformers(name: str, models: Path, tmp_path: Path) -> None:
    """What is saved of a GGUF file's vocabulary gives the same ids in transformers, special tokens included."""
    path = models / f"ggml-vocab-{name}.gguf"
    tokenizer = text.from_gguf(GgufFile(path).metadata)
    tokenizer.save(tmp_path)
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for written, _ in vectors(path):
        assert saved.encode(written) == tokenizer.encode(written)


def test_every_vocabulary_is_tested(models: Path) -> None:
    """All that the package holds, with vectors or without."""
    names = {path.stem.removeprefix("ggml-vocab-") for path in models.glob("*.gguf")}
    assert names == {*VECTORS, *BYTE_LEVEL, *SENTENCEPIECE}
    assert {path.name.split(".")[0].removeprefix("ggml-vocab-") for path in models.glob("*.inp")} == set(VECTORS)


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_byte_level_vocabularies_without_vectors(name: str, models: Path) -> None:
    """They load, and what they encode comes back; the texts are another vocabulary's."""
    tokenizer = text.from_gguf(GgufFile(models / f"ggml-vocab-{name}.gguf").metadata)
    for written, _ in vectors(models / "ggml-vocab-gpt-2.gguf"):
        ids = tokenizer.encode(written)
        assert piecewise(tokenizer, ids) == tokenizer.decode(ids) == written


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_sentencepiece_vocabularies_without_vectors(name: str, models: Path) -> None:
    """The same vocabulary in SentencePiece's own hands gives the same ids and texts."""
    metadata = GgufFile(models / f"ggml-vocab-{name}.gguf").metadata
    keys = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    ours, theirs = text.from_gguf(metadata), sentencepiece_of(keys)
    for written, _ in vectors(models / "ggml-vocab-gpt-2.gguf"):
        ids = ours.encode(written, special=False)
        expected = theirs.encode(written)
        assert ids == expected
        assert piecewise(ours, ids) == ours.decode(ids)
        if theirs.unk_id() not in ids:
            assert ours.decode(ids) == theirs.decode(ids)


def sentencepiece_of(keys: Mapping[str, Any]) -> sentencepiece.SentencePieceProcessor:
    """The model that a GGUF file was written from."""
    model = sentencepiece_model_pb2.ModelProto()
    for piece, score, kind in zip(keys["tokens"], keys["scores"], keys["token_type"], strict=True):
        model.pieces.add(piece=piece, score=score, type=kind)
    unigram = keys["model"] == "t5"
    model.trainer_spec.model_type = 1 if unigram else 2
    model.trainer_spec.byte_fallback = 6 in keys["token_type"]
    model.trainer_spec.unk_id = keys["token_type"].index(2)
    model.normalizer_spec.add_dummy_prefix = keys.get("add_space_prefix", True)
    model.normalizer_spec.remove_extra_whitespaces = keys.get("remove_extra_whitespaces", unigram)
    model.normalizer_spec.precompiled_charsmap = bytes(keys.get("precompiled_charsmap", []))
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def test_real_templates_render_or_say_why_not(models: Path) -> None:
    """Every real template renders every kind of conversation as transformers renders it, or stands on the list of those
    that refuse it there too, with its reason."""
    paths = sorted((models / "templates").glob("*.jinja"))
    assert len(paths) == 70
    assert REFUSALS.keys() <= {path.stem for path in paths}
    for path in paths:
        template = path.read_text(encoding="utf-8")
        refused, reason = REFUSALS.get(path.stem, ((), ""))
        for name, (messages, tools) in CONVERSATIONS.items():
            variables = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True, "tools": tools}
            compiled = _compile_jinja_template(template)
            if name in refused:
                with pytest.raises(TextError, match=rf"the chat template refuses these messages: .*{reason}"):
                    render(template, messages, variables)
                with pytest.raises((TypeError, TemplateError)):
                    compiled.render(messages=messages, documents=None, **variables)
            else:
                expected = compiled.render(messages=messages, documents=None, **variables)
                assert render(template, messages, variables) == expected, (path.name, name)
                assert "Hi <é>" in expected


def test_what_was_not_given_is_all_that_was_missing(models: Path) -> None:
    """A template that asks for functions renders when it gets them, as in transformers."""
    template = (models / "templates" / "fireworks-ai-llama-3-firefunction-v2.jinja").read_text(encoding="utf-8")
    variables = {"bos_token": "<s>", "eos_token": "</s>", "functions": json.dumps(TOOLS), "datetime": "today"}
    expected = _compile_jinja_template(template).render(messages=MESSAGES, **variables)
    assert render(template, MESSAGES, variables) == expected
    assert "get_weather" in expected
