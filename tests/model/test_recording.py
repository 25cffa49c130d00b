"""A step of decoding made again by its recording: the same bits as through the layers, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.model import Transformer, recording
from anyformer.parts import kernels
from anyformer.parts.cache import Cache
from anyformer.parts.kernels import native

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not compiled here")

#: Presets whose steps are native throughout: rotary, learned and relative positions, windows, norms before, after and
#: around branches and of heads, parallel branches, shared norms, encoder-decoders, mixtures with biases and without,
#: choices by groups, latent attention.
RECORDED = [
    "llama:tiny",
    "gpt2:tiny",
    "mistral:tiny",
    "gemma2:tiny",
    "qwen3:tiny",
    "gpt_neox:tiny",
    "t5:tiny",
    "bart:tiny",
    "mixtral:tiny",
    "qwen3_moe:tiny",
    "gpt_oss:tiny",
    "deepseek_v3:tiny",
]


def decoded(
    model: Transformer, ids: Tensor, valid: Tensor | None, steps: int, record: bool, int8: bool = False
) -> tuple[list[Tensor], Cache]:
    """Logits of so many greedy steps after a prompt, recorded or each through the layers."""
    source = ids if model.encoder is not None else None
    prompt = ids[:, :1] if source is not None else ids
    cache = model.new_cache(len(ids), quantize="int8" if int8 else None)
    found = []
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        if not record:
            patch.setattr(recording, "recordable", lambda *_: False)
        logits = model.next_logits(
            prompt, cache, valid=None if source is not None else valid, source=source, source_valid=None
        )
        for _ in range(steps):
            logits = model.next_logits(logits.argmax(-1, keepdim=True), cache)
            found.append(logits)
    return found, cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_steps_are_those_through_the_layers_to_the_bit(name: str, dtype: torch.dtype) -> None:
    """Through several growths of the cache, in ragged batches too; and they were recorded."""
    model = af.build(af.families.preset(name), seed=0, dtype=dtype).eval()
    ids = torch.randint(5, 200, (2, 9), generator=torch.Generator().manual_seed(1))
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, :4] = False
    for mask in (None, valid):
        again, cache = decoded(model, ids, mask, 75, True)
        through, _ = decoded(model, ids, mask, 75, False)
        assert cache.recordings and not cache.unrecordable, "the step was not recorded"
        for step, (one, other) in enumerate(zip(again, through, strict=True)):
            assert torch.equal(one, other), (name, step)


def recorded(model: Transformer, batch: int, steps: int = 20, int8: bool = False) -> None:
    """Steps of so many texts are recorded, and to the bit those through the layers."""
    ids = torch.randint(5, 200, (batch, 9), generator=torch.Generator().manual_seed(1))
    again, cache = decoded(model, ids, None, steps, True, int8)
    through, _ = decoded(model, ids, None, steps, False, int8)
    assert cache.recordings and not cache.unrecordable, "the step was not recorded"
    assert all(torch.equal(one, other) for one, other in zip(again, through, strict=True))


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("name", ["mixtral:tiny", "deepseek_v3:tiny"])
def test_mixtures_in_blocks_are_recorded(name: str, quantize: str, tmp_path: Path) -> None:
    """To the bit, one text and several: which experts' blocks are read is chosen anew in each step."""
    af.build(af.families.preset(name), seed=0).save(tmp_path)
    model = af.load(tmp_path, quantize=quantize)
    for batch in (1, 4):
        recorded(model, batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shared_expert_with_a_gate_is_recorded(dtype: torch.dtype) -> None:
    """As Qwen2-MoE has it: what all tokens pass through, times a sigmoid of each."""
    described = af.families.preset("mixtral:tiny")
    assert described.decoder is not None
    (block,) = described.decoder.pattern
    attention, experts = block.branches
    gated = experts.replace(mixer=experts.mixer.replace(shared_hidden=24, shared_gate=True))
    stack = described.decoder.replace(pattern=(block.replace(branches=(attention, gated)),))
    model = af.build(described.replace(decoder=stack), seed=0, dtype=dtype).eval()
    for batch in (1, 4):
        recorded(model, batch)


def test_latent_rows_in_8_bits_are_recorded() -> None:
    """Attention reads them as they lie."""
    recorded(af.build(af.families.preset("deepseek_v3:tiny"), seed=0).eval(), 2, int8=True)


def test_a_step_that_does_more_is_not_recorded() -> None:
    """An attention kernel in torch's own operations: such a model runs through its layers, and says the same."""
    model = af.build(af.families.preset("llama:tiny"), seed=0).eval()
    ids = torch.randint(5, 200, (1, 6), generator=torch.Generator().manual_seed(1))
    with kernels.use("reference"):
        again, cache = decoded(model, ids, None, 8, True)
        through, _ = decoded(model, ids, None, 8, False)
    assert not cache.recordings and cache.unrecordable
    assert all(torch.equal(one, other) for one, other in zip(again, through, strict=True))


def test_a_hook_is_asked_again_where_a_step_was_recorded_before() -> None:
    """Whoever looks at a module sees every step; afterwards the recording serves again."""
    model = af.build(af.families.preset("llama:tiny"), seed=0).eval()
    ids = torch.randint(5, 200, (1, 6), generator=torch.Generator().manual_seed(1))
    _, cache = decoded(model, ids, None, 4, True)
    seen: list[Tensor] = []
    assert model.decoder is not None
    feed_forward = model.decoder.layers[1].get_submodule("feed_forward")
    handle = feed_forward.register_forward_hook(lambda module, given, out: seen.append(out))
    with torch.no_grad():
        model.next_logits(ids[:, :1], cache)
        handle.remove()
        assert len(seen) == 1
        model.next_logits(ids[:, :1], cache)
    assert len(seen) == 1


def test_rows_that_change_places_are_recorded_anew() -> None:
    """After `reorder` the storage is another; the next step is right all the same."""
    model = af.build(af.families.preset("llama:tiny"), seed=0).eval()
    ids = torch.randint(5, 200, (2, 6), generator=torch.Generator().manual_seed(1))
    _, cache = decoded(model, ids, None, 4, True)
    _, other = decoded(model, ids, None, 4, False)
    rows = torch.tensor([1, 0, 1])
    with torch.no_grad():
        for each in (cache, other):
            each.reorder(rows)
        for _ in range(3):
            found = model.next_logits(ids[rows, :1], cache)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(recording, "recordable", lambda *_: False)
                wanted = model.next_logits(ids[rows, :1], other)
            assert torch.equal(found, wanted)
