"""Real vocabularies with the ids that their own tokenizers give, and real chat templates.

They come with the source package of llama-cpp-python: `tests/fetch_vectors.sh` fetches it into tests/.data, or the
environment variable ANYFORMER_LLAMA_CPP_SOURCE says where the package lies. Without it these tests skip.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from anyformer import text
from anyformer.checkpoints.gguf import GgufFile
from anyformer.errors import TextError
from anyformer.text import Tokenizer
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
#: Vocabularies that come without vectors.
OTHERS = ("aquila", "baichuan", "gpt-neox", "nomic-bert-moe")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


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


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "bert-bge"])
def test_saved_vocabularies_load_in_transformers(name: str, models: Path, tmp_path: Path) -> None:
    """What is saved of a GGUF file's vocabulary gives the same ids in transformers, special tokens included."""
    path = models / f"ggml-vocab-{name}.gguf"
    tokenizer = text.from_gguf(GgufFile(path).metadata)
    tokenizer.save(tmp_path)
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for written, _ in vectors(path):
        assert saved.encode(written) == tokenizer.encode(written)


@pytest.mark.parametrize("name", OTHERS)
def test_vocabularies_without_vectors(name: str, models: Path) -> None:
    """They load, and what they encode comes back; the texts are another vocabulary's."""
    tokenizer = text.from_gguf(GgufFile(models / f"ggml-vocab-{name}.gguf").metadata)
    for written, _ in vectors(models / "ggml-vocab-gpt-2.gguf"):
        ids = tokenizer.encode(written)
        assert piecewise(tokenizer, ids) == tokenizer.decode(ids)
        if name != "nomic-bert-moe":
            assert tokenizer.decode(ids) == written


def test_real_templates_render_or_say_why_not(models: Path) -> None:
    """Every real template renders a conversation, with tools where it needs them, as transformers renders it."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    messages = [
        {"role": "user", "content": "Hi <é>"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "?"},
    ]
    paths = sorted((models / "templates").glob("*.jinja"))
    assert len(paths) > 60
    for path in paths:
        template = path.read_text(encoding="utf-8")
        for tools in (None, TOOLS):
            variables = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True, "tools": tools}
            try:
                expected = _compile_jinja_template(template).render(messages=messages, documents=None, **variables)
            except Exception as error:
                with pytest.raises(TextError, match=r"the chat template refuses these messages: ."):
                    render(template, messages, variables)
                assert str(error), path.name
            else:
                assert render(template, messages, variables) == expected, path.name
                assert "Hi <é>" in expected
