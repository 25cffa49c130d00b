"""The native kernels against torch's own operations: any shape, both types, every instruction set of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyformer import spec
from anyformer.parts.feedforward import ACTIVATIONS
from anyformer.parts.kernels import native
from anyformer.parts.norms import Norm

DTYPES = [torch.float32, torch.bfloat16]
assert native.library() is not None, "the kernels are compiled when the package is installed"


@pytest.fixture(autouse=True)
def _without_gradients(instructions: str) -> Iterator[None]:
    with torch.no_grad():
        yield


def near(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Within what one rounding of the result and float32's order of sums come to."""
    bound = 2e-5 if dtype == torch.float32 else 1e-2
    assert found.shape == wanted.shape and found.dtype == dtype
    assert (found.double() - wanted).abs().max() <= bound * wanted.abs().max().clamp(min=1e-3)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 17),
    width=st.integers(1, 90),
    out=st.integers(1, 75),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
    kind=st.sampled_from([None, "rms", "layer", "offset"]),
    residual=st.booleans(),
    activation=st.sampled_from(["", *ACTIVATIONS]),
    gated=st.booleans(),
    seed=st.integers(0, 9),
)
def test_linear_is_what_it_says(
    rows: int,
    width: int,
    out: int,
    dtype: torch.dtype,
    bias: bool,
    kind: str | None,
    residual: bool,
    activation: str,
    gated: bool,
    seed: int,
) -> None:
    """residual + act(norm(x) Wᵀ + b), gated too, beside the same in float64."""
    torch.manual_seed(seed)
    out = 2 * out if gated else out
    x, W = torch.randn(rows, width).to(dtype), torch.randn(out, width).to(dtype)
    b = torch.randn(out).to(dtype) if bias else None
    norm = None
    if kind is not None:
        layer = kind == "layer"
        described = spec.Norm(kind="layer" if layer else "rms", bias=layer, unit_offset=kind == "offset")
        norm = Norm(described, width).to(dtype)
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(width))
    stream = torch.randn(rows, out // 2 if gated else out).to(dtype) if residual else None
    read = x.double()
    if norm is not None:
        read = norm.double().plain(read)
        norm.to(dtype)
    y = F.linear(read, W.double(), None if b is None else b.double())
    act = ACTIVATIONS[activation] if activation else (lambda z: z)
    wanted = act(y[:, : out // 2]) * y[:, out // 2 :] if gated else act(y)
    wanted = wanted if stream is None else stream.double() + wanted
    near(native.linear(x, W, native.TYPES[dtype], b, norm, stream, activation, gated), wanted, dtype)


@given(rows=st.integers(2, 16), width=st.sampled_from([33, 64, 100]), dtype=st.sampled_from(DTYPES))
@settings(max_examples=15)
def test_a_row_does_not_depend_on_the_others(rows: int, width: int, dtype: torch.dtype) -> None:
    """To the bit: each row's sums run in the same order whatever stands beside it."""
    x, W = torch.randn(rows, width).to(dtype), torch.randn(50, width).to(dtype)
    together = native.linear(x, W, native.TYPES[dtype])
    for row in range(rows):
        assert torch.equal(native.linear(x[row : row + 1], W, native.TYPES[dtype])[0], together[row])


@settings(max_examples=40)
@given(
    B=st.integers(1, 3),
    K=st.integers(1, 3),
    G=st.integers(1, 5),
    T=st.integers(1, 4),
    S=st.integers(1, 300),
    C=st.sampled_from([3, 8, 16, 24, 64, 80, 130]),
    V=st.sampled_from([8, 16, 64]),
    dtype=st.sampled_from(DTYPES),
    hidden=st.booleans(),
    cap=st.sampled_from([None, 5.0]),
    sinks=st.booleans(),
    seed=st.integers(0, 9),
)
def test_attention_is_what_it_says(
    B: int,
    K: int,
    G: int,
    T: int,
    S: int,
    C: int,
    V: int,
    dtype: torch.dtype,
    hidden: bool,
    cap: float | None,
    sinks: bool,
    seed: int,
) -> None:
    """Over views of larger storage, hidden keys, queries that see nothing, soft caps and sinks, beside float64."""
    torch.manual_seed(seed)
    H = K * G
    q = torch.randn(B, T, H, C).to(dtype).transpose(1, 2)
    k, v = torch.randn(B, K, S + 3, C).to(dtype)[:, :, :S], torch.randn(B, K, S + 3, V).to(dtype)[:, :, :S]
    added = None
    if hidden:
        added = torch.randn(B, 1, T, S).masked_fill(torch.rand(B, 1, T, S) < 0.5, -torch.inf)
        added[0, :, 0] = -torch.inf
    logits = torch.randn(H).to(dtype) if sinks else None
    scores = 0.3 * q.double() @ k.double().repeat_interleave(G, 1).transpose(-1, -2)
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    scores = scores if added is None else scores + added.double()
    if logits is not None:
        scores = torch.cat((scores, logits.double()[None, :, None, None].expand(B, H, T, 1)), -1)
    weights = scores.softmax(-1).nan_to_num(0)[..., :S]
    wanted = weights @ v.double().repeat_interleave(G, 1)
    near(native.attention(q, k, v, added, logits, 0.3, cap), wanted, dtype)


@given(dim=st.sampled_from([2, 6, 16]), C=st.sampled_from([16, 20]), dtype=st.sampled_from(DTYPES))
@settings(max_examples=15)
def test_rotary_turns_the_first_channels_in_place(dim: int, C: int, dtype: torch.dtype) -> None:
    """As `RotaryAngles.rotate`, in both layouts, tables for all rows or for each; the rest stays as it is."""
    from anyformer.parts.masks import Tokens
    from anyformer.parts.positions import rotary_angles

    for interleaved in (False, True):
        angles = rotary_angles(spec.Rotary(dim=dim, interleaved=interleaved), C)
        for position in (torch.tensor([[5, 6, 7]]), torch.tensor([[5, 6, 7], [0, 1, 2]])):
            x = torch.randn(2, 3, 5, C).to(dtype)
            tables = angles.tables(Tokens(3, position=position))
            wanted = angles.rotate(x[:, :, :4], tables).double()
            given = x.clone()
            native.rotary(given[:, :, :4], *tables, interleaved)
            near(given[:, :, :4].contiguous(), wanted, dtype)
            assert torch.equal(given[:, :, 4], x[:, :, 4])


@given(shape=st.sampled_from([(2, 3, 40), (1, 7), (4, 2, 3, 16)]), dtype=st.sampled_from(DTYPES), rms=st.booleans())
@settings(max_examples=20)
def test_normed_is_the_norm_and_the_stream(shape: tuple[int, ...], dtype: torch.dtype, rms: bool) -> None:
    """Of rows that lie apart as well: the heads of a product."""
    wide = torch.randn(*shape[:-2], shape[-2] + 2, shape[-1]).to(dtype)
    x, stream = wide[..., : shape[-2], :], torch.randn(shape).to(dtype)
    norm = Norm(spec.Norm(kind="rms" if rms else "layer", bias=not rms), shape[-1]).to(dtype)
    for parameter in norm.parameters():
        parameter.copy_(torch.randn(shape[-1]))
    found = native.normed(x, norm, stream), native.normed(x, norm)
    plain = norm.double().plain(x.double())
    near(found[0], stream.double() + plain, dtype)
    near(found[1], plain, dtype)


@pytest.mark.parametrize("shape", [(2, 1), (1, 3), (2, 3), (1, 1)])
def test_heads_of_one_product_are_normed_where_they_lie(shape: tuple[int, int]) -> None:
    """Of one token of several rows, torch calls a stride what is none."""
    heads = torch.randn(*shape, 100)[:, :, 10:58].unflatten(-1, (-1, 12))
    norm = Norm(spec.Norm(kind="rms"), 12)
    near(native.normed(heads, norm), norm.double().plain(heads.double()), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_keep_puts_tokens_into_their_slots(dtype: torch.dtype) -> None:
    """A run of slots, or each row's own; -1 is put nowhere, and nothing else is touched."""
    x, store = torch.randn(2, 3, 4, 8).to(dtype), torch.zeros(2, 3, 11, 8, dtype=dtype)
    native.keep(x, store, None, 5)
    assert torch.equal(store[:, :, 5:9], x) and not store[:, :, :5].any() and not store[:, :, 9:].any()
    store.zero_()
    slots = torch.tensor([[7, -1, 0, 1], [2, 3, -1, 10]])
    native.keep(x.transpose(1, 2).contiguous().transpose(1, 2), store, slots, 0)
    for b in range(2):
        for t in range(4):
            if slots[b, t] >= 0:
                assert torch.equal(store[b, :, slots[b, t]], x[b, :, t])
    assert store.any(-1).sum() == 3 * 6


@given(
    rows=st.integers(1, 5),
    experts=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    normalize=st.booleans(),
    data=st.data(),
)
@settings(max_examples=30)
def test_the_chosen_are_the_best_of_a_softmax(
    rows: int, experts: int, dtype: torch.dtype, normalize: bool, data: st.DataObject
) -> None:
    """Shares, weights and choices beside float64's; of logits that are alike, the first are chosen."""
    top_k = data.draw(st.integers(1, experts))
    logits = (torch.randn(rows, experts) * 4).round().to(dtype)
    shares, weight, chosen = native.choose(logits, top_k, normalize)
    near(shares, logits.double().softmax(-1), torch.float32)
    for row in range(rows):
        best = sorted(range(experts), key=lambda e: -logits[row, e].item())[:top_k]
        assert chosen[row].tolist() == best
        wanted = shares[row, best].double()
        near(weight[row], wanted / wanted.sum() if normalize else wanted, torch.float32)


@pytest.mark.parametrize("strange", [torch.nan, torch.inf, -torch.inf])
def test_experts_are_chosen_of_logits_that_are_no_numbers(strange: float) -> None:
    """Whatever the logits, `top_k` different experts, whose matrices may be read; their weights are no numbers."""
    for logits in (torch.full((1, 20), strange), torch.randn(1, 20).index_fill(1, torch.tensor([7]), strange)):
        grouped = native.choose(logits, 5, True, True, torch.randn(20), 5, 2)
        torch.testing.assert_close(grouped[0], logits.sigmoid(), equal_nan=True)
        assert len({e // 4 for e in grouped[2][0].tolist()}) <= 2 and len(set(grouped[2][0].tolist())) == 5
        shares, weight, chosen = native.choose(logits, 5, True)
        assert len(set(chosen[0].tolist())) == 5 and set(chosen[0].tolist()) <= set(range(20))
        torch.testing.assert_close(shares, logits.softmax(-1), equal_nan=True)
        assert weight.isnan().all() == shares.isnan().all()


@settings(max_examples=40)
@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 5),
    size=st.integers(2, 6),
    normalize=st.booleans(),
    sigmoid=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_experts_are_chosen_of_the_best_groups(
    rows: int, groups: int, size: int, normalize: bool, sigmoid: bool, dtype: torch.dtype, data: st.DataObject
) -> None:
    """Row by row: the best groups by their two best corrected shares, the best experts of those, weighted by their
    shares without the correction, times a factor."""
    torch.manual_seed(data.draw(st.integers(0, 9)))
    top_groups = data.draw(st.integers(1, groups))
    top_k = data.draw(st.integers(1, top_groups * size))
    logits, correction = torch.randn(rows, groups * size).to(dtype), torch.randn(groups * size)
    shares, weight, chosen = native.choose(
        logits, top_k, normalize, sigmoid, correction, groups, top_groups, factor=2.5
    )
    near(shares, logits.double().sigmoid() if sigmoid else logits.double().softmax(-1), torch.float32)
    for row in range(rows):
        scores = (shares[row] + correction).tolist()
        of = [scores[g * size : (g + 1) * size] for g in range(groups)]
        open_ = sorted(range(groups), key=lambda g: -sum(sorted(of[g])[-2:]))[:top_groups]
        best = sorted((e for e in range(groups * size) if e // size in open_), key=lambda e: -scores[e])[:top_k]
        assert chosen[row].tolist() == best
        wanted = shares[row, best].double()
        near(weight[row], 2.5 * (wanted / wanted.sum() if normalize else wanted), torch.float32)


def clamped(gate: Tensor, up: Tensor) -> Tensor:
    """gpt-oss's, with a limit of 0.8 and a gain of 1.7."""
    gate, up = gate.clamp(max=0.8), up.clamp(-0.8, 0.8)
    return gate * (1.7 * gate).sigmoid() * (up + 1)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 12),
    experts=st.integers(1, 9),
    width=st.integers(1, 70),
    hidden=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    biases=st.sampled_from([(False, False, False), (True, True, True), (False, True, False)]),
    activation=st.sampled_from(["", "clamped", *ACTIVATIONS]),
    gated=st.booleans(),
    data=st.data(),
)
def test_experts_are_their_weighted_sum(
    rows: int,
    experts: int,
    width: int,
    hidden: int,
    dtype: torch.dtype,
    biases: tuple[bool, ...],
    activation: str,
    gated: bool,
    data: st.DataObject,
) -> None:
    """Beside the same in float64, an expert and a token at a time; who chose no expert gets nothing from it."""
    torch.manual_seed(data.draw(st.integers(0, 9)))
    top_k, gated = data.draw(st.integers(1, experts)), gated or activation == "clamped"
    shapes = [(hidden, width)] * (2 if gated else 1) + [(width, hidden)]
    matrices = [(torch.randn(experts, *shape) / 4).to(dtype) for shape in shapes]
    added = [torch.randn(experts, out).to(dtype) if some else None for (out, _), some in zip(shapes, biases[-3:])]
    x, weight = torch.randn(rows, width).to(dtype), torch.rand(rows, top_k)
    chosen = torch.stack([torch.randperm(experts)[:top_k] for _ in range(rows)])
    chosen[0, 0] = data.draw(st.sampled_from([chosen[0, 0].item(), -1, experts]))
    act = ACTIVATIONS.get(activation, lambda z: z)
    wanted = torch.zeros(rows, width, dtype=torch.float64)
    for row, rank in torch.cartesian_prod(torch.arange(rows), torch.arange(top_k)).tolist():
        if not 0 <= (e := int(chosen[row, rank])) < experts:
            continue
        *inward, down = [(m[e].double(), 0 if b is None else b[e].double()) for m, b in zip(matrices, added)]
        made = [W @ x[row].double() + b for W, b in inward]
        between = clamped(*made) if activation == "clamped" else act(made[0]) * (made[1] if gated else 1)
        wanted[row] += weight[row, rank] * (down[0] @ between + down[1])
    formats = [native.TYPES[dtype]] * len(matrices)
    found = native.experts(x, weight, chosen, matrices, formats, added, activation, 0.8, 1.7)
    near(found, wanted, dtype)
    for row in range(rows):
        one = slice(row, row + 1)
        alone = native.experts(x[one], weight[one], chosen[one], matrices, formats, added, activation, 0.8, 1.7)
        assert torch.equal(alone[0], found[row]), "a row depends on the others"


def test_torch_sees_them_as_operators() -> None:
    """Each has a schema and a fake implementation of the same shapes; a dispatch mode sees the calls."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    x, W = torch.randn(2, 8), torch.randn(6, 8)
    with FakeTensorMode() as mode:
        found = native.linear(mode.from_tensor(x), mode.from_tensor(W), 0, activation="silu", gated=True)
        assert found.shape == (2, 3)
        q, k = mode.from_tensor(torch.randn(1, 4, 1, 8)), mode.from_tensor(torch.randn(1, 2, 5, 8))
        assert native.attention(q, k, k, None, None, 1.0, None).shape == (1, 4, 1, 8)
    arguments = torch.randn(2, 8), 3, True, True, torch.randn(8), 4, 2, 2.5
    torch.library.opcheck(torch.ops.anyformer.choose.default, arguments)
    _, weight, chosen = native.choose(*arguments)
    arguments = x, weight, chosen, [torch.randn(8, 5, 8), torch.randn(8, 8, 5)], [0, 0], [None, None], "silu", 0.0, 0.0
    torch.library.opcheck(torch.ops.anyformer.experts.default, arguments)
    torch.library.opcheck(torch.ops.anyformer.linear.default, (x, W, None, 0, None, None, 0, 0.0, None, "silu", True))
