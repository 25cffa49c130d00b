"""The attention module: every form against matrices written out, and gradients of every parameter."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from gradients import draw, gradcheck
from torch import Tensor

from anyformer import spec
from anyformer.parts import kernels
from anyformer.parts.attention import Attention, attention_mask
from anyformer.parts.context import Context
from anyformer.parts.kernels import Scores, reference
from anyformer.parts.masks import Tokens

RMS = spec.Norm(kind="rms", eps=1e-6)
DIM = 6

#: What one attention may have that another has not.
DETAILS: dict[str, dict[str, Any]] = {
    "multi-head": {"heads": 3, "kv_heads": 3},
    "multi-query": {"heads": 3, "kv_heads": 1, "bias": True},
    "grouped": {"heads": 4, "kv_heads": 2, "bias": True, "output_bias": True},
    "rotary": {"position": spec.Rotary(base=50.0)},
    "partial interleaved rotary": {"position": spec.Rotary(base=50.0, dim=2, interleaved=True)},
    "alibi": {"position": spec.Alibi()},
    "buckets": {"position": spec.RelativeBuckets(buckets=8, max_distance=9, bidirectional=False)},
    "normalised heads": {"query_key_norm": RMS, "position": spec.Rotary(base=50.0)},
    "normalised width": {"query_key_norm": RMS, "query_key_norm_over": "width"},
    "soft cap": {"soft_cap": 0.8, "scale": 0.9},
    "sinks": {"sinks": True},
    "window": {"window": (2, None)},
    "full": {"visibility": "full", "window": (3, 2)},
}


def attention(**details: Any) -> spec.Attention:
    """Two heads of four over one key head, unless said otherwise."""
    return spec.Attention(**({"heads": 2, "kv_heads": 1, "head_dim": 4, "visibility": "causal"} | details))


def written_out(part: Attention, form: spec.Attention, x: Tensor, source: Tensor | None = None) -> Tensor:
    """One head at a time, from the equations."""
    C, group = form.head_dim, form.heads // form.kv_heads
    read = x if source is None else source
    T, S = x.shape[1], read.shape[1]
    q, k, v = part.query(x), part.key(read), part.value(read)

    def normalised(heads: Tensor, norm: Any) -> Tensor:
        return heads if norm is None else norm.weight * heads / (heads.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    if form.query_key_norm_over == "width":
        q, k = normalised(q, part.query_norm), normalised(k, part.key_norm)
    out = []
    for h in range(form.heads):
        at, key_at = slice(h * C, (h + 1) * C), slice(h // group * C, (h // group + 1) * C)
        qh, kh, vh = q[..., at], k[..., key_at], v[..., key_at]
        if form.query_key_norm_over == "head":
            qh, kh = normalised(qh, part.query_norm), normalised(kh, part.key_norm)
        if part.angles is not None:
            tables = part.angles.tables(Tokens(T, start=0))
            qh, kh = (part.angles.rotate(z[:, :, None], tables)[:, :, 0] for z in (qh, kh))
        logits = qh @ kh.transpose(1, 2) * (form.scale or 1 / math.sqrt(C))
        if form.soft_cap is not None:
            logits = form.soft_cap * torch.tanh(logits / form.soft_cap)
        bias = part.alibi or part.relative
        if bias is not None:
            logits = logits + bias.dense(Tokens(T, start=0), Tokens(S, start=0))[0, h]
        back = torch.arange(T)[:, None] - torch.arange(S)
        seen = torch.ones(T, S, dtype=torch.bool) if form.visibility == "full" else back >= 0
        if form.window is not None:
            left, right = form.window
            seen &= (back < (left or T)) & (-back < (right or T))
        shares = torch.exp(logits) * seen
        total = shares.sum(-1, keepdim=True)
        if part.sinks is not None:
            total = total + torch.exp(part.sinks[h])
        out.append(shares / total @ vh)
    return part.output(torch.cat(out, -1))


@pytest.mark.parametrize("name", DETAILS)
def test_self_attention_is_its_equations_with_right_gradients(name: str) -> None:
    """Against matrices written out head by head; gradcheck of the input and of every parameter; the same from the
    fused projections that serve without gradients."""
    torch.manual_seed(0)
    form = attention(**DETAILS[name])
    part = draw(Attention(form, DIM), 0.5)
    x = torch.randn(2, 5, DIM, dtype=torch.float64, requires_grad=True)
    wanted = written_out(part, form, x)
    assert torch.allclose(part(x, Context(Tokens(5, start=0))), wanted, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(part(x, Context(Tokens(5, start=0))), wanted, atol=1e-6)
    # A bias that all keys share cancels in the softmax: there is no gradient to check.
    part.key.bias = None
    with kernels.use("reference"):
        gradcheck(part, lambda x: part(x, Context(Tokens(5, start=0))), x)


@pytest.mark.parametrize("over", ["head", "width"])
@pytest.mark.parametrize("norm", [None, RMS])
def test_cross_attention_is_its_equations_with_right_gradients(norm: spec.Norm | None, over: Any) -> None:
    """Keys and values of another width and length, normalised as self-attention's are."""
    torch.manual_seed(0)
    form = attention(source="cross", visibility="full", query_key_norm=norm, query_key_norm_over=over)
    part = draw(Attention(form, DIM, 5), 0.5)
    assert part.key.in_features == part.value.in_features == 5
    x = torch.randn(2, 3, DIM, dtype=torch.float64, requires_grad=True)
    source = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, source: Tensor) -> Tensor:
        return part(x, Context(Tokens(3, start=0), source=source, source_tokens=Tokens(4, start=0)))

    assert torch.allclose(call(x, source), written_out(part, form, x, source))
    with torch.no_grad():
        assert torch.allclose(call(x, source), written_out(part, form, x, source))
    gradcheck(part, call, x, source)


