"""Grammar is read off early layers, meaning off later ones, and what a model recalls reaches its answer later still."""

from __future__ import annotations

import ast
import io
import keyword
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anyformer import model as models
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.weights import TAKES, trained
from anyformer.inspection import trace
from anyformer.inspection.lens import lens
from anyformer.inspection.patching import logit_difference, patching
from anyformer.inspection.probes import probe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Packages of Python's library that are told apart as topics, and how many texts of each, of so many tokens.
TOPICS = ("asyncio", "email", "http", "importlib", "json", "logging", "multiprocessing", "unittest", "xml", "tkinter")
TEXTS, LENGTH = 10, 160
#: A nesting deeper than this counts as this.
DEEPEST = 8
SPLITS = 3
#: Words of one kind are each other's neighbours where their meaning is read.
KINDS = (
    "cat dog horse sheep goat rabbit mouse lion",
    "red blue green yellow black white orange purple",
    "France Italy Japan Germany Spain Russia China Greece",
    "apple bread cheese butter rice soup meat fish",
    "doctor teacher lawyer farmer soldier nurse engineer baker",
    "Monday Tuesday Friday Sunday January March August October",
    "hand foot head arm leg eye nose mouth",
    "car train ship boat bus truck plane bicycle",
)
CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Germany": "Berlin", "Spain": "Madrid"}
SPEECH = {"French": "Paris", "Italian": "Rome", "Japanese": "Tokyo", "German": "Berlin", "Greek": "Athens"}
#: What is recalled in one step, and what in two: where a language is spoken, and what that country's capital is.
RECALL = {
    "fact": ("The capital of {} is", CAPITALS),
    "two steps": ("The capital of the country where people speak {} is", SPEECH),
}
#: A layer has reached what is read there when it has so much of what the best layer adds to the embeddings.
REACHED = 0.95
#: What is expected to follow what, from the embeddings to the answer.
ORDER = ("token class", "topic", "fact", "two steps", "lens")
#: Layers by which neighbours in that order must differ to count, for it is read to a layer or so.
MARGIN = 1


