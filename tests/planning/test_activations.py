"""What a forward pass keeps is what planning says it keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from anyformer import families
from anyformer.model import build
from anyformer.planning.memory import Step, activations
from anyformer.spec import Transformer
from anyformer.spec.dropout import with_dropout

ROWS, TOKENS = 2, 128
#: How far off planning may be. Soft caps and windows go through kernels of which it knows the outlines; latent
#: attention is a family's own.
WITHIN = {"deepseek_v3": 0.15, "gemma2": 0.1, "modernbert": 0.06, "mistral": 0.06}
#: Of packed rows: how long documents are, which planning does not know, decides what windows and biases come to.
WITHIN_PACKED = WITHIN | dict.fromkeys(("bloom", "gemma3", "mistral", "modernbert", "mpt", "t5"), 0.13)


def kept_bytes(spec: Transformer, **inputs: Any) -> int:
    """Bytes of the storages that autograd keeps in a forward pass, those of parameters left out, and of the loss's."""
    model = build(spec, seed=0).train()
    head, model.head = model.head, None
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(x)
        return x

    ids = torch.randint(0, spec.output.embeddings.vocabulary, (ROWS, TOKENS))
    if spec.shape == "encoder-decoder":
        inputs["source"] = ids
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        hidden = model(ids, **inputs).hidden
    assert head is not None
    return sum(kept.values()) + hidden.nbytes


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("name", families.registry.registered())
def test_what_is_kept_is_what_is_foretold(name: str, packed: bool) -> None:
    """Within 4% for nearly every family's tiny model without dropout, whole rows and packed ones, by what autograd
    holds."""
    spec = with_dropout(families.registry.named(name)("tiny"), 0.0)
    documents = {"documents": ((40, 88), (TOKENS,))} if packed else {}
    if packed and spec.shape == "encoder-decoder":
        documents["source_documents"] = documents["documents"]
    real = kept_bytes(spec, **documents)
    foretold, _ = activations(spec, Step(rows=ROWS, tokens=TOKENS, packed=packed))
    assert foretold == pytest.approx(real, rel=(WITHIN_PACKED if packed else WITHIN).get(name, 0.04))
