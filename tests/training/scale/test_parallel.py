"""What is gathered of a model that lies over processes, and in which type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import anyformer as af
from anyformer.model.laid import local
from anyformer.training.scale.meshes import Meshes
from anyformer.training.scale.parallel import _shard
from anyformer.training.scale.sizes import ALONE


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_layers_are_gathered_in_the_precision_of_the_run(one_rank: None, precision: str) -> None:
    """And computed with as they come, the stream and all that is kept and learned being float32."""
    model = af.build(af.families.llama("tiny"), seed=0).train()
    _shard(model, Meshes("cpu", ALONE), precision)
    seen: dict[str, torch.dtype] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            weight = getattr(module, "weight", None)
            seen.update({f"{name} reads": args[0].dtype} | ({} if weight is None else {name: weight.dtype}))

        return hook

    layer = model.decoder.layers[1]
    layer.register_forward_pre_hook(note("layer"))
    layer.attention.query.register_forward_pre_hook(note("query"))
    model.decoder.embeddings.tokens.register_forward_pre_hook(note("embeddings"))
    ids = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        loss = model(ids, targets=ids).loss
    loss.backward()
    assert seen["query"] == getattr(torch, precision)
    assert seen["layer reads"] == seen["embeddings"] == torch.float32
    assert all(local(p).dtype == local(p.grad).dtype == torch.float32 for p in model.parameters())
