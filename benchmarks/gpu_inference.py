"""Decoding on a GPU, here and in `transformers` at its best: random LLaMAs in bfloat16, interleaved.

    python benchmarks/gpu_inference.py [--shapes 1.2b,8b] [--batches 1,16,64] [--rounds 5] [--write]
    python benchmarks/gpu_inference.py --smoke

A round reads a prompt and decodes greedily; what decoding alone takes is the time after the first new token. The share
of the bandwidth is what a step must read (its weights once, each row's keys and values) over what a copy streams on the
same device. `transformers` runs its `generate` with a static cache, compiled, and where that fails eagerly on its own
cache: the table says which. `--write` records the table in RESULTS.md.

Without CUDA nothing is measured; `--smoke` then takes every way once, on a tiny shape, on the CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import transformers
from gpu import asked, place
from recorded import Line, record
from torch import Tensor

import anyformer as af
from anyformer import families, spec
from anyformer.inspection.bench import Comparison, Work, compare
from anyformer.inspection.bench.traffic import cache_bytes, step_weight_bytes
from anyformer.machine.rates import wait

OURS, TRANSFORMERS = "anyformer", "transformers"
#: Ids [B, new] that follow ids [B, T].
Decode = Callable[[Tensor, int], Tensor]

SHAPES = {"1.2b": "llama:1b", "8b": "llama:8b"}
SMOKE = {"tiny": "llama:tiny"}
#: Bytes that are copied to learn what a device streams, and how often.
COPIED, COPIES = 1 << 32, 20


def described(preset: str) -> spec.Transformer:
    found = families.preset(preset)
    assert found is not None
    return found


def streamed(device: torch.device, size: int) -> float:
    """Bytes a second, read and written, of a copy within a device's memory: the best of several rounds of copies that
    follow each other without the host."""
    source = torch.ones(size // 8, device=device)
    target = torch.empty_like(source)

    def copies() -> None:
        for _ in range(COPIES):
            target.copy_(source)
        wait(device)

    seconds = min(compare({"copy": copies}, rounds=5, warmups=1).seconds["copy"])
    return COPIES * 2 * source.numel() * source.element_size() / seconds


def here(model: af.Transformer) -> Decode:
    return lambda ids, new: model.generate(ids, max_new_tokens=new, temperature=0.0, eos=())


def there(preset: str, device: torch.device) -> tuple[str, Decode]:
    """The best way that transformers runs the same shape on a device, by name."""
    attributes = families.named(preset.partition(":")[0]).express(described(preset))
    config: Any = transformers.AutoConfig.for_model(**attributes)
    with torch.device(device):
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    model.generation_config = transformers.GenerationConfig()

    def decode(cache: str | None) -> Decode:
        @torch.inference_mode()
        def generate(ids: Tensor, new: int) -> Tensor:
            settings = transformers.GenerationConfig(
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                cache_implementation=cache,
            )
            found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            return found[:, ids.shape[1] :]

        return generate

    if device.type == "cuda":
        try:
            decode("static")(torch.zeros(1, 8, dtype=torch.long, device=device), 4)
            return "static cache, compiled", decode("static")
        except Exception as problem:  # of whatever kind a compiler of theirs has
            print(f"transformers cannot compile its static cache here ({type(problem).__name__}), so it runs eagerly")
    return "eager", decode(None)


def measure(sides: dict[str, Decode], work: Work, rounds: int, device: torch.device) -> tuple[Comparison, Comparison]:
    """Seconds of each side to its first new token, and from there to its last."""
    ids = work.ids.to(device)

    def timed(side: Decode, new: int) -> Callable[[], None]:
        def run() -> None:
            assert side(ids, new).shape == (work.batch, new)
            wait(ids.device)

        return run

    first = compare({name: timed(side, 1) for name, side in sides.items()}, rounds, warmups=2)
    whole = compare({name: timed(side, work.new_tokens) for name, side in sides.items()}, rounds, warmups=2)
    rest = {
        name: [max(all_ - one, 1e-9) for all_, one in zip(whole.seconds[name], first.seconds[name], strict=True)]
        for name in sides
    }
    return first, Comparison(rest)


def step_bytes(model: af.Transformer, work: Work) -> float:
    """What an average step must read."""
    middle = work.prompt_tokens + work.new_tokens // 2
    return step_weight_bytes(model, work.batch) + cache_bytes(model, work, middle)


def lines(
    name: str, model: af.Transformer, sides: dict[str, Decode], way: str, work: Work, rounds: int, rate: float, at: str
) -> list[Line]:
    """Tokens a second of reading and of decoding, with the share of the bandwidth that decoding reaches."""
    first, rest = measure(sides, work, rounds, model.device)
    steps, row = work.new_tokens - 1, f"{name} x{work.batch}"
    prompt = {side: first.rate(side, work.batch * work.prompt_tokens).median for side in sides}
    text = {side: rest.rate(side, work.batch * steps).median for side in sides}
    share = {side: rest.rate(side, steps * step_bytes(model, work) / rate).median for side in sides}
    said = {side: f"{text[side]:,.0f} ({share[side]:.0%})" for side in sides}
    beside = f"{TRANSFORMERS} ({way})"
    wanted = "80% of the bandwidth" if work.batch == 1 else ""
    return [
        Line(
            row,
            f"prefill of {work.prompt_tokens}, tokens/s, {at}",
            f"{prompt[OURS]:,.0f}",
            beside,
            f"{prompt[TRANSFORMERS]:,.0f}",
            first.ratio(OURS, TRANSFORMERS),
        ),
        Line(
            row,
            f"decode of {steps}, tokens/s (share of {rate / 1e9:,.0f} GB/s), {at}",
            said[OURS],
            beside,
            said[TRANSFORMERS],
            rest.ratio(OURS, TRANSFORMERS),
            wanted,
        ),
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--batches", default="1,16,64")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=257, help="tokens that are decoded, the first among them")
    found = asked(parser, arguments, "a tiny shape on the CPU: does every way work?")
    if found is None:
        return
    given, device = found
    shapes = SMOKE if given.smoke else {name: SHAPES[name] for name in given.shapes.split(",")}
    prompt, new, rounds = (8, 5, 1) if given.smoke else (given.prompt, given.new, given.rounds)
    batches = [1, 2] if given.smoke else [int(batch) for batch in given.batches.split(",")]
    at = place(device)
    rate = streamed(device, COPIED >> 8 if given.smoke else COPIED)
    for name, preset in shapes.items():
        model = af.build(described(preset), dtype=torch.bfloat16, device=device, seed=0).eval()
        way, reference = there(preset, device)
        sides = {OURS: here(model), TRANSFORMERS: reference}
        for batch in batches:
            work = Work(model.vocabulary, prompt, new, batch)
            made = lines(name, model, sides, way, work, rounds, rate, at)
            for line in made:
                print(line.markdown(), flush=True)
            if given.write:
                record(made, "decoding on GPUs")
        del model, reference, sides


if __name__ == "__main__":
    main()
