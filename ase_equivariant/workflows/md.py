"""Molecular dynamics with ASE's integrators: trajectory, log, final structure, picture and summary of one run.

The potential is called once per step: temperature, pressure and the conserved energy are read from the results that
the integrator's own force call left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from time import perf_counter

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed, InputError
from ase.io import Trajectory, write
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import IsotropicMTKNPT, NoseHooverChainNVT
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet

from ase_equivariant.storage import write_atomically
from ase_equivariant.workflows.checks import (
    has_pressure,
    hydrostatic_pressure,
    require_calculator,
    require_pressure,
    writing,
)
from ase_equivariant.workflows.plot import plot_md
from ase_equivariant.workflows.rdf import distance_distribution
from ase_equivariant.workflows.record import MDFiles, MDSample, MDSummary, Recorder, summarize
from ase_equivariant.workflows.settings import MDSettings

MAX_FORCE = 500.0  # eV/Å; no bonded structure comes near it
RDF_FRAMES, RDF_ATOMS = 50, 500_000  # at most, frames and atoms in all of them


class MDStopped(CalculationFailed):
    """The dynamics blew up; what was done until then is in `summary` and in its files."""

    def __init__(self, message: str, summary: MDSummary):
        super().__init__(message)
        self.summary = summary


def run_md(
    atoms: Atoms, settings: MDSettings, prefix: str | Path, observer: Callable[[MDSample], None] | None = None
) -> MDSummary:
    """Run molecular dynamics on `atoms`, in place.

    Velocities that the atoms carry are continued; atoms at rest get new ones, Maxwell–Boltzmann distributed. Ctrl-C
    ends the run early and in order (`summary.interrupted`). Forces that explode or a failing calculator raise
    `MDStopped`. In both cases files, picture and `atoms` hold everything up to the last good step.

    Parameters
    ----------
    atoms : structure with a calculator
    settings : ensemble, temperature, number of steps ...
    prefix : where to write, see `MDFiles`
    observer : called with an `MDSample` after each step, and once before the first
    """
    _require_runnable(atoms, settings)
    check_forces(atoms)  # bad input speaks up here, before any file is opened
    rng = np.random.default_rng(settings.seed)
    if not atoms.get_momenta().any():
        draw_velocities(atoms, settings.temperature, rng)
    dynamics = make_dynamics(atoms, settings, rng)
    files = MDFiles.at(prefix)
    stopped, started = None, perf_counter()
    with writing(files.trajectory), Recorder(atoms, files, settings.interval) as recorder:
        try:
            for _ in dynamics.irun(settings.steps):
                check_forces(atoms)
                sample = measure(atoms, dynamics, settings)
                recorder.record(sample)
                if observer:
                    observer(sample)
        except (KeyboardInterrupt, CalculationFailed, InputError) as error:
            if recorder.last is None:
                raise
            stopped = error
    interrupted = isinstance(stopped, KeyboardInterrupt)
    summary = summarize(settings, recorder, perf_counter() - started, interrupted)
    _restore(atoms, recorder.last)
    final = StringIO()
    write(final, recorder.last, format="extxyz")
    write_atomically(final.getvalue().encode(), files.final)
    with writing(files.picture):
        plot_md(summary, recorder.samples, distance_distribution(_settled_frames(files.trajectory)))
    if stopped and not interrupted:
        raise MDStopped(
            f"the dynamics failed at step {summary.steps + 1} of {settings.steps}: {stopped} "
            f"(all before it is kept in {files.trajectory}; try a shorter timestep, or relax the structure first)",
            summary,
        ) from stopped
    return summary


def make_dynamics(atoms: Atoms, settings: MDSettings, rng: np.random.Generator) -> MolecularDynamics:
    """ASE's integrator for the asked ensemble."""
    timestep, temperature = settings.timestep * units.fs, settings.temperature
    if settings.ensemble == "nve":
        return VelocityVerlet(atoms, timestep)
    if settings.ensemble == "nvt-langevin":
        friction = settings.friction / units.fs
        # fixcm would bias the sampled distribution; a slow drift of the centre of mass is part of Langevin dynamics
        return Langevin(atoms, timestep, temperature_K=temperature, friction=friction, rng=rng, fixcm=False)
    damping = settings.thermostat_time * units.fs
    if settings.ensemble == "nvt-nhc":
        return NoseHooverChainNVT(atoms, timestep, temperature, damping)
    pressure, pressure_damping = settings.pressure * units.GPa, settings.barostat_time * units.fs
    return IsotropicMTKNPT(atoms, timestep, temperature, pressure, damping, pressure_damping)


def draw_velocities(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Give free atoms Maxwell–Boltzmann velocities of exactly `temperature` K, the whole at rest."""
    thermalize_momenta(atoms, temperature, exact_temperature=True, rng=rng)
    if len(atoms) > 1 and not atoms.constraints:
        Stationary(atoms)


def check_forces(atoms: Atoms) -> None:
    """Raise CalculationFailed, naming the atoms, if a force is not a number or larger than any structure can bear."""
    norms = np.linalg.norm(atoms.get_forces(), axis=1)
    bad = np.flatnonzero(~(norms < MAX_FORCE))
    if len(bad):
        shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        largest = f"{norms.max():.3g} eV/Å" if np.isfinite(norms).all() else "not a number"
        raise CalculationFailed(f"the force on atoms {shown} is {largest}, more than the {MAX_FORCE:g} eV/Å allowed")


def measure(atoms: Atoms, dynamics: MolecularDynamics, settings: MDSettings) -> MDSample:
    """Read the state after a step; the results are there, nothing is computed anew."""
    extended = settings.ensemble in ("nvt-nhc", "npt")  # thermostat and barostat carry energy
    return MDSample(
        step=dynamics.nsteps,
        time=dynamics.nsteps * settings.timestep * 1e-3,
        potential_energy=float(atoms.get_potential_energy()),
        kinetic_energy=float(atoms.get_kinetic_energy()),
        temperature=float(atoms.get_temperature()),
        conserved_energy=float(dynamics.get_conserved_energy() if extended else atoms.get_total_energy()),
        volume=float(atoms.get_volume()) if atoms.pbc.all() else None,
        pressure=hydrostatic_pressure(atoms, include_ideal_gas=True) if has_pressure(atoms) else None,
    )


def _require_runnable(atoms: Atoms, settings: MDSettings) -> None:
    require_calculator(atoms)
    if settings.ensemble == "npt":
        require_pressure(atoms, "ensemble npt")
    if settings.ensemble in ("nvt-nhc", "npt") and atoms.constraints:
        # ASE's Nosé-Hoover chains count 3N degrees of freedom: the free atoms would be too hot
        raise InputError(f"ensemble {settings.ensemble} cannot hold atoms fixed; use nvt-langevin or nve")


def _restore(atoms: Atoms, last: Atoms) -> None:
    """Undo a step that was interrupted half-way."""
    atoms.set_cell(last.cell)
    atoms.set_positions(last.positions, apply_constraint=False)
    atoms.set_momenta(last.get_momenta(), apply_constraint=False)


def _settled_frames(trajectory: Path) -> list[Atoms]:
    """Frames evenly spaced over the second half of a trajectory, fewer of large structures."""
    with Trajectory(str(trajectory)) as frames:
        first = len(frames) // 2
        wanted = min(RDF_FRAMES, 1 + RDF_ATOMS // len(frames[0]))
        stride = -(-(len(frames) - first) // wanted)
        return [frames[index] for index in range(first, len(frames), stride)]
