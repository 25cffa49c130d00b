"""Measuring a model, alone or beside the same weights elsewhere, and what limits it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from anyformer import machine
from anyformer.errors import InputError
from anyformer.inspection.bench import traffic
from anyformer.inspection.bench.comparing import Comparison, interleave
from anyformer.inspection.bench.sides import Here, Opened, Side, Work, beside, do, there, warm

OURS = "anyformer"
#: What reading or computing must take of the time to be called the limit.
LIMIT = 0.5


@dataclass(frozen=True)
class Phase:
    """A part of the work, done by all sides: reading the prompts up to the first new tokens, decoding the others, or
    embedding.

    count   how many tokens (sentences) a round has
    bytes   what must be read from memory for a round at least, in as many steps as it has
    flops   what must be computed
    seconds of every round, by side
    """

    name: Literal["prefill", "decode", "embed"]
    unit: Literal["tokens", "sentences"]
    count: int
    steps: int
    bytes: int
    flops: int
    seconds: Comparison


@dataclass(frozen=True)
class Report:
    """What was measured.

    weight_bytes, step_weight_bytes    of the whole model; of what a decoded token reads
    cache_bytes                        keys and values at the end of the work
    peak_bytes                         what the process held at most while it worked, before any other side was loaded
    read_rate, matrix_rate             of this machine, with the model's own matrices: bytes/s, FLOP/s
    """

    model: str
    shape: str
    device: str
    threads: int
    work: Work
    rounds: int
    sides: dict[str, dict[str, str]]
    weight_bytes: int
    step_weight_bytes: int
    cache_bytes: int
    peak_bytes: int | None
    read_rate: float
    matrix_rate: float
    phases: tuple[Phase, ...]

    def shares(self, phase: Phase) -> tuple[float, float]:
        """Which part of its median time a phase would take if the machine only read what it must, and if it only
        multiplied what it must."""
        took = phase.seconds.median(OURS)
        return phase.bytes / self.read_rate / took, phase.flops / self.matrix_rate / took

    def limit(self, phase: Phase) -> Literal["memory", "arithmetic", "neither"]:
        """What most of a phase's time goes into."""
        reading, computing = self.shares(phase)
        if max(reading, computing) < LIMIT:
            return "neither"
        return "memory" if reading > computing else "arithmetic"


def bench(
    opened: Opened,
    work: Work,
    *,
    against: Sequence[str] = (),
    rounds: int = 5,
    progress: Callable[[str], None] = lambda doing: None,
) -> Report:
    """Measure a model at a work, `rounds` times after once that does not count, in turn with the same weights in other
    projects (`RIVALS`). `progress` is told what comes next.

    Raises `InputError` naming a project that is not there, or cannot do it, and for more tokens than the model has
    positions.
    """
    model = opened.model
    against = there(against, model.spec.shape)
    _must_reach(opened, work)
    here = Here(model)
    progress("a first time, which does not count")
    peak = warm(here, work)
    progress("the machine")
    rates = [_rates(here, work)]
    if against:
        progress(f"making ready {', '.join(against)}")
    with beside(opened, against, work) as others:
        sides: dict[str, Side] = {OURS: here, **others}
        progress("measuring")
        laps = interleave({name: partial(do, side, work) for name, side in sides.items()}, rounds, warmups=1)
        rates.append(_rates(here, work))
        read_rate, matrix_rate = map(max, zip(*rates))
        return Report(
            model=opened.reference,
            shape=model.spec.shape,
            device=str(model.device),
            threads=torch.get_num_threads(),
            work=work,
            rounds=rounds,
            sides={name: {"version": side.version, "dtype": side.dtype} for name, side in sides.items()},
            weight_bytes=traffic.stored_bytes(model),
            step_weight_bytes=traffic.step_weight_bytes(model, work.batch) if work.new_tokens else 0,
            cache_bytes=traffic.cache_bytes(model, work, work.length) if work.new_tokens else 0,
            peak_bytes=peak,
            read_rate=read_rate,
            matrix_rate=matrix_rate,
            phases=_phases(opened, work, laps),
        )


def _must_reach(opened: Opened, work: Work) -> None:
    """Raises `InputError` where the model has learned too few positions for all new tokens."""
    reads_source = opened.model.spec.shape == "encoder-decoder"
    last, known = work.new_tokens if reads_source else work.length, opened.model.positions
    if work.new_tokens and known is not None and last > known:
        asked = f"{work.new_tokens:,} new tokens" + (f" after {work.prompt_tokens:,}" if not reads_source else "")
        raise InputError(f"{opened.reference} has learned {known:,} positions, too few for {asked}; ask for fewer")


def _rates(here: Here, work: Work) -> tuple[float, float]:
    """Of reading and of multiplying, now: before and after the rounds, the better of which counts."""
    model, rows = here.model, work.batch * work.prompt_tokens
    return machine.read_rate(model.device), machine.matrix_rate(model.spec, rows, model.dtype, model.device)


def _phases(opened: Opened, work: Work, laps: dict[str, list[list[float]]]) -> tuple[Phase, ...]:
    """A round's laps, taken apart."""
    model = opened.model
    first = Comparison({name: [each[0] for each in rounds] for name, rounds in laps.items()})
    weights, flops = traffic.stored_bytes(model), traffic.prompt_flops(model, work)
    if not work.new_tokens:
        return (Phase("embed", "sentences", work.batch, 1, weights, flops, first),)
    prefill = Phase("prefill", "tokens", work.batch * work.prompt_tokens, 1, weights, flops, first)
    steps = work.new_tokens - 1
    if not steps:
        return (prefill,)
    rest = Comparison({name: [each[steps] - each[0] for each in rounds] for name, rounds in laps.items()})
    middle = work.prompt_tokens + work.new_tokens // 2
    read = traffic.step_weight_bytes(model, work.batch) + traffic.cache_bytes(model, work, middle)
    computed = traffic.step_flops(model, work, middle)
    return prefill, Phase("decode", "tokens", work.batch * steps, steps, steps * read, steps * computed, rest)
