"""Atomic structures as graphs: who neighbours whom, through which lattice vectors.

A `Graph` is a batch of one or more structures. Its edges carry the one direction convention of the package:

    vectors[e] = positions[receivers[e]] - positions[senders[e]] + shifts[e] @ cell[batch[senders[e]]]

Vectors point from sender to receiver and messages are summed at receivers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import InputError
from ase.cell import Cell
from ase.data import chemical_symbols
from torch import Tensor

from ase_equivariant.neighbors import COINCIDENT, CoincidentAtomsError, VerletList, count_edges, neighbor_list
from ase_equivariant.text import shown

Attributes = Sequence[tuple[str, int, int, int]]  # key in Atoms.info, lowest, highest and usual value
FURTHEST = 1e9  # Å; beyond it, distances in float64 are off by more than 1e-7 Å


@dataclass(frozen=True)
class Graph:
    """A batch of structures with their neighbour lists; all geometry in float64.

    Edges are ordered by (receiver, sender, shift), so that sums over them are repeatable bit for bit.
    """

    positions: Tensor  # [n_nodes, 3] Å
    cell: Tensor  # [n_graphs, 3, 3] Å, rows are lattice vectors, zero rows where there is none
    species: Tensor  # [n_nodes] index into the model's atomic_numbers
    senders: Tensor  # [n_edges]
    receivers: Tensor  # [n_edges]
    shifts: Tensor  # [n_edges, 3] float64 whole numbers of lattice vectors
    batch: Tensor  # [n_nodes] which graph a node belongs to
    heads: Tensor  # [n_graphs] which head of the model answers for a graph
    attributes: Tensor  # [n_nodes, n_attributes] int64 what the model wants to know of a structure, such as its charge

    @property
    def n_nodes(self) -> int:
        return self.positions.shape[0]

    @property
    def n_edges(self) -> int:
        return self.senders.shape[0]

    @property
    def n_graphs(self) -> int:
        return self.cell.shape[0]

    def to(self, device: torch.device | str) -> Graph:
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def vectors(self) -> Tensor:
        """Edge vectors from sender to receiver, [n_edges, 3] Å."""
        if self.n_graphs == 1:
            cell = self.cell[0]
        else:
            cell = self.cell.index_select(0, self.batch.index_select(0, self.senders))
        return edge_vectors(self.positions, cell, self.senders, self.receivers, self.shifts)


def edge_vectors(positions: Tensor, cell: Tensor, senders: Tensor, receivers: Tensor, shifts: Tensor) -> Tensor:
    """Vectors from sender to receiver, [n_edges, 3] Å; `cell` is [3, 3] or one per edge [n_edges, 3, 3]."""
    a, b, c = cell.unbind(-2)  # written out: a product of many 3x3 matrices is slower, and rounds by the batch's size
    offsets = shifts[:, 0:1] * a + shifts[:, 1:2] * b + shifts[:, 2:3] * c
    return positions.index_select(0, receivers) - positions.index_select(0, senders) + offsets


def concatenate(graphs: list[Graph]) -> Graph:
    """Join graphs into one batch; node and graph indices are shifted, nothing else changes."""
    nodes = torch.tensor([0] + [g.n_nodes for g in graphs]).cumsum(0)
    counts = torch.tensor([0] + [g.n_graphs for g in graphs]).cumsum(0)
    offsets = {"senders": nodes, "receivers": nodes, "batch": counts}
    joined = {}
    for f in fields(Graph):
        parts = [getattr(g, f.name) for g in graphs]
        if f.name in offsets:
            parts = [part + offset for part, offset in zip(parts, offsets[f.name].tolist(), strict=False)]
        joined[f.name] = torch.cat(parts)
    return Graph(**joined)


def from_atoms(
    atoms: Atoms,
    atomic_numbers: Sequence[int],
    cutoff: float,
    neighbors: VerletList | None = None,
    head: int = 0,
    attributes: Attributes = (),
) -> Graph:
    """Graph of one structure, on the CPU; `atoms` is read, never modified or aliased.

    Its edges are those of `neighbors`: of a `DeviceList` the list's own tensors, on its device, some beyond the cutoff.

    Parameters
    ----------
    atoms : any cell and pbc; left-handed cells and molecules without a cell are valid
    atomic_numbers : sorted Z of the species that the model knows
    cutoff : Å
    neighbors : list with this cutoff that is reused over the steps of a run; None searches anew
    head : index of the model's head
    attributes : what the model reads from `atoms.info`, see `Potential.attributes`

    Raises
    ------
    InputError
        Unknown elements, positions or cell not finite, two atoms at one place, a periodic direction without a cell
        vector, a singular cell, or a value in `atoms.info` that the model does not know.
    """
    species = _species(atoms.numbers, atomic_numbers)
    positions, cell, pbc = _geometry(atoms)
    try:
        if neighbors is None:
            senders, receivers, shifts = neighbor_list(positions, cell, pbc, cutoff)
        elif neighbors.cutoff == cutoff:
            senders, receivers, shifts = neighbors.update(positions, cell, pbc)
        else:
            raise ValueError(f"the neighbour list has cutoff {neighbors.cutoff} Å and the graph needs {cutoff} Å")
    except CoincidentAtomsError as error:
        raise InputError(str(error)) from None
    return Graph(
        positions=torch.tensor(positions, dtype=torch.float64),
        cell=torch.tensor(cell, dtype=torch.float64).unsqueeze(0),
        species=torch.from_numpy(species),
        senders=torch.as_tensor(senders),
        receivers=torch.as_tensor(receivers),
        shifts=torch.as_tensor(shifts),
        batch=torch.zeros(len(positions), dtype=torch.int64),
        heads=torch.tensor([head]),
        attributes=torch.tensor(attribute_values(atoms, attributes), dtype=torch.int64).expand(len(positions), -1),
    )


def edges_of(atoms: Atoms, cutoff: float) -> int:
    """The number of edges of `from_atoms`, in a fraction of its memory.

    Raises `InputError` for the same geometries, but for two atoms at one place, whose distance is not looked at.
    """
    positions, cell, pbc = _geometry(atoms)
    try:
        return count_edges(positions, cell, pbc, cutoff)
    except CoincidentAtomsError as error:
        raise InputError(str(error)) from None


def has_volume(cell: Cell) -> bool:
    """Whether a cell has three vectors that span a volume, so that there is a stress."""
    return cell.volume > 1e-12 * np.prod(cell.lengths())


def attribute_values(atoms: Atoms, attributes: Attributes) -> list[int]:
    """The whole numbers in `atoms.info`, by the keys of (key, lowest, highest and usual value)."""
    values = []
    for key, lowest, highest, usual in attributes:
        given = atoms.info.get(key, usual)
        if isinstance(given, np.ndarray) and given.shape == () and not np.ma.is_masked(given):
            given = given[()]
        proper = isinstance(given, Real) and not isinstance(given, bool) and lowest <= given <= highest
        if not (proper and given == int(given)):
            raise InputError(
                f"atoms.info[{key!r}] is {shown(given)}; this model needs a whole number from {lowest} "
                f"to {highest} there, and takes {usual} where it is missing"
            )
        values.append(int(given))
    return values


def _species(numbers: np.ndarray, atomic_numbers: Sequence[int]) -> np.ndarray:
    """Index of each atom's element in `atomic_numbers`, [n_atoms] int64."""
    elements = np.asarray(atomic_numbers)  # sorted
    species = np.searchsorted(elements, numbers).clip(max=len(elements) - 1)
    unknown = elements[species] != numbers
    if unknown.any():
        strange = [
            f"{_symbol(z)} (Z={z}, atoms {_listing(np.flatnonzero(numbers == z))})" for z in np.unique(numbers[unknown])
        ]
        known = ", ".join(_symbol(z) for z in atomic_numbers)
        raise InputError(f"The model does not know {', '.join(strange)}; its elements are {known}.")
    return species


