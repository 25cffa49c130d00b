"""From ids to the first residual stream."""

from __future__ import annotations

import pytest
import torch
from gradients import draw, gradcheck

from anyformer import spec
from anyformer.errors import InputError
from anyformer.parts.embeddings import Embeddings
from anyformer.parts.masks import Tokens
from anyformer.parts.positions import sinusoids

NORM = spec.Norm(kind="layer", bias=True)


def test_each_step_is_there_where_the_spec_has_it() -> None:
    """norm(scale · table[id] + segments[type] + positions), by hand."""
    full = spec.Embeddings(vocabulary=11, position=spec.Learned(size=6, offset=1), segments=2, scale=3.0, norm=NORM)
    part = draw(Embeddings(full, 4))
    ids, types = torch.tensor([[3, 0, 10], [1, 1, 2]]), torch.tensor([[0, 1, 1], [1, 0, 0]])
    assert part.segments is not None and part.positions is not None and part.norm is not None
    x = 3.0 * part.tokens.weight[ids] + part.segments.weight[types] + part.positions.weight[[2, 3, 4]]
    assert torch.allclose(part(ids, Tokens(3, start=1), types), part.norm(x))
    bare = draw(Embeddings(spec.Embeddings(vocabulary=11), 4))
    assert torch.equal(bare(ids, Tokens(3, start=0)), bare.tokens.weight[ids])
    assert sorted(name for name, _ in bare.named_parameters()) == ["tokens.weight"]


def test_absent_segments_are_the_first_type() -> None:
    """As if zeros had been given."""
    part = draw(Embeddings(spec.Embeddings(vocabulary=5, segments=3), 4))
    ids = torch.tensor([[1, 2]])
    assert torch.equal(part(ids, Tokens(2, start=0)), part(ids, Tokens(2, start=0), torch.zeros_like(ids)))


def test_waves_are_added_in_the_models_dtype() -> None:
    """Made in float32, then added as bfloat16 to bfloat16."""
    part = Embeddings(spec.Embeddings(vocabulary=5, position=spec.Sinusoidal()), 4).bfloat16()
    out = part(torch.tensor([[1, 2]]), Tokens(2, start=9))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out[0], part.tokens.weight[[1, 2]] + sinusoids(torch.tensor([9, 10]), 4).bfloat16())


@pytest.mark.parametrize("wrong", [5, 99, -1])
def test_an_id_outside_the_vocabulary_is_named(wrong: int) -> None:
    """The id, the size, and what to do."""
    part = Embeddings(spec.Embeddings(vocabulary=5), 4)
    message = f"token id {wrong} is outside the vocabulary of 5; use the tokenizer that belongs to this model"
    with pytest.raises(InputError, match=message):
        part(torch.tensor([[1, wrong, 4]]), Tokens(3, start=0))


def test_segments_that_do_not_exist_are_refused() -> None:
    """For a model without token types, and for a type beyond those it has."""
    without = Embeddings(spec.Embeddings(vocabulary=5), 4)
    ids = torch.tensor([[1, 2]])
    with pytest.raises(InputError, match="has no token types; leave segments out"):
        without(ids, Tokens(2, start=0), torch.zeros_like(ids))
    two = Embeddings(spec.Embeddings(vocabulary=5, segments=2), 4)
    with pytest.raises(InputError, match="token type 2 does not exist; this model has 2, counted from 0"):
        two(ids, Tokens(2, start=0), torch.tensor([[0, 2]]))


def test_gradients_are_right() -> None:
    """gradcheck of every table and of the norm."""
    torch.manual_seed(0)
    part = draw(
        Embeddings(spec.Embeddings(vocabulary=3, position=spec.Learned(size=3), segments=2, scale=2.0, norm=NORM), 4)
    )
    ids = torch.tensor([[2, 0, 2], [1, 1, 0]])
    gradcheck(part, lambda: part(ids, Tokens(3, start=0), ids.clamp(max=1)))


def test_dropout_acts_in_training_only() -> None:
    """And scales what it keeps."""
    part = Embeddings(spec.Embeddings(vocabulary=5, dropout=0.5), 400)
    torch.nn.init.ones_(part.tokens.weight)
    ids = torch.tensor([[1] * 10])
    out = part(ids, Tokens(10, start=0))
    assert set(out.unique().tolist()) == {0.0, 2.0} and 0.4 < float((out == 0).float().mean()) < 0.6
    assert part.eval()(ids, Tokens(10, start=0)).eq(1).all()
