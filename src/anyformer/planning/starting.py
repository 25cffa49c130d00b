"""Where to start from: a spec of so many parameters, and a recipe that spends a budget on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, log, log2
from typing import Any

from anyformer.errors import PlanError
from anyformer.families import registry
from anyformer.planning.counts import forward_flops
from anyformer.planning.devices import Device
from anyformer.planning.feasibility import USABLE
from anyformer.planning.memory import Mesh, Step, peak
from anyformer.planning.shapes import count
from anyformer.spec import Transformer
from anyformer.toml import to_toml

#: Width over depth: loss hardly changes over a wide range around it (Kaplan et al. 2020, figure 5).
ASPECT = 64
#: Vocabularies to choose from; the tables of a small model would be most of it with a large one.
VOCABULARIES, TABLES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536), 0.25
#: Up to this size the output matrix is the embedding table.
TIED = 1.5e9
#: Lengths of training sequences, for models of at least so many parameters.
LENGTHS = ((0, 256), (1e7, 512), (1e8, 1024), (5e8, 2048), (5e9, 4096))
SMALLEST, FEWEST_STEPS = 50_000, 100


@dataclass(frozen=True)
class Start:
    """A spec near the parameters wanted, and a recipe that trains it for the budget: `recipe` as data, `text` as TOML
    with its comments."""

    spec: Transformer
    recipe: dict[str, Any]
    text: str


def spec_of_size(parameters: float, length: int | None = None) -> Transformer:
    """LLaMA's architecture (grouped queries, SwiGLU, RMS norms, rotary positions) at the size nearest to so many
    parameters in all. Raises `PlanError` for fewer than there can be."""
    if parameters < SMALLEST:
        raise PlanError(
            f"{parameters:,.0f} parameters make no language model; the least planned for is {SMALLEST:,}, for which "
            f"the budget has to be larger"
        )
    length = length or length_for(parameters)

    def distance(spec: Transformer) -> float:
        assert spec.decoder is not None
        shape = abs(log(spec.decoder.dim / spec.decoder.depth / ASPECT))
        return abs(log(count(spec) / parameters)) + 0.06 * shape

    return min(_candidates(parameters, length), key=distance)


def length_for(parameters: float) -> int:
    """Tokens of a training sequence, for a model of so many parameters."""
    return max(length for least, length in LENGTHS if parameters >= least)


def _candidates(parameters: float, length: int) -> Iterator[Transformer]:
    """Widths about as deep as they usually are, two depths each."""
    guess = (parameters * ASPECT / 12) ** (1 / 3)
    for dim in _widths(0.5 * guess, 1.8 * guess):
        vocabulary = max((size for size in VOCABULARIES if size * dim <= TABLES * parameters), default=VOCABULARIES[0])
        one, two = (count(_llama(dim, depth, vocabulary, parameters < TIED, length)) for depth in (1, 2))
        wanted = max(1.0, 1 + (parameters - one) / (two - one))
        for depth in {int(wanted), ceil(wanted)}:
            yield _llama(dim, depth, vocabulary, parameters < TIED, length)


def _widths(least: float, most: float) -> list[int]:
    """Round widths between two; the narrowest there is where there would be none."""
    steps = ((0, 32), (128, 64), (512, 128), (1024, 256), (2048, 512))
    ends = [end for end, _ in steps[1:]] + [1 << 17]
    widths = [dim for (begin, step), end in zip(steps, ends) for dim in range(begin + step, end + 1, step)]
    return [dim for dim in widths if least <= dim <= most] or [min(widths, key=lambda dim: abs(dim - least))]


def _llama(dim: int, depth: int, vocabulary: int, tied: bool, length: int) -> Transformer:
    head_dim = 32 if dim < 512 else 64 if dim < 2048 else 128
    heads = dim // head_dim
    shared = next(size for size in (4, 3, 2, 1) if heads % size == 0)
    return registry.named("llama").parse(
        {
            "hidden_size": dim,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // shared,
            "head_dim": head_dim,
            "intermediate_size": ceil(8 * dim / 3 / 32) * 32,
            "vocab_size": vocabulary,
            "max_position_embeddings": length,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": tied,
        },
        where="the model to start from",
    )[0]


def start(
    flops: float, parameters: float, *, device: Device | None = None, devices: int = 1, name: str = "recipe.toml"
) -> Start:
    """A spec near so many parameters, and a recipe, to be called `name`, that spends `flops` on it, on so many of a
    device."""
    spec = spec_of_size(parameters)
    assert spec.decoder is not None and spec.context is not None
    length = spec.context
    tokens = flops / (3 * sum(forward_flops(spec, length).values()) / length)
    batch = batch_tokens(flops, tokens, length, devices)
    step = _step(spec, length, batch, device, devices)
    training: dict[str, Any] = {
        "objective": "causal",
        "flops": flops,
        "batch_tokens": batch,
        "micro_batch_tokens": step.rows * length,
        "sequence_length": length,
        "optimizer": "adamw",
        "schedule": "cosine",
        "warmup": 0.02,
        "final": 0.1,
        "precision": step.precision,
    }
    if step.checkpoint_activations:
        training["checkpoint_activations"] = True
    recipe: dict[str, Any] = {
        "tokenizer": {"train": {"vocabulary": spec.decoder.embeddings.vocabulary}},
        "run": {"directory": "run"},
        "model": {"spec": short(spec)},
        "data": {"train": "texts"},
        "training": training,
    }
    if step.mesh.shard > 1:
        recipe["scale"] = {"shard": step.mesh.shard}
    return Start(spec, recipe, _heading(spec, flops, tokens, device, devices, name) + to_toml(recipe))


def batch_tokens(flops: float, tokens: float, length: int, devices: int = 1) -> int:
    """Tokens of a step for a budget: about 0.292·C^0.3271 (DeepSeek-AI 2024, eq. 1), at most a hundredth of them all, a
    power of two of rows on every device."""
    rows = min(0.292 * flops**0.3271, tokens / FEWEST_STEPS) / (length * devices)
    return length * devices * 2 ** max(0, round(log2(rows)))


def _step(spec: Transformer, length: int, batch: int, device: Device | None, devices: int) -> Step:
    """As many rows at a time as fit, where the device is known; else few. What does not fit is computed again, then
    sharded over the devices."""
    rows = max(1, batch // length // devices)
    precision = device.precision if device is not None else "float32"
    plain = Step(rows, length, precision=precision, accumulates=True, fused=device is not None and device.fused)
    if device is None:
        return replace(plain, rows=min(rows, max(1, 8192 // length)))
    sizes = [rows >> halved for halved in range(rows.bit_length())]
    meshes = [Mesh(data=devices)] + ([Mesh(shard=devices)] if devices > 1 else [])
    ways = [replace(plain, mesh=mesh, checkpoint_activations=again) for mesh in meshes for again in (False, True)]
    fitting = (
        replace(way, rows=size)
        for way in ways
        for size in sizes
        if peak(spec, replace(way, rows=size))[1] <= USABLE * device.memory
    )
    return next(fitting, replace(ways[-1], rows=1))


def short(spec: Transformer) -> dict[str, Any]:
    """A spec as people would write it: what is as it would be anyhow is left out."""

    def kinds(data: Any, whole: Any) -> Any:
        # A kind is a default too, and tells which default the others are.
        if isinstance(data, dict):
            kept = {name: kinds(value, whole[name]) for name, value in data.items()}
            return ({"kind": whole["kind"]} if "kind" in whole else {}) | kept
        return [kinds(each, other) for each, other in zip(data, whole)] if isinstance(data, list) else data

    return kinds(spec.model_dump(mode="json", exclude_defaults=True), spec.model_dump(mode="json"))


def _heading(spec: Transformer, flops: float, tokens: float, device: Device | None, devices: int, name: str) -> str:
    assert spec.decoder is not None
    on = f" on {devices} x {device.name}" if device is not None else ""
    run = f"torchrun --nproc-per-node {devices} -m anyformer train" if devices > 1 else "anyformer train"
    return (
        f"# {count(spec):,} parameters, {spec.decoder.depth} layers {spec.decoder.dim} wide, and {tokens:,.0f} tokens: "
        f"{flops:.3g} FLOPs{on}.\n"
        f"#\n"
        f"#     {run} {name} --set 'data.train=\"path/to/texts\"' --set 'run.directory=\"run\"'\n"
        f"\n"
    )
