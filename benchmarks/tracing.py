"""What looking inside costs: the same passes of one model never traced, of one whose traces are closed, and within
traces, in turn.

    python benchmarks/tracing.py [--rounds 7] [--dtype bfloat16] [--off]

SmolLM2-135M's shape with fresh weights, the same on both sides: a prompt of 512 tokens, and 48 tokens decoded after a
prompt of 128. Above 1: it takes longer than with the model that was never traced. The outputs are compared to the bit
before anything is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

import anyformer as af
from anyformer.cli.process import keep_freed_memory
from anyformer.inspection.bench import compare

PROMPT, CONTEXT, NEW = 512, 128, 48
#: What is looked at: nothing but the fact that there was a trace before, then more and more.
SITES = {
    "traced before": (),
    "one layer's weights": ("decoder.layers.15.attention.weights",),
    "the stream after each layer": ("decoder.layers.*.residual_after",),
    "all attention weights": ("decoder.layers.*.attention.weights",),
    "everything": ("**",),
}


@torch.no_grad()
def read(model: Any, ids: torch.Tensor, sites: tuple[str, ...]) -> torch.Tensor:
    """The prompt's logits."""
    with af.trace(model, *sites) if sites else nullcontext():
        return model(ids, last=True).logits


@torch.no_grad()
def decode(model: Any, ids: torch.Tensor, sites: tuple[str, ...]) -> torch.Tensor:
    """The last logits after tokens that come one by one."""
    cache = model.new_cache(1, capacity=CONTEXT + NEW)
    logits = model.next_logits(ids[:, :CONTEXT], cache)
    with af.trace(model, *sites) if sites else nullcontext():
        for _ in range(NEW):
            logits = model.next_logits(logits.argmax(-1, keepdim=True), cache)
    return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--off", action="store_true", help="measure only a model whose traces are closed")
    arguments = parser.parse_args()
    sites_by_name = dict([*SITES.items()][:1]) if arguments.off else SITES
    keep_freed_memory()
    untouched, traced = (
        af.build(af.families.preset("llama:135m"), seed=0, dtype=getattr(torch, arguments.dtype)).eval()
        for _ in range(2)
    )
    ids = torch.randint(0, untouched.vocabulary, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.dtype}")
    print("| work | looked at | times as long | lowest | highest |")
    print("|---|---|---|---|---|")
    for name, work in {f"prompt of {PROMPT}": read, f"{NEW} tokens after {CONTEXT}": decode}.items():
        wanted = work(untouched, ids, ())
        works: dict[str, Callable[[], object]] = {"never traced": partial(work, untouched, ids, ())}
        for looked, sites in sites_by_name.items():
            with af.trace(traced, "**.weights"):
                assert torch.equal(work(traced, ids, sites), wanted), f"{looked}: other bits"
            assert torch.equal(work(traced, ids, sites), wanted), f"{looked}: other bits"
            works[looked] = partial(work, traced, ids, sites)
        result = compare(works, arguments.rounds, warmups=1)
        for looked in sites_by_name:
            ratio = result.ratio("never traced", looked)
            print(f"| {name} | {looked} | {ratio.median:.3f} | {ratio.lowest:.3f} | {ratio.highest:.3f} |", flush=True)


if __name__ == "__main__":
    main()
