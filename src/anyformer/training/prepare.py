"""What stands before the first step: a tokenizer, the tokenised corpus in the run directory, and a model to begin with.

Each is made once and whole: a run that was stopped here finds it finished, or goes on behind the shards that are.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from anyformer import checkpoints, families, spec, text
from anyformer.checkpoints import Carried
from anyformer.data import Corpus, Document, Sources, find_files, open_corpus, read_manifest, write_corpus
from anyformer.disk import aside_of, sha256, write_json
from anyformer.errors import AnyformerError, DataError, TrainingError
from anyformer.model import Transformer
from anyformer.model.building import draw, hollow, inherit, materialize
from anyformer.model.laid import place
from anyformer.planning.describe import several
from anyformer.spec.dropout import with_dropout
from anyformer.training import lora
from anyformer.training.objectives import OBJECTIVES
from anyformer.training.recipe import NewTokenizer, Recipe
from anyformer.training.scale.ranks import Alone
from anyformer.training.state import put_in_place, read_json
from anyformer.training.watching.progress import Display


@dataclass(frozen=True)
class Text:
    """What a run reads: the tokenizer, the two corpora, and the names of the labels in them."""

    tokenizer: text.Tokenizer
    train: Corpus
    validation: Corpus
    labels: Sequence[str] = ()


def prepare_text(recipe: Recipe, run: Path, display: Display) -> Text:
    """The run's tokenizer and tokenised text, from `run/data`, which is made first where it is missing.

    Raises `DataError` where there is no text, or not enough to hold any out.
    """
    directory = run / "data"
    if not directory.exists():
        _write_text(recipe, directory, display)
    tokenizer = text.load(directory)
    if tokenizer is None:
        raise TrainingError(f"{directory} has lost its tokenizer; start the run anew in another directory")
    labels = read_manifest(directory).get("labels", ())
    return Text(tokenizer, open_corpus(directory, "train"), open_corpus(directory, "validation"), labels)


def _write_text(recipe: Recipe, directory: Path, display: Display) -> None:
    data, objective = recipe.data, OBJECTIVES[recipe.training.objective]
    held_out = find_files(data.validation, exclude=data.exclude) if data.validation else []
    files = find_files(data.train, exclude=data.exclude)
    fields = objective.fields_of(data.columns)
    sources = Sources(files, held_out, data.encoding, data.held_out, fields, data.columns)
    count = len(sources.files)
    display.note(f"{count:,} {'file' if count == 1 else 'files'} of text, {sources.size / 1e6:,.1f} MB")
    if not held_out:
        display.note(f"no data.validation is given, so this is held out: {sources.parting()}")
    aside = aside_of(directory)
    try:
        _tokenise(recipe, sources, aside, display)
    except AnyformerError:
        # Of no use once the data or the recipe is mended; after a full disk or a kill, it is.
        shutil.rmtree(aside, ignore_errors=True)
        raise
    put_in_place(aside, directory)
    for split, said in read_manifest(directory)["splits"].items():
        display.note(f"{split}: {_amount(said, recipe.training.sequence_length)}")


def _tokenise(recipe: Recipe, sources: Sources, directory: Path, display: Display) -> None:
    """Fill a directory with tokenizer and corpus, or go on where an earlier attempt at the same left it."""
    objective, length = OBJECTIVES[recipe.training.objective], recipe.training.sequence_length
    asked = {key: value for key, value in recipe.to_data().items() if key in ("model", "tokenizer")}
    facts = sources.facts()
    about = {**facts, **asked, "objective": objective.name, "sequence_length": length}
    about = json.loads(json.dumps(about))
    note = directory / "about.json"
    if note.exists() and read_json(note) == about:
        display.note("going on with a tokenisation that was stopped")
    else:
        if note.exists():
            display.note("the data is not what it was when its tokenisation was stopped: it is tokenised anew")
        shutil.rmtree(directory, ignore_errors=True)
        _equipped(_tokenizer(recipe, sources, display), recipe).save(directory)
        write_json(note, about)
    tokenizer = text.load(directory)
    assert tokenizer is not None
    labels = _labels(recipe, objective.labels(sources.documents))
    encode = objective.encode(tokenizer, described(recipe), length=length, labels=labels)
    with display.task("tokenising", sources.size) as advance:
        documents = sources.documents(advance)
        about = {**about, "labels": labels}
        write_corpus(directory, documents, encode, vocabulary=tokenizer.vocabulary_size, about=about)
    _check_unchanged(facts, sources.facts())
    note.unlink()
    objective.check_corpus(open_corpus(directory, "train"), length)
    if open_corpus(directory, "validation").documents:
        return
    if sources.validation:
        raise DataError(
            f"nothing of data.validation is left: all of it is empty, or does not fit into training.sequence_length="
            f"{length:,} tokens"
        )
    raise DataError(
        "too little text to hold any out for validation; name some in data.validation, or hold out more with "
        "data.held_out"
    )


def _check_unchanged(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Texts are read more than once, for what is held out and for what labels there are."""
    for then, now in zip(before["files"], after["files"], strict=True):
        if then != now:
            raise DataError(f"{then['path']} was changed while it was tokenised; train once nothing writes to it")


