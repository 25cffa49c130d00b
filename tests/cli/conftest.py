"""The command line as a function, a small model with a chat template, and a recipe of one step."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

#: A template such as small chat models have, rendered to plain bytes.
TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

#: A recipe of one short step.
RECIPE = """
[run]
directory = "run"
[model]
preset = "llama:tiny"
[data]
train = "{text}"
[training]
steps = 1
batch_tokens = 4096
sequence_length = 128
validate_tokens = 64
validate_every = 1000
"""


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def anyformer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run the command line in this process."""
    from anyformer.cli import main

    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()

    def run(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        code = exit.value.code
        return Ran(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def command() -> list[str]:
    """What runs the command line in a process of its own."""
    return [sys.executable, "-c", "from anyformer.cli import main; main()"]


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a model of bytes with fresh weights and a chat template. Its weights are large, so that what it
    writes depends on what it has read, and printable ASCII alone, so that it reads back as the same ids."""
    import torch

    from anyformer import families, model, text

    directory = tmp_path_factory.mktemp("talker")
    described = families.llama("tiny", tie_word_embeddings=False, initializer_range=0.3)  # type: ignore[attr-defined]
    built = model.build(described, seed=3)
    assert built.head is not None
    with torch.no_grad():
        for unwritten in (slice(0, 32), slice(127, None)):
            built.head.output.weight[unwritten] = 0
    tokenizer = text.byte_level()
    built.tokenizer = text.Tokenizer(tokenizer._backend, {**tokenizer._config, "chat_template": TEMPLATE})
    built.family = "llama"
    built.generation = {"eos_token_id": tokenizer.eos}
    built.save(directory)
    return directory


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The file of a recipe of one short step, and its text beside it."""
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question\n" * 200)
    path = tmp_path / "base.toml"
    path.write_text(RECIPE.format(text=tmp_path / "text.txt"))
    return path
