"""Whether an ability comes suddenly with scale is a matter of how one asks: all of an answer, or how near it was."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyformer import model as models
from anyformer import planning
from anyformer.comparing.statistics import difference, sample
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import Batch, attention, decoder, learn
from anyformer.spec import FeedForward, Learned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Sums of two numbers of so many digits, by decoders of these widths.
DIGITS, WIDTHS, DEPTH, HEAD = 4, (8, 16, 24, 32, 40, 48, 56, 64), 2, 8
STEPS, ROWS, SEEDS, ASKED = 600, 64, 4, 2048
PLUS, EQUALS, VOCABULARY = 10, 11, 12
#: There is something that emerges where the smallest model is never right and the largest nearly always.
NEVER, NEARLY_ALWAYS = 0.05, 0.9
#: More than half of a metric's whole rise in one step between neighbours of eight is a jump of its own.
JUMP = 0.5


def sums(rows: int, seed: int) -> Batch:
    """In each step other sums, `4321+8765=68031`: all numbers with their last digit first, where the carry begins."""

    def batch(step: int) -> Mapping[str, Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        one, other = torch.randint(10**DIGITS, (2, rows, 1), generator=generator)
        places = 10 ** torch.arange(DIGITS + 1)
        plus, equals = torch.full((rows, 1), PLUS), torch.full((rows, 1), EQUALS)
        first, second = (number // places[:-1] % 10 for number in (one, other))
        text = torch.cat([first, plus, second, equals, (one + other) // places % 10], dim=1)
        asked = torch.arange(text.shape[1] - 1) > 2 * DIGITS
        return {"tokens": text[:, :-1], "targets": text[:, 1:].where(asked, -100)}

    return batch


def measure(lab: Lab) -> Numbers:
    """Every width from several seeds, all for as many steps; one set of sums that hardly any model has seen."""
    exam = sums(ASKED, lab.seed + 1_000)(0)
    numbers: Numbers = {"parameters": [], "exact": [], "log_probability": [], "digits": DIGITS + 1}
    for width in WIDTHS:
        heads = attention(width, width // HEAD)
        size = FeedForward(hidden=4 * width)
        spec = decoder(width, DEPTH, heads, size, vocabulary=VOCABULARY, position=Learned(size=4 * DIGITS))
        exact, log_probability = [], []
        for seed in range(lab.seed, lab.seed + lab.times(SEEDS, least=2)):
            lab.say(f"learning to add: width {width}, seed {seed}")
            model = models.build(spec, seed=seed)
            learn(model, sums(ROWS, seed), lab.times(STEPS), learning_rate=1e-2, optimizer="muon")
            answers = _answers(model, exam)
            exact.append(answers[0])
            log_probability.append(answers[1])
        numbers["parameters"].append(planning.count(spec))
        numbers["exact"].append(exact)
        numbers["log_probability"].append(log_probability)
    return numbers


@torch.no_grad()
def _answers(model: models.Transformer, exam: Mapping[str, Tensor]) -> tuple[float, float]:
    """The share of sums of which every digit is right, as they are where greedy decoding is (it sees its own digits,
    which are the right ones up to its first mistake); and the mean log probability of a right digit, nats."""
    logits = model(exam["tokens"]).logits
    assert logits is not None
    answers, targets = logits[:, 2 * DIGITS + 1 :], exam["targets"][:, 2 * DIGITS + 1 :]
    exact = (answers.argmax(-1) == targets).all(1).float().mean()
    return exact.item(), answers.log_softmax(-1).gather(-1, targets[..., None]).mean().item()


def largest_step(rising: list[float]) -> float:
    """What of a metric's whole rise falls on its largest step from one size to the next: 1 is a jump out of nothing,
    one over the number of steps as even as can be."""
    whole = rising[-1] - rising[0]
    return max(after - before for before, after in pairwise(rising)) / whole


def judge(numbers: Numbers) -> Verdict:
    exact, smooth = ([list(seed) for seed in zip(*numbers[name])] for name in ("exact", "log_probability"))
    never, always = (sample([seed[end] for seed in exact]).mean for end in (0, -1))
    if never > NEVER or always < NEARLY_ALWAYS:
        return unclear(
            f"nothing emerges here: {never:.0%} of sums are right at the smallest size, {always:.0%} at the last"
        )
    jumps, steps = ([largest_step(seed) for seed in metric] for metric in (exact, smooth))
    more = difference(jumps, steps)
    assert more.low is not None and more.high is not None
    told = (
        f"from one size to the next all digits come right for as much as {sample(jumps).mean:.0%} of the whole rise, "
        f"the log probability of a digit rises by at most {sample(steps).mean:.0%} of its own: {more.mean * 100:+.0f} "
        f"points (95% interval {more.low * 100:+.0f} to {more.high * 100:+.0f}, {len(jumps)} seeds)"
    )
    if sample(steps).mean > JUMP or (more.larger_than_noise and more.mean < 0):
        return does_not_hold(told)
    return holds(told) if more.larger_than_noise else unclear(told)


def draw(numbers: Numbers, figure: Figure) -> None:
    axes = figure.subplots()
    smooth_axes = axes.twinx()
    sizes = numbers["parameters"]
    exact, smooth = ([sample(values).mean for values in numbers[name]] for name in ("exact", "log_probability"))
    for place, name, colour in ((axes, "exact", "C0"), (smooth_axes, "log_probability", "C1")):
        for seed in zip(*numbers[name]):
            place.plot(sizes, seed, ".", color=colour, alpha=0.4)
    axes.plot(sizes, exact, "C0", label="sharp: whole answers right")
    axes.plot(sizes, torch.tensor(smooth).mul(numbers["digits"]).exp(), "C0:", label="as foretold by the smooth one")
    axes.plot([], "C1", label="smooth: log probability of a digit")
    smooth_axes.plot(sizes, smooth, "C1")
    axes.set(xlabel="parameters", ylabel="share of sums with every digit right", xscale="log")
    smooth_axes.set(ylabel="mean log probability of a right digit, nats")
    smooth_axes.spines["right"].set_visible(True)
    smooth_axes.grid(False)
    axes.legend(loc="upper left")


EXPERIMENT = Experiment(
    name="emergence",
    claim="An ability that appears suddenly with scale under an exact metric grows steadily under a smooth one.",
    source="Schaeffer, Miranda & Koyejo 2023, sections 2 and 3 (https://arxiv.org/abs/2304.15004)",
    refuted_by="the smooth metric jumps between neighbouring sizes too: more than the sharp one, or by over half",
    measure=measure,
    judge=judge,
    draw=draw,
)
