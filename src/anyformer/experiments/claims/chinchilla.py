"""For the least loss of a training budget, are parameters and tokens to grow alike? An IsoFLOP sweep, on bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anyformer import laws, planning
from anyformer import model as models
from anyformer.errors import PlanError
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import attention, decoder, held_out_loss, learn, text_ids, windows
from anyformer.laws.fitting import LEVEL, central
from anyformer.spec import FeedForward, Rotary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The widths tried at each budget, FLOPs: 6·N·D, with N all parameters (the table of bytes is multiplied with as well,
#: it is the output matrix).
BUDGETS = {1e10: (4, 8, 12, 16, 24), 4e10: (8, 12, 16, 24, 32), 1.6e11: (12, 16, 24, 32, 40)}
DEPTH, HEAD, LENGTH, SEEDS, BYTES_READ = 2, 4, 64, 2, 8_000_000
#: Tokens of a step over the root of all tokens: long runs bear larger batches. And the learning rate times the width.
#: Both were sought at 5·10¹⁰ FLOPs, outside of the budgets here.
BATCH, RATE = 0.8, 0.3
#: N ∝ C^½ is parameters and tokens growing alike; N ∝ C^0.73 is what Kaplan et al. 2020 found.
ALIKE, KAPLAN = 0.5, 0.73


def measure(lab: Lab) -> Numbers:
    """Train every size of every budget until its FLOPs are spent; fit the runs as `anyformer plan --fit` does."""
    train, held_out = text_ids(lab, BYTES_READ)
    points = []
    for budget, widths in BUDGETS.items():
        for width in widths:
            heads = attention(width, width // HEAD, position=Rotary())
            spec = decoder(width, DEPTH, heads, FeedForward(hidden=4 * width))
            size = planning.count(spec)
            tokens = budget * lab.scale / (6 * size)
            rows = max(1, round(BATCH * tokens**0.5 / LENGTH))
            steps = max(1, round(tokens / (rows * LENGTH)))
            for seed in range(lab.seed, lab.seed + SEEDS):
                lab.say(f"{budget:.1e} FLOPs: {size:,} parameters, {steps * rows * LENGTH:,} bytes, seed {seed}")
                model = models.build(spec, seed=seed)
                learn(model, windows(train, LENGTH, rows, seed), steps, learning_rate=RATE / width)
                loss = held_out_loss(model, held_out, LENGTH, rows=lab.times(512, least=64))
                points.append({"parameters": size, "tokens": steps * rows * LENGTH, "loss": loss})
    return {"points": points, **_fitted(points)}


def _fitted(points: list[dict[str, float]]) -> Numbers:
    """The exponent a of N ∝ C^a by both of Hoffmann et al.'s fits, and the best tokens for each parameter."""
    runs = laws.Runs(*(np.array([point[name] for point in points]) for name in ("parameters", "tokens", "loss")))
    curves, exponents, tokens_each = laws.isoflop(runs), {}, None
    try:
        law = laws.fit(runs)
    except PlanError:
        law = None  # the loss does not fall with size or with tokens: no law
    if law is not None:
        exponent = law.law.beta / (law.law.alpha + law.law.beta)
        exponents["law"] = {"value": exponent, "interval": law.intervals()["exponent"]}
        largest = float(runs.flops.max())
        fewest, most = (largest / 6 / size**2 for size in reversed(law.interval(largest)))
        each = largest / 6 / law.parameters(largest) ** 2
        tokens_each = {"flops": largest, "value": each, "interval": (fewest, most)}
    if curves.exponent is not None and len(curves.samples):
        exponents["isoflop"] = {"value": curves.exponent, "interval": central(curves.samples)}
    parabolas = [
        {
            "flops": each.flops,
            "parameters": each.parameters.tolist(),
            "losses": each.losses.tolist(),
            "curve": each.curve,
            "best": each.best,
        }
        for each in curves.parabolas
    ]
    return {"exponents": exponents, "scale": curves.scale, "parabolas": parabolas, "tokens_each": tokens_each}


