"""Does it fit? The figure that binds, and what to change where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice, product

from anyformer.planning.counts import size_of
from anyformer.planning.devices import DEVICES, Device
from anyformer.planning.memory import Mesh, Step, peak
from anyformer.planning.serving import Load, serving_memory
from anyformer.spec import Attention, Block, FeedForward, RoutedExperts, Transformer

#: How much of a device's memory may be planned with; the rest is the allocator's and the libraries'.
USABLE = 0.9
#: No more devices than this are proposed, and no shorter a context.
MOST_DEVICES, SHORTEST = 4096, 128
#: Ranks that may share out each layer, which are those of a machine, and the experts of each.
TENSORS, EXPERTS = (1, 2, 4, 8), (1, 2, 4, 8, 16, 32, 64)
#: More changes than this are not named.
CHANGES = 4


@dataclass(frozen=True)
class Verdict:
    """Whether `needed` bytes fit the `usable` ones of a device; `binding`: the moment, or the part, that takes the
    most. `changes`: each alone would make it fit; empty where it does, or where nothing here would."""

    fits: bool
    needed: int
    usable: int
    binding: str
    changes: tuple[str, ...] = ()


def training_verdict(spec: Transformer, step: Step, device: Device) -> Verdict:
    """Whether a step of training fits each device of its mesh."""
    usable, (binding, needed) = round(USABLE * device.memory), peak(spec, step)
    if needed <= usable:
        return Verdict(True, needed, usable, binding)
    fitting = (words for words, changed in _other_steps(spec, step, usable) if peak(spec, changed)[1] <= usable)
    changes = [*islice(fitting, CHANGES - 1), *_larger_devices(needed, device)]
    return Verdict(False, needed, usable, binding, tuple(changes))


def _other_steps(spec: Transformer, step: Step, usable: int) -> Iterator[tuple[str, Step]]:
    """Steps that take less, those that cost least first."""
    fewer = [replace(step, rows=rows) for rows in _halves(step.rows, 1)]
    again = replace(step, checkpoint_activations=True)
    smallest, least = replace(again, rows=1), _words("activations computed again", step)
    yield from _first_fitting(fewer, spec, usable, lambda each: f"{_rows(each)} at a time instead of {step.rows}")
    if not step.checkpoint_activations:
        yield "activations computed again (a third more work)", again
        both = [replace(again, rows=each.rows) for each in fewer]
        yield from _first_fitting(
            both, spec, usable, lambda each: f"activations computed again, {_rows(each)} at a time"
        )
    if size_of(step.precision) > 2:
        yield "products in bfloat16", replace(step, precision="bfloat16")
        yield f"products in bfloat16, {least}", replace(smallest, precision="bfloat16")
    count = MOST_DEVICES + 1
    for plain, words in ((step, ""), (smallest, f", {least}")):
        spread = [replace(plain, mesh=mesh) for mesh in _larger_meshes(spec, step.mesh) if mesh.devices < count]
        for said, found in _first_fitting(spread, spec, usable, lambda each: _devices(each.mesh)):
            count = found.mesh.devices
            yield f"{said}{words}", found


def _words(words: str, step: Step) -> str:
    return words if step.rows == 1 else f"{words}, 1 row at a time"


def _first_fitting(
    steps: Iterable[Step], spec: Transformer, usable: int, say: Callable[[Step], str]
) -> Iterator[tuple[str, Step]]:
    found = next((step for step in steps if peak(spec, step)[1] <= usable), None)
    if found is not None:
        yield say(found), found


def _larger_meshes(spec: Transformer, mesh: Mesh) -> list[Mesh]:
    """More shards, and more tensor ranks where they divide the model, the fewest devices first."""
    widths = {number for stack in spec.stacks().values() for block in stack.pattern for number in _divided(block)}
    tensors = [size for size in TENSORS if mesh.tensor == 1 and all(number % size == 0 for number in widths)]
    experts = [size for size in EXPERTS if mesh.expert == 1 and _share_experts(spec, size)]
    shards = [mesh.shard << power for power in range(13)]
    sizes = product(shards, tensors or [mesh.tensor], experts or [mesh.expert])
    larger = [replace(mesh, shard=shard, tensor=tensor, expert=expert) for shard, tensor, expert in sizes]
    counted = [each for each in larger if mesh.devices < each.devices <= MOST_DEVICES]
    return sorted(counted, key=lambda each: (each.devices, each.tensor, each.expert))


def _share_experts(spec: Transformer, ranks: int) -> bool:
    blocks = [block for stack in spec.stacks().values() for block in stack.pattern]
    mixtures = [b.mixer for block in blocks for b in block.branches if isinstance(b.mixer, RoutedExperts)]
    return ranks == 1 or (bool(mixtures) and all(mixture.experts % ranks == 0 for mixture in mixtures))


def _divided(block: Block) -> Iterator[int]:
    for mixer in (branch.mixer for branch in block.branches):
        if isinstance(mixer, Attention):
            yield from (mixer.heads, mixer.kv_heads)
        elif isinstance(mixer, FeedForward):
            yield mixer.hidden


def _devices(mesh: Mesh) -> str:
    return f"{mesh.devices:,} devices: " + " x ".join(
        f"{axis} {size}" for axis, size in asdict(mesh).items() if size > 1
    )


def _halves(number: int, least: int) -> Iterator[int]:
    while (number := number // 2) >= least:
        yield number


def _rows(step: Step) -> str:
    return f"{step.rows} {'row' if step.rows == 1 else 'rows'}"


def serving_verdict(spec: Transformer, load: Load, device: Device) -> Verdict:
    """Whether what is served fits a device."""

    def needed(changed: Load) -> int:
        return sum(serving_memory(spec, changed).values())

    usable, memory = round(USABLE * device.memory), serving_memory(spec, load)
    binding = max(memory, key=lambda part: memory[part])
    if needed(load) <= usable:
        return Verdict(True, needed(load), usable, binding)
    changes: list[str] = []
    fewer = next((n for n in _halves(load.batch, 1) if needed(replace(load, batch=n)) <= usable), None)
    shorter = next((n for n in _halves(load.context, SHORTEST) if needed(replace(load, context=n)) <= usable), None)
    if fewer is not None:
        changes.append(f"{fewer:,} {'sequence' if fewer == 1 else 'sequences'} at a time instead of {load.batch:,}")
    if shorter is not None:
        changes.append(f"a context of {shorter:,} tokens instead of {load.context:,}")
    if size_of(load.dtype) > 2 and needed(replace(load, dtype="bfloat16")) <= usable:
        changes.append("weights and cache in bfloat16")
    if load.quantize_cache is None and needed(replace(load, quantize_cache="int8")) <= usable:
        changes.append("keys and values in 8 bits")
    changes += _larger_devices(needed(load), device)
    return Verdict(False, needed(load), usable, binding, tuple(changes[:CHANGES]))


def _larger_devices(needed: int, device: Device) -> list[str]:
    """The device with the least memory that would do."""
    enough = [each for each in DEVICES.values() if USABLE * each.memory >= needed and each.memory > device.memory]
    return [f"a device with more memory: {min(enough, key=lambda each: each.memory).name}"] if enough else []
