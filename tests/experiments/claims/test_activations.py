"""Of gates: judged by its numbers, in every way; and equal parameters are equal."""

from __future__ import annotations

import pytest

from anyformer.experiments.claims.activations import DIM, GATED, PLAIN, judge


def numbers(swiglu: float, geglu: float, noise: float) -> dict:
    """Three seeds of plain ones at 2, gated ones above by so much, more and less with the noise."""
    gated = {"SwiGLU": swiglu, "GEGLU": geglu}
    losses = {name: [2.0, 2.0, 2.0] for name in PLAIN}
    return {"losses": losses | {name: [2 + by, 2 + by + noise, 2 + by - noise] for name, by in gated.items()}}


@pytest.mark.parametrize(
    ("numbers", "word"),
    [
        (numbers(-0.1, -0.1, 0.001), "holds"),
        (numbers(-0.1, 0.1, 0.001), "does not hold at this scale"),
        (numbers(-0.1, -0.1, 0.5), "unclear"),
        (numbers(-0.1, 0.0001, 0.001), "unclear"),
    ],
)
def test_each_verdict(numbers: dict, word: str) -> None:
    """Holds where every gated one beats every plain one by more than the noise, not where one is beaten so."""
    assert judge(numbers).word == word


def test_gated_and_plain_hold_as_many_numbers() -> None:
    """To the last one."""
    assert len({sum(one.parameters(DIM).values()) for one in (PLAIN | GATED).values()}) == 1
