"""The shapes that a spec implies are those of the model that is built from it."""

from __future__ import annotations

import random

import pytest

from anyformer import families, spec
from anyformer.model import Transformer, build
from anyformer.planning.shapes import count, shapes


def built(model: spec.Transformer) -> dict[str, tuple[int, ...]]:
    module: Transformer = build(model, seed=0)
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def odd_attention(chance: random.Random, cross: bool) -> spec.Attention:
    """Attention with anything that has parameters, or none of it."""
    head_dim = chance.choice([2, 6])
    buckets = spec.RelativeBuckets(buckets=8, max_distance=20, bidirectional=False)
    return spec.Attention(
        heads=6,
        kv_heads=chance.choice([1, 2, 3, 6]),
        head_dim=head_dim,
        source="cross" if cross else "self",
        visibility="full" if cross else "causal",
        position=None if cross else chance.choice([None, buckets, spec.Rotary(), spec.Alibi()]),
        bias=chance.random() < 0.5,
        output_bias=chance.random() < 0.5,
        query_key_norm=chance.choice([None, *NORMS]),
        query_key_norm_over=chance.choice(["head", "width"]),
        sinks=chance.random() < 0.5,
    )


def odd_stack(chance: random.Random, dim: int, cross: bool) -> spec.Stack:
    """A stack of two different blocks."""
    blocks = []
    for _ in range(2):
        gated, bias = chance.random() < 0.5, chance.random() < 0.5
        shared = chance.choice([{}, {"shared_hidden": 5}, {"shared_hidden": 5, "shared_gate": True}])
        feed_forward = chance.choice(
            [
                spec.FeedForward(hidden=9, gated=gated, bias=bias),
                spec.MixtureOfExperts(experts=4, top_k=2, hidden=7, gated=gated, **shared),
            ]
        )
        mixers = [odd_attention(chance, False), *([odd_attention(chance, True)] if cross else []), feed_forward]
        placement, norm = chance.choice(["pre", "post", "output", "both"]), chance.choice([None, *NORMS])
        branches = [spec.Branch(mixer=mixer, norm=norm, placement=placement) for mixer in mixers]
        if placement == "pre" and chance.random() < 0.5:
            branches[-1] = branches[-1].replace(norm="shared")
        blocks.append(spec.Block(branches=tuple(branches), parallel=branches[-1].norm == "shared"))
    positions = [None, spec.Learned(size=9, offset=2), spec.Sinusoidal()]
    return spec.Stack(
        dim=dim,
        depth=chance.choice([1, 3]),
        pattern=tuple(blocks),
        embeddings=spec.Embeddings(
            vocabulary=11,
            position=chance.choice(positions),
            segments=chance.choice([0, 2]),
            norm=chance.choice([None, *NORMS]),
        ),
        norm=chance.choice([None, *NORMS]),
        relative=chance.choice([None, spec.RelativeBuckets(buckets=6, max_distance=9, bidirectional=False)]),
    )


NORMS = (spec.Norm(kind="rms"), spec.Norm(kind="layer", bias=True), spec.Norm(kind="layer", weight=False))


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("shape", ["encoder", "decoder", "encoder-decoder"])
def test_random_models(shape: str, seed: int) -> None:
    """Every parameter of models of any parts, by name and shape, each once; and their number."""
    chance = random.Random(seed)
    encoder = odd_stack(chance, chance.choice([8, 10]), False) if shape != "decoder" else None
    decoder = odd_stack(chance, 8, encoder is not None) if shape != "encoder" else None
    shared = encoder is not None and decoder is not None and encoder.dim == decoder.dim
    head = spec.LanguageModelHead(tied=chance.random() < 0.5, bias=chance.random() < 0.5)
    model = spec.Transformer(encoder=encoder, decoder=decoder, head=head, shared_embedding=shared)
    assert shapes(model) == built(model)
    assert count(model) == sum(parameter.numel() for parameter in build(model, seed=0).parameters())


HEADS = [
    spec.LanguageModelHead(),
    spec.LanguageModelHead(tied=True, bias=True),
    spec.MaskedLanguageModelHead(norm=spec.Norm(kind="layer", bias=True)),
    spec.MaskedLanguageModelHead(norm=spec.Norm(kind="rms"), tied=False, bias=False),
    spec.SequenceClassificationHead(labels=3),
    spec.SequenceClassificationHead(labels=3, activation=None, bias=False),
    spec.SequenceClassificationHead(labels=3, bias=False),
    spec.TokenClassificationHead(labels=4, bias=False),
    spec.EmbeddingHead(),
]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: repr(head)[:60])
def test_heads(head: spec.Head) -> None:
    """Every head, tied and not, with biases and without."""
    model = families.llama("tiny").replace(head=head)
    assert shapes(model) == built(model)


@pytest.mark.parametrize("family", families.registered().values(), ids=lambda family: family.name)
def test_families(family: families.Family) -> None:
    """Every family's tiny model with every one of its heads."""
    for architecture in family.architectures:
        model = family("tiny", architectures=[architecture])
        assert shapes(model) == built(model)
