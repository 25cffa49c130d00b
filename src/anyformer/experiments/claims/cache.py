"""Decoding without a cache computes the whole text again for every token; with one, a token is computed once."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from anyformer import model as models
from anyformer.experiments.costs import growth, seconds
from anyformer.experiments.experiment import Experiment, Lab, Numbers, Verdict, does_not_hold, holds, unclear
from anyformer.experiments.learning import BYTES, attention, decoder
from anyformer.planning.counts import kv_bytes
from anyformer.spec import FeedForward, Rotary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIM, DEPTH, HEADS, ROUNDS = 256, 2, 8, 2
#: Tokens written: so many that what grows with them is most of the time.
LENGTHS = (192, 384, 768, 1152)
#: With a cache there is time for more.
CACHED_LENGTHS = (192, 384, 768, 1536)
WAYS = {"without": 2.0, "with": 1.0}


def measure(lab: Lab) -> Numbers:
    """Write texts of several lengths both ways, from one first token and by the same draws."""
    described = decoder(DIM, DEPTH, attention(DIM, HEADS, position=Rotary()), FeedForward(hidden=4 * DIM))
    model = models.build(described, seed=lab.seed).eval()
    noise = _draws(max(LENGTHS + CACHED_LENGTHS), lab.seed)
    with torch.inference_mode():
        lab.say("the same tokens?")
        written = [(_without(model, noise, length), _with(model, noise, length)) for length in LENGTHS]
        ways = {("without", n): partial(_without, model, noise, n) for n in LENGTHS}
        ways |= {("with", n): partial(_with, model, noise, n) for n in CACHED_LENGTHS}
        lab.say("timing")
        taken = seconds(ways, lab.times(ROUNDS))
    numbers: Numbers = {
        "tokens": sum(len(one) for one, _ in written),
        "different": sum(a != b for one, other in written for a, b in zip(one, other, strict=True)),
        "distinct": len(set(written[-1][0])),
        "cache_bytes": kv_bytes(described, max(LENGTHS), dtype="float32"),
    }
    for way in WAYS:
        keys = [key for key in ways if key[0] == way]
        numbers[way] = {"lengths": [length for _, length in keys], "seconds": [taken[key] for key in keys]}
    return numbers


def _draws(count: int, seed: int) -> torch.Tensor:
    """Gumbel noise [count, V]: the id that is largest of logits and noise is one drawn by its probability."""
    uniform = torch.rand(count, BYTES, generator=torch.Generator().manual_seed(seed))
    return -(-uniform.clamp(1e-9, 1 - 1e-7).log()).log()


def _without(model: models.Transformer, noise: torch.Tensor, count: int) -> list[int]:
    ids = torch.zeros(1, 1, dtype=torch.long)
    for step in range(count):
        logits = model(ids, last=True).logits
        assert logits is not None
        ids = torch.cat((ids, (logits[:, -1] + noise[step]).argmax(-1, keepdim=True)), 1)
    return ids[0, 1:].tolist()


def _with(model: models.Transformer, noise: torch.Tensor, count: int) -> list[int]:
    cache, token, written = model.new_cache(1), torch.zeros(1, 1, dtype=torch.long), []
    for step in range(count):
        token = (model.next_logits(token, cache) + noise[step]).argmax(-1, keepdim=True)
        written.append(int(token))
    return written


def judge(numbers: Numbers) -> Verdict:
    grown = {way: growth(numbers[way]["lengths"], numbers[way]["seconds"]) for way in WAYS}
    longest = numbers["without"]["lengths"][-1]
    each = [grown[way].at(longest) / longest * 1000 for way in WAYS]
    told = (
        f"writing n tokens takes n^{grown['without']} without a cache and n^{grown['with']} with one; {longest} "
        f"take {each[0]:.1f} against {each[1]:.1f} ms each, for {numbers['cache_bytes'] / 2**20:.1f} MiB of cache; "
        f"{numbers['different']} of {numbers['tokens']:,} tokens differ"
    )
    answers = [grown[way].is_about(claimed) for way, claimed in WAYS.items()]
    if numbers["different"] or False in answers:
        return does_not_hold(told)
    return unclear(told) if None in answers else holds(told)


def draw(numbers: Numbers, figure: Figure) -> None:
    axes = figure.subplots()
    for way in WAYS:
        lengths, taken = numbers[way]["lengths"], numbers[way]["seconds"]
        axes.loglog(lengths, taken, "o-", label=f"{way} a cache: n^{growth(lengths, taken).power:.2f}")
    ticks = sorted({*LENGTHS, *CACHED_LENGTHS})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="n, tokens written", ylabel="seconds in all")
    axes.legend()


EXPERIMENT = Experiment(
    name="cache",
    claim="Decoding n tokens takes time O(n²) when all is computed again for each, O(n) with a cache of keys and "
    "values, and gives the same tokens.",
    source="Shazeer 2019, section 2.4 (https://arxiv.org/abs/1911.02150)",
    refuted_by="a token that differs, or a power of n whose interval lies further than 0.25 from 2 without a cache or "
    "from 1 with one",
    measure=measure,
    judge=judge,
    draw=draw,
)
