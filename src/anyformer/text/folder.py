"""What a checkpoint's directory says of its tokenizer besides the vocabulary itself: special tokens, kind, settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer as Backend

from anyformer.errors import TextError
from anyformer.text.building import add_at, added_token, content
from anyformer.text.tokenizer import Tokenizer

T = TypeVar("T")

#: Classes that only say that a tokenizer.json is to be read as it is.
_GENERIC = ("pretrained", "tokenizersbackend")


class Folder:
    """The tokenizer's files in a directory, by name, as bytes; `config` is what tokenizer_config.json says."""

    def __init__(self, path: Path, files: Mapping[str, bytes]) -> None:
        self.path, self.files = path, files
        # The map is older than the config, which says the same and more; it speaks where the config is silent.
        self.config = {**self.json("special_tokens_map.json"), **self.json("tokenizer_config.json")}

    def text(self, name: str) -> str:
        """A file's text, which must be UTF-8."""
        try:
            return self.files[name].decode("utf-8")
        except UnicodeDecodeError as error:
            raise TextError(f"{self.path / name} is not UTF-8 at byte {error.start}") from None

    def json(self, name: str) -> dict[str, Any]:
        """The object that a JSON file holds, empty where there is no such file."""
        return self._object(name, self.files.get(name, b"{}"))

    def ids(self, name: str) -> dict[str, int]:
        """A vocabulary in a JSON file: each token's id, a whole number, none of them twice."""
        vocabulary = self.json(name)
        seen: dict[int, str] = {}
        for token, id in vocabulary.items():
            if type(id) is not int or not 0 <= id < 1 << 32:
                raise TextError(f"{self.path / name} gives {token!r} the id {id!r}; ids are whole numbers from 0 on")
            if seen.setdefault(id, token) != token:
                raise TextError(f"{self.path / name} gives {seen[id]!r} and {token!r} the same id, {id}")
        return vocabulary

    def style(self, name: str, known: Mapping[str, T], otherwise: str) -> T:
        """Which of the `known` styles the vocabulary in the file `name` has, by the class that tokenizer_config.json
        names, else by the model type of config.json; the one called `otherwise` where neither is there."""
        for each in (self.config.get("tokenizer_class"), self._model_type()):
            stem = str(each or "").removesuffix("Fast").removesuffix("Tokenizer").lower()
            stem = stem.replace("_", "").replace("-", "")
            if stem in known:
                return known[stem]
            if stem and stem not in _GENERIC:
                raise TextError(
                    f"{self.path / name} belongs to a {each}, which is not known here; add its tokenizer.json"
                )
        return known[otherwise]

    def roles(self, defaults: Mapping[str, str], vocabulary: Mapping[str, int]) -> dict[str, str]:
        """The special tokens by role: those of the config, and of the defaults those in the vocabulary or beside it."""
        there = {*vocabulary, *map(content, self._beside().values())}
        known = {role: token for role, token in defaults.items() if token in there and role not in self.config}
        named = {role: content(token) for role, token in self.config.items() if role.endswith("_token")}
        return known | {role: token for role, token in named.items() if token is not None}

    def flag(self, name: str, default: bool) -> bool:
        """A switch of tokenizer_config.json."""
        value = self.config.get(name)
        return default if value is None else bool(value)

    def ends(self, roles: Mapping[str, str], begins: bool = False, ends: bool = False) -> tuple[str | None, str | None]:
        """The tokens that begin and end a text; `begins` and `ends` hold where the config does not say."""
        begin = roles.get("bos_token") if self.flag("add_bos_token", begins) else None
        return begin, roles.get("eos_token") if self.flag("add_eos_token", ends) else None

    def tokenizer(self, backend: Backend, name: str, roles: Mapping[str, str]) -> Tokenizer:
        """The tokenizer that `backend` makes with the special tokens and those that stand beside the file `name`."""
        add_at(backend, str(self.path / name), self._beside())
        known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        said = [*(self.config.get(role, token) for role, token in roles.items()), *self._more()]
        tokens = [added_token(token, normalized=False) for token in said if content(token)]
        backend.add_special_tokens([token for token in tokens if token.content not in known])
        return Tokenizer(backend, {**roles, **self.config}, self.files)

    def _beside(self) -> dict[str, Any]:
        """The tokens that stand beside a vocabulary, by id."""
        decoder = self.config.get("added_tokens_decoder")
        numbered = {str(id): token for token, id in self.json("added_tokens.json").items()}
        return {**(decoder if isinstance(decoder, dict) else {}), **numbered}

    def _more(self) -> list[Any]:
        """Special tokens without a role of their own, which newer files name."""
        more = self.config.get("additional_special_tokens") or self.config.get("extra_special_tokens") or []
        if isinstance(more, dict):
            return list(more.values())
        if not isinstance(more, list):
            raise TextError(f"the additional special tokens in {self.path} are {more!r}, which is no list of tokens")
        return more

    def _model_type(self) -> Any:
        # The model's own file, not one of the tokenizer's.
        path = self.path / "config.json"
        return self._object(path.name, path.read_bytes()).get("model_type") if path.is_file() else None

    def _object(self, name: str, text: bytes) -> dict[str, Any]:
        try:
            data = json.loads(text)
        except ValueError as error:
            raise TextError(f"{self.path / name} is not JSON: {error}") from None
        if not isinstance(data, dict):
            raise TextError(f"{self.path / name} is not a JSON object")
        return data
