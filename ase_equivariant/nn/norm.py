"""Root-mean-square normalisation of a node's features; equivariant, since all components are divided by one number.

    x_i,lkm → w_lk x_i,lkm / √(ε + ⟨x_i²⟩)        ⟨⟩ mean over channels and components, then over irreps

ε keeps it smooth where features vanish, and features that vanish stay zero.
"""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor

EPSILON = 1e-5


class RMSNorm(torch.nn.Module):
    """Blocks of `irreps` to blocks of the same irreps, with a learned factor per channel."""

    def __init__(self, irreps: o3.Irreps):
        super().__init__()
        self.epsilon = EPSILON
        self.weights = torch.nn.ParameterList(torch.ones(mul, dtype=torch.float64) for mul, _ in irreps)

    def forward(self, blocks: list[Tensor]) -> list[Tensor]:
        means = torch.stack([block.square().mean((1, 2), keepdim=True) for block in blocks])
        factor = torch.rsqrt(means.mean(0) + self.epsilon)
        out: list[Tensor] = []
        for i, weight in enumerate(self.weights):
            out.append(blocks[i] * (factor * weight))
        return out
