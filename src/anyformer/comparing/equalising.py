"""Models held equal: widths adjusted until parameters, or FLOPs per token, are those of the base.

The feed-forward gives way first, because nothing else changes with it. Where it would have to become less than half as
wide as the base's, or more than twice (a deeper model, say), the whole model becomes narrower or wider instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from anyformer.comparing.swapping import changed
from anyformer.errors import ExperimentError
from anyformer.planning import count, forward_flops
from anyformer.spec import Attention, Branch, FeedForward, RoutedExperts, Stack, Transformer

#: What is held equal may differ by this share of the base's.
TOLERANCE = 0.01
#: How far from the base's, as a factor, a feed-forward may get before the model's width is adjusted instead.
FURTHEST = 2.0
#: Widths are multiples of the first of these that gets near enough.
MULTIPLES = (64, 32, 16, 8, 4, 2, 1)
#: Of the factors from 1/64 to 64: what is left then is less than a thousandth.
HALVINGS = 14
#: Streams are so wide, or a multiple of it, unless they are narrow: then an even number.
ROUND = 8

#: What is counted, as people say it.
UNITS = {"parameters": "parameters", "flops": "FLOPs a token"}

Measure = Callable[[Transformer], int]


class Equalised(NamedTuple):
    """A spec, and in words what was adjusted; empty where nothing was."""

    spec: Transformer
    adjusted: str = ""


def training_flops(spec: Transformer, length: int) -> int:
    """FLOPs of training on one token, forward and backward, in sequences of `length`."""
    return round(3 * sum(forward_flops(spec, length).values()) / length)


def measure_of(equal: str, length: int) -> Measure:
    """What is counted of a spec to hold `parameters` or `flops` equal."""
    return count if equal == "parameters" else lambda spec: training_flops(spec, length)


def equalised(spec: Transformer, base: Transformer, equal: str, length: int) -> Equalised:
    """A spec with widths such that its `parameters` or `flops` (per token) are the base's within `TOLERANCE`.

    Raises `ExperimentError` where no width makes them so.
    """
    measure = measure_of(equal, length)
    wanted = measure(base)
    if _near(measure(spec), wanted):
        return Equalised(spec)
    found, inner = fitted(spec, measure, wanted), _inner(base, equal)
    if found is not None and inner / FURTHEST <= _inner(found, equal) <= inner * FURTHEST:
        return Equalised(found, f"feed-forward {_hidden(spec)} → {_hidden(found)}")
    found = narrowed(spec, measure, wanted)
    if found is None:
        raise ExperimentError(
            f"no width gives it the {wanted:,} {UNITS[equal]} of the base; it has {measure(spec):,}, so vary less, or "
            f"hold something else equal"
        )
    dims = [f"{_dims(each)} wide, feed-forward {_hidden(each)}" for each in (spec, found)]
    return Equalised(found, " → ".join(dims))


def fitted(spec: Transformer, measure: Measure, wanted: float) -> Transformer | None:
    """The spec with all its feed-forwards wider or narrower by one factor, so that it measures what is wanted; None
    where no factor makes it."""
    if not _feed_forwards(spec):
        return None
    ways = (partial(_with_hidden, spec, multiple) for multiple in MULTIPLES)
    found = (_closest(widened, measure, wanted) for widened in ways)
    return next((spec for spec in found if _near(measure(spec), wanted)), None)


def narrowed(spec: Transformer, measure: Measure, wanted: float) -> Transformer | None:
    """The spec narrower or wider as a whole, so that it measures what is wanted; None where no width makes it."""
    found = _closest(lambda factor: resized(spec, factor), measure, wanted)
    return found if _near(measure(found), wanted) else fitted(found, measure, wanted)


def resized(spec: Transformer, factor: float) -> Transformer:
    """A model of the same depth, `factor` times as wide: stream, heads together and feed-forward.

    Heads keep about their width and their groups: there are more or fewer of them.
    """

    def stack(part: Stack) -> Stack:
        dim = part.dim * factor
        return part.replace(dim=_multiple(dim, ROUND if dim >= 8 * ROUND else 2))

    def attention(part: Attention) -> Attention:
        group, kv_heads = part.heads // part.kv_heads, max(1, round(part.kv_heads * factor))
        if part.kv_heads == 1:
            group, kv_heads = max(1, round(part.heads * factor)), 1
        width = _multiple(part.heads * part.head_dim * factor / (group * kv_heads), 2)
        return part.replace(heads=group * kv_heads, kv_heads=kv_heads, head_dim=width)

    narrow = changed(changed(spec, Attention, attention), Stack, stack)
    return _with_hidden(narrow, 1, factor)


def _closest(make: Callable[[float], Transformer], measure: Measure, wanted: float) -> Transformer:
    """Of the specs that factors from 1/64 to 64 make, the one that measures nearest to what is wanted: by bisection,
    because more width is never less of anything."""
    low, high = 1 / 64, 64.0
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        if measure(make(middle)) < wanted:
            low = middle
        else:
            high = middle
    return min((make(low), make(high)), key=lambda spec: abs(measure(spec) - wanted))


def _with_hidden(spec: Transformer, multiple: int, factor: float) -> Transformer:
    def widen(branch: Branch) -> Branch:
        if not isinstance(branch.mixer, FeedForward | RoutedExperts):
            return branch
        return branch.replace(mixer=branch.mixer.replace(hidden=_multiple(branch.mixer.hidden * factor, multiple)))

    return changed(spec, Branch, widen)


def _multiple(value: float, multiple: int) -> int:
    return max(1, round(value / multiple)) * multiple


def _near(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= TOLERANCE * wanted


def _feed_forwards(spec: Transformer) -> list[Any]:
    """The feed-forwards and mixtures of every layer."""
    branches = (branch for stack in spec.stacks().values() for block in stack.layers() for branch in block.branches)
    return [branch.mixer for branch in branches if isinstance(branch.mixer, FeedForward | RoutedExperts)]


def _inner(spec: Transformer, equal: str) -> float:
    """How wide feed-forwards are, on average: all experts side by side, or for FLOPs those that a token meets."""
    mixers = _feed_forwards(spec)
    times = "experts" if equal == "parameters" else "top_k"
    return sum(mixer.hidden * getattr(mixer, times, 1) for mixer in mixers) / max(1, len(mixers))


def _hidden(spec: Transformer) -> str:
    """The widths of a spec's feed-forwards, as one says them."""
    return _said({mixer.hidden for mixer in _feed_forwards(spec)})


def _dims(spec: Transformer) -> str:
    return _said({stack.dim for stack in spec.stacks().values()})


def _said(widths: set[int]) -> str:
    return " and ".join(f"{width:,}" for width in sorted(widths)) or "none"
