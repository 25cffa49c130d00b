"""Does cross-attention align words? A translator's weights against two alignments that it had no part in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyformer import model as models
from anyformer.comparing.statistics import difference, sample
from anyformer.errors import ExperimentError
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import Batch, encoder_decoder, learn, thinned
from anyformer.inspection import trace
from anyformer.spec import FeedForward

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIM, DEPTH, HEADS, ROWS, STEPS = 128, 1, 4, 64, 1200
#: Words a side of the pairs that are read, and how many different words are known, of both languages together.
SHORTEST, LONGEST, KNOWN = 3, 14, 4000
HELD_OUT, ROUNDS = 1000, 8
PAD, UNKNOWN, START, END = range(4)
#: Weights that align put most words where they belong.
MOST = 0.5


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations: ids [N, S] and [N, T], padded, and the words themselves."""

    source: Tensor
    target: Tensor
    words: list[tuple[list[str], list[str]]]

    def __getitem__(self, rows: slice) -> Pairs:
        return Pairs(self.source[rows], self.target[rows], self.words[rows])


def read_pairs(lab: Lab) -> Pairs:
    """The short pairs of a TSV file in an order drawn once, each source once.

    Raises `ExperimentError` without a file, and where it holds too few pairs.
    """
    if lab.data is None:
        raise ExperimentError("translation needs pairs: --data FILE.tsv, a sentence and its translation a line")
    lines = lab.data.read_text(encoding="utf-8", errors="replace").splitlines()
    read = dict(line.split("\t")[-2:] for line in lines if "\t" in line)
    split = [tuple(re.findall(r"\w+|[^\w\s]", side.lower()) for side in pair) for pair in read.items()]
    words = [(one, other) for one, other in split if all(SHORTEST <= len(side) <= LONGEST for side in (one, other))]
    if len(words) < 2 * HELD_OUT:
        raise ExperimentError(f"{lab.data} has {len(words):,} short pairs; translation needs {2 * HELD_OUT:,} or more")
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(0)).tolist()
    words = [words[index] for index in order]
    counts = Counter(word for pair in words for side in pair for word in side)
    ids = {word: index for index, (word, _) in enumerate(counts.most_common(KNOWN - END - 1), END + 1)}
    source, target = (
        torch.tensor([[ids.get(word, UNKNOWN) for word in side] + [PAD] * (LONGEST - len(side)) for side in sides])
        for sides in zip(*words)
    )
    return Pairs(source, target, words)


