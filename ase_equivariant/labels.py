"""Energy, forces and stress that a structure came with."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.calculators.calculator import InputError
from ase.stress import voigt_6_to_full_3x3_stress

from ase_equivariant.text import shown


def find_label(atoms: Atoms, quantity: str, key: str | None, source: str) -> np.ndarray | None:
    """The "energy" [] eV, "forces" [n_atoms, 3] eV/Å or "stress" [3, 3] eV/Å³ of a structure, None where it is missing.

    It is looked for under its key among the results of the structure's calculator, if that has calculated this
    structure, in `info` and in `arrays`; a stress may have the shapes (6,) of Voigt, (3, 3) and (9,) there. Raises
    InputError, which begins with `source`, for one that is no finite numbers or has another shape.
    """
    places = results_of(atoms), atoms.info, atoms.arrays
    found = next((place[key] for place in places if place.get(key) is not None), None)
    if found is None:
        return None
    try:
        value = np.asarray(found)
    except ValueError:  # of lists of different lengths
        value = np.asarray("")
    if value.dtype.kind not in "iuf":
        raise InputError(f"{source}: {key!r} is {shown(found)}, not numbers")
    shapes = {"energy": [()], "forces": [(len(atoms), 3)], "stress": [(6,), (3, 3), (9,)]}[quantity]
    if value.shape not in shapes:
        allowed = " or ".join(map(str, shapes))
        raise InputError(f"{source}: {key!r} has shape {value.shape}; as {quantity} it must be {allowed}")
    if not np.isfinite(value).all():
        raise InputError(f"{source}: {key!r} holds NaN or infinity; remove the structure or repair it")
    if quantity == "stress":
        value = voigt_6_to_full_3x3_stress(value) if value.shape == (6,) else value.reshape(3, 3)
    return value.astype(np.float64)


def names_of(atoms: Atoms) -> set[str]:
    """The keys of all that a structure came with beside its atoms."""
    found = {**atoms.arrays, **atoms.info, **results_of(atoms)}
    return {str(name) for name in found if found[name] is not None} - {"numbers", "positions"}


def results_of(atoms: Atoms) -> dict:
    """What the structure's calculator has calculated, if it was this structure: several may share a calculator."""
    of = getattr(atoms.calc, "atoms", None)
    same = of is None or all(
        np.array_equal(ours, its, equal_nan=True)
        for ours, its in (
            (atoms.positions, of.positions),
            (atoms.numbers, of.numbers),
            (atoms.cell.array, of.cell.array),
            (atoms.pbc, of.pbc),
        )
    )
    return getattr(atoms.calc, "results", {}) if same else {}
