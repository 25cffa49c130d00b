"""The plan for clusters, docs/cluster.md, by planning's own arithmetic.

    python docs/cluster.py

tests/test_cluster.py holds the page to the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path

from anyformer import families
from anyformer.planning import Mesh, Step, parameters, peak, shapes, training_memory
from anyformer.planning.devices import DEVICES, Device
from anyformer.planning.time import step_time
from anyformer.spec import Transformer

PAGE = Path(__file__).resolve().parent / "cluster.md"
#: What a device by itself attains of its peak rate in bfloat16: an assumption, from which every rate below follows.
ATTAINED = 0.5
#: How much of a device's memory may be planned with; the rest is the allocator's and the libraries'.
USABLE = 0.9
GB = 1e9
#: Bytes of a number as weights are kept.
WIDE = 4


@dataclass(frozen=True)
class Plan:
    """A model to train, and on what."""

    title: str
    preset: str
    device: str
    mesh: Mesh
    rows: int
    micro_batches: int
    training_tokens: float
    checkpoint_activations: bool = True
    tokens: int = 8192

    @property
    def step(self) -> Step:
        """How each device takes a step."""
        return Step(
            rows=self.rows,
            tokens=self.tokens,
            precision="bfloat16",
            checkpoint_activations=self.checkpoint_activations,
            accumulates=self.micro_batches > 1,
            fused=True,
            mesh=self.mesh,
        )


PLANS = (
    Plan("LLaMA 3 8B", "llama:8b", "h100", Mesh(shard=8), 2, 8, 1.6e11),
    Plan("LLaMA 3 8B", "llama:8b", "h200", Mesh(shard=8), 1, 16, 1.6e11, checkpoint_activations=False),
    Plan("LLaMA 3 70B", "llama:70b", "h100", Mesh(shard=32, tensor=2), 1, 16, 1.4e12),
    Plan("LLaMA 3 70B", "llama:70b", "h200", Mesh(shard=64), 2, 4, 1.4e12),
    Plan("Mixtral 8x22B", "mixtral:8x22b", "h100", Mesh(data=2, shard=64, expert=8), 1, 2, 2e12),
)

HEAD = """# The plan for 8, 64 and 1,024 GPUs

Written by `python docs/cluster.py` from the functions of [`planning/memory.py`](../src/anyformer/planning/memory.py) \
and [`planning/time.py`](../src/anyformer/planning/time.py); nothing here was measured on such machines. The same \
functions answer for any other model, mesh and device.

What the figures follow from:

- **Memory**: weights, gradients and moments are float32 and divided over the mesh; products are bfloat16, and layers \
are gathered as that. What a forward pass keeps is counted by the shape of every part. On CPUs the plan stays within \
6% of the measured peak (`python benchmarks/memory.py`). A plan fits where it takes at most {usable:.0%} of a device's \
memory. Before the first step every GPU makes its own part of the weights, and holds one parameter whole beside it.
- **Time**: a device by itself is taken to attain {attained:.0%} of its peak rate in bfloat16, everything between \
products included. That is an assumption; where `anyformer train` shows another share of the peak on one device, the \
times below change with it. Layers that are computed again cost a third more products, which MFU does not count.
- **Links**: {near:.0f} GB/s to the other GPUs of a machine, {far:.0f} GB/s to other machines, each way, for each GPU. \
What ranks of `tensor`, `context` and `expert` send is waited for, and so is the sum over `data`; what `shard` gathers \
and scatters runs beside the products, and is waited for as far as it takes longer.
- **MFU**: the model's FLOPs (three forward passes, attention counted exactly) over what all devices could do in the \
time of the step.

