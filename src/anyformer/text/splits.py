"""How byte-level BPE vocabularies split text into words before they merge bytes, by the name GGUF files give it.

The patterns are those of the models' own tokenizer.json files; each of a split's patterns divides what the ones before
it left whole. A wrong split gives wrong tokens without any sign of it, so an unknown name is refused.
"""

from __future__ import annotations

from typing import NamedTuple

from anyformer.errors import TextError


class Split(NamedTuple):
    """What to know of a vocabulary besides its tokens and merges.

    `patterns`: regular expressions (Oniguruma's dialect) whose matches become words of their own.
    `compose`: text is brought into Unicode's composed form (NFC) first.
    `whole_words`: a word that is a token is taken as it is, whatever the merges say.
    `begins`: the beginning-of-text token is added where the file does not say.
    """

    patterns: tuple[str, ...]
    compose: bool = False
    whole_words: bool = False
    begins: bool = False


_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _tiktoken(
    digits: str,
    *,
    contraction: str = _ENGLISH + "|",
    word: str = r"[^\r\n\p{L}\p{N}]?\p{L}+",
    symbols: str = r" ?[^\s\p{L}\p{N}]+[\r\n]*",
) -> str:
    """The family of patterns that began with GPT-4's cl100k: contractions, words, digits, symbols, white space."""
    return f"{contraction}{word}|{digits}|{symbols}|{_SPACES}"


#: GPT-2's pattern (Radford et al. 2019).
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
#: Llama 3's: words keep one leading symbol, digits come in threes.
LLAMA3 = _tiktoken(r"\p{N}{1,3}")
_QWEN2 = _tiktoken(r"\p{N}")
_QWEN35 = _tiktoken(r"\p{N}", word=r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", symbols=r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*")

#: Words in camel case come apart: upper-case letters, then lower-case ones (o200k of GPT-4o, and Mistral's Tekken).
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD, _PATH = r"[^\r\n\p{L}\p{N}]?", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"


def _camel(ending: str) -> str:
    return f"{_LEAD}{_UPPER}*{_LOWER}+{ending}|{_LEAD}{_UPPER}+{_LOWER}*{ending}"


_O200K = _tiktoken(r"\p{N}{1,3}", contraction="", word=_camel(_ENGLISH + "?"), symbols=_PATH)
_TEKKEN = _tiktoken(r"\p{N}", contraction="", word=_camel(""), symbols=_PATH)

_DIGIT = r"\p{N}"
_DIGITS_BY_THREE = r"[0-9][0-9][0-9]"
_HAN = "[一-龥ࠀ-一가-퟿]+"
#: The letters of DeepSeek's first vocabularies: those with case, but for the ranges that its list leaves out.
_CASED = (
    r"[\p{Lu}\p{Ll}\p{Lt}&&[^\x{0560}-\x{0588}\x{10C7}\x{10CD}\x{10D0}-\x{10FF}\x{1C80}-\x{1C8A}\x{2D00}-\x{2D2D}"
    r"\x{A790}-\x{A7FA}\x{AB30}-\x{AB68}\x{10570}-\x{105BC}\x{10D50}-\x{10D85}\x{16E40}-\x{16E7F}\x{1D400}-\x{1D7CB}"
    r"\x{1DF00}-\x{1DF2A}]]"
)
_DEEPSEEK3_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"

_BY_NAME = {
    "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe a.x-4.0 mellum gigachat "
    "exaone4 jais trillion granite-docling": Split((GPT2,)),
    "mpt olmo modern-bert": Split((GPT2,), compose=True),
    "starcoder refact smollm codeshell exaone minerva-7b mellum2": Split((_DIGIT, GPT2)),
    "command-r": Split((_DIGIT, GPT2), compose=True),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": Split(
        (LLAMA3,), whole_words=True, begins=True
    ),
    "dbrx smaug-bpe chatglm-bpe": Split((LLAMA3,)),
    "glm4 glm5": Split((LLAMA3,), whole_words=True),
    "qwen2 megrez": Split((_QWEN2,), compose=True),
    "stablelm2 deepseek-r1-qwen hunyuan solar-open kormo f2llmv2 grok-2": Split((_QWEN2,)),
    "qwen35": Split((_QWEN35,)),
    "seed-coder": Split((_tiktoken(r"\p{N}", symbols=r" ?[^\s\p{L}\p{N}\r\n]+"),)),
    "minicpm5": Split((r"\p{N}{1,3}", _tiktoken(r"\p{N}+")), whole_words=True),
    "gpt-4o llama4 kanana2 minimax-m2": Split((_O200K,)),
    "tekken": Split((_TEKKEN,), whole_words=True, begins=True),
    "falcon": Split((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, _DIGITS_BY_THREE)),
    "default": Split((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", _DIGITS_BY_THREE)),
    "deepseek-llm": Split((r"[\r\n]", rf"\s?{_CASED}+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _HAN, r"\p{N}+")),
    "deepseek-coder": Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, _DIGIT)),
    "deepseek-v3 hunyuan-dense joyai-llm": Split((r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3_WORDS)),
    "bloom gpt3-finnish poro-chat": Split((_BLOOM,)),
    "viking": Split((_BLOOM, _DIGIT)),
}

#: Every split by the name that GGUF files use for it (`tokenizer.ggml.pre`).
SPLITS = {name: split for names, split in _BY_NAME.items() for name in names.split()}


def find_split(name: str) -> Split:
    """The split called `name`. Raises `TextError` that lists the known names."""
    if name not in SPLITS:
        raise TextError(
            f"the vocabulary's pre-tokenizer '{name}' is unknown here; known ones: {', '.join(sorted(SPLITS))}"
        )
    return SPLITS[name]
