"""What is counted from a spec is what the built model has and does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from anyformer import families, model, planning, spec
from anyformer.errors import SpecError
from anyformer.parts import kernels, masks
from anyformer.parts.attention import attention_mask
from anyformer.parts.kernels import native
from anyformer.planning.counts import default_context

VOCABULARY = 48
NORMS = st.sampled_from([spec.Norm(kind="rms"), spec.Norm(kind="layer", bias=True), spec.Norm(kind="layer")])
TINY = [f"{name}:tiny" for name, family in families.registered().items() if "tiny" in family.presets]


@st.composite
def attentions(draw: Callable, visibility: str, windows: bool, source: str = "self") -> spec.Attention:
    kv_heads = draw(st.integers(1, 3))
    return spec.Attention(
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 4)),
        source=source,
        visibility=visibility,
        window=draw(st.sampled_from([None, (5, None), (1, 3), (7, 2)])) if windows and source == "self" else None,
        position=None if source == "cross" else draw(st.sampled_from([None, spec.Rotary(), spec.Alibi()])),
        bias=draw(st.booleans()),
        output_bias=draw(st.booleans()),
        query_key_norm=draw(st.none() | NORMS),
        sinks=draw(st.booleans()),
    )


@st.composite
def feed_forwards(draw: Callable) -> spec.Mixer:
    hidden, gated = draw(st.integers(1, 24)), draw(st.booleans())
    if draw(st.booleans()):
        return spec.FeedForward(hidden=hidden, gated=gated, bias=draw(st.booleans()))
    experts, shared = draw(st.integers(1, 4)), draw(st.none() | st.integers(1, 9))
    return spec.MixtureOfExperts(
        experts=experts,
        top_k=draw(st.integers(1, experts)),
        hidden=hidden,
        gated=gated,
        shared_hidden=shared,
        shared_gate=shared is not None and draw(st.booleans()),
    )


@st.composite
def stacks(
    draw: Callable, visibility: str, crosses: bool, mixers: st.SearchStrategy[spec.Mixer], windows: bool
) -> spec.Stack:
    def block() -> spec.Block:
        cross = [attentions("full", windows, "cross")] if crosses else []
        drawn = [attentions(visibility, windows), *cross, mixers]
        placements = st.sampled_from(["pre", "post", "output", "both"])
        branches = [spec.Branch(mixer=draw(mixer), norm=draw(NORMS), placement=draw(placements)) for mixer in drawn]
        return spec.Block(branches=tuple(branches), repeat=draw(st.integers(1, 2)))

    embeddings = spec.Embeddings(
        vocabulary=VOCABULARY,
        position=draw(st.sampled_from([None, spec.Sinusoidal(), spec.Learned(size=40, offset=2)])),
        segments=draw(st.integers(0, 2)),
        norm=draw(st.none() | NORMS),
    )
    pattern = tuple(block() for _ in range(draw(st.integers(1, 2))))
    dim, depth = 2 * draw(st.integers(2, 8)), draw(st.integers(1, 5))
    return spec.Stack(dim=dim, depth=depth, pattern=pattern, embeddings=embeddings, norm=draw(st.none() | NORMS))


@st.composite
def models(
    draw: Callable,
    mixers: st.SearchStrategy[spec.Mixer],
    shapes: tuple[str, ...] = ("encoder", "decoder", "encoder-decoder"),
    windows: bool = True,
) -> spec.Transformer:
    shape = draw(st.sampled_from(shapes))
    encoder = draw(stacks("full", False, mixers, windows)) if shape != "decoder" else None
    decoder = draw(stacks("causal", shape == "encoder-decoder", mixers, windows)) if shape != "encoder" else None
    shares = encoder is not None and decoder is not None and draw(st.booleans())
    if shares:
        decoder = decoder.replace(dim=encoder.dim)
    norm = spec.Norm(kind="layer", bias=True)
    heads: list[spec.Head] = [
        spec.LanguageModelHead(tied=draw(st.booleans()), bias=draw(st.booleans())),
        spec.MaskedLanguageModelHead(tied=draw(st.booleans()), norm=norm),
        spec.SequenceClassificationHead(labels=3, activation=draw(st.sampled_from([None, "tanh"]))),
        spec.TokenClassificationHead(labels=3, bias=draw(st.booleans())),
        spec.EmbeddingHead(),
    ]
    return spec.Transformer(
        encoder=encoder, decoder=decoder, head=draw(st.sampled_from(heads)), shared_embedding=shares
    )


def mixtures(preset: str) -> list[spec.Mixer]:
    """The mixtures of experts of a preset."""
    described = families.preset(preset)
    assert described is not None
    blocks = [block for stack in described.stacks().values() for block in stack.pattern]
    mixers = [branch.mixer for block in blocks for branch in block.branches]
    return [mixer for mixer in mixers if isinstance(mixer, spec.RoutedExperts)]


DENSE = st.builds(spec.FeedForward, hidden=st.integers(1, 24), gated=st.booleans())
DECODING = ("decoder", "encoder-decoder")


def held(built: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in built.parameters())


def counted(described: spec.Transformer, tokens: int, source: int, cached: int = 0, backward: bool = False) -> int:
    """FLOPs by torch's counter, which knows products of matrices (sdpa on this device it does not), with the kernel
    that computes all pairs and then masks, and without native kernels, whose products it does not see."""
    built = model.build(described).eval()
    ids = torch.zeros(1, cached + tokens, dtype=torch.long)
    more = {"source": torch.zeros(1, source, dtype=torch.long)} if described.shape == "encoder-decoder" else {}
    with kernels.use("reference"), mock.patch.object(native, "library", lambda: None), torch.set_grad_enabled(backward):
        if cached:
            more["cache"] = built.new_cache(1)
            built(ids[:, :cached], **more)
            more.pop("source", None)
        with FlopCounterMode(display=False) as counter:
            out = built(ids[:, cached:], **more)
            if backward:
                (out.hidden if out.logits is None else out.logits).sum().backward()
    return counter.get_total_flops()


@settings(max_examples=25)
@given(models(feed_forwards()))
def test_parameters_equal_the_built_models(described: spec.Transformer) -> None:
    """The total of a spec of any shape is the number of numbers in the model built from it, and the parts add up."""
    parameters = planning.parameters(described)
    assert parameters.total == planning.count(described) == held(model.build(described))
    assert sum(parameters.parts.values()) == parameters.total


@pytest.mark.parametrize("preset", TINY)
def test_presets_have_the_parameters_counted(preset: str) -> None:
    """Every family's small preset, built, holds exactly what is counted."""
    described = families.preset(preset)
    assert described is not None
    assert planning.parameters(described).total == held(model.build(described))


