"""What decides how text is generated: a checkpoint's `generation_config.json`, and the caller, who wins."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from anyformer.errors import InputError
from anyformer.generation.files import meant, settings_of

#: What belongs to beam search alone.
_SEARCH = ("beams", "beam_groups", "diversity_penalty", "answers")
#: What names ids.
_IDS = ("bos", "eos", "pad", "start", "forced_bos", "forced_eos", "bad_words", "suppress", "begin_suppress")
#: What narrows a draw down, and its value where it does not.
_NARROWING = {"top_k": 0, "top_p": 1, "min_p": 0, "typical_p": 1}
#: What makes tokens impossible.
_BANNING = (
    "bad_words",
    "suppress",
    "begin_suppress",
    "no_repeat_ngram",
    "encoder_no_repeat_ngram",
    "min_new_tokens",
    "min_length",
)

#: Ids; one alone will do.
Ids = Annotated[tuple[int, ...], BeforeValidator(lambda given: (given,) if isinstance(given, int) else given)]
#: What is added to logits, or to logarithms of probabilities: of larger ones nothing else would be left.
Penalty = Annotated[float, Field(ge=-1000, le=1000)]
#: A sequence of at least one id.
Word = Annotated[tuple[int, ...], Field(min_length=1)]


def _seeds(given: Any) -> Any:
    several = given if isinstance(given, Sequence) else [given]
    if not several or not all(isinstance(seed, int) and -(2**63) <= seed < 2**63 for seed in several):
        raise PydanticCustomError("seed", "Input should be an integer of 64 bits, or one for each row")
    return given


#: What a generator takes, for all rows together or for each.
Seed = Annotated[int | tuple[int, ...], BeforeValidator(_seeds)]
#: Texts of at least one character; one alone will do.
Texts = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(lambda given: (given,) if isinstance(given, str) else given),
]


#: JSON schemas, each as an object or as its text; one alone will do.
Schemas = Annotated[
    tuple[dict[str, Any] | str, ...],
    BeforeValidator(lambda given: (given,) if isinstance(given, str | dict) else given),
]


class Settings(BaseModel):
    """How to choose tokens, and when to stop.

    temperature         0 is greedy; otherwise logits are divided by it and a token is drawn
    top_k, top_p, min_p keep the k likeliest tokens; the fewest that hold probability p (Holtzman et al. 2020); those
                        at least min_p times as likely as the likeliest (Nguyen et al. 2024). 0, 1 and 0 keep all
    typical_p           keep the fewest that hold probability p, those first whose surprise is nearest to what is
                        expected, the entropy (Meister et al. 2023); 1 keeps all
    beams               above 1: beam search (`generation/beam.py`), so many beams wide
    length_penalty      p of its score, the summed log-probability divided by length^p: above 0 favours long answers
    early_stopping      when a search is over. True: with as many answers as beams; False: when the best running beam,
                        as long as it is, scores below all of them; "never": when it could not at any length
    beam_groups         so many groups of beams, each of which the ones before it keep from saying the same
    diversity_penalty   taken from a token's score for every beam of an earlier group that says it at the same step
                        (Vijayakumar et al. 2018)
    answers             how many for each prompt: the best that beam search found, or so many draws
    penalty_alpha       above 0: contrastive search (`generation/contrastive.py`) among the top_k likeliest
    repetition_penalty  divides (negative: multiplies) the logits of tokens already there (Keskar et al. 2019)
    frequency_penalty   taken from a token's logit for every time that the answer has said it so far; `presence_penalty`
                        once if it has at all (OpenAI's definition). Of the prompt nothing counts
    bad_words           sequences of ids of which none is ever completed; one that is an end token alone does not count
    suppress            ids that are never said, end tokens too; `begin_suppress` those that no answer begins with
                        (Whisper); an id that is forced is not the beginning
    no_repeat_ngram     n above 0: no n ids in a row stand twice in what a decoder reads and says (Paulus et al. 2018)
    encoder_no_repeat_ngram
                        n above 0: no n ids in a row of the source, or of a decoder's prompt, are said again
    min_new_tokens      no end token before so many; `min_length` counts what the decoder has read, too (BART)
    exponential_decay   (n, f): after n + k tokens, k above 0, an end token's logit gains f^k - 1 times its own size
    max_new_tokens      the most to add to each sequence
    batch_invariant     give a sequence, to the bit, what it gets alone, whatever shares its batch: at a cost
                        (`generation/invariance.py`)
    quantize_cache      keep keys and values in 8 bits ("int8"): about half the bytes of bfloat16, nearly the same text
    eos                 ids that end a sequence; `pad` fills up after one
    stop                texts that end a sequence, too, and are not part of it, wherever tokens begin and end
    logprobs            so many of the likeliest tokens of each step stand in an `Answer`, too
    json_schema, regex, grammar
                        what answers must be, to the letter (`generation/constraints.py`): JSON that a schema describes,
                        a text that a regular expression matches whole, one of the language of a Lark grammar; of each
                        one for all prompts, or one a prompt
    prompt_lookup       guess so many tokens at most at a time: those that followed the last ones where they stood
                        before, in the source, the prompt or the answer (`generation/speculation.py`)
    bos, start          the id that stands before a text; the id that a decoder with an encoder starts from
    forced_bos          the id that follows where there is one token so far, such as `start` (mBART: the language)
    forced_eos          the id that comes last where `max_new_tokens` run out (BART, Marian); of several, the first
    seed                of the draws: row i's are those of seed + i, or of its own where there is one a row, whatever
                        else is in the batch; None: of seeds that torch's own generator draws
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: NonNegativeFloat = 0.0
    top_k: NonNegativeInt = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    typical_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    beams: PositiveInt = 1
    length_penalty: Annotated[float, Field(ge=-32, le=32)] = 1.0
    early_stopping: bool | Literal["never"] = False
    beam_groups: PositiveInt = 1
    diversity_penalty: Annotated[float, Field(ge=0, le=1000)] = 0.0
    answers: PositiveInt = 1
    penalty_alpha: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    bad_words: tuple[Word, ...] = ()
    suppress: Ids = ()
    begin_suppress: Ids = ()
    no_repeat_ngram: NonNegativeInt = 0
    encoder_no_repeat_ngram: NonNegativeInt = 0
    min_new_tokens: NonNegativeInt = 0
    min_length: NonNegativeInt = 0
    exponential_decay: tuple[NonNegativeInt, Annotated[float, Field(gt=0, le=1000)]] | None = None
    max_new_tokens: PositiveInt = 64
    batch_invariant: bool = False
    quantize_cache: Literal["int8"] | None = None
    bos: int | None = None
    eos: Ids = ()
    stop: Texts = ()
    logprobs: NonNegativeInt = 0
    json_schema: Schemas = ()
    regex: Texts = ()
    grammar: Texts = ()
    prompt_lookup: NonNegativeInt = 0
    pad: int | None = None
    start: int | None = None
    forced_bos: int | None = None
    forced_eos: Ids = ()
    seed: Seed | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], **given: Any) -> Settings:
        """The file's defaults with the caller's settings over them. Raises `InputError` for a setting out of range, and
        for one that the caller gives in vain."""
        settings = settings_of(config)
        given = {name: value for name, value in given.items() if value is not None}
        for name in _replaced(given):
            settings.pop(name, None)
        settings.update(given)
        try:
            return cls.model_validate(settings)._not_in_vain(given)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            if not first["loc"]:
                raise InputError(first["msg"].removeprefix("Value error, ")) from None
            name = ".".join(str(step) for step in first["loc"])
            if first["type"] == "extra_forbidden":
                raise InputError(f"there is no generation setting '{name}'; {meant(name, cls.model_fields)}") from None
            raise InputError(f"the generation setting '{name}' cannot be used: {first['msg'].lower()}") from None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.beams > 1 and self.temperature > 0:
            raise ValueError("beam search draws nothing: set temperature to 0, or beams to 1")
        if self.penalty_alpha > 0 and self.temperature > 0:
            raise ValueError("contrastive search draws nothing: set temperature to 0, or penalty_alpha to 0")
        if self.penalty_alpha > 0 and self.beams > 1:
            raise ValueError("contrastive search has no beams: set beams to 1, or penalty_alpha to 0")
        if self.penalty_alpha > 0 and self.top_k == 0:
            raise ValueError("contrastive search weighs the top_k likeliest tokens: set top_k, to 4 for one")
        if self.beams % self.beam_groups:
            raise ValueError(f"{self.beams} beams make no {self.beam_groups} groups of one size; set another number")
        if self.beam_groups > 1 and self.diversity_penalty == 0:
            raise ValueError("without a diversity_penalty all beam_groups say the same; set one above 0")
        if self.beam_groups == 1 and self.diversity_penalty > 0:
            raise ValueError("a diversity_penalty acts between groups of beams; set beam_groups above 1, or leave it")
        if sum(map(bool, (self.json_schema, self.regex, self.grammar))) > 1:
            raise ValueError("an answer follows one constraint: give one of json_schema, regex and grammar")
        if self.prompt_lookup > 0 and (self.beams > 1 or self.penalty_alpha > 0):
            raise ValueError("only one token after another can be guessed: set prompt_lookup to 0, or search for none")
        if self.beams > 1 and self.answers > self.beams:
            raise ValueError(f"{self.beams} beams give no {self.answers} answers; ask for fewer, or give more beams")
        if self.beams == 1 and self.answers > 1 and self.temperature == 0:
            raise ValueError(
                "taking the likeliest token gives one answer; for several, set beams, or a temperature above 0"
            )
        return self

    def _not_in_vain(self, given: Container[str]) -> Self:
        """The same, if what the caller gives to narrow down a draw, or to end a search, has one."""
        if self.early_stopping and "early_stopping" in given and self.beams == 1 and "beams" not in given:
            raise InputError(
                "early_stopping says when beam search is over, and none is made: set beams above 1 as well"
            )
        if self.temperature > 0 or "temperature" in given:
            return self
        for name, neutral in _NARROWING.items():
            if name in given and getattr(self, name) != neutral and not (name == "top_k" and self.penalty_alpha > 0):
                raise InputError(f"{name} narrows down a draw, and nothing is drawn: set a temperature above 0 as well")
        return self

    def within(self, vocabulary: int, given: Container[str] = ()) -> Self:
        """The settings of a model that knows so many tokens. What a file says of others never comes up, and is left
        out. Raises `InputError` for those that the caller has `given`, or that would be forced; and where bad words
        and the like leave no token to begin with."""
        beyond: dict[str, set[int]] = {}
        for name in _IDS:
            if unknown := {id for id in _flat(getattr(self, name)) if not 0 <= id < vocabulary}:
                beyond[name] = unknown
        for name, unknown in beyond.items():
            if name in given or name.startswith("forced"):
                raise InputError(
                    f"the generation setting '{name}' cannot be used: there is no token {min(unknown)}, as this "
                    f"model's vocabulary of {vocabulary:,} goes from 0 to {vocabulary - 1:,}"
                )
        kept = {name: _without(getattr(self, name), unknown) for name, unknown in beyond.items()}
        found = self.model_copy(update=kept) if kept else self
        if len({*found.never, *found.begin_suppress}) == vocabulary:
            raise InputError(
                f"{listed(found.bans)} ban each of the {vocabulary:,} tokens that this model knows; leave some"
            )
        return found

    @property
    def filler(self) -> int:
        """The id that stands after an end."""
        return self.pad if self.pad is not None else (self.eos[0] if self.eos else 0)

    @property
    def never(self) -> set[int]:
        """The ids that are never said. A bad word that is an end token alone does not count: a text can always end."""
        return {*self.suppress, *({id for id, *more in self.bad_words if not more} - {*self.eos})}

    @property
    def bans(self) -> tuple[str, ...]:
        """The settings that make tokens impossible, as far as they do."""
        return tuple(name for name in _BANNING if getattr(self, name))

    def forced(self, *, first: bool, last: bool) -> int | None:
        """The id that must come next whatever the logits say, if there is one."""
        if last and self.forced_eos:
            return self.forced_eos[0]
        return self.forced_bos if first else None


def listed(names: Sequence[str]) -> str:
    """Names for people: a, b and c."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _flat(ids: Any) -> Iterator[int]:
    """The ids of a setting: one, or several, or words of several."""
    if isinstance(ids, tuple):
        for each in ids:
            yield from _flat(each)
    elif ids is not None:
        yield ids


def _without(ids: Any, unknown: set[int]) -> Any:
    """What is left of the ids of a setting, or of words, without those that hold an unknown one."""
    return tuple(each for each in ids if unknown.isdisjoint(_flat(each))) if isinstance(ids, tuple) else None


def _replaced(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings of a file that the caller's way of choosing takes the place of."""
    if "beams" in given:
        return _SEARCH if given["beams"] == 1 else (*_SEARCH, "temperature", "penalty_alpha")
    if given.get("temperature"):
        return (*_SEARCH, "penalty_alpha")
    return (*_SEARCH, "temperature") if given.get("penalty_alpha") else ()
