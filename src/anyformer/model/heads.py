"""Heads: from hidden states to logits, and to the loss without ever holding all logits at once."""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from anyformer import spec
from anyformer.errors import InputError
from anyformer.parts.feedforward import ACTIVATIONS
from anyformer.parts.kernels import wide
from anyformer.parts.linear import Linear, is_plain, many
from anyformer.parts.masks import Tokens
from anyformer.parts.norms import Norm

#: A target that asks for nothing.
IGNORED = -100
#: Logits that may exist at a time while a loss is computed, in elements (64 MiB in float32).
LARGEST_LOGITS = 1 << 24


def _must_be(targets: Tensor, wanted: torch.Size) -> None:
    if targets.shape != wanted:
        raise InputError(f"targets must be {list(wanted)} for this head, not {list(targets.shape)}")


class Head(nn.Module):
    """What reads the hidden states. `forward` gives logits; `loss` the summed cross-entropy of the targets.

    In training mode alone: `label_smoothing` of the probability goes to all labels alike (Szegedy et al. 2016, section
    7), and `z_loss` · log²Z of each target's logits is added to its loss (Chowdhery et al. 2022, section 5).
    """

    output: nn.Linear
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def forward(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        return self.finish(self.output(self.read(hidden, tokens)))

    def read(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """What `output` reads."""
        return hidden

    def finish(self, logits: Tensor) -> Tensor:
        """What becomes of what `output` gives."""
        return logits

    def loss(self, hidden: Tensor, tokens: Tokens, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(summed cross-entropy in nats, float32; number of targets). Where all logits would be more than
        `LARGEST_LOGITS`, they are made in chunks, one after another."""
        if isinstance(self, SequenceClassificationHead):
            logits = self(hidden, tokens)
            _must_be(targets, logits.shape[:1])
            return self.cross_entropy(logits, targets), (targets != IGNORED).sum()
        _must_be(targets, hidden.shape[:2])
        rows, wanted = hidden.flatten(0, 1), targets.flatten()
        count = (wanted != IGNORED).sum()
        if hidden.device.type == "cpu" and not torch.compiler.is_compiling() and count < len(rows):
            # Logits that nobody asked for are not made. Elsewhere the host would wait to know which these are, and a
            # graph would break.
            asked = (wanted != IGNORED).nonzero()[:, 0]
            rows, wanted = rows.index_select(0, asked), wanted[asked]
        chunks = ceil(len(rows) / max(1, LARGEST_LOGITS // self.output.out_features))
        if chunks <= 1:
            return self.rows_loss(rows, tokens, wanted), count
        step = ceil(len(rows) / chunks)
        if not torch.is_grad_enabled():
            parts = zip(rows.split(step), wanted.split(step))
            return torch.stack([self.rows_loss(part, tokens, asked) for part, asked in parts]).sum(), count
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return _ChunkedLoss.apply(self, tokens, wanted, step, rows, *learning), count

    def rows_loss(self, rows: Tensor, tokens: Tokens, targets: Tensor) -> Tensor:
        """The summed loss of rows [N, D], whose logits exist all at once."""
        return self.cross_entropy(self(rows, tokens), targets)

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Of logits [N, V], summed, in float32 or more."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        smoothing = self.label_smoothing if self.training else 0.0
        try:
            loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)
        except IndexError:
            asked = targets[targets != IGNORED]
            worst = asked.max() if asked.max() >= logits.shape[-1] else asked.min()
            raise InputError(f"target {int(worst)} is none of the {logits.shape[-1]} that this head knows") from None
        if self.z_loss and self.training:
            loss = loss + self.z_loss * (logits.logsumexp(-1).square() * (targets != IGNORED)).sum()
        return loss


class _ChunkedLoss(torch.autograd.Function):
    """The loss of rows [N, D], of which `step` have logits at a time.

    Each chunk is differentiated as soon as its loss is known, so that its logits are neither kept nor made twice; the
    backward pass only scales what was found (Hsu et al. 2024, https://arxiv.org/abs/2410.10989, section 3.2).
    """

    @staticmethod
    def forward(
        ctx: Any, head: Head, tokens: Tokens, targets: Tensor, step: int, rows: Tensor, *learning: Tensor
    ) -> Tensor:
        dtype = torch.promote_types(rows.dtype, torch.float32)
        total = rows.new_zeros((), dtype=dtype)
        of_rows = torch.empty_like(rows)
        sums = {parameter: torch.zeros_like(parameter, dtype=dtype) for parameter in learning}
        output, others = head.output, list(learning)
        if _gathers(head.output, rows):
            weight, bias = head.output.weight, head.output.bias
            output = partial(_Gathered.apply, weight, bias, sums.get(weight), sums.get(bias))
            others = [parameter for parameter in learning if parameter is not weight and parameter is not bias]
        for part, wanted, of_part in zip(rows.split(step), targets.split(step), of_rows.split(step)):
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                loss = head.cross_entropy(head.finish(output(head.read(part, tokens))), wanted)
            of_part[:], *found = torch.autograd.grad(loss, [part, *others], materialize_grads=True)
            for parameter, new in zip(others, found, strict=True):
                sums[parameter] += new
            total += loss.detach()
        ctx.save_for_backward(of_rows, *(found.to(own.dtype) for own, found in sums.items()))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *come_back: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # The matrix of a large vocabulary is not copied where nobody comes back for what was found.
        again = torch._C._autograd._get_current_graph_task_keep_graph()  # type: ignore[attr-defined]
        factors = [come_back[0].to(found.dtype) for found in ctx.saved_tensors]
        scaled = (f * found if again else found.mul_(f) for f, found in zip(factors, ctx.saved_tensors))
        return None, None, None, None, *scaled


def _gathers(output: nn.Module, rows: Tensor) -> bool:
    """Whether `_Gathered` is the output's product: a plain one, whose gradients are of its own dtype."""
    if not is_plain(output) or type(output.weight) is not nn.Parameter:
        return False
    whole = output.weight.dtype == rows.dtype and rows.dtype in (torch.float32, torch.float64)
    return whole and (not torch.is_autocast_enabled(rows.device.type) or wide.pays(rows))


class _Gathered(torch.autograd.Function):
    """y = x Wᵀ + b of a chunk, whose gradients of W and b are added to those of the chunks before where these are: of a
    large vocabulary, a matrix less to be written and read again."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor | None,
        of_weight: Tensor | None,
        of_bias: Tensor | None,
        x: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sums = of_weight, of_bias
        return many(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (x, weight), (of_weight, of_bias) = ctx.saved_tensors, ctx.sums
        with torch.autocast(dy.device.type, enabled=False):
            dy = dy.to(weight.dtype)
            if of_weight is not None:
                of_weight.addmm_(dy.T, x)
            if of_bias is not None:
                of_bias += dy.sum(0)
            return None, None, None, None, dy @ weight


class LanguageModelHead(Head):
    """Logits [..., V] = cap(scale · h Wᵀ + b)."""

    def __init__(self, head: spec.LanguageModelHead, dim: int, vocabulary: int) -> None:
        super().__init__()
        self.output = Linear(dim, vocabulary, bias=head.bias)
        self.scale, self.soft_cap = head.scale, head.soft_cap

    def read(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        return hidden if self.scale is None else hidden * self.scale

    def finish(self, logits: Tensor) -> Tensor:
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)


class MaskedLanguageModelHead(Head):
    """Logits [..., V] after a dense layer, an activation and a norm (Devlin et al. 2019)."""

    def __init__(self, head: spec.MaskedLanguageModelHead, dim: int, vocabulary: int) -> None:
        super().__init__()
        self.dense = Linear(dim, dim, bias=head.dense_bias)
        self.activation = ACTIVATIONS[head.activation]
        self.norm = Norm(head.norm, dim)
        self.output = Linear(dim, vocabulary, bias=head.bias)

    def read(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        return self.norm(self.activation(self.dense(hidden)))


def pool(hidden: Tensor, tokens: Tokens, how: str) -> Tensor:
    """One vector a sequence, [B, D]: of its first or last token, or the mean or maximum over those not padding.

    Of documents packed into rows, whose lengths the host knows, one vector each, [documents, D].
    """
    if tokens.lengths is not None and tokens.valid is None:
        return _pool_documents(hidden.flatten(0, 1), [n for row in tokens.lengths for n in row], how)
    valid = tokens.valid
    if how == "first":
        first = 0 if valid is None else valid.long().argmax(1)
        return hidden[:, 0] if valid is None else hidden[torch.arange(len(hidden), device=hidden.device), first]
    if how == "last":
        if valid is None:
            return hidden[:, -1]
        last = valid.shape[1] - 1 - valid.flip(1).long().argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    if valid is None:
        return hidden.amax(1) if how == "max" else hidden.mean(1)
    real = valid[:, :, None]
    if how == "max":
        return hidden.masked_fill(~real, -torch.inf).amax(1)
    return (hidden * real).sum(1) / real.sum(1).clamp(min=1)


def _pool_documents(hidden: Tensor, lengths: list[int], how: str) -> Tensor:
    """One vector [D] of each stretch of hidden [N, D]."""
    ends = torch.tensor(list(accumulate(lengths)), device=hidden.device)
    counts = torch.tensor(lengths, device=hidden.device)
    if how in ("first", "last"):
        return hidden[ends - counts if how == "first" else ends - 1]
    return torch.segment_reduce(hidden, how, lengths=counts, axis=0)


class SequenceClassificationHead(Head):
    """Logits [B, labels], or [documents, labels] of packed rows, from one token or the mean."""

    def __init__(self, head: spec.SequenceClassificationHead, dim: int) -> None:
        super().__init__()
        self.dense = Linear(dim, dim) if head.activation is not None else None
        self.activation = ACTIVATIONS[head.activation] if head.activation is not None else None
        self.output = Linear(dim, head.labels, bias=head.bias)
        self.pooling, self.dropout = head.pooling, head.dropout

    def read(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        x = pool(hidden, tokens, self.pooling)
        if self.dense is not None and self.activation is not None:
            x = self.activation(self.dense(x))
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


class TokenClassificationHead(Head):
    """Logits [..., labels] for every token."""

    def __init__(self, head: spec.TokenClassificationHead, dim: int) -> None:
        super().__init__()
        self.output = Linear(dim, head.labels, bias=head.bias)
        self.dropout = head.dropout

    def read(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        return F.dropout(hidden, self.dropout) if self.dropout and self.training else hidden


def build_head(model: spec.Transformer) -> Head | None:
    """The module of a spec's head; None where the hidden states are what is wanted."""
    stack = model.output
    dim, vocabulary = stack.dim, stack.embeddings.vocabulary
    match model.head:
        case spec.LanguageModelHead() as head:
            return LanguageModelHead(head, dim, vocabulary)
        case spec.MaskedLanguageModelHead() as head:
            return MaskedLanguageModelHead(head, dim, vocabulary)
        case spec.SequenceClassificationHead() as head:
            return SequenceClassificationHead(head, dim)
        case spec.TokenClassificationHead() as head:
            return TokenClassificationHead(head, dim)
        case _:
            return None
