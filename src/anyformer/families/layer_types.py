"""`layer_types` in a config.json: which layers attend within a window and which to everything, as a pattern; and rotary
positions where each kind has its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any

from anyformer.errors import SpecError
from anyformer.families.config import Config
from anyformer.families.family import given
from anyformer.families.rotary import rotary, rotary_attributes
from anyformer.spec import Attention, Block, Rotary, Stack

LOCAL, GLOBAL = "sliding_attention", "full_attention"


def read_kinds(config: Config, depth: int, usual: Sequence[str], older: str = "") -> tuple[str, ...]:
    """One cycle of the kinds of layers: `usual` if `layer_types` is absent or says the same, else the shortest that
    repeats to what it says. `older` is an attribute that `usual` was read from, which must not contradict it."""
    said = config.value("layer_types", default=None)
    if said is None:
        return tuple(usual)
    if not isinstance(said, list) or len(said) != depth or not all(kind in (LOCAL, GLOBAL) for kind in said):
        config.refuse(f"layer_types must hold '{LOCAL}' or '{GLOBAL}' for each of num_hidden_layers={depth}")
    cycles = (usual, *(said[:length] for length in range(1, depth + 1)))
    found = next(cycle for cycle in cycles if said == [cycle[index % len(cycle)] for index in range(depth)])
    if config.has(older) and found is not usual:
        config.refuse(f"layer_types and {older} contradict each other; remove one of them")
    return tuple(found)


def pattern(kinds: Sequence[str], blocks: Mapping[str, Block]) -> tuple[Block, ...]:
    """The blocks of a cycle of kinds, equal neighbours as one."""
    return tuple(blocks[kind].replace(repeat=len(list(run))) for kind, run in groupby(kinds))


def write_kinds(stack: Stack) -> list[str]:
    """What `layer_types` says of a stack."""
    return [LOCAL if attention_of(block).window is not None else GLOBAL for block in stack.layers()]


def attentions(stack: Stack) -> dict[str, Attention]:
    """The attention of each kind of layer that there is."""
    mixers = [attention_of(block) for block in stack.pattern]
    return {LOCAL if mixer.window is not None else GLOBAL: mixer for mixer in mixers}


def attention_of(block: Block) -> Attention:
    """The self-attention of a layer. Raises `SpecError` where there is none."""
    for branch in block.branches:
        if branch.name == "attention" and isinstance(branch.mixer, Attention):
            return branch.mixer
    raise SpecError("it knows no layers without attention")


def read_rotary(
    config: Config,
    names: Mapping[str, str],
    bases: Mapping[str, float],
    *,
    scaled: Collection[str],
    head_dim: int,
    context: int,
) -> dict[str, Rotary]:
    """The positions of each kind of layer: `rope_parameters` holds an object for each, the older form a base for each
    under one of `names`, and one `rope_scaling` for those `scaled`. `bases` are the family's defaults."""
    parameters = config.section("rope_parameters")
    scaling = config.section("rope_scaling")
    found = {}
    for kind, name in names.items():
        inner, base = parameters.section(kind), config.number(name, default=None)
        for section in (inner, scaling):
            section.taken |= section.attributes.keys()
        if base is not None and inner.has("rope_theta") and inner.attributes["rope_theta"] != base:
            config.refuse(f"{name} and {inner.path}rope_theta differ; remove one of them")
        said = {"rope_theta": base, "rope_parameters": inner.attributes}
        said |= {"rope_scaling": scaling.attributes} if kind in scaled else {}
        alone = Config(said, f"{config.where} ({kind})")
        found[kind] = rotary(alone, base=bases[kind], head_dim=head_dim, context=context)
        alone.finish({}, {})
    return found


def write_rotary(stack: Stack, names: Mapping[str, str]) -> dict[str, Any]:
    """What `read_rotary` reads, in the older form."""
    found = {kind: given(mixer.position, Rotary, "rotary positions") for kind, mixer in attentions(stack).items()}
    scaling = rotary_attributes(found.get(GLOBAL) or found[LOCAL])["rope_scaling"]
    return {"rope_scaling": scaling, **{names[kind]: position.base for kind, position in found.items()}}