@pytest.mark.parametrize(
    ("preset", "published"),
    [("llama:135m", 134_515_008), ("llama:7b", 6_738_415_616), ("bert:base", 109_514_298), ("t5:small", 60_506_624)],
)
def test_presets_have_the_published_parameters(preset: str, published: int) -> None:
    """Well-known sizes come out as their authors' models hold them."""
    described = families.preset(preset)
    assert described is not None
    assert planning.parameters(described).total == published


def test_active_parameters_leave_out_experts_not_chosen() -> None:
    """Mixtral's shape: of 46.7 billion parameters, 12.9 billion meet a token."""
    norm = spec.Norm(kind="rms")
    attention = spec.Attention(heads=32, kv_heads=8, head_dim=128, visibility="causal", position=spec.Rotary())
    experts = spec.MixtureOfExperts(experts=8, top_k=2, hidden=14336)
    block = spec.Block(branches=(spec.Branch(mixer=attention, norm=norm), spec.Branch(mixer=experts, norm=norm)))
    embeddings = spec.Embeddings(vocabulary=32000)
    stack = spec.Stack(dim=4096, depth=32, pattern=(block,), embeddings=embeddings, norm=norm)
    parameters = planning.parameters(spec.Transformer(decoder=stack, head=spec.LanguageModelHead()))
    assert (parameters.total, parameters.active) == (46_702_792_704, 12_879_925_248)


@settings(max_examples=25)
@given(models(DENSE), st.integers(1, 12), st.integers(1, 12))
def test_flops_equal_torchs_own_counter(described: spec.Transformer, tokens: int, source: int) -> None:
    """With hidden pairs counted as well, as torch's counter does, the FLOPs of any dense model are its count."""
    flops = planning.forward_flops(described, tokens, source=source, dense=True)
    assert sum(flops.values()) == pytest.approx(counted(described, tokens, source), rel=0.01)


@pytest.mark.parametrize("preset", [preset for preset in TINY if not mixtures(preset)])
def test_flops_of_presets_forward_and_backward_equal_torchs_own_counter(preset: str) -> None:
    """Every dense family's small preset: attention included, and the backward pass is twice the forward one."""
    described = families.preset(preset)
    assert described is not None
    forward = sum(planning.forward_flops(described, 24, source=17, dense=True).values())
    assert forward == pytest.approx(counted(described, 24, 17), rel=0.01)
    assert 3 * forward == pytest.approx(counted(described, 24, 17, backward=True), rel=0.01)


@settings(max_examples=25)
@given(models(DENSE, DECODING, windows=False), st.integers(1, 4), st.integers(1, 4))
def test_flops_behind_a_cache_equal_torchs_own_counter(described: spec.Transformer, tokens: int, cached: int) -> None:
    """A call that continues a cache costs its own tokens over all keys: no encoder, no keys of the source again."""
    flops = planning.forward_flops(described, tokens, source=3, cached=cached, dense=True)
    assert sum(flops.values()) == pytest.approx(counted(described, tokens, 3, cached), rel=0.01)


