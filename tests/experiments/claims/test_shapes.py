"""Shapes: three of one size, what is hidden is what is asked for, and the verdict comes out each way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anyformer import model as models
from anyformer import planning
from anyformer.experiments.claims import shapes


def test_all_three_are_of_one_size() -> None:
    """Within a hundredth in parameters; and each is of its own shape."""
    sizes = {name: planning.count(shape) for name, shape in shapes.shapes().items()}
    assert max(sizes.values()) < 1.01 * min(sizes.values())
    assert {shape.shape for shape in shapes.shapes().values()} == {"encoder", "decoder", "encoder-decoder"}


def test_what_is_hidden_is_what_is_asked_for() -> None:
    """Masks hide the bytes that are targets and no others; spans put back where their sentinels stand are the text."""
    ids = torch.randint(256, (4, shapes.LENGTH), generator=torch.Generator().manual_seed(1))
    batch = shapes.masked(ids, torch.Generator().manual_seed(2))
    asked = batch["targets"] >= 0
    assert torch.equal(batch["tokens"][~asked], ids[~asked])
    assert torch.equal(batch["targets"][asked], ids[asked])
    assert (batch["tokens"] == shapes.MASK).sum() > 0.5 * asked.sum()
    batch = shapes.spans(ids, torch.Generator().manual_seed(2))
    target = torch.cat([batch["tokens"][:, :1], batch["targets"]], dim=1)
    for source, wanted, row in zip(batch["source"].tolist(), target.tolist(), ids.tolist()):
        cut: dict[int, list[int]] = {}
        for token in wanted:
            if token >= shapes.SENTINEL:
                cut[token] = []
            else:
                cut[list(cut)[-1]].append(token)
        assert [byte for token in source for byte in cut.get(token, [token])] == row


def test_no_model_sees_what_it_is_asked_for() -> None:
    """Other bytes in the hidden places change no answer about the first of them."""
    text = torch.randint(256, (2, shapes.LENGTH), generator=torch.Generator().manual_seed(1))
    other = text.clone()
    other[:, 62:65] = (other[:, 62:65] + 7) % 256
    asks = {"BERT": shapes._by_masks, "GPT": shapes._by_the_past, "T5": shapes._by_sentinel}
    for name, shape in shapes.shapes().items():
        model = models.build(shape, seed=0).eval()
        one, changed = (asks[name](model, each, 62, 3) for each in (text, other))
        assert one.shape == (2, 3, shapes.VOCABULARY)
        assert torch.equal(one[:, 0], changed[:, 0])
        assert not torch.equal(one[:, 1], changed[:, 1]), "the second is asked for with the first in view"


def _numbers(own: float, noise: float = 0.01) -> dict[str, Any]:
    """Everybody at 2 nats, but `own` at its own task."""
    spread = [0.0, noise, -noise]
    return {
        "loss": {
            name: {
                task: [(own if shapes.OWN[task] == name else 2.0) + each * scale for each in spread]
                for task in shapes.TASKS
            }
            for name, scale in (("BERT", 1), ("GPT", 0.5), ("T5", -1))
        }
    }


@pytest.mark.parametrize(
    ("own", "noise", "word"),
    [(1.5, 0.01, "holds"), (2.5, 0.01, "does not hold at this scale"), (1.9, 0.2, "unclear")],
)
def test_comes_out_each_way(own: float, noise: float, word: str) -> None:
    """Best at its own everywhere; beaten at it; no more than noise."""
    assert shapes.judge(_numbers(own, noise)).word == word
