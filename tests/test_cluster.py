"""docs/cluster.md is what planning says, and what it plans fits."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from anyformer.planning.time import step_time

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def cluster() -> ModuleType:
    """docs/cluster.py."""
    found = importlib.util.spec_from_file_location("cluster", DOCS / "cluster.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["cluster"] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(cluster: ModuleType) -> None:
    """Generated again it reads the same; if not: python docs/cluster.py."""
    assert (DOCS / "cluster.md").read_text(encoding="utf-8") == cluster.page(), "run: python docs/cluster.py"


def test_every_plan_fits_its_devices(cluster: ModuleType) -> None:
    """With room to spare; and 8, 64 and 1,024 devices are planned for."""
    assert {plan.mesh.devices for plan in cluster.PLANS} == {8, 64, 1024}
    assert all(cluster.fits(plan) for plan in cluster.PLANS)


def test_a_row_is_worked_out_from_its_step(cluster: ModuleType) -> None:
    """The first row's rate and days, from the seconds of its step."""
    plan = cluster.PLANS[0]
    device = cluster.DEVICES[plan.device]
    spec = cluster._spec(plan)
    time = step_time(spec, plan.step, device, micro_batches=plan.micro_batches, attained=cluster.ATTAINED)
    tokens = plan.rows * plan.tokens * plan.micro_batches * plan.mesh.rows
    row = next(line for line in cluster.page().splitlines() if line.startswith("| LLaMA 3 8B |"))
    assert f"| {tokens / time.seconds:,.0f} |" in row
    assert f"{plan.training_tokens / (tokens / time.seconds) / 86400:,.0f} days" in row
