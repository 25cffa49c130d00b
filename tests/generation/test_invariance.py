"""Batch-invariant decoding: to the bit what a row gets alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_specs import odd_model

import anyformer as af
from anyformer import families
from anyformer.errors import InputError
from anyformer.generation import Answer, left_padded
from anyformer.model import Transformer, together
from anyformer.parts.kernels import native
from anyformer.text import byte_level

#: Every way to choose.
WAYS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.2},
    {"temperature": 1.0, "top_p": 0.9, "answers": 2},
    {"beams": 3, "answers": 2},
    {"beams": 4, "beam_groups": 2, "diversity_penalty": 0.5},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"prompt_lookup": 3},
]
#: Native throughout, and what is not: experts, angles that follow the length reached.
MODELS = ["llama:tiny", "gpt2:tiny", "gemma2:tiny", "t5:tiny", "bart:tiny"]


def model_of(name: str, dtype: torch.dtype = torch.bfloat16) -> Transformer:
    """A model that says different things after different prompts, and often ties in bfloat16."""
    return af.build(families.preset(name), seed=0, dtype=dtype).eval()  # type: ignore[arg-type]


def held(answers: list[Answer]) -> list[Any]:
    """All there is to say of answers."""
    return [(answer.tokens, answer.reason, answer.score) for answer in answers]


def in_batch_and_alone(model: Transformer, rows: list[list[int]], way: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Answers with log-probabilities of the likeliest, all rows together and each by itself."""
    ids, valid = left_padded(rows, 0, "cpu")
    valid = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
    how = {"logprobs": 3, "start": 1, "eos": [7], "pad": 0, "batch_invariant": True, **way}
    many, drawn = way.get("answers", 1), "temperature" in way
    seeds = list(range(100, 100 + len(rows) * many))
    each = model.answers(ids, valid=valid, seed=seeds if drawn else None, **how)
    alone = [
        answer
        for index, row in enumerate(rows)
        for answer in model.answers(
            torch.tensor([row]), seed=seeds[index * many : (index + 1) * many] if drawn else None, **how
        )
    ]
    return held(each), held(alone)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "+".join(way) or "greedy")
@pytest.mark.parametrize("name", MODELS)
def test_answers_and_their_logits_are_what_they_are_alone_to_the_bit(name: str, way: dict[str, Any]) -> None:
    """Of ragged batches, one row a token long: log-probabilities too, which are equal only where logits are."""
    model, draw = model_of(name), random.Random(3)
    rows = [[draw.randrange(8, 200) for _ in range(length)] for length in (9, 1, 30, 4)]
    batch, alone = in_batch_and_alone(model, rows, {"max_new_tokens": 5, **way})
    assert batch == alone


def test_rows_of_a_model_with_experts_go_alone() -> None:
    """Which are torch's own operations."""
    model = model_of("mixtral:tiny")
    batch, alone = in_batch_and_alone(model, [[9, 8, 7], [11], [40, 41]], {"max_new_tokens": 4, "temperature": 1.0})
    assert batch == alone


@settings(max_examples=6, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(["decoder", "encoder-decoder"]))
def test_any_model_keeps_its_rows_apart(draw: random.Random, shape: str) -> None:
    """Random ones, in either precision, with blocks, with a cache in 8 bits; up to twenty rows, some of them equal."""
    dtype = draw.choice([torch.float32, torch.bfloat16])
    model = af.build(odd_model(draw, shape), dtype=dtype, seed=draw.randrange(99)).eval()
    rows = [[draw.randrange(37) for _ in range(draw.randint(1, 14))] for _ in range(draw.choice([1, 3, 17]))]
    rows.append(rows[0])
    way = draw.choice([{}, {"temperature": 1.0, "typical_p": 0.9}, {"beams": 2}, {"repetition_penalty": 1.5}])
    cache = {"quantize_cache": draw.choice(["int8", None])}
    batch, alone = in_batch_and_alone(model, rows, {"max_new_tokens": 4, **way, **cache})
    assert batch == alone


@pytest.mark.parametrize("how", ["int8", "int4"])
def test_quantised_models_keep_their_rows_apart(how: str) -> None:
    """Their few rows are native too."""
    model = af.load("llama:tiny", device="cpu", quantize=how)  # type: ignore[arg-type]
    assert native.library() is None or model.rows_together(10) == native.FEW
    rows = [[random.Random(row).randrange(8, 200) for _ in range(3 + row)] for row in range(18)]
    batch, alone = in_batch_and_alone(model, rows, {"max_new_tokens": 5})
    assert batch == alone


@pytest.mark.skipif(native.library() is None, reason="the native kernels are not compiled here")
def test_who_steps_together() -> None:
    """Rows of native models, while attention cuts their keys alike; not experts, not a model with a hook, not one whose
    angles follow the length."""
    model = model_of("llama:tiny")
    assert model.rows_together(together.CUT_ALIKE) == native.FEW
    assert model.rows_together(together.CUT_ALIKE + 1) == 1
    assert model_of("mixtral:tiny").rows_together(10) == 1
    handle = model.decoder.layers[0].register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
    assert model.rows_together(10) == 1
    handle.remove()
    assert model.rows_together(10) == native.FEW
    assert model.double().rows_together(10) == 1


@pytest.mark.skipif(native.library() is None, reason="the native kernels are not compiled here")
def test_up_to_so_many_keys_others_that_are_hidden_change_nothing() -> None:
    """What `CUT_ALIKE` promises of the kernel, whatever stands behind a row's own keys."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, length, 32, generator=draw) for length in (1, together.CUT_ALIKE, together.CUT_ALIKE))
    with torch.no_grad():
        for own in (1, 63, 65, 300, 511):
            added = torch.zeros(1, 1, 1, together.CUT_ALIKE).index_fill_(
                3, torch.arange(own, together.CUT_ALIKE), -torch.inf
            )
            hidden = native.attention(q, k, v, added, None, 0.2, None)
            assert torch.equal(hidden, native.attention(q, k[:, :, :own], v[:, :, :own], None, None, 0.2, None))


def test_a_row_does_not_end_early_because_another_is_long() -> None:
    """Learned positions end the text of a long row alone."""
    model = model_of("gpt2:tiny", torch.float32)
    assert model.positions is not None
    rows = [[9] * (model.positions - 3), [9, 10]]
    batch, alone = in_batch_and_alone(model, rows, {"max_new_tokens": 12, "eos": []})
    assert batch == alone and [len(tokens) for tokens, *_ in batch] == [4, 12]


def test_texts_stream_side_by_side() -> None:
    """Piece by piece what `generate` gives at once; and a cache of several rows is refused."""
    model = af.build(families.llama("tiny", vocab_size=257), seed=1).eval()  # type: ignore[attr-defined]
    model.tokenizer = byte_level()
    texts = ["ab", "a longer one", ""]
    whole = model.generate(texts, max_new_tokens=8, batch_invariant=True)
    pieces = model.stream(texts, max_new_tokens=8, batch_invariant=True)
    assert ["".join(row) for row in zip(*pieces)] == whole
    with pytest.raises(InputError, match=r"rows of one cache depend on each other"):
        list(model.stream(texts, cache=model.new_cache(3), batch_invariant=True))
