"""A whole plan is made of what is counted elsewhere, and says no to what cannot be."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import anyformer as af
from anyformer import families, planning
from anyformer.errors import PlanError, SpecError
from anyformer.planning import Mesh, Step, peak
from anyformer.planning.devices import DEVICES
from anyformer.planning.plan import mesh_of, plan
from anyformer.planning.time import step_time

LLAMA = families.llama("135m")


def test_counts_are_those_of_planning() -> None:
    """Parameters, FLOPs, bytes: the same figures as `summary` has, for presets, specs and models alike."""
    found, said = plan("llama:135m", context=4096), planning.summary(LLAMA, 4096)
    assert found == plan(LLAMA, context=4096) == af.plan(LLAMA, context=4096)
    data = json.loads(json.dumps(found.to_data()))
    assert data["parameters"] == said["parameters"]
    for name in ("context", "weight_bytes", "kv_bytes_per_token", "kv_bytes", "dtype", "shape", "layers"):
        assert data[name] == said[name]
    assert data["flops"]["forward_per_token"] == said["flops"]["forward_per_token"]
    assert data["flops"]["training_per_token"] == 3 * said["flops"]["forward_per_token"]
    assert data["flops"]["decode_per_token"] == said["flops"]["decode_per_token"]


def test_a_model_is_planned_by_its_spec() -> None:
    """Anything that has one."""
    model = af.build(families.llama("tiny"))
    assert af.plan(model) == af.plan("llama:tiny")


def test_training_is_the_steps() -> None:
    """Memory is `training_memory`'s, time `step_time`'s, for as many steps as the tokens take."""
    found = plan(LLAMA, device="h100", rows=4, length=1024, batch_tokens=65536, tokens=1e9, mesh=Mesh(shard=2))
    training, device = found.training, DEVICES["h100"]
    step = Step(4, 1024, precision="bfloat16", accumulates=True, fused=True, mesh=Mesh(shard=2))
    assert training.step == step and (training.peak_moment, training.peak_bytes) == peak(LLAMA, step)
    time = step_time(LLAMA, step, device, micro_batches=8, attained=0.4)
    assert training.time == time and training.batch_tokens == time.tokens == 65536
    assert training.hours == pytest.approx(1e9 / 65536 * time.seconds / 3600)
    assert training.cost == pytest.approx(2 * 3.95 * training.hours)  # type: ignore[operator]
    assert training.by_rows[4]["kept"] == training.peak_bytes
    assert training.by_rows[32]["computed_again"] < training.by_rows[32]["kept"] < training.by_rows[32]["whole_loss"]


def test_how_many_tokens() -> None:
    """Those given, or what FLOPs pay for, or twenty a parameter."""
    row = 3 * sum(planning.forward_flops(LLAMA, 2048).values())
    assert plan(LLAMA).training.tokens == 20 * planning.count(LLAMA)
    by_flops = plan(LLAMA, flops=1e18).training
    assert by_flops.tokens == pytest.approx(1e18 / row * 2048) and by_flops.flops == pytest.approx(1e18, rel=1e-6)
    assert plan(LLAMA, tokens=5e9).training.flops == pytest.approx(5e9 / 2048 * row)


def test_without_a_device_there_is_no_time() -> None:
    """Nor a verdict; with one that nobody lists a price for, no cost, unless it is given."""
    found = plan(LLAMA)
    assert found.training.time is found.training.verdict is found.serving.time is found.serving.verdict is None
    priceless = plan(LLAMA, device="rtx4090")
    assert priceless.training.cost is priceless.serving.dollars_per_million_tokens is None
    priced = plan(LLAMA, device="rtx4090", price=0.5)
    assert priced.training.cost == pytest.approx(0.5 * priced.training.hours)  # type: ignore[operator]


def test_precision_is_what_the_device_is_best_at() -> None:
    """bfloat16 on accelerators, float32 where it is as fast, unless asked for."""
    slow = replace(DEVICES["h100"], flops=1e12, flops_float32=1e12, fused=False)
    assert plan(LLAMA, device=slow).training.step.precision == plan(LLAMA, device=slow).dtype == "float32"
    assert not plan(LLAMA, device=slow).training.step.fused
    asked = plan(LLAMA, device="h100", precision="float32", dtype="float32")
    assert asked.training.step.precision == asked.dtype == "float32"
    assert asked.training.time.seconds > plan(LLAMA, device="h100").training.time.seconds  # type: ignore[union-attr]


@pytest.mark.parametrize("preset", [f"{name}:tiny" for name in families.registered()])
def test_every_family_can_be_planned(preset: str) -> None:
    """With the parameters counted, memory at every moment, and as plain data."""
    found = plan(preset, device="l4")
    spec = families.preset(preset)
    assert spec is not None and found.parameters.total == planning.count(spec)
    assert found.training.verdict is not None and found.training.verdict.fits
    assert (found.serving.time is not None) and (found.serving.time.per_token is None) == (spec.decoder is None)
    json.dumps(found.to_data())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "h1000"}, "no device 'h1000'"),
        ({"attained": 1.5}, "above 0 and up to 1, not 1.5"),
        ({"optimizer": "sgd"}, "no optimizer 'sgd'; there are adamw, muon"),
        ({"precision": "float8"}, "no dtype 'float8'"),
        ({"dtype": "int3"}, "no dtype 'int3'"),
    ],
)
def test_what_cannot_be_is_refused(given: dict, said: str) -> None:
    """In a sentence."""
    with pytest.raises((PlanError, SpecError), match=said):
        plan(LLAMA, **given)


def test_rows_longer_than_positions_are_refused() -> None:
    """Where positions are learned."""
    with pytest.raises(PlanError, match="a row of 2,048 tokens is longer than the 1,024 positions"):
        plan("gpt2:small", length=2048)


def test_meshes() -> None:
    """Devices that no axis names are shards; what does not go up, and axes that there are not, are refused."""
    assert mesh_of({"tensor": 2}, 8) == Mesh(shard=4, tensor=2) and mesh_of({}, 4) == Mesh(shard=4)
    assert mesh_of({"data": 3}) == Mesh(data=3)
    with pytest.raises(PlanError, match="a mesh of 3 devices does not make up the 8"):
        mesh_of({"tensor": 3}, 8)
    with pytest.raises(PlanError, match="has the axes data, shard, context, expert, tensor"):
        mesh_of({"pipe": 2})