def _amount(said: Mapping[str, Any], longest: int) -> str:
    """What a split came to, by its manifest."""
    columns = [f"{count:,} {name}" for name, count in said["columns"].items()]
    left_out = f"; {said['left_out']:,} left out, empty or longer than {longest:,} tokens" if said["left_out"] else ""
    return f"{several(said['documents'], 'document')}, {' and '.join(columns)}{left_out}"


def _labels(recipe: Recipe, found: list[str]) -> list[str]:
    """The names of the labels: those that the checkpoint knows where they are enough, else those of the data."""
    if recipe.model.source is None or not found:
        return found
    names = checkpoints.open(recipe.model.source).carried.attributes.get("id2label") or {}
    known = [str(names[key]) for key in sorted(names, key=int)]
    return known if set(found) <= set(known) else found


def _tokenizer(recipe: Recipe, sources: Sources, display: Display) -> text.Tokenizer:
    if recipe.model.source is not None:
        tokenizer = checkpoints.open(recipe.model.source).tokenizer
        if tokenizer is None:
            raise TrainingError(f"model.from: {recipe.model.source} holds no tokenizer, so no text can be read for it")
        return tokenizer
    if isinstance(recipe.tokenizer, NewTokenizer):
        with display.task("learning the tokenizer", sources.size) as advance:
            return text.train_bpe(_training_texts(sources.documents(advance)), recipe.tokenizer.train.vocabulary)
    if recipe.tokenizer in (None, "bytes"):
        return text.byte_level()
    return text.read(Path(recipe.tokenizer))


def _equipped(tokenizer: text.Tokenizer, recipe: Recipe) -> text.Tokenizer:
    """The tokenizer with the special tokens of the objective; a fresh model makes room for those it lacks."""
    objective = OBJECTIVES[recipe.training.objective]
    roles, others = objective.lacking(tokenizer)
    missing = [token for token in (*roles.values(), *others) if tokenizer.id_of(token) is None]
    if missing and recipe.model.source is not None:
        raise TrainingError(
            f"training.objective '{objective.name}' needs the special token {missing[0]!r}, and the tokenizer of "
            f"{recipe.model.source} has none"
        )
    return objective.equip(tokenizer.with_special(roles, others) if roles or others else tokenizer)


def _training_texts(documents: Iterator[Document]) -> Iterator[str]:
    for document in documents:
        if document.split == "train":
            yield from list(_strings(document.fields)) or [document.text]


