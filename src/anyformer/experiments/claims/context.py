"""From 512 to 1,000,000 tokens: what reading takes with full attention, and with a sliding window."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import torch

from anyformer import model as models
from anyformer.experiments.costs import Growth, growth, most_bytes
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import BYTES, attention, decoder
from anyformer.planning.counts import forward_flops, kv_bytes
from anyformer.planning.pieces import piece
from anyformer.spec import FeedForward, Rotary, Transformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Heads together wider than the model, so that attention is what is measured.
DIM, DEPTH, HEADS, WIDTH, WINDOW, ROUNDS = 64, 1, 4, 32, 128, 2
#: Tokens that both read in every round; and what only the window reads, once, and is foretold of full attention.
LENGTHS, ONCE = (512, 2048, 4096, 8192, 16_384, 32_768, 65_536), (131_072, 1_000_000)
#: From here on what grows with the length is nearly all there is.
LONG = 2048
WINDOWS = {"full": None, "window": WINDOW}
LABELS = {"full": "full attention", "window": f"window of {WINDOW}"}


def measure(lab: Lab) -> Numbers:
    """Seconds of reading a text, bytes of its cache, and bytes held at most; and what planning foretells of longer
    texts."""
    reading = {name: models.build(_described(window), seed=lab.seed).eval() for name, window in WINDOWS.items()}
    found: dict[tuple[str, int], list[tuple[float, int]]] = {(name, n): [] for name in WINDOWS for n in LENGTHS}
    for _ in range(lab.times(ROUNDS)):
        for name, length in found:
            found[name, length].append(_read(reading[name], length))
    for length in (round(length * min(1, lab.scale)) for length in ONCE):
        lab.say(f"a window over {length:,} tokens")
        found["window", length] = [_read(reading["window"], length)]
    lab.say("memory")
    held = {name: most_bytes([partial(_reading, name, length) for length in LENGTHS]) for name in WINDOWS}
    numbers: Numbers = {}
    for name, model in reading.items():
        measured = {length: times for (of, length), times in found.items() if of == name}
        numbers[name] = {
            "lengths": list(measured),
            "seconds": [median(seconds for seconds, _ in times) for times in measured.values()],
            "cache": [times[0][1] for times in measured.values()],
            "held": held[name],
        }
        numbers[name]["foretold"] = _foretold(model.spec, numbers[name])
    return numbers


def _foretold(described: Transformer, measured: Numbers) -> Numbers:
    """What planning says of the longest texts: its FLOPs at the rate that the longest of `LENGTHS` reached, and the
    bytes of the cache."""
    base = measured["seconds"][len(LENGTHS) - 1] / _flops(described, LENGTHS[-1])
    return {
        "lengths": list(ONCE),
        "seconds": [base * _flops(described, length) for length in ONCE],
        "cache": [kv_bytes(described, length, dtype="float32") for length in ONCE],
    }


def _described(window: int | None) -> Transformer:
    more = {} if window is None else {"window": (window, None)}
    heads = attention(DIM, HEADS, kv_heads=HEADS // 4, head_dim=WIDTH, position=Rotary(), **more)
    return decoder(DIM, DEPTH, heads, FeedForward(hidden=2 * DIM))


def _flops(described: Transformer, length: int) -> int:
    return sum(forward_flops(described, length).values())


def _read(model: models.Transformer, length: int) -> tuple[float, int]:
    """Seconds of reading a random text in pieces into a cache, and the cache's bytes."""
    ids = torch.randint(BYTES, (1, length), generator=torch.Generator().manual_seed(0))
    began, at = time.perf_counter(), 0
    cache = model.new_cache(1, capacity=length)
    with torch.inference_mode():
        while at < length:
            size = piece(model.spec, 1, at)
            model(ids[:, at : at + size], cache=cache, last=True)
            at += size
    return time.perf_counter() - began, cache.bytes()


def _reading(name: str, length: int) -> Callable[[], tuple[float, int]]:
    return partial(_read, models.build(_described(WINDOWS[name]), seed=0).eval(), length)


def judge(numbers: Numbers) -> Verdict:
    full, window = numbers["full"], numbers["window"]
    grown = {(name, what): _growth(numbers[name], what) for name in LABELS for what in ("seconds", "cache")}
    ahead = full["foretold"]
    told = (
        f"measured, full attention takes n^{grown['full', 'seconds']} time and n^{grown['full', 'cache']} of cache, a "
        f"window n^{grown['window', 'seconds']} and n^{grown['window', 'cache']}. {window['lengths'][-1]:,} tokens: "
        f"{window['seconds'][-1]:,.0f} s and {window['cache'][-1] / 2**20:,.2f} MiB of cache with the window, measured "
        f"({window['foretold']['seconds'][-1]:,.0f} s foretold); {ahead['seconds'][-1] / 3600:.1f} h and "
        f"{ahead['cache'][-1] / 2**20:,.0f} MiB with full attention, foretold from {LENGTHS[-1]:,} tokens"
    )
    answers = [
        grown["full", "seconds"].is_about(2),
        grown["full", "cache"].is_about(1),
        grown["window", "seconds"].is_about(1),
        grown["window", "cache"].is_about(0),
    ]
    if False in answers:
        return does_not_hold(told)
    return unclear(told) if None in answers else holds(told)


def _growth(measured: Numbers, what: str) -> Growth:
    long = [(length, cost) for length, cost in zip(measured["lengths"], measured[what]) if length >= LONG]
    return growth(*zip(*long))


def draw(numbers: Numbers, figure: Figure) -> None:
    times, memory = figure.subplots(1, 2)
    for index, (name, label) in enumerate(LABELS.items()):
        of, ahead = numbers[name], numbers[name]["foretold"]
        times.loglog(of["lengths"], of["seconds"], "o-", color=f"C{index}", label=label)
        memory.loglog(of["lengths"], [value / 2**20 for value in of["cache"]], "o-", color=f"C{index}", label=label)
        start = len(LENGTHS) - 1
        lengths = [LENGTHS[-1], *ahead["lengths"]]
        times.loglog(lengths, [of["seconds"][start], *ahead["seconds"]], ":", color=f"C{index}")
        cache = [value / 2**20 for value in (of["cache"][start], *ahead["cache"])]
        memory.loglog(lengths, cache, ":", color=f"C{index}")
    for axes in (times, memory):
        axes.set_xlabel("tokens read")
        axes.set_xticks([1e3, 1e4, 1e5, 1e6], ["1k", "10k", "100k", "1M"])
        axes.set_xticks([], minor=True)
    times.set(ylabel="seconds", title="dots measured, dotted foretold")
    memory.set(ylabel="cache, MiB")
    times.legend()


EXPERIMENT = Experiment(
    name="context",
    claim="From 512 to 1,000,000 tokens, full attention's time grows with the square of the context and its cache with "
    "the context; a window's time grows with the context, and its cache not at all.",
    source="Beltagy et al. 2020, section 3.1 (https://arxiv.org/abs/2004.05150); Jiang et al. 2023, section 2 "
    "(https://arxiv.org/abs/2310.06825)",
    refuted_by="a measured power of the context whose interval lies further than 0.25 from the claimed one",
    measure=measure,
    judge=judge,
    draw=draw,
)
