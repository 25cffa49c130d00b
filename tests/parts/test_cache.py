"""Caches under any schedule of calls: every query finds exactly the keys that it may see, each once."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyformer.errors import InputError
from anyformer.parts.cache import Cache
from anyformer.parts.kernels.int8_rows import Int8Rows, quantized
from anyformer.parts.masks import Causal, Mask, Prefix, Tokens, Valid, Window

HORIZONS = (None, 1, 3, 8)


@dataclass(frozen=True)
class Call:
    """One call: `valid` per row and token (None: all are real), then perhaps a new order of rows, and perhaps so many
    tokens that each row takes back."""

    length: int
    valid: tuple[tuple[bool, ...], ...] | None
    reorder: tuple[int, ...] | None
    back: tuple[int, ...] | None = None


@st.composite
def schedules(draw: st.DrawFn) -> tuple[int, list[Call]]:
    """A batch size and calls: single tokens, chunks, padded in any way or not at all; rows reordered in between, and
    taken back."""
    rows = draw(st.integers(1, 3))
    calls = []
    for _ in range(draw(st.integers(1, 9))):
        length = draw(st.one_of(st.just(1), st.integers(1, 7)))
        valid = None
        if draw(st.integers(0, 3)) == 0:
            valid = draw(st.tuples(*[st.tuples(*[st.booleans()] * length)] * rows))
        reorder = draw(st.tuples(*[st.integers(0, rows - 1)] * rows)) if draw(st.integers(0, 4)) == 0 else None
        back = draw(st.tuples(*[st.integers(0, 6)] * rows)) if draw(st.integers(0, 2)) == 0 else None
        calls.append(Call(length, valid, reorder, back))
    return rows, calls


def mask_of(horizon: int | None) -> Mask:
    """The mask of a layer that can look back as far as this."""
    return (Causal() if horizon is None else Causal() & Window(horizon)) & Valid()


def follow(rows: int, calls: list[Call], capacity: int | None = None, margin: int = 0) -> Cache:
    """Run a schedule through a cache of all horizons beside a list of what each row has seen; after every call, what
    each real query sees must be the end of its row's list, each token once and no other. What a ring cannot take back
    is refused, and nothing has changed."""
    cache = Cache(HORIZONS, rows, "cpu", capacity, margin=margin)
    seen: list[list[float]] = [[] for _ in range(rows)]
    fullest = [0] * rows
    name = 0.0
    for call in calls:
        names = torch.full((rows, call.length), -1.0)
        before = [len(row) for row in seen]
        for row in range(rows):
            for t in range(call.length):
                if call.valid is None or call.valid[row][t]:
                    name += 1
                    names[row, t] = name
                    seen[row].append(name)
        q = cache.queries(call.length, None if call.valid is None else torch.tensor(call.valid), None)
        for layer in cache.layers:
            plan = cache.plan(layer.horizon, q)
            new = names[:, None, :, None].expand(rows, 2, call.length, 1)
            keys, values = layer.extend(plan, cache.slots(plan.stop), new, torch.cat((new, -new), -1))
            assert isinstance(keys, Tensor) and isinstance(values, Tensor)
            assert keys.shape == (rows, 2, plan.keys.length, 1)
            assert torch.equal(values, torch.cat((keys, -keys), -1))
            check(layer.horizon, q, plan.keys, keys[:, 1, :, 0], names, before, seen)
        cache.advance(q)
        if call.reorder is not None:
            cache.reorder(torch.tensor(call.reorder))
            seen = [list(seen[row]) for row in call.reorder]
            fullest = [fullest[row] for row in call.reorder]
        if call.back is not None:
            kept = [max(0, len(row) - back) for row, back in zip(seen, call.back, strict=True)]
            fullest = [max(before, len(row)) for before, row in zip(fullest, seen, strict=True)]
            ring = min(horizon for horizon in HORIZONS if horizon is not None) + margin
            if any(most > ring and most - keep > margin for most, keep in zip(fullest, kept, strict=True)):
                with pytest.raises(InputError, match=f"the cache's ring lets a row take back {margin} tokens, and it"):
                    cache.truncate(kept)
            else:
                cache.truncate(kept)
                seen = [row[:keep] for row, keep in zip(seen, kept, strict=True)]
    return cache


def check(
    horizon: int | None, q: Tokens, k: Tokens, held: Tensor, names: Tensor, before: list[int], seen: list[list[float]]
) -> None:
    """Each real query of each row sees the last `horizon` names up to its own."""
    allowed = mask_of(horizon).allows(q, k).expand(len(seen), q.length, k.length)
    for row, history in enumerate(seen):
        position = before[row]
        for t in range(q.length):
            if names[row, t] < 0:
                continue
            wanted = history[: position + 1][-(horizon or len(history)) :]
            assert sorted(held[row][allowed[row, t]].tolist()) == wanted, (horizon, row, t)
            position += 1


def together(*lengths: int) -> list[Call]:
    """Calls without padding."""
    return [Call(length, None, None) for length in lengths]


@settings(max_examples=250)
@given(schedules())
@example((1, together(3, 1, 1, 1, 1, 1, 1)))
@example((2, together(8, 1, 8, 7, 1, 1)))
@example((1, together(20, 3, 20)))
@example((2, [Call(2, ((False, False), (True, True)), None), *together(1, 9, 1)]))
@example((1, [Call(1, ((False,),), None), Call(7, None, None), Call(1, ((False,),), None), Call(1, None, None)]))
def test_every_query_finds_its_keys(schedule: tuple[int, list[Call]]) -> None:
    """Whatever the schedule: appends, chunks, ring wraps, padding left, right or anywhere (whole rows too), reordering,
    tokens taken back; for no window and windows of 1, 3 and 8, with margins or without; and the same with a capacity
    that just suffices."""
    rows, calls = schedule
    for margin in (0, 4):
        follow(rows, calls, margin=margin)
    follow(rows, calls, capacity=sum(call.length for call in calls))


@settings(max_examples=40)
@given(schedules(), st.sampled_from([torch.float32, torch.float64]))
@torch.no_grad()
def test_in_8_bits_a_cache_reads_what_it_would_read_quantised(
    schedule: tuple[int, list[Call]], dtype: torch.dtype
) -> None:
    """Byte for byte, whatever the schedule and the plan, by the native kernel (float32) and by torch (float64); rows
    copied, and single slots, too."""
    rows, calls = schedule
    plain, int8 = (Cache(HORIZONS, rows, "cpu", margin=4, int8=int8) for int8 in (False, True))
    for index, call in enumerate(calls):
        new = torch.randn(rows, 2, call.length, 5, dtype=dtype), torch.randn(rows, 2, call.length, 2, dtype=dtype)
        valid = None if call.valid is None else torch.tensor(call.valid)
        q = [cache.queries(call.length, valid, None) for cache in (plain, int8)]
        for one, other in zip(plain.layers, int8.layers, strict=True):
            plans = plain.plan(one.horizon, q[0]), int8.plan(other.horizon, q[1])
            wanted = one.extend(plans[0], plain.slots(plans[0].stop), *new)
            found = other.extend(plans[1], int8.slots(plans[1].stop), *new)
            for kept, numbers in zip(found, wanted, strict=True):
                assert isinstance(kept, Int8Rows) and isinstance(numbers, Tensor)
                assert kept.shape == numbers.shape and torch.equal(kept.rows, quantized(numbers))
        for cache, tokens in zip((plain, int8), q, strict=True):
            cache.advance(tokens)
            if call.reorder is not None:
                cache.reorder(torch.tensor(call.reorder))
                cache.copy([0], [rows - 1])
            elif index and call.valid is None:
                cache.copy_last(torch.arange(rows).flip(0))


def test_in_8_bits_a_cache_takes_half() -> None:
    """Keys and values of 64 channels: 68 bytes a row where bfloat16 takes 128, whatever the capacity."""
    taken = []
    for int8 in (False, True):
        cache = Cache((None, 4), 2, "cpu", capacity=100, int8=int8)
        for layer in cache.layers:
            plan = cache.plan(layer.horizon, cache.queries(3, None, None))
            layer.extend(plan, 100, *torch.zeros(2, 2, 3, 3, 64).bfloat16())
        taken.append(cache.bytes())
    assert taken[0] == 2 * 2 * 3 * (101 + 5) * 128 and taken[1] == 2 * 2 * 3 * (101 + 5) * 68


def test_a_full_cache_says_so() -> None:
    """One token too many is refused before anything is written; with room it goes on."""
    cache = follow(2, together(4, 2), capacity=7)
    with pytest.raises(
        InputError, match=r"the cache holds 7 tokens and has 6; 2 more do not fit: make one with a larger"
    ):
        cache.queries(2, None, None)
    assert cache.queries(1, None, None).start == 6


def test_a_ring_takes_constant_memory() -> None:
    """Windows keep as many slots as they can look back on (and one for padding), however long the stream; only what has
    no horizon grows, by doubling."""
    sizes = []
    for steps in (20, 200):
        cache = follow(1, together(*[1] * steps))
        sizes.append([layer.stored[0].shape[2] for layer in cache.layers])
    assert sizes[0][1:] == sizes[1][1:] == [2, 4, 9]
    assert 200 < sizes[1][0] <= 401


def test_capacity_is_made_once() -> None:
    """Storage of a fixed capacity is laid out at the first call and never moves: the graph of a step stays valid."""
    cache = Cache((None, 4), 1, "cpu", capacity=12)
    places = set()
    for _ in range(12):
        q = cache.queries(1, None, None)
        for layer in cache.layers:
            layer.extend(cache.plan(layer.horizon, q), 12, torch.ones(1, 1, 1, 2))
        cache.advance(q)
        places.add(tuple(layer.stored[0].data_ptr() for layer in cache.layers))
    assert len(places) == 1
    assert [layer.stored[0].shape[2] for layer in cache.layers] == [13, 5]
    assert cache.bytes() == (13 + 5) * 2 * 4


def test_a_prefix_stays_known() -> None:
    """Given at the first call, the prefix is there at the next, and follows its row when rows are reordered."""
    cache = Cache((None,), 2, "cpu")
    q = cache.queries(4, None, torch.tensor([[1], [3]]))
    cache.plan(None, q)
    cache.advance(q)
    cache.reorder(torch.tensor([1, 1]))
    q = cache.queries(1, None, None)
    keys = cache.plan(None, q).keys
    assert keys.prefix is not None and keys.prefix.tolist() == [[3], [3]]
    assert Prefix().allows(q, keys)[0].tolist() == [[True] * 3 + [False] * 2]


def test_rows_copied_are_rows_reordered() -> None:
    """Copying the rows that change gives what naming every row anew gives, in what a layer of any horizon reads next;
    the source's keys stay where they are."""
    caches = [follow(4, together(3, 1, 1, 1, 1, 1)) for _ in range(2)]
    for cache in caches:
        cache.layers[0].crossed = (torch.zeros(4, 1, 2, 1), torch.zeros(4, 1, 2, 1))
    kept = caches[1].layers[0].crossed
    caches[0].reorder(torch.tensor([0, 3, 0, 3]))
    caches[1].copy([1, 2], [3, 0])
    assert caches[1].layers[0].crossed is kept
    q = [cache.queries(1, None, None) for cache in caches]
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        read = []
        for cache, layer, each in zip(caches, layers, q):
            plan = cache.plan(layer.horizon, each)
            read.append(layer.extend(plan, cache.slots(plan.stop), *[torch.ones(4, 2, 1, 1)] * 2))
        assert all(
            isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
            for one, other in zip(*read, strict=True)
        )
    caches[1].copy([], [])


def test_what_no_row_can_fall_back_to_is_refused() -> None:
    """More than it holds, or into a prefix, whose tokens have seen what would be gone; and nothing has changed."""
    cache = follow(2, together(3, 2))
    with pytest.raises(InputError, match=r"rows hold \[5, 5\] tokens and cannot fall back to \[6, 2\]; a row keeps at"):
        cache.truncate([6, 2])
    assert cache.queries(1, None, None).start == 5
    cache = Cache((None,), 2, "cpu")
    cache.advance(cache.queries(4, None, torch.tensor([[1], [3]])))
    with pytest.raises(InputError, match="and at least its prefix"):
        cache.truncate([2, 2])
    cache.truncate([1, 3])
    assert cache.queries(1, None, None).position.tolist() == [[1], [3]]
