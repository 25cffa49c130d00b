"""What the benchmarks on a GPU share: how they are asked, and where they run."""

from __future__ import annotations

import argparse

import torch
import transformers


def asked(
    parser: argparse.ArgumentParser, arguments: list[str] | None, smoke: str
) -> tuple[argparse.Namespace, torch.device] | None:
    """What was asked for on the command line, and the device; None where there is none to measure, which is said.

    `smoke` says what `--smoke` does.
    """
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="record the table in RESULTS.md")
    parser.add_argument("--smoke", action="store_true", help=smoke)
    given = parser.parse_args(arguments)
    if given.smoke and given.write:
        raise SystemExit("--smoke measures nothing that is worth keeping; leave --write out")
    if not given.smoke and not torch.cuda.is_available():
        print("there is no CUDA device here, so nothing is measured; --smoke tries the ways on the CPU")
        return None
    transformers.utils.logging.set_verbosity_error()
    return given, torch.device("cpu" if given.smoke else "cuda")


def place(device: torch.device) -> str:
    """Where a figure was measured: the chip, and the versions that it depends on."""
    chip = "this CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return f"{chip}, torch {torch.__version__}, transformers {transformers.__version__}"
