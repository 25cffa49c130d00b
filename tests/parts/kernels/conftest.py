"""What tests of native kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from anyformer.parts.kernels import native
from anyformer.parts.kernels.native import building


@pytest.fixture(scope="module", params=building.instruction_sets())
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this machine has, by name; the best one again afterwards."""
    library = native.library()
    if library is None:
        pytest.skip("the native kernels are not compiled")
    best = library.anyformer_instructions()
    if not library.anyformer_use(request.param.encode()):
        pytest.skip(f"this machine has no {request.param}")
    yield request.param
    library.anyformer_use(best)