def measure(lab: Lab) -> Numbers:
    """Probes of every layer, nearest neighbours of words, patched recall, and where the lens settles."""
    model = trained(lab)
    texts = list(_texts(model, lab.times(TEXTS, least=3)))
    lab.say(f"{len(texts)} texts of Python's library, {len(TOPICS)} topics")
    streams, labels = _read(model, texts)
    curves = {
        name: [_probed(stream[chosen], label[chosen], groups[chosen], lab.seed) for stream in streams[kind]]
        for name, (kind, label, groups, chosen) in labels.items()
    }
    lab.say("words, facts, the lens")
    curves["words"] = [[score] * SPLITS for score in _neighbours(model)]
    recall = {name: _recall(model, form, answers) for name, (form, answers) in RECALL.items()}
    seen = lens(model, torch.stack([text.ids for text in texts[:: max(1, len(texts) // 8)]]), top=1)
    settled = seen.settled().flatten().float()
    return {
        "layers": len(streams["tokens"]) - 1,
        "curves": {name: [_short(layer) for layer in curve] for name, curve in curves.items()},
        "baselines": {name: _short([_commonest(label[chosen])])[0] for name, (_, label, _, chosen) in labels.items()},
        "recall": recall,
        "lens": {
            "settled": [float(settled.quantile(q)) for q in (0.25, 0.5, 0.75)],
            "divergence": _short(seen.divergence.mean((1, 2)).tolist()),
        },
    }


@dataclass(frozen=True)
class Text:
    """A part of a file: ids [LENGTH], the class and the nesting of each token, and which topic and file it is of."""

    ids: Tensor
    classes: list[int]
    nesting: list[int]
    topic: int
    file: int


def _texts(model: models.Transformer, count: int) -> Iterator[Text]:
    """Of each topic the middles of so many files."""
    library = Path(sysconfig.get_paths()["stdlib"])
    assert model.tokenizer is not None
    for topic, package in enumerate(TOPICS):
        found = 0
        for path in sorted((library / package).rglob("*.py")):
            source = path.read_text(encoding="utf-8", errors="replace")
            ids = model.tokenizer.encode(source, special=False)
            pieces = [model.tokenizer.decode([one]) for one in ids]
            if not source.isascii() or len(ids) < 2 * LENGTH or "".join(pieces) != source or "test" in path.parts:
                continue
            middle = len(ids) // 2
            at = len("".join(pieces[:middle]))
            classes, nesting = _grammar(source)
            places = []
            for piece in pieces[middle : middle + LENGTH]:
                places.append(at + len(piece) - len(piece.lstrip()) if piece.strip() else at)
                at += len(piece)
            yield Text(
                torch.tensor(ids[middle : middle + LENGTH]),
                [classes[place] for place in places],
                [nesting[place] for place in places],
                topic,
                topic * 1000 + found,
            )
            found += 1
            if found == count:
                break


def _grammar(source: str) -> tuple[list[int], list[int]]:
    """For each character the class of its token (names, keywords, operators, strings, numbers, comments, space), and
    how many statements its line stands in."""
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    classes = [0] * len(source)
    kinds = {tokenize.NAME: 1, tokenize.OP: 3, tokenize.STRING: 4, tokenize.NUMBER: 5, tokenize.COMMENT: 6}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = 2 if keyword.iskeyword(token.string) else kinds.get(token.type, 0)
        begin, end = (lines[row - 1] + column for row, column in (token.start, token.end))
        classes[begin:end] = [kind] * (end - begin)
    depth = [0] * len(lines)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.end_lineno is not None:
            for row in range(node.lineno, node.end_lineno + 1):
                depth[row] = min(DEEPEST, depth[row] + 1)
    nesting = [depth[row + 1] for row, (begin, end) in enumerate(pairwise(lines)) for _ in range(begin, end)]
    return classes, nesting


@torch.no_grad()
def _read(model: models.Transformer, texts: Sequence[Text]) -> Any:
    """Streams by layer (of every token, and the mean of every text), and what is to be read off them."""
    tokens: list[list[Tensor]] = []
    for text in texts:
        with trace(model, "decoder.embeddings", "decoder.layers.*.residual_after") as t:
            model(text.ids[None])
        tokens.append([value[0] for _, value in t.items()])
    streams = {
        "tokens": [torch.cat(layer) for layer in zip(*tokens)],
        "texts": [torch.stack([text.mean(0) for text in layer]) for layer in zip(*tokens)],
    }
    topics, files = torch.tensor([text.topic for text in texts]), torch.tensor([text.file for text in texts])
    of_token = files.repeat_interleave(LENGTH)
    # The first tokens of a text have nothing before them that could tell how deep they are.
    chosen = (torch.arange(len(of_token)) % LENGTH >= LENGTH // 4) & (torch.arange(len(of_token)) % 2 == 0)
    classes = torch.tensor([one for text in texts for one in text.classes])
    nesting = torch.tensor([depth for text in texts for depth in text.nesting])
    return streams, {
        "token class": ("tokens", classes, of_token, chosen),
        "nesting": ("tokens", nesting, of_token, chosen),
        "topic": ("texts", topics, files, torch.ones(len(texts), dtype=torch.bool)),
    }


def _probed(stream: Tensor, labels: Tensor, groups: Tensor, seed: int) -> list[float]:
    """Accuracy on texts that the probe has not seen, for several ways of holding some out."""
    return [probe(stream, labels, groups=groups, penalty=30.0, seed=seed + split).score for split in range(SPLITS)]


def _commonest(labels: Tensor) -> float:
    return float((labels == labels.mode().values).double().mean())


@torch.no_grad()
def _neighbours(model: models.Transformer) -> list[float]:
    """By layer, the share of words whose nearest other word (by the cosine of what is left when the mean of all is
    taken away) is of their kind."""
    assert model.tokenizer is not None
    words = [(kind, word) for kind, line in enumerate(KINDS) for word in line.split()]
    found = []
    for _, word in words:
        ids = model.tokenizer.encode(f"The next word is {word}", special=False)
        with trace(model, "decoder.embeddings", "decoder.layers.*.residual_after") as t:
            model(torch.tensor([ids]))
        found.append([value[0, -1] for _, value in t.items()])
    kinds = torch.tensor([kind for kind, _ in words])
    shares = []
    for layer in zip(*found):
        x = torch.stack(layer).double()
        x = torch.nn.functional.normalize(x - x.mean(0), dim=-1)
        nearest = (x @ x.T).fill_diagonal_(-2).argmax(-1)
        shares.append(float((kinds[nearest] == kinds).double().mean()))
    return shares


def _recall(model: models.Transformer, form: str, answers: dict[str, str]) -> Numbers:
    """How much of an answer comes back when one position of another prompt is patched before each layer: where the
    subject stands, and at the end. Means over pairs of prompts of one length whose answers the model knows."""
    assert model.tokenizer is not None
    prompts = {}
    for subject, answer in answers.items():
        ids = torch.tensor([model.tokenizer.encode(form.format(subject), special=False)])
        wanted = model.tokenizer.encode(f" {answer}", special=False)[0]
        with torch.no_grad():
            logits = model(ids).logits
        assert logits is not None
        if int(logits[0, -1].argmax()) == wanted:
            prompts[subject] = ids, wanted
    at_subject, at_end = [], []
    for one, (ids, answer) in prompts.items():
        for other, (other_ids, other_answer) in prompts.items():
            if one < other and ids.shape == other_ids.shape:
                difference = logit_difference(answer, other_answer)
                effects = patching(model, ids, other_ids, difference).restored
                place = int((ids != other_ids)[0].nonzero()[-1])
                at_subject.append(effects[:, place].tolist())
                at_end.append(effects[:, -1].tolist())
    return {
        "known": sorted(prompts),
        "asked": len(answers),
        "pairs": len(at_end),
        "subject": _short([mean(layer) for layer in zip(*at_subject)]),
        "end": _short([mean(layer) for layer in zip(*at_end)]),
    }


def _short(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]


def reached(numbers: Numbers) -> dict[str, float]:
    """The layer at which each is there: a probe has `REACHED` of what its best layer adds to the embeddings; of what is
    recalled the end of the prompt carries more than the subject; the lens has settled on half of the answers."""
    found = {}
    for name, curve in numbers["curves"].items():
        scores = [mean(layer) for layer in curve]
        wanted = scores[0] + REACHED * (max(scores) - scores[0])
        found[name] = float(next(layer for layer, score in enumerate(scores) if score >= wanted))
    for name, curves in numbers["recall"].items():
        later = [layer for layer, (subject, end) in enumerate(zip(curves["subject"], curves["end"])) if end > subject]
        if later:
            found[name] = float(later[0])
    found["lens"] = numbers["lens"]["settled"][1]
    return found


def judge(numbers: Numbers) -> Verdict:
    found = reached(numbers)
    order = [name for name in ORDER if name in found]
    told = f"of {numbers['layers']} layers, " + ", ".join(f"{name} at {found[name]:.0f}" for name in order)
    if "fact" not in found:
        return unclear(f"{told}; the model recalls too few of the facts to say where")
    steps = [(one, other, found[other] - found[one]) for one, other in pairwise(order)]
    against = [f"{other} comes before {one}" for one, other, step in steps if step < -MARGIN]
    close = [f"{one} and {other} are not told apart" for one, other, step in steps if abs(step) <= MARGIN]
    if against:
        return does_not_hold(f"{told}: {'; '.join(against)}")
    return unclear(f"{told}: {'; '.join(close)}") if close else holds(told)


def draw(numbers: Numbers, figure: Figure) -> None:
    above, below = figure.subplots(2, 1, sharex=True)
    for name, curve in numbers["curves"].items():
        above.plot([mean(layer) for layer in curve], label=name)
    above.set(ylabel="accuracy", ylim=(0, 1.02), title="what a linear map reads off each layer")
    above.legend(loc="lower right", ncols=2)
    for name, style in (("fact", "-"), ("two steps", "--")):
        below.plot(numbers["recall"][name]["subject"], style, color="C0", label=f"{name}: at the subject")
        below.plot(numbers["recall"][name]["end"], style, color="C1", label=f"{name}: at the end")
    low, middle, high = numbers["lens"]["settled"]
    below.axvspan(low, high, alpha=0.12, color="C2", label="the lens settles (quartiles)")
    below.axvline(middle, color="C2", linewidth=1)
    below.set(xlabel="layer (0: the embeddings)", ylabel="answer restored", ylim=(-0.1, 1.1))
    below.legend(loc="center left", fontsize=8)


EXPERIMENT = Experiment(
    name="layers",
    claim="What layers hold goes from grammar to meaning to recalled knowledge, and the answer settles last.",
    source="Tenney et al. 2019 (https://arxiv.org/abs/1905.05950); Meng et al. 2022 (https://arxiv.org/abs/2202.05262)",
    refuted_by="one of them is there more than a layer before what it should follow",
    measure=measure,
    judge=judge,
    draw=draw,
    takes={"model": TAKES},
)
