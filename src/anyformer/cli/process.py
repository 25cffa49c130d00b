"""What the command line asks of its own process, and a library must not ask of its host's."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Keep freed memory for the next allocation instead of giving it back; whether this C library can.

    glibc maps every large block anew, and the kernel zeroes it page by page as it is touched: a pass over a long text
    spends up to a third of its time there. The memory of the process stays at its peak in return.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))


@contextmanager
def without_collecting() -> Iterator[None]:
    """Look for no garbage inside: what starts makes a million objects that stay, and to go through them time and again
    takes a quarter of a second."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
