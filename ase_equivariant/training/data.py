"""Structures with labels: read, checked, turned into graphs once, drawn in a reproducible order.

Labels that a structure does not have get weight zero. Everything stays in memory; a batch is a concatenation of graphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import InputError
from ase.data import chemical_symbols
from torch import Tensor

from ase_equivariant.graph import Graph, concatenate, from_atoms
from ase_equivariant.labels import find_label, names_of
from ase_equivariant.training.config import Keys, LossConfig


@dataclass(frozen=True)
class Structure:
    """One labelled structure; `system` names its chemical elements, such as "Cu-Ni"."""

    atoms: Atoms
    source: str
    system: str
    energy: float | None
    forces: np.ndarray | None  # [n_atoms, 3] eV/Å
    stress: np.ndarray | None  # [3, 3] eV/Å³


@dataclass(frozen=True)
class Batch:
    """Graphs with their labels; all float64. A weight of zero says that the label is missing."""

    graph: Graph
    n_atoms: Tensor  # [n_graphs]
    volume: Tensor  # [n_graphs] Å^3, 1 where there is none
    energy: Tensor  # [n_graphs] eV
    energy_weights: Tensor  # [n_graphs]
    forces: Tensor  # [n_nodes, 3] eV/Å
    forces_weights: Tensor  # [n_nodes]
    stress: Tensor  # [n_graphs, 3, 3] eV/Å^3
    stress_weights: Tensor  # [n_graphs]


def read_structures(paths: Sequence[Path], keys: Keys, loss: LossConfig) -> list[Structure]:
    """Read and check labelled structures.

    Energy and forces must be there if they have a weight in the loss, but a single atom needs no forces; a stress may
    be missing in some structures.
    """
    structures = []
    for path in paths:
        try:
            frames = ase.io.read(path, index=":")
        except Exception as error:  # ASE's readers raise whatever their parsing raises
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            reason = "it is a directory" if path.is_dir() else reason  # which some formats are
            raise InputError(f"cannot read structures from {path}: {reason}") from None
        if not frames:
            raise InputError(f"{path} holds no structures")
        structures += [read_labels(atoms, keys, loss, f"{path}, frame {i}") for i, atoms in enumerate(frames)]
    return structures


def read_labels(atoms: Atoms, keys: Keys, loss: LossConfig, source: str) -> Structure:
    """Check one structure and its labels."""
    n = len(atoms)
    if n == 0:
        raise InputError(f"{source} has no atoms; remove it")
    if strange := sorted(set(atoms.numbers.tolist()) - set(range(1, len(chemical_symbols)))):
        raise InputError(f"{source} has the atomic numbers {strange}; allowed: 1 to {len(chemical_symbols) - 1}")
    labels = {name: find_label(atoms, name, getattr(keys, name), source) for name in ("energy", "forces", "stress")}
    for name, needed in {"energy": loss.energy > 0, "forces": loss.forces > 0 and n > 1}.items():
        if needed and labels[name] is None:
            key, there = getattr(keys, name), ", ".join(sorted(names_of(atoms))) or "no labels"
            raise InputError(f"{source}: no {name} under the key {key!r} (data.keys.{name}); it has {there}")
    energy, forces, stress = labels.values()
    if stress is not None and atoms.cell.rank < 3:
        remedy = "remove it, or set data.keys.stress to null"
        raise InputError(f"{source}: {keys.stress!r} needs a three-dimensional cell; {remedy}")
    system = "-".join(sorted(set(atoms.get_chemical_symbols())))
    return Structure(atoms, source, system, None if energy is None else float(energy), forces, stress)


def without_offset(structure: Structure, offset: dict[str, float]) -> Structure:
    """The structure with its stress label freed of the Pulay stress Σ κ / V."""
    total = sum(offset.get(symbol, 0.0) for symbol in structure.atoms.get_chemical_symbols())
    if structure.stress is None or total == 0:
        return structure
    return replace(structure, stress=structure.stress - total / structure.atoms.cell.volume * np.eye(3))


def make_batch(structure: Structure, atomic_numbers: Sequence[int], cutoff: float) -> Batch:
    """A structure as a batch of one, with its neighbour list."""
    atoms = structure.atoms
    try:
        graph = from_atoms(atoms, atomic_numbers, cutoff)
    except InputError as error:
        raise InputError(f"{structure.source}: {error}") from None

    def tensor(value: object, shape: tuple[int, ...]) -> Tensor:
        value = np.zeros(shape) if value is None else value
        return torch.tensor(value, dtype=torch.float64).reshape(shape)

    def weights(value: object, n: int) -> Tensor:
        return torch.full((n,), float(value is not None), dtype=torch.float64)

    return Batch(
        graph=graph,
        n_atoms=tensor(len(atoms), (1,)),
        volume=tensor(atoms.cell.volume if atoms.cell.rank == 3 else 1.0, (1,)),
        energy=tensor(structure.energy, (1,)),
        energy_weights=weights(structure.energy, 1),
        forces=tensor(structure.forces, (len(atoms), 3)),
        forces_weights=weights(structure.forces, len(atoms)),
        stress=tensor(structure.stress, (1, 3, 3)),
        stress_weights=weights(structure.stress, 1),
    )


def collate(batches: list[Batch]) -> Batch:
    """Join batches into one."""
    labels = [f.name for f in fields(Batch) if f.name != "graph"]
    joined = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in labels}
    return Batch(graph=concatenate([batch.graph for batch in batches]), **joined)


def split(structures: list[Structure], fraction: float, seed: int) -> tuple[list[Structure], list[Structure]]:
    """Set a share of each chemical system aside for validation (at least one where there are two)."""
    rng = np.random.default_rng(seed)
    systems = np.array([s.system for s in structures])
    chosen: set[int] = set()
    for system in sorted(set(systems)):
        members = rng.permutation(np.flatnonzero(systems == system))
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen.update(members[:count].tolist())
    train = [s for i, s in enumerate(structures) if i not in chosen]
    valid = [structures[i] for i in sorted(chosen)]
    return train, valid


def type_weights(structures: list[Structure], table: dict[str, float]) -> np.ndarray:
    """Weight [n_structures] of each structure's `config_type`, 1 where `table` does not name it."""
    return np.array([table.get(config_type(s), 1.0) for s in structures])


