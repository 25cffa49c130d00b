"""Pieces of prompts: as many tokens as fit a bound of memory."""

from __future__ import annotations

import pytest

from anyformer import families, spec
from anyformer.planning.pieces import FEWEST, MOST, PIECE_BYTES, choosing, piece


def preset(name: str, **changed: object) -> spec.Transformer:
    family, size = name.split(":")
    return getattr(families, family)(size, **changed)


def test_a_short_prompt_is_one_large_piece() -> None:
    """Of a small model, at the beginning."""
    assert piece(preset("llama:135m"), 1, 0) == MOST


def test_pieces_shrink_as_the_cache_fills() -> None:
    """Each token looks at all before it: eight times as many keys, an eighth of the tokens, and never too few."""
    sizes = [piece(preset("llama:135m"), 1, before) for before in (0, 1 << 14, 1 << 15, 1 << 17, 1 << 24)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] > sizes[3] >= FEWEST == sizes[-1]


def test_a_window_keeps_pieces_large() -> None:
    """What it hides takes no place."""
    windowed = preset("mistral:7b", sliding_window=1024)
    assert piece(windowed, 1, 1 << 24) == piece(windowed, 1, 1 << 12)


@pytest.mark.parametrize(
    "name", ["bloom:560m", "gemma2:2b", "gpt_oss:20b", "t5:small", "llama:70b", "qwen3_moe:30b-a3b"]
)
def test_more_is_held_where_more_is_made(name: str) -> None:
    """Biases, scores, wide layers and many rows: smaller pieces than those of a small model alone."""
    described = preset(name)
    assert piece(described, 4, 1 << 15) <= piece(described, 1, 1 << 15) < piece(preset("llama:135m"), 1, 0)
    assert FEWEST * 4 * described.output.dim < PIECE_BYTES


def test_a_step_is_mostly_logits() -> None:
    """Of a large vocabulary, several tensors of them; a search sorts candidates besides, no more than there are."""
    described = preset("llama:135m")
    V = described.output.embeddings.vocabulary
    assert 16 * V < choosing(described, 9) < 17 * V
    assert (
        choosing(described, 9)
        < choosing(described, 9, 100)
        < choosing(described, 9, V)
        == choosing(described, 9, 2 * V)
    )
