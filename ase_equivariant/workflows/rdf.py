"""Radial distribution functions of a trajectory, and the distance distribution of molecules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from ase import Atoms

from ase_equivariant.neighbors import neighbor_list

MAX_PARTIALS = 3  # element pairs drawn on their own; more would only be noise
RADIUS, BIN = 8.0, 0.04  # Å
SMALLEST_RADIUS = 4.0  # Å; a smaller cell has nothing to show


@dataclass(frozen=True)
class Distances:
    """Distances between atoms, averaged over frames."""

    radii: np.ndarray  # [bins] Å, bin centres
    curves: dict[str, np.ndarray]  # label -> [bins]
    periodic: bool  # g(r), dimensionless; otherwise neighbours per atom and Å


def distance_distribution(frames: Sequence[Atoms]) -> Distances | None:
    """g(r) of periodic frames, or the number of neighbours per atom and Å of frames without a bulk density.

    Up to `RADIUS`, and below the cell's smallest height, so that no atom meets its own image; None where nothing is
    left to show. All frames share the first one's elements. Up to three pairs of elements get a curve of their own,
    with the convention Σ_ab c_a c_b g_ab(r) = g(r).
    """
    numbers, periodic = frames[0].numbers, bool(frames[0].pbc.all())
    radius = min([RADIUS, *(height for atoms in frames for height in _heights(atoms))])
    if len(numbers) < 2 or radius < SMALLEST_RADIUS:
        return None
    edges = np.linspace(0.0, radius, round(radius / BIN) + 1)
    shells = 4 / 3 * np.pi * np.diff(edges**3)  # Å^3
    pairs = _pairs(frames[0])
    curves = {label: np.zeros(len(shells)) for label in pairs}
    for atoms in frames:
        cell, positions = np.asarray(atoms.cell), atoms.positions
        senders, receivers, shifts = neighbor_list(positions, cell, atoms.pbc, radius)
        lengths = np.linalg.norm(positions[receivers] - positions[senders] + shifts @ cell, axis=1)
        for label, (first, second) in pairs.items():
            centres, others = np.isin(numbers, first), np.isin(numbers, second)
            counts, _ = np.histogram(lengths[centres[receivers] & others[senders]], edges)
            uniform = shells * others.sum() / atoms.cell.volume if periodic else np.diff(edges)
            curves[label] += counts / centres.sum() / uniform / len(frames)
    return Distances((edges[1:] + edges[:-1]) / 2, curves, periodic)


def _heights(atoms: Atoms) -> np.ndarray:
    """Distances between the lattice planes of the periodic directions, Å."""
    return 1 / np.linalg.norm(atoms.cell.reciprocal()[atoms.pbc], axis=1)


def _pairs(atoms: Atoms) -> dict[str, tuple[list[int], list[int]]]:
    """Label -> (atomic numbers of the centres, of their neighbours)."""
    symbols = dict(sorted(zip(atoms.symbols, atoms.numbers, strict=True)))
    partials = {f"{a}–{b}": ([symbols[a]], [symbols[b]]) for a, b in combinations_with_replacement(symbols, 2)}
    if len(partials) > MAX_PARTIALS:
        return {"all": (list(symbols.values()), list(symbols.values()))}
    return partials
