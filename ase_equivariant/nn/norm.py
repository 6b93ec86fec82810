"""Normalisation of features. By their root mean square: equivariant, since all components are divided by one number.

    x_i,lkm → w_lk x_i,lkm / √(ε + ⟨s_l x_i²⟩)        ⟨⟩ mean over channels and components, then over irreps

ε keeps it smooth where features vanish, and features that vanish stay zero. The irreps' shares are s_l = 1, or those of
Nequix (Koker and Smidt, arXiv 2508.16067), s_l = K_l / (2l+1) with K_l channels: a sum over channels instead of a mean,
and high l counts less.
"""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor

from ase_equivariant.nn.linear import constant_parameter

NORMS = {"rms": 1e-5, "nequix": 1e-8}  # ε


class RMSNorm(torch.nn.Module):
    """Blocks of `irreps` to blocks of the same irreps, with a learned factor per channel; `kind` is one of `NORMS`."""

    def __init__(self, irreps: o3.Irreps, kind: str = "rms"):
        super().__init__()
        self.epsilon = NORMS[kind]
        self.shares: list[float] = [mul / ir.dim if kind == "nequix" else 1.0 for mul, ir in irreps]
        self.weights = torch.nn.ParameterList(torch.ones(mul, dtype=torch.float64) for mul, _ in irreps)

    def forward(self, blocks: list[Tensor]) -> list[Tensor]:
        squares = [share * block.square().mean((1, 2), keepdim=True) for share, block in zip(self.shares, blocks)]
        factor = torch.rsqrt(torch.stack(squares).mean(0) + self.epsilon)
        out: list[Tensor] = []
        for i, weight in enumerate(self.weights):
            out.append(blocks[i] * (factor * weight))
        return out


class LayerNorm(torch.nn.Module):
    """Scalars `[n, width]` of mean zero and variance one in each row, times a learned weight, plus a learned bias."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = constant_parameter((width,), 1.0)
        self.bias = constant_parameter((width,), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias)
