"""The table of splits: the library's own splitters agree with it, and no split loses text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from anyformer.text.bytelevel import words
from anyformer.text.splits import SPLITS

GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
#: What the models' tokenizer.json files are made of, where that is not a pattern.
BUILT = {
    "gpt-2": GPT2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
    "falcon": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            GPT2,
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    ),
}


def split(name: str, text: str) -> list[str]:
    return [text[begin:end] for _, (begin, end) in words(*SPLITS[name].patterns).pre_tokenize_str(text)]


@pytest.mark.parametrize("name", BUILT)
def test_patterns_split_like_the_librarys_own_parts(name: str, hard_texts: list[str]) -> None:
    """GPT-2's pattern, single digits, and Falcon's punctuation give the very pieces that built-in splitters give."""
    for each in hard_texts:
        assert words(*SPLITS[name].patterns).pre_tokenize_str(each) == BUILT[name].pre_tokenize_str(each)


@pytest.mark.parametrize("name", SPLITS)
@given(text=st.text(alphabet=st.one_of(st.sampled_from("aB1 \n\t'.,é日"), st.characters(codec="utf-8")), max_size=40))
@settings(max_examples=40, deadline=None)
def test_no_split_loses_text(name: str, text: str) -> None:
    """Every pattern is valid, and its pieces laid end to end are the text."""
    assert "".join(split(name, text)) == text


def test_words_fall_where_the_models_split_them() -> None:
    """One line by hand for the splits that most models share."""
    names = ("llama-bpe", "gpt-2", "smollm", "qwen2", "gpt-4o")
    found = {name: split(name, "It's 1234 +=   x") for name in names}
    assert found["llama-bpe"] == ["It", "'s", " ", "123", "4", " +=", "  ", " x"]
    assert found["gpt-2"] == ["It", "'s", " 1234", " +=", "  ", " x"]
    assert found["smollm"] == ["It", "'s", " ", "1", "2", "3", "4", " +=", "  ", " x"]
    assert found["qwen2"] == ["It", "'s", " ", "1", "2", "3", "4", " +=", "  ", " x"]
    assert found["gpt-4o"] == ["It's", " ", "123", "4", " +=", "  ", " x"]
    assert split("gpt-4o", "camelCaseHTML") == ["camel", "Case", "HTML"]
    assert split("tekken", "camelCase 12's") == ["camel", "Case", " ", "1", "2", "'s"]
    assert split("deepseek-v3", "日本語12345") == ["日本語", "123", "45"]
