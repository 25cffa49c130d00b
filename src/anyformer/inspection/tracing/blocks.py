"""How a layer is watched: what is wrapped of it, and how its sites follow from what passes there.

Few rows take a way of their own through a layer (`Block.few`): norms, products and additions come out of one kernel.
What never exists by itself on that way is made beside it, only to be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.inspection.tracing.place import Place
from anyformer.inspection.tracing.sites import OF_ATTENTION, OF_EXPERTS
from anyformer.model.block import Block
from anyformer.parts.cache import LayerCache
from anyformer.parts.context import Context
from anyformer.parts.experts import Experts
from anyformer.parts.feedforward import FeedForward
from anyformer.parts.kernels import reference
from anyformer.parts.linear import Linear
from anyformer.parts.masks import Tokens
from anyformer.parts.norms import Norm

#: A module, the method of it that is wrapped, and the wrapper: called with the original before its arguments.
Wrap = tuple[nn.Module, str, Callable[..., Any]]


def wraps_of_block(block: Block, place: Place) -> Iterator[Wrap]:
    """All that has to be wrapped of a layer for those who watch it."""
    branches = [
        WatchedBranch(block, name, placement, shares, place.of(name)) for name, placement, shares, _ in block.branches
    ]
    inner = any(branch.place.wants("residual_before", "residual_after") for branch in branches)
    changed = any(branch.place.changes("residual_before", "residual_after") for branch in branches)
    for branch in branches:
        yield from branch.wraps(inner)

    def forward(original: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
        x = place.see("residual_before", x)
        y = _pass_branches(block, branches, x, *rest) if changed else original(x, *rest)
        if inner and not changed:
            _show_stream(x, y, branches)
        return place.see("residual_after", y)

    if inner or place.wants("residual_before", "residual_after"):
        yield block, "forward", forward


def _show_stream(x: Tensor, y: Tensor, branches: list[WatchedBranch]) -> None:
    """Show the residual stream before and after each branch of a layer that has made y of x."""
    for branch in branches:
        branch.place.see("residual_before", x)
        x = y if branch is branches[-1] else branch.added_to(x)
        branch.place.see("residual_after", x)
        branch.output = branch.reached = None


def _pass_branches(
    block: Block, branches: list[WatchedBranch], x: Tensor, context: Context, cache: LayerCache | None = None
) -> Tensor:
    """A layer's own pass, branch by branch, for those who change the stream between them."""
    stream = normed = x
    for branch in branches:
        stream = branch.place.see("residual_before", stream)
        read = x if block.parallel else stream
        normed = normed if branch.shares else branch.normed(read)
        branch.output = branch.mixer(normed, context, cache)
        if branch.output_norm is not None:
            branch.output = branch.output_norm(branch.output)
        stream = branch.place.see("residual_after", branch.added_to(stream))
        branch.output = None
    return stream


