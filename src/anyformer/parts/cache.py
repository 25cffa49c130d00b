"""Caches of keys and values: growing, of fixed capacity, or a ring, whichever the mask's horizon asks for.

One rule gives all three: **a token's slot is its position** (modulo the ring's size). So padding takes no slot, rows of
different lengths lie side by side from slot 0 on, and what a slot holds need not be remembered: it follows from how
many tokens its row has seen. Slots that a row has not reached lie ahead of its queries, and causality hides them.

    growing, rows of 5 and 3 tokens           ring of 4 after 6 tokens (positions 2 to 5)
      slot  0 1 2 3 4 . . .                     slot      0 1 2 3
      row 0 0 1 2 3 4                           position  4 5 2 3
      row 1 0 1 2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from anyformer.errors import InputError
from anyformer.parts.kernels import native
from anyformer.parts.kernels.int8_rows import Int8Rows, quantized
from anyformer.parts.masks import Tokens
from anyformer.parts.positions import Stretch

#: The fewest slots that storage without a capacity is made with, unless it is known that fewer will do.
LEAST = 64


@dataclass(frozen=True, eq=False)
class Plan:
    """How this call's tokens enter the layers of one horizon, worked out once for all of them.

    how   slice    every row writes the same run of slots, and reads all up to there
          ring     one token a row, over the oldest
          beside   keys are what the ring holds, in order, then the new ones; the last of them stay
          scatter  rows write different slots, padding none
          mixed    scatter into a ring: keys are the ring's slots, then the new tokens
    keys  what attention is told of the keys it will see
    slots [B, T] where each token goes, for scatter and mixed; -1 for one that is `dumped`, into a slot past the end
          that nobody reads
    """

    how: Literal["slice", "ring", "beside", "scatter", "mixed"]
    keys: Tokens
    start: int
    stop: int
    ring: int = 0
    slots: Tensor | None = None
    dumped: bool = False


class LayerCache:
    """The tensors that one layer keeps, each [B, heads, slots, channels]: keys and values, or whatever a mixer caches.

    Storage is made at the first call, from what it is given, and made anew when it is full, with as many `slots` as the
    cache says.
    In 8 bits (`int8`), each slot holds a row of bytes, [B, heads, slots, bytes] (`kernels/int8_rows.py`): those that
    follow slots need not know.
    """

    def __init__(self, horizon: int | None, int8: bool = False) -> None:
        self.horizon, self.int8 = horizon, int8
        self.stored: tuple[Tensor, ...] = ()
        self.crossed: tuple[Tensor, Tensor] | None = None

    def extend(self, plan: Plan, slots: int, *new: Tensor) -> tuple[Tensor | Int8Rows, ...]:
        """Take in `new` (each [B, heads, T, channels]); what attention is to read, in the order of `plan.keys`."""
        self._reserve(plan, slots, self.stored or tuple(quantized(x[:, :, :1]) if self.int8 else x for x in new))
        rows = (_HOW[plan.how](store, plan, x) for store, x in zip(self.stored, new, strict=True))
        return tuple(Int8Rows(kept, x.shape[3]) if self.int8 else kept for kept, x in zip(rows, new, strict=True))

    def _reserve(self, plan: Plan, slots: int, like: tuple[Tensor, ...]) -> None:
        needed = min(plan.stop, plan.ring) if plan.ring else plan.stop
        held = self.stored[0].shape[2] - 1 if self.stored else 0
        if held >= needed:
            return
        size = min(slots, plan.ring) if plan.ring else slots
        grown = []
        for index, tensor in enumerate(like):
            # Zeros, not garbage: a weight of zero times NaN is NaN. One slot more is where padding is dumped.
            store = tensor.new_zeros(tensor.shape[0], tensor.shape[1], size + 1, tensor.shape[3])
            if self.stored:
                store[:, :, :held] = self.stored[index][:, :, :held]
            grown.append(store)
        self.stored = tuple(grown)

    def make_room(self, plan: Plan, slots: int) -> None:
        """Let the storage that there is hold a call's tokens."""
        self._reserve(plan, slots, self.stored)

    def room(self, plan: Plan) -> bool:
        """Whether a call's tokens fit into the storage as it is."""
        held = self.stored[0].shape[2] - 1 if self.stored else 0
        return held >= (min(plan.stop, plan.ring) if plan.ring else plan.stop)

    def reorder(self, rows: Tensor) -> None:
        """Let row i continue what row rows[i] has seen."""
        self.stored = tuple(store.index_select(0, rows) for store in self.stored)
        if self.crossed is not None:
            self.crossed = (self.crossed[0].index_select(0, rows), self.crossed[1].index_select(0, rows))

    def join(self, others: Sequence[LayerCache]) -> None:
        """Take in the one row of each of the others, with as many slots as the largest has."""
        each = zip(*(other.stored for other in others))
        self.stored = tuple(_stacked([store[:, :, :-1] for store in stores], 1) for stores in each)
        if others[0].crossed is not None:
            keys, values = zip(*(other.crossed for other in others if other.crossed is not None))
            self.crossed = (_stacked(keys), _stacked(values))

    def copy(self, to: Tensor, of: Tensor, length: int) -> None:
        """Let the rows `to` continue what the rows `of` have seen, up to `length` tokens, of the same source."""
        for store in self.stored:
            filled = store[:, :, :length]
            filled.index_copy_(0, to, filled.index_select(0, of))

    def copy_slot(self, of: Tensor, slots: Tensor) -> None:
        """Let slot slots[i] of row i hold what it holds in row of[i]."""
        rows = torch.arange(len(of), device=of.device)
        for store in self.stored:
            store[rows, :, slots] = store[of, :, slots]


