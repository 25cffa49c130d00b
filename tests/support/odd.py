"""Odd random models of any family, here and in transformers: sizes that divide oddly, everything optional switched on.

Nothing here knows a family. A family's `tiny` preset is changed at random, and a change stays if the family's own
format can express it; so a family is tested in all that it claims by being registered.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from anyformer.errors import SpecError
from anyformer.families import Family, registered
from anyformer.families.names import fill
from anyformer.planning.shapes import shapes
from anyformer.spec import Transformer

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
UNWINDOWED = {"attention": {"window": None}}
DENSE = {"kind": "feed_forward", "hidden": 23, "activation": "silu", "gated": True}


def architectures() -> list[tuple[str, str]]:
    """(family, transformers class) for every class that both sides know."""
    transformers = reference()
    pairs = [(family.name, name) for family in registered().values() for name in family.architectures]
    return [(family, name) for family, name in pairs if hasattr(transformers, name)]


def reference() -> Any:
    """transformers, kept quiet."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Its grouped products take rows of whole 16 bytes only, and odd ones are not; it then computes expert by expert.
    transformers.PreTrainedModel._grouped_mm_can_dispatch = _refuse_grouped_products
    return transformers


def _refuse_grouped_products(self: Any) -> bool:
    raise ImportError("widths are odd")


def odd_spec(family: Family, seed: int, architecture: str | None = None) -> Transformer:
    """A small random spec that the family's format can express."""
    chance = random.Random(seed)
    name = architecture or next(iter(family.architectures))
    spec = family("tiny", architectures=[name])
    for change in changes(chance, seed):
        before = apply(spec.model_dump(), {})
        if (after := apply(before, change)) == before:
            continue
        try:
            changed = Transformer.from_data(after)
            family.express(changed)
        except SpecError:
            continue
        spec = changed
    return spec


