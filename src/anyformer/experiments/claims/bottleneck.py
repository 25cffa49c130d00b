"""Full attention holds and computes a score for every pair of tokens; a window for every token and its few keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from anyformer.experiments.costs import growth, most_bytes, seconds
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.parts.attention import attention_mask
from anyformer.parts.kernels import Scores, banded, reference
from anyformer.parts.masks import Tokens, lower
from anyformer.spec import Attention

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADS, WIDTH, ROUNDS = 2, 64, 5
#: Tokens of the growing text, and the window then.
FULL_LENGTHS = (1024, 1448, 2048, 2896, 4096)
LENGTHS = (4096, 5792, 8192, 11585, 16384, 23170, 32768)
NARROW = 128
#: Keys of the growing window, over the longest text: so many that their scores are most of the work.
WINDOWS = (512, 724, 1024, 1448, 2048, 2896, 4096)
#: The length that the claim names, and the scores.
LONG, SCORES = 100_000, 10_000_000_000
#: Bytes of a score.
BYTES = 4

#: What is measured, by what it grows, and with which power: both its time and its memory.
CLAIMED = {
    "full": ("full attention", "n", 2.0),
    "window_text": (f"a window of {NARROW}", "n", 1.0),
    "window_width": (f"windows over {LENGTHS[-1]:,} tokens", "w", 1.0),
}
#: Windows may do with less memory than that: scores that are computed in tiles are not held.
AT_MOST = ("window_width", "bytes")


def measure(lab: Lab) -> Numbers:
    """Seconds and bytes of one attention layer's scores and sums, without the matrices around them; and what planning
    counts for a long text."""
    rounds = lab.times(ROUNDS)
    makers = {("full", length): partial(_attention, length, None) for length in FULL_LENGTHS}
    makers |= {("window_text", length): partial(_attention, length, NARROW) for length in LENGTHS}
    makers |= {("window_width", window): partial(_attention, LENGTHS[-1], window) for window in WINDOWS}
    taken = seconds({key: make() for key, make in makers.items()}, rounds)
    held = dict(zip(makers, most_bytes(list(makers.values()))))
    pairs = Attention(heads=HEADS, kv_heads=HEADS, head_dim=WIDTH, visibility="causal").pairs(LONG, dense=True)
    numbers: Numbers = {"planned": {"tokens": LONG, "scores": pairs, "bytes": pairs * BYTES}, "rounds": rounds}
    for name in CLAIMED:
        keys = [key for key in makers if key[0] == name]
        numbers[name] = {
            "sizes": [size for _, size in keys],
            "seconds": [taken[key] for key in keys],
            "bytes": [held[key] for key in keys],
        }
    return numbers


def _attention(length: int, window: int | None) -> Callable[[], torch.Tensor]:
    """One call of attention over random queries, keys and values [1, H, n, C]: all pairs at once, or a window's."""
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(1, HEADS, length, WIDTH, generator=generator) for _ in range(3))
    tokens = Tokens(length, start=0)
    mask = attention_mask("full", None) if window is None else attention_mask("causal", (window, None))
    visible, scores = lower(mask, tokens, tokens), Scores(WIDTH**-0.5)
    kernel = reference if window is None else banded
    return torch.no_grad()(lambda: kernel.attend(q, k, v, visible, scores))


def judge(numbers: Numbers) -> Verdict:
    planned = numbers["planned"]
    said, answers = [], [planned["scores"] == SCORES]
    for name, (what, by, claimed) in CLAIMED.items():
        grown = {cost: growth(numbers[name]["sizes"], numbers[name][cost]) for cost in ("seconds", "bytes")}
        said.append(f"{what}: time {by}^{grown['seconds']}, memory {by}^{grown['bytes']}")
        for cost, found in grown.items():
            answers.append(found.is_at_most(claimed) if (name, cost) == AT_MOST else found.is_about(claimed))
    told = f"{'; '.join(said)}. {planned['tokens']:,} tokens have {planned['scores']:,} scores a layer in each head"
    if False in answers:
        return does_not_hold(told)
    return unclear(told) if None in answers else holds(told)


def draw(numbers: Numbers, figure: Figure) -> None:
    times, memory = figure.subplots(1, 2)
    for axes, cost, unit in ((times, "seconds", 1.0), (memory, "bytes", float(1 << 20))):
        for name, label in (("full", "full, n^"), ("window_text", f"window of {NARROW}, n^")):
            sizes, costs = numbers[name]["sizes"], [value / unit for value in numbers[name][cost]]
            line = growth(sizes, costs)
            axes.loglog(sizes, costs, "o-", label=f"{label}{line.power:.2f}")
        axes.set(xlabel="n, tokens", xticks=[1024, 4096, 16384], xticklabels=["1k", "4k", "16k"])
        axes.set_xticks([], minor=True)
        axes.legend(loc="lower right")
    times.set(ylabel="seconds")
    memory.set(ylabel="MiB")


EXPERIMENT = Experiment(
    name="bottleneck",
    claim="The time and memory of full attention grow with n², a window's with n·w at most: 100,000 tokens mean "
    "10 billion scores a layer.",
    source="Vaswani et al. 2017, table 1 (https://arxiv.org/abs/1706.03762); of windows, Beltagy et al. 2020, "
    "section 3.1 (https://arxiv.org/abs/2004.05150)",
    refuted_by="a power whose interval lies further than 0.25 from 2 for full attention in n, or from 1 for a window "
    "in n or in w",
    measure=measure,
    judge=judge,
    draw=draw,
)
