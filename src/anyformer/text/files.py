"""Tokenizers out of a checkpoint's directory, whichever files they left there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer as Backend

from anyformer.errors import TextError
from anyformer.text import marian, merges, sentencepiece, tiktoken, wordpiece
from anyformer.text.folder import Folder
from anyformer.text.tokenizer import Tokenizer


def _tokenizer_json(folder: Folder, name: str) -> Tokenizer:
    return Tokenizer(Backend.from_buffer(folder.files[name]), folder.config, folder.files)


def _model(folder: Folder, name: str) -> Tokenizer:
    """Two formats go by these names."""
    return (tiktoken if tiktoken.is_tiktoken(folder.files[name]) else sentencepiece).read(folder, name)


#: The files that hold a vocabulary, the first ones first where there are several, and what reads each.
VOCABULARIES: dict[str, Callable[[Folder, str], Tokenizer]] = {
    "tokenizer.json": _tokenizer_json,
    "source.spm": lambda folder, name: marian.read(folder),
    **dict.fromkeys(("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"), _model),
    **dict.fromkeys(("qwen.tiktoken", "tiktoken.model"), tiktoken.read),
    **dict.fromkeys(("vocab.json", "merges.txt"), lambda folder, name: merges.read(folder)),
    "vocab.txt": lambda folder, name: wordpiece.read(folder),
}
#: Everything a tokenizer may leave in a directory; a save writes it back as it was.
FILES = (
    *VOCABULARIES,
    *("target.spm", "target_vocab.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)


def load(directory: str | Path) -> Tokenizer | None:
    """The tokenizer in a directory, or None where there is none of the files that hold a vocabulary.

    Raises `TextError` naming the file that cannot be read or is not what its name says.
    """
    directory = Path(directory)
    try:
        files = {name: (directory / name).read_bytes() for name in FILES if (directory / name).is_file()}
    except OSError as error:
        raise TextError(f"cannot read {error.filename}: {error.strerror or error}") from None
    name = next((name for name in VOCABULARIES if name in files), None)
    if name is None:
        return None
    try:
        return VOCABULARIES[name](Folder(directory, files), name)
    except TextError:
        raise
    # The library raises bare exceptions, whatever it cannot use.
    except Exception as error:
        raise TextError(f"{directory / name} is not a tokenizer: {error}") from None


def read(directory: str | Path) -> Tokenizer:
    """The tokenizer in a directory that must have one. Raises `TextError`, also where there is none."""
    tokenizer = load(directory)
    if tokenizer is None:
        raise TextError(f"{directory} holds no tokenizer: it has none of {', '.join(VOCABULARIES)}")
    return tokenizer
