"""Attention in tiles gives what attention gives, and never holds all scores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from anyformer.experiments.costs import growth, most_bytes
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.parts.attention import attention_mask
from anyformer.parts.kernels import Scores, online, reference, sdpa
from anyformer.parts.masks import Tokens, lower

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADS, WIDTH, SEEDS = 2, 64, 3
#: From two tiles on, of 512 queries and keys each.
LENGTHS = (1024, 1536, 2048, 3072)
KERNELS: dict[str, ModuleType] = {"reference": reference, "online": online, "sdpa": sdpa}
LABELS = {"reference": "all scores at once", "online": "tiles, in plain torch", "sdpa": "tiles, torch's own kernel"}
TILED = ("online", "sdpa")
#: float32 sums in another order: the bar for an output, and for gradients, computed in two ways.
ROUNDING = 1e-5


def measure(lab: Lab) -> Numbers:
    """Outputs and gradients against the reference's, and bytes held at most, forward and with the backward pass."""
    seeds = range(lab.seed, lab.seed + lab.times(SEEDS))
    numbers: Numbers = {"lengths": list(LENGTHS)}
    for name, kernel in KERNELS.items():
        lab.say(name)
        numbers[name] = {
            "difference": max(_difference(kernel, LENGTHS[0], seed) for seed in seeds),
            "forward": most_bytes([partial(_forward, name, length) for length in LENGTHS]),
            "backward": most_bytes([partial(_backward, name, length) for length in LENGTHS]),
        }
    return numbers


def _inputs(length: int, seed: int) -> list[torch.Tensor]:
    """Random queries, keys and values [1, H, n, C], which want gradients."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, HEADS, length, WIDTH, generator=generator).requires_grad_() for _ in range(3)]


def _attend(kernel: ModuleType, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    tokens = Tokens(q.shape[2], start=0)
    visible = lower(attention_mask("full", None), tokens, tokens)
    return kernel.attend(q, k, v, visible, Scores(WIDTH**-0.5))


def _forward(name: str, length: int) -> Callable[[], torch.Tensor]:
    return torch.no_grad()(partial(_attend, KERNELS[name], *_inputs(length, 0)))


def _backward(name: str, length: int) -> Callable[[], tuple[torch.Tensor, ...]]:
    return partial(_gradients, KERNELS[name], *_inputs(length, 0))


def _gradients(kernel: ModuleType, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of queries, keys and values, of the sum of squares."""
    return torch.autograd.grad(_attend(kernel, *inputs).square().sum(), inputs)


def _difference(kernel: ModuleType, length: int, seed: int) -> float:
    """The largest difference from the reference over its largest number: of the output, and of each gradient."""
    inputs = _inputs(length, seed)
    ours = (_attend(kernel, *inputs), *_gradients(kernel, *inputs))
    theirs = (_attend(reference, *inputs), *_gradients(reference, *inputs))
    return max(((one - other).abs().max() / other.abs().max()).item() for one, other in zip(ours, theirs, strict=True))


def judge(numbers: Numbers) -> Verdict:
    grown = {
        (name, what): growth(numbers["lengths"], numbers[name][what])
        for name in KERNELS
        for what in ("forward", "backward")
    }
    longest = {name: numbers[name]["backward"][-1] / 2**20 for name in KERNELS}
    most = max(numbers[name]["difference"] for name in TILED)
    told = (
        f"outputs and gradients differ by {most:.0e} at most; with the backward pass memory grows with "
        f"n^{grown['reference', 'backward']} for all scores at once, n^{grown['online', 'backward']} for tiles in "
        f"plain torch and n^{grown['sdpa', 'backward']} in torch's own kernel: {longest['reference']:,.0f}, "
        f"{longest['online']:,.0f} and {longest['sdpa']:,.0f} MiB at {numbers['lengths'][-1]:,} tokens"
    )
    answers = [grown["reference", what].is_about(2) for what in ("forward", "backward")]
    answers += [grown[name, what].is_at_most(1) for name in TILED for what in ("forward", "backward")]
    if most > ROUNDING or False in answers:
        return does_not_hold(told)
    return unclear(told) if None in answers else holds(told)


def draw(numbers: Numbers, figure: Figure) -> None:
    axes = figure.subplots()
    lengths = numbers["lengths"]
    for index, name in enumerate(KERNELS):
        for what, style in (("forward", "o:"), ("backward", "o-")):
            held = [value / 2**20 for value in numbers[name][what]]
            label = f"{LABELS[name]}: n^{growth(lengths, held).power:.1f}" if what == "backward" else None
            axes.loglog(lengths, held, style, color=f"C{index}", label=label)
    axes.set(xlabel="n, tokens", ylabel="MiB held at most")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_xticks([], minor=True)
    axes.set_title("Forward (dotted), and with the backward pass")
    axes.legend()


EXPERIMENT = Experiment(
    name="flash",
    claim="Attention in tiles gives the same result, and its memory is no longer quadratic in the length.",
    source="Dao et al. 2022, section 3.1 and theorem 1 (https://arxiv.org/abs/2205.14135); Milakov & Gimelshein 2018 "
    "(https://arxiv.org/abs/1805.02867)",
    refuted_by="outputs or gradients that differ by more than rounding, or memory of tiles whose power of n is above "
    "1.25 beyond doubt",
    measure=measure,
    judge=judge,
    draw=draw,
)
