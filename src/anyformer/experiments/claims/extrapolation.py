"""What a model trained on short texts makes of long ones, by how it knows positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anyformer import model as models
from anyformer import spec
from anyformer.comparing.statistics import Difference, difference
from anyformer.errors import InputError
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import attention, decoder, learn, text_ids, windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIM, DEPTH, HEADS, TRAINED, ROWS, STEPS = 64, 3, 4, 128, 8, 400
LENGTHS = [TRAINED * 2**doubling for doubling in range(7)]
#: Bytes of held-out text that are predicted, the same ones at every length, and the stretches they are cut into: what
#: differs by more than from stretch to stretch is no noise.
SCORED, STRETCHES = 8192, 8
#: Nats a byte that a longer text may cost, and is still read as well.
AS_WELL = 0.05

#: By name: what attention knows of positions, and what `decoder` takes besides.
POSITIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "none": (None, {}),
    "sinusoidal": (None, {"position": spec.Sinusoidal()}),
    "learned": (None, {"position": spec.Learned(size=TRAINED)}),
    "rotary": (spec.Rotary(), {}),
    "ALiBi": (spec.Alibi(), {}),
    "T5 buckets": (None, {"relative": spec.RelativeBuckets(bidirectional=False)}),
}


def rescaled(length: int) -> dict[str, spec.Rotary]:
    """Rotary angles for a text of `length`, where `TRAINED` is what was trained."""
    times = length / TRAINED
    return {
        "rotary, linear": spec.Rotary(scaling=spec.LinearScaling(factor=times)),
        "rotary, NTK": spec.Rotary(scaling=spec.DynamicScaling(factor=1.0, original_context=TRAINED)),
        "rotary, YaRN": spec.Rotary(scaling=spec.YarnScaling(factor=times, original_context=TRAINED)),
    }


def measure(lab: Lab) -> Numbers:
    """Train one model by each idea of positions, and let each predict the same bytes after ever longer contexts."""
    train, held_out = text_ids(lab)
    batch = windows(train, TRAINED, ROWS, lab.seed)
    losses: dict[str, dict[int, list[float]]] = {}
    numbers: Numbers = {"losses": losses, "refused": {}}
    for name, (position, more) in POSITIONS.items():
        lab.say(f"training with positions: {name}")
        model = models.build(_described(position, more), seed=lab.seed)
        learn(model, batch, lab.times(STEPS), learning_rate=6e-3)
        losses[name] = {}
        for length in LENGTHS:
            try:
                losses[name][length] = _read(model, held_out, length)
            except InputError as refused:
                numbers["refused"][name] = str(refused)
                break
            for way, stretched in rescaled(length).items() if name == "rotary" else ():
                again = models.build(_described(stretched, {}))
                again.load_state_dict(model.state_dict())
                losses.setdefault(way, {})[length] = _read(again.eval(), held_out, length)
    return numbers


def _described(position: Any, more: dict[str, Any]) -> spec.Transformer:
    return decoder(
        DIM, DEPTH, attention(DIM, HEADS, position=position), spec.FeedForward(hidden=4 * DIM), std=None, **more
    )


@torch.no_grad()
def _read(model: models.Transformer, ids: Tensor, length: int) -> list[float]:
    """The mean loss of each stretch of the text, nats a byte. Windows of `length` overlap by half, and of each the
    second half is scored: every byte once, after between `length` / 2 and `length` bytes."""
    half = length // 2
    first = LENGTHS[-1] // 2
    cut = ids[first - half : first + SCORED + 1].unfold(0, length + 1, half)
    found = []
    for part in cut.split(LENGTHS[-1] // length):
        logits = model(part[:, :-1]).logits
        assert logits is not None
        found.append(F.cross_entropy(logits[:, half:].flatten(0, 1), part[:, half + 1 :].flatten(), reduction="none"))
    stretches = torch.cat(found).view(STRETCHES, -1).mean(1)
    return [round(loss, 4) for loss in stretches.tolist()]


def rise(numbers: Numbers, name: str) -> Difference:
    """By how much the longest text is read worse than one of the trained length, nats a byte."""
    return difference(numbers["losses"][name][str(LENGTHS[-1])], numbers["losses"][name][str(TRAINED)])


def judge(numbers: Numbers) -> Verdict:
    rises = {name: rise(numbers, name) for name in numbers["losses"] if name not in numbers["refused"]}
    ways = [name for name in rises if name.startswith("rotary, ")]
    best = min(ways, key=lambda name: rises[name].mean)
    longest = str(LENGTHS[-1])
    gain = difference(numbers["losses"][best][longest], numbers["losses"]["rotary"][longest])
    refused = "".join(f"; {name} positions refuse: {said}" for name, said in numbers["refused"].items())
    told = (
        f"from {TRAINED} to {LENGTHS[-1]:,} bytes the loss changes by "
        + ", ".join(f"{found.mean:+.2f} ({name})" for name, found in rises.items())
        + f" nats a byte{refused}"
    )
    fails = [rises["sinusoidal"], rises["rotary"]]
    if _above(rises["ALiBi"], AS_WELL) or any(_below(found, AS_WELL) for found in fails) or _above(gain, 0):
        return does_not_hold(told)
    shown = _below(rises["ALiBi"], AS_WELL) and all(_above(found, AS_WELL) for found in fails) and _below(gain, 0)
    return holds(told) if shown else unclear(told)


def _above(found: Difference, bound: float) -> bool:
    return found.low is not None and found.low > bound


def _below(found: Difference, bound: float) -> bool:
    return found.high is not None and found.high < bound


def draw(numbers: Numbers, figure: Figure) -> None:
    axes = figure.subplots()
    for name, by_length in numbers["losses"].items():
        lengths = [int(length) for length in by_length]
        means = [sum(stretches) / len(stretches) for stretches in by_length.values()]
        style = "--" if name.startswith("rotary, ") else "-"
        note = f"; refuses {2 * TRAINED}" if name in numbers["refused"] else ""
        axes.plot(lengths, means, style, marker="o", markersize=3, label=name + note)
    axes.set_xscale("log", base=2)
    axes.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
    axes.set(xlabel=f"bytes read (trained on {TRAINED}); the second half is scored", ylabel="loss, nats a byte")
    figure.legend(loc="outside right center")


EXPERIMENT = Experiment(
    name="extrapolation",
    claim=f"What is trained on {TRAINED} bytes reads {LENGTHS[-1]:,} as well with ALiBi, but not with sinusoidal or "
    "rotary positions; rescaled rotary angles lose less.",
    source="Press et al. 2022, section 3 (https://arxiv.org/abs/2108.12409); of rescaling, Chen et al. 2023, section 2 "
    "(https://arxiv.org/abs/2306.15595), and Peng et al. 2023 (https://arxiv.org/abs/2309.00071)",
    refuted_by=f"with ALiBi the loss rises by more than {AS_WELL} nats, or with sinusoidal or rotary positions by "
    "less, or no rescaling helps",
    measure=measure,
    judge=judge,
    draw=draw,
    takes={"data": "a text to learn from, a file or folder (Python's own library)"},
)
