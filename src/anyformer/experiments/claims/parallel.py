"""A recurrent network reads token after token; a Transformer learns from all tokens of a sequence at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding, linear

from anyformer import model as models
from anyformer.experiments.costs import growth, seconds
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import BYTES, attention, decoder
from anyformer.planning.counts import parameters
from anyformer.spec import FeedForward, Rotary
from anyformer.training.optimizers import optimizers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: An LSTM layer as wide as the model has two thirds of the parameters of a Transformer's, so it gets half as many more.
DIM, DEPTH, LSTM_DEPTH, HEADS, ROUNDS = 128, 2, 3, 4, 3
#: Every step learns from as many tokens, in fewer and longer rows: batches are counted in tokens (section 5.1).
TOKENS, LENGTHS = 4096, (64, 128, 256, 512, 1024, 2048, 4096)
NAMES = {"transformer": "Transformer", "lstm": "LSTM"}
#: How far the two may be from equal parameters.
EQUAL = 0.02


class Recurrent(nn.Module):
    """Long short-term memory (Hochreiter & Schmidhuber 1997), torch's own, between tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(BYTES, DIM) * 0.02)
        self.layers = nn.LSTM(DIM, DIM, LSTM_DEPTH, batch_first=True)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of tokens [B, T]."""
        hidden, _ = self.layers(embedding(tokens, self.table))
        return cross_entropy(linear(hidden, self.table).flatten(0, 1), targets.flatten())


def measure(lab: Lab) -> Numbers:
    """Seconds of a training step of each, by the length of the rows."""
    described = decoder(DIM, DEPTH, attention(DIM, HEADS, position=Rotary()), FeedForward(hidden=4 * DIM))
    transformer, recurrent = models.build(described, seed=lab.seed), Recurrent()
    step: dict[str, Callable[[Tensor], None]] = {
        "transformer": _step(transformer, lambda ids: transformer(ids, targets=ids).loss),
        "lstm": _step(recurrent, lambda ids: recurrent(ids, ids)),
    }
    generator = torch.Generator().manual_seed(lab.seed)
    texts = [torch.randint(BYTES, (TOKENS // length, length), generator=generator) for length in LENGTHS]
    ways = {(name, ids.shape[1]): partial(step[name], ids) for ids in texts for name in NAMES}
    taken = seconds(ways, lab.times(ROUNDS))
    counted = {"transformer": parameters(described).total, "lstm": sum(each.numel() for each in recurrent.parameters())}
    return {
        "tokens": TOKENS,
        "lengths": list(LENGTHS),
        **{
            name: {"parameters": counted[name], "seconds": [taken[name, length] for length in LENGTHS]}
            for name in NAMES
        },
    }


def _step(model: nn.Module, loss_of: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    made = optimizers("adamw", model, 0.1)

    def step(ids: Tensor) -> None:
        loss_of(ids).backward()
        for one in made:
            one.step()
        model.zero_grad(set_to_none=True)

    return step


def judge(numbers: Numbers) -> Verdict:
    lengths = numbers["lengths"]
    ratios = [lstm / ours for lstm, ours in zip(numbers["lstm"]["seconds"], numbers["transformer"]["seconds"])]
    counted = [numbers[name]["parameters"] for name in NAMES]
    grown = growth(lengths, ratios)
    told = (
        f"of {counted[0]:,} parameters against the LSTM's {counted[1]:,}, the Transformer trains "
        f"{ratios[0]:.2f} times as fast on rows of {lengths[0]} tokens and {ratios[-1]:.2f} times on rows of "
        f"{lengths[-1]:,}; the ratio goes with n^{grown}"
    )
    if abs(counted[0] / counted[1] - 1) > EQUAL:
        return unclear(told)
    if grown.high < 0 or max(ratios) < 1:
        return does_not_hold(told)
    return holds(told) if grown.low > 0 and ratios[-1] > 1 else unclear(told)


def draw(numbers: Numbers, figure: Figure) -> None:
    axes = figure.subplots()
    lengths = numbers["lengths"]
    for name, label in NAMES.items():
        speeds = [numbers["tokens"] / taken for taken in numbers[name]["seconds"]]
        axes.semilogx(lengths, speeds, "o-", label=f"{label}, {numbers[name]['parameters']:,} parameters")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_xticks([], minor=True)
    axes.set(
        xlabel=f"tokens of a row, {numbers['tokens']:,} tokens a step",
        ylabel="tokens a second, training",
        ylim=(0, None),
    )
    axes.legend()


EXPERIMENT = Experiment(
    name="parallel",
    claim="A Transformer trains on all tokens of a sequence at once: the longer sequences are, the faster it is beside "
    "an LSTM of equal parameters.",
    source="Vaswani et al. 2017, section 4 and table 1 (https://arxiv.org/abs/1706.03762)",
    refuted_by="a ratio of speeds that falls as sequences grow, or is below one at every length",
    measure=measure,
    judge=judge,
    draw=draw,
)
