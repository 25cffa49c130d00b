"""Through sliding windows, information travels one window a layer: after some layers it is cut off, to the bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from anyformer import model as models
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import attention, decoder
from anyformer.parts import kernels
from anyformer.parts.context import Context
from anyformer.parts.masks import Tokens
from anyformer.spec import FeedForward, Rotary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIM, HEADS, VOCABULARY, SEEDS = 64, 4, 64, 3
#: Keys that a token sees in a layer, itself included: a window of w carries information w - 1 tokens a layer.
WINDOWS = (2, 5, 16)
DEPTHS = (1, 2, 4, 8)
#: Tokens before and after the one that is changed: it stands past the first, and the text goes on past its reach.
BEFORE, AFTER = 7, 20
#: The window and depths that the plot shows.
SHOWN = 16


def measure(lab: Lab) -> Numbers:
    """For each window and depth: how far from a changed token outputs change, and how far back a gradient reaches."""
    cases = [_case(lab, window, depth) for window in WINDOWS for depth in DEPTHS]
    return {"cases": cases, "kernels": ["auto", "reference"]}


def _case(lab: Lab, window: int, depth: int) -> Numbers:
    """Distances in tokens, over all seeds and kernels. `influence`: the length of the gradient of a token's output by
    the embedding of one so many tokens before, over that by its own; the mean over seeds."""
    heads = attention(DIM, HEADS, window=(window, None), position=Rotary())
    described = decoder(DIM, depth, heads, FeedForward(hidden=2 * DIM), vocabulary=VOCABULARY)
    reach = depth * (window - 1)
    length = BEFORE + 1 + reach + AFTER
    changed, gradients, influence = [], [], torch.zeros(length - 1)
    seeds = range(lab.seed, lab.seed + lab.times(SEEDS))
    for seed in seeds:
        model = models.build(described, dtype=torch.float64, seed=seed).eval()
        ids = torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed))
        for kernel in ("auto", "reference"):
            with kernels.use(kernel):
                changed.append(_changed(model, ids))
                lengths = _gradients(model, ids)
            gradients.append(int(lengths.nonzero().max()))
        influence += (lengths / lengths[0])[: length - 1] / len(seeds)
    return {
        "window": window,
        "depth": depth,
        "expected": reach,
        "text_beyond": AFTER,
        "changed": [min(changed), max(changed)],
        "gradients": [min(gradients), max(gradients)],
        "influence": [float(f"{value:.3g}") for value in influence.tolist()] if window == SHOWN else None,
    }


@torch.no_grad()
def _changed(model: models.Transformer, ids: torch.Tensor) -> int:
    """How many tokens after a changed one stands the last output of which any bit changes."""
    other = ids.clone()
    other[0, BEFORE] = (other[0, BEFORE] + 1) % VOCABULARY
    differ = (model(ids).hidden != model(other).hidden).any(-1)[0]
    assert not differ[:BEFORE].any(), "the past does not change"
    return int(differ.nonzero().max()) - BEFORE


def _gradients(model: models.Transformer, ids: torch.Tensor) -> torch.Tensor:
    """The length of the gradient of the last token's output by the embedding of each, [T], the last token's first."""
    assert model.decoder is not None
    tokens = Tokens(ids.shape[1], start=0)
    stream = model.decoder.embeddings(ids, tokens).detach().requires_grad_()
    out, context = stream, Context(tokens)
    for layer in model.decoder.layers:
        out = layer(out, context)
    direction = torch.randn(DIM, dtype=out.dtype, generator=torch.Generator().manual_seed(0))
    (by_stream,) = torch.autograd.grad(out[0, -1] @ direction, stream)
    return by_stream[0].norm(dim=-1).flip(0)


def judge(numbers: Numbers) -> Verdict:
    cases = numbers["cases"]
    found = [(case["expected"], value) for case in cases for value in case["changed"] + case["gradients"]]
    deep = max(cases, key=lambda case: case["expected"])
    further = sum(value > expected for expected, value in found)
    less = sum(value < expected for expected, value in found)
    told = (
        f"in {deep['depth']} layers of {deep['window']} keys, outputs change up to {deep['changed'][1]} tokens after a "
        f"changed one, and gradients reach {deep['gradients'][1]} back (layers · (w - 1) = {deep['expected']}); of "
        f"{len(found)} reaches in {len(cases)} models, {further} are longer than that and {less} shorter"
    )
    if any(value > expected for expected, value in found):
        return does_not_hold(told)
    return holds(told) if all(value == expected for expected, value in found) else unclear(told)


def draw(numbers: Numbers, figure: Figure) -> None:
    axes = figure.subplots()
    for index, case in enumerate(case for case in numbers["cases"] if case["window"] == SHOWN):
        reached = [(back, value) for back, value in enumerate(case["influence"]) if value > 0]
        layers = "layer" if case["depth"] == 1 else "layers"
        axes.semilogy(*zip(*reached), color=f"C{index}", label=f"{case['depth']} {layers}")
        axes.axvline(case["expected"], color=f"C{index}", linestyle=":", linewidth=1)
    axes.set(xlabel="tokens back", ylabel="gradient by an earlier token, relative")
    axes.set_title(f"Exactly zero beyond layers · (w - 1), dotted; w = {SHOWN} keys")
    axes.legend()


EXPERIMENT = Experiment(
    name="window",
    claim="Under sliding windows of w keys, information travels w - 1 tokens in each layer, and no further.",
    source="Beltagy et al. 2020, section 3.1 (https://arxiv.org/abs/2004.05150); Jiang et al. 2023, section 2 "
    "(https://arxiv.org/abs/2310.06825)",
    refuted_by="any bit of an output, or any gradient, that depends on a token further back than layers · (w - 1)",
    measure=measure,
    judge=judge,
    draw=draw,
)
