"""Attention is a sum over a set: without positions it gives the same answers in whatever order the set is read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch

from anyformer import model as models
from anyformer.comparing.statistics import difference, sample
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import attention, decoder, learn
from anyformer.spec import FeedForward, Learned, Rotary, Transformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIM, DEPTH, HEADS, LENGTH, ROWS, STEPS, SEEDS = 64, 2, 4, 8, 64, 800, 3
#: Rows that a model is asked about once it has learned.
ASKED = 512
#: Two orders give the same but for the order of float32 sums: the bar for logits of one model computed in two ways.
ROUNDING = 1e-5
#: Whoever can tell order learns this task: anything much below says that the task was too hard to tell anything.
LEARNED = 0.9

#: Each row is a permutation of the same ids, so that nothing but order tells which id stands before which.
CHANCE = 1 / (LENGTH - 1)
NAMES = {
    "full": "no positions",
    "full_learned": "learned",
    "full_rotary": "rotary",
    "causal": "no positions,\ncausal mask",
}


def measure(lab: Lab) -> Numbers:
    """Read rows in two orders with fresh models; then have models learn to say which id stands before each."""
    numbers: Numbers = {name: {"differences": [], "accuracies": []} for name in NAMES}
    for seed in range(lab.seed, lab.seed + lab.times(SEEDS, least=2)):
        for name, described in _models().items():
            lab.say(f"{name}, seed {seed}")
            model = models.build(described, seed=seed)
            numbers[name]["differences"].append(_reordered(model, seed))
            learn(model, partial(_rows, seed=seed), lab.times(STEPS), learning_rate=3e-3)
            numbers[name]["accuracies"].append(_accuracy(model, seed))
    return numbers


def _models() -> dict[str, Transformer]:
    feed_forward = FeedForward(hidden=4 * DIM)

    def reading(visibility: str, position: Rotary | None = None, added: Learned | None = None) -> Transformer:
        heads = attention(DIM, HEADS, visibility=visibility, position=position)
        return decoder(DIM, DEPTH, heads, feed_forward, vocabulary=LENGTH, position=added)

    return {
        "full": reading("full"),
        "full_learned": reading("full", added=Learned(size=LENGTH)),
        "full_rotary": reading("full", Rotary()),
        "causal": reading("causal"),
    }


def _rows(step: int, seed: int, rows: int = ROWS) -> Mapping[str, torch.Tensor]:
    """Permutations of all ids, and which id stands before each; nothing is asked of the first."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    tokens = torch.rand(rows, LENGTH, generator=generator).argsort(1)
    return {"tokens": tokens, "targets": torch.cat((torch.full((rows, 1), -100), tokens[:, :-1]), 1)}


@torch.no_grad()
def _reordered(model: models.Transformer, seed: int) -> float:
    """How much answers change when the row is read in another order, each compared where its token went: the largest
    difference over the largest answer."""
    tokens = _rows(0, seed)["tokens"]
    order = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(seed))
    one, other = model(tokens).logits, model(tokens[:, order]).logits
    assert one is not None and other is not None
    return ((one[:, order] - other).abs().max() / one.abs().max()).item()


@torch.no_grad()
def _accuracy(model: models.Transformer, seed: int) -> float:
    """How often the id before a token is known, of rows that it did not learn from."""
    asked = _rows(STEPS, seed, ASKED)
    logits = model(asked["tokens"]).logits
    assert logits is not None
    return (logits[:, 1:].argmax(-1) == asked["targets"][:, 1:]).float().mean().item()


def judge(numbers: Numbers) -> Verdict:
    most = {name: max(numbers[name]["differences"]) for name in NAMES}
    mean = {name: sample(numbers[name]["accuracies"]).mean for name in NAMES}
    told = (
        f"read in another order, answers differ by {most['full']:.0e} without positions, {most['full_rotary']:.0e} "
        f"with; which id stands before is known to {mean['full']:.1%} without (guessing: {CHANCE:.1%}), "
        f"{mean['full_learned']:.0%} with learned and {mean['full_rotary']:.0%} with rotary positions. A causal "
        f"mask by itself tells order: {most['causal']:.0e} and {mean['causal']:.0%}"
    )
    accuracies = numbers["full"]["accuracies"]
    above = difference(accuracies, [CHANCE] * len(accuracies))
    if most["full"] > ROUNDING or (above.larger_than_noise and above.mean > 0):
        return does_not_hold(told)
    learned = min(mean["full_learned"], mean["full_rotary"]) > LEARNED
    return holds(told) if learned and most["full_rotary"] > ROUNDING else unclear(told)


def draw(numbers: Numbers, figure: Figure) -> None:
    axes = figure.subplots()
    for place, name in enumerate(NAMES):
        found = numbers[name]["accuracies"]
        mean = sample(found).mean
        axes.bar(place, mean, color="tab:blue", alpha=0.35)
        axes.plot([place] * len(found), found, "o", color="tab:blue")
        axes.annotate(f"{mean:.0%}", (place, mean), (0, 6), textcoords="offset points", ha="center")
    axes.axhline(CHANCE, color="black", linestyle="--", linewidth=1)
    axes.annotate("guessing", (0.5, CHANCE), (0, 4), textcoords="offset points", ha="center")
    axes.set_xticks(range(len(NAMES)), list(NAMES.values()))
    axes.set(ylabel="share of tokens whose predecessor is known", ylim=(0, 1.1))
    axes.grid(visible=False, axis="x")


EXPERIMENT = Experiment(
    name="permutation",
    claim="Full attention without positions cannot tell order: its answers move with its inputs, and a task that "
    "needs order is not learned.",
    source="Vaswani et al. 2017, section 3.5 (https://arxiv.org/abs/1706.03762); of the causal mask, Haviv et al. 2022 "
    "(https://arxiv.org/abs/2203.16634)",
    refuted_by="answers without positions that depend on the order by more than rounding, or know it above chance",
    measure=measure,
    judge=judge,
    draw=draw,
)
