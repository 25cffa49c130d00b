"""What `batch_invariant` costs: prompts and decoding of llama:135m in bfloat16, with it and without, in turn.

    python benchmarks/invariance.py [--rounds 3] [--new 32]

Fresh weights, random prompts of one length, no end. Texts that end beyond 512 tokens take their steps one by one.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch

import anyformer as af
from anyformer.cli.process import keep_freed_memory
from anyformer.generation import Prompts, Settings, decode
from anyformer.inspection.bench import Comparison, interleave
from anyformer.inspection.bench.comparing import Lap
from anyformer.model import Transformer

#: Prompts at a time, and tokens of each.
WORKS = ((1, 128), (4, 128), (16, 128), (4, 512))


def answer(model: Transformer, prompts: Prompts, settings: Settings, lap: Lap) -> None:
    """Say all, with a lap at the end of the prompts."""
    for step, _ in enumerate(decode(model, prompts, settings, None)):
        if step == 0:
            lap()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=32)
    arguments = parser.parse_args()
    keep_freed_memory()
    model = af.build(af.families.llama("135m"), dtype=torch.bfloat16, seed=0).eval()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| texts | work | tokens/s | batch-invariant | times as long | lowest | highest |")
    print("|---|---|---|---|---|---|---|")
    for rows, length in WORKS:
        prompts = Prompts(torch.randint(1000, (rows, length), generator=torch.Generator().manual_seed(0)))
        ways = {
            name: partial(
                answer, model, prompts, Settings(max_new_tokens=arguments.new, batch_invariant=name == "alike")
            )
            for name in ("plain", "alike")
        }
        laps = interleave(ways, arguments.rounds, warmups=1)
        parts = {
            f"prompts of {length}": (rows * length, {name: [its[0] for its in laps[name]] for name in laps}),
            f"{arguments.new} tokens after {length}": (
                rows * (arguments.new - 1),
                {name: [its[-1] - its[0] for its in laps[name]] for name in laps},
            ),
        }
        for work, (tokens, seconds) in parts.items():
            compared = Comparison(seconds)
            rates = " | ".join(f"{compared.rate(name, tokens).median:,.0f}" for name in ("plain", "alike"))
            ratio, low, high = compared.ratio("plain", "alike")
            print(f"| {rows} | {work} | {rates} | {ratio:.2f} | {low:.2f} | {high:.2f} |", flush=True)


if __name__ == "__main__":
    main()
