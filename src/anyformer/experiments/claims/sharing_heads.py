"""Key and value heads, shared by queries: what it costs in quality, and what it saves in cache and in time."""

from __future__ import annotations

import time
from itertools import product
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from anyformer import model as models
from anyformer import planning, spec
from anyformer.comparing.statistics import difference, sample
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import BYTES, attention, decoder, held_out_loss, learn, text_ids, windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: By name: how many query heads read one key/value head; None: all of them.
SHARED = {"MHA": 1, "GQA": 4, "MQA": None}
#: The model that learns: dim, depth, heads, feed-forward width.
LEARNING = (64, 2, 8, 256)
LENGTH, ROWS, STEPS, SEEDS = 64, 16, 200, 5
#: The model that decodes is one whose cache is larger than its weights, as where sharing heads pays.
DECODING = (512, 4, 16, 1024)
FILLED, DECODED_ROWS, DECODED = 2048, 4, 30
#: The share of its loss that a model as good may lose, and of the time that multi-query saves, what one nearly as fast
#: saves too.
AS_GOOD, NEARLY = 0.01, 0.5


def measure(lab: Lab) -> Numbers:
    """Train each over several seeds; fill a cache of each, and decode from the three in turns."""
    train, held_out = text_ids(lab)
    numbers: Numbers = {name: {"losses": []} for name in SHARED}
    for seed, name in product(range(SEEDS), SHARED):
        lab.say(f"seed {seed + 1} of {SEEDS}: training {name}")
        model = models.build(_described(name, *LEARNING), seed=lab.seed + seed)
        learn(model, windows(train, LENGTH, ROWS, lab.seed + seed), lab.times(STEPS), learning_rate=6e-3)
        numbers[name]["losses"].append(held_out_loss(model, held_out, LENGTH, rows=512))
    for name, decoded in _decoded(lab).items():
        numbers[name] |= decoded
    return numbers


def _described(name: str, dim: int, depth: int, heads: int, hidden: int) -> spec.Transformer:
    kv_heads = heads // (SHARED[name] or heads)
    attend = attention(dim, heads, kv_heads=kv_heads, position=spec.Rotary())
    return decoder(dim, depth, attend, spec.FeedForward(hidden=hidden), std=None)


@torch.no_grad()
def _decoded(lab: Lab) -> dict[str, dict[str, Any]]:
    """Of each: a cache's bytes, as planned and as they are, and seconds to decode one token of each row from it."""
    filled, steps = lab.times(FILLED, least=64), lab.times(DECODED, least=5)
    generator = torch.Generator().manual_seed(lab.seed)
    tokens = torch.randint(BYTES, (DECODED_ROWS, filled + steps), generator=generator)
    found: dict[str, dict[str, Any]] = {}
    running = {}
    for name in SHARED:
        lab.say(f"filling the cache of {name} with {filled:,} tokens in {DECODED_ROWS} rows")
        described = _described(name, *DECODING)
        model = models.build(described, seed=lab.seed).eval()
        cache = model.new_cache(DECODED_ROWS, capacity=filled + steps)
        model(tokens[:, :filled], cache=cache)
        # One slot more is where a cache puts what is padding.
        planned = DECODED_ROWS * planning.kv_bytes(described, filled + steps + 1, dtype="float32")
        found[name] = {"cache_bytes": cache.bytes(), "planned_bytes": planned, "seconds": []}
        running[name] = model, cache
    for step in range(filled, filled + steps):
        for name, (model, cache) in running.items():
            began = time.perf_counter()
            model(tokens[:, step : step + 1], cache=cache)
            found[name]["seconds"].append(round(time.perf_counter() - began, 5))
    return found


def judge(numbers: Numbers) -> Verdict:
    multi, grouped, single = (numbers[name] for name in SHARED)
    lost, lost_single = (difference(other["losses"], multi["losses"]) for other in (grouped, single))
    taken = {name: median(numbers[name]["seconds"]) for name in SHARED}
    saved, most = taken["MHA"] - taken["GQA"], taken["MHA"] - taken["MQA"]
    exact = all(numbers[name]["cache_bytes"] == numbers[name]["planned_bytes"] for name in SHARED)
    share = {name: numbers[name]["cache_bytes"] / multi["cache_bytes"] for name in SHARED}
    told = (
        f"grouped queries lose {lost.mean:+.3f} [{lost.low:+.3f}, {lost.high:+.3f}] of "
        f"{sample(multi['losses']).mean:.3f} nats a byte, a single key/value head {lost_single.mean:+.3f} "
        f"[{lost_single.low:+.3f}, {lost_single.high:+.3f}]; their caches are {share['GQA']:.4g} and "
        f"{share['MQA']:.4g} of the multi-head one, {'' if exact else 'not '}to the byte as planned; a step of "
        f"decoding takes {taken['GQA'] * 1e3:.1f} and {taken['MQA'] * 1e3:.1f} ms where that one takes "
        f"{taken['MHA'] * 1e3:.1f}"
    )
    bound = AS_GOOD * sample(multi["losses"]).mean
    assert lost.low is not None and lost.high is not None
    if not exact or lost.low > bound or most <= 0 or saved < NEARLY * most:
        return does_not_hold(told)
    return holds(told) if lost.high < bound else unclear(told)


def draw(numbers: Numbers, figure: Figure) -> None:
    quality, memory, speed = figure.subplots(1, 3)
    for place, name in enumerate(SHARED):
        one = numbers[name]
        quality.plot([place] * len(one["losses"]), one["losses"], "o", color=f"C{place}", alpha=0.4, markersize=4)
        quality.plot([place - 0.3, place + 0.3], [sample(one["losses"]).mean] * 2, color=f"C{place}")
        memory.bar(place, one["cache_bytes"] / 1e6, color=f"C{place}")
        speed.bar(place, median(one["seconds"]) * 1e3, color=f"C{place}")
    for axes in (quality, memory, speed):
        axes.set_xticks(range(len(SHARED)), list(SHARED))
        axes.grid(axis="x", visible=False)
    quality.set(ylabel="held-out loss, nats a byte; a dot a seed", xlim=(-0.5, len(SHARED) - 0.5))
    memory.set(ylabel="cache, MB")
    speed.set(ylabel="a step of decoding, ms")


EXPERIMENT = Experiment(
    name="sharing-heads",
    claim="Grouped queries predict about as well as multi-head attention and decode nearly as fast as multi-query "
    "attention; the cache shrinks as the key/value heads do.",
    source="Ainslie et al. 2023, section 3 (https://arxiv.org/abs/2305.13245); Shazeer 2019 "
    "(https://arxiv.org/abs/1911.02150)",
    refuted_by=f"grouped queries lose more than {AS_GOOD:.0%} of the loss, save less than {NEARLY:.0%} of the time "
    "that multi-query attention saves, or a cache has other bytes than planned",
    measure=measure,
    judge=judge,
    draw=draw,
    takes={"data": "a text to learn from, a file or folder (Python's own library)"},
)
