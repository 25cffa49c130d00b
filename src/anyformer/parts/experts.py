"""Mixture of experts: a router picks a few feed-forwards for each token, and their outputs are summed by weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer import spec
from anyformer.parts.cache import LayerCache
from anyformer.parts.context import Context
from anyformer.parts.feedforward import ACTIVATIONS, FeedForward
from anyformer.parts.linear import Linear


class Experts(nn.Module):
    """y = Σ_k w_k · expert_k(x) over each token's `top_k` of E experts (Shazeer et al. 2017, eq. 2).

    Tokens are sorted by expert, so that each matrix is multiplied once with all of its tokens (grouped products), not
    once a token. The weights of all experts are one parameter a matrix: gate and up [E, F, D], down [E, D, F].
    """

    def __init__(self, experts: spec.MixtureOfExperts, dim: int) -> None:
        super().__init__()
        E, F_ = experts.experts, experts.hidden
        self.experts, self.top_k, self.normalize, self.balance = E, experts.top_k, experts.normalize, experts.balance
        self.router = Linear(dim, E, bias=False)
        self.gate = nn.Parameter(torch.empty(E, F_, dim)) if experts.gated else None
        self.up = nn.Parameter(torch.empty(E, F_, dim))
        self.down = nn.Parameter(torch.empty(E, dim, F_))
        self.activation = ACTIVATIONS[experts.activation]
        self.shared: FeedForward | None = None
        self.shared_gate: nn.Linear | None = None
        if experts.shared_hidden is not None:
            every = spec.FeedForward(hidden=experts.shared_hidden, activation=experts.activation, gated=experts.gated)
            self.shared = FeedForward(every, dim)
            self.shared_gate = Linear(dim, 1, bias=False) if experts.shared_gate else None

    def forward(self, x_BTD: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        x_ND = x_BTD.flatten(0, -2)
        shares_NE = self.router(x_ND).softmax(-1, dtype=torch.promote_types(x_ND.dtype, torch.float32))
        weight_NK, chosen_NK = shares_NE.topk(self.top_k, -1)
        if self.normalize:
            weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)
        if self.balance and self.training:
            context.auxiliary.append(self.balance * self.balance_loss(shares_NE, chosen_NK, context.queries.valid))
        grouped = self.groupable(x_ND)
        out_ND = (self.sorted if grouped else self.every)(x_ND, weight_NK.to(x_ND.dtype), chosen_NK)
        if self.shared is not None:
            extra = self.shared(x_ND, context)
            out_ND = out_ND + (extra if self.shared_gate is None else extra * self.shared_gate(x_ND).sigmoid())
        return out_ND.view_as(x_BTD)

    def groupable(self, x: Tensor) -> bool:
        """Whether grouped products can serve: they take no float64, and rows of whole 16 bytes only."""
        bytes_ = x.element_size()
        return x.dtype != torch.float64 and all(width * bytes_ % 16 == 0 for width in self.up.shape[1:])

    def sorted(self, x_ND: Tensor, weight_NK: Tensor, chosen_NK: Tensor) -> Tensor:
        """Each expert's tokens side by side, one grouped product a matrix."""
        expert, order = chosen_NK.flatten().sort(stable=True)
        token = order // self.top_k
        ends = torch.searchsorted(expert, torch.arange(self.experts, device=x_ND.device), right=True).int()
        x = x_ND[token]
        hidden = F.grouped_mm(x, self.up.transpose(-1, -2), offs=ends)
        if self.gate is None:
            hidden = self.activation(hidden)
        else:
            hidden = self.activation(F.grouped_mm(x, self.gate.transpose(-1, -2), offs=ends)) * hidden
        out = F.grouped_mm(hidden, self.down.transpose(-1, -2), offs=ends) * weight_NK.flatten()[order, None]
        return torch.zeros_like(x_ND).index_add(0, token, out)

    def every(self, x_ND: Tensor, weight_NK: Tensor, chosen_NK: Tensor) -> Tensor:
        """The reference: every expert on every token, weighted by zero where it was not chosen. Any dtype and width."""
        weight_NE = torch.zeros(len(x_ND), self.experts, dtype=x_ND.dtype, device=x_ND.device)
        weight_NE = weight_NE.scatter(1, chosen_NK, weight_NK)
        hidden = torch.einsum("nd,efd->nef", x_ND, self.up)
        if self.gate is None:
            hidden = self.activation(hidden)
        else:
            hidden = self.activation(torch.einsum("nd,efd->nef", x_ND, self.gate)) * hidden
        return torch.einsum("nef,edf,ne->nd", hidden, self.down, weight_NE)

    def balance_loss(self, shares_NE: Tensor, chosen_NK: Tensor, valid: Tensor | None) -> Tensor:
        """E · Σ_e f_e · P_e (Fedus et al. 2022, eq. 4 to 6): f the fraction of choices that fell on an expert, P its
        mean probability, over the tokens that are not padding. 1 when perfectly balanced."""
        choices_NE = F.one_hot(chosen_NK, self.experts).sum(1).float() / self.top_k
        if valid is None:
            return self.experts * (choices_NE.mean(0) * shares_NE.mean(0)).sum()
        real = valid.flatten().float()[:, None]
        count = real.sum().clamp(min=1)
        return self.experts * ((choices_NE * real).sum(0) / count * (shares_NE * real).sum(0) / count).sum()
