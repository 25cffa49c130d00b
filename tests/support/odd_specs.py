"""Small specs in odd shapes, drawn at random: any of the parts, widths that are no power of two, heads that do not fill
the width, layers that differ from one to the next."""

from __future__ import annotations

import random
from typing import Any

from anyformer import spec

#: Scalings whose angles do not follow the length reached, so that what a row says does not hang on its neighbours.
SCALINGS = (
    None,
    None,
    spec.LinearScaling(factor=2.5),
    spec.YarnScaling(factor=4.0, original_context=16),
    spec.Llama3Scaling(factor=4.0, original_context=16),
)


def odd_stack(
    draw: random.Random, *, causal: bool, cross: bool = False, vocabulary: int = 37, learned: int = 64
) -> spec.Stack:
    dim = draw.choice([6, 8, 10])
    norm = draw.choice(
        [
            spec.Norm(kind="rms", eps=1e-6),
            spec.Norm(kind="rms", unit_offset=True),
            spec.Norm(kind="layer", bias=True),
            spec.Norm(kind="layer", weight=False),
        ]
    )
    where = draw.choice(["sinusoidal", "learned", "rotary", "alibi", "own buckets", "shared buckets", "none"])
    heads, kv_heads = draw.choice([(1, 1), (2, 1), (3, 3), (4, 2), (6, 3)])
    buckets = spec.RelativeBuckets(buckets=8, max_distance=20, bidirectional=not causal)

    def attention() -> spec.Attention:
        """Heads are the stack's own, as a shared table needs; everything else differs from layer to layer."""
        head_dim = draw.choice([2, 4, 6])
        position: Any = {
            "rotary": spec.Rotary(
                base=draw.choice([100.0, 10000.0]),
                dim=draw.choice([None, 2]),
                interleaved=draw.random() < 0.5,
                scaling=draw.choice(SCALINGS),
            ),
            "alibi": spec.Alibi(),
            "own buckets": buckets,
        }.get(where)
        window = draw.choice([None, None, (3, None), (8, 1)] if causal else [None, None, (3, 2), (None, 4), (5, None)])
        return spec.Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            visibility="causal" if causal else "full",
            window=window,
            position=position,
            **_attention_details(draw),
        )

    def feed_forward() -> spec.Mixer:
        if draw.random() < 0.25:
            return spec.MixtureOfExperts(
                experts=draw.choice([2, 5]),
                top_k=draw.choice([1, 2]),
                hidden=draw.choice([4, 7]),
                gated=draw.random() < 0.5,
                normalize=draw.random() < 0.5,
                **draw.choice([{}, {"shared_hidden": 5}, {"shared_hidden": 5, "shared_gate": True}]),
            )
        return spec.FeedForward(
            hidden=draw.choice([9, 12]),
            activation=draw.choice(["relu", "gelu", "gelu_tanh", "silu"]),
            gated=draw.random() < 0.5,
            bias=draw.random() < 0.5,
        )

    def block() -> spec.Block:
        mixers = [attention(), feed_forward()]
        if cross:
            heads_across = draw.choice([(2, 2), (4, 1)])
            mixers.insert(
                1,
                spec.Attention(
                    heads=heads_across[0],
                    kv_heads=heads_across[1],
                    head_dim=draw.choice([2, 5]),
                    source="cross",
                    visibility="full",
                    **_attention_details(draw),
                ),
            )
        parallel = not cross and draw.random() < 0.25
        placement = draw.choice(["pre", "output"] if parallel else ["pre", "post", "output", "both"])
        norms: list[Any] = [norm] * len(mixers)
        if parallel and placement == "pre" and draw.random() < 0.5:
            norms[1] = "shared"
        branches = [spec.Branch(mixer=m, norm=n, placement=placement) for m, n in zip(mixers, norms, strict=True)]
        return spec.Block(branches=tuple(branches), parallel=parallel, repeat=draw.choice([1, 1, 2]))

    embedded = {
        "sinusoidal": spec.Sinusoidal(interleaved=draw.random() < 0.5),
        "learned": spec.Learned(size=learned, offset=draw.choice([0, 2])),
    }
    return spec.Stack(
        dim=dim,
        depth=draw.choice([2, 3]),
        pattern=tuple(block() for _ in range(draw.choice([1, 2]))),
        embeddings=spec.Embeddings(
            vocabulary=vocabulary,
            position=embedded.get(where),
            segments=draw.choice([0, 0, 2]),
            scale=draw.choice([None, 1.7]),
            norm=draw.choice([None, norm]),
        ),
        norm=draw.choice([None, norm]),
        relative=buckets if where == "shared buckets" else None,
    )


def _attention_details(draw: random.Random) -> dict[str, Any]:
    return {
        "bias": draw.random() < 0.5,
        "output_bias": draw.random() < 0.5,
        "query_key_norm": draw.choice([None, None, spec.Norm(kind="rms")]),
        "query_key_norm_over": draw.choice(["head", "width"]),
        "soft_cap": draw.choice([None, None, 2.0]),
        "scale": draw.choice([None, 0.3]),
        "sinks": draw.random() < 0.25,
    }


def odd_model(draw: random.Random, shape: str, *, learned: int = 64) -> spec.Transformer:
    encoder = odd_stack(draw, causal=False, learned=learned) if shape != "decoder" else None
    decoder = odd_stack(draw, causal=True, cross=encoder is not None, learned=learned) if shape != "encoder" else None
    if encoder is None or decoder is None:
        shared = False
    else:
        shared = encoder.dim == decoder.dim and draw.random() < 0.5
    head = spec.LanguageModelHead(
        tied=draw.random() < 0.5,
        bias=draw.random() < 0.5,
        scale=draw.choice([None, 0.5]),
        soft_cap=draw.choice([None, 3.0]),
    )
    return spec.Transformer(
        encoder=encoder,
        decoder=decoder,
        head=head,
        shared_embedding=shared,
        # Large enough that every part is heard in the logits.
        initialization=spec.Initialization(std=0.3),
    )