def mixture(top_k: int) -> spec.Transformer:
    """A decoder of experts too odd for grouped products, so that every expert is computed in plain ones."""
    attention = spec.Attention(heads=2, kv_heads=1, head_dim=4, visibility="causal")
    experts = spec.MixtureOfExperts(experts=4, top_k=top_k, hidden=77, shared_hidden=5, shared_gate=True)
    block = spec.Block(branches=(spec.Branch(mixer=attention, norm=None), spec.Branch(mixer=experts, norm=None)))
    stack = spec.Stack(dim=8, depth=2, pattern=(block,), embeddings=spec.Embeddings(vocabulary=VOCABULARY))
    return spec.Transformer(decoder=stack, head=spec.LanguageModelHead())


def test_flops_of_experts() -> None:
    """With all experts chosen the count is torch's; a choice of one saves three of the four experts' matrices."""
    whole = planning.forward_flops(mixture(4), 6, dense=True)
    assert sum(whole.values()) == pytest.approx(counted(mixture(4), 6, 0), rel=0.01)
    one_expert = 2 * 6 * 2 * 3 * 8 * 77  # two layers; two FLOPs for each token and weight of three matrices
    assert whole["experts"] - planning.forward_flops(mixture(1), 6, dense=True)["experts"] == 3 * one_expert


@given(
    st.sampled_from(["causal", "full"]),
    st.none() | st.tuples(st.none() | st.integers(1, 9), st.none() | st.integers(1, 9)),
    st.integers(1, 12),
    st.integers(0, 12),
)
def test_pairs_are_those_the_mask_allows(
    visibility: str, window: tuple[int | None, int | None] | None, tokens: int, cached: int
) -> None:
    """The closed form counts exactly the pairs that the model's own mask lets see each other, caches included."""
    if visibility == "full":
        cached = 0
    attention = spec.Attention(heads=1, kv_heads=1, head_dim=2, visibility=visibility, window=window)
    queries, keys = masks.Tokens(tokens, start=cached), masks.Tokens(cached + tokens, start=0)
    allowed = attention_mask(visibility, window).allows(queries, keys)
    assert attention.pairs(tokens, cached) == int(allowed.sum())
    assert attention.pairs(tokens, cached, dense=True) == allowed.numel()


@settings(max_examples=25)
@given(
    models(DENSE, DECODING),
    st.integers(1, 20),
    st.integers(1, 9),
    st.sampled_from(["float32", "bfloat16"]),
    st.sampled_from([None, "int8"]),
)
def test_kv_bytes_equal_what_the_cache_stores(
    described: spec.Transformer, tokens: int, source: int, dtype: str, quantize: Literal["int8"] | None
) -> None:
    """Predicted bytes are those that a cache made for so many tokens stores, but for the slot that each layer dumps
    padding in; a window's layer keeps no more than the window. In 8 bits, too, of which a source's are not."""
    built = model.build(described, dtype=getattr(torch, dtype)).eval()
    cache = built.new_cache(1, capacity=tokens, quantize=quantize)
    more = {"source": torch.zeros(1, source, dtype=torch.long)} if described.shape == "encoder-decoder" else {}
    with torch.no_grad():
        for _ in range(tokens):
            built(torch.zeros(1, 1, dtype=torch.long), cache=cache, **more)
            more = {}
    dumps = sum(store[:, :, -1].nbytes for layer in cache.layers for store in layer.stored)
    assert planning.kv_bytes(described, tokens, source=source, dtype=dtype, quantize=quantize) == cache.bytes() - dumps


@pytest.mark.parametrize("preset", [preset for preset in TINY if families.preset(preset).decoder is not None])  # type: ignore[union-attr]
def test_presets_keep_the_bytes_counted(preset: str) -> None:
    """Every family's small decoder, mixers of its own included, fills a cache with what is counted."""
    described = families.preset(preset)
    assert described is not None
    built = model.build(described).eval()
    cache = built.new_cache(1, capacity=5, quantize="int8")
    more = {"source": torch.zeros(1, 4, dtype=torch.long)} if described.shape == "encoder-decoder" else {}
    with torch.no_grad():
        built(torch.zeros(1, 5, dtype=torch.long), cache=cache, **more)
    dumps = sum(store[:, :, -1].nbytes for layer in cache.layers for store in layer.stored)
    assert planning.kv_bytes(described, 5, source=4, dtype="float32", quantize="int8") == cache.bytes() - dumps


def test_weight_bytes_follow_the_dtype() -> None:
    """Two bytes a number in half precision, four in single; an unknown dtype is refused by name."""
    described = families.preset("llama:135m")
    assert described is not None
    assert planning.weight_bytes(described, "bfloat16") == 269_030_016
    assert planning.weight_bytes(described, "float32") == 538_060_032
    with pytest.raises(SpecError, match="no dtype 'float3'"):
        planning.weight_bytes(described, "float3")


def test_context_to_count_at() -> None:
    """Costs are counted at the length trained for, else at the positions learned, else at a length of our choosing."""
    described = mixture(1)
    learned = spec.Embeddings(vocabulary=VOCABULARY, position=spec.Learned(size=77))
    assert described.decoder is not None
    limited = described.replace(decoder=described.decoder.replace(embeddings=learned))
    assert [default_context(each) for each in (described, limited, limited.replace(context=55))] == [2048, 77, 55]
