"""Compiles the native kernels with whatever C++17 compiler there is: one library, each kernel once an instruction set.

    python -m anyformer.parts.kernels.native.building        compile them where the package lies

`pip install` does the same (hatch_build.py at the root, which loads this file alone, so it imports nothing of ours). A
library is named after a hash of its sources, so that one built from others is never loaded.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent
#: Compiled once an instruction set, in a namespace of its name; everything else once.
KERNELS = (
    "kernels.cpp",
    "products.cpp",
    "linear.cpp",
    "experts.cpp",
    "heads.cpp",
    "attention.cpp",
    "rotary.cpp",
    "stream.cpp",
    "spans.cpp",
    "rows.cpp",
)
COMMON = ("library.cpp", "threads.cpp")
#: The least first: of a function that several of them share (one of the standard library's templates) the linker keeps
#: the first, which every machine can run.
_X86 = {
    "portable": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma", "-mf16c"),
}
_ARM: dict[str, tuple[str, ...]] = {"portable": (), "dotprod": ("-march=armv8.2-a+dotprod",)}
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden")


class CannotCompile(Exception):
    """Why there are no native kernels: no compiler, or what it says."""


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """The flags of each instruction set that this kind of machine may have."""
    known = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}
    return known.get(platform.machine().lower(), {"portable": ()})


def library_name() -> str:
    """The file name of a library of these very sources."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"), Path(__file__)]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return f"_kernels-{digest.hexdigest()[:16]}.so"


def compiler() -> list[str]:
    """The C++ compiler's command. Raises `CannotCompile` where there is none."""
    named = os.environ.get("CXX")
    if named:
        return shlex.split(named)
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise CannotCompile("there is no C++ compiler; install one (g++ or clang++), or name it in CXX")


def compile(directory: Path = SOURCES, extra: Sequence[str] = ()) -> Path:
    """Compile the library into a directory, in place of any other there; `extra` are flags for all of it.

    Raises `CannotCompile` with what the compiler says.
    """
    command, target = compiler(), directory / library_name()
    jobs = [(source, "library", ()) for source in COMMON]
    jobs += [(source, name, flags) for name, flags in instruction_sets().items() for source in KERNELS]
    with tempfile.TemporaryDirectory() as place:

        def one(job: tuple[str, str, tuple[str, ...]]) -> str:
            source, name, flags = job
            made = f"{place}/{name}-{source}.o"
            _run([*command, *_FLAGS, *flags, f"-DISA={name}", *extra, "-c", str(SOURCES / source), "-o", made])
            return made

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(one, jobs))
        made = f"{place}/library.so"
        _run([*command, "-shared", "-pthread", *extra, *objects, "-o", made])
        for old in directory.glob("_kernels-*.so"):
            old.unlink()
        aside = target.with_suffix(".aside")
        shutil.copy(made, aside)
        aside.replace(target)
    return target


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise CannotCompile(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode:
        raise CannotCompile(f"{shlex.join(command)} failed:\n{done.stderr.strip()}")


if __name__ == "__main__":
    try:
        print(compile())
    except CannotCompile as error:
        sys.exit(str(error))
