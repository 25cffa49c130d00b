"""What stands before the first step: a tokenizer, the tokenised corpus in the run directory, and a model to begin with.

Each is made once and whole: a run that was stopped here finds it finished, or makes it again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anyformer import checkpoints, families, spec, text
from anyformer.data import Corpus, Document, Sources, find_files, open_corpus, write_corpus
from anyformer.errors import DataError, TrainingError
from anyformer.model import Transformer, build, load
from anyformer.training.objectives import OBJECTIVES
from anyformer.training.progress import Display
from anyformer.training.recipe import NewTokenizer, Recipe
from anyformer.training.state import write_directory


@dataclass(frozen=True)
class Text:
    """What a run reads: the tokenizer and the two corpora."""

    tokenizer: text.Tokenizer
    train: Corpus
    validation: Corpus


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
    return Text(tokenizer, open_corpus(directory, "train"), open_corpus(directory, "validation"))


def _write_text(recipe: Recipe, directory: Path, display: Display) -> None:
    data = recipe.data
    held_out = find_files(data.validation, exclude=data.exclude) if data.validation else []
    sources = Sources(find_files(data.train, exclude=data.exclude), held_out, data.encoding, data.held_out, columns=data.columns)
    count = len(sources.files)
    display.note(f"{count:,} {'file' if count == 1 else 'files'} of text, {sources.size / 1e6:,.1f} MB")
    if not held_out:
        display.note(f"no data.validation is given, so this is held out: {sources.parting()}")
    tokenizer = _with_what_is_needed(_tokenizer(recipe, sources, display), recipe)

    def write(aside: Path) -> None:
        tokenizer.save(aside)
        with display.task("tokenising", sources.size) as advance:
            write_corpus(aside, sources.documents(), tokenizer, about=sources.facts(), advance=advance)
        if not all(open_corpus(aside, split).targets for split in ("train", "validation")):
            raise DataError("too little text to hold any out for validation; name some in data.validation")

    write_directory(directory, write)
    for split in ("train", "validation"):
        corpus = open_corpus(directory, split)
        display.note(f"{split}: {len(corpus.tokens):,} tokens, {corpus.bytes / len(corpus.tokens):.2f} bytes each")


def _tokenizer(recipe: Recipe, sources: Sources, display: Display) -> text.Tokenizer:
    if recipe.model.source is not None:
        tokenizer = checkpoints.open(recipe.model.source).tokenizer
        if tokenizer is None:
            raise TrainingError(f"model.from: {recipe.model.source} holds no tokenizer, so no text can be read for it")
        return tokenizer
    if isinstance(recipe.tokenizer, NewTokenizer):
        with display.task("learning the tokenizer", sources.size) as advance:
            return text.train_bpe(_training_texts(sources.documents(), advance), recipe.tokenizer.train.vocabulary)
    if recipe.tokenizer in (None, "bytes"):
        return text.byte_level()
    return text.read(Path(recipe.tokenizer))


def _with_what_is_needed(tokenizer: text.Tokenizer, recipe: Recipe) -> text.Tokenizer:
    """The tokenizer with the special tokens of the objective; a fresh model makes room for those it lacks."""
    objective = OBJECTIVES[recipe.training.objective]
    roles = {role: token for role, token in objective.roles.items() if role not in tokenizer.special_tokens}
    others = [token for token in objective.tokens if tokenizer.id_of(token) is None]
    if not roles and not others:
        return tokenizer
    if recipe.model.source is not None:
        raise TrainingError(
            f"training.objective '{objective.name}' needs the special token "
            f"{next(iter([*roles.values(), *others]))!r}, and the tokenizer of {recipe.model.source} has none"
        )
    return tokenizer.with_special(roles, others)


def _training_texts(documents: Iterator[Document], advance: Callable[[int], object]) -> Iterator[str]:
    for document in documents:
        if document.split == "train":
            yield document.text
        advance(len(document.text))


def starting_model(recipe: Recipe, tokenizer: text.Tokenizer, device: torch.device) -> Transformer:
    """The model before step 0, float32: fresh from the recipe's seed, or the checkpoint that it names.

    Raises `TrainingError` where its vocabulary is too small for the tokenizer.
    """
    if recipe.model.source is not None:
        model = load(recipe.model.source, torch.float32, device)
        _check_vocabulary(model.spec, tokenizer.vocabulary_size)
    else:
        described = model_spec(recipe, tokenizer.vocabulary_size)
        _check_vocabulary(described, tokenizer.vocabulary_size)
        model = build(described, device=device, seed=recipe.run.seed)
        model.family = recipe.model.preset.partition(":")[0] if recipe.model.preset is not None else None
        special = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
        if described.shape == "encoder-decoder":
            special["decoder_start"] = tokenizer.pad if tokenizer.pad is not None else tokenizer.eos
        model.generation = {f"{name}_token_id": token for name, token in special.items() if token is not None}
    model.tokenizer = tokenizer
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


def check_model(recipe: Recipe) -> None:
    """Find out before anything long begins whether the recipe's model exists and can have its objective.

    Raises `SpecError`, `CheckpointError` or `TrainingError`.
    """
    if recipe.model.source is not None:
        described = checkpoints.open(recipe.model.source).spec
    else:
        described = model_spec(recipe, vocabulary=1)
    OBJECTIVES[recipe.training.objective].check(described)
    length, position = recipe.training.sequence_length, described.output.embeddings.position
    if isinstance(position, spec.Learned) and position.size < length:
        raise TrainingError(
            f"training.sequence_length={length:,} is longer than the {position.size:,} learned positions of the model"
        )


def _check_vocabulary(model: spec.Transformer, vocabulary: int) -> None:
    has = model.output.embeddings.vocabulary
    if has < vocabulary:
        raise TrainingError(
            f"the model has a vocabulary of {has:,} and the tokenizer {vocabulary:,} tokens; leave 'vocabulary' out of "
            f"model.spec, or choose another tokenizer"
        )
