"""Radial functions: Bessel basis, smooth envelope, and the multilayer perceptron that turns them into path weights.

    e_n(r) = √(2/r_c) sin(nπr/r_c)/r · √(r_c³/3) · f(r/r_c)           (DimeNet eqs. 7 and 8; NequIP eq. 6)
    R_k,path(r) = MLP(e_1(r) … e_N(r))                                (no bias, so R vanishes smoothly at r_c)

√(r_c³/3) gives each Bessel function unit mean square over the cutoff sphere, so that the network starts with inputs of
order one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ase_equivariant.nn.linear import Dense

# makes the variance of SiLU(x) one for a normal x: 1/√∫ SiLU(x)² φ(x) dx
SILU_GAIN = 1.6765324703310907


class RadialBasis(torch.nn.Module):
    """Bessel functions times the polynomial envelope, `lengths [n] Å → [n, num_bessel]`; zero beyond the cutoff.

    Frequencies are nπ/r_c; where `trainable`, they are learned from there on.
    """

    def __init__(self, cutoff: float, num_bessel: int, envelope_power: int, trainable: bool = False):
        super().__init__()
        self.cutoff = cutoff
        self.power = envelope_power
        frequencies = math.pi / cutoff * torch.arange(1, num_bessel + 1, dtype=torch.float64)
        if trainable:
            self.frequencies = torch.nn.Parameter(frequencies)
        else:
            self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, lengths: Tensor) -> Tensor:
        bessel = math.sqrt(2.0 / 3.0) * self.cutoff * torch.sin(lengths.unsqueeze(-1) * self.frequencies)
        return bessel * (self.envelope(lengths) / lengths).unsqueeze(-1)

    @torch.jit.export
    def envelope(self, lengths: Tensor) -> Tensor:
        """f(x) = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2), two zero derivatives at x = 1."""
        p = float(self.power)
        x = lengths / self.cutoff
        tail = (p + 1.0) * (p + 2.0) / 2.0 - x * (p * (p + 2.0)) + x * x * (p * (p + 1.0) / 2.0)
        return (1.0 - x.pow(self.power) * tail) * (x < 1.0)


class RadialMLP(torch.nn.Module):
    """Multilayer perceptron without bias, `[n, widths[0]] → [n, widths[-1]]`, SiLU between layers."""

    def __init__(self, widths: Sequence[int], generator: torch.Generator):
        super().__init__()
        gains = [1.0] + [SILU_GAIN] * (len(widths) - 2)  # on the small weights, not on the many edges
        self.layers = torch.nn.ModuleList(
            Dense(a, b, generator, gain) for a, b, gain in zip(widths[:-1], widths[1:], gains)
        )

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(torch.nn.functional.silu(x) if i > 0 else x)
        return x
