"""The places of a model that can be looked at, by name.

    encoder.embeddings, decoder.embeddings   [B, T, D]      the first residual stream
    decoder.layers.3.residual_before         [B, T, D]      the stream that comes into a layer,
    decoder.layers.3.residual_after          [B, T, D]      and the one that leaves it
    decoder.hidden                           [B, T, D]      what the stack gives, after its final norm
    logits                                                  what the head gives

of each branch of a layer (`attention`, `cross_attention`, `feed_forward`, `experts`):

    ….attention.residual_before              [B, T, D]      the stream that the branch is added to
    ….attention.input                        [B, T, D]      what it reads: that stream, normalised where the norm is
    ….attention.output                       [B, T, D]      what is added: after a norm of what it gives, if any
    ….attention.residual_after               [B, T, D]      the stream then (after a norm of the sum, if any)

of attention and cross-attention, where S counts all keys, those of a cache as well:

    ….attention.queries                      [B, H, T, C]   turned by their positions, and so are
    ….attention.keys                         [B, K, S, C]   the keys
    ….attention.values                       [B, K, S, C]
    ….attention.weights                      [B, H, T, S]   at least float32; rows sum to one, less what goes to sinks
    ….attention.heads                        [B, H, T, C]   what each head reads: its weights times its values
    ….attention.contributions                [B, H, T, D]   what the output matrix makes of each head; they sum, with
                                                            its bias, to what attention gives

of the feed-forward and of experts (F is the width between its matrices):

    ….feed_forward.hidden                    [B, T, F]
    ….experts.shares                         [B, T, E]      the router's score of every expert
    ….experts.choices                        [B, T, top_k]  which experts
    ….experts.weights                        [B, T, top_k]  and how much each counts
    ….experts.shared.hidden                  [B, T, F]      of the expert that every token passes

In a parallel layer all branches read what comes into the layer, whatever their own stream is changed to. Latent
attention (DeepSeek) has as many keys as queries, and wider ones than values. A pattern names many sites at once: `*`
stands for anything within a name, `**` for any number of names: `decoder.layers.*.attention.weights`, `**.hidden`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from torch import nn

from anyformer.errors import InputError
from anyformer.model import Transformer
from anyformer.model.block import Block
from anyformer.parts.experts import Experts
from anyformer.parts.feedforward import FeedForward

OF_ATTENTION = ("queries", "keys", "values", "weights", "heads", "contributions")
OF_EXPERTS = ("shares", "choices", "weights")


def sites(model: Transformer, *patterns: str) -> list[str]:
    """The names of all sites of a model in the order in which it passes them, or of those that patterns match.

    Raises `InputError` for a pattern that matches none, naming the nearest that would."""
    names = list(_sites(model))
    if not patterns:
        return names
    found = {name for pattern in patterns for name in matching(names, pattern)}
    return [name for name in names if name in found]


def matching(names: Sequence[str], pattern: str, of: str = "model") -> list[str]:
    """Those of the names, a model's or a trace's, that a pattern matches, which must be one at least."""
    rule = re.compile("".join(_RULES.get(piece, re.escape(piece)) for piece in re.split(r"(\*\*|\*)", pattern)))
    found = [name for name in names if rule.fullmatch(name)]
    if found:
        return found
    general = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))
    nearest = get_close_matches(re.sub(r"\.-?\d+\.", ".*.", pattern), general, n=3, cutoff=0) or general[:3]
    depths = {name.split(".")[0]: int(name.split(".")[2]) for name in names if ".layers." in name}
    layers = [f"{stack}.layers.0 to {last}" for stack, last in depths.items()] if of == "model" else []
    has = f"it has {' and '.join(layers)}, and " if layers else ""
    raise InputError(f"no site of this {of} matches '{pattern}'; {has}the nearest patterns are {', '.join(nearest)}")


_RULES = {"**": r".*", "*": r"[^.]*"}


def _sites(model: Transformer) -> Iterator[str]:
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        if stack is None:
            continue
        yield f"{name}.embeddings"
        for index, block in enumerate(stack.layers):
            assert isinstance(block, Block)
            yield from (f"{name}.layers.{index}.{site}" for site in _of_block(block))
        yield f"{name}.hidden"
    if model.head is not None:
        yield "logits"


def _of_block(block: Block) -> Iterator[str]:
    yield "residual_before"
    for name, *_ in block.branches:
        own = _of_mixer(block.get_submodule(name))
        yield from (f"{name}.{site}" for site in ("residual_before", "input", *own, "output", "residual_after"))
    yield "residual_after"


def _of_mixer(mixer: nn.Module) -> tuple[str, ...]:
    if hasattr(mixer, "attended"):
        return OF_ATTENTION
    if isinstance(mixer, FeedForward):
        return ("hidden",)
    if isinstance(mixer, Experts):
        return OF_EXPERTS if mixer.shared is None else (*OF_EXPERTS, "shared.hidden")
    return ()