def _strings(value: Any) -> Iterator[str]:
    """All texts in the fields of a record."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def starting_model(
    recipe: Recipe, tokenizer: text.Tokenizer, labels: Sequence[str] = (), ranks: Alone | None = None
) -> Transformer:
    """The model before step 0, float32: fresh from the recipe's seed, or the checkpoint that it names; with what its
    objective puts in, such as a head for these labels. Every process makes its own part alone, of the same numbers.

    Raises `TrainingError` where its vocabulary is too small for the tokenizer.
    """
    ranks = ranks if ranks is not None else Alone()
    if recipe.model.source is not None:
        checkpoint = checkpoints.open(checkpoints.fetch(recipe.model.source))
        found = checkpoint.spec
    else:
        checkpoint, found = None, model_spec(recipe, tokenizer.vocabulary_size)
    _check_vocabulary(found, tokenizer.vocabulary_size)
    model = _laid(_adapted(recipe, found, len(labels)), recipe, ranks, checkpoint)
    if checkpoint is None:
        model.family = recipe.model.preset.partition(":")[0] if recipe.model.preset is not None else None
        model.generation = _special_ids(model.spec, tokenizer)
    model.tokenizer = tokenizer
    if labels:
        numbered = {str(index): label for index, label in enumerate(labels)}
        carried = model.carried or Carried()
        named = {"id2label": numbered, "label2id": {label: int(index) for index, label in numbered.items()}}
        model.carried = replace(carried, attributes={**carried.attributes, **named})
    return model


def _laid(
    described: spec.Transformer, recipe: Recipe, ranks: Alone, checkpoint: checkpoints.Checkpoint | None
) -> Transformer:
    """A model laid over the ranks: with the parameters of a checkpoint that fit it, and fresh ones where it has none;
    with fresh adapters, where the recipe asks for some."""
    model = hollow(described, torch.float32)
    if recipe.lora is not None:
        model = lora.adapt(model, recipe.lora, base=str(recipe.model.source))
    ranks.lay(model, recipe.training.precision)
    materialize(model, ranks.device)
    if checkpoint is None or described != checkpoint.spec:
        draw(model, recipe.run.seed)
    if isinstance(model, lora.Adapted):
        model.draw(recipe.run.seed)
    if checkpoint is not None:
        _take_over(model, checkpoint)
    return model


def check_source(recipe: Recipe, run: Path) -> None:
    """Raise `TrainingError` where a run reads the checkpoint that it begins with at every start, as adapters and
    preferences do, and it is not what it was at the first one. A model on a hub is pinned to its commit."""
    objective, source = OBJECTIVES[recipe.training.objective], Path(recipe.model.source or "")
    if not (recipe.lora is not None or objective.is_relative) or recipe.model.source is None or not source.exists():
        return
    files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
    sums = {file.name: sha256(file) for file in files}
    about = read_json(run / "run.json")
    if about.setdefault("source", sums) != sums:
        raise TrainingError(
            f"model.from: {source} is not what it was when the run began, and the rest would be learned from another "
            f"model; put back what was there, or begin a new run"
        )
    write_json(run / "run.json", about)


@torch.no_grad()
def _take_over(model: Transformer, checkpoint: checkpoints.Checkpoint) -> None:
    """Have what a checkpoint holds, as far as it fits."""
    inherit(model, checkpoint)
    own = model.own() if isinstance(model, lora.Adapted) else dict(model.named_parameters())
    for name, parameter in own.items():
        if name in checkpoint.tensors and (numbers := checkpoint.tensors[name]).shape == parameter.shape:
            place(parameter, numbers)
    if model.spec != checkpoint.spec:
        # Tensors that nothing read, such as a pooler's, would stand beside those of the new head.
        model.carried = replace(checkpoint.carried, tensors={})


def _special_ids(described: spec.Transformer, tokenizer: text.Tokenizer) -> dict[str, int]:
    """The ids of special tokens, as generation_config.json names them."""
    special = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
    if described.shape == "encoder-decoder":
        special["decoder_start"] = tokenizer.pad if tokenizer.pad is not None else tokenizer.eos
    return {f"{name}_token_id": token for name, token in special.items() if token is not None}


def saved_model(recipe: Recipe, text: Text, path: Path, ranks: Alone) -> Transformer:
    """The model that a checkpoint of the run holds, float32; an adapter's beside the model that it began with."""
    if recipe.lora is None:
        checkpoint = checkpoints.open(path)
        return _laid(checkpoint.spec, recipe, ranks, checkpoint)
    model = starting_model(recipe, text.tokenizer, text.labels, ranks)
    assert isinstance(model, lora.Adapted)
    model.restore(path)
    return model


def model_spec(recipe: Recipe, vocabulary: int) -> spec.Transformer:
    """The spec of a fresh model, with the tokenizer's vocabulary where the recipe gives none."""
    if recipe.model.preset is not None:
        preset = families.preset(recipe.model.preset)
        if preset is None:
            raise TrainingError(
                f"model.preset: there is no preset '{recipe.model.preset}'; see: anyformer list presets"
            )
        data = preset.model_dump(mode="json")
        for stack in _stacks(data):
            stack["embeddings"]["vocabulary"] = vocabulary
    else:
        data = copy.deepcopy(recipe.model.spec)
        assert isinstance(data, dict)
        for stack in _stacks(data):
            stack.setdefault("embeddings", {}).setdefault("vocabulary", vocabulary)
    return spec.Transformer.from_data(data)


def _stacks(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [data[name] for name in ("encoder", "decoder") if isinstance(data.get(name), dict)]


def described(recipe: Recipe) -> spec.Transformer:
    """The spec of the recipe's model, but for the vocabulary of a fresh one and how many labels there are."""
    if recipe.model.source is not None:
        found = checkpoints.open(recipe.model.source).spec
    else:
        found = model_spec(recipe, vocabulary=1)
    return _adapted(recipe, found, labels=2)


def _adapted(recipe: Recipe, found: spec.Transformer, labels: int) -> spec.Transformer:
    """A spec with what the recipe's objective and its dropout make of it."""
    settings = recipe.training
    return with_dropout(
        OBJECTIVES[settings.objective].adapt(found, labels), settings.dropout, settings.attention_dropout
    )


def check_model(recipe: Recipe) -> None:
    """Find out before anything long begins whether the recipe's model exists and can have its objective.

    Raises `SpecError`, `CheckpointError` or `TrainingError`.
    """
    model = described(recipe)
    OBJECTIVES[recipe.training.objective].check(model)
    length, position = recipe.training.sequence_length, model.output.embeddings.position
    if isinstance(position, spec.Learned) and position.size < length:
        raise TrainingError(
            f"training.sequence_length={length:,} is longer than the {position.size:,} learned positions of the model"
        )
    if recipe.lora is not None:
        lora.check(model, recipe.lora, str(recipe.model.source))


def _check_vocabulary(model: spec.Transformer, vocabulary: int) -> None:
    has = model.output.embeddings.vocabulary
    if has < vocabulary:
        raise TrainingError(
            f"the model has a vocabulary of {has:,} and the tokenizer {vocabulary:,} tokens; leave 'vocabulary' out of "
            f"model.spec, or choose another tokenizer"
        )
