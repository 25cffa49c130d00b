"""What is measured, and who does it: a model here, and the same weights in another project."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from anyformer import checkpoints, machine
from anyformer.errors import InputError
from anyformer.generation import Settings, steps
from anyformer.inspection.bench.comparing import Lap
from anyformer.machine.rates import wait
from anyformer.model import Transformer, load
from anyformer.model.saving import write_file

#: The first ids of a vocabulary are often special; none of these is in a prompt.
SPECIAL = 5


@dataclass(frozen=True)
class Work:
    """`batch` prompts of random ids [B, T] (of an encoder-decoder: sources), each continued by `new_tokens`; an encoder
    makes a vector of each. With `quantize_cache` keys and values are kept in 8 bits, here."""

    vocabulary: int
    prompt_tokens: int = 128
    new_tokens: int = 64
    batch: int = 1
    quantize_cache: Literal["int8"] | None = None

    @property
    def length(self) -> int:
        """Tokens of a row in the end, the last of which no pass has read."""
        return self.prompt_tokens + self.new_tokens - 1

    @cached_property
    def ids(self) -> Tensor:
        """The same ones each time, [B, T]."""
        generator = torch.Generator().manual_seed(0)
        lowest = min(SPECIAL, self.vocabulary - 1)
        return torch.randint(lowest, self.vocabulary, (self.batch, self.prompt_tokens), generator=generator)


class Side(Protocol):
    """A model that can do a work, wherever it is implemented. The project that does it has a `version`, and its weights
    a `dtype`."""

    version: str
    dtype: str

    def generate(self, work: Work, lap: Lap) -> list[list[int]]:
        """Read the prompts and continue each by the likeliest tokens, never ending; a lap for each token that all rows
        have. Gives the new ids."""
        ...

    def embed(self, work: Work, lap: Lap) -> Tensor:
        """A vector of each prompt, [B, D]; one lap."""
        ...


class Here:
    """A model of this project, by the loop that its users run."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.version = model, metadata.version("anyformer")
        self.dtype = str(model.dtype).removeprefix("torch.")
        if model.quantization is not None:
            self.dtype, _ = Counter(model.quantization.formats.values()).most_common(1)[0]

    def generate(self, work: Work, lap: Lap) -> list[list[int]]:
        start = self.model.generation.get("decoder_start_token_id", 0)
        settings = Settings(
            temperature=0.0, max_new_tokens=work.new_tokens, start=start, quantize_cache=work.quantize_cache
        )
        prompts = self.model.beginning(work.ids.to(self.model.device), None, settings)
        found = []
        for ids in steps(self.model, prompts, settings):
            wait(self.model.device)
            lap()
            found.append(ids)
        return torch.stack(found, 1).tolist()

    def embed(self, work: Work, lap: Lap) -> Tensor:
        vectors = self.model.embed_ids(work.ids.to(self.model.device))
        wait(self.model.device)
        lap()
        return vectors


@dataclass(frozen=True)
class Opened:
    """A model, and where it was read: a reference as `load` takes it."""

    model: Transformer
    reference: str

    def directory(self, place: Path) -> Path:
        """A Hugging Face directory of these weights: the one that the model was read from, else one written into
        `place`. Raises `InputError` where no family's config.json can express the model."""
        if (Path(self.reference) / "config.json").is_file():
            return Path(self.reference)
        if checkpoints.expressible(self.model.spec, self.model.family) is None:
            raise InputError(f"no family's config.json can express {self.reference}, so only anyformer can run it")
        self._in_floats().save(place)
        return place

    def file(self, place: Path) -> Path:
        """A GGUF file of these weights, likewise; of a quantised model, of these very blocks."""
        how = None if self.model.quantization is None else self.model.quantization.how
        if Path(self.reference).is_file() and how in (None, "keep"):
            return Path(self.reference)
        path = place / "model.gguf"
        write_file(self.model, path, None)
        return path

    def _in_floats(self) -> Transformer:
        """The model before it was quantised, where it was."""
        return self.model if self.model.quantization is None else load(self.reference, self.model.dtype)


class Rival(NamedTuple):
    """Another project: the room here that knows it (`open(opened, place, work) -> Side`), the package it is in, the
    name by which that is installed, and the shapes of the models that it is compared on."""

    room: str
    package: str
    install: str
    shapes: tuple[str, ...] = ("encoder", "decoder", "encoder-decoder")


RIVALS = {
    "transformers": Rival("anyformer.inspection.bench.hugging_face", "transformers", "transformers"),
    "llama.cpp": Rival("anyformer.inspection.bench.llama_cpp", "llama_cpp", "llama-cpp-python", ("decoder",)),
}


def there(names: Iterable[str], shape: str | None = None) -> list[str]:
    """The names of other projects, each once. Raises `InputError` for one that is not known or not installed, and where
    it is not compared on models of such a `shape`."""
    found = list(dict.fromkeys(names))
    for name in found:
        if name not in RIVALS:
            raise InputError(f"there is nothing called '{name}' to compare with; there are {', '.join(RIVALS)}")
        if find_spec(RIVALS[name].package) is None:
            raise InputError(f"{name} is not installed here; pip install {RIVALS[name].install}, or leave it out")
        if shape is not None and shape not in RIVALS[name].shapes:
            raise InputError(f"{name} is compared on {'s, '.join(RIVALS[name].shapes)}s, not on {shape}s; leave it out")
    return found


@contextmanager
def beside(opened: Opened, names: Iterable[str], work: Work) -> Iterator[dict[str, Side]]:
    """The same weights in other projects, by their names, each ready to work.

    What those read is written into a temporary directory where need be. Raises `InputError` as `there`, and where one
    cannot run these weights."""
    names = there(names, opened.model.spec.shape)
    with tempfile.TemporaryDirectory() as directory, ExitStack() as open_sides:
        sides: dict[str, Side] = {}
        for name in names:
            place = Path(directory, RIVALS[name].package)
            place.mkdir()
            sides[name] = open_sides.enter_context(import_module(RIVALS[name].room).open(opened, place, work))
        yield sides


def warm(side: Side, work: Work) -> int | None:
    """Do a work once; bytes that the process then held at most, where the system says."""
    device = side.model.device if isinstance(side, Here) else torch.device("cpu")
    machine.begin_peak(device)
    do(side, work, lambda: None)
    return machine.peak(device)


def do(side: Side, work: Work, lap: Lap) -> object:
    """The work itself; an encoder's has no new tokens."""
    return side.generate(work, lap) if work.new_tokens else side.embed(work, lap)
