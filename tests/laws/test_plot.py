"""The picture of a law."""

from __future__ import annotations

import numpy as np
import pytest

from anyformer.laws import Runs, isoflop
from anyformer.laws.plot import svg


def runs(*sizes_of_budgets: int) -> Runs:
    """So many sizes of each budget, the middle one the best."""
    parameters, tokens, losses = [], [], []
    for index, sizes in enumerate(sizes_of_budgets):
        for step in np.linspace(-1, 1, sizes):
            parameters.append(10 ** (5 + index + step))
            tokens.append(10 ** (12 + 2 * index) / 6 / parameters[-1])
            losses.append(4 - 0.5 * index + 0.2 * step**2)
    return Runs(np.array(parameters), np.array(tokens), np.array(losses))


@pytest.mark.parametrize(("sizes", "curves", "says"), [((5, 5), 2, False), ((5, 3), 1, True), ((3, 3), 0, True)])
def test_runs_that_no_curve_goes_through_are_named(sizes: tuple[int, int], curves: int, says: bool) -> None:
    """Grey points have their line in the legend, where there are any: runs of budgets with too few sizes."""
    drawn = runs(*sizes)
    found = isoflop(drawn, samples=10)
    assert len(found.parabolas) == curves
    assert ("runs on no curve" in svg(drawn, found)) == says
