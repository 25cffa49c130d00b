"""Masks say what plain loops over tokens say; lowering them changes nothing."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from who_sees_whom import LAYOUTS, draw_mask, draw_pair, in_plain_python

from anyformer.parts import masks
from anyformer.parts.masks import Causal, Full, Mask, Prefix, SameDocument, Sink, Tokens, Valid, Visible, Window, lower


def shown(visible: Visible, rows: int) -> Tensor:
    """What a lowered form lets through, [rows, T, S], read off the form and not off the predicate."""
    T, S = visible.q.length, visible.k.length
    i, j = torch.arange(T)[:, None], torch.arange(S)
    match visible.form:
        case "everything":
            return torch.ones(rows, T, S, dtype=torch.bool)
        case "causal":
            assert T == S
            return (j <= i).expand(rows, T, S)
        case "documents":
            # Rows laid end to end; what a document sees lies on the diagonal.
            blocks = [shown(part, 1)[0] for _, part in visible.parts]
            assert [length for length, _ in visible.parts] == [len(block) for block in blocks]
            whole = torch.block_diag(*blocks).bool()
            return torch.stack([whole[row * T : (row + 1) * T, row * S : (row + 1) * S] for row in range(rows)])
        case _:
            return visible.dense[:, 0].expand(rows, T, S)


def in_band(visible: Visible) -> Tensor:
    """Pairs that a band's kernel may look at, [T, S]."""
    ahead = torch.arange(visible.k.length) - torch.arange(visible.q.length)[:, None] - visible.offset
    return (ahead > -visible.left) & (ahead < visible.right)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shallow", [False, True], ids=["nested", "conjunctions"])
def test_random_masks_are_what_plain_loops_say(layout: str, shallow: bool) -> None:
    """250 masks x shapes in each layout: the predicate equals Python loops over the tokens' attributes, and so does
    whatever form lowering chose; in a band nothing outside its reach is visible, and rows repeat each other shifted."""
    forms = set()
    for seed in range(250):
        draw = random.Random(f"{layout} {shallow} {seed}")
        torch.manual_seed(seed)
        pair, mask = draw_pair(draw, layout), draw_mask(draw, shallow=shallow)
        truth = torch.tensor(in_plain_python(mask, pair))
        allowed = mask.allows(pair.q, pair.k)
        assert torch.equal(allowed.expand(truth.shape), truth), (seed, mask)
        visible = lower(mask, pair.q, pair.k)
        forms.add(visible.form)
        assert torch.equal(shown(visible, pair.rows), truth), (seed, mask, visible.form)
        assert torch.equal(visible.dense[:, 0].expand(truth.shape), truth), (seed, mask, visible.form)
        if visible.form == "band":
            assert not (truth & ~in_band(visible)).any(), (seed, mask)
            q, k = pair.q, pair.k
            # Kernels take one tile for another: the pattern must depend on distance alone.
            longer = lower(
                mask,
                Tokens(q.length + 9, start=q.start, prefix=q.prefix),
                Tokens(k.length + 9, start=k.start, prefix=k.prefix),
            )
            full = longer.mask.allows(longer.q, longer.k)
            assert torch.equal(full[:, 1:, 1:], full[:, :-1, :-1]), (seed, mask)
    if shallow and layout == "range":
        assert forms == {"everything", "causal", "band", "dense"}
    if shallow and layout == "packed":
        assert "documents" in forms


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pair_at_a_time_is_the_same_as_all_at_once(layout: str) -> None:
    """Attributes picked for single tokens, as FlexAttention asks for them, give the dense predicate."""
    for seed in range(40):
        draw = random.Random(f"{layout} {seed}")
        torch.manual_seed(seed)
        pair, mask = draw_pair(draw, layout), draw_mask(draw)
        dense = mask.allows(pair.q, pair.k).expand(pair.rows, pair.q.length, pair.k.length)
        b, i, j = torch.meshgrid(*(torch.arange(n) for n in dense.shape), indexing="ij")
        picked = mask.rule(pair.q.at(b, i), pair.k.at(b, j)).expand(dense.shape)
        assert torch.equal(picked, dense), (seed, mask)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_slices_of_tokens_show_slices_of_the_mask(layout: str) -> None:
    """Tiled kernels ask for tiles; lowering a slice changes nothing either."""
    for seed in range(60):
        draw = random.Random(f"{layout} {seed}")
        torch.manual_seed(seed)
        pair, mask = draw_pair(draw, layout), draw_mask(draw, shallow=seed % 2 == 0)
        dense = mask.allows(pair.q, pair.k).expand(pair.rows, pair.q.length, pair.k.length)
        t, s = draw.randrange(pair.q.length), draw.randrange(pair.k.length)
        T, S = slice(t, draw.randint(t + 1, pair.q.length)), slice(s, draw.randint(s + 1, pair.k.length))
        visible = lower(mask, pair.q[T], pair.k[S])
        assert torch.equal(shown(visible, pair.rows), dense[:, T, S]), (seed, mask, visible.form)


def test_a_horizon_is_a_true_bound() -> None:
    """1,500 masks: no query ever sees a key further back than the horizon says; windows' own horizons are tight."""
    bounded = 0
    for seed in range(1500):
        draw = random.Random(seed)
        torch.manual_seed(seed)
        pair, mask = draw_pair(draw, LAYOUTS[seed % len(LAYOUTS)]), draw_mask(draw)
        horizon = mask.horizon()
        if horizon is None:
            continue
        bounded += 1
        truth = torch.tensor(in_plain_python(mask, pair))
        back = (pair.q.position[:, :, None] - pair.k.position[:, None, :] + 1).expand(truth.shape)
        assert not (truth & (back > horizon)).any(), (seed, mask, horizon)
    assert bounded > 200


