"""A causal mask keeps the future out of the past; without one, a model that learns to predict learns to look."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from anyformer import model as models
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import attention, decoder, learn, text_ids, thinned, windows
from anyformer.spec import FeedForward, Rotary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIM, DEPTH, HEADS, LENGTH, ROWS, STEPS = 128, 2, 4, 128, 16, 300
#: How many (text, place) pairs have everything after the place changed.
CHANGES = 64
#: A cheat reads the next byte off the text: it should be left with hardly any of the honest model's loss.
CHEATED = 0.5


def measure(lab: Lab) -> Numbers:
    """Train with and without the mask; change what follows a place; hide what follows a place."""
    train, held_out = text_ids(lab)
    numbers: Numbers = {"masked": {}, "unmasked": {}}
    for name, visibility in (("masked", "causal"), ("unmasked", "full")):
        heads = attention(DIM, HEADS, visibility=visibility, position=Rotary())
        model = models.build(decoder(DIM, DEPTH, heads, FeedForward(hidden=4 * DIM)), seed=lab.seed)
        lab.say(f"training {name}")
        losses = learn(model, windows(train, LENGTH, ROWS, lab.seed), lab.times(STEPS), learning_rate=2e-3)
        numbers[name] = {"losses": thinned(losses), **_ask(model, held_out)}
    return numbers


@torch.no_grad()
def _ask(model: models.Transformer, ids: torch.Tensor) -> dict[str, float]:
    """Mean loss with the future in view and with it cut off, nats; and the share of past outputs of which any bit
    changes when the future does."""
    text = windows(ids, LENGTH, CHANGES)(0)
    tokens, targets = text["tokens"], text["targets"]
    logits = model(tokens).logits
    assert logits is not None
    changed = alone = seen = 0.0
    for row, place in enumerate(torch.linspace(1, LENGTH - 2, CHANGES).long().tolist()):
        other = tokens[row : row + 1].clone()
        other[:, place + 1 :] = (other[:, place + 1 :] + 1) % 256
        again = model(other).logits
        until = model(tokens[row : row + 1, : place + 1]).logits
        before = model(tokens[row : row + 1]).logits
        assert again is not None and until is not None and before is not None
        changed += (again[0, : place + 1] != before[0, : place + 1]).any(-1).float().mean().item() / CHANGES
        wanted = targets[row, place : place + 1]
        seen += torch.nn.functional.cross_entropy(before[0, place : place + 1], wanted).item() / CHANGES
        alone += torch.nn.functional.cross_entropy(until[0, -1:], wanted).item() / CHANGES
    return {"changed": changed, "loss": seen, "loss_without_future": alone}


def judge(numbers: Numbers) -> Verdict:
    masked, unmasked = numbers["masked"], numbers["unmasked"]
    told = (
        f"with the mask {masked['changed']:.0%} of past outputs change with the future, without it "
        f"{unmasked['changed']:.0%}; without it the loss is {unmasked['loss']:.2f} nats while the next byte is in view "
        f"and {unmasked['loss_without_future']:.2f} once it is not (honest: {masked['loss']:.2f})"
    )
    cheats = unmasked["loss"] < CHEATED * masked["loss"]
    useless = unmasked["loss_without_future"] > masked["loss"]
    if masked["changed"] > 0:
        return does_not_hold(told)
    return holds(told) if cheats and useless else unclear(told)


def draw(numbers: Numbers, figure: Figure) -> None:
    axes = figure.subplots()
    for name, label in (("masked", "causal mask"), ("unmasked", "no mask: it sees the answer")):
        axes.plot(numbers[name]["losses"]["step"], numbers[name]["losses"]["loss"], label=label)
    axes.set(xlabel="step", ylabel="training loss, nats a byte", ylim=(0, None))
    axes.legend()


EXPERIMENT = Experiment(
    name="causal",
    claim="Under a causal mask no future token changes a past output, to the bit; a model trained without it cheats.",
    source="Vaswani et al. 2017, section 3.2.3 (https://arxiv.org/abs/1706.03762)",
    refuted_by="any past output changes with a future token under the mask",
    measure=measure,
    judge=judge,
    draw=draw,
    takes={"data": "a text to learn from, a file or folder (Python's own library)"},
)
