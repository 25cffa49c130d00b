"""Reading a config.json so that no attribute is dropped in silence: each is handled, at its default, or ignored for a
stated reason; anything else is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from anyformer.errors import SpecError
from anyformer.spec import Head
from anyformer.spec.mixers import Activation

D = TypeVar("D")

#: Attributes of transformers' configurations, versions 4 and 5, that change nothing in what a model computes.
IGNORED: dict[str, str] = {
    "transformers_version": "which version wrote the file",
    "_name_or_path": "where somebody loaded it from",
    "name_or_path": "where somebody loaded it from",
    "_commit_hash": "where somebody loaded it from",
    "dtype": "the tensors say their own type",
    "torch_dtype": "the tensors say their own type",
    "use_bfloat16": "the tensors say their own type",
    "use_cache": "the caller's choice",
    "output_past": "the caller's choice (before version 3)",
    "output_attentions": "what a call returns",
    "output_hidden_states": "what a call returns",
    "return_dict": "what a call returns",
    "use_return_dict": "what a call returns",
    "tie_last_hidden_states": "what a call returns",
    "torchscript": "how a program is exported",
    "attn_implementation": "which kernel computes it",
    "_attn_implementation": "which kernel computes it",
    "_attn_implementation_internal": "which kernel computes it",
    "_attn_implementation_autoset": "which kernel computes it",
    "_experts_implementation_internal": "which kernel computes it",
    "chunk_size_feed_forward": "in how many pieces it is computed",
    "pretraining_tp": "in how many pieces it was computed while it was trained",
    "gradient_checkpointing": "memory while training",
    "tf_legacy_loss": "a loss of the TensorFlow models",
    "tokenizer_class": "the tokenizer's files say what it is",
    "finetuning_task": "a note on the training",
    "problem_type": "the loss of fine-tuning; the objective of a recipe says it here",
    "id2label": "the names of labels; how many there are is handled by heads that have labels",
    "label2id": "the names of labels; how many there are is handled by heads that have labels",
    "num_labels": "handled by heads that have labels",
    "_num_labels": "handled by heads that have labels",
    "task_specific_params": "prefixes and generation settings of single tasks, for a caller to choose from",
    "auto_map": "code that comes with a checkpoint is never run",
    "transformers.js_config": "settings of a JavaScript library",
}

#: Attributes of the same that mean nothing at this value, and a different model at any other.
DEFAULTS: dict[str, Any] = {
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
    "per_layer_config": None,
    "quantization_config": None,
    "compression_config": None,
}

#: Ids of special tokens, which belong to generation and not to the model.
SPECIAL_TOKENS = ("bos", "eos", "pad", "sep", "cls", "mask", "unk", "decoder_start")

#: Settings of generation that older versions keep in config.json.
GENERATION = frozenset(
    [
        "max_length",
        "min_length",
        "do_sample",
        "early_stopping",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "num_return_sequences",
        "output_scores",
        "return_dict_in_generate",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
        "prefix",
        "epsilon_cutoff",
        "eta_cutoff",
        "encoder_repetition_penalty",
    ]
    + [f"{token}_token_id" for token in SPECIAL_TOKENS]
)

#: transformers' names of activations; the first of a kind is the one that is written.
ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}

_REQUIRED: Any = object()


class Config:
    """The attributes of a config.json (or of one object in it). A family takes those that it knows, then `finish`
    refuses whatever was not taken. An attribute that is null counts as absent.

    `head_kind` is the kind of head that `architectures` asks for. Every method raises `SpecError` naming the attribute.
    """

    def __init__(
        self, attributes: Mapping[str, Any], where: str, head_kind: str | None = None, path: str = "", root: str = ""
    ) -> None:
        self.attributes = dict(attributes)
        self.where, self.head_kind = where, head_kind
        #: What stands before an attribute's name in messages, and the outermost attribute that holds this object.
        self.path, self.root = path, root
        self.taken: set[str] = set()
        self.sections: dict[str, Config] = {}

    def has(self, name: str) -> bool:
        """Whether the attribute is there and not null."""
        return self.attributes.get(name) is not None

    def assume(self, **attributes: Any) -> None:
        """What the reference takes for granted where the file is silent; what the file sets to null stays null."""
        self.attributes = {**attributes, **self.attributes}

    def value(self, *names: str, default: Any = _REQUIRED) -> Any:
        """An attribute by the first of its names that is there; two of them must not contradict each other."""
        self.taken.update(names)
        found = [(name, self.attributes[name]) for name in names if self.has(name)]
        if not found:
            if default is _REQUIRED:
                self.refuse(f"{self.path}{names[0]} is missing")
            return default
        for name, value in found[1:]:
            if value != found[0][1]:
                self.refuse(
                    f"{self.path}{found[0][0]} and {self.path}{name} are one thing and differ; remove one of them"
                )
        return found[0][1]

    def size(self, *names: str, default: D = _REQUIRED) -> int | D:
        """A whole number of at least one."""
        return self._typed(names, default, lambda value: type(value) is int and value > 0, "a whole number above 0")

    def integer(self, *names: str, default: D = _REQUIRED) -> int | D:
        """A whole number of at least nought."""
        return self._typed(names, default, lambda value: type(value) is int and value >= 0, "a whole number")

    def number(self, *names: str, default: D = _REQUIRED) -> float | D:
        """A number."""
        return self._typed(names, default, lambda value: type(value) in (int, float), "a number")

    def numbers(self, *names: str, default: D = _REQUIRED) -> tuple[float, ...] | D:
        """A list of numbers."""

        def fits(value: Any) -> bool:
            return isinstance(value, list) and all(type(number) in (int, float) for number in value)

        value = self._typed(names, default, fits, "a list of numbers")
        return tuple(value) if isinstance(value, list) else value

    def flag(self, *names: str, default: D = _REQUIRED) -> bool | D:
        """True or false."""
        return self._typed(names, default, lambda value: type(value) is bool, "true or false")

    def text(self, *names: str, default: D = _REQUIRED) -> str | D:
        """A string."""
        return self._typed(names, default, lambda value: type(value) is str, "a string")

    def section(self, name: str) -> Config:
        """An attribute that is an object, to be accounted for in the same way; empty where there is none."""
        value = self._typed((name,), {}, lambda value: isinstance(value, dict), "an object")
        section = Config(value, self.where, path=f"{self.path}{name}.", root=self.root or name)
        return self.sections.setdefault(name, section)

    def expect(self, name: str, wanted: Any) -> None:
        """Refuse an attribute unless it is absent or has this value."""
        found = self.value(name, default=wanted)
        if found != wanted:
            shown = f"only {json.dumps(wanted)} is understood here"
            self.refuse(f"{self.path}{name} is {json.dumps(found)}; {shown}", ignorable=[name])

    def activation(self, *names: str, default: str = _REQUIRED) -> Activation:
        """An activation by transformers' name for it, which `default` is too."""
        name = self.text(*names, default=default)
        if name not in ACTIVATIONS:
            self.refuse(f"{self.path}{names[0]} is {name!r}; known activations: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def labels(self) -> int:
        """How many labels a classification head has (transformers leaves two of them out of its files)."""
        names = self.attributes.get("id2label")
        if isinstance(names, dict) and names:
            return len(names)
        counts = (self.attributes.get(name) for name in ("num_labels", "_num_labels"))
        return next((count for count in counts if type(count) is int and count > 0), 2)

    def head(self, *heads: Head) -> Head:
        """That of the heads which `architectures` asks for."""
        wanted = [head for head in heads if head.kind == self.head_kind]
        if not wanted:
            self.refuse(f"the family reads no head of kind '{self.head_kind}'")
        return wanted[0]

    def finish(
        self, defaults: Mapping[str, Any], ignored: Mapping[str, str], elsewhere: Iterable[str] = ()
    ) -> dict[str, str]:
        """Account for whatever was not taken: at its default, ignored for a reason, or read `elsewhere`. Gives the
        ignored attributes with the reason of each."""
        for section in self.sections.values():
            section.finish({}, {})
        for name, wanted in defaults.items():
            if name not in self.taken:
                self.expect(name, wanted)
        known = self.taken.union(ignored, elsewhere)
        if unknown := [name for name in self.attributes if name not in known]:
            listed = ", ".join(f"'{self.path}{name}'" for name in unknown)
            self.refuse(f"no such attribute is known: {listed}", ignorable=unknown)
        return {name: ignored[name] for name in self.attributes if name in ignored and name not in self.taken}

    def refuse(self, message: str, ignorable: Sequence[str] = ()) -> NoReturn:
        """Raise `SpecError`, saying where, and how to go on regardless."""
        outermost = [self.root] if self.root else [self.path + name for name in ignorable]
        advice = f" (af.load(..., ignore={outermost}) loads it all the same)" if ignorable else ""
        raise SpecError(f"{self.where}: {message}{advice}")

    def _typed(self, names: tuple[str, ...], default: Any, fits: Callable[[Any], bool], what: str) -> Any:
        value = self.value(*names, default=default)
        absent = not any(self.has(name) for name in names)
        if not absent and not fits(value):
            self.refuse(f"{self.path}{names[0]} is {json.dumps(value)}; it must be {what}")
        return value


def activation_name(activation: Activation) -> str:
    """What transformers calls an activation."""
    return next(name for name, ours in ACTIVATIONS.items() if ours == activation)


def head_attributes(head: Head) -> dict[str, Any]:
    """The attributes that heads of any family have: the names of labels, and whether the output matrix is tied."""
    labels: int | None = getattr(head, "labels", None)
    if labels is not None:
        names = [f"LABEL_{index}" for index in range(labels)]
        return {
            "id2label": {str(index): name for index, name in enumerate(names)},
            "label2id": {name: index for index, name in enumerate(names)},
        }
    tied = getattr(head, "tied", None)
    return {} if tied is None else {"tie_word_embeddings": tied}
