"""Context parallelism: each rank holds a stretch of every sequence, T/n of its T tokens.

    stretch of T/n tokens, all heads ──┐ all to all ┌── all T tokens, H/n heads: attention as ever
    stretch of T/n tokens, all heads ──┘ all to all └──

Everything but attention sees one token at a time. Within attention a rank has some heads of the whole sequences
(Jacobs et al. 2023, DeepSpeed Ulysses), so that every mask, bias and kernel is what it is in one process, packed
documents stay one causal call each, and no rank has more work than another. Sent are queries, keys, values and outputs
once each, (2H + 2K) · C numbers a token and layer; n may be as large as the number of heads (keys and values are
repeated beyond kv_heads).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.data import NO_TARGET
from anyformer.errors import TrainingError
from anyformer.model import Output, Transformer
from anyformer.model.inputs import tokens_of
from anyformer.parts.context import Context
from anyformer.parts.experts import Experts
from anyformer.parts.kernels import Scores, attend
from anyformer.parts.kernels.int8_rows import Int8Rows
from anyformer.parts.masks import Mask, Tokens, Visible, lower
from anyformer.training.scale.heads import HeadsOf
from anyformer.training.scale.meshes import Exchange


def divide_sequences(model: Transformer, group: dist.ProcessGroup) -> None:
    """Let every pass with targets divide its sequences over the ranks of `group`. The gradients of its loss are then
    this rank's share, which sum to the whole over the ranks. `hidden` is this rank's stretch where there are gradients,
    and else whole."""
    divided = Divided(group)
    model.register_forward_pre_hook(divided.cut, with_kwargs=True)
    model.output_stack.register_forward_pre_hook(divided.enter)
    model.register_forward_hook(divided.leave)
    for mixture in model.modules():
        if isinstance(mixture, Experts):
            mixture.balance_loss = partial(balance_loss, mixture, group)  # type: ignore[method-assign]


def balance_loss(
    mixture: Experts, group: dist.ProcessGroup, shares_NE: Tensor, chosen_NK: Tensor, valid: Tensor | None
) -> Tensor:
    """What `Experts.balance_loss` computes, of a stretch: the mean over all stretches is that of whole sequences."""
    choices_NE = F.one_hot(chosen_NK, mixture.experts).sum(1).float() / mixture.top_k
    real = torch.ones_like(shares_NE[:, :1]) if valid is None else valid.reshape(-1, 1).float()
    together = torch.cat(((choices_NE * real).sum(0), real.sum()[None]))
    dist.all_reduce(together, group=group)
    fractions, count = together[:-1] / together[-1].clamp(min=1), together[-1].clamp(min=1)
    means = (shares_NE * real).sum(0) / count * dist.get_world_size(group)
    return mixture.experts * (fractions * means).sum()


class Divided:
    """What happens before, within and after a pass of the model."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.rank, self.ranks = group, dist.get_rank(group), dist.get_world_size(group)
        self.heads = HeadsOf(self.rank, self.ranks)
        self.whole: Tokens | None = None
        self.target_count: Tensor | None = None
        self.length = 0

    def cut(
        self, model: nn.Module, args: tuple[Tensor, ...], inputs: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]] | None:
        """The inputs of this rank's stretch; what masks may know of the whole is kept for `enter`."""
        if inputs.get("targets") is None:
            if torch.is_grad_enabled() and model.training:
                raise TrainingError("scale.context needs an objective whose loss the model computes; use scale.shard")
            return None
        tokens = args[0] if args else inputs["tokens"]
        self.length = tokens.shape[1]
        inputs = _padded({**inputs, "tokens": tokens}, -tokens.shape[1] % self.ranks)
        tokens = inputs["tokens"]
        about = (inputs.get(name) for name in ("valid", "documents", "positions", "prefix"))
        self.whole = tokens_of(tokens, *about)
        self.target_count = (inputs["targets"] != NO_TARGET).sum()
        per_token = {name: inputs[name] for name in ("tokens", "targets", "segments") if inputs.get(name) is not None}
        return (), {name: tensor.chunk(self.ranks, 1)[self.rank] for name, tensor in per_token.items()}

    def enter(self, stack: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The pass of the stack, as one over a stretch."""
        if self.whole is None:
            return None
        ids, context, segments = args
        inner = Stretch(self.whole, self)
        inner.auxiliary = context.auxiliary
        self.whole = None
        return ids, inner, segments

    def leave(self, model: nn.Module, args: tuple[Any, ...], out: Output) -> Output:
        """The output, with the loss of the whole sequences and the gradient of this stretch's share in it."""
        if self.target_count is None:
            return out
        assert out.loss is not None and out.target_count is not None
        count, self.target_count = self.target_count, None
        share = out.loss * (out.target_count / count.clamp(min=1))
        whole = share.detach().clone()
        dist.all_reduce(whole, group=self.group)
        loss = share + (whole - share.detach())
        hidden = out.hidden if torch.is_grad_enabled() else self._gathered(out.hidden)
        return replace(
            out, hidden=hidden, loss=loss, target_count=count, auxiliary_loss=out.auxiliary_loss / self.ranks
        )

    def _gathered(self, hidden: Tensor) -> Tensor:
        """[B, T/n, D] -> [B, T, D], for whoever measures more than a loss."""
        stretches = [torch.empty_like(hidden) for _ in range(self.ranks)]
        dist.all_gather(stretches, hidden.contiguous(), group=self.group)
        return torch.cat(stretches, 1)[:, : self.length]


class Stretch(Context):
    """One pass of one stack over a stretch of its sequences."""

    def __init__(self, whole: Tokens, divided: Divided) -> None:
        width = whole.length // divided.ranks
        super().__init__(whole[divided.rank * width : (divided.rank + 1) * width])
        self.whole, self.divided = whole, divided

    def visible(self, mask: Mask, keys: Tokens) -> Visible:
        """The mask, lowered for the whole sequences."""
        if id(mask) not in self._made:
            self._made[id(mask)] = lower(mask, self.whole, self.whole)
        return self._made[id(mask)]

    def prepare(self, mask: Mask, keys: Tokens, scores: Scores, dtype: torch.dtype) -> None:
        super().prepare(mask, keys, self.divided.heads(scores), dtype)

    def attend(
        self, q: Tensor, k: Tensor | Int8Rows, v: Tensor | Int8Rows, mask: Mask, keys: Tokens, scores: Scores
    ) -> Tensor:
        assert isinstance(k, Tensor) and isinstance(v, Tensor), "only a cache keeps 8 bits, and training has none"
        ranks = self.divided.ranks
        if k.shape[1] % ranks:
            k, v = (x.repeat_interleave(ranks // x.shape[1], 1) for x in (k, v))
        q, k, v = self._some_heads(q, k, v)
        out = attend(q, k, v, self.visible(mask, keys), self.divided.heads(scores))
        return self._all_heads(out)

    def _some_heads(self, *all_heads: Tensor) -> tuple[Tensor, ...]:
        """[B, H, T/n, C] each, of any number of heads -> [B, H/n, T, C]."""
        parts = [x.unflatten(1, (self.divided.ranks, -1)) for x in all_heads]
        sent = torch.cat(parts, 2).movedim(1, 0)
        here = self._exchange(sent).movedim(0, 2).flatten(2, 3)
        return here.split([part.shape[2] for part in parts], 1)

    def _all_heads(self, x: Tensor) -> Tensor:
        """[B, H/n, T, C] -> [B, H, T/n, C]."""
        sent = x.unflatten(2, (self.divided.ranks, -1)).movedim(2, 0)
        return self._exchange(sent).movedim(0, 1).flatten(1, 2)

    def _exchange(self, x: Tensor) -> Tensor:
        """[n, ...]: part i goes to rank i, and part i comes from rank i."""
        each = [1] * self.divided.ranks
        return Exchange.apply(x, each, each, self.divided.group)


def _padded(inputs: Mapping[str, Any], missing: int) -> dict[str, Any]:
    """The inputs with `missing` tokens more in each row, a document that asks for nothing and that no other sees."""
    if not missing:
        return dict(inputs)
    B, T = inputs["tokens"].shape
    fillers = {"targets": NO_TARGET, "documents": -1}
    padded = {
        name: F.pad(value, (0, missing), value=fillers.get(name, 0))
        if isinstance(value, Tensor) and value.shape[1:] == (T,)
        else value
        for name, value in inputs.items()
    }
    if not isinstance(padded.get("documents"), Tensor):
        rows = inputs.get("documents") or ((T,),) * B
        padded["documents"] = tuple((*row, missing) for row in rows)
        if isinstance(inputs.get("prefix"), tuple):
            padded["prefix"] = tuple((*row, 0) for row in inputs["prefix"])
    return padded
