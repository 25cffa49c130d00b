"""Fresh weights: repeatable, all of them drawn, under the names that everything else reads."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
from odd_specs import odd_model, odd_stack
from torch import nn

from anyformer import machine, planning, spec
from anyformer.errors import CheckpointError, InputError, SpecError
from anyformer.model import Transformer, build, load
from anyformer.model.building import fill, initialize, unfilled
from anyformer.parts.attention import Attention
from anyformer.planning.shapes import shapes

SHAPES = ["encoder", "decoder", "encoder-decoder"]


def models(shape: str, count: int) -> list[spec.Transformer]:
    """Odd specs of one shape."""
    return [odd_model(random.Random(f"{shape} {seed}"), shape) for seed in range(count)]


@pytest.mark.parametrize("shape", SHAPES)
def test_names_and_shapes_are_those_of_the_spec(shape: str) -> None:
    """Every parameter of a built model is listed by the planner with its shape, and no other is; a tied head has its
    name in the state dict all the same, so that files may hold it."""
    for whole in models(shape, 25):
        model = build(whole, seed=0)
        assert {name: tuple(p.shape) for name, p in model.named_parameters()} == shapes(whole)
        assert planning.count(whole) == sum(p.numel() for p in model.parameters())
        extra = set(model.state_dict()) - set(shapes(whole))
        tied = {"head.output.weight"} if whole.head.tied else set()
        shared = {"decoder.embeddings.tokens.weight"} if whole.shared_embedding else set()
        assert extra == tied | shared


def test_the_names_that_files_are_written_with() -> None:
    """The contract, word for word, on a model that has every part."""
    norm, rms = spec.Norm(kind="layer", bias=True), spec.Norm(kind="rms")
    buckets = spec.RelativeBuckets(bidirectional=False)
    attention = {"heads": 2, "kv_heads": 1, "head_dim": 2, "bias": True, "output_bias": True}
    own = spec.Attention(**attention, visibility="causal", query_key_norm=rms, sinks=True, position=buckets)
    cross = spec.Attention(**attention, visibility="full", source="cross")
    experts = spec.MixtureOfExperts(experts=3, top_k=1, hidden=5, shared_hidden=4, shared_gate=True)
    forward = spec.FeedForward(hidden=5, gated=True, bias=True)
    embeddings = spec.Embeddings(vocabulary=7, position=spec.Learned(size=5, offset=2), segments=2, norm=norm)
    encoder = spec.Stack(
        dim=4,
        depth=1,
        pattern=(
            spec.Block(
                branches=(
                    spec.Branch(mixer=own.replace(position=None, visibility="full"), norm=norm, placement="both"),
                    spec.Branch(mixer=experts, norm=norm, placement="post"),
                )
            ),
        ),
        embeddings=embeddings,
        norm=norm,
        relative=buckets,
    )
    decoder = spec.Stack(
        dim=4,
        depth=1,
        pattern=(spec.Block(branches=tuple(spec.Branch(mixer=m, norm=norm) for m in (own, cross, forward))),),
        embeddings=spec.Embeddings(vocabulary=7),
    )
    head = spec.MaskedLanguageModelHead(norm=norm, tied=False)
    model = build(spec.Transformer(encoder=encoder, decoder=decoder, head=head))

    def each(prefix: str, names: str, parts: str = "weight bias") -> set[str]:
        return {f"{prefix}.{name}.{part}" for name in names.split() for part in parts.split()}

    layer, other = "encoder.layers.0", "decoder.layers.0"
    assert set(model.state_dict()) == {
        *each("encoder.embeddings", "tokens positions segments", "weight"),
        *each("encoder.embeddings", "norm"),
        *each(f"{layer}.attention", "query key value output"),
        *each(f"{layer}.attention", "query_norm key_norm", "weight"),
        f"{layer}.attention.sinks",
        *each(layer, "attention_norm attention_output_norm experts_norm"),
        *each(f"{layer}.experts", "router shared_gate shared.gate shared.up shared.down", "weight"),
        *(f"{layer}.experts.{name}" for name in ("gate", "up", "down")),
        *each("encoder", "norm"),
        "encoder.relative.weight",
        "decoder.embeddings.tokens.weight",
        *each(f"{other}.attention", "query key value output"),
        *each(f"{other}.attention", "query_norm key_norm relative", "weight"),
        f"{other}.attention.sinks",
        *each(f"{other}.cross_attention", "query key value output"),
        *each(f"{other}.feed_forward", "gate up down"),
        *each(other, "attention_norm cross_attention_norm feed_forward_norm"),
        *each("head", "dense norm output"),
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_a_seed_gives_the_same_weights(shape: str) -> None:
    """To the bit, whatever torch's own generator has been doing; another seed gives others; none is repeatable."""
    whole = models(shape, 1)[0]
    torch.manual_seed(1)
    one = build(whole, seed=5)
    before = torch.get_rng_state()
    other = build(whole, seed=5)
    assert torch.equal(torch.get_rng_state(), before), "building draws from a generator of its own"
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    for different in (build(whole, seed=6), build(whole), build(whole)):
        table, wanted = different.output_stack.embeddings.tokens.weight, one.output_stack.embeddings.tokens.weight
        assert not torch.equal(table, wanted)
    half = build(whole, seed=5, dtype=torch.bfloat16)
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(one.parameters(), half.parameters(), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_parameter_is_drawn(shape: str) -> None:
    """Matrices with the deviation of the spec, vectors zero, norms one (zero where one is added): nothing is left as
    memory had it."""
    for whole in models(shape, 15):
        model = unfilled(whole, torch.float32, "cpu")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(torch.nan)
        with torch.no_grad():
            initialize(model, whole.initialization, torch.Generator().manual_seed(0))
        offsets = {id(m.weight): m.unit_offset for m in model.modules() if hasattr(m, "unit_offset")}
        for name, parameter in model.named_parameters():
            if id(parameter) in offsets:
                assert parameter.eq(0.0 if offsets[id(parameter)] else 1.0).all(), name
            elif parameter.dim() < 2:
                assert not parameter.any(), name
            else:
                assert parameter.isfinite().all() and parameter.std() < 0.6, name
                assert parameter.std() > 0.1 or parameter.numel() < 12, name


def wide(initialization: spec.Initialization) -> Transformer:
    """A decoder wide enough for its deviations to be measured."""
    mixers = (
        spec.Attention(heads=4, kv_heads=4, head_dim=16, visibility="causal"),
        spec.FeedForward(hidden=256),
    )
    block = spec.Block(branches=tuple(spec.Branch(mixer=mixer, norm=None) for mixer in mixers))
    embeddings = spec.Embeddings(vocabulary=300, position=spec.Learned(size=100))
    stack = spec.Stack(dim=64, depth=8, pattern=(block,), embeddings=embeddings)
    return build(spec.Transformer(decoder=stack, head=spec.LanguageModelHead(), initialization=initialization), seed=0)


def deviation(model: Transformer, name: str) -> float:
    """Of all parameters of one name."""
    found = [p.detach().flatten() for n, p in model.named_parameters() if n.endswith(name + ".weight")]
    assert found
    return float(torch.cat(found).std())


def test_deviations_are_those_of_the_spec() -> None:
    """One for all; 1/√inputs; another for embeddings; and what writes to the stream divided by √(2·depth)."""
    same = wide(spec.Initialization(std=0.05))
    for name in ("tokens", "positions", "query", "down", "head.output"):
        assert deviation(same, name) == pytest.approx(0.05, rel=0.05)
    scaled = wide(spec.Initialization(std=0.05, embedding_std=0.3, depth_scaled=True))
    for name, wanted in {
        "tokens": 0.3,
        "positions": 0.3,
        "query": 0.05,
        "up": 0.05,
        "attention.output": 0.05 / 4,
        "down": 0.05 / 4,
        "head.output": 0.05,
    }.items():
        assert deviation(scaled, name) == pytest.approx(wanted, rel=0.05), name
    fanned = wide(spec.Initialization(std=None))
    for name, inputs in {"query": 64, "up": 64, "down": 256}.items():
        assert deviation(fanned, name) == pytest.approx(inputs**-0.5, rel=0.05), name


def tied(**changes: object) -> spec.Transformer:
    """An encoder-decoder of which everything that can be one is one."""
    draw = random.Random(2)
    encoder = odd_stack(draw, causal=False)
    decoder = odd_stack(draw, causal=True, cross=True)
    decoder = decoder.replace(dim=encoder.dim)
    whole = spec.Transformer(
        encoder=encoder, decoder=decoder, head=spec.LanguageModelHead(tied=True), shared_embedding=True
    )
    return whole.replace(**changes)


@pytest.mark.parametrize(
    "event",
    [
        lambda m: m,
        lambda m: m.to(torch.bfloat16),
        lambda m: m.double(),
        copy.deepcopy,
        lambda m: copy.deepcopy(m.to(torch.bfloat16)).float(),
        lambda m: build(m.spec, dtype=torch.bfloat16),
        lambda m: unfilled(m.spec, torch.float32, "cpu"),
    ],
    ids=["built", "bfloat16", "float64", "copied", "copied and cast", "built in bfloat16", "unfilled"],
)
def test_what_is_tied_is_one_parameter(event) -> None:  # type: ignore[no-untyped-def]
    """The very same `Parameter` after casts and copies: an optimizer sees it once, a step moves all its uses."""
    model = event(build(tied(), seed=0))
    table = model.encoder.embeddings.tokens.weight
    assert isinstance(table, nn.Parameter)
    assert model.decoder.embeddings.tokens.weight is table
    assert model.head.output.weight is table
    assert [name for name, p in model.named_parameters() if p is table] == ["encoder.embeddings.tokens.weight"]


def test_a_copy_is_no_tie() -> None:
    """A copy shares nothing with what it was copied from."""
    model = build(tied(), seed=0)
    copied = copy.deepcopy(model)
    places = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert not places & {p.untyped_storage().data_ptr() for p in copied.parameters()}


def test_filling_names_what_is_missing() -> None:
    """A checkpoint without a tensor is not whole; with all of them the model is the one they came from."""
    whole = tied()
    model = build(whole, seed=0)
    tensors = {name: model.state_dict()[name] for name in shapes(whole)}
    again = unfilled(whole, torch.float32, "cpu")
    fill(again, tensors)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    del tensors["decoder.layers.1.attention.query.weight"]
    with pytest.raises(CheckpointError, match=r"no tensor for 'decoder\.layers\.1\.attention\.query\.weight'"):
        fill(again, tensors)


def test_weights_without_room_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the figures, and what takes less, before any are drawn or read; what just fits is loaded."""
    load("llama:tiny", device="cpu").save(tmp_path / "saved")
    size = planning.weight_bytes(load("llama:tiny", device="cpu").spec, "float32")
    monkeypatch.setattr(machine, "available", lambda device: size)
    load("llama:tiny", device="cpu")
    monkeypatch.setattr(machine, "available", lambda device: size - 1)
    with pytest.raises(
        InputError, match=r"of llama:tiny take 0\.0 GB in float32.*they take less in bfloat16 \(dtype\)$"
    ):
        load("llama:tiny", device="cpu")
    with pytest.raises(InputError, match=r"less in bfloat16 \(dtype\), int8 or int4 \(quantize\)$"):
        load(tmp_path / "saved", device="cpu")
    assert load("llama:tiny", "bfloat16", "cpu").dtype == torch.bfloat16
    assert load(tmp_path / "saved", device="cpu", quantize="int8").quantization is not None
    monkeypatch.setattr(machine, "available", lambda device: 1)
    with pytest.raises(InputError, match="take a smaller model"):
        load("llama:tiny", "bfloat16", "cpu")


def test_what_is_no_spec_is_not_built() -> None:
    """A name is for `load`; the sentence says so."""
    with pytest.raises(SpecError, match=r"build takes a spec.*not 'llama:tiny'; load takes names"):
        build("llama:tiny")  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("scale", [None, 1.0, 0.01])
def test_scores_begin_with_the_same_spread_whatever_scales_them(scale: float | None) -> None:
    """Drawn by the inputs of each matrix, queries make up for attention's scale: T5's has none."""
    attention = spec.Attention(heads=4, kv_heads=4, head_dim=16, visibility="full", scale=scale)
    block = spec.Block(branches=(spec.Branch(mixer=attention, norm=spec.Norm(kind="rms")),))
    stack = spec.Stack(dim=64, depth=1, pattern=(block,), embeddings=spec.Embeddings(vocabulary=9))
    whole = spec.Transformer(encoder=stack, head=spec.EmbeddingHead(), initialization=spec.Initialization(std=None))
    model = build(whole, seed=0)
    [layer] = [module for module in model.modules() if isinstance(module, Attention)]
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    queries, keys = (linear(x).unflatten(-1, (4, 16)) for linear in (layer.query, layer.key))
    assert float((torch.einsum("thc,shc->hts", queries, keys) * layer.scale).std()) == pytest.approx(1, rel=0.2)
