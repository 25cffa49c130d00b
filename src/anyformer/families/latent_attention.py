"""Latent attention: keys and values made of one short row a token (DeepSeek-AI 2024, https://arxiv.org/abs/2405.04434,
section 2.1)."""

from __future__ import annotations

from functools import cache
from math import log
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from anyformer.spec import Mixer, Norm, Rotary, YarnScaling, register_mixer
from anyformer.spec.base import Flag, NonNegativeFloat, PositiveInt, Probability
from anyformer.spec.mixers import linear_shapes, norm_shapes, visible_pairs

#: That of the compressed rows, whatever the other norms are.
LATENT_NORM = Norm(kind="rms", eps=1e-6)


@register_mixer
class LatentAttention(Mixer, frozen=True):
    """Causal attention whose keys and values are made of one short row a token (DeepSeek-V2, section 2.1,
    https://arxiv.org/abs/2405.04434).

    - The row is `latent` channels, normalised, of which every head makes `key_dim` channels of its key and the
      `value_dim` of its value; and `rotary_dim` channels that turn, which the keys of all heads share. A cache keeps
      the row.
    - `query_latent`: queries too are made of so many normalised channels (None: of the stream itself).
    - `mscale` m, with YaRN by a factor f: scores are multiplied by (0.1·m·ln f + 1)² besides.
    - `bias` is that of every matrix that reads or writes the stream, but for queries made of the stream itself.
    """

    kind: Literal["latent_attention"] = "latent_attention"
    heads: PositiveInt
    latent: PositiveInt
    query_latent: PositiveInt | None = None
    key_dim: PositiveInt
    rotary_dim: PositiveInt
    value_dim: PositiveInt
    position: Rotary
    mscale: NonNegativeFloat = 0.0
    bias: Flag = False
    dropout: Probability = 0.0

    role: ClassVar[str] = "attention"

    @model_validator(mode="after")
    def _fits(self) -> LatentAttention:
        if self.position.turned(self.rotary_dim) < self.rotary_dim:
            raise ValueError(f"all of rotary_dim={self.rotary_dim} channels turn, not {self.position.dim} of them")
        if self.mscale and not isinstance(self.position.scaling, YarnScaling):
            raise ValueError("mscale belongs to YaRN's scaling; leave it out")
        return self

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        factor = self.position.scaling.factor if isinstance(self.position.scaling, YarnScaling) else 1.0
        return (0.1 * self.mscale * log(max(factor, 1.0)) + 1) ** 2 / (self.key_dim + self.rotary_dim) ** 0.5

    def shapes(self, dim: int, source_dim: int | None = None) -> dict[str, tuple[int, ...]]:
        heads, read, shapes = self.heads, dim, {}
        if self.query_latent is not None:
            read = self.query_latent
            shapes = linear_shapes("query_latent", read, dim, self.bias) | norm_shapes("query_norm", LATENT_NORM, read)
        shapes |= linear_shapes("query", heads * (self.key_dim + self.rotary_dim), read, bias=False)
        shapes |= linear_shapes("latent", self.latent, dim, self.bias)
        shapes |= linear_shapes("rotary_key", self.rotary_dim, dim, self.bias)
        shapes |= norm_shapes("latent_norm", LATENT_NORM, self.latent)
        shapes |= linear_shapes("key", heads * self.key_dim, self.latent, bias=False)
        shapes |= linear_shapes("value", heads * self.value_dim, self.latent, bias=False)
        return shapes | linear_shapes("output", dim, heads * self.value_dim, self.bias)

    def absorbs(self, tokens: int, keys: int) -> bool:
        """Whether so many queries are brought to so many rows (see `absorption_pays`)."""
        return absorption_pays(tokens, keys, self.latent, self.rotary_dim, self.key_dim + self.value_dim)

    def rows(self, parameter: str, tokens: int, cached: int = 0, source: int = 0) -> int:
        expands = parameter in ("key.weight", "value.weight") and not self.absorbs(tokens, cached + tokens)
        return cached + tokens if expands else tokens

    def score_flops(self, tokens: int, cached: int = 0, source: int = 0, dense: bool = False) -> int:
        row, head = self.latent + self.rotary_dim, self.key_dim + self.rotary_dim
        widths = 2 * row if self.absorbs(tokens, cached + tokens) else head + self.value_dim
        return 2 * self.heads * widths * (tokens * (cached + tokens) if dense else visible_pairs(tokens, cached))

    def kept(self, tokens: int, source: int = 0) -> int:
        return sum(self.kept_rows()) * tokens

    def kept_rows(self) -> tuple[int, ...]:
        return (self.latent + self.rotary_dim,)

    def module(self) -> Any:
        return _latent_attention()


