"""Tables of tensor names: patterns that fill, layouts that lose nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyformer.families.names import PairedRows, Row, Tensor, Transpose, Unused, fill, unused

SHAPES = {
    "decoder.embeddings.tokens.weight": (11, 4),
    "decoder.layers.0.attention.query.weight": (6, 4),
    "decoder.layers.0.attention.query.bias": (6,),
    "decoder.layers.0.attention.key.weight": (2, 4),
    "decoder.layers.0.attention.key.bias": (2,),
    "decoder.layers.0.attention.value.weight": (2, 4),
    "decoder.layers.0.attention.value.bias": (2,),
    "decoder.layers.1.experts.gate": (3, 5, 4),
}


def test_a_step_stands_for_itself_on_both_sides() -> None:
    """`*` is one step of the name, and stands for layers and for weight and bias alike."""
    lines = fill([Tensor("h.*.q.*", "decoder.layers.*.attention.query.*")], SHAPES)
    assert [(line.saved, line.ours) for line in lines] == [
        (("h.0.q.weight",), ("decoder.layers.0.attention.query.weight",)),
        (("h.0.q.bias",), ("decoder.layers.0.attention.query.bias",)),
    ]


def test_one_saved_tensor_for_each_expert() -> None:
    """`#` counts along our first dimension."""
    (line,) = fill([Tensor("h.*.experts.#.w1", "decoder.layers.*.experts.gate")], SHAPES)
    assert line.saved == ("h.1.experts.0.w1", "h.1.experts.1.w1", "h.1.experts.2.w1")


def test_fused_tensors_share_a_line() -> None:
    """Several of ours in one saved tensor make one line, aliases filled like the rest."""
    names = tuple(f"decoder.layers.*.attention.{part}.*" for part in ("query", "key", "value"))
    lines = fill([Tensor("h.*.qkv.*", names, aliases=("old.*.qkv.*",))], SHAPES)
    assert [line.saved for line in lines] == [("h.0.qkv.weight",), ("h.0.qkv.bias",)]
    assert lines[1].ours == tuple(f"decoder.layers.0.attention.{part}.bias" for part in ("query", "key", "value"))
    assert lines[0].aliases == ("old.0.qkv.weight",)


def test_the_first_line_that_fits_counts() -> None:
    """Later lines may be more general; parameters in no line are left out."""
    table = [
        Tensor("wte", "decoder.embeddings.tokens.weight"),
        Tensor("other.*", "decoder.embeddings.tokens.*"),
        Unused("**", "never a parameter's"),
    ]
    assert [line.saved for line in fill(table, SHAPES)] == [("wte",)]


def test_wildcards_must_agree() -> None:
    """A table whose two sides have different numbers of wildcards is a mistake of its author."""
    with pytest.raises(AssertionError, match="needs 2 wildcards"):
        fill([Tensor("h.*.q", "decoder.layers.*.attention.query.*")], SHAPES)


def test_what_no_model_reads() -> None:
    """`**` is any text, dots included; what every family leaves aside is added to a table's own."""
    pooler = Unused("bert.pooler.**", "unread")
    assert pooler.matches("bert.pooler.dense.weight") and not pooler.matches("bert.poolers")
    matching = [entry for entry in unused([pooler]) if entry.matches("bert.embeddings.position_ids")]
    assert len(matching) == 1 and matching[0] is not pooler


@given(heads=st.integers(1, 5), half=st.integers(1, 4), columns=st.integers(0, 3))
def test_layouts_lose_nothing(heads: int, half: int, columns: int) -> None:
    """There and back is the identity, for matrices and vectors, in both directions."""
    shape = (heads * 2 * half, *([columns] if columns else []))
    tensor = torch.arange(heads * 2 * half * max(columns, 1)).reshape(shape)
    for layout in (Transpose(), PairedRows(heads)):
        assert torch.equal(layout.to_ours(layout.to_saved(tensor)), tensor)
        assert torch.equal(layout.to_saved(layout.to_ours(tensor)), tensor)
    assert torch.equal(Row().to_ours(Row().to_saved(tensor)), tensor)


def test_paired_rows_pair_what_turns_together() -> None:
    """Neighbouring rows of a head in the file lie half a head apart here."""
    saved = torch.tensor([0, 1, 2, 3, 10, 11, 12, 13])
    assert PairedRows(2).to_ours(saved).tolist() == [0, 2, 1, 3, 10, 12, 11, 13]


def test_transpose_leaves_vectors_alone() -> None:
    """GPT-2's matrices are transposed, its biases are not, and of stacks of matrices the last two dimensions are."""
    assert Transpose().to_ours(torch.zeros(3, 2, 5)).shape == (3, 5, 2)
    assert torch.equal(Transpose().to_ours(torch.arange(3)), torch.arange(3))
