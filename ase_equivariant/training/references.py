"""What the network need not learn: reference energies of the elements, scale and shift, from the training set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.calculators.calculator import InputError
from ase.data import atomic_numbers as NUMBER_OF
from ase.data import chemical_symbols

from ase_equivariant.training.data import Structure


def atomic_energies(
    mode: str | dict[str, float], train: list[Structure], isolated: list[Structure], numbers: Sequence[int]
) -> list[float]:
    """E0 of each species, eV: given, of isolated atoms, or fitted to the energies per atom by least squares."""
    if mode == "least_squares":
        return least_squares(train, numbers).tolist()
    if mode == "isolated":
        known = {int(s.atoms.numbers[0]): s.energy for s in isolated if s.energy is not None}
    else:
        known = {NUMBER_OF[symbol]: energy for symbol, energy in mode.items()}
    missing = [chemical_symbols[z] for z in numbers if z not in known]
    if missing:
        where = "isolated atoms in data.train have" if mode == "isolated" else "data.atomic_energies has"
        raise InputError(f"{where} no energy of {', '.join(missing)}; add it, or choose least_squares")
    return [float(known[z]) for z in numbers]


def composition(structures: list[Structure], numbers: Sequence[int]) -> np.ndarray:
    """Fraction of each species in each structure, [n_structures, n_species]."""
    return np.array([[np.mean(s.atoms.numbers == z) for z in numbers] for s in structures])


def least_squares(structures: list[Structure], numbers: Sequence[int]) -> np.ndarray:
    """Energies per species that fit the energies per atom best; of a set of pure elements, the mean of each."""
    labelled = [s for s in structures if s.energy is not None]
    if not labelled:
        raise InputError("data.atomic_energies is 'least_squares', but no training structure has an energy")
    energies = np.array([s.energy / len(s.atoms) for s in labelled])
    return np.linalg.lstsq(composition(labelled, numbers), energies, rcond=None)[0]


def force_scale(mode: str, train: list[Structure], numbers: Sequence[int]) -> list[float]:
    """Root mean square of the force components in eV/Å, of all atoms or of each species; 1 where forces say nothing."""
    labelled = [s for s in train if s.forces is not None]
    if not labelled:
        return [1.0] * len(numbers)
    forces = np.concatenate([s.forces for s in labelled])
    species = np.concatenate([s.atoms.numbers for s in labelled])
    overall = np.sqrt(np.mean(forces**2)) or 1.0
    if mode == "rms_forces":
        return [float(overall)] * len(numbers)
    by_species = [np.sqrt(np.mean(forces[species == z] ** 2)) if z in species else overall for z in numbers]
    return [float(rms) or 1.0 for rms in by_species]


def energy_shift(train: list[Structure], e0: Sequence[float], numbers: Sequence[int]) -> float:
    """Mean over the training set of the energy per atom above the reference energies, eV."""
    labelled = [s for s in train if s.energy is not None]
    if not labelled:
        return 0.0
    above = [s.energy / len(s.atoms) for s in labelled] - composition(labelled, numbers) @ np.asarray(e0)
    return float(np.mean(above))
