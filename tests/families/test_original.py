"""The Transformer of 2017 against torch's own `nn.Transformer`, and its files as Marian's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import odd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import anyformer as af
from anyformer import families, spec
from anyformer.errors import SpecError
from anyformer.model import Transformer
from anyformer.planning import count

B, S, T = 3, 11, 7


def ours(seed: int = 0) -> Transformer:
    """The tiny model with every parameter at random, in float64."""
    model = af.build(families.original("tiny"), dtype=torch.float64, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model.eval()


class Theirs(nn.Module):
    """torch's encoder and decoder between one table, waves worked out one by one, and the same table again; its
    parameters are what `tensors` has under our names."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.dim = 64
        sizes = {"d_model": self.dim, "nhead": 4, "dim_feedforward": 256}
        how: dict[str, Any] = {**sizes, "dropout": 0.0, "batch_first": True, "dtype": torch.float64}
        self.transformer = nn.Transformer(
            self.dim,
            custom_encoder=nn.TransformerEncoder(nn.TransformerEncoderLayer(**how), 2, enable_nested_tensor=False),
            custom_decoder=nn.TransformerDecoder(nn.TransformerDecoderLayer(**how), 2),
            batch_first=True,
        )
        self.table = nn.Parameter(tensors["encoder.embeddings.tokens.weight"].clone())
        with torch.no_grad():
            for stack in ("encoder", "decoder"):
                for index, layer in enumerate(getattr(self.transformer, stack).layers):
                    fill(layer, tensors, f"{stack}.layers.{index}")

    def embed(self, ids: Tensor) -> Tensor:
        """Section 3.5, a number at a time, sines before cosines."""
        half = self.dim // 2
        waves = torch.zeros(ids.shape[1], self.dim, dtype=torch.float64)
        for position in range(ids.shape[1]):
            for i in range(half):
                angle = position / 10000 ** (2 * i / self.dim)
                waves[position, i], waves[position, half + i] = math.sin(angle), math.cos(angle)
        return math.sqrt(self.dim) * self.table[ids] + waves

    def forward(self, tokens: Tensor, source: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """(hidden states, logits)."""
        ahead = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        hidden = self.transformer(
            self.embed(source),
            self.embed(tokens),
            tgt_mask=ahead,
            src_key_padding_mask=~valid,
            memory_key_padding_mask=~valid,
        )
        return hidden, hidden @ self.table.T


def fill(layer: nn.Module, tensors: Mapping[str, Tensor], ours: str) -> None:
    """Copy what is under our names of one layer into torch's parameters, every one of them."""
    attentions = {"self_attn": "attention", "multihead_attn": "cross_attention"}
    roles = [role for role in (*attentions.values(), "feed_forward") if f"{ours}.{role}_norm.weight" in tensors]
    names = {f"norm{index}": f"{role}_norm" for index, role in enumerate(roles, 1)}
    names |= {"linear1": "feed_forward.up", "linear2": "feed_forward.down"}
    names |= {f"{module}.out_proj": f"{role}.output" for module, role in attentions.items()}
    for name, parameter in layer.named_parameters():
        module, _, kind = name.rpartition(".")
        if kind.startswith("in_proj_"):
            role, kind = attentions[module], kind.removeprefix("in_proj_")
            parameter.copy_(torch.cat([tensors[f"{ours}.{role}.{part}.{kind}"] for part in ("query", "key", "value")]))
        else:
            parameter.copy_(tensors[f"{ours}.{names[module]}.{kind}"])


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def assert_close(found: Tensor, wanted: Tensor) -> None:
    """Equal to 1e-6 of the largest: waves are worked out in float64 and kept in float32. What is nought but for
    rounding, as the gradient of a key's bias is, counts as nought."""
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, rtol=0, atol=1e-6 * max(wanted.detach().abs().max().item(), 1e-6))


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids of targets and sources, which of the source are no padding, and what is wanted next."""
    generator = torch.Generator().manual_seed(1)
    tokens, wanted = (torch.randint(0, 1024, (B, T), generator=generator) for _ in range(2))
    source = torch.randint(0, 1024, (B, S), generator=generator)
    return tokens, source, torch.arange(S) < torch.tensor([[11], [6], [1]]), wanted


@pytest.mark.parametrize("seed", range(2))
def test_forward_and_gradients_are_those_of_torch(seed: int) -> None:
    """Hidden states, logits, and the gradient of every parameter, over sources of different lengths."""
    model = ours(seed)
    theirs = Theirs(model.state_dict())
    tokens, source, valid, wanted = batch()
    hidden, logits = theirs(tokens, source, valid)
    out = model(tokens, source=source, source_valid=valid)
    assert_close(out.hidden, hidden)
    assert_close(out.logits, logits)
    F.cross_entropy(logits.flatten(0, 1), wanted.flatten()).backward()
    model(tokens, source=source, source_valid=valid, targets=wanted).loss.backward()
    gradients = Theirs({name: gradient(parameter) for name, parameter in model.named_parameters()})
    assert sum(map(torch.numel, model.parameters())) == sum(map(torch.numel, theirs.parameters()))
    for found, parameter in zip(gradients.parameters(), theirs.parameters(), strict=True):
        assert_close(found, gradient(parameter))


def test_greedy_is_torch_s() -> None:
    """Decoding on the cache writes what argmax over torch's model writes, read again from the start for every token."""
    model = ours()
    theirs = Theirs(model.state_dict())
    _, source, valid, _ = batch()
    ids = torch.full((B, 1), 1)
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, theirs(ids, source, valid)[1][:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(source, valid=valid, start=1, eos=(), max_new_tokens=12), ids[:, 1:])


def test_sizes_of_the_paper() -> None:
    """Table 3, 65 and 213 million with a vocabulary of about 37,000; the three embeddings are one table."""
    assert count(families.original("base")) == 63_082_496
    assert count(families.original("big")) == 214_245_376
    base = families.original("base")
    assert base.shared_embedding and base.head == spec.LanguageModelHead(tied=True)


def test_its_files_are_marian_s(tmp_path: Path) -> None:
    """Saved, it is a Marian model without a bias, and loads as one; a model of alternating waves is not, and is saved
    under our own names."""
    model = ours().float()
    model.family = "original"
    model.save(tmp_path / "marian")
    config = json.loads((tmp_path / "marian" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("marian", ["MarianMTModel"])
    again = af.load(tmp_path / "marian", device="cpu")
    assert (again.family, again.spec) == ("marian", model.spec)
    tokens, source, valid, _ = batch()
    found = again(tokens, source=source, source_valid=valid).logits
    assert torch.equal(found, model(tokens, source=source, source_valid=valid).logits)
    paper = spec.Transformer.from_data(odd.apply(model.spec.model_dump(), {"sinusoidal": {"interleaved": True}}))
    with pytest.raises(SpecError, match=r"no counterpart for encoder.embeddings.position.interleaved \(True, not Fal"):
        families.original.express(paper)
    af.build(paper).save(tmp_path / "own")
    assert not (tmp_path / "own" / "config.json").exists()
    assert af.load(tmp_path / "own", device="cpu").spec == paper


def test_it_is_named_beside_marian() -> None:
    """Both are families; files of Marian's are Marian's."""
    assert {"original", "marian"} <= families.registered().keys()
    assert families.preset("original:base") == families.original("base")
    assert families.find("marian") is families.marian
    assert families.original.format is families.marian
