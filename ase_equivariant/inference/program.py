"""Program: a potential as a straight line of a few kinds of stages, without autograd.

A value is an array [n_nodes, width]: the blocks of an `Irreps` side by side, each [2l+1, channels]. Every stage *adds*
to its target, which starts at zero, so residuals and sums over layers need no stage of their own. The adjoint of a
stage adds to the gradient of its source. What each does is written at its class; a backend says how.

All numbers are float64 here; a backend rounds them once to its own precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ase_equivariant.inference.radial import Network, Table
from ase_equivariant.nn.fused import Path


class CannotLowerError(ValueError):
    """A potential has a part that no stage stands for; the message names it."""


@dataclass(frozen=True)
class Embed:
    """x_i += table[z_i]."""

    target: str
    table: np.ndarray  # [n_species, width]


@dataclass(frozen=True)
class Convolve:
    """x_i += Σ_j Σ_paths R_path(r_ij) · C Y(r_ij) h_j, with h a value, or a table by the sender's species.

    Adjoint: the same sum over the reversed edges gives ∂E/∂h_j; each edge also gets ∂E/∂Y and, by R', ∂E/∂r.
    """

    source: str | None
    table: np.ndarray | None  # [n_species, width], where there is no source
    target: str
    paths: tuple[Path, ...]
    radial: Network | Table


@dataclass(frozen=True)
class Map:
    """One irrep of a `Linear`: columns [start, start + dim · channels) on either side."""

    dim: int
    start_in: int
    start_out: int
    weights: np.ndarray  # [n_species or 1, channels in, channels out]


@dataclass(frozen=True)
class Linear:
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
class Contract:
    """x_i,M += Σ_monomials c[z_i, M, monomial] Π h_i,component. Adjoint: the polynomials' own gradients."""

    source: str
    target: str
    channels: int
    polynomials: tuple[Polynomial, ...]


@dataclass(frozen=True)
class Gate:
    """Even scalars SiLU(s), odd scalars tanh(s), others SiLU(g) · v, as in `nn.gate`. Adjoint: elementwise."""

    source: str
    target: str
    even: int  # channels of even scalars, gates not counted; they come first on both sides
    odd: tuple[tuple[int, int, int], ...]  # per block of odd scalars: start in, start out, channels
    gated: tuple[tuple[int, int, int, int, int], ...]  # per other block: start of its gates, in, out, 2l+1, channels
    even_gain: float
    odd_gain: float


@dataclass(frozen=True)
class Norm:
    """x_i += w h_i / √(ε + ⟨h_i²⟩), mean over channels and components, then over irreps, as in `nn.norm`."""

    source: str
    target: str
    shares: np.ndarray  # [width] weight of each column in ⟨h²⟩
    weights: np.ndarray  # [width]
    epsilon: float


@dataclass(frozen=True)
class Readout:
    """ε_i += w · h_i, or w · SiLU(W h_i) where there is a hidden layer; one row per head."""

    source: str
    weights: np.ndarray  # [n_heads, channels or hidden]
    hidden: np.ndarray | None  # [n_heads, channels, hidden]


Stage = Embed | Convolve | Linear | Contract | Gate | Norm | Readout


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


def folded(program: Program) -> Program:
    """The same function with fewer stages: linear maps of what depends on species alone, and of linear maps."""
    stages, count = list(program.stages), None
    while count != len(stages):
        count = len(stages)
        stages = _without_dead(_compose(_spread_embeddings(stages)))
    used = {s.target for s in stages if not isinstance(s, Readout)}
    return Program(
        tuple(stages), {k: w for k, w in program.widths.items() if k in used}, program.harmonics, program.radial_error
    )


def _writers(stages: list[Stage], value: str | None) -> list[Stage]:
    return [s for s in stages if not isinstance(s, Readout) and s.target == value]


def _readers(stages: list[Stage], value: str) -> list[Stage]:
    return [s for s in stages if not isinstance(s, Embed) and s.source == value]


def _spread_embeddings(stages: list[Stage]) -> list[Stage]:
    """A linear map of an embedding is an embedding; a convolution reads it as a table."""
    out = []
    for stage in stages:
        writers = _writers(stages, stage.source) if isinstance(stage, Linear | Convolve) else []
        if len(writers) != 1 or not isinstance(writers[0], Embed):
            out.append(stage)
        elif isinstance(stage, Convolve):
            out.append(Convolve(None, writers[0].table, stage.target, stage.paths, stage.radial))
        else:
            width = max(m.start_out + m.dim * m.weights.shape[2] for m in stage.maps)
            out.append(Embed(stage.target, _apply(stage.maps, writers[0].table, width)))
    return out


def _apply(maps: tuple[Map, ...], table: np.ndarray, width: int) -> np.ndarray:
    """Rows of a table, one per species, through a linear stage."""
    out = np.zeros((len(table), width))
    for m in maps:
        _, n_in, n_out = m.weights.shape
        block = table[:, m.start_in : m.start_in + m.dim * n_in].reshape(-1, m.dim, n_in)
        out[:, m.start_out : m.start_out + m.dim * n_out] += (block @ m.weights).reshape(len(table), -1)
    return out


def _compose(stages: list[Stage]) -> list[Stage]:
    """One linear map in place of two, where the first's result has no other use."""
    for second in stages:
        if not isinstance(second, Linear) or _readers(stages, second.source) != [second]:
            continue
        first = _writers(stages, second.source)
        if len(first) == 1 and isinstance(first[0], Linear):
            maps = tuple(
                Map(a.dim, a.start_in, b.start_out, a.weights @ b.weights)
                for b in second.maps
                for a in first[0].maps
                if a.start_out == b.start_in
            )
            merged = Linear(first[0].source, second.target, maps)
            return [merged if s is second else s for s in stages if s is not first[0]]
    return stages


def _without_dead(stages: list[Stage]) -> list[Stage]:
    return [s for s in stages if isinstance(s, Readout) or _readers(stages, s.target)]
