"""Bytes that training takes: what stands, what a mesh divides, and what each saving saves."""

from __future__ import annotations

from math import prod

import pytest
import torch

from anyformer import families
from anyformer.model import build
from anyformer.model.heads import LARGEST_LOGITS
from anyformer.planning import memory
from anyformer.planning.memory import Mesh, Step, peak, training_memory
from anyformer.planning.shapes import count, shapes
from anyformer.training.averaging import Average
from anyformer.training.optimizers import moments, optimizers


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("preset", ["llama:tiny", "t5:tiny", "mixtral:tiny", "gpt2:tiny"])
def test_weights_moments_gradients_and_average_are_those_of_a_step(preset: str, optimizer: str) -> None:
    """To the byte, but for the counters of optimizers, by the tensors that a step leaves."""
    spec = families.preset(preset)
    assert spec is not None
    model = build(spec, seed=0)
    ids = torch.zeros(1, 4, dtype=torch.long)
    source = {"source": ids} if spec.shape == "encoder-decoder" else {}
    model(ids, targets=ids, **source).loss.backward()  # type: ignore[union-attr]
    made = optimizers(optimizer, model, 0.1)
    for each in made:
        each.step()
    average = Average(model, 0.9)
    foretold = training_memory(spec, Step(rows=1, tokens=4, optimizer=optimizer, average=True))["update"]
    kept = [tensor.nbytes for tensor in moments(made, model).values() if tensor.numel() > 1]
    assert foretold["weights"] == sum(parameter.nbytes for parameter in model.parameters())
    assert foretold["gradients"] == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert foretold["moments"] == sum(kept)
    assert foretold["average"] == sum(tensor.nbytes for tensor in average.averages.values())


def test_chunks_of_logits_are_the_heads() -> None:
    """Planning imports no torch, so the number stands twice."""
    assert memory.LARGEST_LOGITS == LARGEST_LOGITS


def test_a_mesh_divides_what_stands() -> None:
    """Over shards all of it, over tensor ranks the matrices of attention and feed-forward, over expert ranks the
    experts, and replicas nothing."""
    spec = families.llama("8b")
    whole = count(spec) * 4

    def weights(mesh: Mesh) -> int:
        return training_memory(spec, Step(rows=1, tokens=64, mesh=mesh))["update"]["weights"]

    assert weights(Mesh(data=4)) == whole
    assert weights(Mesh(shard=8)) == whole / 8
    divided = 4 * sum(prod(shape) for name, shape in shapes(spec).items() if ".layers." in name and "norm" not in name)
    assert weights(Mesh(tensor=4)) == whole - divided * 3 / 4
    assert weights(Mesh(shard=2, tensor=4)) == weights(Mesh(tensor=4)) / 2
    mixture = families.mixtral("8x7b")
    experts = Step(rows=1, tokens=64, mesh=Mesh(expert=8))
    assert training_memory(mixture, experts)["update"]["weights"] == count(mixture) * 4 / 8


def test_each_saving_saves() -> None:
    """Layers computed again, tensor ranks, context ranks and narrower products all keep less; an average, a second
    micro-batch and longer rows take more."""
    spec = families.llama("135m")
    base = Step(rows=4, tokens=512)

    def bytes_of(**changes: object) -> int:
        return peak(spec, Step(**{"rows": base.rows, "tokens": base.tokens, **changes}))[1]  # type: ignore[arg-type]

    plain = bytes_of()
    assert bytes_of(checkpoint_activations=True) < plain / 1.5
    assert bytes_of(mesh=Mesh(tensor=3)) < plain and bytes_of(mesh=Mesh(context=3)) < plain
    assert bytes_of(precision="bfloat16") < plain < bytes_of(average=True)
    assert plain < bytes_of(accumulates=True) and plain < bytes_of(tokens=1024)
    assert peak(spec, base)[0] == "loss"
    assert peak(spec, Step(rows=1, tokens=8))[0] == "layers"