def config_type(structure: Structure) -> str:
    """The word under `config_type` in its `info`, which ASE may have read as a number; empty where there is none."""
    return str(structure.atoms.info.get("config_type", ""))


def element_weights(structures: list[Structure], weights: np.ndarray) -> np.ndarray:
    """`weights` [n_structures], the relative probabilities of being drawn, changed so that the elements are balanced.

    Each is multiplied by the mean over the structure's atoms of 1 / (expected atoms of that element): when each
    structure has one element, every element contributes the same expected number of atoms.
    """
    numbers = np.concatenate([s.atoms.numbers for s in structures])
    counts = np.bincount(numbers, np.repeat(weights, [len(s.atoms) for s in structures]))
    return weights * [np.mean(1.0 / counts[s.atoms.numbers]) for s in structures]


class Draw(torch.utils.data.Sampler):
    """Indices of one epoch, a function of (seed, epoch) alone, so that a resumed run sees what it would have seen.

    Each structure is drawn its expected number of times, rounded down or up at random; with equal weights and as many
    draws as structures that is a permutation.
    """

    def __init__(self, weights: np.ndarray, count: int, seed: int):
        self.expected = count * np.asarray(weights) / np.sum(weights)
        self.count = count
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.expected))
        ticks = rng.random() + np.arange(self.count)
        places = np.searchsorted(np.cumsum(self.expected[order]), ticks, side="right")
        drawn = order[places.clip(max=len(order) - 1)]
        return iter(rng.permutation(drawn).tolist())
