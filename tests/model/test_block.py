"""Placements and parallel branches against the equations, written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gradients import draw, gradcheck
from torch import Tensor, nn

from anyformer import spec
from anyformer.model.block import Block
from anyformer.parts.context import Context
from anyformer.parts.masks import Tokens

DIM = 6
NORM = spec.Norm(kind="layer", bias=True)
ATTENTION = spec.Attention(heads=2, kv_heads=1, head_dim=2, visibility="causal")
FEED_FORWARD = spec.FeedForward(hidden=5)


def block(first: dict[str, Any], second: dict[str, Any], parallel: bool = False) -> Block:
    """Attention, then a feed-forward, placed as said; in float64, every parameter drawn."""
    torch.manual_seed(0)
    branches = (spec.Branch(mixer=ATTENTION, **first), spec.Branch(mixer=FEED_FORWARD, **second))
    return draw(Block(spec.Block(branches=branches, parallel=parallel), DIM), 0.5)  # type: ignore[return-value]


def context() -> Context:
    return Context(Tokens(4, start=0))


def parts(built: Block) -> tuple[Any, Any, nn.Module | None, nn.Module | None]:
    """The two mixers, and the norms that go first with each."""
    modules = dict(built.named_children())
    return (
        lambda x: modules["attention"](x, context()),
        lambda x: modules["feed_forward"](x, context()),
        modules.get("attention_norm"),
        modules.get("feed_forward_norm"),
    )


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 4, DIM, dtype=torch.float64, requires_grad=True)


def test_pre(x: Tensor) -> None:
    """x + f(n(x))."""
    built = block({"norm": NORM}, {"norm": NORM})
    f, g, n, m = parts(built)
    y = x + f(n(x))
    assert torch.allclose(built(x, context()), y + g(m(y)))


def test_post(x: Tensor) -> None:
    """n(x + f(x))."""
    built = block({"norm": NORM, "placement": "post"}, {"norm": NORM, "placement": "post"})
    f, g, n, m = parts(built)
    y = n(x + f(x))
    assert torch.allclose(built(x, context()), m(y + g(y)))


def test_output(x: Tensor) -> None:
    """x + n(f(x))."""
    built = block({"norm": NORM, "placement": "output"}, {"norm": NORM, "placement": "output"})
    f, g, n, m = parts(built)
    y = x + n(f(x))
    assert torch.allclose(built(x, context()), y + m(g(y)))


def test_both(x: Tensor) -> None:
    """x + n'(f(n(x))), two norms with parameters of their own."""
    built = block({"norm": NORM, "placement": "both"}, {"norm": NORM, "placement": "both"})
    f, g, n, m = parts(built)
    after_f, after_g = built.get_submodule("attention_output_norm"), built.get_submodule("feed_forward_output_norm")
    y = x + after_f(f(n(x)))
    assert torch.allclose(built(x, context()), y + after_g(g(m(y))))
    assert not torch.equal(after_f.weight, n.weight)


def test_placements_may_differ_within_a_block(x: Tensor) -> None:
    """Each branch has its own, or no norm at all."""
    built = block({"norm": NORM, "placement": "post"}, {"norm": None})
    f, g, n, _ = parts(built)
    y = n(x + f(x))
    assert torch.allclose(built(x, context()), y + g(y))


def test_parallel_with_two_norms(x: Tensor) -> None:
    """x + f(n(x)) + g(m(x))   (NeoX)."""
    built = block({"norm": NORM}, {"norm": NORM}, parallel=True)
    f, g, n, m = parts(built)
    assert torch.allclose(built(x, context()), x + f(n(x)) + g(m(x)))


def test_parallel_with_one_norm(x: Tensor) -> None:
    """x + f(n(x)) + g(n(x)), one norm for both   (GPT-J)."""
    built = block({"norm": NORM}, {"norm": "shared"}, parallel=True)
    f, g, n, m = parts(built)
    assert m is None
    assert torch.allclose(built(x, context()), x + f(n(x)) + g(n(x)))


def test_parallel_with_norms_of_outputs(x: Tensor) -> None:
    """x + n(f(x)) + m(g(x)), and a branch without a norm beside one with."""
    built = block({"norm": NORM, "placement": "output"}, {"norm": NORM, "placement": "output"}, parallel=True)
    f, g, n, m = parts(built)
    assert torch.allclose(built(x, context()), x + n(f(x)) + m(g(x)))
    built = block({"norm": NORM}, {"norm": None}, parallel=True)
    f, g, n, m = parts(built)
    assert torch.allclose(built(x, context()), x + f(n(x)) + g(x))


@pytest.mark.parametrize("placement", ["pre", "post", "output", "both"])
def test_gradients_are_right(placement: Any, x: Tensor) -> None:
    """gradcheck of a whole block in each placement."""
    built = block({"norm": NORM, "placement": placement}, {"norm": NORM, "placement": placement})
    gradcheck(built, lambda x: built(x, context()), x[:1, :3].detach().requires_grad_())


def test_cross_attention_is_one_more_branch(x: Tensor) -> None:
    """Between the two, with its own norm, reading a source of another width."""
    torch.manual_seed(0)
    across = spec.Attention(heads=2, kv_heads=2, head_dim=3, source="cross", visibility="full")
    branches = tuple(spec.Branch(mixer=mixer, norm=NORM) for mixer in (ATTENTION, across, FEED_FORWARD))
    built = draw(Block(spec.Block(branches=branches), DIM, 5), 0.5)
    source, tokens = torch.randn(2, 7, 5, dtype=torch.float64), Tokens(7, start=0)

    def here() -> Context:
        return Context(Tokens(4, start=0), source=source, source_tokens=tokens)

    assert isinstance(built, Block)
    modules = dict(built.named_children())
    y = x + modules["attention"](modules["attention_norm"](x), here())
    y = y + modules["cross_attention"](modules["cross_attention_norm"](y), here())
    y = y + modules["feed_forward"](modules["feed_forward_norm"](y), here())
    assert torch.allclose(built(x, here()), y)


def test_dropout_of_a_branch_acts_in_training_only(x: Tensor) -> None:
    """On what the branch adds, not on the stream."""
    built = block({"norm": None, "dropout": 0.5}, {"norm": None, "dropout": 0.5})
    f, *_ = parts(built)
    with torch.no_grad():
        built.get_submodule("feed_forward.down").weight.zero_()  # type: ignore[union-attr]
    added = built.train()(x, context()) - x
    kept = added != 0
    assert 0.2 < float(kept.double().mean()) < 0.8
    assert torch.allclose(added[kept], 2 * f(x)[kept])
    assert torch.allclose(built.eval()(x, context()), x + f(x))
