"""A training step on a GPU, here, in nanoGPT's architecture and in `transformers`: bfloat16, compiled, interleaved.

    python benchmarks/gpu_training.py [--nanogpt nanoGPT] [--shapes 124m,350m,1.2b] [--rounds 5] [--write]
    python benchmarks/gpu_training.py --smoke

Every side trains with float32 weights, bfloat16 autocast and fused AdamW on the same rows. nanoGPT's architecture is
read from a clone, or as it stands below; beside a LLaMA it is as deep and wide as that, so there the shares of the
device's peak compare, not the tokens. MFU is a model's own FLOPs, attention counted exactly and nothing computed twice,
over what the device's data sheet promises in bfloat16. `--write` records the table in RESULTS.md.

Without CUDA nothing is measured; `--smoke` then takes every way once, on tiny shapes, on the CPU, uncompiled.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from gpu import asked, place
from recorded import Line, record
from torch import Tensor, nn

import anyformer as af
from anyformer import families, spec
from anyformer.inspection.bench import Comparison, Spread, compare, spread
from anyformer.machine.rates import wait
from anyformer.planning import forward_flops
from anyformer.planning.devices import DEVICES
from anyformer.training.compiling import compile_regions
from anyformer.training.optimizers import optimizers, set_learning_rate
from anyformer.training.watching.peak import matrix_rate

OURS, NANOGPT, TRANSFORMERS = "anyformer", "nanoGPT's model", "transformers"
#: A step, which does not wait for the device.
Step = Callable[[], Any]


@dataclass(frozen=True)
class Shape:
    """A preset, and the rows of a step."""

    preset: str
    rows: int
    context: int

    @property
    def tokens(self) -> int:
        return self.rows * self.context

    @property
    def spec(self) -> spec.Transformer:
        found = families.preset(self.preset)
        assert found is not None
        return found

    @property
    def plain(self) -> spec.Transformer:
        """nanoGPT's architecture, as deep and as wide."""
        stack = self.spec.output
        heads = next(mixer.heads for mixer in stack.attentions())
        return families.named("gpt2")(
            "small",
            n_layer=stack.depth,
            n_embd=stack.dim,
            n_head=heads,
            n_positions=self.context,
            vocab_size=stack.embeddings.vocabulary,
        )

    def flops(self, side: str) -> float:
        """FLOPs of a step."""
        described = self.plain if side == NANOGPT else self.spec
        return 3 * self.rows * sum(forward_flops(described, self.context).values())


SHAPES = {
    "124m": Shape("gpt2:small", 32, 1024),
    "350m": Shape("gpt2:medium", 16, 1024),
    "1.2b": Shape("llama:1b", 8, 2048),
}
SMOKE = {"gpt2": Shape("gpt2:tiny", 2, 32), "llama": Shape("llama:tiny", 2, 32)}


class PlainBlock(nn.Module):
    """nanoGPT's block: norm first, one product for queries, keys and values, four times the width between."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.attention, self.output = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.attention(self.norms[0](x)).chunk(3, -1)
        )
        x = x + self.output(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Plain(nn.Module):
    """nanoGPT's model, in plain torch: learned positions, tied head, all logits at once."""

    def __init__(self, described: spec.Transformer, context: int) -> None:
        super().__init__()
        stack = described.output
        heads = next(mixer.heads for mixer in stack.attentions())
        self.tokens = nn.Embedding(stack.embeddings.vocabulary, stack.dim)
        self.positions = nn.Embedding(context, stack.dim)
        self.blocks = nn.Sequential(*(PlainBlock(stack.dim, heads) for _ in range(stack.depth)))
        self.norm = nn.LayerNorm(stack.dim)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else None

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        logits = F.linear(self.norm(self.blocks(x)), self.tokens.weight)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def stepping(model: nn.Module, loss: Callable[[], Tensor], made: list[Any]) -> Step:
    """Forward and backward pass, clipping, an update."""
    parameters = list(model.parameters())

    def step() -> None:
        with torch.autocast(parameters[0].device.type, torch.bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in made:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return step


def ours(shape: Shape, device: torch.device, tokens: Tensor, targets: Tensor) -> Step:
    model = af.build(shape.spec, device=device, seed=0).train()
    compile_regions(model, device.type == "cuda", device)
    made = optimizers("adamw", model, 0.1)
    set_learning_rate(made, 1e-4)
    return stepping(model, lambda: model(tokens, targets=targets).loss, made)


def theirs(model: nn.Module, loss: Callable[[Any], Tensor], device: torch.device) -> Step:
    """A model of another project, compiled whole."""
    model = model.to(device).train()
    called = torch.compile(model) if device.type == "cuda" else model
    made = [torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)]
    return stepping(model, lambda: loss(called), made)