def test_padding_of_the_source_is_not_read() -> None:
    """Whatever stands in it; a row whose source is all padding reads zeros."""
    torch.manual_seed(0)
    part = draw(Attention(attention(source="cross", visibility="full"), DIM))
    x, source = torch.randn(2, 3, DIM).double(), torch.randn(2, 4, DIM).double()
    valid = torch.tensor([[True, False, True, False], [False] * 4])

    def call(source: Tensor, tokens: Tokens) -> Tensor:
        return part(x, Context(Tokens(3, start=0), source=source, source_tokens=tokens))

    tokens = Tokens(4, position=torch.arange(4)[None], valid=valid)
    found = call(source, tokens)
    assert torch.allclose(found, call(source.masked_fill(~valid[..., None], 99.0), tokens))
    alone = part(x[:1], Context(Tokens(3, start=0), source=source[:1, ::2], source_tokens=Tokens(2, start=0)))
    assert torch.allclose(found[:1], alone)
    assert torch.equal(found[1], torch.zeros_like(found[1]))


def test_dropout_of_weights_acts_in_training_only() -> None:
    """The scores that go to the kernel carry it, and only while the module trains."""
    part = Attention(attention(dropout=0.5), DIM)
    context = Context(Tokens(3, start=0))
    assert part.scores(context).dropout == 0.5
    assert part.eval().scores(context).dropout == 0.0


def test_layers_of_one_kind_share_one_mask_per_forward() -> None:
    """Lowered once, however many layers ask."""
    assert attention_mask("causal", (4, None)) is attention_mask("causal", (4, None))
    context = Context(Tokens(9, start=0))
    mask = attention_mask("causal", None)
    assert context.visible(mask, context.queries) is context.visible(mask, context.queries)
    assert context.visible(mask, context.queries) is not context.visible(attention_mask("full", None), context.queries)


def test_horizons_are_those_of_the_window() -> None:
    """What decides the kind of cache."""
    assert Attention(attention(window=(5, None)), DIM).horizon() == 5
    assert Attention(attention(window=(5, 1)), DIM).horizon() == 5
    assert Attention(attention(window=(None, 1)), DIM).horizon() is None
    assert Attention(attention(visibility="prefix", window=(7, None)), DIM).horizon() == 7


def test_a_shared_table_is_read_by_self_attention_only() -> None:
    """A stack's own bias reaches its self-attention, not its cross-attention, and not a layer with one of its own."""
    from anyformer.parts.positions import RelativePositions

    buckets = spec.RelativeBuckets(buckets=8, max_distance=9, bidirectional=False)
    table = RelativePositions(buckets, 2)
    context = Context(Tokens(3, start=0), bias=table)
    assert Attention(attention(), DIM).scores(context).bias is table
    assert Attention(attention(source="cross", visibility="full"), DIM).scores(context).bias is None
    own = Attention(attention(position=buckets), DIM)
    assert own.scores(context).bias is own.relative


def test_weights_of_the_reference_explain_the_output() -> None:
    """Recomputed beside the fast kernel from the same queries and keys, weights times values is what came out."""
    random.seed(0)
    torch.manual_seed(0)
    part = draw(Attention(attention(heads=4, kv_heads=2), DIM))
    x, context = torch.randn(1, 6, DIM).double(), Context(Tokens(6, start=0))
    q, k, v, keys = part.self_heads(x, context, None)
    visible = context.visible(part.mask, keys)
    weights = reference.weights(q, k, visible, part.scores(context))
    out = kernels.attend(q, k, v, visible, Scores(part.scale))
    assert torch.allclose(weights @ v.repeat_interleave(2, 1), out)
