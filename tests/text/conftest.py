"""A real tokenizer at hand, out of the package that carries its model, and texts that are hard on any tokenizer."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def minilm(minilm_zip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of all-MiniLM-L6-v2's tokenizer files, without its weights."""
    directory = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(minilm_zip) as archive:
        archive.extractall(directory, [name for name in archive.namelist() if not name.endswith(".safetensors")])
    return directory


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