def absorption_pays(tokens: int, keys: int, latent: int, rotary: int, head: int) -> bool:
    """Whether it is less work to bring `tokens` queries to the rows of `keys` than to make keys and values, `head`
    channels for both, of those rows: scores are then of whole rows, which are longer than a head."""
    return (keys - tokens) * latent * head > tokens * keys * (2 * latent + rotary - head)


@cache
def _latent_attention() -> type:
    import torch
    from torch import nn

    from anyformer.parts.attention import attention_mask
    from anyformer.parts.cache import LayerCache
    from anyformer.parts.context import Context
    from anyformer.parts.kernels import Scores, few, native
    from anyformer.parts.kernels.int8_rows import Int8Rows, numbers
    from anyformer.parts.linear import Linear, SideBySide, lay_side_by_side, matrix_of, project
    from anyformer.parts.masks import Tokens
    from anyformer.parts.norms import Norm
    from anyformer.parts.positions import rotary_angles

    class Module(SideBySide):
        """Attention over compressed rows: as many heads as queries, each with a key and a value made of its row,

            query · (key_matrix · latent) = (key_matrixᵀ · query) · latent

        or, where that is less work, one head for all whose keys and values are the rows themselves: what makes keys of
        a row is absorbed by the query, what makes values by the output.

        x ─┬─ (query_latent ─ norm ─) query ──── rotary ─┐
           ├─ latent ─ norm ─┐                           ├─ kernel ─ output
           └─ rotary_key ────┴─ row [L + R] ─── cache ───┘
        """

        #: Absorbed, they are no linears, and cannot stay in blocks.
        read_whole = ("key", "value")

        def __init__(self, attention: LatentAttention, dim: int) -> None:
            super().__init__()
            self.heads, self.latent_dim, self.rotary_dim = attention.heads, attention.latent, attention.rotary_dim
            self.key_dim, self.value_dim, reads = attention.key_dim, attention.value_dim, dim
            self.query_latent = self.query_norm = None
            if attention.query_latent is not None:
                reads = attention.query_latent
                self.query_latent = Linear(dim, reads, bias=attention.bias)
                self.query_norm = Norm(LATENT_NORM, reads)
            self.query = Linear(reads, self.heads * (self.key_dim + self.rotary_dim), bias=False)
            self.latent = Linear(dim, self.latent_dim, bias=attention.bias)
            self.rotary_key = Linear(dim, self.rotary_dim, bias=attention.bias)
            self.latent_norm = Norm(LATENT_NORM, self.latent_dim)
            self.key = Linear(self.latent_dim, self.heads * self.key_dim, bias=False)
            self.value = Linear(self.latent_dim, self.heads * self.value_dim, bias=False)
            self.output = Linear(self.heads * self.value_dim, dim, bias=attention.bias)
            self.widths = [
                made.out_features for made in (self.query_latent or self.query, self.latent, self.rotary_key)
            ]
            lay_side_by_side(self.side_by_side())
            self.angles = rotary_angles(attention.position, self.rotary_dim)
            self.mask = attention_mask("causal", None)
            self.scale, self.dropout = attention.scale, attention.dropout

        def side_by_side(self) -> list[nn.Module]:
            return [self.query_latent or self.query, self.latent, self.rotary_key]

        def horizon(self) -> int | None:
            return self.mask.horizon()

        def forward(self, x_BTD: torch.Tensor, context: Context, cache: LayerCache | None = None) -> torch.Tensor:
            whole = self.product(x_BTD)
            q, latent, key = project(x_BTD, self.side_by_side()) if whole is None else whole.split(self.widths, -1)
            if self.query_norm is not None:
                q = self.query(self.query_norm(q))
            q, key = q.unflatten(-1, (self.heads, -1)), key[:, :, None]
            plain, turned = q.split((self.key_dim, self.rotary_dim), -1)
            tables = context.rotary(self.angles, context.queries)
            latent = self.latent_norm(latent)[:, :, None]
            if native.few(x_BTD) and {part.dtype for part in (q, latent, key)} == {x_BTD.dtype}:
                # Turned where they are laid together: what a product gave may be somebody else's as well.
                q, row = native.joined(plain, turned), native.joined(latent, key)
                for each in (q[..., self.key_dim :], row[..., self.latent_dim :]):
                    native.rotary(each, *tables, self.angles.interleaved)
            else:
                q = torch.cat((plain, self.angles.rotate(turned, tables)), -1)
                row = torch.cat((latent, self.angles.rotate(key, tables)), -1)
            (kept,), keys = context.keep(cache, row.transpose(1, 2))
            out = self.attended(context, keys, q.transpose(1, 2), kept)
            return self.output(out.transpose(1, 2).flatten(2))

        def prepare_step(self, context: Context, cache: LayerCache) -> None:
            """Have the context make, before any layer runs, what the layers of a step of few tokens share."""
            context.rotary(self.angles, context.queries)
            few.added(context.visible(self.mask, context.plan(cache).keys), None)

        def attended(
            self, context: Context, keys: Tokens, q: torch.Tensor, rows: torch.Tensor | Int8Rows
        ) -> torch.Tensor:
            """What each head reads [B, H, T, C'], of queries [B, H, T, C + R] over rows [B, 1, S, L + R]."""
            if self.brings_few(q):
                return self.few_attended(context, keys, q.transpose(1, 2), rows).transpose(1, 2)
            scores, rows = self.scores(context), numbers(rows, q.dtype)
            if not self.absorbs(q.shape[2], rows.shape[2]):
                return context.attend(*self.each_head(q, rows), self.mask, keys, scores)
            plain, turned = q.split((self.key_dim, self.rotary_dim), -1)
            make_key, make_value = self.matrices()
            q = torch.cat((torch.einsum("bhtc,hcl->bhtl", plain, make_key), turned), -1)
            out = context.attend(q, rows, rows, self.mask, keys, scores)[..., : self.latent_dim]
            return torch.einsum("bhtl,hcl->bhtc", out, make_value)

        def brings_few(self, q: torch.Tensor) -> bool:
            """Whether native kernels bring few queries to the rows: always then, for a step that was recorded is made
            again over more rows or fewer."""
            if not few.pays(q) or not native.few(q[:, 0]):
                return False
            return all(matrix_of(made, q.dtype) is not None for made in (self.key, self.value))

        def few_attended(
            self, context: Context, keys: Tokens, q: torch.Tensor, rows: torch.Tensor | Int8Rows
        ) -> torch.Tensor:
            """What `attended` gives, [B, T, H, C'], of queries [B, T, H, C + R]."""
            plain, turned = q.split((self.key_dim, self.rotary_dim), -1)
            make_key, make_value = self.matrices()
            q = native.joined(native.heads(plain, make_key, transposed=True), turned)
            out = context.attend(q.transpose(1, 2), rows, rows, self.mask, keys, self.scores(context))
            return native.heads(out.transpose(1, 2)[..., : self.latent_dim], make_value)

        def matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
            """What makes each head's key [H, C, L] and value [H, C', L] of a row."""
            return self.key.weight.unflatten(0, (self.heads, -1)), self.value.weight.unflatten(0, (self.heads, -1))

        def each_head(
            self, q: torch.Tensor, rows: torch.Tensor | Int8Rows
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            """The queries, with the keys [B, H, S, C + R] and values [B, H, S, C'] that the rows stand for."""
            rows = numbers(rows, q.dtype)
            k, v = (
                make(rows[:, 0, :, : self.latent_dim]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for make in (self.key, self.value)
            )
            return q, torch.cat((k, rows[..., self.latent_dim :].expand(-1, self.heads, -1, -1)), -1), v

        def scores(self, context: Context) -> Scores:
            return Scores(self.scale, dropout=self.dropout if self.training else 0.0)

        def absorbs(self, tokens: int, keys: int) -> bool:
            # A matrix that was replaced or hooked (an adapter, a trace) wants to be asked itself.
            asked = any(type(made) is not Linear or made._forward_hooks for made in (self.key, self.value))
            head = self.key_dim + self.value_dim
            return not asked and absorption_pays(tokens, keys, self.latent_dim, self.rotary_dim, head)

    return Module
