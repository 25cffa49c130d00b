"""AdamW against Muon, each at its best learning rate, in equal time."""

from __future__ import annotations

import math
import time
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from anyformer import model as models
from anyformer.comparing.statistics import difference, sample
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import attention, decoder, held_out_loss, learn, text_ids, thinned, windows
from anyformer.spec import FeedForward, Rotary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What is trained on, and what is held out.
Text = tuple[Tensor, Tensor]

DIM, DEPTH, HEADS, LENGTH, ROWS, STEPS, SEEDS = 64, 2, 4, 64, 16, 200, 5
NAMES = {"adamw": "AdamW", "muon": "Muon"}
#: Where the search for a learning rate begins; it goes on, by factors of two, until the best lies between two others.
FIRST_RATES = (4e-3, 8e-3, 16e-3)
#: Steps are timed in turns, so that whatever else the machine does meets both alike.
TURNS, STEPS_A_TURN = 5, 16
#: As long is within this share of the time that was to be equal: whether it was is measured, too.
AS_LONG = 0.1


def measure(lab: Lab) -> Numbers:
    """Time a step of each, search a learning rate for each, then train over other seeds: AdamW, Muon for as long, and
    Muon for as many steps."""
    text = text_ids(lab)
    seconds = _seconds_a_step(text)
    steps = {"adamw": lab.times(STEPS), "muon": round(lab.times(STEPS) * seconds["adamw"] / seconds["muon"])}
    searched = {name: _search(lab, text, name, steps[name]) for name in NAMES}
    numbers: Numbers = {"seconds_a_step": seconds, "searched": searched, "runs": {}}
    for name, optimizer, many in (
        ("adamw", "adamw", steps["adamw"]),
        ("muon", "muon", steps["muon"]),
        ("muon, equal steps", "muon", steps["adamw"]),
    ):
        lab.say(f"training: {name}, {SEEDS} seeds")
        rate = min(searched[optimizer], key=searched[optimizer].__getitem__)
        runs = [_train(text, optimizer, many, rate, lab.seed + seed) for seed in range(1, SEEDS + 1)]
        curve = thinned([sum(losses) / SEEDS for losses in zip(*(run.losses for run in runs), strict=True)])
        numbers["runs"][name] = {
            "rate": rate,
            "steps": many,
            "losses": [run.held_out for run in runs],
            "seconds": round(median(run.seconds for run in runs), 3),
            "curve": curve,
        }
    return numbers


def _seconds_a_step(text: Text) -> dict[str, float]:
    """What a whole step takes with each optimizer: forward, backward and update."""
    taken: dict[str, list[float]] = {name: [] for name in NAMES}
    for turn in range(TURNS):
        for name in NAMES:
            taken[name].append(_train(text, name, STEPS_A_TURN, 1e-3, turn).seconds / (STEPS_A_TURN - 1))
    return {name: median(found) for name, found in taken.items()}


def _search(lab: Lab, text: Text, name: str, steps: int) -> dict[float, float]:
    """The held-out loss by learning rate, of which the best is neither the least nor the largest."""
    found: dict[float, float] = {}
    wanted = list(FIRST_RATES)
    while wanted:
        for rate in wanted:
            lab.say(f"learning rate {rate:g} for {NAMES[name]}")
            found[rate] = _train(text, name, steps, rate, lab.seed).held_out
        best = min(found, key=found.__getitem__)
        wanted = [rate for rate in (best / 2, best * 2) if rate not in found]
    return dict(sorted(found.items()))


class Run(NamedTuple):
    """What a run comes to: the held-out loss, that of every step, and the seconds from the first step's end to the
    last's."""

    held_out: float
    losses: list[float]
    seconds: float


def _train(text: Text, optimizer: str, steps: int, rate: float, seed: int) -> Run:
    """A seed means the same weights and batches to both."""
    train, held_out = text
    mixers = attention(DIM, HEADS, position=Rotary()), FeedForward(hidden=4 * DIM)
    model = models.build(decoder(DIM, DEPTH, *mixers, std=None), seed=seed)
    ends: list[float] = []
    losses = learn(
        model,
        windows(train, LENGTH, ROWS, seed),
        steps,
        learning_rate=rate,
        optimizer=optimizer,
        watch=lambda step, loss: ends.append(time.perf_counter()),
    )
    return Run(held_out_loss(model, held_out, LENGTH, rows=512), losses, ends[-1] - ends[0])


def judge(numbers: Numbers) -> Verdict:
    runs, seconds = numbers["runs"], numbers["seconds_a_step"]
    found = difference(runs["muon"]["losses"], runs["adamw"]["losses"])
    longer = runs["muon"]["seconds"] / runs["adamw"]["seconds"]
    equal_steps = difference(runs["muon, equal steps"]["losses"], runs["adamw"]["losses"])
    told = (
        f"over {len(runs['adamw']['losses'])} seeds AdamW reaches {sample(runs['adamw']['losses']).mean:.3f} nats a "
        f"byte in {runs['adamw']['steps']} steps (learning rate {runs['adamw']['rate']:g}); Muon, whose steps take "
        f"{seconds['muon'] / seconds['adamw']:.2f} times as long, {found.mean:+.3f} [{found.low:+.3f}, "
        f"{found.high:+.3f}] beside that in {runs['muon']['steps']} steps, which took {longer:.2f} of the time "
        f"(learning rate {runs['muon']['rate']:g}), and in as many steps {equal_steps.mean:+.3f} "
        f"[{equal_steps.low:+.3f}, {equal_steps.high:+.3f}]"
    )
    if not found.larger_than_noise or (found.mean < 0 and longer > 1 + AS_LONG):
        return unclear(told)
    return holds(told) if found.mean < 0 else does_not_hold(told)


def draw(numbers: Numbers, figure: Figure) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(4, 3))
    for name, label in NAMES.items():
        curve, seconds = numbers["runs"][name]["curve"], numbers["seconds_a_step"][name]
        left.plot([step * seconds for step in curve["step"]], curve["loss"], label=label)
        searched = numbers["searched"][name]
        right.plot([math.log2(float(rate)) for rate in searched], list(searched.values()), marker="o", markersize=4)
    left.set(xlabel="seconds of training", ylabel=f"training loss, nats a byte, mean of {SEEDS} seeds")
    left.legend()
    rates = sorted({float(rate) for searched in numbers["searched"].values() for rate in searched})
    right.set_xticks([math.log2(rate) for rate in rates], [f"{rate:g}" for rate in rates])
    right.set(xlabel="learning rate", ylabel="held-out loss after as long, nats a byte")


EXPERIMENT = Experiment(
    name="optimizers",
    claim="In equal time Muon reaches a lower loss than AdamW, each at its best learning rate.",
    source="Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon); Liu et al. 2025, section 3 "
    "(https://arxiv.org/abs/2502.16982)",
    refuted_by="AdamW's loss is lower after as long, by more than the noise between seeds",
    measure=measure,
    judge=judge,
    draw=draw,
    takes={"data": "a text to learn from, a file or folder (Python's own library)"},
)