def nanogpt(shape: Shape, device: torch.device, tokens: Tensor, targets: Tensor, source: Path | None) -> Step:
    described = shape.plain
    if source is None:
        model: nn.Module = Plain(described, shape.context)
    else:
        sys.path.insert(0, str(source))
        from model import GPT, GPTConfig  # type: ignore[import-not-found]

        stack = described.output
        heads = next(mixer.heads for mixer in stack.attentions())
        with contextlib.redirect_stdout(None):
            model = GPT(
                GPTConfig(
                    block_size=shape.context,
                    vocab_size=stack.embeddings.vocabulary,
                    n_layer=stack.depth,
                    n_head=heads,
                    n_embd=stack.dim,
                )
            )
    return theirs(model, lambda called: called(tokens, targets)[1], device)


def reference(shape: Shape, device: torch.device, tokens: Tensor, targets: Tensor) -> Step:
    attributes = families.named(shape.preset.partition(":")[0]).express(shape.spec)
    config = transformers.AutoConfig.for_model(**attributes)
    for dropout in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, dropout):
            setattr(config, dropout, 0.0)
    config.use_cache = False
    model = transformers.AutoModelForCausalLM.from_config(config)
    # It shifts labels by itself.
    labels = torch.cat((tokens[:, :1], targets[:, :-1]), 1)
    return theirs(model, lambda called: called(input_ids=tokens, labels=labels).loss, device)


def measure(shape: Shape, device: torch.device, rounds: int, steps: int, source: Path | None) -> Comparison:
    """Seconds of so many steps of each side."""
    vocabulary = shape.spec.output.embeddings.vocabulary
    stream = torch.randint(0, vocabulary, (shape.rows, shape.context + 1), device=device)
    batch = stream[:, :-1].contiguous(), stream[:, 1:].contiguous()
    sides = {
        OURS: ours(shape, device, *batch),
        NANOGPT: nanogpt(shape, device, *batch, source),
        TRANSFORMERS: reference(shape, device, *batch),
    }

    def work(step: Step) -> Callable[[], None]:
        def run() -> None:
            for _ in range(steps):
                step()
            wait(device)

        return run

    return compare({name: work(step) for name, step in sides.items()}, rounds, warmups=1)


def lines(name: str, shape: Shape, found: Comparison, steps: int, peak: float, where: str) -> list[Line]:
    """Tokens a second and MFU here, beside each other side; the ratio is that of the shares of the peak."""
    rates = {side: found.rate(side, steps * shape.tokens).median for side in found.seconds}
    shares: Mapping[str, Spread] = {side: found.rate(side, steps * shape.flops(side) / peak) for side in found.seconds}
    said = {side: f"{rates[side]:,.0f} ({shares[side].median:.0%})" for side in found.seconds}
    row, measured = f"{name} {shape.rows}x{shape.context}", f"training tokens/s (MFU), {where}"
    return [
        Line(row, measured, said[OURS], side, said[side], _ratio(found, shape, side))
        for side in (NANOGPT, TRANSFORMERS)
    ]


def _ratio(found: Comparison, shape: Shape, side: str) -> Spread:
    """How many times the share of the peak here is that of another side, round by round."""
    work = shape.flops(OURS) / shape.flops(side)
    return spread([work * b / a for a, b in zip(found.seconds[OURS], found.seconds[side], strict=True)])


def known_peak(device: torch.device) -> float:
    """The FLOP/s of a chip in bfloat16 by its data sheet."""
    chip = torch.cuda.get_device_name(device)
    for known in DEVICES.values():
        if known.name.split()[0] in chip.split():
            return known.flops
    raise SystemExit(f"the peak of a {chip} is not known; put its data sheet into anyformer/planning/devices.py")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--steps", type=int, default=10, help="steps of a round")
    found = asked(parser, arguments, "tiny shapes on the CPU: does every way work?")
    if found is None:
        return
    given, device = found
    torch.set_float32_matmul_precision("high")  # for all sides, as nanoGPT has it
    shapes = SMOKE if given.smoke else {name: SHAPES[name] for name in given.shapes.split(",")}
    peak, where = 0.0 if given.smoke else known_peak(device), place(device)
    for name, shape in shapes.items():
        best = peak or matrix_rate(shape.spec, shape.tokens, torch.bfloat16, device)
        rounds, steps = (1, 1) if given.smoke else (given.rounds, given.steps)
        made = lines(name, shape, measure(shape, device, rounds, steps, given.nanogpt), steps, best, where)
        for line in made:
            print(line.markdown(), flush=True)
        if given.write:
            record(made, "training on GPUs")


if __name__ == "__main__":
    main()
