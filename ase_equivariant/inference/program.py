"""Program: a potential as a straight line of a few kinds of stages, without autograd.

A value is an array [n_nodes, width]: the blocks of an `Irreps` side by side, each [2l+1, channels]. Every stage *adds*
to its target, which starts at zero, so residuals and sums over layers need no stage of their own. The adjoint of a
stage adds to the gradient of its source. What each does is written at its class; a backend says how.

All numbers are float64 here; a backend rounds them once to its own precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ase_equivariant.inference.radial import Network
from ase_equivariant.inference.splines import Splines
from ase_equivariant.nn.fused import Path


class CannotLowerError(ValueError):
    """A potential has a part that no stage stands for; the message names it."""


class Stage:
    """A stage adds to the value `target`, or to the energies where it is None."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The values that it is a function of."""
        named = getattr(self, "source", None), getattr(self, "divisor", None)
        return tuple(value for value in named if value is not None)


@dataclass(frozen=True)
class Embed(Stage):
    """x_i += table[z_i], in the first columns where the table is narrower."""

    target: str
    table: np.ndarray  # [n_species, width or less]


@dataclass(frozen=True)
class EmbedAttributes(Stage):
    """x_i += SiLU(Σ_a table[start_a + q_ia]) for the whole numbers q_ia of an atom, as in `nn.attributes`."""

    target: str
    table: np.ndarray  # [n_rows, width]
    starts: np.ndarray  # [n_attributes]


@dataclass(frozen=True)
class Convolve(Stage):
    """x_i += Σ_j Σ_paths R_path(r_ij) · C Y(r_ij) h_j, with h a value, or a table by the sender's species.

    Adjoint: the same sum over the reversed edges gives ∂E/∂h_j; each edge also gets ∂E/∂Y and, by R', ∂E/∂r.
    """

    source: str | None
    table: np.ndarray | None  # [n_species, width], where there is no source
    target: str
    paths: tuple[Path, ...]
    radial: Network | Splines


@dataclass(frozen=True)
class Map:
    """One irrep of a `Linear`: columns [start, start + dim · channels) on either side."""

    dim: int
    start_in: int
    start_out: int
    weights: np.ndarray  # [n_species or 1, channels in, channels out]


@dataclass(frozen=True)
class Linear(Stage):
    """x_i,m += h_i,m W[z_i] for each irrep. Adjoint: the transposed matrices."""

    source: str
    target: str
    maps: tuple[Map, ...]


@dataclass(frozen=True)
class Polynomial:
    """One output component of a `Contract`: the same monomials for all, coefficients by species and channel."""

    start_out: int
    monomials: tuple[tuple[int, ...], ...]  # sorted factors, each a component of the source
    coefficients: np.ndarray  # [n_species, n_monomials, channels]


@dataclass(frozen=True)
class Contract(Stage):
    """x_i,M += Σ_monomials c[z_i, M, monomial] Π h_i,component. Adjoint: the polynomials' own gradients."""

    source: str
    target: str
    channels: int
    polynomials: tuple[Polynomial, ...]


@dataclass(frozen=True)
class Gate(Stage):
    """Even scalars SiLU(s), odd scalars tanh(s), others a(g) · v, as in `nn.gate`. Adjoint: elementwise."""

    source: str
    target: str
    even: int  # channels of even scalars, gates not counted; they come first on both sides
    odd: tuple[tuple[int, int, int], ...]  # per block of odd scalars: start in, start out, channels
    gated: tuple[tuple[int, int, int, int, int], ...]  # per other block: start of its gates, in, out, 2l+1, channels
    even_gain: float
    odd_gain: float
    opening: str  # a: "silu" or "sigmoid"
    gate_gain: float


@dataclass(frozen=True)
class Norm(Stage):
    """x_i += w h_i / √(ε + ⟨h_i²⟩), mean over channels and components, then over irreps, as in `nn.norm`."""

    source: str
    target: str
    shares: np.ndarray  # [width] weight of each column in ⟨h²⟩
    weights: np.ndarray  # [width]
    epsilon: float


@dataclass(frozen=True)
class Divide(Stage):
    """x_i += h_i / (α + β ρ_i), ρ of one column. Adjoint: the same division, and -β g_i · h_i / (α + β ρ_i)² for ρ."""

    source: str
    divisor: str  # ρ
    target: str
    alpha: float
    beta: float


@dataclass(frozen=True)
class Readout(Stage):
    """ε_i += w · h_i + c, with h_i through hidden layers before, h ↦ activation(W h + b); one row per head."""

    source: str
    hidden: tuple[tuple[np.ndarray, np.ndarray], ...]  # W [n_heads, n_in, n_out] and b [n_heads, n_out]
    weights: np.ndarray  # [n_heads, n_out of the last]
    bias: np.ndarray  # [n_heads]
    activation: str  # "silu", "tanh" or "abs"
    target = None


@dataclass(frozen=True)
class Repel(Stage):
    """ε_i += Σ_j s/r φ(r/a) f(r/b) with s, a and b by the pair's species, as in `nn.pair_repulsion`."""

    strengths: np.ndarray  # [n_species, n_species] eV Å
    widths: np.ndarray  # [n_species, n_species] Å
    ends: np.ndarray  # [n_species, n_species] Å
    terms: tuple[tuple[float, float], ...]  # φ(x) = Σ c exp(-d x)
    power: int
    scaled: bool  # multiplied by the potential's scale, as all else
    target = None


@dataclass(frozen=True)
class Program:
    """Stages in order, and the width of every value.

    `harmonics` are the coefficients of Y_l, l = 1 … l_max, over the monomials of degree l, see `nn.harmonics`.
    `radial_error` is the largest error of an interpolated radial function, or of its slope, relative to the largest
    value; zero where none is interpolated.
    """

    stages: tuple[Stage, ...]
    widths: dict[str, int]
    harmonics: tuple[np.ndarray, ...]
    radial_error: float
