"""An encoder, a decoder and both at once, of one size and one text: each at its own task and at the others'."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyformer import model as models
from anyformer import planning, spec
from anyformer.comparing.statistics import difference, sample
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import BYTES, Batch, attention, decoder, encoder_decoder, learn, text_ids, windows
from anyformer.spec import FeedForward, Rotary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIM, HEADS, LENGTH, ROWS, STEPS, SEEDS, ASKED = 64, 4, 128, 8, 600, 3, 512
MASK, SENTINEL, SPANS = BYTES, BYTES + 1, 6
VOCABULARY = BYTES + 1 + SPANS
#: Of the bytes, hidden for BERT (Devlin et al. 2019, section 3.1). Of T5's spans, the lengths: 3 on average, and six
#: to a window make 14% (Raffel et al. 2020, section 3.1.4).
HIDDEN_SHARE, SPAN_LENGTHS = 0.15, (1, 2, 3, 4, 5)
#: How many bytes are hidden, and how many stand behind them.
TASKS = {"filling": (1, 63), "continuing": (3, 0), "restoring": (3, 63)}
OWN = {"filling": "BERT", "continuing": "GPT", "restoring": "T5"}


def shapes() -> dict[str, spec.Transformer]:
    """The three, of as many parameters: what cross-attention takes, T5's feed-forwards give."""
    wide = FeedForward(hidden=4 * DIM)
    causal = attention(DIM, HEADS, position=Rotary())
    gpt = decoder(DIM, 2, causal, wide, vocabulary=VOCABULARY)
    full = decoder(DIM, 2, causal.replace(visibility="full"), wide, vocabulary=VOCABULARY)
    t5 = encoder_decoder(DIM, 1, HEADS, FeedForward(hidden=3 * DIM), vocabulary=VOCABULARY)
    return {"BERT": full.replace(encoder=full.decoder, decoder=None), "GPT": gpt, "T5": t5}


