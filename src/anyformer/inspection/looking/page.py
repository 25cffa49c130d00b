"""A look as one page that stands for itself: no network, nothing but HTML, and pictures within it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from anyformer import disk, planning
from anyformer.inspection.heads import HeadScores
from anyformer.inspection.looking.look import PICTURE, Look
from anyformer.inspection.looking.pictures import picture
from anyformer.training.watching.charts import Chart, Curve, chart
from anyformer.training.watching.report import templates, visible

#: The lens shows so many positions, the last; more would not be read.
SHOWN = 40
#: What the scores of heads mean, and which are worth a picture.
MEANING = {
    "previous": "looks at the token before",
    "first": "looks at the first token, where heads rest that have nothing to do",
    "itself": "looks at the token itself",
    "local": "looks at the three tokens to either side",
    "entropy": "spreads its attention evenly",
    "induction": "looks at what followed the same token before",
    "duplicate": "looks at the same token before",
}
#: Of each score so many heads.
BEST = 4


def write_page(seen: Look, name: str, path: Path) -> None:
    """Write the page of a look at the model `name`: whole, or not at all."""
    environment = templates("anyformer.inspection.looking")
    environment.filters["shown"] = shown
    template = environment.get_template("looking.html")
    disk.write(path, template.render(facts(seen, name)).encode("utf-8", "replace"))


def shown(piece: str) -> str:
    """A piece of a text with what cannot be seen made visible: ends of lines, and spaces that stand alone."""
    marked = visible(piece).replace("\n", "⏎").replace("\t", "⇥")
    return marked if marked.strip() else marked.replace(" ", "␣")


def facts(seen: Look, name: str) -> dict[str, Any]:
    """Everything that the page says, by the names of its template."""
    pieces = seen.tokens[seen.stack]
    return {
        "name": name,
        "shape": seen.model.spec.shape,
        "answers": answers(seen),
        "texts": [(stack, row) for stack, row in seen.tokens.items()],
        "tiles": tiles(seen),
        "lens": lens_table(seen),
        "earlier": max(0, len(pieces) - SHOWN),
        "charts": [drawn for stack in seen.tokens for drawn in norm_charts(seen, stack) if drawn is not None],
        "habits": habits(seen),
        "layers": patterns(seen),
        "pooled": any(max(value.shape[1:]) == PICTURE for value in seen.patterns.values()),
        "mixtures": mixtures(seen),
    }


def answers(seen: Look) -> list[dict[str, Any]]:
    """What the model says where it matters most: at a few positions."""
    if seen.lens is None:
        return []
    said, pieces = [], seen.tokens[seen.stack]
    for position in seen.positions()[:3]:
        likely = seen.lens.answers[-1, 0, position, 0].item()
        said.append(
            {
                "before": "".join(pieces[max(0, position - 8) : position + 1]).strip()
                if seen.stack == "decoder"
                else "",
                "at": pieces[position],
                "answer": seen.piece(int(likely)),
                "probability": seen.lens.probabilities[-1, 0, position, 0].item(),
                "settled": int(seen.lens.settled()[0, position]),
                "layers": len(seen.lens.sites) - 1,
            }
        )
    return said


def tiles(seen: Look) -> list[tuple[str, str]]:
    """The figures at the top."""
    model = seen.model
    shown = [("parameters", f"{planning.count(model.spec):,}")]
    for stack, row in seen.tokens.items():
        layers = len(getattr(model, stack).layers)
        several = len(seen.tokens) > 1
        shown += [(f"{stack} layers" if several else "layers", f"{layers}")]
        shown += [(f"{stack} tokens" if several else "tokens", f"{len(row):,}")]
    shown.append(("heads", f"{sum(len(value) for value in seen.patterns.values()):,}"))
    return shown


def lens_table(seen: Look) -> list[dict[str, Any]]:
    """Rows of the lens, the last layer first: at each position the likeliest answer, and the others as a remark."""
    if seen.lens is None:
        return []
    found = seen.lens
    names = ["embeddings", *(f"layer {index}" for index in range(len(found.sites) - 1))]
    start = max(0, found.answers.shape[2] - SHOWN)
    rows = []
    for row in reversed(range(len(names))):
        cells = []
        for position in range(start, found.answers.shape[2]):
            ids, chances = found.answers[row, 0, position].tolist(), found.probabilities[row, 0, position].tolist()
            others = ", ".join(f"{seen.piece(id)!r} {chance:.1%}" for id, chance in zip(ids, chances))
            right = ids[0] == seen.wanted[position]
            cells.append({"text": seen.piece(ids[0]), "share": chances[0], "all": others, "right": right})
        rows.append({"name": names[row], "cells": cells})
    return rows


def norm_charts(seen: Look, stack: str) -> list[Chart | None]:
    """How long the stream's vectors become from layer to layer, and what each branch adds: medians over tokens; and
    apart, the first token's stream, which in many models is far longer."""
    of = {site: value for site, value in seen.norms.items() if site.startswith(f"{stack}.")}
    title = f"{stack}: " if len(seen.tokens) > 1 else ""
    stream = [value for site, value in of.items() if site.endswith(("embeddings", "residual_after"))]
    across = (0.0, float(len(stream) - 1))
    branches = list(dict.fromkeys(site.split(".")[3] for site in of if site.endswith("output")))
    styles = dict(zip(branches, ("smooth", "held-out", "third")))
    added = []
    for branch in branches:
        layers = [(int(site.split(".")[2]) + 1, value) for site, value in of.items() if f".{branch}.output" in site]
        medians = Curve.of([x for x, _ in layers], [value.median().item() for _, value in layers])
        added.append((styles[branch], branch.replace("_", " "), medians))
    middle = Curve.of(range(len(stream)), [value.median().item() for value in stream])
    first = Curve.of(range(len(stream)), [value[0].item() for value in stream])
    return [
        chart(
            f"{title}Length of the stream after each layer, median token", [("smooth", None, middle)], across, zero=True
        ),
        chart(f"{title}What is added to it, median token", added, across, zero=True),
        chart(f"{title}Length of the first token's stream", [("held-out", None, first)], across, zero=True),
    ]


