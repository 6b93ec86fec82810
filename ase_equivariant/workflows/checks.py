"""Questions that every workflow asks of its input, and the quantities that several of them report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculatorSetupError, InputError


def require_calculator(atoms: Atoms) -> None:
    if atoms.calc is None:
        raise CalculatorSetupError("the atoms have no calculator: set `atoms.calc = EquivariantCalculator(...)` first")
    if len(atoms) == 0:
        raise InputError("the structure has no atoms")


@contextmanager
def writing(what: object) -> Iterator[None]:
    """Turn a full disk or a missing permission into one sentence about `what` is being written."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {what}: {error.strerror or error}; frames and lines that were complete are kept"
        ) from error


def has_pressure(atoms: Atoms) -> bool:
    """Whether a pressure is defined: periodic in all three directions, and a calculator that knows the stress."""
    return bool(atoms.pbc.all()) and atoms.cell.rank == 3 and "stress" in atoms.calc.implemented_properties


def require_pressure(atoms: Atoms, what: str) -> None:
    """Raise InputError unless `what` (named in the message) can be done to these atoms."""
    if not (atoms.pbc.all() and atoms.cell.rank == 3):
        raise InputError(
            f"{what} needs a structure that is periodic in all three directions; "
            f"{atoms.get_chemical_formula()} has pbc {atoms.pbc.tolist()} and {atoms.cell.rank} cell vectors"
        )
    if "stress" not in atoms.calc.implemented_properties:
        raise InputError(f"{what} needs the stress, which the calculator {type(atoms.calc).__name__} does not compute")


def require_positive(**values: float) -> None:
    """Raise InputError for the first value that is not a finite number above zero."""
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"{name.replace('_', ' ')} must be a number above 0; got {value}")


def hydrostatic_pressure(atoms: Atoms, include_ideal_gas: bool = False) -> float:
    """Pressure in GPa, positive under compression; with the momenta's share when `include_ideal_gas`."""
    stress = atoms.get_stress(include_ideal_gas=include_ideal_gas)
    return float(-stress[:3].mean() / units.GPa)