class WatchedBranch:
    """A branch of a layer.

    output   what it has added to the stream in this pass, or None where that never was by itself
    reached  the stream that it has come to, where it made that itself
    read     what its last matrix has read
    """

    def __init__(self, block: Block, name: str, placement: str, shares: bool, place: Place) -> None:
        self.place, self.mixer, self.shares = place, block.get_submodule(name), shares
        norm = block._modules.get(f"{name}_norm")
        #: The norms of what the mixer reads, of what it gives, and of the sum.
        self.input_norm = norm if placement in ("pre", "both") else None
        self.output_norm = norm if placement == "output" else block._modules.get(f"{name}_output_norm")
        self.stream_norm = norm if placement == "post" else None
        self.output: Tensor | None = None
        self.reached: Tensor | None = None
        self.read: Tensor | None = None
        self.rows: tuple[int, int] = (0, 0)

    def wraps(self, inner: bool) -> Iterator[Wrap]:
        """What is wrapped of it; `inner`: for the stream between branches as well."""
        mixer, place = self.mixer, self.place
        gives = place.wants("output")
        routed = isinstance(mixer, Experts) and place.wants(*OF_EXPERTS, "shared.hidden")
        if gives or inner or routed or place.wants("input"):
            yield mixer, "forward", self.forward
        if isinstance(self.output_norm, Norm) and (gives or inner):
            yield self.output_norm, "added", self.added
        if hasattr(mixer, "attended") and (gives or place.wants(*OF_ATTENTION)):
            yield mixer, "attended", self.attended
        if isinstance(mixer, FeedForward) and (gives or place.wants("hidden")):
            yield from ((mixer, method, self.hidden) for method in ("product", "hidden"))
        if isinstance(mixer, Experts) and place.wants(*OF_EXPERTS):
            yield mixer, "route", self.route
        if isinstance(mixer, Experts) and mixer.shared is not None and place.wants("shared.hidden"):
            yield from ((mixer.shared, method, self.shared_hidden) for method in ("product", "hidden"))

    def added_to(self, stream: Tensor) -> Tensor:
        """The stream after this branch, which was added to `stream`."""
        reached = self.reached
        if reached is None:
            assert self.output is not None
            reached = stream + self.output
        return reached if self.stream_norm is None else self.stream_norm(reached)

    def normed(self, stream: Tensor) -> Tensor:
        """The stream as its mixer reads it."""
        return stream if self.input_norm is None else self.input_norm(stream)

    def forward(
        self,
        original: Callable[..., Tensor],
        x: Tensor,
        context: Context,
        cache: LayerCache | None = None,
        norm: Norm | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """A mixer's pass. It is handed its norm and the stream where rows are few."""
        self.rows, place = (x.shape[0], x.shape[1]), self.place
        if place.wants("input"):
            read = place.see("input", x if norm is None else norm(x))
            x, norm = (read, None) if place.changes("input") else (x, norm)
        if residual is None:
            out = original(x, context, cache) if norm is None else original(x, context, cache, norm)
            self.output = out if self.output_norm is not None else place.see("output", out)
            return self.output
        if place.changes("output"):
            self.output = place.see("output", original(x, context, cache, norm))
            self.reached = residual + self.output
            return self.reached
        self.reached = original(x, context, cache, norm, residual)
        if place.wants("output"):
            assert self.read is not None
            place.see("output", _last_matrix(self.mixer)(self.read))
        return self.reached

    def added(self, original: Callable[..., Tensor], x: Tensor, residual: Tensor | None) -> Tensor:
        """The norm of what the mixer gives, and its addition to the stream where rows are few."""
        if residual is None:
            self.output = self.place.see("output", original(x, None))
            return self.output
        if self.place.changes("output"):
            self.reached = residual + self.place.see("output", original(x, None))
            return self.reached
        self.reached = original(x, residual)
        if self.place.wants("output"):
            self.place.see("output", original(x, None))
        return self.reached

    def attended(self, original: Callable[..., Tensor], context: Context, keys: Tokens, *heads: Any) -> Tensor:
        """What each head reads."""
        place, mixer = self.place, self.mixer
        mask: Any = mixer.mask
        heads_read: Tensor | None = None
        if place.wants("queries", "keys", "values", "weights"):
            q, k, v = mixer.each_head(*heads)  # type: ignore[operator]
            kept = context.cache is not None  # what a cache holds will be written over
            q = place.see("queries", q)
            k = place.see("keys", k.clone() if kept and place.wants("keys") else k)
            v = place.see("values", v.clone() if kept and place.wants("values") else v)
            scores = mixer.scores(context)  # type: ignore[operator]
            if place.wants("weights"):
                weights = place.see("weights", reference.weights(q, k, context.visible(mask, keys), scores))
                if place.changes("weights"):
                    each = v.repeat_interleave(weights.shape[1] // v.shape[1], dim=1)
                    heads_read = (weights @ each.to(weights.dtype)).to(q.dtype)
            if heads_read is None and place.changes("queries", "keys", "values"):
                heads_read = context.attend(q, k, v, mask, keys, scores)
        if heads_read is None:
            heads_read = original(context, keys, *heads)
        heads_read = place.see("heads", heads_read)
        if place.wants("contributions"):
            place.see("contributions", contributions(_last_matrix(mixer), heads_read))
        self.read = heads_read.transpose(1, 2).flatten(2)
        return heads_read

    def hidden(self, original: Callable[..., Tensor | None], *args: Any) -> Tensor | None:
        """What stands between a feed-forward's matrices, by one kernel (`product`, where it serves) or by several."""
        hidden = original(*args)
        if hidden is not None:
            self.read = self.place.see("hidden", hidden)
            return self.read
        return None

    def shared_hidden(self, original: Callable[..., Tensor | None], *args: Any) -> Tensor | None:
        """The same of the expert that all tokens pass, which stand in one row."""
        hidden = original(*args)
        return None if hidden is None else self.place.see("shared.hidden", hidden.unflatten(0, self.rows)).flatten(0, 1)

    def route(self, original: Callable[..., tuple[Tensor, Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A router's scores of all experts, its weights and choices: tokens stand in one row."""
        shares, weights, choices = (found.unflatten(0, self.rows) for found in original(x))
        place = self.place
        shares, choices = place.see("shares", shares), place.see("choices", choices)
        return shares.flatten(0, 1), place.see("weights", weights).flatten(0, 1), choices.flatten(0, 1)


def contributions(output: nn.Module, heads: Tensor) -> Tensor:
    """What an output matrix makes of each head alone, without its bias, [B, H, T, D] of [B, H, T, C]."""
    matrix = weight_of(output, heads.shape[1] * heads.shape[3], heads)
    return torch.einsum("bhtc,dhc->bhtd", heads, matrix.unflatten(1, (heads.shape[1], -1)))


def weight_of(linear: nn.Module, inputs: int, like: Tensor) -> Tensor:
    """The matrix [out, in] of anything linear: adapters and blocks of few bits are asked what they make of ones."""
    if type(linear) is Linear:
        return linear.weight
    nothing = linear(like.new_zeros(1, inputs))
    return (linear(torch.eye(inputs, dtype=like.dtype, device=like.device)) - nothing).T


def _last_matrix(mixer: nn.Module) -> nn.Module:
    """What writes a mixer's result."""
    return mixer.get_submodule("down" if isinstance(mixer, FeedForward) else "output")