def judge(numbers: Numbers) -> Verdict:
    exponents = numbers["exponents"]
    if len(exponents) < 2:
        return unclear("losses do not fall with size and data as a law has it, or not to a least one at each budget")
    means = {"isoflop": "IsoFLOP curves", "law": "the law of loss"}
    parts = [
        f"{exponents[name]['value']:.2f} ({LEVEL:.0%} interval {exponents[name]['interval'][0]:.2f} to "
        f"{exponents[name]['interval'][1]:.2f}) by {said}"
        for name, said in means.items()
    ]
    best = numbers["tokens_each"]
    told = (
        f"the best size grows with the budget to the power of {parts[0]} and {parts[1]}; at {best['flops']:.1e} FLOPs "
        f"the best is {best['value']:.0f} bytes for each parameter ({best['interval'][0]:.0f} to "
        f"{best['interval'][1]:.0f})"
    )
    within = [_within(ALIKE, exponents[name]["interval"]) for name in means]
    if not any(within):
        return does_not_hold(told)
    tells = not _within(KAPLAN, exponents["isoflop"]["interval"])
    return holds(told) if all(within) and tells else unclear(told)


def _within(value: float, interval: list[float]) -> bool:
    low, high = interval
    return low <= value <= high


def draw(numbers: Numbers, figure: Figure) -> None:
    curves, best = figure.subplots(1, 2, width_ratios=[1.3, 1])
    for index, parabola in enumerate(numbers["parabolas"]):
        sizes = np.geomspace(min(parabola["parameters"]), max(parabola["parameters"]), 50)
        colour = f"C{index}"
        curves.plot(parabola["parameters"], parabola["losses"], ".", color=colour)
        label = f"{parabola['flops']:.1e} FLOPs"
        curves.plot(sizes, np.polyval(parabola["curve"], np.log10(sizes)), color=colour, label=label)
        lowest = np.polyval(parabola["curve"], np.log10(parabola["best"]))
        curves.plot(parabola["best"], lowest, "*", color=colour, markersize=11)
        best.plot(parabola["flops"], parabola["best"], "*", color=colour, markersize=11)
    curves.set(xscale="log", xlabel="parameters", ylabel="held-out loss, nats a byte")
    curves.set_xticks([2e3, 1e4, 5e4], ["2,000", "10,000", "50,000"])
    curves.set_xticks([], minor=True)
    curves.legend()
    best.set(xscale="log", yscale="log", xlabel="budget, FLOPs", ylabel="best number of parameters")
    if "isoflop" in numbers["exponents"]:
        found = numbers["exponents"]["isoflop"]["value"]
        first, last = (numbers["parabolas"][end] for end in (0, -1))
        flops = np.array([first["flops"] / 1.5, last["flops"] * 1.5])
        best.plot(flops, numbers["scale"] * flops**found, "k", label=f"measured: {found:.2f}", zorder=0)
        middle = (first["flops"] * last["flops"]) ** 0.5
        for exponent, style, name in ((ALIKE, "--", "Hoffmann"), (KAPLAN, ":", "Kaplan")):
            line = numbers["scale"] * middle**found * (flops / middle) ** exponent
            best.plot(flops, line, style, color="0.5", label=f"{name}: {exponent}", zorder=0)
        best.legend(title="exponent")


EXPERIMENT = Experiment(
    name="chinchilla",
    claim="For the least loss of a training budget, parameters and tokens grow alike: both with its square root.",
    source="Hoffmann et al. 2022, sections 3.2, 3.3 and table 2 (https://arxiv.org/abs/2203.15556)",
    refuted_by="neither the interval by IsoFLOP curves nor that by the law of loss holds an exponent of 0.5",
    measure=measure,
    judge=judge,
    draw=draw,
    takes={"data": "a text to learn from, a file or folder (Python's own library)"},
)