The lines of a plan are a recipe's as they stand; what is left to say is where the run lives, its text and its \
tokenizer, which brings the vocabulary (here the preset's own). `anyformer plan RECIPE.toml --device h100 --devices 64 \
--utilisation {attained}` then plans that recipe. How to launch is another page: [distributed.md](distributed.md).
"""


def page() -> str:
    """docs/cluster.md."""
    device = DEVICES["h100"]
    head = HEAD.format(usable=USABLE, attained=ATTAINED, near=device.near / GB, far=device.far / GB)
    return "\n".join([head, *overview(), *(line for plan in PLANS for line in section(plan))])


def overview() -> Iterator[str]:
    """All plans, a row each."""
    yield "| model | GPUs | mesh | memory a GPU | tokens/s | MFU | tokens | time |"
    yield "|---|---|---|---|---|---|---|---|"
    for plan in PLANS:
        spec, device = _spec(plan), DEVICES[plan.device]
        time = step_time(spec, plan.step, device, micro_batches=plan.micro_batches, attained=ATTAINED)
        rate = time.tokens / time.seconds
        days = plan.training_tokens / rate / 86400
        memory = peak(spec, plan.step)[1]
        yield (
            f"| {plan.title} | {plan.mesh.devices:,} × {device.name} | {_mesh(plan.mesh)} | {memory / GB:.0f} GB "
            f"| {rate:,.0f} | {time.mfu:.0%} | {plan.training_tokens / 1e9:,.0f}B | {days:,.0f} days |"
        )


def section(plan: Plan) -> Iterator[str]:
    """One plan: recipe, memory, what is sent, time."""
    spec, device = _spec(plan), DEVICES[plan.device]
    time = step_time(spec, plan.step, device, micro_batches=plan.micro_batches, attained=ATTAINED)
    moment, most = peak(spec, plan.step)
    counted = parameters(spec)
    active = f", {counted.active / 1e9:.1f}B active" if counted.active < counted.total else ""
    yield f"\n## {plan.title} on {plan.mesh.devices:,} × {device.name}\n"
    yield f"{counted.total / 1e9:.1f}B parameters{active}; rows of {plan.tokens:,} tokens.\n"
    yield "```toml"
    yield f'model.preset = "{plan.preset}"'
    yield f"training.tokens = {plan.training_tokens:_.0f}"
    yield f"training.sequence_length = {plan.tokens}"
    yield f"training.batch_tokens = {time.tokens}"
    yield f"training.micro_batch_tokens = {plan.rows * plan.tokens}"
    yield 'training.precision = "bfloat16"'
    yield f"training.checkpoint_activations = {str(plan.checkpoint_activations).lower()}"
    for axis, size in _axes(plan.mesh):
        yield f"scale.{axis} = {size}"
    yield "```\n"
    parts = training_memory(spec, plan.step)[moment]
    yield "| memory of a GPU | GB |"
    yield "|---|---|"
    yield from (f"| {what} | {bytes_ / GB:.1f} |" for what, bytes_ in parts.items() if bytes_)
    yield f"| **at most, at the moment '{moment}'**, of {_usable(device) / GB:.0f} usable | **{most / GB:.1f}** |"
    largest = max(prod(shape) for shape in shapes(spec).values()) * WIDE
    yield f"\nBefore the first step: its part of the weights and one parameter whole, at most {largest / GB:.1f} GB.\n"
    yield "| a step | sent by a GPU, GB | seconds |"
    yield "|---|---|---|"
    yield f"| products, at {ATTAINED:.0%} of {device.flops / 1e12:,.0f} TFLOP/s | | {time.compute:.2f} |"
    for axis, seconds in time.sending.items():
        yield f"| `{axis}` | {time.sent[axis] / GB:.1f} | {seconds:.2f} |"
    yield f"| waited for | | {time.waited:.2f} |"
    yield f"| **{time.tokens:,} tokens** | | **{time.seconds:.2f}** |"
    yield ""


def fits(plan: Plan) -> bool:
    """Whether a plan stays within what may be used of its devices' memory."""
    return peak(_spec(plan), plan.step)[1] <= _usable(DEVICES[plan.device])


def _usable(device: Device) -> float:
    return USABLE * device.memory


def _spec(plan: Plan) -> Transformer:
    spec = families.preset(plan.preset)
    assert spec is not None
    return spec


def _axes(mesh: Mesh) -> list[tuple[str, int]]:
    sizes = ((field.name, getattr(mesh, field.name)) for field in fields(mesh))
    return [(name, size) for name, size in sizes if size > 1]


def _mesh(mesh: Mesh) -> str:
    return " × ".join(f"{axis} {size}" for axis, size in _axes(mesh))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
