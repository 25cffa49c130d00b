"""Feed-forwards with and without a gate, at equal parameters."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from anyformer import model as models
from anyformer.comparing.statistics import Difference, difference, sample
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import attention, decoder, held_out_loss, learn, text_ids, windows
from anyformer.spec import FeedForward, Rotary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIM, DEPTH, HEADS, LENGTH, ROWS, STEPS, SEEDS = 64, 2, 4, 64, 16, 250, 5
#: Two matrices of 240 hold as many numbers as three of 160.
PLAIN = {
    "ReLU": FeedForward(hidden=240, activation="relu"),
    "GELU": FeedForward(hidden=240, activation="gelu"),
}
GATED = {
    "SwiGLU": FeedForward(hidden=160, activation="silu", gated=True),
    "GEGLU": FeedForward(hidden=160, activation="gelu", gated=True),
}


def measure(lab: Lab) -> Numbers:
    """Train each over several seeds; a seed means the same batches, in the same order, to all."""
    train, held_out = text_ids(lab)
    numbers: Numbers = {"parameters": {}, "losses": {name: [] for name in PLAIN | GATED}}
    for seed, (name, feed_forward) in product(range(SEEDS), (PLAIN | GATED).items()):
        lab.say(f"seed {seed + 1} of {SEEDS}: training {name}")
        described = decoder(DIM, DEPTH, attention(DIM, HEADS, position=Rotary()), feed_forward, std=None)
        model = models.build(described, seed=lab.seed + seed)
        batch = windows(train, LENGTH, ROWS, lab.seed + seed)
        learn(model, batch, lab.times(STEPS), learning_rate=6e-3)
        numbers["parameters"][name] = sum(parameter.numel() for parameter in model.parameters())
        numbers["losses"][name].append(held_out_loss(model, held_out, LENGTH, rows=512))
    return numbers


def differences(numbers: Numbers) -> dict[str, Difference]:
    """Of each gated one to each plain one, nats a byte, by seed."""
    losses = numbers["losses"]
    pairs = product(GATED, PLAIN)
    return {f"{gated} - {plain}": difference(losses[gated], losses[plain]) for gated, plain in pairs}


def judge(numbers: Numbers) -> Verdict:
    found = differences(numbers)
    means = ", ".join(f"{name} {sample(losses).mean:.3f}" for name, losses in numbers["losses"].items())
    told = f"mean losses of {len(numbers['losses']['ReLU'])} seeds, nats a byte: {means}; " + "; ".join(
        f"{pair} is {one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]" for pair, one in found.items()
    )
    if any(one.larger_than_noise and one.mean > 0 for one in found.values()):
        return does_not_hold(told)
    return holds(told) if all(one.larger_than_noise for one in found.values()) else unclear(told)


def draw(numbers: Numbers, figure: Figure) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1, 1))
    for place, (name, losses) in enumerate(numbers["losses"].items()):
        color = "C0" if name in GATED else "C1"
        left.plot([place] * len(losses), losses, "o", color=color, alpha=0.4, markersize=4)
        left.plot([place - 0.3, place + 0.3], [sample(losses).mean] * 2, color=color)
    left.set_xticks(range(len(numbers["losses"])), list(numbers["losses"]))
    left.set(ylabel="held-out loss, nats a byte; a dot a seed", xlim=(-0.5, len(numbers["losses"]) - 0.5))
    found = differences(numbers)
    means = [one.mean for one in found.values()]
    reach = [one.mean - one.low for one in found.values() if one.low is not None]
    right.errorbar(means, range(len(found)), xerr=reach, fmt="o", color="black", capsize=3)
    right.axvline(0, color="gray", linewidth=0.8)
    right.set_yticks(range(len(found)), list(found))
    right.set(xlabel="difference, nats a byte, 95% interval", ylim=(len(found) - 0.5, -0.5))


EXPERIMENT = Experiment(
    name="activations",
    claim="At equal parameters feed-forwards with a gate (SwiGLU, GEGLU) predict better than those without (ReLU, "
    "GELU).",
    source="Shazeer 2020, section 3 (https://arxiv.org/abs/2002.05202)",
    refuted_by="one with a gate is worse than one without, by more than the noise between seeds",
    measure=measure,
    judge=judge,
    draw=draw,
    takes={"data": "a text to learn from, a file or folder (Python's own library)"},
)
