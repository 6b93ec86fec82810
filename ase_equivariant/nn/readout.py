"""Readouts: scalars of a node to its energy contribution, one column per head."""

from __future__ import annotations

import torch
from torch import Tensor

from ase_equivariant.nn.gate import TANH_GAIN
from ase_equivariant.nn.linear import Dense, constant_parameter, normal_parameter
from ase_equivariant.nn.radial import SILU_GAIN

GAINS = {"silu": SILU_GAIN, "tanh": TANH_GAIN, "abs": 1.0}  # make the variance one where inputs are normal


def activate(x: Tensor, kind: str) -> Tensor:
    """The activation that `GAINS` names."""
    if kind == "silu":
        return torch.nn.functional.silu(x)
    return torch.tanh(x) if kind == "tanh" else torch.abs(x)


class LinearReadout(torch.nn.Module):
    """ε_i = w · h_i (keeps the body order of its features); `[n, channels] → [n, num_heads]`."""

    def __init__(self, channels: int, num_heads: int, generator: torch.Generator):
        super().__init__()
        self.linear = Dense(channels, num_heads, generator)

    def forward(self, scalars: Tensor) -> Tensor:
        return self.linear(scalars)


class MLPReadout(torch.nn.Module):
    """ε_i = w · SiLU(W h_i), each head with its own hidden layer; `[n, channels] → [n, num_heads]`.

    `activation` takes the place of SiLU.
    """

    def __init__(
        self, channels: int, hidden: int, num_heads: int, generator: torch.Generator, activation: str = "silu"
    ):
        super().__init__()
        self.activation = activation
        self.hidden = Dense(channels, num_heads * hidden, generator)
        self.weight = normal_parameter((num_heads, hidden), generator)
        self.norm = GAINS[activation] * hidden**-0.5

    def forward(self, scalars: Tensor) -> Tensor:
        hidden = activate(self.hidden(scalars), self.activation).unflatten(1, self.weight.shape)
        return (hidden * (self.weight * self.norm)).sum(-1)


class BiasReadout(torch.nn.Module):
    """ε_i = w · SiLU(V SiLU(W h_i) + b) + c, each head with its own hidden layers; `[n, channels] → [n, num_heads]`.

    `activation` takes the place of SiLU.
    """

    def __init__(
        self, channels: int, hidden: int, num_heads: int, generator: torch.Generator, activation: str = "silu"
    ):
        super().__init__()
        self.activation = activation
        self.first = Dense(channels, num_heads * hidden, generator)
        self.second = normal_parameter((num_heads, hidden, hidden), generator)
        self.weight = normal_parameter((num_heads, hidden), generator)
        self.second_bias = constant_parameter((num_heads, hidden), 0.0)
        self.bias = constant_parameter((num_heads,), 0.0)
        self.norm = GAINS[activation] * hidden**-0.5

    def forward(self, scalars: Tensor) -> Tensor:
        hidden = activate(self.first(scalars), self.activation).unflatten(1, self.weight.shape)
        hidden = torch.einsum("nhi,hij->nhj", hidden, self.second * self.norm) + self.second_bias
        return (activate(hidden, self.activation) * (self.weight * self.norm)).sum(-1) + self.bias


class NoReadout(torch.nn.Module):
    """Zero energy, for layers that only send messages."""

    def __init__(self, num_heads: int):
        super().__init__()
        self.num_heads = num_heads

    def forward(self, scalars: Tensor) -> Tensor:
        return torch.zeros((scalars.shape[0], self.num_heads), dtype=scalars.dtype, device=scalars.device)
