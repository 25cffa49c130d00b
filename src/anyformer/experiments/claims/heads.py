"""Heads have roles, which can be measured; what each is worth shows when it is taken away, and where it is missed.

A head that is taken away gives its mean from then on, so that what is lost is what it tells apart, and no constant that
later layers count on.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyformer import model as models
from anyformer.comparing.statistics import difference
from anyformer.errors import ExperimentError
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import text_ids
from anyformer.experiments.weights import TAKES, trained
from anyformer.inspection import trace
from anyformer.inspection.heads import head_scores, repeated_scores, repeated_tokens
from anyformer.inspection.interventions import ablate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Texts and their tokens by which roles are told, in each half; and by which costs are, as many as of repeated tokens:
#: all of them more at a larger scale.
READ, ROWS, LENGTH = 8, 4, 64
#: Bytes from which so many tokens come, whatever they are.
BYTES = 16 * LENGTH
#: What marks a role in the map, in the order in which a head has it: a head that copies looks at the first token when
#: there is nothing to copy, and one that looks at itself or at the token before looks nearby.
ROLES = {"induction": "i", "duplicate": "d", "previous": "p", "itself": "s", "local": "l", "first": "f"}
NONE = "."
#: A head has a role when most of its attention goes there: of most there is one alone.
MOST = 0.5
#: The roles that all write of. Each is there when one head in a hundred has it, so that no single one decides.
CLAIMED, THERE = ("previous", "induction", "first"), 0.01
#: Roles are no accident of a text when nine in ten heads have the same in other texts; were it half, they would be.
KEPT, LOST = 0.9, 0.5
#: The heads that score highest for induction: few among hundreds, and enough for an interval.
COPYING = 12
#: Heads of each layer, drawn blindly, that are taken away besides; all of them take six minutes of a core.
DRAWN = 2
#: A tenth of the heads holds most of what all of them cost. It holds a tenth where all cost alike, and a third where
#: costs scatter as waiting times do, without any being special (of an exponential, 0.1·(1 + ln 10)).
TENTH, CONCENTRATED, SCATTERED = 0.1, 0.5, 0.33
#: Nats up to which the picture shows costs in proportion, and beyond which by their powers of ten.
LINEAR = 0.01


def measure(lab: Lab) -> Numbers:
    """Roles in two halves of the texts, with the weights and without; then one head after another is taken away."""
    model = trained(lab)
    read = lab.times(READ)
    texts = _texts(model, lab, 2 * read + lab.times(ROWS))
    halves = texts[:read], texts[read : 2 * read]
    lab.say("roles, and those of fresh weights")
    scores = [_scores(model, half, lab.seed + seed) for seed, half in enumerate(halves)]
    fresh = models.build(model.spec, seed=lab.seed).eval()
    induction = (scores[0]["induction"] + scores[1]["induction"]) / 2
    layers, heads = induction.shape
    copying = {
        divmod(place, heads) for place in induction.flatten().topk(min(COPYING, layers * heads)).indices.tolist()
    }
    generator = torch.Generator().manual_seed(lab.seed)
    drawn = {
        (layer, head)
        for layer in range(layers)
        for head in torch.randperm(heads, generator=generator)[: lab.times(DRAWN)].tolist()
    }
    return {
        "roles": [_roles(half) for half in scores],
        "fresh": [_roles(_scores(fresh, half, lab.seed + seed)) for seed, half in enumerate(halves)],
        "costs": [
            {"layer": layer, "head": head, "copying": (layer, head) in copying, "drawn": (layer, head) in drawn} | cost
            for (layer, head), cost in _costs(model, texts[2 * read :], sorted(copying | drawn), lab).items()
        ],
    }


def _texts(model: models.Transformer, lab: Lab, count: int) -> Tensor:
    """[count, LENGTH] tokens from places spread evenly over a text."""
    assert model.tokenizer is not None
    read, _ = text_ids(lab)
    rows = []
    for begin in torch.linspace(0, len(read) - BYTES, count).long().tolist():
        text = bytes(read[begin : begin + BYTES].tolist()).decode(errors="ignore")
        rows.append(model.tokenizer.encode(text, special=False)[:LENGTH])
    if any(len(row) < LENGTH for row in rows):
        raise ExperimentError(f"{BYTES} bytes of the text are fewer than {LENGTH} tokens; give a text in words")
    return torch.tensor(rows)


def _scores(model: models.Transformer, texts: Tensor, seed: int) -> Mapping[str, Tensor]:
    """By name [L, H]: of texts, and of repeated tokens that the seed draws."""
    repeated = repeated_scores(model, length=LENGTH // 2, rows=ROWS, seed=seed)
    return head_scores(model, texts).scores | repeated.scores


def _roles(scores: Mapping[str, Tensor]) -> list[str]:
    """A map of the heads: a line a layer, a letter a head."""
    return [
        "".join(
            next((mark for name, mark in ROLES.items() if scores[name][layer, head] > MOST), NONE)
            for head in range(scores["first"].shape[1])
        )
        for layer in range(len(scores["first"]))
    ]


@torch.no_grad()
def _costs(
    model: models.Transformer, texts: Tensor, chosen: list[tuple[int, int]], lab: Lab
) -> dict[tuple[int, int], dict[str, float]]:
    """What the loss rises by without each head, nats a token: on texts, and where random tokens come again."""
    repeats = repeated_tokens(model, LENGTH // 2, len(texts), seed=lab.seed + ROWS)
    asked = {"text": (texts, texts), "repeats": (repeats, repeats.clone())}
    # What comes first of the second time follows from nothing.
    asked["repeats"][1][:, : LENGTH // 2 + 1] = -100
    with trace(model, "decoder.layers.*.attention.heads", keep="all") as usual:
        whole = {name: _loss(model, *given) for name, given in asked.items()}
    found = {}
    for place, (layer, head) in enumerate(chosen):
        if place % 10 == 0:
            lab.say(f"without head {place + 1} of {len(chosen)}")
        with ablate(model, f"decoder.layers.{layer}.attention", heads=[head], mean=usual):
            found[layer, head] = {name: round(_loss(model, *given) - whole[name], 5) for name, given in asked.items()}
    return found


def _loss(model: models.Transformer, tokens: Tensor, targets: Tensor) -> float:
    loss = model(tokens[:, :-1], targets=targets[:, 1:]).loss
    assert loss is not None
    return loss.item()


def share(roles: list[str], marks: str) -> float:
    """The share of heads that have one of these roles."""
    heads = "".join(roles)
    return sum(head in marks for head in heads) / len(heads)


def judge(numbers: Numbers) -> Verdict:
    one, other = ("".join(half) for half in numbers["roles"])
    there = {name: share([one], ROLES[name]) for name in CLAIMED}
    fresh = max(share(half, "".join(ROLES.values())) for half in numbers["fresh"])
    having = [(mark, again) for mark, again in zip(one, other) if mark != NONE]
    kept = mean(mark == again for mark, again in having) if having else 0.0
    # By how much more a head is missed in copying than in reading: those that copy, and others of their layers.
    copying, beside = [], []
    for head in (cost for cost in numbers["costs"] if cost["copying"]):
        others = [cost for cost in numbers["costs"] if cost["layer"] == head["layer"] and not cost["copying"]]
        if others:
            copying.append(head["repeats"] - head["text"])
            beside.append(mean(cost["repeats"] - cost["text"] for cost in others))
    if len(copying) < 2:
        return unclear("too few of the heads that copy have others beside them to compare with")
    missed = difference(copying, beside)
    held = {name: _held(numbers, name) for name in ("text", "repeats")}
    told = (
        "of all heads " + ", ".join(f"{part:.1%} are of the role '{name}'" for name, part in there.items()) + "; "
        f"{fresh:.0%} of a fresh model's have any; {kept:.0%} keep theirs in other texts; without one of "
        f"the {len(copying)} heads that copy most the loss rises by {missed.mean:+.3f} [{missed.low:+.3f}, "
        f"{missed.high:+.3f}] nats more on repeats over text than without others of its layer; a tenth of heads "
        f"holds {held['text']:.0%} of what all cost on text, {held['repeats']:.0%} on repeats"
    )
    assert missed.low is not None and missed.high is not None
    refuted = [min(there.values()) < THERE, fresh >= THERE, kept < LOST, missed.high < 0, held["text"] < SCATTERED]
    if any(refuted):
        return does_not_hold(told)
    return holds(told) if kept >= KEPT and missed.low > 0 and held["text"] >= CONCENTRATED else unclear(told)


def _held(numbers: Numbers, name: str) -> float:
    """The share of the costliest tenth in the cost of all heads drawn; what costs less than nothing costs none."""
    costs = sorted((max(0.0, cost[name]) for cost in numbers["costs"] if cost["drawn"]), reverse=True)
    return sum(costs[: max(1, round(TENTH * len(costs)))]) / max(sum(costs), 1e-9)


def draw(numbers: Numbers, figure: Figure) -> None:
    from matplotlib.colors import to_rgb

    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    roles = numbers["roles"][0]
    names = {mark: name for name, mark in ROLES.items()} | {NONE: "none of these"}
    colours = [f"C{place}" for place in range(len(ROLES))] + ["lightgrey"]
    marks = list(names)
    rgb = [[to_rgb(colours[marks.index(mark)]) for mark in line] for line in roles]
    left.imshow(rgb, origin="lower", aspect="auto", interpolation="nearest")
    left.set(xlabel="head", ylabel="layer", title="where most attention goes", xticks=range(0, len(roles[0]), 2))
    left.grid(visible=False)
    for mark, colour in zip(marks, colours):
        chosen = [cost for cost in numbers["costs"] if roles[cost["layer"]][cost["head"]] == mark]
        x, y = ([cost[name] for cost in chosen] for name in ("text", "repeats"))
        right.plot(x, y, "o", color=colour, markersize=4, label=names[mark])
    copying = [cost for cost in numbers["costs"] if cost["copying"]]
    x, y = ([cost[name] for cost in copying] for name in ("text", "repeats"))
    right.plot(x, y, "o", color="black", fillstyle="none", markersize=8, label=f"best {len(copying)} at induction")
    right.set_xscale("symlog", linthresh=LINEAR)
    right.set_yscale("symlog", linthresh=LINEAR)
    right.set(
        xlabel="rise of the loss on text, nats a token", ylabel="rise where tokens repeat", title="without a head"
    )
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)


EXPERIMENT = Experiment(
    name="heads",
    claim="Heads specialise: trained ones have roles that random ones lack, the same in every text; those that copy "
    "are missed where there is something to copy; and a tenth of them holds most of what all are worth.",
    source="Voita et al. 2019 (https://arxiv.org/abs/1905.09418); Michel et al. 2019 "
    "(https://arxiv.org/abs/1905.10650); Olsson et al. 2022 (https://arxiv.org/abs/2209.11895)",
    refuted_by="a role is missing, or there in fresh weights, or most change with the text; heads that copy cost less "
    "on repeats than others of their layers do; or costs scatter as by chance",
    measure=measure,
    judge=judge,
    draw=draw,
    takes={"model": TAKES, "data": "a text, a file or a folder (Python's own library)"},
)
