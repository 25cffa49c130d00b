"""A recipe: everything a training run is, as data. TOML on disk, strict: an unknown key is an error with its path.

[run]       directory, seed, watch, samples, sample_every
[model]     preset | spec | from
tokenizer   "bytes" | path | {train = {vocabulary = N}}
[data]      train, validation, encoding, exclude, held_out, columns
[lora]      rank, alpha, dropout, targets
[training]  objective; steps | tokens | flops | minutes; batches; optimizer, schedule; precision; how often to look
            and save
[scale]     data, shard, tensor, expert, context: how torchrun's processes divide the work
"""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from anyformer import checkpoints
from anyformer.data.sources import is_on_a_hub, pinned
from anyformer.errors import TrainingError
from anyformer.spec.base import Part, explain
from anyformer.training.lora import Lora
from anyformer.training.objectives import OBJECTIVES
from anyformer.training.optimizers import OPTIMIZERS
from anyformer.training.schedules import SCHEDULES
from anyformer.training.watching.trackers import TRACKERS


def _count_or_share(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Said this way round, NaN is neither.
    if not is_number or not value >= 0 or (isinstance(value, float) and not value < 1):
        raise ValueError("this is a whole number, or a share below 1 such as 0.05")
    return value


Share = Annotated[float, Field(ge=0, lt=1)]
CountOrShare = Annotated[int | float, BeforeValidator(_count_or_share)]
Strings = tuple[str, ...]
AnyPart = TypeVar("AnyPart", bound=Part)

#: Keys of which a recipe has exactly one. Setting one of them from outside puts the others away.
ALTERNATIVES = (
    ("training.steps", "training.tokens", "training.flops", "training.minutes"),
    ("model.preset", "model.spec", "model.from"),
)


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Run(Part, frozen=True):
    """Where the run lives, the seed of everything random in it, and how it is watched.

    - `watch`: what follows it besides the terminal: "tensorboard", "wandb", "trackio"; by default TensorBoard, where it
      is installed.
    - `samples`: how many held-out examples show what the model makes of them (`RUN/samples.jsonl`, and the report),
      at the end and at every `sample_every` steps; by default so often that they cost little.
    """

    directory: Path
    seed: Annotated[NonNegativeInt, Field(lt=2**63)] = 0
    watch: Strings | None = None
    samples: NonNegativeInt = 3
    sample_every: PositiveInt | None = None

    _list = field_validator("watch", mode="before")(_one_or_many)

    @field_validator("watch")
    @classmethod
    def _exist(cls, names: Strings | None) -> Strings | None:
        for name in names or ():
            if name not in TRACKERS:
                raise ValueError(f"there is no '{name}' to watch a run with; there are {', '.join(TRACKERS)}")
        return names


class Model(Part, frozen=True):
    """What is trained: a family's preset (`llama:tiny`), a spec (a table, or the path of a JSON file), both with fresh
    weights, or a checkpoint to continue from.

    A spec may leave out `embeddings.vocabulary`; a preset's is replaced: it becomes the tokenizer's.
    """

    model_config = ConfigDict(populate_by_name=True)

    preset: str | None = None
    spec: dict[str, Any] | str | None = None
    source: str | None = Field(default=None, alias="from")

    @model_validator(mode="after")
    def _one(self) -> Self:
        return _exactly_one(self, {"preset": self.preset, "spec": self.spec, "from": self.source})


class TrainTokenizer(Part, frozen=True):
    """Byte-level BPE trained on the training text, `vocabulary` tokens in all."""

    vocabulary: PositiveInt


class NewTokenizer(Part, frozen=True):
    """A tokenizer that the run makes itself."""

    train: TrainTokenizer


class Data(Part, frozen=True):
    """The text: files, folders, globs, data sets of a hub (`hub:org/name`), as strings or lists of strings.

    Without `validation`, something is `held_out` of the training documents: a share of them, or a number, the last.
    `encoding`: one, or several to try in turn for each file. `exclude`: globs of files and folders that folders leave
    out. `columns`: what the files call the fields that the objective reads, by name, or in `.tsv` and `.csv` by number
    from 0 (`{source = 1, target = 2}`); naming `text_pair` gives `classify` a second text.
    """

    train: Strings = Field(min_length=1)
    validation: Strings | None = None
    encoding: Strings = Field(default=("utf-8",), min_length=1)
    exclude: Strings = ()
    held_out: Annotated[CountOrShare, Field(gt=0)] = 0.05
    columns: dict[str, str | NonNegativeInt] = Field(default_factory=dict)

    _lists = field_validator("train", "validation", "encoding", "exclude", mode="before")(_one_or_many)


class Training(Part, frozen=True):
    """How the weights are found.

    - The length is `steps`, or `tokens`, or `flops` (forward and backward, the planner's count), or `minutes`: the last
      is measured on the machine before the first step. Either becomes a fixed number of steps.
    - A step takes `batch_tokens` tokens in windows of `sequence_length`, `micro_batch_tokens` at a time (memory), with
      the same result.
    - `learning_rate`: the highest of the run; by default the usual one for the model's width (`schedules.usual_peak`).
    - `warmup`: a number of steps, or a share of them all (0.05). `final`: the share of the learning rate left at last.
    - `clip`: the largest gradient norm; 0 leaves gradients as they are.
    - `beta`: of objective `preferences`, how strongly the model is held to what it was.
    - `whole_words`: objective `masked` hides all tokens of a word or none.
    - `label_smoothing` and `z_loss`: what the training loss adds to the cross-entropy (`model/heads.py`); validation
      leaves them out.
    - `dropout`: of embeddings, of what each branch adds to the stream, and of whatever else the spec drops out; by
      default as the spec has it, which a checkpoint that is continued brings along. `attention_dropout`: of attention
      weights, for which CPUs have no fast kernel; by default as `dropout` where the spec drops them, else none.
    - `ema`: the decay of an average of the weights (0.999, say; 0: none), which is then what validations measure and
      what the run gives; its checkpoints hold both (`averaging.Average`).
    - `checkpoint_activations`: keep only the input of each layer for the backward pass, which computes the rest again:
      less memory, a third more work, the same bits.
    - `precision`: of the products; weights, moments, norms and losses are float32 either way. A CPU may multiply
      bfloat16 more slowly than float32; the run says so, and such products are widened (`parts/kernels/wide.py`).
    - `compile`: the feed-forwards of the layers; by default on accelerators (`compiling.compile_regions`).
    - `validate_every`, `checkpoint_every`: steps; by default a twentieth and a tenth of the run.
    - `validate_tokens`: how much of the held-out text a validation reads, evenly spread.
    - `skip_limit`: so many steps in a row with a non-finite loss or gradient end the run.
    """

    objective: str = "causal"
    whole_words: bool = False
    steps: PositiveInt | None = None
    tokens: PositiveInt | None = None
    flops: PositiveFloat | None = None
    minutes: PositiveFloat | None = None
    batch_tokens: PositiveInt = 4096
    micro_batch_tokens: PositiveInt | None = None
    sequence_length: PositiveInt = 256
    optimizer: str = "adamw"
    learning_rate: PositiveFloat | None = None
    schedule: str = "cosine"
    warmup: CountOrShare = 0.05
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    weight_decay: NonNegativeFloat = 0.1
    clip: NonNegativeFloat = 1.0
    beta: PositiveFloat = 0.1
    label_smoothing: Share = 0.0
    z_loss: NonNegativeFloat = 0.0
    dropout: Share | None = None
    attention_dropout: Share | None = None
    ema: Share = 0.0
    checkpoint_activations: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool | None = None
    checkpoint_every: PositiveInt | None = None
    checkpoint_keep: Annotated[int, Field(ge=2)] = 2
    validate_every: PositiveInt | None = None
    validate_tokens: PositiveInt = 65_536
    skip_limit: PositiveInt = 10

    @field_validator("objective", "optimizer", "schedule")
    @classmethod
    def _exists(cls, name: str, info: Any) -> str:
        known = {"objective": OBJECTIVES, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}[info.field_name]
        if name not in known:
            raise ValueError(f"'{name}' is not there (yet); this version has {', '.join(known)}")
        return name

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in ("batch_tokens", "micro_batch_tokens"):
            tokens = getattr(self, name)
            if tokens is not None and tokens % self.sequence_length:
                raise ValueError(f"{name}={tokens} is not a multiple of sequence_length={self.sequence_length}")
        return _exactly_one(self, {name: getattr(self, name) for name in ("steps", "tokens", "flops", "minutes")})


class Scale(Part, frozen=True):
    """How many processes each division of the work is over, when torchrun starts many; their product is how many there
    are. What is left out of `shard` (then of `data`) takes those that are left; the result is the same.

    - `data`: copies of the model, each with rows of its own.
    - `shard`: the same, with parameters, gradients and moments divided among them (FSDP).
    - `tensor`: heads and feed-forward widths.
    - `expert`: the experts of a mixture, and rows.
    - `context`: every sequence, in stretches.
    """

    data: PositiveInt | None = None
    shard: PositiveInt | None = None
    tensor: PositiveInt = 1
    expert: PositiveInt = 1
    context: PositiveInt = 1


class Recipe(Part, frozen=True):
    """A whole recipe. `tokenizer` is `"bytes"` (no training), the path of one, or one to train; it is left out where
    the model comes from a checkpoint, which has its own. With `lora`, that checkpoint stays as it is, and what is
    learned is an adapter of it."""

    run: Run
    model: Model
    tokenizer: str | NewTokenizer | None = None
    data: Data
    lora: Lora | None = None
    training: Training
    scale: Scale = Scale()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.lora is not None and self.model.source is None:
            raise ValueError("lora adapts a model that has learned something; name one in model.from")
        if self.model.source is not None and self.tokenizer is not None:
            raise ValueError("a model 'from' a checkpoint comes with its tokenizer; leave out the key 'tokenizer'")
        return self

    def to_data(self) -> dict[str, Any]:
        """This recipe as plain data, by the keys of its TOML; `read_recipe` makes the same of it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def _exactly_one(part: AnyPart, alternatives: Mapping[str, Any]) -> AnyPart:
    given = [name for name, value in alternatives.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"exactly one of {', '.join(alternatives)} is needed, not {' and '.join(given) or 'none'}")
    return part


def read_recipe(source: Recipe | Mapping[str, Any] | str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe from the path of a TOML file, from plain data, or as it is, with `overrides` such as
    `training.steps=200` put in: dotted key, then a TOML value (what is not one is taken as a string).

    An override of `training.steps`, `tokens`, `flops` or `minutes` puts the others away; so with `model.preset`,
    `spec` and `from`. A spec given as a path is read, and paths of data become absolute, so that the recipe stands for
    itself.

    Raises `TrainingError` naming the path of whatever does not fit.
    """
    what = "the recipe"
    if isinstance(source, Recipe):
        data = source.to_data()
    elif isinstance(source, Mapping):
        data = copy.deepcopy(dict(source))
    else:
        what, data = str(source), _read_toml(Path(source))
    for override in overrides:
        _put(data, override)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise TrainingError(explain(error, what)) from None
    return _standing_alone(recipe)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"cannot read the recipe {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"the recipe {path} is not TOML: {error}") from None


def _put(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise TrainingError(f"cannot set '{override}'; write key=value, such as training.steps=200")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    put(data, key, value)


def put(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of a recipe's data; of keys of which a recipe has exactly one, the others are put away."""
    for group in ALTERNATIVES:
        if key in group:
            for other in group:
                _table(data, other).pop(other.rpartition(".")[2], None)
    _table(data, key)[key.rpartition(".")[2]] = value


def _table(data: dict[str, Any], key: str) -> dict[str, Any]:
    """The table that a dotted key stands in, made where it is missing."""
    for step in key.split(".")[:-1]:
        data = data.setdefault(step, {})
        if not isinstance(data, dict):
            raise TrainingError(f"cannot set '{key}': '{step}' is a value in this recipe and has no keys")
    return data


def _standing_alone(recipe: Recipe) -> Recipe:
    def absolute(references: Strings | None) -> Strings | None:
        return references and tuple(
            pinned(reference) if is_on_a_hub(reference) else str(Path(reference).expanduser().absolute())
            for reference in references
        )

    def absolute_if_there(reference: str) -> str:
        path = Path(reference).expanduser()
        return str(path.absolute()) if path.exists() else reference

    model, data, tokenizer = recipe.model, recipe.data, recipe.tokenizer
    if isinstance(tokenizer, str) and tokenizer != "bytes":
        tokenizer = absolute_if_there(tokenizer)
    if model.source is not None:
        model = model.replace(source=checkpoints.fetch(absolute_if_there(model.source)))
    if isinstance(model.spec, str):
        try:
            model = model.replace(spec=json.loads(Path(model.spec).read_text(encoding="utf-8")))
        except OSError as error:
            raise TrainingError(f"cannot read model.spec: {model.spec}: {error.strerror}") from None
        except ValueError as error:
            raise TrainingError(f"model.spec: {model.spec} is not JSON: {error}") from None
    return recipe.replace(
        run=recipe.run.replace(directory=recipe.run.directory.expanduser()),
        model=model,
        tokenizer=tokenizer,
        data=data.replace(train=absolute(data.train), validation=absolute(data.validation)),
    )
