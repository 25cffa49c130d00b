"""Every registered family against transformers, on odd random models: the same numbers, to the bars of the project.

float32 logits within 1e-5 (largest difference over largest reference), loss and gradient norm within 1e-4, logits
through the cache within 1e-5 over 64 steps of a ragged batch, greedy tokens identical, tensors identical to the byte
in both directions. Whatever family is registered is tested here.
"""

from __future__ import annotations

from pathlib import Path

import odd
import pairs
import pytest
import torch
from pairs import Pair

import anyformer as af
from anyformer import families

pytest.importorskip("transformers")

SEEDS = range(4)
CASES = [(*known, seed) for known in odd.architectures() for seed in SEEDS]
SPECS = {case: families.named(case[0])("tiny", architectures=[case[1]]) for case in CASES}
DECODING = [case for case, spec in SPECS.items() if spec.decoder is not None]
GENERATING = [case for case in DECODING if SPECS[case].head.kind == "language_model"]


def named(case: tuple[str, str, int]) -> str:
    """What a case is called in a report."""
    return "-".join(map(str, case))


@pytest.fixture(scope="module", params=CASES, ids=named)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pairs.make(*request.param, tmp_path_factory.mktemp(request.param[1]))


def test_logits(pair: Pair) -> None:
    """A ragged batch, padded on the right: logits (or hidden states) within 1e-5."""
    assert pairs.logits(pair) < 1e-5


@pytest.mark.parametrize("pair", DECODING, indirect=True, ids=named)
def test_left_padding(pair: Pair) -> None:
    """The same batch padded on the left, for what decodes (transformers' encoders count such padding as positions)."""
    assert pairs.logits(pair, left=True) < 1e-5


def test_loss_and_gradients(pair: Pair) -> None:
    """The loss of random targets, and the norm of its gradient over all parameters, within 1e-4."""
    loss, norm = pairs.loss_and_gradients(pair)
    assert loss < 1e-4
    assert norm < 1e-4


@pytest.mark.parametrize("pair", GENERATING, indirect=True, ids=named)
def test_cached_logits(pair: Pair) -> None:
    """Fed 64 tokens one by one after prompts of different lengths, our cache gives transformers' uncached logits."""
    assert pairs.cached_logits(pair) < 1e-5


@pytest.mark.parametrize("pair", GENERATING, indirect=True, ids=named)
def test_greedy_tokens(pair: Pair) -> None:
    """Greedy decoding of a ragged batch writes the same tokens; where it does not, the two best logits are tied."""
    assert pairs.greedy_tokens(pair)


def test_saved_again_is_the_same(pair: Pair, tmp_path: Path) -> None:
    """What transformers saved and we save again is the same to the byte, and loads in transformers whole."""
    assert pairs.tensors_both_ways(pair, tmp_path)


@pytest.mark.parametrize(("family", "architecture", "seed"), CASES)
@torch.no_grad()
def test_ours_loads_there(family: str, architecture: str, seed: int, tmp_path: Path) -> None:
    """A model that was built here, saved, and loaded by transformers computes the same there."""
    spec = odd.odd_spec(families.named(family), seed, architecture)
    ours = af.build(spec, seed=seed).eval()
    ours.family, ours.generation = family, {"pad_token_id": 0}
    for parameter in ours.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    ours.save(tmp_path)
    theirs, told = getattr(odd.reference(), architecture).from_pretrained(tmp_path, output_loading_info=True)
    assert not told["unexpected_keys"] and not told["mismatched_keys"]
    pair = Pair(theirs.eval(), ours, tmp_path, theirs.config.pad_token_id or 0)
    assert pairs.logits(pair) < 1e-5