def test_horizons_of_the_masks_that_models_use() -> None:
    """A window bounds what it is joined with; what stays visible for ever has no horizon."""
    assert (Causal() & Window(4) & SameDocument() & Valid()).horizon() == 4
    assert (Window(4) & Window(9)).horizon() == 4
    assert (Window(4) | Window(9)).horizon() == 9
    assert Causal().horizon() is None
    assert Window(None, 3).horizon() is None
    assert (Causal() & (Window(4) | Sink(2))).horizon() is None
    assert (~Window(4)).horizon() is None


def test_forms_that_lowering_promises() -> None:
    """What models ask for most is never a dense matrix."""
    span, later, back = Tokens(8, start=0), Tokens(2, start=6), Tokens(8, start=3)
    model = Causal() & SameDocument() & Valid()
    assert lower(model, span, span).form == "causal"
    assert lower(model, back, back).form == "causal"
    assert lower(model, Tokens(1, start=7), span).form == "everything"
    assert lower(model, later, span).form == "dense", "is_causal is aligned top left: not for fewer queries than keys"
    assert lower(Full() & SameDocument() & Valid(), span, span).form == "everything"
    assert lower(model & Window(3), span, span).form == "band"
    assert lower(model & Window(8), span, span).form == "causal", "a window as long as the text hides nothing"
    assert lower(Window(2, 2) & Valid(), span, span).form == "band"
    band = lower(model & Window(3), later, span)
    assert (band.form, band.left, band.right, band.offset) == ("band", 3, 1, 6)
    packed = Tokens.packed(((3, 5), (8,)))
    documents = lower(model, packed, packed)
    assert documents.form == "documents"
    assert [(length, part.form) for length, part in documents.parts] == [(3, "causal"), (5, "causal"), (8, "causal")]
    packed = Tokens.packed(((4, 5), (9,)))
    windowed = lower(model & Window(2), packed, packed)
    assert [part.form for _, part in windowed.parts] == ["band", "band", "band"]


@pytest.mark.parametrize("leaf", [Sink(2), Prefix()], ids=["sink", "prefix"])
def test_what_counts_from_the_beginning_is_no_band(leaf: Mask) -> None:
    """A window joined with a leaf that knows absolute positions differs from block to block: one tile cannot stand for
    all, so the form is dense, even where the window itself is a band."""
    span = Tokens(300, start=0, prefix=torch.tensor([[5], [150]]))
    assert lower((Causal() | leaf) & Window(4, 4), span, span).form == "dense"
    assert lower(Causal() & Window(4) & ~leaf, span, span).form == "dense"


def test_lowering_reads_no_tensor() -> None:
    """Positions, documents and validity may be on a device that is still computing them: here they hold no numbers at
    all, and lowering still decides."""

    def nothing(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    rows = Tokens(
        6,
        device="meta",
        position=nothing(2, 6),
        document=nothing(2, 6),
        valid=nothing(2, 6, dtype=torch.bool),
        prefix=nothing(2, 1),
    )
    for mask in (Causal() & SameDocument() & Valid(), (Causal() | Prefix()) & Window(3), Full(), ~Sink(1)):
        assert lower(mask, rows, rows).form in ("dense", "everything")


def test_packed_rows_know_their_tokens() -> None:
    """Positions restart in every document, and every document of a row has its own number."""
    packed = Tokens.packed(((2, 1, 3), (6,)))
    assert packed.position.tolist() == [[0, 1, 0, 0, 1, 2], [0, 1, 2, 3, 4, 5]]
    assert packed.document is not None
    assert packed.document.tolist() == [[0, 0, 1, 2, 2, 2], [0] * 6]
    assert (packed.low, packed.high) == (0, 5)


def test_pairs_are_consecutive_spans() -> None:
    """Lengths become (start, stop)."""
    assert masks.pairs((3, 0, 2)) == [(0, 3), (3, 3), (3, 5)]


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (1, 7), (3, 7), (7, 3)])
@pytest.mark.parametrize("starts", [(0, 0), (4, 0), (0, 4), (2, 9)])
def test_a_bias_of_distance_is_the_same_however_positions_are_given(
    shape: tuple[int, int], starts: tuple[int, int]
) -> None:
    """Contiguous rows take a shifted row of distances; arbitrary ones are asked pair by pair."""
    from anyformer import spec
    from anyformer.parts.positions import RelativePositions, alibi_bias

    torch.manual_seed(0)
    table = RelativePositions(spec.RelativeBuckets(buckets=6, max_distance=9, bidirectional=True), 3)
    (T, S), (a, b) = shape, starts
    for bias in (alibi_bias(3, 8.0), table):
        known = bias.dense(Tokens(T, start=a), Tokens(S, start=b))
        asked = bias.dense(
            Tokens(T, position=torch.arange(a, a + T)[None]), Tokens(S, position=torch.arange(b, b + S)[None])
        )
        assert known.shape == asked.shape == (1, 3, T, S)
        assert torch.equal(known, asked)


def test_what_is_added_to_scores_is_laid_out_once() -> None:
    """A second layer with the same bias gets the same tensor; hidden keys are -inf."""
    from anyformer.parts.positions import alibi_bias

    span = Tokens(4, start=0)
    visible = lower(Causal(), span, span)
    bias = alibi_bias(2, 8.0)
    added = visible.added(bias, torch.float32)
    assert visible.added(bias, torch.float32) is added
    assert torch.equal(added == -torch.inf, ~visible.dense.expand_as(added))
    assert torch.equal(visible.added(None, torch.float32).exp()[0, 0], torch.ones(4, 4).tril())
