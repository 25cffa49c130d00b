"""Compiling the native kernels: under sanitizers, without a compiler, and only from these sources."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from anyformer.parts.kernels.native import building, loading

#: What runs under the sanitizers.
EVERY_KERNEL = Path(__file__).with_name("every_kernel.py")


@pytest.mark.skipif(platform.system() != "Linux", reason="sanitizers are preloaded as Linux does it")
def test_no_kernel_touches_what_is_not_its_own(tmp_path: Path) -> None:
    """Under AddressSanitizer and UndefinedBehaviorSanitizer, on threads of its own."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g", "-DOWN_THREADS")
    library = building.compile(tmp_path, flags)
    asan = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    environment = os.environ | {
        "LD_PRELOAD": asan,
        "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0",
        "OMP_NUM_THREADS": "2",
    }
    command = [sys.executable, str(EVERY_KERNEL), str(library)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "sound", done.stderr[-3000:]


def test_a_compiler_that_is_missing_or_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence, with what the compiler said; nothing is left in the directory."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(building.CannotCompile, match="no-such-compiler cannot be run"):
        building.compile(tmp_path)
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(building.CannotCompile, match="failed"):
        building.compile(tmp_path)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(building.CannotCompile, match="no C\\+\\+ compiler; install one"):
        building.compile(tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_kernels_everything_runs_on_torch_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning that tells how to make them; the same text comes out."""
    code = (
        "import warnings, torch, anyformer as af\n"
        "from anyformer.parts.kernels.native import building, loading\n"
        "building.library_name = lambda: 'none'\n"
        "model = af.build(af.families.llama('tiny'), seed=0)\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    new = model.generate(torch.arange(1, 9)[None], max_new_tokens=8)\n"
        "print(len([each for each in said if 'native kernels were not compiled' in str(each.message)]), new.tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    count, _, ids = done.stdout.strip().partition(" ")
    import torch

    import anyformer as af

    model = af.build(af.families.llama("tiny"), seed=0)
    assert count == "1" and str(model.generate(torch.arange(1, 9)[None], max_new_tokens=8).tolist()) == ids


def test_a_library_of_other_sources_is_not_loaded() -> None:
    """The name is a hash of the sources, and the one that is loaded is that of these."""
    assert loading.library() is not None
    assert Path(loading.library()._name).name == building.library_name()  # type: ignore[union-attr]
