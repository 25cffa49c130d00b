"""Mixture of experts: a router picks a few feed-forwards for each token, and their outputs are summed by weight."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer import spec
from anyformer.parts.cache import LayerCache
from anyformer.parts.context import Context
from anyformer.parts.feedforward import FeedForward, activated
from anyformer.parts.kernels import native
from anyformer.parts.kernels.wide import product_dtype
from anyformer.parts.linear import Linear, Matrix, matrix_of
from anyformer.parts.quantized import QuantizedMatrices, numbers

#: A product of each token with a matrix of its expert: (x, weight [E, out, in], bias [E, out] or None).
Multiply = Callable[[Tensor, Tensor | QuantizedMatrices, Tensor | None], Tensor]


class Experts(nn.Module):
    """y = Σ_k w_k · expert_k(x) over each token's `top_k` of E experts (Shazeer et al. 2017, eq. 2).

    Tokens are sorted by expert, so that each matrix is multiplied once with all of its tokens (grouped products), not
    once a token. The weights of all experts are one parameter a matrix: gate and up [E, F, D], down [E, D, F]; in a
    quantised model `QuantizedMatrices` stand in their places.

    A family's own mixture is a subclass, built from its own `spec.RoutedExperts`: another `route`, or another
    `activate`, and whatever parameters its `shapes` name besides.
    """

    gate: nn.Parameter | None
    gate_bias: nn.Parameter | None
    up: nn.Parameter
    up_bias: nn.Parameter | None
    down: nn.Parameter
    down_bias: nn.Parameter | None

    def __init__(self, experts: spec.RoutedExperts, dim: int) -> None:
        super().__init__()
        self.experts, self.top_k = experts.experts, experts.top_k
        self.normalize, self.balance = experts.normalize, experts.balance
        shapes = experts.shapes(dim)
        self.router = Linear(dim, self.experts, bias="router.bias" in shapes)
        own = [name for name in shapes if "." not in name]
        for name in dict.fromkeys((*experts.STACKED, *own)):
            self.register_parameter(name, nn.Parameter(torch.empty(shapes[name])) if name in shapes else None)
        self.kind = experts.activation
        self.shared: FeedForward | None = None
        self.shared_gate: nn.Linear | None = None
        if experts.shared_hidden is not None:
            every = spec.FeedForward(hidden=experts.shared_hidden, activation=experts.activation, gated=experts.gated)
            self.shared = FeedForward(every, dim)
            self.shared_gate = Linear(dim, 1, bias=False) if experts.shared_gate else None

    def forward(self, x_BTD: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        x_ND = x_BTD.flatten(0, -2)
        shares_NE, weight_NK, chosen_NK = self.route(x_ND)
        if self.balance and self.training:
            context.auxiliary.append(self.balance * self.balance_loss(shares_NE, chosen_NK, context.queries.valid))
        out_ND = self.few(x_ND, weight_NK, chosen_NK)
        if out_ND is None:
            out_ND = self.combine(x_ND, weight_NK.to(x_ND.dtype), chosen_NK)
        if self.shared_gate is not None:
            assert self.shared is not None
            out_ND = self.gated(self.shared(x_ND, context), x_ND, out_ND)
        elif self.shared is not None:
            out_ND = self.shared(x_ND, context, residual=out_ND)
        return out_ND.view_as(x_BTD)

    def gated(self, extra_ND: Tensor, x_ND: Tensor, out_ND: Tensor) -> Tensor:
        """What the others give, and what the shared expert makes of x, times the sigmoid of its gate."""
        assert self.shared_gate is not None
        if not native.few(x_ND) or (matrix := matrix_of(self.shared_gate, x_ND.dtype)) is None:
            return out_ND + extra_ND * self.shared_gate(x_ND).sigmoid()
        gate_N1 = native.linear(x_ND, matrix.data, matrix.format, activation="sigmoid")
        # A row for a head, and what it is multiplied with for that head's matrix of one row.
        return native.added(native.heads(gate_N1, extra_ND[:, None], transposed=True), out_ND)

    def route(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Every expert's share of each token [N, E], the weights of the chosen ones [N, K] and which they are [N, K];
        shares and weights in float32 at least."""
        logits_NE = self.router(x_ND)
        if native.few(logits_NE):
            return native.choose(logits_NE, self.top_k, self.normalize)
        shares_NE = logits_NE.softmax(-1, dtype=torch.promote_types(x_ND.dtype, torch.float32))
        weight_NK, chosen_NK = shares_NE.topk(self.top_k, -1)
        if self.normalize:
            weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)
        return shares_NE, weight_NK, chosen_NK

    def activate(self, up: Tensor, gate: Tensor | None) -> Tensor:
        """What an expert makes, between its matrices, of the products with `up` and `gate`, [..., F]."""
        return activated(self.kind, up) if gate is None else activated(self.kind, gate, up)

    def native_activation(self) -> tuple[str, float, float] | None:
        """What the native kernel calls `activate`, its limit and its gain; None where it has no name for it."""
        return (self.kind, 0.0, 0.0) if type(self).activate is Experts.activate else None

    def few(self, x_ND: Tensor, weight_NK: Tensor, chosen_NK: Tensor) -> Tensor | None:
        """What `combine` gives, by one call of the native kernel; None where it cannot."""
        if not native.few(x_ND) or (activation := self.native_activation()) is None:
            return None
        found = [self.matrix(name, x_ND.dtype) for name in ("gate", "up", "down") if getattr(self, name) is not None]
        matrices = [matrix for matrix in found if matrix is not None]
        if len(matrices) < len(found):
            return None
        data, formats, biases = zip(*((each.data, each.format, each.bias) for each in matrices))
        return native.experts(x_ND, weight_NK.float(), chosen_NK, data, formats, biases, *activation)

    def matrix(self, name: str, dtype: torch.dtype) -> Matrix | None:
        """All experts' matrices of a name as the native kernel takes them; None where it cannot."""
        weight, bias = getattr(self, name), getattr(self, f"{name}_bias")
        if bias is not None and bias.dtype != dtype:
            return None
        if isinstance(weight, QuantizedMatrices):
            return weight.matrix(bias)
        whole = weight.dtype == dtype and type(weight) is nn.Parameter and weight.is_contiguous()
        return Matrix(weight, native.TYPES[dtype], bias) if whole else None

    def feed_forward(self, x: Tensor, multiply: Multiply) -> Tensor:
        """Every expert's own feed-forward, [..., D] -> [..., D], however its matrices are multiplied; under autocast in
        its dtype, of which grouped products know nothing themselves."""
        dtype = product_dtype(x)

        def product(x: Tensor, weight: Tensor | QuantizedMatrices, bias: Tensor | None) -> Tensor:
            return multiply(x.to(dtype), weight, None if bias is None else bias.to(dtype))

        gate = None if self.gate is None else product(x, self.gate, self.gate_bias)
        up = product(x, self.up, self.up_bias)
        return product(self.activate(up, gate), self.down, self.down_bias)

    def combine(self, x_ND: Tensor, weight_NK: Tensor, chosen_NK: Tensor) -> Tensor:
        """The weighted sum of what the chosen experts make of each token, [N, D]."""
        if x_ND.device.type == "cpu" and self.quantized():
            return self.apart(x_ND, weight_NK, chosen_NK)
        return (self.sorted if self.groupable(x_ND) else self.every)(x_ND, weight_NK, chosen_NK)

    def quantized(self) -> bool:
        """Whether some of the experts' matrices are in blocks."""
        return any(isinstance(module, QuantizedMatrices) for module in self.children())

    def groupable(self, x: Tensor) -> bool:
        """Whether grouped products can serve: they take no float64, and rows of whole 16 bytes only."""
        bytes_ = product_dtype(x).itemsize
        return x.dtype != torch.float64 and all(width * bytes_ % 16 == 0 for width in self.up.shape[1:])

    def apart(self, x_ND: Tensor, weight_NK: Tensor, chosen_NK: Tensor) -> Tensor:
        """One chosen expert after the other, on its own tokens: for matrices in blocks, of which no others are
        dequantised. Which they are the host must know: not where it would wait for a device to say so."""
        out_ND = torch.zeros_like(x_ND)
        for index in chosen_NK.unique().tolist():
            token, rank = (chosen_NK == index).nonzero(as_tuple=True)
            made = self.feed_forward(x_ND[token], partial(_multiply, index))
            out_ND = out_ND.index_add(0, token, made.to(x_ND.dtype) * weight_NK[token, rank, None])
        return out_ND

    def sorted(self, x_ND: Tensor, weight_NK: Tensor, chosen_NK: Tensor) -> Tensor:
        """Each expert's tokens side by side, one grouped product a matrix."""
        expert, order = chosen_NK.flatten().sort(stable=True)
        token = order // self.top_k
        ends = torch.searchsorted(expert, torch.arange(self.experts, device=x_ND.device), right=True).int()

        def multiply(x: Tensor, weight: Tensor | QuantizedMatrices, bias: Tensor | None) -> Tensor:
            product = F.grouped_mm(x, numbers(weight, x.dtype).transpose(-1, -2), offs=ends)
            return product if bias is None else product + bias[expert]

        out = self.feed_forward(x_ND[token], multiply) * weight_NK.flatten()[order, None]
        return torch.zeros_like(x_ND).index_add(0, token, out)

    def every(self, x_ND: Tensor, weight_NK: Tensor, chosen_NK: Tensor) -> Tensor:
        """The reference: every expert on every token, weighted by zero where it was not chosen. Any dtype and width."""
        weight_NE = torch.zeros(len(x_ND), self.experts, dtype=x_ND.dtype, device=x_ND.device)
        weight_NE = weight_NE.scatter(1, chosen_NK, weight_NK)

        def multiply(x: Tensor, weight: Tensor | QuantizedMatrices, bias: Tensor | None) -> Tensor:
            product = x @ numbers(weight, x.dtype).transpose(-1, -2)
            return product if bias is None else product + bias[:, None]

        out_END = self.feed_forward(x_ND.expand(self.experts, -1, -1), multiply)
        return torch.einsum("end,ne->nd", out_END, weight_NE)

    def balance_loss(self, shares_NE: Tensor, chosen_NK: Tensor, valid: Tensor | None) -> Tensor:
        """E · Σ_e f_e · P_e (Fedus et al. 2022, eq. 4 to 6): f the fraction of choices that fell on an expert, P its
        mean probability, over the tokens that are not padding. 1 when perfectly balanced."""
        choices_NE = F.one_hot(chosen_NK, self.experts).sum(1).float() / self.top_k
        if valid is None:
            return self.experts * (choices_NE.mean(0) * shares_NE.mean(0)).sum()
        real = valid.flatten().float()[:, None]
        count = real.sum().clamp(min=1)
        return self.experts * ((choices_NE * real).sum(0) / count * (shares_NE * real).sum(0) / count).sum()


def _multiply(index: int, x: Tensor, weight: Tensor | QuantizedMatrices, bias: Tensor | None) -> Tensor:
    """The product with the matrix of one expert."""
    own = None if bias is None else bias[index]
    if isinstance(weight, QuantizedMatrices):
        return weight.product(index, x, own)
    return F.linear(x, weight[index].to(x.dtype), own)
