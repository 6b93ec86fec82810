"""Silicon at 600 K and constant volume, with a Nosé-Hoover chain: is its energy-like quantity conserved?"""

import numpy as np
from ase import units
from ase.build import bulk
from ase.md.nose_hoover_chain import NoseHooverChainNVT
from ase.md.velocitydistribution import Stationary, thermalize_momenta

from ase_equivariant import EquivariantCalculator

STEPS = 500

atoms = bulk("Si", cubic=True) * (2, 2, 2)
atoms.calc = EquivariantCalculator("mace-mlearn")
thermalize_momenta(atoms, 1200, rng=np.random.default_rng(0))  # half of it becomes potential energy
Stationary(atoms)

dynamics = NoseHooverChainNVT(atoms, 2 * units.fs, temperature_K=600, tdamp=100 * units.fs, trajectory="nvt.traj")
temperatures, conserved = [], []
for _ in dynamics.irun(STEPS):
    temperatures.append(atoms.get_temperature())
    conserved.append(dynamics.get_conserved_energy() / len(atoms))

settled = temperatures[len(temperatures) // 2 :]
print(f"temperature {np.mean(settled):.0f} ± {np.std(settled):.0f} K")
print(f"conserved energy within {np.ptp(conserved) * 1e3:.2f} meV/atom")
