"""Radial functions: Bessel basis, smooth envelope, and the multilayer perceptron that turns them into path weights.

    e_n(r) = a_n √(2/r_c) sin(nπr/r_c)/r · f(r/r_c)           (DimeNet eqs. 7 and 8; NequIP eq. 6 with 2/r_c)
    R_k,path(r) = MLP(e_1(r) … e_N(r))                                (no bias, so R vanishes smoothly at r_c)

With inputs as small as these a network starts nearly linear, and learns smooth functions. norm = "unit" multiplies them
by √(r_c³/3), which makes their mean square one over the cutoff sphere: better for radial functions without a network,
which are then learned faster. a_n ~ n^-p is the smoothness prior of linear models (Witt et al. 2023, arXiv 2309.03161):
with p = 0 all a_n are one, with p > 0 a network takes long to learn what varies fast, and prefers smooth functions
where data say little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ase_equivariant.nn.linear import Dense, normal_parameter
from ase_equivariant.nn.norm import LayerNorm

# makes the variance of SiLU(x) one for a normal x: 1/√∫ SiLU(x)² φ(x) dx
SILU_GAIN = 1.6765324703310907

BESSEL_NORMS = ("paper", "unit")


class RadialBasis(torch.nn.Module):
    """Radial functions times the polynomial envelope, `lengths [n] Å → [n, num_bessel]`; zero beyond the cutoff.

    Parameters
    ----------
    kind : "bessel" for the functions above, "gaussian" for a row of Gaussians from 0 to the cutoff, as wide as their
        spacing, "chebyshev" for T_1 … T_N
    trainable : frequencies of the Bessel functions are nπ/r_c and learned from there on
    enveloped : False leaves the envelope to whoever uses the functions
    decay : p of the amplitudes a_n ~ n^-p of Bessel functions, whose mean square is one
    norm : "paper", or "unit": Bessel functions times √(r_c³/3)
    """

    def __init__(
        self,
        cutoff: float,
        num_bessel: int,
        envelope_power: int,
        trainable: bool = False,
        kind: str = "bessel",
        enveloped: bool = True,
        decay: float = 0.0,
        norm: str = "paper",
    ):
        super().__init__()
        self.cutoff, self.power, self.kind, self.enveloped = cutoff, envelope_power, kind, enveloped
        self.spacing = cutoff / max(num_bessel - 1, 1)
        numbers = torch.arange(1, num_bessel + 1, dtype=torch.float64)
        amplitudes = numbers**-decay
        amplitudes /= amplitudes.square().mean().sqrt()
        if norm == "unit":
            amplitudes *= math.sqrt(cutoff**3 / 3.0)
        self.register_buffer("amplitudes", amplitudes, persistent=False)
        frequencies = math.pi / cutoff * numbers
        if trainable:
            self.frequencies = torch.nn.Parameter(frequencies)
        else:
            self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, lengths: Tensor, transformed: Tensor | None = None) -> Tensor:
        """`transformed` takes the place of the lengths inside the functions, but not inside the envelope."""
        if transformed is None and self.kind == "bessel" and self.enveloped:
            return self.numerators(lengths) * (self.envelope(lengths) / lengths).unsqueeze(-1)
        functions = self.functions(lengths if transformed is None else transformed)
        return functions * self.envelope(lengths).unsqueeze(-1) if self.enveloped else functions

    @torch.jit.export
    def numerators(self, x: Tensor) -> Tensor:
        gains = math.sqrt(2.0 / self.cutoff) * self.amplitudes
        return gains * torch.sin(x.unsqueeze(-1) * self.frequencies)

    @torch.jit.export
    def functions(self, x: Tensor) -> Tensor:
        """The functions without the envelope."""
        if self.kind == "bessel":
            return self.numerators(x) / x.unsqueeze(-1)
        count = self.frequencies.shape[0]
        if self.kind == "gaussian":
            centers = self.spacing * torch.arange(count, dtype=x.dtype, device=x.device)
            return torch.exp(-0.5 * ((x.unsqueeze(-1) - centers) / self.spacing).square())
        polynomials = [torch.ones_like(x), x]  # T_n+1 = 2 x T_n - T_n-1
        for _ in range(count - 1):
            polynomials.append(2.0 * x * polynomials[-1] - polynomials[-2])
        return torch.stack(polynomials[1:], -1)

    @torch.jit.export
    def envelope(self, lengths: Tensor) -> Tensor:
        """f(r/r_c) of every length."""
        return polynomial_envelope(lengths / self.cutoff, self.power)


def radial_basis(config: object, enveloped: bool = True) -> RadialBasis:
    """The basis that an architecture's config names."""
    return RadialBasis(
        config.cutoff,
        config.num_bessel,
        config.envelope_power,
        config.trainable_bessel,
        config.radial_basis,
        enveloped,
        config.bessel_decay,
        config.bessel_norm,
    )


def polynomial_envelope(x: Tensor, power: int) -> Tensor:
    """f(x) = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2), two zero derivatives at x = 1, zero beyond."""
    p = float(power)
    tail = (p + 1.0) * (p + 2.0) / 2.0 - x * (p * (p + 2.0)) + x * x * (p * (p + 1.0) / 2.0)
    return (1.0 - x.pow(power) * tail) * (x < 1.0)


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


class PairMLP(torch.nn.Module):
    """Multilayer perceptron of an edge, `[n, widths[0]] → [n, widths[-1]]`, that knows the species at both its ends.

    Their weights are added to what enters the first hidden layer; each hidden layer is normalised (LayerNorm) and goes
    through SiLU. It has biases, so it does not vanish where its input does.
    """

    def __init__(self, num_species: int, widths: Sequence[int], generator: torch.Generator):
        super().__init__()
        self.first = Dense(widths[0], widths[1], generator)
        self.sent = normal_parameter((num_species, widths[1]), generator)
        self.received = normal_parameter((num_species, widths[1]), generator)
        self.norms = torch.nn.ModuleList(LayerNorm(width) for width in widths[1:-1])
        self.layers = torch.nn.ModuleList(
            Dense(a, b, generator, SILU_GAIN, bias=True) for a, b in zip(widths[1:-1], widths[2:])
        )

    def forward(self, x: Tensor, sent: Tensor, received: Tensor) -> Tensor:
        """`sent` and `received` [n] are the species of the edges' senders and receivers."""
        x = self.first(x) + self.sent.index_select(0, sent) + self.received.index_select(0, received)
        for norm, layer in zip(self.norms, self.layers):
            x = layer(torch.nn.functional.silu(norm(x)))
        return x
