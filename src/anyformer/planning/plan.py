"""A whole plan: what a model is, what it costs to train and to serve, and whether that fits a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import ceil
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from anyformer.errors import PlanError
from anyformer.planning import counts, devices
from anyformer.planning.devices import Device
from anyformer.planning.feasibility import Verdict, serving_verdict, training_verdict
from anyformer.planning.memory import MOMENTS, Mesh, Step, peak, training_memory
from anyformer.planning.reading import read_spec
from anyformer.planning.serving import Load, ServingTime, serving_memory, serving_time
from anyformer.planning.time import StepTime, step_time
from anyformer.spec import Transformer

#: The share of a device's rate of products that training and prompts are taken to attain: what Llama 3 405B's did on
#: H100s (Grattafiori et al. 2024, table 4: 38% to 43%).
ATTAINED = 0.4
#: Tokens to train on for each parameter, where nobody says how many: Hoffmann et al. 2022, table 3.
TOKENS_PER_PARAMETER = 20
#: Tokens of a row, and of a step (as GPT-3's smallest model's: Brown et al. 2020, table 2.1).
LENGTH, BATCH_TOKENS = 2048, 1 << 19
#: Micro-batches that memory is told for, in rows.
ROWS = (1, 2, 4, 8, 16, 32)


@runtime_checkable
class Described(Protocol):
    """A model, or anything else with a spec."""

    @property
    def spec(self) -> Transformer: ...


@dataclass(frozen=True)
class Flops:
    """FLOPs a token, the mean over a sequence of the plan's context (both sides of an encoder-decoder have it, and
    their tokens count alike). The backward pass is two forward ones; `decode_per_token` is the context's last token
    where a cache holds the others."""

    forward_per_token: int
    backward_per_token: int
    training_per_token: int
    parts: dict[str, int]
    decode_per_token: int | None


@dataclass(frozen=True)
class Training:
    """Training on one device of a mesh, or on all of it.

    - `memory`: bytes on each device, by moment of a step and by what they are. `by_rows`: the most bytes, for each
      number of rows at a time: as planned, with activations computed again, and with all logits at once.
    - `tokens`, `flops`: of the whole training. `time`: of a step; `hours`, `cost` (US dollars) of all steps, over all
      devices: None without a device, or a price.
    """

    step: Step
    batch_tokens: int
    memory: dict[str, dict[str, int]]
    peak_moment: str
    peak_bytes: int
    by_rows: dict[int, dict[str, int]]
    tokens: int
    flops: int
    time: StepTime | None
    hours: float | None
    cost: float | None
    verdict: Verdict | None


@dataclass(frozen=True)
class Serving:
    """Serving a load on one device. `memory`: bytes by what they are. `dollars_per_million_tokens`: of tokens that
    all sequences are given."""

    load: Load
    memory: dict[str, int]
    bytes: int
    time: ServingTime | None
    dollars_per_million_tokens: float | None
    verdict: Verdict | None


@dataclass(frozen=True)
class Plan:
    """What a model is and costs; `to_data` gives the same for JSON. Bytes of weights and cache are in `dtype`."""

    spec: Transformer
    context: int
    dtype: str
    parameters: counts.Parameters
    flops: Flops
    weight_bytes: int
    kv_bytes_per_token: int
    kv_bytes: int
    device: Device | None
    attained: float
    training: Training
    serving: Serving

    def to_data(self) -> dict[str, Any]:
        """Plain data: this plan's fields by their names, the spec by its shape and layers alone."""
        stacks = {name: stack.depth for name, stack in self.spec.stacks().items()}
        about = {"shape": self.spec.shape, "layers": stacks, "trained_context": self.spec.context}
        return about | {field.name: _plain(getattr(self, field.name)) for field in fields(self) if field.name != "spec"}


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def plan(
    model: str | Path | Transformer | Described,
    *,
    context: int | None = None,
    dtype: str | None = None,
    batch: int = 1,
    quantize_cache: str | None = None,
    device: Device | str | None = None,
    attained: float = ATTAINED,
    price: float | None = None,
    mesh: Mesh | None = None,
    rows: int = 1,
    length: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    tokens: float | None = None,
    flops: float | None = None,
    precision: str | None = None,
    optimizer: str = "adamw",
    average: bool = False,
    checkpoint_activations: bool = False,
) -> Plan:
    """What a model is, and what it costs to train and to serve.

    - `model`: a preset (`llama:135m`), the path of a spec.json, a recipe or a checkpoint's directory, a spec, or a
      model. Its costs are counted at `context` tokens: the one that it names, unless given.
    - Serving: `batch` sequences of that context at a time, weights and cache in `dtype` (as `precision`, that of the
      products of training: bfloat16, unless the device is no better at it than at float32); the cache in 8 bits with
      `quantize_cache="int8"`.
    - Training: `rows` of `length` tokens at a time on each device, `batch_tokens` a step, for `tokens` in all, or for
      as many as `flops` pay for (20 a parameter where neither is given), over a `mesh` of devices.
    - `device`: a name (`h100`) or a `Device`, for times, costs and what fits; of its rate of products, the share
      `attained` is counted with. `price`: dollars an hour for each, in place of the table's.

    Raises `PlanError` for a device that there is not and numbers that cannot be, `SpecError` for what is no model.
    """
    spec = _spec_of(model)
    if not 0 < attained <= 1:
        raise PlanError(f"a device attains a share of its rate, above 0 and up to 1, not {attained:g}")
    found = devices.find(device) if isinstance(device, str) else device
    if found is not None and price is not None:
        found = replace(found, price=price)
    best = found.precision if found is not None else "bfloat16"
    dtype, precision = dtype or best, precision or best
    context = context or counts.default_context(spec)
    counts.check_length(spec, context, "a context")
    step = _step(
        spec,
        rows=rows,
        tokens=length or min(LENGTH, counts.default_context(spec)),
        precision=precision,
        optimizer=optimizer,
        average=average,
        checkpoint_activations=checkpoint_activations,
        mesh=mesh or Mesh(),
        fused=found is not None and found.fused,
    )
    return Plan(
        spec=spec,
        context=context,
        dtype=dtype,
        parameters=counts.parameters(spec),
        flops=_flops(spec, context),
        weight_bytes=counts.weight_bytes(spec, dtype),
        kv_bytes_per_token=counts.kv_bytes(spec, 1, dtype=dtype, quantize=quantize_cache),
        kv_bytes=counts.kv_bytes(spec, context, dtype=dtype, quantize=quantize_cache),
        device=found,
        attained=attained,
        training=_training(spec, step, batch_tokens, tokens, flops, found, attained),
        serving=_serving(spec, Load(context, batch, dtype, quantize_cache), found, attained),
    )


