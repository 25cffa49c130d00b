"""Vocabularies trained on the spot, on the machine's own Python library, and texts that are hard on them."""

from __future__ import annotations

import io
import json
import sysconfig
import unicodedata
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import sentencepiece
from hypothesis import strategies as st

from anyformer import text
from anyformer.text.bytelevel import END_OF_TEXT

_LIBRARY = Path(sysconfig.get_paths()["stdlib"])
_FILES = ("argparse.py", "datetime.py", "email/header.py", "html/entities.py", "heapq.py")
_OTHERS = """\
Die Äpfel im Haus kosten 3,50 €, billig: „Zitat“ …
Москва слезам не верит; Ελληνικά русский
東京タワーは日本の文章 한국어 문장입니다
naïve café déjà vu, ﬁne Ｆｕｌｌ ½ Ⅻ
"""
_POOL = (
    "abcXYZ  \n\t'’019.,!?()[]éüßñçœабвДЖαβγ日本語ガｶﾞ한국어हिन्दीاردو😀🦙👩\u200d💻\u0301\u200b\u3000½²Ⅻ①_-=+<>$\\\"`~▁"
)


@lru_cache
def lines() -> list[str]:
    """Code, English, and a little of other languages."""
    code = [line for name in _FILES for line in (_LIBRARY / name).read_text(encoding="utf-8").splitlines()]
    return [line for line in [*code, *_OTHERS.splitlines() * 10] if line.strip()]


@lru_cache
def _sentencepiece(options: str) -> bytes:
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines()),
        model_writer=file,
        minloglevel=2,
        hard_vocab_limit=False,
        **{"vocab_size": 800, **json.loads(options)},
    )
    return file.getvalue()


def sentencepiece_model(**options: Any) -> bytes:
    """The file of a model that SentencePiece trained itself."""
    return _sentencepiece(json.dumps(options, sort_keys=True))


@lru_cache
def byte_level_bpe() -> tuple[list[str], list[str]]:
    """Tokens by rank and merges of a byte-level BPE, in the alphabet of bytes."""
    runs = "=" * 40 + "-" * 33 + " " * 30 + "\n" + "abababab " * 50
    model = json.loads(text.train_bpe(["\n".join([*lines(), runs])], 1200)._backend.to_str())["model"]
    vocabulary = {token: rank for token, rank in model["vocab"].items() if token != END_OF_TEXT}
    return sorted(vocabulary, key=lambda token: vocabulary[token]), [" ".join(pair) for pair in model["merges"]]


def ordinary_marks(written: str) -> bool:
    """Whether accents stand one by one on single letters. Normalisers differ in whether they bring two into order, and
    whether one composes with the last letter of what stands for several (Ⅻ)."""
    parts = [unicodedata.normalize("NFKD", character) for character in written]
    marks = [[unicodedata.combining(each) > 0 for each in part] for part in parts]
    flat = [mark for each in marks for mark in each]
    several = any(each.count(False) > 1 and after[0] for each, after in pairwise(marks))
    return not several and not any(this and after for this, after in pairwise(flat))


_mixed = st.text(st.one_of(st.sampled_from(_POOL), st.characters(codec="utf-8")), max_size=40)
_runs = st.lists(st.tuples(st.sampled_from(["a", "b", "ab", " ", "=", "-", "\n"]), st.integers(1, 9)), max_size=6)
_code = st.integers(0, 800).map(lambda at: "\n".join(lines()[at : at + 2]))

#: Any Unicode, mixtures of scripts, runs of one character, and code; with accents composed or apart.
writing = st.builds(
    unicodedata.normalize,
    st.sampled_from(["NFC", "NFD"]),
    st.one_of(_mixed, _runs.map(lambda runs: "".join(each * count for each, count in runs)), _code),
)
