"""Scores of wide heads are large, and a softmax of large numbers picks one and passes hardly any gradient."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING

import torch

from anyformer import model as models
from anyformer.comparing.statistics import difference, sample
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import attention, decoder, held_out_loss, learn, text_ids, windows
from anyformer.inspection import trace
from anyformer.parts.attention import Attention, attention_mask
from anyformer.parts.kernels import Scores, reference
from anyformer.parts.masks import Tokens, lower
from anyformer.spec import FeedForward, Rotary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Widths of a head at initialisation, of so many rows of random queries over so many random keys.
WIDTHS, ROWS, KEYS = (4, 16, 64, 256, 1024), 64, 64
#: The models that are trained: heads as wide as makes the difference.
DIM, DEPTH, HEADS, WIDTH, LENGTH, BATCH, STEPS, SEEDS = 64, 2, 2, 256, 64, 16, 100, 3
#: What falls to less than a tenth from the narrowest head to the widest has vanished; what keeps half has not.
VANISHED, KEPT = 0.1, 0.5
SCALES = ("with", "without")


def measure(lab: Lab) -> Numbers:
    """Weights of unit-variance queries and keys by the width of the head; then of models that were trained."""
    numbers: Numbers = {"widths": list(WIDTHS), **{scale: {"entropy": [], "slope": []} for scale in SCALES}}
    for width in WIDTHS:
        for name in SCALES:
            weights = _fresh(width, _scale(name, width), lab.seed)
            for what, value in _softness(weights, log(KEYS)).items():
                numbers[name][what].append(value)
    train, held_out = text_ids(lab, most=1_000_000)
    numbers["trained"] = {scale: {"entropy": [], "slope": [], "loss": []} for scale in SCALES}
    for seed in range(lab.seed, lab.seed + lab.times(SEEDS, least=2)):
        for name in SCALES:
            lab.say(f"training {name} the scale, seed {seed}")
            for what, value in _trained(name, train, held_out, lab.times(STEPS), seed).items():
                numbers["trained"][name][what].append(value)
    return numbers


def _scale(name: str, width: int) -> float:
    return width**-0.5 if name == "with" else 1.0


def _fresh(width: int, scale: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(ROWS, 1, KEYS, width, generator=generator) for _ in range(2))
    tokens = Tokens(KEYS, start=0)
    return reference.weights(q, k, lower(attention_mask("full", None), tokens, tokens), Scores(scale))


def _softness(weights: torch.Tensor, most: torch.Tensor | float) -> dict[str, float]:
    """Medians over queries, of weights p [..., keys]: their entropy as a share of the `most` there could be, and the
    length of the derivative of p by the scores, ‖diag(p) - p·pᵀ‖, through which every gradient of them passes."""
    p = weights.double()
    entropy = -(p * p.clamp(min=1e-300).log()).sum(-1) / most
    squares, cubes = p.square().sum(-1), p.pow(3).sum(-1)
    slope = (squares - 2 * cubes + squares.square()).clamp(min=0).sqrt()
    return {"entropy": entropy.median().item(), "slope": slope.median().item()}


def _trained(name: str, train: torch.Tensor, held_out: torch.Tensor, steps: int, seed: int) -> dict[str, float]:
    """A model that learns with heads scaled so, from queries and keys of unit variance, and what became of it."""
    heads = attention(DIM, HEADS, head_dim=WIDTH, scale=_scale(name, WIDTH), position=Rotary())
    model = models.build(decoder(DIM, DEPTH, heads, FeedForward(hidden=4 * DIM)), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, Attention):
            for matrix in (module.query.weight, module.key.weight):
                matrix.data.normal_(0.0, DIM**-0.5, generator=generator)
    learn(model, windows(train, LENGTH, BATCH, seed), steps, learning_rate=2e-3)
    tokens = windows(held_out, LENGTH, BATCH)(0)["tokens"]
    with torch.no_grad(), trace(model, "decoder.layers.*.attention.weights") as seen:
        model(tokens)
    weights = seen.stack("decoder.layers.*.attention.weights")
    # Of the second half of queries: a causal one sees as many keys as stand before it, and itself.
    late = slice(LENGTH // 2, None)
    visible = torch.arange(1, LENGTH + 1)[late].double()
    return _softness(weights[..., late, :], visible.log()) | {"loss": held_out_loss(model, held_out, LENGTH)}


def judge(numbers: Numbers) -> Verdict:
    fell = {name: numbers[name]["slope"][-1] / numbers[name]["slope"][0] for name in SCALES}
    entropy = {name: numbers[name]["entropy"][-1] for name in SCALES}
    trained = numbers["trained"]
    means = {what: [sample(trained[name][what]).mean for name in SCALES] for what in ("entropy", "slope", "loss")}
    told = (
        f"from heads of {numbers['widths'][0]} to {numbers['widths'][-1]} the softmax's derivative goes to "
        f"{fell['with']:.2f} of itself with the scale and to {fell['without']:.0e} without, the entropy to "
        f"{entropy['with']:.0%} and {entropy['without']:.0%} of the most; after training with heads of {WIDTH}, "
        f"entropy {means['entropy'][0]:.0%} and {means['entropy'][1]:.0%}, derivative {means['slope'][0]:.3f} and "
        f"{means['slope'][1]:.3f}, held-out loss {means['loss'][0]:.2f} and {means['loss'][1]:.2f} nats"
    )
    vanishes = fell["without"] < VANISHED and entropy["without"] < VANISHED
    stays = fell["with"] > KEPT and entropy["with"] > KEPT
    if not (vanishes and stays):
        return does_not_hold(told)
    lower_after = [difference(trained["without"][what], trained["with"][what]) for what in ("entropy", "slope")]
    return holds(told) if all(one.larger_than_noise and one.mean < 0 for one in lower_after) else unclear(told)


def draw(numbers: Numbers, figure: Figure) -> None:
    panels = figure.subplots(1, 2)
    said = (("entropy", "entropy, share of the most"), ("slope", "derivative of weights by scores"))
    for axes, (what, label) in zip(panels, said):
        for index, name in enumerate(SCALES):
            axes.plot(numbers["widths"], numbers[name][what], "o-", color=f"C{index}", label=f"{name} 1/√d")
            after = numbers["trained"][name][what]
            axes.plot([WIDTH] * len(after), after, "x", color=f"C{index}")
        axes.set_xscale("log", base=2)
        axes.set_xticks(numbers["widths"], [str(width) for width in numbers["widths"]])
        axes.set(xlabel="d, width of a head", ylabel=label)
    panels[0].set_ylim(0, 1)
    panels[1].set_yscale("log")
    panels[0].legend()
    panels[0].set_title("dots: unit-variance queries, keys")
    panels[1].set_title("crosses: after training")


EXPERIMENT = Experiment(
    name="scaling-by-sqrt-d",
    claim="Without the factor 1/√d the softmax saturates as heads grow wider, and its gradients vanish; with it, not.",
    source="Vaswani et al. 2017, section 3.2.1 and footnote 4 (https://arxiv.org/abs/1706.03762)",
    refuted_by="an entropy or a derivative that stays without the factor, or falls with it, as heads grow wider",
    measure=measure,
    judge=judge,
    draw=draw,
    takes={"data": "a text to learn from, a file or folder (Python's own library)"},
)
