"""A stack's layers computed again in the backward pass: the same gradients, for less memory."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from odd_specs import odd_model
from torch import Tensor

from anyformer import families, spec
from anyformer.model import Transformer, build

VOCABULARY = 37
DOCUMENTS = ((5, 4), (9,))
#: With dropout; a table of relative positions that layers share; experts that hand up a loss.
MODELS: dict[str, spec.Transformer] = {
    "gpt2": families.gpt2("tiny", vocab_size=VOCABULARY),
    "bert": families.bert("tiny", vocab_size=VOCABULARY),
    "t5": families.t5("tiny", vocab_size=VOCABULARY),
    "mixtral": families.mixtral("tiny", vocab_size=VOCABULARY, router_aux_loss_coef=0.1),
    "deepseek_v3": families.deepseek_v3("tiny", vocab_size=VOCABULARY),
}


def drawn_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def step(model: Transformer, inputs: dict[str, Any], narrow: bool) -> tuple[Tensor, ...]:
    """The loss, what layers add to it, and every parameter's gradient, always with the same random numbers."""
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        out = model(**inputs)
    added = torch.as_tensor(out.auxiliary_loss)
    model.zero_grad()
    assert out.loss is not None
    (out.loss + added).backward()
    return out.loss, added, *(p.grad if p.grad is not None else torch.zeros(()) for p in model.parameters())


def assert_checkpointing_changes_nothing(model: Transformer, narrow: bool = False, **more: Any) -> None:
    inputs = {"tokens": drawn_ids(2, 9), "targets": drawn_ids(2, 9, seed=2), **more}
    if model.encoder is not None and model.decoder is not None:
        inputs["source"] = drawn_ids(2, 9, seed=1)
    model.train()
    kept = step(model, inputs, narrow)
    model.checkpoint_activations()
    again = step(model, inputs, narrow)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    assert any(gradient.any() for gradient in kept[2:])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["whole", "packed"])
@pytest.mark.parametrize("name", MODELS)
def test_checkpointed_layers_have_the_same_gradients(name: str, documents: Any, precision: str) -> None:
    """To the bit, with dropout on: losses, balance losses and gradients, of packed documents too, and with products in
    bfloat16."""
    model = build(MODELS[name], seed=0)
    more = {} if documents is None else {"documents": documents}
    if documents is not None and model.encoder is not None and model.decoder is not None:
        more["source_documents"] = documents
    assert_checkpointing_changes_nothing(model, narrow=precision == "bfloat16", **more)


@pytest.mark.parametrize("shape", ["encoder", "decoder", "encoder-decoder"])
def test_any_layer_can_be_checkpointed(shape: str) -> None:
    """12 random models of each shape: windows, ALiBi, buckets of a layer's own, sinks, soft caps, experts."""
    for seed in range(12):
        model = build(odd_model(random.Random(f"{seed} {shape}"), shape), seed=0)
        assert_checkpointing_changes_nothing(model)


def test_only_the_inputs_of_layers_are_kept() -> None:
    """Between the passes: beyond what is kept without layers, one tensor [B, T, D] a layer, and parameters."""
    model = build(families.gpt2("tiny", vocab_size=VOCABULARY), seed=0)
    assert kept_numbers(model) > 10 * 2 * 9 * model.spec.output.dim
    model.checkpoint_activations()
    with_layers = kept_numbers(model)
    depth, model.output_stack.layers = len(model.output_stack.layers), torch.nn.ModuleList()
    assert with_layers - kept_numbers(model) == depth * 2 * 9 * model.spec.output.dim


def kept_numbers(model: Transformer) -> int:
    """How many numbers a forward pass keeps for the backward one, those of parameters left out."""
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def note(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.data_ptr()] = x.numel()
        return x

    inputs = drawn_ids(2, 9)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss = model(inputs, targets=inputs).loss
    assert loss is not None
    return sum(kept.values())


def test_experts_of_an_encoder_are_balanced_too() -> None:
    """What the encoder's layers add to the loss comes with that of the decoder."""
    experts = spec.MixtureOfExperts(experts=4, top_k=1, hidden=8, balance=0.1)
    block = spec.Block(branches=(spec.Branch(mixer=experts, norm=spec.Norm(kind="rms")),))
    stack = spec.Stack(dim=8, depth=1, pattern=(block,), embeddings=spec.Embeddings(vocabulary=VOCABULARY))
    both = spec.Transformer(encoder=stack, decoder=stack, head=spec.LanguageModelHead())
    model = build(both, seed=0).train()
    tokens = drawn_ids(2, 5)
    out = model(tokens, source=tokens, targets=tokens)
    assert 0.15 < float(out.auxiliary_loss.detach()) < 0.4
    router = model.get_parameter("encoder.layers.0.experts.router.weight")
    assert torch.autograd.grad(out.auxiliary_loss, router)[0].any()
