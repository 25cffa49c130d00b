"""Of 128 layers: judged by its numbers, in every way; and what is called straight has no residual connection."""

from __future__ import annotations

import pytest
import torch

from anyformer.experiments.claims.depth import DEPTH, NAMES, _model, judge


def numbers(losses: tuple[float, float, float, float], pre: float, post: float) -> dict:
    """Losses in the order of NAMES, where byte frequencies alone give 3; gradients of two layers, the last one's 1 or,
    with the norm after, `post`."""
    runs = {name: {"loss": loss, "gradients": [1.0, 1.0]} for name, loss in zip(NAMES, losses, strict=True)}
    runs["residual-pre"]["gradients"] = [pre, 1.0]
    runs["residual-post"]["gradients"] = [1.0, post]
    return {"frequencies_alone": 3.0, "arrangements": runs}


@pytest.mark.parametrize(
    ("losses", "pre", "post", "word"),
    [
        ((2.5, 2.9, 3.0, 3.1), 10.0, 20.0, "holds"),
        ((2.5, 2.9, 2.5, 3.0), 10.0, 20.0, "does not hold at this scale"),
        ((2.5, 2.9, 3.0, 3.0), 2.0 * DEPTH, 20.0, "does not hold at this scale"),
        ((2.5, 2.9, 3.0, 3.0), 10.0, 1.0, "unclear"),
        ((2.5, 2.9, 2.85, 3.0), 10.0, 20.0, "unclear"),
        ((2.9, 2.9, 3.0, 3.0), 10.0, 20.0, "unclear"),
    ],
)
def test_each_verdict(losses: tuple[float, float, float, float], pre: float, post: float, word: str) -> None:
    """Holds as claimed; not where straight layers learn or even gradients are not; unclear between."""
    assert judge(numbers(losses, pre, post)).word == word


@torch.no_grad()
def test_nothing_passes_straight_layers_but_through_their_mixers() -> None:
    """Where all mixers give zeros, residual connections pass the embeddings on, and straight layers nothing; the
    weights they begin with are the same."""
    tokens = torch.arange(8)[None]
    models = {name: _model(name, seed=0) for name in ("residual-pre", "straight-pre", "straight-post")}
    kept = {key: tensor.clone() for key, tensor in models["residual-pre"].state_dict().items()}
    passed = {}
    for name, model in models.items():
        if name != "straight-post":  # it has no norm at its end
            assert all(torch.equal(kept[key], tensor) for key, tensor in model.state_dict().items())
        assert model.decoder is not None
        for layer in model.decoder.layers:
            layer.get_submodule("feed_forward.down").weight.zero_()  # type: ignore[operator]
        hidden = model(tokens).hidden
        assert hidden is not None
        passed[name] = bool(hidden.any())
    assert passed == {"residual-pre": True, "straight-pre": False, "straight-post": False}
