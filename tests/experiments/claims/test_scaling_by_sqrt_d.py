"""The verdict on the factor 1/√d comes out each way, from weights whose saturation is known."""

from __future__ import annotations

import pytest
import torch

from anyformer.experiments.claims.scaling_by_sqrt_d import _softness, judge


@pytest.mark.parametrize(
    ("kept", "without", "trained", "word"),
    [
        (0.9, 1e-4, [0.10, 0.11, 0.12], "holds"),
        (0.9, 0.8, [0.10, 0.11, 0.12], "does not hold at this scale"),  # it does not vanish without
        (0.2, 1e-4, [0.10, 0.11, 0.12], "does not hold at this scale"),  # it vanishes with it too
        (0.9, 1e-4, [0.70, 0.95, 0.80], "unclear"),  # training undoes it
    ],
)
def test_verdict(kept: float, without: float, trained: list[float], word: str) -> None:
    """At initialisation it has to be so, and after training by more than the noise."""
    after = {"with": [0.8, 0.81, 0.82], "without": trained}
    numbers = {
        "widths": [4, 1024],
        "with": {"entropy": [0.9, kept], "slope": [1.0, kept]},
        "without": {"entropy": [0.8, without], "slope": [1.0, without]},
        "trained": {name: {"entropy": found, "slope": found, "loss": [2.0] * 3} for name, found in after.items()},
    }
    assert judge(numbers).word == word


def test_softness_is_that_of_the_softmax() -> None:
    """The derivative's length is that of the matrix that autograd finds; a choice of one has neither."""
    scores = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = torch.autograd.functional.jacobian(lambda x: x.softmax(-1), scores)
    found = _softness(scores.softmax(-1)[None], 1.0)
    assert isinstance(matrix, torch.Tensor)
    assert found["slope"] == pytest.approx(matrix.norm().item(), rel=1e-9)
    assert found["entropy"] == pytest.approx(torch.distributions.Categorical(logits=scores).entropy().item(), rel=1e-9)
    assert _softness(torch.tensor([[0.0, 1.0, 0.0]]), 1.0) == {"entropy": 0.0, "slope": 0.0}