def _stacked(rows: Sequence[Tensor], more: int = 0) -> Tensor:
    """Rows [1, heads, slots, channels], one below the other; zeros where one has fewer slots, and in so many `more`."""
    slots = max(row.shape[2] for row in rows)
    stacked = rows[0].new_zeros(len(rows), rows[0].shape[1], slots + more, rows[0].shape[3])
    for to, row in zip(stacked, rows):
        to[:, : row.shape[2]] = row[0]
    return stacked


def _slice(store: Tensor, plan: Plan, new: Tensor) -> Tensor:
    _put(store, new, plan.start)
    return store.narrow(2, 0, plan.stop)


def _ring(store: Tensor, plan: Plan, new: Tensor) -> Tensor:
    _put(store, new, plan.start % plan.ring)
    return store.narrow(2, 0, plan.ring)


def _put(store: Tensor, new: Tensor, start: int) -> None:
    """New tokens into the slots from `start` on."""
    if _few(store, new):
        native.keep(new, store, None, start)
    else:
        store[:, :, start : start + new.shape[2]] = _rows(store, new)


def _rows(store: Tensor, new: Tensor) -> Tensor:
    """New tokens as the store keeps them."""
    return quantized(new) if store.dtype == torch.int8 else new


def _few(store: Tensor, new: Tensor) -> bool:
    """Whether the native kernel is the one to put them there: few tokens, as they are or in 8 bits."""
    return new.shape[2] <= native.FEW and store.dtype in (new.dtype, torch.int8) and native.fits(new)


def _beside(store: Tensor, plan: Plan, new: Tensor) -> Tensor:
    held = min(plan.start, plan.ring)
    old = store[:, :, :held]
    if plan.start > plan.ring:
        old = old.roll(-(plan.start % plan.ring), 2)
    keys = torch.cat((old, _rows(store, new)), 2)
    last = keys[:, :, -plan.ring :]
    store[:, :, : plan.ring] = last.roll(plan.stop % plan.ring, 2)
    return keys


def _scatter(store: Tensor, plan: Plan, new: Tensor) -> Tensor:
    assert plan.slots is not None
    if _few(store, new):
        native.keep(new, store, plan.slots.expand(len(new), -1).contiguous(), 0)
        return store.narrow(2, 0, min(plan.stop, plan.ring) if plan.ring else plan.stop)
    slots = torch.where(plan.slots < 0, store.shape[2] - 1, plan.slots) if plan.dumped else plan.slots
    new = _rows(store, new)
    store.scatter_(2, slots[:, None, :, None].expand_as(new), new)
    return store[:, :, : min(plan.stop, plan.ring) if plan.ring else plan.stop]


def _mixed(store: Tensor, plan: Plan, new: Tensor) -> Tensor:
    keys = torch.cat((store[:, :, : min(plan.start, plan.ring)], _rows(store, new)), 2)
    _scatter(store, plan, new)
    return keys


_HOW = {"slice": _slice, "ring": _ring, "beside": _beside, "scatter": _scatter, "mixed": _mixed}


