"""Evaluate a potential on many structures and compare it with the labels they carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from ase_equivariant.labels import find_label

KEYS = {name: name for name in ("energy", "forces", "stress")}


@dataclass(frozen=True)
class Errors:
    """Deviations of predictions from labels, all in one unit."""

    count: int
    rmse: float
    mae: float
    bias: float  # mean of prediction minus label


@dataclass(frozen=True)
class Comparison:
    """Errors against the labels of a data set; empty where the frames carry none."""

    energy: Errors | None  # meV per atom
    forces: dict[str, Errors]  # meV/Å per component: "all", then per element
    stress: Errors | None  # GPa per component


def evaluate(
    frames: Sequence[Atoms],
    calculator: Calculator,
    observer: Callable[[int, int], None] | None = None,
    keys: Mapping[str, str] = KEYS,
) -> list[Atoms]:
    """Copies of `frames` that carry the calculator's energy, forces and (for 3-D cells) stress.

    Labels that a frame came with are kept beside them: `info["ref_energy"]`, `arrays["ref_forces"]`,
    `info["ref_stress"]` in eV, eV/Å, eV/Å^3; `keys` are their names in the frame. `observer` is called with
    (frames done, frames in all). Raises InputError, before any work, for a label of another shape.
    """
    evaluated = []
    known = [reference_labels(frame, keys, f"frame {i}") for i, frame in enumerate(frames)]
    for done, (frame, labels) in enumerate(zip(frames, known, strict=True), start=1):
        atoms = frame.copy()
        atoms.calc = calculator
        results = {"forces": atoms.get_forces(apply_constraint=False), "energy": atoms.get_potential_energy()}
        with suppress(PropertyNotImplementedError):  # without a 3-D cell
            results["stress"] = atoms.get_stress(apply_constraint=False)
        atoms.calc = SinglePointCalculator(atoms, **results)
        if "energy" in labels:
            atoms.info["ref_energy"] = float(labels["energy"])
        if "stress" in labels:
            atoms.info["ref_stress"] = labels["stress"]
        if "forces" in labels:
            atoms.arrays["ref_forces"] = labels["forces"]
        evaluated.append(atoms)
        if observer:
            observer(done, len(frames))
    return evaluated


def reference_labels(frame: Atoms, keys: Mapping[str, str] = KEYS, source: str = "the frame") -> dict[str, np.ndarray]:
    """Energy, forces and stress (Voigt) that a frame came with, by `find_label`; only those that are there."""
    labels = {name: find_label(frame, name, key, source) for name, key in keys.items()}
    if labels.get("stress") is not None:
        labels["stress"] = full_3x3_to_voigt_6_stress(labels["stress"])
    return {name: value for name, value in labels.items() if value is not None}


def compare(evaluated: Sequence[Atoms]) -> Comparison:
    """Errors of `evaluate`'s predictions against the labels that it kept."""
    with_energy = [a for a in evaluated if "ref_energy" in a.info]
    with_forces = [a for a in evaluated if "ref_forces" in a.arrays]
    with_stress = [a for a in evaluated if "ref_stress" in a.info and "stress" in a.calc.results]
    energy = [(a.calc.results["energy"] - a.info["ref_energy"]) / len(a) * 1e3 for a in with_energy]
    stress = [(a.calc.results["stress"] - a.info["ref_stress"]) / units.GPa for a in with_stress]
    forces = {}
    if with_forces:
        deviations = np.concatenate([a.calc.results["forces"] - a.arrays["ref_forces"] for a in with_forces]) * 1e3
        symbols = np.concatenate([list(a.symbols) for a in with_forces])
        forces["all"] = _errors(deviations)
        forces.update({symbol: _errors(deviations[symbols == symbol]) for symbol in sorted(set(symbols))})
    return Comparison(_errors(energy) if energy else None, forces, _errors(stress) if stress else None)


def _errors(deviations: Sequence) -> Errors:
    flat = np.asarray(deviations, dtype=float).ravel()
    return Errors(len(flat), float(np.sqrt(np.mean(flat**2))), float(np.abs(flat).mean()), float(flat.mean()))
