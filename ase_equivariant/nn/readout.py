"""Readouts: scalars of a node to its energy contribution, one column per head."""

from __future__ import annotations

import torch
from torch import Tensor

from ase_equivariant.nn.linear import Dense, normal_parameter
from ase_equivariant.nn.radial import SILU_GAIN


class LinearReadout(torch.nn.Module):
    """ε_i = w · h_i (keeps the body order of its features); `[n, channels] → [n, num_heads]`."""

    def __init__(self, channels: int, num_heads: int, generator: torch.Generator):
        super().__init__()
        self.linear = Dense(channels, num_heads, generator)

    def forward(self, scalars: Tensor) -> Tensor:
        return self.linear(scalars)


class MLPReadout(torch.nn.Module):
    """ε_i = w · SiLU(W h_i), each head with its own hidden layer; `[n, channels] → [n, num_heads]`."""

    def __init__(self, channels: int, hidden: int, num_heads: int, generator: torch.Generator):
        super().__init__()
        self.hidden = Dense(channels, num_heads * hidden, generator)
        self.weight = normal_parameter((num_heads, hidden), generator)
        self.norm = SILU_GAIN * hidden**-0.5

    def forward(self, scalars: Tensor) -> Tensor:
        hidden = torch.nn.functional.silu(self.hidden(scalars)).unflatten(1, self.weight.shape)
        return (hidden * (self.weight * self.norm)).sum(-1)
