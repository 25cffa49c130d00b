"""The memory that a model takes of each process while it is made, before the first step.

    python benchmarks/beginning.py --preset llama:135m --processes 1 2 4

Processes on this machine's CPU (gloo), each of which makes its shard: drawn anew, and read from a checkpoint that was
saved before. Measured is the highest resident size of a process, less what it held when it had made a tiny model the
same way. The bytes of a file that it reads count, although the system may take them back at any time.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memory import MIB, forget_the_peak, resident


def made(tiny: dict[str, Any], begins: dict[str, Any]) -> dict[str, int]:
    """Bytes at the peak of making a model (`model` of a recipe), and those of its weights here when it is made; after
    a tiny one was made the same way."""
    from anyformer import text
    from anyformer.model.laid import local
    from anyformer.training.prepare import starting_model
    from anyformer.training.recipe import read_recipe
    from anyformer.training.scale.ranks import joined

    training = {"steps": 1, "batch_tokens": 4096, "sequence_length": 64}
    recipe = {"run": {"directory": "run"}, "data": {"train": "texts"}, "training": training}
    peaks = {}
    with joined(read_recipe({**recipe, "model": begins}).scale) as ranks:
        for chosen in (tiny, begins):
            gc.collect()
            before = resident("VmRSS")
            forget_the_peak()
            model = starting_model(read_recipe({**recipe, "model": chosen}), text.byte_level(), ranks=ranks)
            share = sum(local(parameter).nbytes for parameter in model.parameters())
            peaks = {"peak": resident("VmHWM") - before, "share": share}
    return peaks


def measured(models: Sequence[dict[str, Any]], count: int) -> dict[str, int]:
    """The same of the process that takes most of `count`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    still = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--measure", json.dumps(models)],
            env={**os.environ, **common, **still, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    said = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    return max(said, key=lambda each: each["peak"])


def main() -> None:
    import anyformer as af
    from anyformer import text

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="llama:135m")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(made(*arguments.measure)))
        return
    with tempfile.TemporaryDirectory() as place:
        drawn, saved = [], []
        for preset in ("llama:tiny", arguments.preset):
            model = af.load(preset)
            model.tokenizer = text.byte_level()
            drawn.append({"spec": model.spec.model_dump(mode="json")})
            saved.append({"from": str(Path(place) / preset.replace(":", "-"))})
            model.save(saved[-1]["from"])
        largest = max(parameter.nbytes for parameter in model.parameters())
        print(f"{arguments.preset}, float32; its largest parameter has {largest / MIB:,.0f} MiB\n")
        print("| the model | processes | weights of each, MiB | at most, MiB |")
        print("|---|---|---|---|")
        for name, models in (("drawn anew", drawn), ("from a file", saved)):
            for count in arguments.processes:
                found = measured(models, count)
                print(f"| {name} | {count} | {found['share'] / MIB:,.0f} | {found['peak'] / MIB:,.0f} |")


if __name__ == "__main__":
    main()
