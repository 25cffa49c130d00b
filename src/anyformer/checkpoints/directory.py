"""A checkpoint as a directory: Hugging Face's files where the architecture has a family, and spec.json always."""

from __future__ import annotations

import json
from collections import ChainMap, Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from anyformer.checkpoints import fp8, mxfp4, pooling
from anyformer.checkpoints.atomic import staged
from anyformer.checkpoints.checkpoint import Carried, Checkpoint
from anyformer.checkpoints.tensors import OTHER_HEAD, load, ties_output, unload
from anyformer.checkpoints.weights import INDEX, WEIGHTS, SafetensorsSource, Source, read_json, write_weights
from anyformer.errors import CheckpointError, SpecError
from anyformer.families import names as tables
from anyformer.families import registry
from anyformer.families.config import GENERATION, SPECIAL_TOKENS
from anyformer.families.difference import differences
from anyformer.families.family import Family
from anyformer.planning.shapes import shapes
from anyformer.spec import EmbeddingHead, Transformer

if TYPE_CHECKING:
    from anyformer.text import Tokenizer

CONFIG, SPEC, GENERATION_CONFIG = "config.json", "spec.json", "generation_config.json"
#: The files of a checkpoint that say what the model is; saving removes those that no longer hold.
OWNED = (CONFIG, SPEC, GENERATION_CONFIG, WEIGHTS, INDEX, "model-*-of-*.safetensors", pooling.MODULES)
#: Patterns of all that says what a model is: what is fetched of a repository before its weights.
DESCRIPTIONS = (CONFIG, SPEC, GENERATION_CONFIG, INDEX, pooling.MODULES, *pooling.BESIDE, "[0-9]*/config.json")
#: 5 GB, transformers' largest file.
SHARD_BYTES = 5_000_000_000


class Described(NamedTuple):
    """What the JSON files of a directory say of a model: `attributes` are config.json's, `reasons` those ignored."""

    spec: Transformer
    family: Family | None
    attributes: dict[str, Any]
    reasons: dict[str, str]


def open_directory(directory: Path, ignore: Iterable[str] = (), source: Source | None = None) -> Checkpoint:
    """Read a checkpoint's headers and descriptions; its tensors, those of its own files unless there is another
    `source`, stay where they are until they are asked for.

    Raises `CheckpointError` or `SpecError` naming the file, attribute or tensor that is wrong.
    """
    from anyformer.text import files as tokenizers  # here, as not everything that writes a directory wants them

    if not any((directory / name).is_file() for name in (CONFIG, SPEC)):
        raise CheckpointError(f"{directory} holds neither {CONFIG} nor {SPEC}, so it is no checkpoint")
    source = fp8.unpacked(mxfp4.unpacked(source if source is not None else SafetensorsSource(directory)))
    spec, family, attributes, reasons = _describe(directory, source, ignore)
    if family is None:
        loaded = load(source, spec, own_names(spec), ignore=ignore)
    else:
        loaded = load(source, spec, family.tensors(spec), prefix=family.prefix, ignore=ignore)
    tokenizer = tokenizers.load(directory)
    beside = pooling.module_files(directory)
    if tokenizer is None:
        # Files that belong to a tokenizer and are none.
        beside += [Path(name) for name in tokenizers.FILES if (directory / name).is_file()]
    carried = Carried(
        attributes={name: value for name, value in attributes.items() if name in {"architectures", *reasons}},
        tensors=loaded.unused,
        files={path.as_posix(): (directory / path).read_bytes() for path in beside},
        reasons=reasons | loaded.reasons,
    )
    return Checkpoint(
        spec=spec,
        tensors=loaded.tensors,
        family=family.name if family is not None else None,
        generation=_generation(directory, family, attributes),
        tokenizer=tokenizer,
        carried=carried,
        dtype=loaded.dtype,
    )


def _describe(directory: Path, source: Source, ignore: Iterable[str]) -> Described:
    """Read config.json, spec.json, or both, which must then agree."""
    recorded = _read_spec(directory / SPEC) if (directory / SPEC).is_file() else None
    if not (directory / CONFIG).is_file():
        assert recorded is not None
        return Described(recorded, None, {}, {})
    where = str(directory / CONFIG)
    attributes = read_json(directory / CONFIG)
    family = registry.of(attributes, where)
    said, reasons = family.parse(attributes, where=where, ignore=ignore)
    if head := pooling.read_head(directory):
        said = said.replace(head=head)
    if family.tied == "file" and said.head.kind == "language_model":
        tied = ties_output(
            source, said, family.tensors(said.replace(head=said.head.replace(tied=False))), family.prefix
        )
        said = said.replace(head=said.head.replace(tied=tied))
    spec = said if recorded is None else _agreed(directory, recorded, said, family)
    return Described(spec, family, attributes, reasons)


