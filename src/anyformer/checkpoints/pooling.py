"""How a sentence-transformers directory turns hidden states into one embedding: modules.json and the files it names.

Reimers & Gurevych 2019, https://arxiv.org/abs/1908.10084.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from anyformer.checkpoints.weights import read_json
from anyformer.errors import CheckpointError
from anyformer.spec import EmbeddingHead

MODULES = "modules.json"
#: Settings of sentence-transformers itself, which no head reads.
BESIDE = ("sentence_bert_config.json", "config_sentence_transformers.json")
#: Its names of ways to pool, in the older form of flags and the newer of one word, and ours.
POOLINGS = {
    "first": ("pooling_mode_cls_token", "cls"),
    "mean": ("pooling_mode_mean_tokens", "mean"),
    "max": ("pooling_mode_max_tokens", "max"),
    "last": ("pooling_mode_lasttoken", "lasttoken"),
}
_SIZES = ("word_embedding_dimension", "embedding_dimension")


def read_head(directory: Path) -> EmbeddingHead | None:
    """The embedding head that modules.json describes; None where there is no such file.

    Raises `CheckpointError` for modules and settings that no head here computes, such as a dense layer.
    """
    if not (directory / MODULES).is_file():
        return None
    pooling, normalize = "mean", False
    for module in _modules(directory / MODULES):
        match str(module.get("type")).rsplit(".", 1)[-1]:
            case "Transformer":
                pass
            case "Pooling":
                pooling = _pooling(directory / _inside(module, directory) / "config.json")
            case "Normalize":
                normalize = True
            case other:
                raise CheckpointError(f"{directory / MODULES} asks for a module '{other}', which nothing here computes")
    return EmbeddingHead.from_data({"pooling": pooling, "normalize": normalize})


def module_files(directory: Path) -> list[Path]:
    """modules.json and the settings of the modules that it names, relative to the directory."""
    if not (directory / MODULES).is_file():
        return []
    settings = [_inside(module, directory) / "config.json" for module in _modules(directory / MODULES)]
    found = {
        path for path in (*settings, *map(Path, BESIDE)) if path != Path("config.json") and (directory / path).is_file()
    }
    return [Path(MODULES), *sorted(found)]


def head_files(head: EmbeddingHead, dim: int) -> dict[str, bytes]:
    """The files that say what an embedding head does, in the older form, which all versions read."""
    names = [("Transformer", ""), ("Pooling", "1_Pooling"), *([("Normalize", "2_Normalize")] if head.normalize else [])]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
        for index, (name, path) in enumerate(names)
    ]
    pooling = {"word_embedding_dimension": dim, **{flag: ours == head.pooling for ours, (flag, _) in POOLINGS.items()}}
    return {name: _json(data) for name, data in ((MODULES, modules), ("1_Pooling/config.json", pooling))}


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{path} is not a list of modules")
    return modules


def _inside(module: dict[str, Any], directory: Path) -> Path:
    place = PurePosixPath(str(module.get("path", "")))
    if place.is_absolute() or ".." in place.parts:
        raise CheckpointError(f"{directory / MODULES} names '{place}', which lies outside the directory")
    return Path(place)


def _pooling(path: Path) -> str:
    settings = read_json(path)
    for name in _SIZES:
        settings.pop(name, None)
    if settings.pop("include_prompt", True) is not True:
        raise CheckpointError(f"{path} leaves the prompt out of the pooling, which nothing here computes")
    wanted = settings.pop("pooling_mode", None)
    wanted = [wanted] if isinstance(wanted, str) else list(wanted or [])
    wanted += [name for name, on in settings.items() if on]
    known = {name: ours for ours, names in POOLINGS.items() for name in names}
    if len(wanted) > 1 or any(name not in known for name in wanted):
        raise CheckpointError(f"{path} asks for the pooling {', '.join(wanted)}; known are {', '.join(POOLINGS)}")
    return known[wanted[0]] if wanted else "mean"


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()
