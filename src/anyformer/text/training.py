"""Tokenizers made here: bytes, which need no training, and byte-level BPE trained on the user's own text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, trainers

from anyformer.errors import TextError
from anyformer.text.bytelevel import END_OF_TEXT, byte_alphabet, plain_bytes, words
from anyformer.text.splits import LLAMA3
from anyformer.text.tokenizer import Tokenizer

#: Told how training stands: "reading" with the characters read so far, then once "merging" with all of them.
Progress = Callable[[str, int], object]

_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    "bos_token": END_OF_TEXT,
    "eos_token": END_OF_TEXT,
    "pad_token": END_OF_TEXT,
}
#: Characters handed over at once. The library reads 256 of these ahead.
_PART = 1 << 16


def byte_level() -> Tokenizer:
    """The tokenizer that needs no training: 257 ids, the bytes of UTF-8 and an end of text."""
    return Tokenizer(plain_bytes(), _CONFIG)


def train_bpe(
    source: Iterable[str | Path], vocabulary: int, progress: Progress = lambda stage, characters: None
) -> Tokenizer:
    """A byte-level BPE (Sennrich et al. 2016, on bytes as GPT-2 has it) learned from texts and UTF-8 files (`Path`).

    The ids are: end of text, the 256 bytes, then merges, most frequent first, up to `vocabulary` in all; fewer where
    the text has no more pairs that occur twice. Words are split as Llama 3 splits them. The same text gives the same
    tokenizer. Raises `TextError` for a vocabulary smaller than the bytes, an unreadable file, and no text at all.
    """
    if vocabulary < 257:
        raise TextError(f"a vocabulary of {vocabulary} is too small: 256 bytes and an end of text are 257 tokens")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = words(LLAMA3)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=list(byte_alphabet().values()),
        show_progress=False,
    )
    backend.train_from_iterator(_read(source, progress), trainer)
    return Tokenizer(backend, _CONFIG)


def _read(source: Iterable[str | Path], progress: Progress) -> Iterator[str]:
    done = 0
    for each in source:
        for part in _parts(_text_of(each) if isinstance(each, Path) else each):
            yield part
            done += len(part)
            progress("reading", done)
    if not done:
        raise TextError("there is no text to train a tokenizer on; every text and file is empty")
    progress("merging", done)


def _parts(text: str) -> Iterator[str]:
    """A text in parts that end where a line does: no word is cut, and memory stays bounded."""
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin + _PART) + 1 or len(text)
        yield text[begin:end]
        begin = end


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not UTF-8 at byte {error.start}; convert it, or hand over its text") from None
    except OSError as error:
        raise TextError(f"cannot read {path}: {error.strerror or error}") from None