def _spec_of(model: str | Path | Transformer | Described) -> Transformer:
    if isinstance(model, Transformer):
        return model
    return read_spec(model) if isinstance(model, str | Path) else model.spec


def _step(spec: Transformer, **said: Any) -> Step:
    """How a device takes a step; as the library trains, rows are packed. Raises `PlanError` for what cannot be."""
    step = Step(**said)
    if step.optimizer not in MOMENTS:
        raise PlanError(f"there is no optimizer '{step.optimizer}'; there are {', '.join(MOMENTS)}")
    counts.check_length(spec, step.tokens, "a row")
    return step


def _flops(spec: Transformer, context: int) -> Flops:
    forward, passed = counts.forward_flops(spec, context), context * len(spec.stacks())
    each = round(sum(forward.values()) / passed)
    last = None
    if spec.decoder is not None:
        last = sum(counts.forward_flops(spec, 1, source=context, cached=context - 1).values())
    return Flops(each, 2 * each, 3 * each, {part: round(flops / passed) for part, flops in forward.items()}, last)


def _training(
    spec: Transformer,
    step: Step,
    batch_tokens: int,
    tokens: float | None,
    flops: float | None,
    device: Device | None,
    attained: float,
) -> Training:
    row = 3 * sum(counts.forward_flops(spec, step.tokens, source=step.source).values())
    if tokens is None:
        tokens = flops / row * step.tokens if flops else TOKENS_PER_PARAMETER * counts.parameters(spec).total
    micro_batches = max(1, ceil(batch_tokens / (step.rows * step.tokens * step.mesh.rows)))
    step = replace(step, accumulates=micro_batches > 1)
    moment, most = peak(spec, step)
    time = hours = cost = None
    if device is not None:
        time = step_time(spec, step, device, micro_batches=micro_batches, attained=attained)
        hours = tokens / time.tokens * time.seconds / 3600
        cost = hours * step.mesh.devices * device.price if device.price is not None else None
    return Training(
        step=step,
        batch_tokens=micro_batches * step.rows * step.tokens * step.mesh.rows,
        memory=training_memory(spec, step),
        peak_moment=moment,
        peak_bytes=most,
        by_rows={rows: _by_rows(spec, replace(step, rows=rows)) for rows in ROWS},
        tokens=round(tokens),
        flops=round(tokens / step.tokens * row),
        time=time,
        hours=hours,
        cost=cost,
        verdict=training_verdict(spec, step, device) if device is not None else None,
    )


def _by_rows(spec: Transformer, step: Step) -> dict[str, int]:
    ways = {
        "kept": replace(step, checkpoint_activations=False),
        "computed_again": replace(step, checkpoint_activations=True),
        "whole_loss": replace(step, chunked_loss=False),
    }
    return {name: peak(spec, way)[1] for name, way in ways.items()}


def _serving(spec: Transformer, load: Load, device: Device | None, attained: float) -> Serving:
    memory = serving_memory(spec, load)
    time = serving_time(spec, load, device, attained=attained) if device is not None else None
    dollars = None
    if device is not None and device.price is not None and time is not None and time.tokens_per_second is not None:
        dollars = device.price / 3600 / time.tokens_per_second * 1e6
    verdict = serving_verdict(spec, load, device) if device is not None else None
    return Serving(load, memory, sum(memory.values()), time, dollars, verdict)


def mesh_of(sizes: Mapping[str, int], count: int | None = None) -> Mesh:
    """A mesh of the axes named; devices beyond theirs, of `count` in all, are shards. Raises `PlanError` where they do
    not go up."""
    for axis, size in sizes.items():
        if axis not in Mesh.__dataclass_fields__ or size < 1:
            raise PlanError(
                f"a mesh has the axes {', '.join(Mesh.__dataclass_fields__)}, 1 or more each; not {axis}={size}"
            )
    mesh = Mesh(**sizes)
    if count is None or count == mesh.devices:
        return mesh
    left, rest = divmod(count, mesh.devices)
    if rest or not left or mesh.shard > 1:
        raise PlanError(f"a mesh of {mesh.devices} devices does not make up the {count} there are; change one of them")
    return replace(mesh, shard=left)
