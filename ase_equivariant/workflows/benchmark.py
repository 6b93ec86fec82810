"""What a step costs on this machine: the backends in turn on one structure, each part of a step beside the whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
from ase import Atoms

from ase_equivariant.calculator import EquivariantCalculator
from ase_equivariant.device_list import lists_for
from ase_equivariant.golden import golden_probes
from ase_equivariant.graph import from_atoms
from ase_equivariant.potential import Potential

MOTION = 1e-3  # Å per step and direction, as in dynamics
DEFAULT_SIZE = 100  # atoms, at least, of the structure that stands in for the user's


@dataclass(frozen=True)
class Timing:
    """Medians over the steps, seconds; `neighbors` + `energy` + `gradient` = `step`.

    `memory` is the estimate of the calculator, bytes. `deviation` is the largest difference of a force from those of
    the last backend, eV/Å.
    """

    backend: str
    atoms: int
    edges: int
    step: float
    neighbors: float
    energy: float
    gradient: float
    memory: int
    deviation: float

    def nanoseconds_per_day(self, timestep: float) -> float:
        """Of dynamics with a time step in fs."""
        return 86400.0 / self.step * timestep * 1e-6


def benchmark(
    calculators: dict[str, EquivariantCalculator],
    atoms: Atoms,
    steps: int = 10,
    observer: Callable[[int, int], None] | None = None,
) -> list[Timing]:
    """Time steps of slightly moving atoms, in each of which every calculator has its turn.

    A step is energy, forces and, with a 3-D cell, stress. `observer` is called with (steps done, steps in all).
    """
    atoms, random = atoms.copy(), np.random.default_rng(0)
    for calc in calculators.values():
        calc.warm_up(atoms)
    graphs = {name: _graph_maker(calc, atoms) for name, calc in calculators.items()}
    seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in calculators}
    for done in range(1, steps + 1):
        for name, calc in calculators.items():
            parts = []
            for work in (graphs[name], calc.get_potential_energy, calc.get_forces):
                atoms.positions += random.normal(scale=MOTION, size=atoms.positions.shape)
                parts.append(_time(work, atoms))
            seconds[name].append(tuple(parts))
        if observer:
            observer(done, steps)
    forces = {name: calc.get_forces(atoms) for name, calc in calculators.items()}
    last = forces[list(forces)[-1]]
    return [
        _timing(calc, atoms, seconds[name], float(np.abs(forces[name] - last).max(initial=0.0)))
        for name, calc in calculators.items()
    ]


def example(potential: Potential) -> Atoms:
    """A structure that the model knows: one of its golden structures, a crystal repeated until it is of some size."""
    records = potential.metadata.get("golden") or golden_probes(potential)
    record = max(records, key=lambda record: (sum(record["pbc"]), len(record["numbers"])))
    atoms = Atoms(**{key: record[key] for key in ("numbers", "positions", "cell", "pbc")}, info=record.get("info"))
    while atoms.pbc.any() and len(atoms) < DEFAULT_SIZE:
        shortest = min(np.flatnonzero(atoms.pbc), key=lambda axis: atoms.cell.lengths()[axis])
        atoms *= np.where(np.arange(3) == shortest, 2, 1)
    return atoms


def _graph_maker(calc: EquivariantCalculator, atoms: Atoms) -> Callable[[Atoms], object]:
    """What makes the graphs that the calculator's backend takes, once it has chosen one."""
    potential = calc.potential
    neighbors = lists_for(potential.cutoff, next(potential.parameters()).device)[calc.keeps_edges]

    def make(atoms: Atoms) -> object:
        return from_atoms(atoms, potential.atomic_numbers, potential.cutoff, neighbors, attributes=potential.attributes)

    make(atoms)
    return make


def _time(work: Callable[[Atoms], object], atoms: Atoms) -> float:
    start = time.perf_counter()
    work(atoms)
    return time.perf_counter() - start


def _timing(
    calc: EquivariantCalculator, atoms: Atoms, seconds: list[tuple[float, float, float]], deviation: float
) -> Timing:
    neighbors, energy, step = (median(column) for column in zip(*seconds, strict=True))
    found = calc.estimate(atoms)
    return Timing(
        backend=calc.parameters["backend"],
        atoms=len(atoms),
        edges=found.edges,
        step=step,
        neighbors=neighbors,
        energy=energy - neighbors,
        gradient=step - energy,
        memory=found.memory,
        deviation=deviation,
    )
