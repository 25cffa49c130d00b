"""The verdict on the causal mask comes out each way."""

from __future__ import annotations

import pytest

from anyformer.experiments.claims.causal import judge


@pytest.mark.parametrize(
    ("changed", "cheat", "blind", "word"),
    [
        (0.0, 0.1, 5.0, "holds"),
        (0.01, 0.1, 5.0, "does not hold at this scale"),  # a past output saw the future
        (0.0, 1.5, 5.0, "unclear"),  # it did not learn to look
        (0.0, 0.1, 1.5, "unclear"),  # it did not need to look
    ],
)
def test_verdict(changed: float, cheat: float, blind: float, word: str) -> None:
    """Only a past output that changes refutes it; a model that does not cheat says nothing."""
    masked = {"changed": changed, "loss": 2.0, "loss_without_future": 2.0}
    unmasked = {"changed": 1.0, "loss": cheat, "loss_without_future": blind}
    assert judge({"masked": masked, "unmasked": unmasked}).word == word
