"""A family: everything that is particular to one line of models, as data in one file.

    config.json  --read-->  spec  --write-->  config.json
    saved tensor names  <--table-->  our parameter names

A family is called with a size to get a spec: `families.llama("135m")`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from anyformer.errors import SpecError
from anyformer.families.config import DEFAULTS, GENERATION, IGNORED, Config, head_attributes
from anyformer.families.difference import Difference, differences
from anyformer.families.names import Table
from anyformer.spec import EmbeddingHead, Mixer, Norm, Stack, Transformer
from anyformer.spec.base import Part, explain

M = TypeVar("M", bound=Mixer)
P = TypeVar("P", bound=Part)


@dataclass(frozen=True)
class GgufSource:
    """What a family reads a GGUF file by: its metadata under the architecture's own prefix (`llama.block_count` is
    `block_count`), the shapes of its tensors (rows first), and the values of a small one."""

    metadata: Config
    shapes: Mapping[str, tuple[int, ...]]
    values: Callable[[str], list[float]]


def _nothing(_: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Gguf:
    """How a family stands in GGUF files of one `architecture`; `families.gguf` reads and writes by it.

    - `keys`: the attributes of config.json and the metadata key that holds each, under the architecture's own prefix.
    - `tensors`: the table of its names.
    - `present`: attributes that are true where a file has the tensor; `fixed`: attributes that no file says.
    - `read` and `write`: attributes that are more than one key's value, and keys that no part of a spec tells alone.
    - `assumed`: what a key means where a file is silent; `ignored`: keys that change nothing, with the reason.
    - `scalings`: the kinds of rotary scaling that its files can say; `yarn`: what its YaRN has and no file says.
    - `requires`: a file whose metadata hold every one of these keys prefers this family to one that requires less.
    - `encoder`: the architecture of files that hold the encoder of an encoder-decoder alone.
    """

    architecture: str
    keys: Mapping[str, str]
    tensors: Callable[[Transformer], Table]
    present: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[GgufSource], dict[str, Any]] = _nothing
    write: Callable[[Transformer], dict[str, Any]] = _nothing
    assumed: Mapping[str, Any] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    scalings: tuple[str, ...] = ("linear", "yarn")
    yarn: Mapping[str, Any] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    encoder: str = ""

    @property
    def architectures(self) -> tuple[str, ...]:
        """Every architecture that its files may name."""
        return (self.architecture, self.encoder) if self.encoder else (self.architecture,)


@dataclass(frozen=True)
class Family:
    """One line of models.

    - `architectures`: transformers' class names and the kind of head that each means, the usual one first.
    - `presets`: sizes, as the config.json attributes that tell them apart.
    - `read` and `write`: from attributes to the spec and back; `write` raises `SpecError` for a spec of another form,
      and leaves out what `config.head_attributes` writes for all (`tie_word_embeddings`, the names of labels).
    - `tensors`: the table of names; `prefix` is what its names begin with except in files of the bare base model.
    - `tied`: whether the output matrix is the embedding table is said by the config, or seen in the file (T5).
    - `defaults`: attributes that mean nothing at this value and are refused at any other; `ignored`: attributes that
      change nothing, with the reason.
    - `generation`: what generation assumes where no file says it.
    - `format`: the family in whose format this one's files are, where it has sizes but no format of its own; they load
      as that family's.
    """

    name: str
    title: str
    paper: str
    model_types: tuple[str, ...]
    architectures: Mapping[str, str]
    presets: Mapping[str, Mapping[str, Any]]
    read: Callable[[Config], Transformer]
    write: Callable[[Transformer], dict[str, Any]]
    tensors: Callable[[Transformer], Table]
    prefix: str = ""
    tied: Literal["config", "file"] = "config"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    gguf: Gguf | None = None
    format: Family | None = None

    def __call__(self, size: str, **attributes: Any) -> Transformer:
        """The spec of a published (or `tiny`) size; `attributes` of config.json override the preset's.

        Raises `SpecError` naming the sizes there are.
        """
        if size not in self.presets:
            raise SpecError(f"{self.name} has no size '{size}'; there are {', '.join(self.presets)}")
        return self.parse({**self.presets[size], **attributes}, where=f"{self.name}:{size}")[0]

    def parse(
        self, attributes: Mapping[str, Any], *, where: str = "config.json", ignore: Iterable[str] = ()
    ) -> tuple[Transformer, dict[str, str]]:
        """The spec of a config.json, and its ignored attributes with their reasons.

        Raises `SpecError` naming any attribute that is missing, unfit or unknown; those named in `ignore` count as
        absent.
        """
        ignore = set(ignore)
        kept = {name: value for name, value in attributes.items() if name not in ignore}
        config = Config(kept, where, self._head_kind(kept.get("architectures"), where))
        config.taken |= {"architectures", "model_type"}
        try:
            spec = self.read(config)
        except ValidationError as error:
            raise SpecError(f"{where}: {explain(error, error.title)}") from None
        ignored = {**IGNORED, **self.ignored}
        defaults = {name: value for name, value in {**DEFAULTS, **self.defaults}.items() if name not in ignored}
        return spec, config.finish(defaults, ignored, elsewhere=GENERATION)

    def express(self, spec: Transformer) -> dict[str, Any]:
        """The config.json attributes of a spec.

        Raises `SpecError` naming each part of the spec that has no counterpart in this family's format. What only
        guides training (`difference.GUIDANCE`) may be lost: it changes nothing in what the weights compute.
        """
        try:
            attributes = self._attributes(spec)
            again = self.parse(attributes)[0]
        except SpecError as error:
            raise SpecError(f"the {self.name} format cannot express this model: {error}") from None
        # How embeddings are pooled stands beside config.json, in the files of sentence-transformers.
        bare = spec.replace(head=EmbeddingHead()) if isinstance(spec.head, EmbeddingHead) else spec
        if lost := differences(bare, again, guidance=False):
            listed = "; ".join(str(difference) for difference in lost[:5])
            raise SpecError(f"the {self.name} format has no counterpart for {listed}")
        return attributes

    def lost(self, spec: Transformer) -> list[Difference]:
        """What this family's format would not keep of a spec that it can `express`: guidance for training."""
        return differences(spec, self.parse(self._attributes(spec))[0])

    def _attributes(self, spec: Transformer) -> dict[str, Any]:
        names = [name for name, kind in self.architectures.items() if kind == spec.head.kind]
        if not names:
            raise SpecError(f"it has no head of kind '{spec.head.kind}'")
        fixed = {"architectures": names[:1], "model_type": self.model_types[0]}
        return {**fixed, **head_attributes(spec.head), **self.write(spec)}

    def _head_kind(self, architectures: Any, where: str) -> str:
        name = architectures[0] if isinstance(architectures, list) and architectures else next(iter(self.architectures))
        if not isinstance(name, str) or name not in self.architectures:
            raise SpecError(
                f"{where}: the architecture {name!r} is not known; {self.name} has {', '.join(self.architectures)}"
            )
        return self.architectures[name]


