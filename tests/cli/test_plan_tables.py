"""What `anyformer plan` prints, as people say it."""

from __future__ import annotations

import pytest

from anyformer.cli.plan_tables import duration


@pytest.mark.parametrize(
    ("hours", "says"),
    [
        (0.5 / 3600, "0.5 s"),
        (1 / 60, "1 minute"),
        (0.5, "30 minutes"),
        (1.0, "1 hour"),
        (1.001, "1 hour"),
        (24.0, "24 hours"),
        (49.0, "2.04 days"),
        (24 * 365.25 * 2, "2 years"),
    ],
)
def test_one_is_no_plural(hours: float, says: str) -> None:
    """Hours in the unit that fits them, which stands in the singular after a 1 as it is printed."""
    assert duration(hours) == says