def masked(ids: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
    """Of windows [B, T] a share of bytes to find: four fifths of them masked, a tenth another byte, a tenth as is."""
    asked = torch.rand(ids.shape, generator=generator) < HIDDEN_SHARE
    how = torch.rand(ids.shape, generator=generator)
    other = torch.randint(BYTES, ids.shape, generator=generator)
    shown = torch.where(how < 0.8, MASK, torch.where(how < 0.9, other, ids))
    return {"tokens": ids.where(~asked, shown), "targets": ids.where(asked, -100)}


def spans(ids: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
    """Of windows [B, T] one span cut out of each of six stretches; all of a step are as long as each other, and any
    sentinel may come first, so that each has been seen everywhere."""
    length = SPAN_LENGTHS[int(torch.randint(len(SPAN_LENGTHS), (), generator=generator))]
    first = int(torch.randint(SPANS, (), generator=generator))
    source, wanted = [], []
    for index, stretch in enumerate(ids.tensor_split(SPANS, dim=1)):
        begin = int(torch.randint(stretch.shape[1] - length + 1, (), generator=generator))
        sentinel = torch.full((len(ids), 1), SENTINEL + (first + index) % SPANS)
        source += [stretch[:, :begin], sentinel, stretch[:, begin + length :]]
        wanted += [sentinel, stretch[:, begin : begin + length]]
    target = torch.cat(wanted, dim=1)
    return {"source": torch.cat(source, dim=1), "tokens": target[:, :-1], "targets": target[:, 1:]}


def hidden_from(text: Batch, hide: Callable[[Tensor, torch.Generator], Mapping[str, Tensor]]) -> Batch:
    """Windows of a text with something hidden, anew in each step."""
    return lambda step: hide(text(step)["tokens"], torch.Generator().manual_seed(step))


def measure(lab: Lab) -> Numbers:
    """Train each at its own task on the same windows; ask all of them for the same bytes of the same held-out text."""
    train, held_out = text_ids(lab)
    numbers: Numbers = {"parameters": {}, "loss": {}}
    for name, shape in shapes().items():
        numbers["parameters"][name] = planning.count(shape)
        losses: dict[str, list[float]] = {task: [] for task in TASKS}
        for seed in range(lab.seed, lab.seed + lab.times(SEEDS, least=2)):
            lab.say(f"training {name}, seed {seed}")
            text = windows(train, LENGTH, ROWS, seed)
            batch = {"BERT": hidden_from(text, masked), "GPT": text, "T5": hidden_from(text, spans)}[name]
            model = models.build(shape, seed=seed)
            learn(model, batch, lab.times(STEPS), learning_rate=1e-2, optimizer="muon")
            for task, (count, behind) in TASKS.items():
                losses[task].append(_loss(name, model, held_out, count, behind))
        numbers["loss"][name] = losses
    return numbers


@torch.no_grad()
def _loss(name: str, model: models.Transformer, ids: Tensor, count: int, behind: int) -> float:
    """Nats a byte for `count` bytes with `behind` bytes after them, each found given those before it."""
    begins = torch.linspace(0, len(ids) - LENGTH, ASKED).long()[:, None]
    text = ids[begins + torch.arange(LENGTH)]
    place = LENGTH - behind - count
    wanted = text[:, place : place + count]
    found = {"BERT": _by_masks, "GPT": _by_the_past, "T5": _by_sentinel}[name](model, text, place, count)
    return -found[..., :BYTES].log_softmax(-1).gather(-1, wanted[..., None]).mean().item()


def _by_masks(model: models.Transformer, text: Tensor, place: int, count: int) -> Tensor:
    """BERT is shown masks, and once it has answered for the first, what stood there."""
    logits = []
    for begin in range(place, place + count):
        shown = text.clone()
        shown[:, begin : place + count] = MASK
        logits.append(_logits(model, shown)[:, begin])
    return torch.stack(logits, dim=1)


def _by_the_past(model: models.Transformer, text: Tensor, place: int, count: int) -> Tensor:
    """GPT is shown what stands before; it has no way to look behind."""
    return _logits(model, text[:, : place + count - 1])[:, place - 1 :]


def _by_sentinel(model: models.Transformer, text: Tensor, place: int, count: int) -> Tensor:
    """T5 is shown a sentinel, and asked for what follows the same sentinel."""
    sentinel = torch.full((len(text), 1), SENTINEL)
    source = torch.cat([text[:, :place], sentinel, text[:, place + count :]], dim=1)
    return _logits(model, torch.cat([sentinel, text[:, place : place + count - 1]], dim=1), source)


def _logits(model: models.Transformer, tokens: Tensor, source: Tensor | None = None) -> Tensor:
    logits = model(tokens, source=source).logits
    assert logits is not None
    return logits


def judge(numbers: Numbers) -> Verdict:
    told, better, worse = [], True, False
    for task, own in OWN.items():
        losses = {name: loss[task] for name, loss in numbers["loss"].items()}
        ahead = [difference(losses[own], theirs) for name, theirs in losses.items() if name != own]
        better &= all(each.larger_than_noise and each.mean < 0 for each in ahead)
        worse |= any(each.larger_than_noise and each.mean > 0 for each in ahead)
        others = " and ".join(f"{name} {sample(loss).mean:.2f}" for name, loss in losses.items() if name != own)
        told.append(f"{own} has {sample(losses[own]).mean:.2f} nats a byte {task} ({others})")
    because = "; ".join(told) + f", over {len(numbers['loss']['GPT']['continuing'])} seeds"
    if worse:
        return does_not_hold(because)
    return holds(because) if better else unclear(because)


def draw(numbers: Numbers, figure: Figure) -> None:
    axes = figure.subplots()
    names = list(numbers["loss"])
    for index, name in enumerate(names):
        for place, task in enumerate(TASKS):
            values, x = numbers["loss"][name][task], place + 0.27 * (index - 1)
            mean, own = sample(values).mean, OWN[task] == name
            axes.bar(x, mean, 0.25, color=f"C{index}", alpha=1 if own else 0.5, label=name if not place else None)
            axes.plot([x] * len(values), values, ".", color="k", markersize=3)
            axes.text(x, max(values) + 0.06, f"{mean:.2f}", ha="center", weight="bold" if own else "normal")
    asked = ("fill in 1 byte", "continue with 3 bytes", "restore 3 bytes")
    axes.set_xticks(range(len(TASKS)), [f"{task}\n({OWN[name]}'s own)" for task, name in zip(asked, TASKS)])
    axes.set(ylabel="held-out loss, nats a byte")
    axes.grid(False, axis="x")
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.12))


EXPERIMENT = Experiment(
    name="shapes",
    claim="Of an encoder, a decoder and an encoder-decoder of one size, each is best at the task it was trained at.",
    source="Raffel et al. 2020, sections 3.2 and 3.3 (https://arxiv.org/abs/1910.10683)",
    refuted_by="at any of the three tasks another shape's loss is lower than its own one's, by more than the noise",
    measure=measure,
    judge=judge,
    draw=draw,
    takes={"data": "a text to learn from, a file or folder (Python's own library)"},
)
