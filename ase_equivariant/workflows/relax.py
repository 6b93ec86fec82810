"""Relaxation of atoms, or of atoms and cell under hydrostatic pressure, with ASE's optimizers.

Forces and stress have their own thresholds, in their own units: the relaxation is converged when no force on an atom
exceeds `fmax` and, with a cell, no component of the stress differs from the asked pressure by more than `smax`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import InputError
from ase.filters import FrechetCellFilter
from ase.io import Trajectory
from ase.optimize import BFGS, FIRE, LBFGS

from ase_equivariant.workflows.checks import (
    has_pressure,
    hydrostatic_pressure,
    require_calculator,
    require_positive,
    require_pressure,
    writing,
)

OPTIMIZERS = {"bfgs": BFGS, "fire": FIRE, "lbfgs": LBFGS}
LOG_HEADER = f"{'step':>6} {'energy_eV':>18} {'fmax_eV/A':>14} {'pressure_GPa':>14}\n"


@dataclass(frozen=True)
class RelaxStep:
    """One structure on the way down."""

    step: int
    energy: float  # eV
    fmax: float  # eV/Å, the largest force on an atom
    pressure: float | None  # GPa; None where it is not defined
    smax: float | None  # GPa, the largest stress component left to relax; None with a fixed cell


@dataclass(frozen=True)
class RelaxResult:
    """How a relaxation ended; the atoms themselves were relaxed in place."""

    converged: bool
    steps: int
    first: RelaxStep
    last: RelaxStep


def relax(
    atoms: Atoms,
    *,
    fmax: float = 0.01,
    smax: float = 0.01,
    cell: bool = False,
    pressure: float = 0.0,
    steps: int = 500,
    optimizer: str = "bfgs",
    trajectory: str | Path | None = None,
    logfile: str | Path | None = None,
    observer: Callable[[RelaxStep], None] | None = None,
) -> RelaxResult:
    """Relax `atoms` in place; one call of the calculator per step.

    Parameters
    ----------
    atoms : structure with a calculator; its constraints are kept
    fmax : largest force allowed on an atom, eV/Å
    smax : largest deviation allowed of a stress component from the asked pressure, GPa
    cell : whether to relax the cell too
    pressure : hydrostatic pressure on the cell, GPa
    steps : give up after this many steps
    optimizer : a key of `OPTIMIZERS`; "bfgs" always goes downhill but diagonalises a 3N x 3N matrix, "lbfgs" is for
        thousands of atoms, "fire" for rough starting structures
    trajectory, logfile : files to write every step to
    observer : called with every `RelaxStep`, the starting structure included
    """
    require_calculator(atoms)
    require_positive(fmax=fmax, smax=smax, steps=steps)
    target = _target(atoms, cell, pressure)
    if optimizer not in OPTIMIZERS:
        raise InputError(f"unknown optimizer {optimizer!r}; choose one of {', '.join(sorted(OPTIMIZERS))}")
    atoms.get_forces()  # bad input speaks up here, before any file is opened
    driver = OPTIMIZERS[optimizer](target, logfile=None)
    history = []
    with writing(trajectory or logfile), ExitStack() as stack:
        frames = stack.enter_context(Trajectory(str(trajectory), "w", atoms)) if trajectory else None
        log = stack.enter_context(open(logfile, "w", buffering=1)) if logfile else None
        if log:
            log.write(LOG_HEADER)
        # fmax=0: the optimizer never stops by itself, since it would weigh the cell's gradient per atom
        for _ in driver.irun(fmax=0.0, steps=steps):
            history.append(_measure(atoms, driver.nsteps, pressure if cell else None))
            if frames is not None:  # an empty trajectory is falsy
                frames.write()
            if log:
                log.write(_log_line(history[-1]))
            if observer:
                observer(history[-1])
            converged = history[-1].fmax < fmax and (not cell or history[-1].smax < smax)
            if converged:
                break
    return RelaxResult(converged, history[-1].step, history[0], history[-1])


def _target(atoms: Atoms, cell: bool, pressure: float) -> Atoms | FrechetCellFilter:
    """What the optimizer moves: the atoms, or the atoms and their cell."""
    if not np.isfinite(pressure):
        raise InputError(f"pressure must be a number, in GPa; got {pressure}")
    if cell:
        require_pressure(atoms, "relaxing the cell")
        return FrechetCellFilter(atoms, scalar_pressure=pressure * units.GPa)
    if pressure:
        raise InputError(f"a pressure of {pressure} GPa acts on the cell: ask to relax the cell too")
    return atoms


def _measure(atoms: Atoms, step: int, target: float | None) -> RelaxStep:
    smax = None
    if target is not None:
        smax = float(np.abs(atoms.get_stress() / units.GPa + target * np.array([1, 1, 1, 0, 0, 0])).max())
    return RelaxStep(
        step=step,
        energy=float(atoms.get_potential_energy()),
        fmax=float(np.linalg.norm(atoms.get_forces(), axis=1).max()),
        pressure=hydrostatic_pressure(atoms) if has_pressure(atoms) else None,
        smax=smax,
    )


def _log_line(step: RelaxStep) -> str:
    shown = "-" if step.pressure is None else f"{step.pressure:.6f}"
    return f"{step.step:6d} {step.energy:18.8f} {step.fmax:14.8f} {shown:>14}\n"