def changes(chance: random.Random, seed: int) -> Iterator[dict[str, dict[str, Any]]]:
    """Random changes, as {what kind of part: fields to set, or functions of the part}; sizes first, as later ones
    depend on them. What is one of two, such as tied or not, goes by the seed, so that two seeds see both."""
    heads, width = chance.choice((3, 5, 6)), chance.choice((6, 10, 14))
    attention = {"heads": heads, "kv_heads": heads, "head_dim": width}
    dim, depth = heads * width, chance.choice((1, 2, 3))
    sizes = {"stack": {"dim": dim}, "attention": attention}
    yield sizes
    yield {**sizes, "language_model": {"scale": dim**-0.5}}
    yield {**sizes, "embeddings": {"scale": dim**0.5}}
    yield {"stack": {"depth": depth}}
    yield {**sizes, "feed_forward": {"hidden": 4 * heads * width}}
    yield {"embeddings": {"vocabulary": chance.choice((67, 101, 131))}}
    yield {"attention": {"kv_heads": 3 if heads == 6 else 1}}
    yield {"attention": {"head_dim": width + 2}}
    yield {"feed_forward": {"hidden": chance.choice((19, 33, 50))}}
    yield {"feed_forward": {"activation": chance.choice(ACTIVATIONS), "gated": chance.random() < 0.5}}
    yield {"feed_forward": {"activation": chance.choice(ACTIVATIONS)}}
    yield {"attention": {"bias": True, "output_bias": True}}
    yield {"feed_forward": {"bias": True}}
    for kind in ("rms", "layer"):
        yield {kind: {"eps": chance.choice((1e-3, 1e-4))}}
    size = 81 + chance.randrange(7)
    yield {"learned": {"size": size}, "transformer": {"context": size}}
    yield {"learned": {"size": 83, "offset": chance.randrange(1, 4)}, "transformer": {"context": 83}}
    yield {"embeddings": {"segments": 3}}
    yield {"relative_buckets": {"buckets": 2 * chance.randrange(5, 9), "max_distance": 40 + chance.randrange(50)}}
    yield {"decoder": {"depth": chance.choice((1, 3))}}
    yield {"rotary": {"base": chance.choice((500.0, 1e6))}}
    yield {"rotary": {"dim": width - 2}}
    for pairs in (width // 2 - 1, width // 2, width // 2 + 1):
        # Every text is beyond the original context, or none is: in between, what is cached is not what comes of it.
        divisors = {"short": [1.0 + 0.1 * i for i in range(pairs)], "long": [1.0 + i * i for i in range(pairs)]}
        scaling = {"kind": "longrope", **divisors, "factor": 8.0, "original_context": 4 if seed % 4 == 1 else 4096}
        yield {"rotary": {"scaling": scaling if seed % 2 else None}}
    if seed % 4 == 2:
        scaling = {"kind": "yarn", "factor": 4.0, "original_context": 16, "beta_fast": 4.0}
        yield {"rotary": {"scaling": scaling}, "windowed position": {"scaling": None}}
        yield {"rotary": {"scaling": scaling}}
    if seed % 4 == 1:
        scaling = {"kind": "llama3", "factor": 3.0, "low": 1.0, "high": 4.0, "original_context": 32}
        yield {"rotary": {"scaling": scaling}, "windowed position": {"scaling": None}}
        yield {"rotary": {"scaling": scaling}}
    if seed % 2:
        yield {"attention": {"scale": 1.0}}
        yield {"pattern": {"parallel": False}}
    if seed % 4 == 3:
        yield {"attention": {"bias": False, "output_bias": False}}
    yield {"windowed position": {"base": chance.choice((70.0, 2e4))}}
    for window in ((5, None), (4, 4)):
        yield {"windowed": {"window": window}}
    yield {"attention": {"scale": chance.choice((7, 29)) ** -0.5}}
    if seed % 4 != 2:
        yield {"attention": {"soft_cap": 1.5}}
    yield {"language_model": {"soft_cap": None if seed % 4 == 2 else 2.5}}
    if seed % 4 == 3:
        yield {"embeddings": {"scale": None}}
    if seed % 4 > 1:
        yield {"transformer": {"shared_embedding": False, "decoder": with_fewer_tokens}}
    yield {"language_model": {"tied": bool(seed % 2)}}
    yield {"language_model": {"bias": bool(seed % 2)}}
    yield {"masked_language_model": {"tied": bool(seed % 2)}}
    yield {"masked_language_model": {"dense_bias": bool(seed % 2)}}
    if seed % 4 > 1:
        yield {"language_model": {"scale": None}}
    for head in ("sequence_classification", "token_classification"):
        yield {head: {"labels": chance.randrange(3, 7)}}
    yield {"attention": {"window": (chance.randrange(3, 9), None) if seed % 2 else None}}
    if seed % 4 == 1:
        yield {"stack": {"pattern": lambda stack: [*stack["pattern"], *apply(stack["pattern"], UNWINDOWED)]}}
    if seed % 2:
        yield {"stack": {"pattern": lambda stack: [*stack["pattern"], *without_experts(stack["pattern"])]}}
    top_k, hidden = chance.choice((2, 3)), chance.choice((12, 19))
    yield {"routed": {"experts": 5, "top_k": top_k, "hidden": hidden, "balance": 0.03}}
    yield {"routed": {"normalize": seed % 4 > 1}}
    yield {"routed": {"limit": 0.4, "gain": 1.3}}
    activation = chance.choice(ACTIVATIONS)
    yield {kind: {"activation": activation} for kind in ("feed_forward", "routed")}
    grouped = {"groups": 3, "top_groups": 2, "shared_hidden": 2 * hidden, "factor": 1.7}
    yield {"grouped_experts": {"experts": 6, "top_k": top_k, "hidden": hidden, **grouped}}
    if seed % 2:
        yield {"grouped_experts": {"groups": 1, "top_groups": 1}}
    latent, heads = chance.choice((5, 11)), chance.choice((3, 5))
    widths = {"latent": latent, "key_dim": 7, "rotary_dim": width - 2, "value_dim": 9}
    yield {"latent_attention": {"heads": heads, **widths}}
    yield {"latent_attention": {"query_latent": 13 if seed % 2 else None, "bias": seed % 4 > 1}}
    yield {"latent_attention": {"mscale": 0.7}}
    yield {"rotary": {"interleaved": seed % 4 != 1}}


def apply(data: Any, change: dict[str, dict[str, Any]], name: str = "transformer") -> Any:
    """`data` with the fields of every part whose kind, or whose name in the spec, is in `change`; the parts of a tuple
    have the name of the tuple, attention with a window is `windowed`, its position `windowed position`, and any mixture
    of experts is `routed`."""
    if isinstance(data, list | tuple):
        return [apply(item, change, name) for item in data]
    if not isinstance(data, dict):
        return data
    within = "windowed " if data.get("window") else ""
    data = {key: apply(value, change, within + key) for key, value in data.items()}
    kinds = [data.get("kind"), name, "stack" if name in ("encoder", "decoder") else None]
    kinds += ["windowed"] if within else []
    kinds += ["routed"] if "top_k" in data else []
    for kind in kinds:
        fields = change.get(kind, {}) if kind is not None else {}
        data |= {key: value(data) if callable(value) else value for key, value in fields.items()}
    return data


def with_fewer_tokens(model: Any) -> Any:
    """The decoder of an encoder-decoder, with a vocabulary of its own; any other as it is."""
    decoder = model["decoder"]
    if model["encoder"] is None or decoder is None:
        return decoder
    return {**decoder, "embeddings": {**decoder["embeddings"], "vocabulary": 59}}


def without_experts(data: Any) -> Any:
    """`data` with a feed-forward for each mixture of experts."""
    if isinstance(data, list | tuple):
        return [without_experts(item) for item in data]
    if not isinstance(data, dict):
        return data
    return DENSE if "top_k" in data else {key: without_experts(value) for key, value in data.items()}


def reference_model(family: Family, spec: Transformer, architecture: str, seed: int, **attributes: Any) -> Any:
    """The same model in transformers, every parameter at random (its own start leaves biases at nought)."""
    transformers = reference()
    said = {**family.express(spec), "architectures": [architecture], "pad_token_id": 0, **attributes}
    if "pad_token_id" in family.write(spec):
        said["pad_token_id"] = family.write(spec)["pad_token_id"]
    config = transformers.AutoConfig.for_model(**said)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, architecture)(config).eval()
    untie(model, spec)
    train_buffers(model, family, spec)
    with torch.no_grad():
        for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
            parameter.add_(0.3 * torch.randn_like(parameter) / max(1, parameter.shape[-1]) ** 0.25)
    return model


def untie(model: Any, spec: Transformer) -> None:
    """transformers always ties T5 when it builds it, and unties it where a file holds two matrices."""
    output = model.get_output_embeddings()
    if getattr(spec.head, "tied", True) is False and output.weight is model.get_input_embeddings().weight:
        output.weight = torch.nn.Parameter(output.weight.detach().clone())


def train_buffers(model: Any, family: Family, spec: Transformer) -> None:
    """transformers keeps some of what is learned as buffers, which have no gradient to compare."""
    learned = {name for line in fill(family.tensors(spec), shapes(spec)) for name in line.saved}
    for name, buffer in list(model.named_buffers()):
        if name in learned:
            module, _, own = name.rpartition(".")
            delattr(model.get_submodule(module), own)
            model.get_submodule(module).register_parameter(own, torch.nn.Parameter(buffer))


def save_reference(model: Any, directory: Path) -> Path:
    """Save as transformers does."""
    model.save_pretrained(directory)
    return directory