def _geometry(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions and cell in float64, and pbc; what has no neighbour list is refused."""
    positions, cell, pbc = np.asarray(atoms.positions, dtype=np.float64), atoms.cell.array, atoms.pbc
    proper = (np.abs(positions) < FURTHEST).all(axis=1)  # False for NaN too
    if not proper.all():
        raise InputError(
            f"Positions must be finite numbers below {FURTHEST:.0e} Å; "
            f"those of atoms {_listing(np.flatnonzero(~proper))} are not."
        )
    if not (np.abs(cell) < FURTHEST).all():
        raise InputError(f"The cell must hold finite numbers below {FURTHEST:.0e} Å; it is {cell.tolist()}.")
    lengths = np.linalg.norm(cell, axis=1)
    if (pbc & (lengths < COINCIDENT)).any():
        axes = ", ".join("abc"[axis] for axis in np.flatnonzero(pbc & (lengths < COINCIDENT)))
        raise InputError(
            f"pbc is {pbc.tolist()} but there is no cell vector {axes}; set it, or set pbc to False there."
        )
    directions = cell[pbc] / lengths[pbc, None]
    if np.linalg.det(directions @ directions.T) < 1e-12:  # the squared volume of the unit vectors
        raise InputError(
            f"The periodic cell vectors {cell[pbc].tolist()} are linearly dependent; give a cell with a volume."
        )
    return positions, cell, pbc


def _symbol(number: int) -> str:
    return chemical_symbols[number] if 0 < number < len(chemical_symbols) else "X"


def _listing(indices: np.ndarray, count: int = 8) -> str:
    rest = f" and {len(indices) - count} more" if len(indices) > count else ""
    return ", ".join(map(str, indices[:count])) + rest
