"""Copying from context comes suddenly, when induction heads form: heads that look for what followed last time.

What a model gains by copying is counted from what it could know without any order: which tokens its row is made of. And
several heads share the work here, so that any one of them can be missed: they are taken away together.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyformer import model as models
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import attention, decoder, learn
from anyformer.inspection.heads import repeated_scores
from anyformer.inspection.interventions import ablate
from anyformer.spec import Rotary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIM, HEADS, VOCABULARY, LENGTH, ROWS, STEPS, SEEDS = 64, 4, 64, 64, 32, 800, 3
#: A row is a stretch of at least and at most so many random tokens, over and over.
SHORTEST, LONGEST = 8, 32
#: Steps between two looks at the model; the seed of what it is asked then.
EVERY, HELD_OUT = 20, 2**40
#: Sudden: half of all that is gained comes within a fifth of the steps.
SUDDEN, WITHIN = 0.5, 0.2
#: Heads that put so much of their attention on what followed last time are induction heads.
FOLLOWING = 0.5
#: The heads form when the loss falls, if the two are no more than a twentieth of the steps apart.
TOGETHER = 0.05
#: They cause it, if without them half of the gain is lost; one layer cannot, if it gains less than a quarter.
CAUSED, WITHOUT = 0.5, 0.25


def measure(lab: Lab) -> Numbers:
    """Models of two layers and of one, of attention alone, learn to go on with what repeats."""
    runs = [_run(lab, depth, lab.seed + seed) for seed in range(SEEDS) for depth in (2, 1)]
    return {"every": EVERY, "orderless": round(_orderless(), 3), "runs": runs}


def _run(lab: Lab, depth: int, seed: int) -> Numbers:
    lab.say(f"{depth} layers, seed {seed}")
    heads = attention(DIM, HEADS, position=Rotary())
    model = models.build(decoder(DIM, depth, heads, vocabulary=VOCABULARY, std=None), seed=seed)
    looks: list[tuple[float, float]] = []

    def look(step: int, loss: float) -> None:
        if step % EVERY == 0:
            model.eval()
            looks.append((_again(model), float(repeated_scores(model, length=24).scores["induction"].max())))
            model.train()

    steps = lab.times(STEPS, least=2 * EVERY)
    learn(
        model,
        lambda step: _rows(seed * 1_000_003 + step),
        steps,
        learning_rate=1e-2,
        schedule="constant",
        weight_decay=0.0,
        watch=look,
    )
    scores = repeated_scores(model, length=24).scores["induction"][-1]
    following = [head for head in range(HEADS) if scores[head] >= FOLLOWING]
    with ablate(model, f"decoder.layers.{depth - 1}.attention", heads=following):
        without = _again(model)
    return {
        "layers": depth,
        "seed": seed,
        "loss": [round(loss, 3) for loss, _ in looks],
        "score": [round(score, 3) for _, score in looks],
        "end": {"loss": round(_again(model), 3), "following": following, "without": round(without, 3)},
    }


def _rows(seed: int) -> Mapping[str, Tensor]:
    """Rows that repeat, each with a period of its own; `targets` are what follows."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (ROWS, LENGTH + 1), generator=generator)
    periods = torch.randint(SHORTEST, LONGEST + 1, (ROWS, 1), generator=generator)
    tokens = tokens.gather(1, torch.arange(LENGTH + 1) % periods)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}


@torch.no_grad()
def _again(model: models.Transformer) -> float:
    """The loss on what was seen before, nats: everything from the second time on, in rows that are never trained on."""
    found = _rows(HELD_OUT)
    tokens, targets = found["tokens"], found["targets"].clone()
    targets[:, : LONGEST - 1] = -100
    loss = model(tokens, targets=targets).loss
    assert loss is not None
    return loss.item()


