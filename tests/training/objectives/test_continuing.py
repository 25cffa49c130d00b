"""Going on with a text: from every token, or from a prefix that is seen whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objectives import assert_packed_is_separate, documents, tiny, windows_of

import anyformer as af
from anyformer.data import NO_TARGET
from anyformer.errors import TrainingError
from anyformer.model import Transformer
from anyformer.training import train
from anyformer.training.objectives import Prefix
from anyformer.training.state import read_metrics

LLAMA, T5 = tiny("llama:tiny", "prefix"), tiny("t5:tiny", "prefix")
lengths = st.lists(st.integers(1, 90), min_size=1, max_size=12)


@given(lengths, st.integers(0, 2**32))
def test_a_prefix_and_the_rest_are_the_document(lengths: list[int], seed: int) -> None:
    """For either shape every document of two tokens and more is parted somewhere, and only the rest is asked for."""
    windows = list(windows_of(lengths, 40, seed))
    wanted = [document for document in documents(windows) if len(document) > 1]
    decoder = Prefix(LLAMA).batch(windows, np.random.default_rng(seed)).inputs
    split = [torch.split(decoder[name][0], decoder["documents"][0]) for name in ("tokens", "targets")]
    for document, tokens, targets, prefix in zip(wanted, *split, decoder["prefix"][0], strict=True):
        assert 0 < prefix < len(document) and tokens.tolist() == document[:-1]
        assert targets.tolist() == [NO_TARGET] * (prefix - 1) + document[prefix:]
    both = Prefix(T5).batch(windows, np.random.default_rng(seed)).inputs
    sources, rest = (
        torch.split(both[name][0], both[lengths_of][0])
        for name, lengths_of in (("source", "source_documents"), ("targets", "documents"))
    )
    assert [a.tolist() + b.tolist() for a, b in zip(sources, rest, strict=True)] == wanted


@pytest.mark.parametrize("model", [LLAMA, T5])
def test_packed_is_separate(model: Transformer) -> None:
    """A packed batch has the loss and the gradients of its documents one by one, each with its own prefix."""
    windows = list(windows_of([30, 3, 60, 17, 1, 9], 64, 0))
    assert_packed_is_separate(model, Prefix(model).batch(windows, np.random.default_rng(3)))


def test_a_prefix_is_seen_in_both_directions_and_the_rest_is_not() -> None:
    """Changing the prefix's last token changes what its first gives; changing the last token of all changes nothing
    before it."""
    model = LLAMA.eval()
    tokens, inputs = torch.arange(97, 109)[None], {"documents": ((12,),), "prefix": ((5,),)}
    with torch.no_grad():
        plain = model(tokens, **inputs).logits
        early, late = tokens.clone(), tokens.clone()
        early[0, 4], late[0, 11] = 120, 120
        assert not torch.allclose(model(early, **inputs).logits[0, 0], plain[0, 0], atol=1e-4)
        torch.testing.assert_close(model(late, **inputs).logits[0, :11], plain[0, :11])
    LLAMA.train()


def test_generation_sees_the_prompt_as_its_prefix() -> None:
    """Cached steps give what passes without a cache give, whose prefix is the prompt; padded rows too."""
    model = LLAMA.eval()
    prompt = torch.tensor([[1, 2, 97, 98, 99], [97, 104, 105, 106, 107]])
    valid = torch.tensor([[False, False, True, True, True], [True] * 5])
    new = model.generate(prompt, valid=valid, max_new_tokens=6, eos=())
    for row, begin in ((0, 2), (1, 0)):
        ids = prompt[row, begin:].tolist()
        for token in new[row].tolist():
            seen = torch.tensor([5 - begin])
            assert int(model(torch.tensor([ids]), prefix=seen).logits[0, -1].argmax()) == token
            ids.append(token)
    LLAMA.train()


@pytest.mark.parametrize("preset", ["llama:tiny", "t5:tiny"])
def test_a_run_learns_and_loads(recipe: Any, preset: str) -> None:
    """From a recipe to a checkpoint of either shape; a decoder's says that it sees prefixes."""
    chosen = {**recipe(objective="prefix", steps=30, batch_tokens=512), "model": {"preset": preset}}
    result = train(chosen, progress=False)
    rows = read_metrics(result.directory / "metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    model = af.load(result.directory, device="cpu")
    assert model.sees_prefix == (preset == "llama:tiny")
    assert model.generate(["the king"], max_new_tokens=4)


def test_causal_needs_causal_layers(recipe: Any) -> None:
    """A model that sees prefixes would see what it is asked for."""
    with pytest.raises(TrainingError, match="needs attention of visibility 'causal' in every layer"):
        train({**recipe(), "model": {"spec": LLAMA.spec.model_dump(mode="json")}}, progress=False)
