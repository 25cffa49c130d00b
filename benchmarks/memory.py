"""The peak memory of one training step: beside another model's, and beside what planning foretells.

    python benchmarks/memory.py --nanogpt PATH    # GPT-2 124M, 8,192 tokens a step; PATH: a clone of nanoGPT
    python benchmarks/memory.py                   # what planning foretells, and what is
    python benchmarks/memory.py --serving         # the same of answering: prompts as long as the context, then tokens

Each measurement is a process of its own on the CPU: the highest resident size of a whole step (forward, backward,
clipping, AdamW), after one short step that made the moments, less what the process held before there was the model,
but after a tiny one had taken a step: what libraries load and set up is none of the step's. The weights count, and so
do moments and gradients. Freed blocks go back to the system at once there (glibc's threshold for
that is held still), so that it is the step that is measured and not the allocator.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
MIB = 2**20
#: What is foretold and measured: a preset, and how a step of it goes.
CONFIGURATIONS: list[dict[str, Any]] = [
    {"preset": "gpt2:small", "rows": 2, "length": 1024},
    {"preset": "gpt2:small", "rows": 2, "length": 1024, "checkpoint_activations": True},
    {"preset": "llama:135m", "rows": 4, "length": 512},
    {"preset": "llama:135m", "rows": 4, "length": 512, "precision": "bfloat16"},
    {"preset": "bert:base", "rows": 8, "length": 256},
    {"preset": "t5:small", "rows": 4, "length": 512},
    {"preset": "modernbert:base", "rows": 2, "length": 1024},
    {"preset": "llama:135m", "rows": 2, "length": 512, "optimizer": "muon", "ema": True, "accumulates": True},
]


#: What answering takes, foretold and measured: how many sequences of what length at once, in which dtype.
SERVED: list[dict[str, Any]] = [
    {"preset": "gpt2:small", "context": 1024, "batch": 1, "dtype": "float32"},
    {"preset": "llama:135m", "context": 2048, "batch": 4, "dtype": "float32"},
    {"preset": "llama:135m", "context": 8192, "batch": 1, "dtype": "float32"},
    {"preset": "llama:135m", "context": 8192, "batch": 1, "dtype": "bfloat16"},
    {"preset": "bert:base", "context": 512, "batch": 8, "dtype": "float32"},
]


def resident(which: str) -> int:
    """Bytes of this process in memory: now (`VmRSS`), or at most (`VmHWM`)."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024