def _generation(directory: Path, family: Family | None, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What the family takes for granted, and what the files say: generation_config.json, and config.json for ids of
    special tokens that it leaves out; for everything where, in old checkpoints, there is no such file."""
    assumed = family.generation if family is not None else {}
    path = directory / GENERATION_CONFIG
    written = read_json(path) if path.is_file() else None
    counts = GENERATION if written is None else {f"{token}_token_id" for token in SPECIAL_TOKENS}
    said = {name: value for name, value in attributes.items() if name in counts and value is not None}
    return {**assumed, **said, **(written or {})}


def write(
    directory: str | Path,
    *,
    spec: Transformer,
    tensors: Mapping[str, Tensor],
    family: str | None = None,
    generation: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    carried: Carried | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Save a model: all of it or nothing, and what else lies in the directory stays.

    `tensors` are under our names. The files are those of the `family` if its format has words for the spec, of any
    other family whose format has, and else only spec.json with our own names. Files larger than `shard_bytes` are cut
    into shards. Raises `CheckpointError` if the tensors are not the spec's, or the disk refuses.
    """
    directory = Path(directory)
    chosen = expressible(spec, family)
    carried = carried if carried is not None and chosen is not None and chosen.name == family else Carried()
    generation = {**(chosen.generation if chosen is not None else {}), **(generation or {})}
    table = own_names(spec) if chosen is None else chosen.tensors(spec)
    # transformers saves its base models without the name under which models with heads keep them.
    bare = spec.head.kind == "embedding" and OTHER_HEAD not in carried.reasons.values()
    drop = chosen.prefix if chosen is not None and bare else ""
    saved, sizes = unload(tensors, spec, table, drop=drop)
    extra = {name: tensor for name, tensor in carried.tensors.items() if name not in saved}
    sizes |= {name: tensor.nbytes for name, tensor in extra.items()}
    with staged(directory, sum(sizes.values())) as stage:
        _write_json(stage / SPEC, spec.model_dump(mode="json"))
        if chosen is not None:
            _write_json(stage / CONFIG, _attributes(chosen, spec, carried, generation, tensors))
        if generation and spec.head.kind == "language_model":
            _write_json(stage / GENERATION_CONFIG, generation)
        for name, content in carried.files.items():
            _write_file(stage / name, content)
        if chosen is not None:
            _write_pooling(stage, spec)
        write_weights(stage, ChainMap(saved, extra), sizes, shard_bytes)  # type: ignore[arg-type]
        if tokenizer is not None:
            tokenizer.save(stage)
        new = {path.name for path in stage.iterdir()}
    for stale in (path for pattern in OWNED for path in directory.glob(pattern) if path.name not in new):
        stale.unlink()


def expressible(spec: Transformer, family: str | None = None) -> Family | None:
    """The family whose format can say all that a spec computes: that one if it can, or the first that can."""
    first = [registry.named(family)] if family is not None else []
    for candidate in (*first, *registry.registered().values()):
        try:
            candidate.express(spec)
        except SpecError:
            continue
        return candidate
    return None


def own_names(spec: Transformer) -> tables.Table:
    """The table of a file that uses our own names."""
    return [tables.Tensor(name, name) for name in shapes(spec)]


def _read_spec(path: Path) -> Transformer:
    try:
        return Transformer.from_data(read_json(path))
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def _agreed(directory: Path, recorded: Transformer, said: Transformer, family: Family) -> Transformer:
    """spec.json's spec, which says more, once config.json is seen to say the same as far as its format goes."""
    expected = family.parse(family.express(recorded))[0]
    if isinstance(recorded.head, EmbeddingHead):
        expected = expected.replace(head=recorded.head)
    if other := differences(expected, said):
        listed = "; ".join(
            f"{path} is {first!r} in {SPEC}, {second!r} in {CONFIG}" for path, first, second in other[:3]
        )
        raise CheckpointError(f"{directory}: {SPEC} and {CONFIG} disagree: {listed}; correct or remove one of them")
    return recorded


def _attributes(
    family: Family, spec: Transformer, carried: Carried, generation: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """What config.json holds: what was carried, the special tokens, and over both what the spec says."""
    said = family.express(spec)
    kept = {name: value for name, value in carried.attributes.items() if name not in ("dtype", "torch_dtype")}
    if family.architectures.get((kept.get("architectures") or [""])[0]) == spec.head.kind:
        said["architectures"] = kept["architectures"]
    if len(kept.get("id2label") or {}) == len(said.get("id2label", {})):
        said = {name: value for name, value in said.items() if name not in ("id2label", "label2id")}
    tokens = {f"{token}_token_id" for token in SPECIAL_TOKENS} & generation.keys()
    count: Counter[str] = Counter()
    for tensor in tensors.values():
        count[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    dtype = {"torch_dtype": count.most_common(1)[0][0]}
    return {**kept, **{name: generation[name] for name in tokens}, **said, **dtype}


def _write_pooling(stage: Path, spec: Transformer) -> None:
    """Keep modules.json in step with the head: what was carried if it still holds, new files if not."""
    if not isinstance(spec.head, EmbeddingHead):
        (stage / pooling.MODULES).unlink(missing_ok=True)
    elif (pooling.read_head(stage) or EmbeddingHead()) != spec.head:
        for name, content in pooling.head_files(spec.head, spec.output.dim).items():
            _write_file(stage / name, content)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    _write_file(path, (json.dumps(data, indent=2, sort_keys=path.name != SPEC) + "\n").encode())


def _write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
