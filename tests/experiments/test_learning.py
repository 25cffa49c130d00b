"""What experiments that train share learns, the same way each time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from anyformer import model as models
from anyformer.errors import ExperimentError
from anyformer.experiments import Lab
from anyformer.experiments.learning import attention, decoder, held_out_loss, learn, text_ids, thinned, windows
from anyformer.spec import FeedForward, Rotary


def test_a_small_model_learns_a_text_alike_each_time() -> None:
    """A text of 64 bytes over and over is learned: below a tenth of the loss of guessing, here and held out; with the
    same seeds, to the same bits."""
    ids = torch.randint(256, (64,), generator=torch.Generator().manual_seed(1)).repeat(50)
    runs = []
    for _ in range(2):
        model = models.build(decoder(32, 2, attention(32, 2, position=Rotary()), FeedForward(hidden=64)), seed=1)
        losses = learn(model, windows(ids, 32, 8, seed=2), 150, learning_rate=1e-2)
        runs.append((losses, held_out_loss(model, ids, 32, rows=10)))
    assert runs[0] == runs[1]
    losses, held_out = runs[0]
    assert losses[0] > 0.9 * math.log(256) and losses[-1] < 0.5 and held_out < 0.5


def test_windows_ask_for_what_follows() -> None:
    """Targets are the ids one further on, and every step has others."""
    ids = torch.arange(1000)
    batch = windows(ids, 16, 4)
    assert torch.equal(batch(3)["targets"], batch(3)["tokens"] + 1)
    assert not torch.equal(batch(3)["tokens"], batch(4)["tokens"])


def test_text_is_the_users_or_pythons_own(tmp_path: Path) -> None:
    """Training and held-out bytes are the text, cut once; too little text is refused."""
    (tmp_path / "a.txt").write_bytes(bytes(range(200)) * 1000)
    train, held_out = text_ids(Lab(tmp_path, data=tmp_path), most=150_000)
    assert (len(train), len(held_out)) == (135_000, 15_000)
    assert bytes(torch.cat([train, held_out]).tolist()) == (tmp_path / "a.txt").read_bytes()[:150_000]
    assert len(text_ids(Lab(tmp_path), most=200_000)[0]) == 180_000
    (tmp_path / "a.txt").write_bytes(b"short")
    with pytest.raises(ExperimentError, match="holds 5 bytes; an experiment learns from"):
        text_ids(Lab(tmp_path, data=tmp_path))


def test_a_thinned_curve_keeps_its_mean_and_is_short() -> None:
    """Stretches of equal length, each at its middle; a curve that is short already stays as it is."""
    assert thinned([4.0, 2.0, 3.0, 1.0], points=2) == {"step": [0.5, 2.5], "loss": [3.0, 2.0]}
    assert thinned([4.0, 2.0]) == {"step": [0.0, 1.0], "loss": [4.0, 2.0]}
    assert len(thinned([0.0] * 1234)["loss"]) == 50
