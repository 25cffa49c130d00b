"""What vocabularies share: merges that follow from ranks, special tokens around one text and two."""

from __future__ import annotations

from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from anyformer.text.building import around, merges_of

IDS = {"<s>": 0, "</s>": 1, "a": 2, "b": 3}


def test_every_pair_that_makes_a_token_merges_as_early_as_it_ranks() -> None:
    """All ways to part a token, the longest beginning first, but those with a part that is no token."""
    assert merges_of(["aa", "aaa", "aab"], {"a", "b", "aa", "aaa", "aab"}) == [
        ("a", "a"),
        ("aa", "a"),
        ("a", "aa"),
        ("aa", "b"),
    ]
    assert merges_of(["xy"], {"x", "xy"}) == []


def encoded(begin: str | None, end: str | None, **options: object) -> tuple[list[int], list[int], list[int]]:
    backend = Backend(models.WordLevel(IDS, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = around(IDS, begin, end, **options)  # pyright: ignore[reportArgumentType]
    single, pair = backend.encode("a"), backend.encode("a", "b")
    return single.ids, pair.ids, pair.type_ids


def test_tokens_stand_around_one_text_and_two() -> None:
    """Before, after, both, and between two texts; the second one is of another type unless it is told not to be."""
    assert encoded("<s>", None) == ([0, 2], [0, 2, 0, 3], [0, 0, 1, 1])
    assert encoded(None, "</s>") == ([2, 1], [2, 1, 3, 1], [0, 0, 1, 1])
    assert encoded("<s>", "</s>", second=("$B", "</s>")) == ([0, 2, 1], [0, 2, 1, 3, 1], [0, 0, 0, 1, 1])
    between = encoded("<s>", "</s>", second=("</s>", "$B", "</s>"), kind=0)
    assert between == ([0, 2, 1], [0, 2, 1, 1, 3, 1], [0] * 6)
    assert around(IDS, None, None) is None
