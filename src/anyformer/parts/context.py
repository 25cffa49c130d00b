"""What all layers of one forward pass share, so that masks, tables and plans are made once and not once a layer."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor

from anyformer.parts import kernels
from anyformer.parts.cache import Cache, LayerCache, Plan
from anyformer.parts.kernels import Scores
from anyformer.parts.kernels.int8_rows import Int8Rows
from anyformer.parts.masks import Bias, Mask, Tokens, Visible, lower
from anyformer.parts.positions import RotaryAngles


class Context:
    """One pass of one stack.

    queries    the tokens that pass through
    source     the encoder's hidden states [B, S, D] and their tokens, for cross-attention
    cache      where keys and values are kept, or None
    bias       relative positions that the stack's self-attention shares, or None
    auxiliary  losses that layers hand up (experts' balance)
    """

    def __init__(
        self,
        queries: Tokens,
        *,
        source: Tensor | None = None,
        source_tokens: Tokens | None = None,
        cache: Cache | None = None,
        bias: Bias | None = None,
    ) -> None:
        self.queries, self.source, self.source_tokens, self.cache, self.bias = (
            queries,
            source,
            source_tokens,
            cache,
            bias,
        )
        self.auxiliary: list[Tensor] = []
        # Keys are the objects themselves: held by identity, they cost no hashing of their fields and cannot go away.
        self._made: dict[Any, Any] = {}

    def apart(self) -> Self:
        """The same pass, sharing all that is made for it, with a list of its own for what layers hand up: whoever runs
        a layer twice counts its losses once."""
        other = copy.copy(self)
        other.auxiliary = []
        return other

    def rotary(self, angles: RotaryAngles, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """The rotary tables of these angles at these tokens' positions, for a text as long as the cache makes it."""
        key = ("rotary", angles, tokens)
        if key not in self._made:
            length = None if self.cache is None else self.cache.length + self.queries.length
            self._made[key] = angles.tables(tokens, length)
        return self._made[key]

    def turning(self) -> list[tuple[RotaryAngles, tuple[Tensor, Tensor]]]:
        """The rotary tables that this pass's queries were turned by, and whose they are."""
        found = ((key, made) for key, made in self._made.items() if key[0] == "rotary" and key[2] is self.queries)
        return [(key[1], made) for key, made in found]

    def plan(self, layer: LayerCache) -> Plan:
        """How this pass's keys enter a layer of the cache."""
        assert self.cache is not None
        key = ("plan", layer.horizon)
        if key not in self._made:
            self._made[key] = self.cache.plan(layer.horizon, self.queries)
        return self._made[key]

    def keep(self, layer: LayerCache | None, *new: Tensor) -> tuple[tuple[Tensor | Int8Rows, ...], Tokens]:
        """Put what a layer makes of these tokens (each [B, heads, T, channels]) beside what it has kept of those of
        earlier calls: all of it, [B, heads, S, channels], and whose it is. Without a cache, the new alone.

        What a cache keeps in 8 bits comes as it lies: for `attend`, or for `numbers` of `kernels/int8_rows.py`."""
        if layer is None or self.cache is None:
            return new, self.queries
        plan = self.plan(layer)
        return layer.extend(plan, self.cache.slots(plan.stop), *new), plan.keys

    def visible(self, mask: Mask, keys: Tokens) -> Visible:
        """The mask, lowered for this pass's queries over these keys."""
        key = (id(mask), id(keys))
        if key not in self._made:
            self._made[key] = lower(mask, self.queries, keys)
        return self._made[key]

    def prepare(self, mask: Mask, keys: Tokens, scores: Scores, dtype: torch.dtype) -> None:
        """Make what `attend` will ask for, for queries of this dtype."""
        kernels.prepare(self.visible(mask, keys), scores, dtype)

    def attend(
        self, q: Tensor, k: Tensor | Int8Rows, v: Tensor | Int8Rows, mask: Mask, keys: Tokens, scores: Scores
    ) -> Tensor:
        """Attention [B, H, T, C] of this pass's queries [B, H, T, C] over keys and values [B, K, S, C]."""
        return kernels.attend(q, k, v, self.visible(mask, keys), scores)