def habits(seen: Look) -> list[dict[str, Any]]:
    """For each score the heads that have most of it, with their pictures."""
    found = []
    for scores in (seen.heads, seen.repeats):
        for name in () if scores is None else scores.scores:
            found.append({"name": name, "meaning": MEANING[name], "heads": _best(seen, scores, name)})
    return found


def _best(seen: Look, scores: HeadScores | None, name: str) -> list[dict[str, Any]]:
    assert scores is not None
    return [
        {"name": f"{_layer(branch)}, head {head}", "score": score, "picture": picture(seen.patterns[branch][head])}
        for branch, head, score in scores.best(name, BEST)
    ]


def patterns(seen: Look) -> list[dict[str, Any]]:
    """Every head's picture, layer by layer."""
    return [
        {"name": _layer(branch), "heads": [picture(weights) for weights in value]}
        for branch, value in seen.patterns.items()
    ]


def mixtures(seen: Look) -> list[dict[str, Any]]:
    """Where each mixture sends the tokens: a picture, experts down and tokens across, and how even it is."""
    found = []
    for branch, loads in seen.routing.items():
        share = (loads > 0).float().mean(1)
        share = share / share.sum()
        found.append(
            {
                "name": _layer(branch),
                "picture": picture(loads / loads.max().clamp(min=1e-9)),
                "experts": len(loads),
                "most": [(int(index), share[index].item()) for index in share.argsort(descending=True)[:3]],
                "unused": int((share == 0).sum()),
                "even": (torch.special.entr(share).sum().exp() / len(loads)).item(),
            }
        )
    return found


def _layer(branch: str) -> str:
    """`decoder.layers.3.attention` as a person says it."""
    stack, _, index, kind = branch.split(".")
    return (
        f"layer {index}"
        if kind in ("attention", "experts") and stack == "decoder"
        else f"{stack} layer {index}, {kind}"
    )