def forget_the_peak() -> None:
    """Have the highest resident size begin anew, at what it is now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_of_a_step(make: Callable[..., Callable[[int, int], None]], rows: int, length: int) -> int:
    """Bytes at the peak of `make()(rows, length)`, which takes one step, less those before there was a model."""
    make(tiny=True)(1, 16)
    gc.collect()
    before = resident("VmRSS")
    step = make(tiny=False)
    step(1, 16)
    forget_the_peak()
    step(rows, length)
    return resident("VmHWM") - before


def ours(options: dict[str, Any], tiny: bool) -> Callable[[int, int], None]:
    """A training step of a preset (or its family's tiny one), as the trainer takes it."""
    import torch

    from anyformer import families
    from anyformer.model import build
    from anyformer.spec.dropout import with_dropout
    from anyformer.training.averaging import Average
    from anyformer.training.optimizers import optimizers

    spec = families.preset(options["preset"].partition(":")[0] + ":tiny" if tiny else options["preset"])
    assert spec is not None
    model = build(with_dropout(spec, 0.0), seed=0).train()
    model.checkpoint_activations(options.get("checkpoint_activations", False))
    stepped = optimizers(options.get("optimizer", "adamw"), model, 0.1)
    average = Average(model, 0.999) if options.get("ema") else None
    narrow = options.get("precision") == "bfloat16"

    def step(rows: int, length: int) -> None:
        ids = torch.randint(0, spec.output.embeddings.vocabulary, (rows, length))
        source = {"source": ids} if spec.shape == "encoder-decoder" else {}
        for _ in range(1 + options.get("accumulates", False)):
            with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                loss = model(ids, targets=ids, **source).loss
            assert loss is not None
            loss.backward()
            del loss
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in stepped:
            optimizer.step()
        if average is not None:
            average.update(0)
        model.zero_grad(set_to_none=True)

    return step


def serving(options: dict[str, Any], tiny: bool) -> Callable[[int, int], None]:
    """A preset (or its family's tiny one) that answers: prompts read in pieces, then three tokens each."""
    import torch

    from anyformer import families
    from anyformer.generation import Prompts
    from anyformer.generation.decoding import read
    from anyformer.model import build

    spec = families.preset(options["preset"].partition(":")[0] + ":tiny" if tiny else options["preset"])
    assert spec is not None
    model = build(spec, dtype=getattr(torch, options["dtype"]), seed=0).eval()

    @torch.inference_mode()
    def answer(rows: int, length: int) -> None:
        ids = torch.randint(0, spec.output.embeddings.vocabulary, (rows, length))
        if spec.decoder is None:
            model(ids)
            return
        cache = model.new_cache(rows)
        read(model, Prompts(ids[:, :-3]), cache, more=3)
        for _ in range(3):
            model.next_logits(ids[:, :1], cache)

    return answer


def nanogpt(options: dict[str, Any], tiny: bool) -> Callable[[int, int], None]:
    """A training step of nanoGPT's GPT-2, as its train.py takes it on a CPU in float32, its AdamW fused as ours is."""
    import torch

    sys.path.insert(0, options["nanogpt"])
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    vocabulary = 50257
    size = {"n_layer": 1, "n_head": 2, "n_embd": 64} if tiny else {}
    model = GPT(GPTConfig(vocab_size=vocabulary, dropout=0.0, **size)).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step(rows: int, length: int) -> None:
        ids = torch.randint(0, vocabulary, (rows, length))
        _, loss = model(ids, ids)
        loss.backward()
        del _, loss
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measured(options: dict[str, Any]) -> int:
    """Bytes at the peak of a step, from a process of its own."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--measure", json.dumps(options)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return int(done.stdout.splitlines()[-1])


def measure(options: dict[str, Any]) -> None:
    """What the process of its own does."""
    # What importing takes, the optimizers' own imports included, is not the step's.
    for module in ("torch._dynamo", "anyformer.training"):
        importlib.import_module(module)

    make = nanogpt if "nanogpt" in options else serving if "batch" in options else ours
    rows, length = options.get("rows") or options["batch"], options.get("length") or options["context"]
    print(peak_of_a_step(partial(make, options), rows, length))


def foretold(options: dict[str, Any]) -> tuple[str, int]:
    """The moment of a step that takes the most, and the bytes it takes, as planning has it."""
    from anyformer import families
    from anyformer.planning import Step, peak
    from anyformer.spec.dropout import with_dropout

    spec = families.preset(options["preset"])
    assert spec is not None
    names = ("precision", "optimizer", "checkpoint_activations", "accumulates")
    given = {name: options[name] for name in names if name in options}
    average = options.get("ema", False)
    step = Step(rows=options["rows"], tokens=options["length"], packed=False, average=average, **given)
    return peak(with_dropout(spec, 0.0), step)


def beside_planning() -> None:
    """Every configuration, foretold and measured."""
    print("| model | step | at most at | foretold, MiB | measured, MiB | foretold / measured |")
    print("|---|---|---|---|---|---|")
    for options in CONFIGURATIONS:
        moment, planned = foretold(options)
        peak = measured(options)
        step = [f"{options['rows']} x {options['length']:,}", *(f"{k}" for k, v in options.items() if v is True)]
        step += [options[name] for name in ("precision", "optimizer") if name in options]
        what = ", ".join(step).replace("_", " ")
        figures = f"{planned / MIB:,.0f} | {peak / MIB:,.0f} | {planned / peak:.2f}"
        print(f"| {options['preset']} | {what} | {moment} | {figures} |")


def beside_serving() -> None:
    """Every load, foretold and measured."""
    from anyformer import families
    from anyformer.planning.serving import Load, serving_memory

    print("| model | sequences | foretold, MiB | measured, MiB | foretold / measured |")
    print("|---|---|---|---|---|")
    for options in SERVED:
        spec = families.preset(options["preset"])
        assert spec is not None
        load = Load(options["context"], options["batch"], options["dtype"])
        planned, peak = sum(serving_memory(spec, load).values()), measured(options)
        what = f"{load.batch} x {load.context:,}, {load.dtype}"
        print(f"| {options['preset']} | {what} | {planned / MIB:,.0f} | {peak / MIB:,.0f} | {planned / peak:.2f} |")


def beside_nanogpt(path: str) -> None:
    """GPT-2 124M in float32, 8 rows of 1,024 tokens."""
    step = {"rows": 8, "length": 1024}
    theirs = measured({**step, "nanogpt": path})
    kept = measured({**step, "preset": "gpt2:small"})
    again = measured({**step, "preset": "gpt2:small", "checkpoint_activations": True})
    logits = 8 * 1024 * 50257 * 4
    print("| GPT-2 124M, float32, AdamW, 8 x 1,024 tokens | MiB | below nanoGPT, MiB | in sizes of the logits |")
    print("|---|---|---|---|")
    for name, peak in (("nanoGPT's model", theirs), ("anyformer", kept), ("anyformer, layers computed again", again)):
        print(f"| {name} | {peak / MIB:,.0f} | {(theirs - peak) / MIB:,.0f} | {(theirs - peak) / logits:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", help="a clone of nanoGPT, to measure beside")
    parser.add_argument("--serving", action="store_true", help="of answering instead of training")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
    elif arguments.nanogpt:
        beside_nanogpt(arguments.nanogpt)
    elif arguments.serving:
        beside_serving()
    else:
        beside_planning()
