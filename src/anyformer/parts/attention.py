"""Attention in every form in use: one module."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from anyformer import spec
from anyformer.parts import masks
from anyformer.parts.cache import LayerCache
from anyformer.parts.context import Context
from anyformer.parts.kernels import Scores, few, native
from anyformer.parts.kernels.int8_rows import Int8Rows, numbers
from anyformer.parts.linear import Linear, SideBySide, added, lay_side_by_side, project
from anyformer.parts.masks import Bias, Tokens
from anyformer.parts.norms import Norm, norm_of
from anyformer.parts.positions import RelativePositions, alibi_bias, rotary_angles


@cache
def attention_mask(visibility: str, window: tuple[int | None, int | None] | None) -> masks.Mask:
    """The mask of a kind of attention; one object for all layers that share it."""
    base: dict[str, masks.Mask] = {
        "causal": masks.Causal(),
        "full": masks.Full(),
        "prefix": masks.Causal() | masks.Prefix(),
    }
    mask = base[visibility]
    if window is not None:
        mask = mask & masks.Window(*window)
    return mask & masks.SameDocument() & masks.Valid()


class Attention(SideBySide):
    """softmax(cap(scale · QKᵀ) + bias) V over what the mask allows (Vaswani et al. 2017, eq. 1 and section 3.2.2).

    x ─┬─ query ─ norm ─ rotary ─┐
       ├─ key ─── norm ─ rotary ─┤─ kernel ─ output
       └─ value ───── cache ─────┘
    """

    def __init__(self, attention: spec.Attention, dim: int, source_dim: int | None = None) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = attention.heads, attention.kv_heads, attention.head_dim
        self.cross = attention.source == "cross"
        source_dim = source_dim if source_dim is not None else dim
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.query = Linear(dim, queries, bias=attention.bias)
        self.key = Linear(source_dim, keys, bias=attention.bias)
        self.value = Linear(source_dim, keys, bias=attention.bias)
        self.output = Linear(queries, dim, bias=attention.output_bias)
        lay_side_by_side(self.side_by_side())

        self.norm_width = attention.query_key_norm_over == "width"
        widths = (queries, keys) if self.norm_width else (self.head_dim, self.head_dim)
        self.query_norm = norm_of(attention.query_key_norm, widths[0])
        self.key_norm = norm_of(attention.query_key_norm, widths[1])
        self.sinks = nn.Parameter(torch.zeros(self.heads)) if attention.sinks else None

        position = attention.position
        self.angles = rotary_angles(position, self.head_dim) if isinstance(position, spec.Rotary) else None
        self.alibi = alibi_bias(self.heads, position.max_bias) if isinstance(position, spec.Alibi) else None
        self.relative = RelativePositions(position, self.heads) if isinstance(position, spec.RelativeBuckets) else None

        self.mask = attention_mask(attention.visibility, attention.window)
        self.scale = attention.scale if attention.scale is not None else self.head_dim**-0.5
        self.soft_cap, self.dropout = attention.soft_cap, attention.dropout

    def side_by_side(self) -> list[nn.Module]:
        return [self.key, self.value] if self.cross else [self.query, self.key, self.value]

    def horizon(self) -> int | None:
        """How many keys back a query can ever look, itself included; None: without bound."""
        return self.mask.horizon()

    def forward(
        self,
        x_BTD: Tensor,
        context: Context,
        cache: LayerCache | None = None,
        norm: Norm | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """f(x); with a norm f(norm(x)); with a residual, that plus it."""
        if self.cross:
            q, k, v, keys = self.cross_heads(x_BTD if norm is None else norm(x_BTD), context, cache)
        else:
            q, k, v, keys = self.self_heads(x_BTD, context, cache, norm)
        out = self.attended(context, keys, q, k, v)
        return added(self.output, out.transpose(1, 2).flatten(2), residual)

    def attended(self, context: Context, keys: Tokens, q: Tensor, k: Tensor | Int8Rows, v: Tensor | Int8Rows) -> Tensor:
        """What each head reads, [B, H, T, C]."""
        return context.attend(q, k, v, self.mask, keys, self.scores(context))

    def each_head(self, q: Tensor, k: Tensor | Int8Rows, v: Tensor | Int8Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Of what `attended` is given: queries [B, H, T, C], keys and values [B, K, S, C], as numbers."""
        return q, numbers(k, q.dtype), numbers(v, q.dtype)

    def prepare(self, context: Context, dtype: torch.dtype) -> None:
        """Have the context make, before any layer runs, what the layers of a pass without a cache share. `dtype` is
        that of the queries."""
        keys = context.source_tokens if self.cross else context.queries
        assert keys is not None
        if self.angles is not None:
            context.rotary(self.angles, context.queries)
        context.prepare(self.mask, keys, self.scores(context), dtype)

    def prepare_step(self, context: Context, cache: LayerCache) -> None:
        """The same for a step of few tokens on a cache."""
        keys = context.source_tokens if self.cross else context.plan(cache).keys
        assert keys is not None
        if self.angles is not None:
            context.rotary(self.angles, context.queries)
        few.added(context.visible(self.mask, keys), self.scores(context).bias)

    def scores(self, context: Context) -> Scores:
        """What happens to scores besides masking."""
        bias: Bias | None = self.alibi if self.alibi is not None else self.relative
        if bias is None and not self.cross:
            bias = context.bias
        return Scores(self.scale, self.soft_cap, bias, self.sinks, self.dropout if self.training else 0.0)

    def split(self, x: Tensor, norm: Norm | None) -> Tensor:
        """[B, T, heads·C] -> [B, T, heads, C], normalised over the whole width or over each head."""
        if norm is not None and self.norm_width:
            x = norm(x)
        x = x.unflatten(-1, (-1, self.head_dim))
        return x if norm is None or self.norm_width else norm(x)

    def self_heads(
        self, x_BTD: Tensor, context: Context, cache: LayerCache | None, norm: Norm | None = None
    ) -> tuple[Tensor, Tensor | Int8Rows, Tensor | Int8Rows, Tokens]:
        """Queries [B, H, T, C], keys and values [B, K, S, C] (earlier calls' included), and the keys' tokens."""
        if (whole := self.product(x_BTD, norm)) is not None:
            q, k, v = self.few_heads(whole, context)
            (k, v), keys = context.keep(cache, k, v)
            return q, k, v, keys
        x_BTD = x_BTD if norm is None else norm(x_BTD)
        q, k, v = project(x_BTD, (self.query, self.key, self.value), to_attend=True)
        q, k, v = self.split(q, self.query_norm), self.split(k, self.key_norm), self.split(v, None)
        if self.angles is not None:
            tables = context.rotary(self.angles, context.queries)
            q, k = self.angles.rotate(q, tables), self.angles.rotate(k, tables)
        (k, v), keys = context.keep(cache, k.transpose(1, 2), v.transpose(1, 2))
        return q.transpose(1, 2), k, v, keys

    def few_heads(self, whole: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, C], keys and values [B, K, T, C] of one product [B, T, (H + 2 K) C], turned in place."""
        H, K, C = self.heads, self.kv_heads, self.head_dim
        if self.query_norm is None and self.key_norm is None:
            heads = whole.view(*whole.shape[:2], H + 2 * K, C)
            turned = [heads.narrow(2, 0, H + K)]
            q, k, v = heads.narrow(2, 0, H), heads.narrow(2, H, K), heads.narrow(2, H + K, K)
        else:
            q = self.split(whole.narrow(2, 0, H * C), self.query_norm)
            k = self.split(whole.narrow(2, H * C, K * C), self.key_norm)
            v = self.split(whole.narrow(2, (H + K) * C, K * C), None)
            turned = [q, k]
        if self.angles is not None:
            tables = context.rotary(self.angles, context.queries)
            for heads in turned:
                native.rotary(heads, *tables, self.angles.interleaved)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def cross_heads(
        self, x_BTD: Tensor, context: Context, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor, Tensor, Tokens]:
        """Queries from the stream, keys and values from the source: computed once where there is a cache."""
        q = self.split(self.query(x_BTD), self.query_norm)
        assert context.source_tokens is not None
        if cache is not None and cache.crossed is not None:
            return q.transpose(1, 2), *cache.crossed, context.source_tokens
        assert context.source is not None
        k, v = project(context.source, (self.key, self.value), to_attend=True)
        k, v = self.split(k, self.key_norm).transpose(1, 2), self.split(v, None).transpose(1, 2)
        if cache is not None:
            cache.crossed = (k, v)
        return q.transpose(1, 2), k, v, context.source_tokens