def _orderless() -> float:
    """The loss of knowing, of each row, which tokens it is made of and how often, but not in which order; nats."""
    found = _rows(HELD_OUT)
    losses = []
    for tokens, targets in zip(found["tokens"], found["targets"]):
        shares = tokens.bincount(minlength=VOCABULARY).double() / LENGTH
        losses.append(-shares[targets[LONGEST - 1 :]].log().mean().item())
    return mean(losses)


def read(run: Numbers, orderless: float) -> dict[str, float]:
    """Of one run: what copying gained; the largest share of it gained within a fifth of the steps; how far apart, in
    shares of the steps, the loss and the best head's score are halfway; what of the gain is lost without the heads."""
    loss, score, end = [min(value, orderless) for value in run["loss"]], run["score"], run["end"]
    gained, span = orderless - end["loss"], max(1, round(WITHIN * len(loss)))
    half_loss = next((i for i, value in enumerate(loss) if value <= orderless - gained / 2), len(loss))
    half_score = next((i for i, value in enumerate(score) if value >= max(score) / 2), len(score))
    return {
        "gained": gained,
        "sudden": max(a - b for a, b in zip(loss, loss[span:])) / max(gained, 1e-9),
        "apart": abs(half_loss - half_score) / len(loss),
        "lost": (end["without"] - end["loss"]) / max(gained, 1e-9),
    }


def judge(numbers: Numbers) -> Verdict:
    base = numbers["orderless"]
    two, one = ([read(run, base) for run in numbers["runs"] if run["layers"] == layers] for layers in (2, 1))
    sudden, apart, lost = ([run[name] for run in two] for name in ("sudden", "apart", "lost"))
    alone = mean(run["gained"] for run in one) / mean(run["gained"] for run in two)
    heads = [len(run["end"]["following"]) for run in numbers["runs"] if run["layers"] == 2]
    count = f"{min(heads)}" if len(set(heads)) == 1 else f"{min(heads)} to {max(heads)}"
    told = (
        f"over {len(two)} seeds, {min(sudden):.0%} or more of what copying gains comes in {WITHIN:.0%} of the steps, "
        f"{max(apart):.0%} of them or less from where the best head's score is halfway; without the {count} "
        f"induction heads {min(lost):.0%} to {max(lost):.0%} of it is lost; one layer gains {alone:.0%} "
        f"of what two do"
    )
    held = [min(sudden) >= SUDDEN, max(apart) <= TOGETHER, min(lost) >= CAUSED, alone <= WITHOUT]
    if all(held):
        return holds(told)
    refuted = max(sudden) < SUDDEN or min(apart) > TOGETHER or max(lost) < CAUSED or alone > 1 - WITHOUT
    return does_not_hold(told) if refuted else unclear(told)


def draw(numbers: Numbers, figure: Figure) -> None:
    above, below = figure.subplots(2, 1, sharex=True)
    for run in numbers["runs"]:
        steps = [look * numbers["every"] for look in range(len(run["loss"]))]
        style = {"color": "C0" if run["layers"] == 2 else "C1", "alpha": 0.8}
        label = (
            f"{run['layers']} layer{'s' * (run['layers'] > 1)}" if run["seed"] == numbers["runs"][0]["seed"] else None
        )
        above.plot(steps, run["loss"], label=label, **style)
        below.plot(steps, run["score"], label=label, **style)
    above.axhline(numbers["orderless"], color="grey", linestyle=":", label="without any order")
    above.set(ylabel="loss on repeats, nats", ylim=(0, None))
    below.set(xlabel="step", ylabel="best head's score", ylim=(0, 1.02))
    above.legend()


EXPERIMENT = Experiment(
    name="induction",
    claim="Copying from context is learned in a sudden bump, when induction heads form; one layer has none.",
    source="Olsson et al. 2022 (https://arxiv.org/abs/2209.11895)",
    refuted_by="the gain comes gradually, or apart from the heads, or outlives them, or one layer gains as much",
    measure=measure,
    judge=judge,
    draw=draw,
)
