"""Direct logit attribution: how much each head and each layer adds to one logit (Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits"; Wang et al. 2022, https://arxiv.org/abs/2211.00593, section 3).

The residual stream is a sum, and the logit is linear in it but for the norms on the way: with each norm's scale held at
what it was, everything that was added to the stream has its share, and the shares sum to the logit. That is walked
backwards here, from the row of the head's matrix that makes the logit. So norms after the sum (the 2017 model, BERT)
and of what branches give (Gemma 2, OLMo 2) take part as the final one does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anyformer import spec
from anyformer.errors import InputError
from anyformer.inspection.tracing import Trace, trace
from anyformer.inspection.tracing.blocks import contributions, weight_of
from anyformer.model import Transformer
from anyformer.model.block import Block
from anyformer.parts.norms import Norm


@dataclass(frozen=True)
class Attribution:
    """The shares of a logit (or of the difference of two), at one position of each row.

    logit      [B] float64: before a soft cap
    parts      [B] each: `embeddings`, every branch (`decoder.layers.3.attention`, ...), and `constant`, which is what
               norms and head add whatever they read. They sum to the logit
    heads      [B, H] for each attention: of its part, what each head's; the rest of the part is its output's bias
    """

    logit: Tensor
    parts: dict[str, Tensor]
    heads: dict[str, Tensor]


@torch.no_grad()
def attribution(
    model: Transformer,
    tokens: Tensor,
    answer: int | Tensor,
    other: int | Tensor | None = None,
    position: int = -1,
    **given: Tensor,
) -> Attribution:
    """Whose the logit of `answer` is (an id, or [B] of them) after tokens [B, T], or by how much it exceeds `other`'s.

    Raises `InputError` for a head that is not linear (BERT's), or has no vocabulary, and for a position that is not
    there."""
    if not isinstance(model.spec.head, spec.LanguageModelHead) or model.head is None:
        raise InputError(
            f"only a language model's head is linear in the stream; this model ends in a {model.spec.head.kind} head"
        )
    if not -tokens.shape[1] <= position < tokens.shape[1]:
        raise InputError(f"there is no position {position} among {tokens.shape[1]} tokens")
    stack, name = model.output_stack, "decoder" if model.decoder is not None else "encoder"
    attentions = [f"{name}.layers.{layer}.{branch}.heads" for layer, branch in _attentions(stack.layers)]
    wanted = ("embeddings", "layers.*.*.output", "layers.*.*.residual_before", "layers.*.residual_after", "hidden")
    with trace(model, *attentions, *(f"{name}.{site}" for site in wanted)) as t:
        model(tokens, **given)
    walk = _Walk(t, position, *_direction(model, answer, other, len(tokens)))
    logit = walk.constant + walk.share(t[f"{name}.hidden"])
    if stack.norm is not None:
        walk.through(stack.norm, _at(t[f"{name}.layers.{len(stack.layers) - 1}.residual_after"], position))
    for index, block in reversed([*enumerate(stack.layers)]):
        assert isinstance(block, Block)
        walk.block(block, f"{name}.layers.{index}")
    embeddings = {"embeddings": walk.share(t[f"{name}.embeddings"])}
    parts = embeddings | dict(reversed(walk.parts.items())) | {"constant": walk.constant}
    return Attribution(logit, parts, dict(reversed(walk.heads.items())))


class _Walk:
    """From the logit backwards: the direction [B, D] of the stream that counts toward it, before each step."""

    def __init__(self, t: Trace, position: int, toward: Tensor, constant: Tensor) -> None:
        self.t, self.position, self.toward, self.constant = t, position, toward, constant
        self.parts: dict[str, Tensor] = {}
        self.heads: dict[str, Tensor] = {}

    def share(self, value: Tensor) -> Tensor:
        """What a value [B, T, D] of the stream counts, [B]."""
        return (self.toward * _at(value, self.position)).sum(-1)

    def through(self, norm: Norm, read: Tensor) -> None:
        """To before a norm that has read [B, D]."""
        self.toward, added = frozen(norm, read, self.toward)
        self.constant = self.constant + added

    def block(self, block: Block, layer: str) -> None:
        """To before a layer."""
        for name, placement, *_ in reversed(block.branches):
            branch = f"{layer}.{name}"
            output = self.t[f"{branch}.output"]
            if placement == "post":
                norm = block.get_submodule(f"{name}_norm")
                assert isinstance(norm, Norm)
                self.through(norm, _at(self.t[f"{branch}.residual_before"] + output, self.position))
            self.parts[branch] = self.share(output)
            if f"{branch}.heads" in self.t:
                self.heads[branch] = self._heads(block, name, placement, self.t[f"{branch}.heads"])

    def _heads(self, block: Block, name: str, placement: str, heads: Tensor) -> Tensor:
        """What each head counts, [B, H], of what it read, [B, H, T, C]."""
        output, toward = block.get_submodule(f"{name}.output"), self.toward
        each = contributions(output, heads[:, :, self.position, None])[:, :, 0].double()
        norm = block._modules.get({"output": f"{name}_norm", "both": f"{name}_output_norm"}.get(placement, ""))
        if isinstance(norm, Norm):
            bias = getattr(output, "bias", None)
            toward, _ = frozen(norm, each.sum(1) + (0 if bias is None else bias.double()), toward)
        return torch.einsum("bhd,bd->bh", each, toward)


def frozen(norm: Norm, read: Tensor, toward: Tensor) -> tuple[Tensor, Tensor]:
    """A norm with its scale held at what it is for `read` [B, D] is linear, but for its bias: the direction [B, D] in
    what it reads that counts as `toward` does in what it gives, and what its bias counts, [B]."""
    factor = 1.0 if norm.weight is None else norm.weight.double() + (1 if norm.unit_offset else 0)
    read, before = read.double(), toward * factor
    if not norm.rms:
        read, before = read - read.mean(-1, keepdim=True), before - before.mean(-1, keepdim=True)
    before = before / (read.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return before, torch.zeros_like(toward[:, 0]) if norm.bias is None else toward @ norm.bias.double()


def _direction(
    model: Transformer, answer: int | Tensor, other: int | Tensor | None, rows: int
) -> tuple[Tensor, Tensor]:
    """The direction [B, D] of the hidden states that makes the logit, and what is added to it, [B]."""
    head = model.head
    assert head is not None
    output, width = head.output, model.spec.output.dim
    matrix = weight_of(output, width, torch.empty(0, dtype=model.dtype, device=model.device))
    bias = getattr(output, "bias", None)
    scale = getattr(head, "scale", None)

    def one(ids: int | Tensor) -> tuple[Tensor, Tensor]:
        which = torch.as_tensor(ids, device=matrix.device).expand(rows)
        if int(which.min()) < 0 or int(which.max()) >= len(matrix):
            raise InputError(f"the answer {ids} is outside the vocabulary of {len(matrix)}")
        row = matrix[which].double() * (1.0 if scale is None else scale)
        return row, torch.zeros_like(row[:, 0]) if bias is None else bias[which].double()

    toward, constant = one(answer)
    if other is not None:
        against, less = one(other)
        toward, constant = toward - against, constant - less
    return toward, constant


def _attentions(layers: torch.nn.ModuleList) -> list[tuple[int, str]]:
    """Layer and name of every branch that attends."""
    found = []
    for index, block in enumerate(layers):
        assert isinstance(block, Block)
        found += [(index, name) for name, *_ in block.branches if hasattr(block.get_submodule(name), "attended")]
    return found


def _at(value: Tensor, position: int) -> Tensor:
    """[B, D] of [B, T, D], in float64."""
    return value[:, position].double()
