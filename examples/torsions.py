"""3BPA, a flexible drug-like molecule, for 10 ps at 600 K: how far do its three torsion angles wander?"""

from pathlib import Path

import numpy as np
from ase import units
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from matplotlib.figure import Figure

from ase_equivariant import EquivariantCalculator

STEPS = 20000
TIMESTEP = 0.5  # fs
TORSIONS = {"α": [4, 1, 5, 13], "β": [1, 5, 13, 14], "γ": [5, 13, 14, 18]}
OXYGEN, CARBONS = 5, [1, 13]  # the ether bridge

atoms = read(Path(__file__).with_name("3bpa.xyz"))
atoms.calc = EquivariantCalculator("mace-3bpa")
thermalize_momenta(atoms, 1200, rng=np.random.default_rng(0))  # half of it becomes potential energy
dynamics = Langevin(
    atoms, TIMESTEP * units.fs, temperature_K=600, friction=0.01 / units.fs, fixcm=False, rng=np.random.default_rng(1)
)

temperatures, bridge, angles = [], [], []
for _ in dynamics.irun(STEPS):
    temperatures.append(atoms.get_temperature())
    bridge.append(atoms.get_angle(CARBONS[0], OXYGEN, CARBONS[1]))
    angles.append([atoms.get_dihedral(*torsion) for torsion in TORSIONS.values()])

figure = Figure(figsize=(7, 3), layout="constrained")
axes = figure.add_subplot()
axes.plot(np.arange(len(angles)) * TIMESTEP / 1000, angles, ".", markersize=1)
axes.set(xlabel="time (ps)", ylabel="torsion angle (degrees)", ylim=(0, 360), yticks=range(0, 361, 60))
axes.legend(TORSIONS, loc="upper right", markerscale=8)
figure.savefig("torsions.png", dpi=150)
print(f"C-O-C angle {np.mean(bridge):.1f} degrees at {np.mean(temperatures):.0f} K")