def batches(pairs: Pairs, rows: int, seed: int) -> Batch:
    """In each step some pairs, drawn at random."""

    def batch(step: int) -> Mapping[str, Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        drawn = torch.randint(len(pairs.source), (rows,), generator=generator)
        return inputs(pairs.source[drawn], pairs.target[drawn])

    return batch


def inputs(source: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What a model is called with: at place t it has read the words before the t-th, and is to say that one."""
    started = torch.cat([torch.full_like(target[:, :1], START), target], dim=1)
    length = (target != PAD).sum(1, keepdim=True)
    wanted = torch.cat([target, torch.full_like(target[:, :1], PAD)], dim=1).scatter(1, length, END)
    return {
        "source": source,
        "source_valid": source != PAD,
        "tokens": started,
        "targets": wanted.where(wanted > 0, -100),
    }


def measure(lab: Lab) -> Numbers:
    """Train a translator; see where it looks when it says a word; compare with anchors and with word statistics."""
    pairs = read_pairs(lab)
    held_out, train = pairs[:HELD_OUT], pairs[HELD_OUT:]
    spec = encoder_decoder(DIM, DEPTH, HEADS, FeedForward(hidden=2 * DIM), vocabulary=KNOWN)
    model = models.build(spec, seed=lab.seed)
    lab.say(f"training on {len(train.source):,} pairs")
    losses = learn(model, batches(train, ROWS, lab.seed), lab.times(STEPS), learning_rate=1e-2, optimizer="muon")
    with torch.no_grad():
        loss = model(**inputs(held_out.source, held_out.target)).loss.item()
    lab.say("aligning words by their statistics")
    references = {"anchors": anchors(held_out), "statistics": links(pairs)[:HELD_OUT]}
    # Which head looks where it translates is read off pairs that it is not judged by.
    seen = train[:HELD_OUT]
    head = int(torch.stack([agreement(place, anchors(seen)).mean() for place in looked_at(model, seen)]).argmax())
    placed = {"attention": looked_at(model, held_out)[head], "diagonal": diagonal(held_out)}
    numbers: Numbers = {"pairs": len(train.source), "curve": thinned(losses), "held_out_loss": loss, "head": head}
    for name, reference in references.items():
        right = {way: agreement(place, reference).tolist() for way, place in placed.items()}
        more = difference(right["attention"], right["diagonal"])
        numbers[name] = {way: sample(shares).mean for way, shares in right.items()}
        numbers[name] |= {"words": int(reference.sum()), "more": more.mean, "low": more.low, "high": more.high}
    return numbers | {"example": _example(model, held_out, references["statistics"], head)}


@torch.no_grad()
def weights(model: models.Transformer, pairs: Pairs) -> Tensor:
    """Of every head of every layer, and last of all of them together, the weights [heads, N, T, S]."""
    with trace(model, "decoder.layers.*.cross_attention.weights") as seen:
        model(**inputs(pairs.source, pairs.target))
    each = torch.cat([weight.transpose(0, 1) for _, weight in seen.items()])[:, :, :-1]
    return torch.cat([each, each.mean(0, keepdim=True)])


def looked_at(model: models.Transformer, pairs: Pairs) -> Tensor:
    """Where each head looks most when it says each word, [heads, N, T]."""
    return weights(model, pairs).argmax(-1)


def diagonal(pairs: Pairs) -> Tensor:
    """The place as far into the source as a word is into its sentence, [N, T]."""
    lengths, others = ((ids != PAD).sum(1, keepdim=True) for ids in (pairs.source, pairs.target))
    return (torch.arange(LONGEST) * (lengths - 1) / (others - 1)).round().long().clamp(max=LONGEST - 1)


def agreement(place: Tensor, reference: Tensor) -> Tensor:
    """For each pair in which a reference [N, S, T] links any word, the share of its words that `place` [N, T] has."""
    right = (reference.gather(1, place[:, None]).squeeze(1)).sum(1)
    linked = reference.any(1).sum(1)
    return (right / linked)[linked > 0]


def anchors(pairs: Pairs) -> Tensor:
    """Words and numbers that are the same on both sides, once each, [N, S, T]: nobody doubts that those belong."""
    same = (pairs.source[:, :, None] == pairs.target[:, None, :]) & _speaks(pairs)
    return same & (same.sum(1, keepdim=True) == 1) & (same.sum(2, keepdim=True) == 1)


def links(pairs: Pairs) -> Tensor:
    """Words that are each other's likeliest partners under IBM's model 1 in both directions, [N, S, T]."""
    onto, back = model_1(pairs.source, pairs.target), model_1(pairs.target, pairs.source).transpose(1, 2)
    best = torch.zeros_like(onto, dtype=torch.bool).scatter(1, onto.argmax(1, keepdim=True), True)
    return best & torch.zeros_like(best).scatter(2, back.argmax(2, keepdim=True), True) & _speaks(pairs)


def model_1(source: Tensor, target: Tensor) -> Tensor:
    """How likely each source word is to become each target word of its pair, [N, S, T]: p(t | s) by expectation
    maximisation (Brown et al. 1993, section 4.1)."""
    there = (source[:, :, None] != PAD) & (target[:, None, :] != PAD)
    couples, index = (source[:, :, None] * KNOWN + target[:, None, :]).unique(return_inverse=True)
    table = torch.ones(len(couples))
    for _ in range(ROUNDS):
        share = table[index] * there
        share = share / share.sum(1, keepdim=True).clamp(min=1e-30)
        counts = torch.zeros_like(table).index_add(0, index.flatten(), share.flatten())
        table = counts / torch.zeros(KNOWN).index_add(0, couples // KNOWN, counts)[couples // KNOWN].clamp(min=1e-30)
    return table[index] * there


def _speaks(pairs: Pairs) -> Tensor:
    """Where both sides are known words or numbers and not signs, [N, S, T]."""
    spoken = [
        torch.tensor([[word[0].isalnum() for word in side] + [False] * (LONGEST - len(side)) for side in sides])
        & (ids > END)
        for sides, ids in zip(zip(*pairs.words), (pairs.source, pairs.target))
    ]
    return spoken[0][:, :, None] & spoken[1][:, None, :]


def _example(model: models.Transformer, pairs: Pairs, reference: Tensor, head: int) -> Numbers:
    """The pair of at most ten words a side of which the statistics link most: words, and the head's weights."""
    short = torch.tensor([max(map(len, sides)) <= 10 for sides in pairs.words])
    row = int((reference.sum((1, 2)) * short).argmax())
    source, target = pairs.words[row]
    found = weights(model, pairs[row : row + 1])[head, 0, : len(target), : len(source)]
    return {"source": source, "target": target, "weights": [[round(w, 3) for w in line] for line in found.tolist()]}


def judge(numbers: Numbers) -> Verdict:
    found = {name: numbers[name] for name in ("anchors", "statistics")}
    told = "; ".join(
        f"of words linked by {name} the head looks at {each['attention']:.0%}, the diagonal at {each['diagonal']:.0%} "
        f"(95% interval of the difference {each['low'] * 100:+.0f} to {each['high'] * 100:+.0f} points)"
        for name, each in found.items()
    )
    if any(each["high"] < 0 for each in found.values()):
        return does_not_hold(told)
    aligns = all(each["low"] > 0 and each["attention"] > MOST for each in found.values())
    return holds(told) if aligns else unclear(told)


def draw(numbers: Numbers, figure: Figure) -> None:
    example, bars = figure.subplots(1, 2, width_ratios=[1.7, 1])
    shown = numbers["example"]
    example.imshow(shown["weights"], cmap="Blues", vmin=0, vmax=1, aspect="auto")
    example.set_xticks(range(len(shown["source"])), shown["source"], rotation=60, ha="right")
    example.set_yticks(range(len(shown["target"])), shown["target"])
    example.set(xlabel="source word looked at", ylabel="word said", title="weights of the head, one held-out pair")
    example.grid(False)
    for index, way in enumerate(("attention", "diagonal")):
        for place, name in enumerate(("anchors", "statistics")):
            share = numbers[name][way]
            bars.bar(place + 0.4 * index, share, 0.36, color=f"C{index}", label=way if not place else None)
            bars.text(place + 0.4 * index, share + 0.01, f"{share:.0%}", ha="center")
    bars.set_xticks([0.2, 1.2], ["same word\non both sides", "IBM model 1"])
    bars.set(ylabel="share of linked words looked at", ylim=(0, 1.05))
    bars.legend(loc="upper center", ncols=2, bbox_to_anchor=(0.4, 1.14), handlelength=1, columnspacing=1)


EXPERIMENT = Experiment(
    name="translation",
    claim="Cross-attention aligns words: when a translator says a word, it looks at the one that it translates.",
    source="Bahdanau et al. 2015, section 5.2.1 (https://arxiv.org/abs/1409.0473)",
    refuted_by="it looks at the right word less often than the diagonal does, by more than the noise over sentences",
    measure=measure,
    judge=judge,
    draw=draw,
    takes={"data": "pairs in a TSV file, a sentence and its translation a line (there are none by default)"},
)