def architectures(name: str, *, masked: bool = False) -> dict[str, str]:
    """transformers' class names of a decoder, or of an encoder of `masked` texts, and the kind of head of each."""
    return {
        **({f"{name}ForMaskedLM": "masked_language_model"} if masked else {f"{name}ForCausalLM": "language_model"}),
        f"{name}Model": "embedding",
        f"{name}ForSequenceClassification": "sequence_classification",
        f"{name}ForTokenClassification": "token_classification",
    }


def decoder_of(spec: Transformer) -> Stack:
    """The decoder of a spec, for a family's `write`; raises `SpecError` where there is none."""
    return given(spec.decoder, Stack, "a decoder")


def branch(stack: Stack, name: str, mixer: type[M]) -> tuple[M, Norm]:
    """The mixer of a stack's branch of that name, and its norm or the one it shares, for a family's `write`.

    Raises `SpecError` where the spec is of another form.
    """
    norm = None
    for candidate in stack.pattern[0].branches:
        norm = norm if candidate.norm == "shared" else candidate.norm
        if candidate.name == name and isinstance(candidate.mixer, mixer) and isinstance(norm, Norm):
            return candidate.mixer, norm
    raise SpecError(f"it knows no layers without a normalised {mixer.__name__} called '{name}'")


def given(value: Any, kind: type[P], what: str) -> P:
    """`value` if it is of that kind, for a family's `write`; raises `SpecError` where the spec has something else."""
    if not isinstance(value, kind):
        raise SpecError(f"it needs {what}")
    return value
