"""Where and when a run began, for people to read. What its bits depend on stands in its environment."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

#: Seconds that git is given to name the commit.
PATIENCE = 5


def circumstances() -> dict[str, Any]:
    """The time, the versions, the processor, and the commit that the current directory is at, if it is at one."""
    found = {
        "began": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "anyformer": metadata.version("anyformer"),
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    return {name: value for name, value in found.items() if value}


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty= with changes"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()


def _processor() -> str:
    """The processor's name, where the system tells; else what kind it is of."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
