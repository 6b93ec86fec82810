"""Copper at 300 K and no pressure: its lattice constant, expanded by heat."""

import numpy as np
from ase import units
from ase.build import bulk
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import Stationary, thermalize_momenta

from ase_equivariant import EquivariantCalculator

STEPS = 500

atoms = bulk("Cu", cubic=True) * (3, 3, 3)
atoms.calc = EquivariantCalculator("mace-mlearn")
thermalize_momenta(atoms, 600, rng=np.random.default_rng(0))  # half of it becomes potential energy
Stationary(atoms)

fs = units.fs
dynamics = IsotropicMTKNPT(atoms, 2 * fs, 300, pressure_au=0.0, tdamp=100 * fs, pdamp=1000 * fs, trajectory="npt.traj")
lattice_constants = []
for _ in dynamics.irun(STEPS):
    lattice_constants.append(atoms.cell.lengths().mean() / 3)

settled = lattice_constants[len(lattice_constants) // 2 :]
print(f"a = {np.mean(settled):.3f} ± {np.std(settled):.3f} Å at 300 K")