class Cache:
    """What a decoder remembers between calls: a `LayerCache` a layer, how far each row has come, and, with an encoder,
    the source.

    `length` is how many tokens the fullest row may have seen; while `counts` is None every row has seen exactly that
    many, otherwise counts [B] says how many each. What a cache is given is detached: no gradient flows into earlier
    calls, so a model given a cache runs without gradients.

    Where rotary angles follow the length reached (`stretches`: dynamic NTK, LongRoPE), what earlier tokens came to in
    every layer holds only until the angles change; to keep keys unrotated would mend the first layer alone. So such a
    cache also remembers what it was `told`, and where the angles change it is emptied and told everything again: once
    in the life of a text with LongRoPE, at every token past the original context with dynamic NTK. The length reached
    is one for all rows, and known to the host: `length`, that of the fullest row.

    Rows can fall back to fewer tokens (`truncate`). A ring has written over what they would then look back on, unless
    it has `margin` slots beyond its horizon: so many tokens a row can take back.

    Storage has as many slots as the capacity says; without one it doubles when it is full. Who knows what is to come
    says so (`foresee`): then there is room for that at once, and for no more.

    With `int8`, keys and values are kept in 8 bits; those of an encoder's source, computed once, stay as they are.
    """

    def __init__(
        self,
        horizons: Sequence[int | None],
        batch_size: int,
        device: torch.device | str,
        capacity: int | None = None,
        stretches: Sequence[Stretch] = (),
        margin: int = 0,
        int8: bool = False,
    ) -> None:
        self.stretches = stretches
        self.told: list[tuple[Tensor, Tensor | None]] = []
        self.regimes: list[int] = []
        self.layers = [LayerCache(horizon, int8) for horizon in horizons]
        self.batch_size, self.device, self.capacity, self.margin = batch_size, device, capacity, margin
        self.int8, self.length = int8, 0
        self._slots, self._end = capacity or 0, 0
        #: Steps to be made again, by the shape of their input, and the shapes of those that cannot be.
        self.recordings: dict[Any, Any] = {}
        self.unrecordable: set[Any] = set()
        self.counts: Tensor | None = None
        self.fullest: Tensor | None = None
        self.prefix: Tensor | None = None
        self.source: Tokens | None = None

    def foresee(self, tokens: int, more: int, ahead: bool = True) -> None:
        """Have room made for so many tokens, in whatever pieces they come; `ahead`, also for the `more` that may follow
        at most, as far as they do not double it. Storage never grows beyond those."""
        reached = self.length + tokens
        self._end = reached + more
        if reached > self._slots:
            self._slots = min(self._end, max(2 * reached, LEAST)) if ahead else reached

    def slots(self, stop: int) -> int:
        """How many slots storage has that is made for `stop` tokens."""
        if stop > self._slots:
            doubled = max(stop, 2 * self._slots, LEAST)
            self._slots = min(doubled, self._end) if stop <= self._end else doubled
        return self._slots

    def queries(self, T: int, valid: Tensor | None, prefix: Tensor | None) -> Tokens:
        """The tokens of this call, standing after those of the calls before.

        Raises `InputError` if they do not fit the capacity."""
        if self.capacity is not None and self.length + T > self.capacity:
            raise InputError(
                f"the cache holds {self.capacity} tokens and has {self.length}; {T} more do not fit: make one with a "
                f"larger capacity, or with none"
            )
        self.prefix = prefix if prefix is not None else self.prefix
        if valid is None and self.counts is None:
            return Tokens(T, device=self.device, start=self.length, prefix=self.prefix)
        steps = torch.arange(1, T + 1, device=self.device)[None] if valid is None else valid.long().cumsum(1)
        position = (self._counts()[:, None] + steps - 1).clamp(min=0)
        return Tokens(T, device=self.device, position=position, valid=valid, prefix=self.prefix)

    def outdated(self, T: int) -> bool:
        """Whether T more tokens change the rotary angles of those before."""
        return bool(self.told) and self._regimes(T) != self.regimes

    def retell(self, tokens: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Empty the cache; the tokens [B, T] of a call, and where they are valid, after all of the calls before."""
        self.length, self.counts, self.fullest, self.regimes = 0, None, None, []
        calls = [*self.told, (tokens, valid)]
        padded = any(valid is not None for _, valid in calls)
        whole = [torch.ones_like(ids, dtype=torch.bool) if valid is None else valid for ids, valid in calls]
        return torch.cat([ids for ids, _ in calls], 1), torch.cat(whole, 1) if padded else None

    def remember(self, tokens: Tensor, valid: Tensor | None) -> None:
        """Keep the tokens of a call that has been counted, where the angles of the next ones may change theirs."""
        if self.stretches:
            self.regimes = [stretch.regime(self.length) for stretch in self.stretches]
            before = self.told if self.length > tokens.shape[1] else []
            self.told = [*before, (tokens, valid)]

    def plan(self, horizon: int | None, q: Tokens) -> Plan:
        """How the queries' own keys and values enter the layers of this horizon."""
        start, stop = self.length, self.length + q.length
        ring = 0 if horizon is None else horizon + self.margin
        if q.start is not None:
            if not ring or stop <= ring:
                return Plan("slice", self._keys(stop), start, stop, ring)
            if q.length == 1:
                low = stop - ring
                last = torch.full((1, 1), start, device=self.device)
                keys = Tokens(
                    ring,
                    device=self.device,
                    position=lambda: self._held(last, ring),
                    low=low,
                    high=start,
                    prefix=self.prefix,
                )
                return Plan("ring", keys, start, stop, ring)
            held = min(start, ring)
            keys = Tokens(held + q.length, device=self.device, start=start - held, prefix=self.prefix)
            return Plan("beside", keys, start, stop, ring)
        counts = self._counts()[:, None]
        after = counts + (q.length if q.valid is None else q.valid.sum(1, keepdim=True))
        slots = q.position if not ring else torch.where(q.position >= after - ring, q.position % ring, -1)
        slots = slots if q.valid is None else torch.where(q.valid, slots, -1)
        if not ring or stop <= ring:
            keys = self._keys(stop)
            if self.prefix is not None:
                # Slots ahead of a row are hidden by causality, but not from a prefix that the row does not fill.
                keys.valid = torch.arange(stop, device=self.device)[None] < after
            return Plan("scatter", keys, start, stop, ring, slots, dumped=q.valid is not None)
        if q.length == 1:
            position = self._held(after - 1, ring)
            keys = Tokens(
                ring, device=self.device, position=position.clamp(min=0), valid=position >= 0, prefix=self.prefix
            )
            return Plan("scatter", keys, start, stop, ring, slots, dumped=q.valid is not None)
        held = self._held(counts - 1, ring)[:, : min(start, ring)]
        valid = torch.ones_like(q.position, dtype=torch.bool) if q.valid is None else q.valid
        keys = Tokens(
            held.shape[1] + q.length,
            device=self.device,
            position=torch.cat((held.clamp(min=0), q.position), 1),
            valid=torch.cat((held >= 0, valid), 1),
            prefix=self.prefix,
        )
        return Plan("mixed", keys, start, stop, ring, slots, dumped=True)

    def advance(self, q: Tokens) -> None:
        """Count the tokens of a call that has gone through all layers."""
        if q.start is None:
            self.counts = self._counts() + (q.length if q.valid is None else q.valid.sum(1))
        self.length += q.length

    def steady(self, T: int) -> int:
        """How many of T more tokens may come in one call, so that each finds the rotary angles that it would find if
        they came one by one."""
        if not self.stretches:
            return T
        regimes = [[stretch.regime(self.length + t) for stretch in self.stretches] for t in range(1, T + 1)]
        return sum(regime == regimes[0] for regime in regimes)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Let row i fall back to the first lengths[i] of its tokens, as if it had never seen the others.

        Raises `InputError` where a row has not seen so many, or its ring no longer holds what it would look back on; in
        a prefix, whose tokens have seen all of it, a row cannot stop.
        """
        before, kept = self._counts(), torch.tensor(lengths, device=self.device)
        least = torch.zeros_like(kept) if self.prefix is None else self.prefix[:, 0].minimum(before)
        if bool(((kept < least) | (kept > before)).any()):
            raise InputError(
                f"the cache's rows hold {before.tolist()} tokens and cannot fall back to {list(lengths)}; a row keeps "
                f"at most what it holds, and at least its prefix"
            )
        self.fullest = before if self.fullest is None else torch.maximum(self.fullest, before)
        rings = [layer.horizon + self.margin for layer in self.layers if layer.horizon is not None]
        if rings and bool(((self.fullest > min(rings)) & (self.fullest - kept > self.margin)).any()):
            raise InputError(
                f"the cache's ring lets a row take back {self.margin} tokens, and it has written over what it would "
                f"look back on; make one with a larger margin"
            )
        self.length = max(lengths)
        self.counts = None if min(lengths) == self.length else kept
        self.told = _first(self.told, kept, self.length, self.counts is None)

    def copy(self, to: Sequence[int], of: Sequence[int]) -> None:
        """Let row to[i] continue what row of[i] has seen, of the same prompt and source: what beam search does between
        steps. The other rows stay as they are, and cost nothing."""
        if not to:
            return
        into, out_of = torch.tensor(to, device=self.device), torch.tensor(of, device=self.device)
        for layer in self.layers:
            layer.copy(into, out_of, self.length)
        self.told = [(ids.index_copy(0, into, ids[out_of]), valid) for ids, valid in self.told]

    def copy_last(self, of: Tensor) -> None:
        """Let row i continue what row of[i] [B] has seen, where they differ in the last token alone: what contrastive
        search does between steps."""
        last = self._counts() - 1
        for layer in self.layers:
            layer.copy_slot(of, last if layer.horizon is None else last % (layer.horizon + self.margin))
        self.told = [(ids[of], valid) for ids, valid in self.told]

    def reorder(self, rows: Tensor) -> None:
        """Let row i continue what row rows[i] [B'] has seen, where rows become more, fewer or others."""
        self.recordings.clear()
        for layer in self.layers:
            layer.reorder(rows)
        self.told = [(ids[rows], None if valid is None else valid[rows]) for ids, valid in self.told]
        self.batch_size = len(rows)
        self.counts = None if self.counts is None else self.counts[rows]
        self.fullest = None if self.fullest is None else self.fullest[rows]
        self.prefix = self.prefix if self.prefix is None or len(self.prefix) == 1 else self.prefix[rows]
        if self.source is not None and self.source.valid is not None:
            self.source = Tokens(
                self.source.length, device=self.device, start=0, valid=self.source.valid.index_select(0, rows)
            )

    def join(self, others: Sequence[Cache]) -> None:
        """Let row i of this cache, which has seen nothing, continue what the one row of others[i] has seen. Rotary
        angles that follow the length reached would no longer be those of each row: there is no such cache of several.
        """
        assert not self.stretches and len(others) == self.batch_size
        for index, layer in enumerate(self.layers):
            layer.join([other.layers[index] for other in others])
        self._slots, self._end = max(other._slots for other in others), max(other._end for other in others)
        lengths = [other.length for other in others]
        self.length = max(lengths)
        self.counts = None if min(lengths) == self.length else torch.tensor(lengths, device=self.device)
        prefixes = [other.prefix for other in others if other.prefix is not None]
        self.prefix = torch.cat(prefixes) if prefixes else None
        sources = [other.source.length for other in others if other.source is not None]
        if sources:
            ends = torch.tensor(sources, device=self.device)[:, None]
            valid = (
                None if min(sources) == max(sources) else torch.arange(max(sources), device=self.device)[None] < ends
            )
            self.source = Tokens(max(sources), device=self.device, start=0, valid=valid)

    def bytes(self) -> int:
        """What the stored tensors take, in bytes."""
        tensors = [tensor for layer in self.layers for tensor in (*layer.stored, *(layer.crossed or ()))]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _regimes(self, T: int) -> list[int]:
        length = sum(ids.shape[1] for ids, _ in self.told) + T
        return [stretch.regime(length) for stretch in self.stretches]

    def _counts(self) -> Tensor:
        if self.counts is not None:
            return self.counts
        return torch.full((self.batch_size,), self.length, device=self.device)

    def _keys(self, stop: int) -> Tokens:
        return Tokens(stop, device=self.device, start=0, prefix=self.prefix)

    def _held(self, last: Tensor, ring: int) -> Tensor:
        """[B or 1, ring]: the position that each slot holds when `last` [B or 1, 1] is the row's newest; negative where
        the slot was never written."""
        slot = torch.arange(ring, device=self.device)[None]
        return last - (last - slot) % ring


def _first(
    told: list[tuple[Tensor, Tensor | None]], kept: Tensor, longest: int, alike: bool
) -> list[tuple[Tensor, Tensor | None]]:
    """Of what each row was told, its first `kept` [B] tokens, padded on the right to the `longest`, which all have
    where they are `alike`."""
    if not told or not longest:
        return []
    ids = torch.cat([ids for ids, _ in told], 1)
    valid = torch.cat([torch.ones_like(ids, dtype=torch.bool) if valid is None else valid for ids, valid in told], 1)
    order = torch.argsort((~valid).long(), dim=1, stable=True)[:, :longest]
    real = torch.arange(longest, device=ids.device)[None] < kept[:, None]
    return [(ids.gather(1, order), None if alike else real)]
