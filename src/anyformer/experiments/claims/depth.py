"""What carries a signal through 128 layers: the residual connections, and where the norm stands beside them."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anyformer import model as models
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import BYTES, attention, decoder, held_out_loss, learn, text_ids, thinned, windows
from anyformer.model.block import Block
from anyformer.parts.cache import LayerCache
from anyformer.parts.context import Context
from anyformer.spec import FeedForward, Initialization, Rotary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIM, DEPTH, HEADS, LENGTH, ROWS, STEPS = 32, 128, 2, 64, 8, 150
#: Each arrangement is judged by the better of these, so that none fails for want of a learning rate.
LEARNING_RATES = (2e-3, 8e-3)
NAMES = {
    "residual-pre": "residual, norm before",
    "residual-post": "residual, norm after",
    "straight-pre": "no residual, norm before",
    "straight-post": "no residual, norm after",
}
#: Nats below the loss of knowing only how frequent each byte is. Who reads the byte before gains about three times as
#: much as LEARNS; below NOTHING is what a held-out text of another mixture of bytes may cost.
LEARNS, NOTHING = 0.25, 0.05
#: Largest over smallest gradient of a layer. What grows as a power of the depth stays below the depth; what grows by a
#: factor a layer, be it 1.05, does not.
EVEN = DEPTH
#: Xiong et al.'s theorem 1 bounds the last layer's gradient by √(ln D) with the norm after, √(ln D / L) with it before:
#: √L between them, give or take two.
LARGER_AT_THE_END = DEPTH**0.5 / 2
#: Weights drawn, to average a gradient over.
DRAWS = 3


class Straight(Block):
    """A layer without its residual connections: each mixer, normalised before or after, and nothing beside it."""

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        for name, placement, *_ in self.branches:
            mixer, norm = self.get_submodule(name), self.get_submodule(f"{name}_norm")
            x = mixer(norm(x), context, cache) if placement == "pre" else norm(mixer(x, context, cache))
        return x


def measure(lab: Lab) -> Numbers:
    """Gradients of every layer before the first step, and what is learned, with and without residual connections."""
    train, held_out = text_ids(lab)
    batch = windows(train, LENGTH, ROWS, lab.seed)
    frequency = (torch.bincount(train, minlength=BYTES) + 1).double() / (len(train) + BYTES)
    numbers: Numbers = {"frequencies_alone": -frequency.log()[held_out].mean().item(), "arrangements": {}}
    for name in NAMES:
        drawn = torch.tensor([_gradients(_model(name, lab.seed + draw), batch(draw)) for draw in range(DRAWS)])
        gradients = [float(f"{length:.4g}") for length in drawn.log().mean(0).exp().tolist()]
        runs = []
        for rate in LEARNING_RATES:
            model = _model(name, lab.seed)
            lab.say(f"training {NAMES[name]}, learning rate {rate:g}")
            losses = learn(model, batch, lab.times(STEPS), learning_rate=rate)
            loss = held_out_loss(model, held_out, LENGTH)
            runs.append({"learning_rate": rate, "loss": loss, "losses": thinned(losses), "gradients": gradients})
        numbers["arrangements"][name] = min(runs, key=lambda run: run["loss"])
    return numbers


def _model(name: str, seed: int) -> models.Transformer:
    """128 layers, all drawn alike: 1/√inputs, as the original has it, whatever the depth."""
    residual, placement = name.split("-")
    mixers = attention(DIM, HEADS, position=Rotary()), FeedForward(hidden=2 * DIM)
    described = decoder(DIM, DEPTH, *mixers, placement="pre" if placement == "pre" else "post")
    model = models.build(described.replace(initialization=Initialization(std=None)), seed=seed)
    if residual == "straight":
        assert described.decoder is not None and model.decoder is not None
        layers = nn.ModuleList(Straight(block, DIM) for block in described.decoder.layers())
        layers.load_state_dict(model.decoder.layers.state_dict())
        model.decoder.layers = layers
    return model


def _gradients(model: models.Transformer, batch: Any) -> list[float]:
    """How long the gradient of each layer is, from the first layer to the last."""
    loss = model(**batch).loss
    assert loss is not None and model.decoder is not None
    loss.backward()
    norms = [
        math.hypot(*(p.grad.norm().item() for p in layer.parameters() if p.grad is not None))
        for layer in model.decoder.layers
    ]
    model.zero_grad(set_to_none=True)
    return norms


def judge(numbers: Numbers) -> Verdict:
    runs = numbers["arrangements"]
    gained = {name: numbers["frequencies_alone"] - run["loss"] for name, run in runs.items()}
    spread = max(runs["residual-pre"]["gradients"]) / min(runs["residual-pre"]["gradients"])
    end = runs["residual-post"]["gradients"][-1] / runs["residual-pre"]["gradients"][-1]
    told = (
        f"beyond the frequencies of bytes {DEPTH} layers learn {gained['residual-pre']:.2f} nats with residual "
        f"connections and the norm before, {gained['residual-post']:.2f} with it after; without residual connections "
        f"{gained['straight-pre']:.2f} and {gained['straight-post']:.2f}. With them and the norm before, the largest "
        f"gradient of a layer is {spread:.1f} times the smallest; with the norm after, the last layer's is {end:.1f} "
        f"times as large"
    )
    straight = max(gained["straight-pre"], gained["straight-post"])
    if straight > LEARNS or spread > EVEN:
        return does_not_hold(told)
    shown = gained["residual-pre"] > LEARNS and straight < NOTHING and end > LARGER_AT_THE_END
    return holds(told) if shown else unclear(told)


def draw(numbers: Numbers, figure: Figure) -> None:
    left, right = figure.subplots(1, 2)
    styles = dict(zip(NAMES, product(("C0", "C1"), ("-", "--"))))
    for name, run in numbers["arrangements"].items():
        color, line = styles[name]
        left.plot(range(1, len(run["gradients"]) + 1), run["gradients"], color=color, linestyle=line)
        right.plot(run["losses"]["step"], run["losses"]["loss"], color=color, linestyle=line, label=NAMES[name])
    left.set(yscale="log", xlabel="layer", ylabel="length of its gradient before training")
    right.axhline(numbers["frequencies_alone"], color="gray", linewidth=0.8)
    right.annotate("frequencies alone", (0, numbers["frequencies_alone"]), va="bottom", color="gray", fontsize=8)
    right.set(xlabel="step", ylabel="training loss, nats a byte")
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=2)


EXPERIMENT = Experiment(
    name="depth",
    claim=f"{DEPTH} layers learn with residual connections and not without; with the norm before each branch their "
    "gradients begin about even, with the norm after they begin large near the output.",
    source="He et al. 2015, section 3 (https://arxiv.org/abs/1512.03385), of residual connections; Xiong et al. 2020, "
    "theorem 1 (https://arxiv.org/abs/2002.04745), of the norm",
    refuted_by="it learns as well without residual connections, or gradients grow by a factor a layer with the norm "
    "before",
    measure=measure,
    judge=judge,
    draw=draw,
    takes={"data": "a text to learn from, a file or folder (Python's own library)"},
)
