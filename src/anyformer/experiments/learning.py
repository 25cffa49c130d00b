"""What experiments that train share: a small model, a text in batches, and the shortest loop that learns.

A recipe and `anyformer train` are for models that are kept; these are trained to be measured, and forgotten.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from anyformer import data, spec
from anyformer.errors import ExperimentError
from anyformer.experiments.experiment import Lab
from anyformer.model import Transformer
from anyformer.training.optimizers import optimizers, set_learning_rate
from anyformer.training.schedules import learning_rate as rate_at

#: A gradient longer than this is cut to it.
CLIP = 1.0
#: Ids of bytes.
BYTES = 256
#: The share of a text, its end, that nothing is trained on.
HELD_OUT = 0.1

#: What a model is called with in step s: `tokens` and `targets`, `source` too where it has an encoder.
Batch = Callable[[int], Mapping[str, Tensor]]


def attention(dim: int, heads: int, **more: Any) -> spec.Attention:
    """Causal self-attention of heads that together are as wide as the model; `more` are fields of `spec.Attention`."""
    usual = {"heads": heads, "kv_heads": heads, "head_dim": dim // heads, "visibility": "causal"}
    return spec.Attention.from_data({**usual, **more})


def decoder(
    dim: int,
    depth: int,
    attention: spec.Attention,
    feed_forward: spec.Mixer | None = None,
    *,
    vocabulary: int = BYTES,
    position: spec.Sinusoidal | spec.Learned | None = None,
    relative: spec.RelativeBuckets | None = None,
    norm: spec.Norm | None = spec.Norm(kind="rms"),  # noqa: B008 (frozen)
    placement: Literal["pre", "post", "output", "both"] = "pre",
    context: int | None = None,
    std: float | None = 0.02,
) -> spec.Transformer:
    """A decoder of equal layers with tied embeddings; without a feed-forward, of attention alone. Weights are drawn
    with the deviation `std` (None: 1/√inputs of each matrix, with which narrow models begin to learn sooner)."""
    mixers = [attention] if feed_forward is None else [attention, feed_forward]
    branches = tuple(spec.Branch(mixer=mixer, norm=norm, placement=placement) for mixer in mixers)
    stack = spec.Stack(
        dim=dim,
        depth=depth,
        pattern=(spec.Block(branches=branches),),
        embeddings=spec.Embeddings(vocabulary=vocabulary, position=position),
        norm=norm if placement != "post" else None,
        relative=relative,
    )
    head = spec.LanguageModelHead(tied=True)
    fresh = spec.Initialization(std=std, depth_scaled=True)
    return spec.Transformer(decoder=stack, head=head, context=context, initialization=fresh)


def encoder_decoder(
    dim: int, depth: int, heads: int, feed_forward: spec.Mixer, *, vocabulary: int = BYTES
) -> spec.Transformer:
    """An encoder and a decoder of `depth` equal layers each, with rotary positions and one table for both, tied."""
    causal = attention(dim, heads, position=spec.Rotary())
    full = causal.replace(visibility="full")
    reads, writes = (decoder(dim, depth, own, feed_forward, vocabulary=vocabulary) for own in (full, causal))
    assert writes.decoder is not None
    (block,) = writes.decoder.pattern
    own, feed = block.branches
    cross = own.replace(mixer=full.replace(source="cross", position=None))
    stack = writes.decoder.replace(pattern=(block.replace(branches=(own, cross, feed)),))
    return writes.replace(encoder=reads.decoder, decoder=stack, shared_embedding=True)


def text_ids(lab: Lab, most: int = 4_000_000) -> tuple[Tensor, Tensor]:
    """The first `most` bytes of a text, as ids [N]: what is trained on, and its end, which is held out.

    The text is `lab.data`, a file or a folder, or Python's own library without its tests, which is everywhere.
    Raises `ExperimentError` where there is too little of it.
    """
    own = Path(sysconfig.get_paths()["stdlib"])
    exclude = ("test", "tests", "idle_test", "*.txt", "*.pyi")
    files = data.find_files(lab.data) if lab.data is not None else data.find_files(own, exclude=exclude)
    found = bytearray()
    for file in files:
        found += file.read_bytes()
        if len(found) >= most:
            break
    if len(found) < 100_000:
        raise ExperimentError(f"{lab.data} holds {len(found):,} bytes; an experiment learns from 100,000 or more")
    ids = torch.frombuffer(found[:most], dtype=torch.uint8).long()
    kept = round(len(ids) * (1 - HELD_OUT))
    return ids[:kept], ids[kept:]


def windows(ids: Tensor, length: int, rows: int, seed: int = 0) -> Batch:
    """In each step `rows` windows of `length` ids from random places, each with the id that follows as its target."""

    def batch(step: int) -> Mapping[str, Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        begins = torch.randint(len(ids) - length, (rows, 1), generator=generator)
        cut = ids[begins + torch.arange(length + 1)]
        return {"tokens": cut[:, :-1], "targets": cut[:, 1:]}

    return batch


def learn(
    model: Transformer,
    batch: Batch,
    steps: int,
    *,
    learning_rate: float,
    optimizer: str = "adamw",
    weight_decay: float = 0.1,
    schedule: str = "cosine",
    warmup: float = 0.05,
    watch: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Train for so many steps; returns the loss of each, nats a target. `watch` is told each step's, once its update
    is done. The model is left in evaluation mode."""
    made = optimizers(optimizer, model, weight_decay)
    losses = []
    model.train()
    for step in range(steps):
        set_learning_rate(made, rate_at(step, steps, peak=learning_rate, schedule=schedule, warmup=warmup))
        out = model(**batch(step))
        assert out.loss is not None
        (out.loss + out.auxiliary_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for one in made:
            one.step()
        model.zero_grad(set_to_none=True)
        losses.append(out.loss.item())
        watch(step, losses[-1])
    model.eval()
    return losses


@torch.no_grad()
def held_out_loss(model: Transformer, ids: Tensor, length: int, rows: int = 64, most: int = 8192) -> float:
    """The mean loss, nats an id, over `rows` windows of `length` spread evenly over held-out ids; no more than `most`
    ids are read at a time."""
    begins = torch.linspace(0, len(ids) - length - 1, rows).long()[:, None]
    cut = ids[begins + torch.arange(length + 1)]
    parts = cut.split(max(1, most // length))
    losses = []
    for part in parts:
        loss = model(part[:, :-1], targets=part[:, 1:]).loss
        assert loss is not None
        losses.append(loss.item() * len(part))
    return sum(losses) / rows


def thinned(losses: Sequence[float], points: int = 50) -> dict[str, list[float]]:
    """A training curve of few points: the mean loss over each stretch of steps, and the step in its middle."""
    edges = [len(losses) * point // points for point in range(points + 1)]
    spans = [(low, high) for low, high in pairwise(edges) if low < high]
    means = [round(sum(losses[low:high]) / (high - low), 4) for low, high in spans]
    return {"step": [(low + high - 1) / 2 for low, high in spans], "loss": means}
