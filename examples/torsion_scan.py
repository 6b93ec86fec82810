"""A methyl group of acetylacetone turns: energy along its dihedral angle, everything else relaxed."""

from pathlib import Path

import numpy as np
from ase.constraints import FixInternals
from ase.io import read
from ase.optimize import BFGS
from matplotlib.figure import Figure

from ase_equivariant import EquivariantCalculator

STEPS = 200
DIHEDRAL = [1, 2, 4, 8]  # C-C-C-H
GROUP = [8, 9, 10]  # its hydrogens
ANGLES = np.arange(0, 121, 10)  # a third of a turn brings it back

atoms = read(Path(__file__).with_name("acetylacetone.xyz"))
atoms.calc = EquivariantCalculator("mace-acac", dtype="float64")
energies = []
for angle in ANGLES:
    atoms.set_constraint()
    atoms.set_dihedral(*DIHEDRAL, angle, indices=GROUP)
    atoms.set_constraint(FixInternals(dihedrals_deg=[[angle, DIHEDRAL]]))
    BFGS(atoms, logfile=None).run(fmax=0.01, steps=STEPS)
    energies.append(atoms.get_potential_energy())
energies = 1000 * (np.array(energies) - min(energies))

figure = Figure(figsize=(5, 3), layout="constrained")
axes = figure.add_subplot()
axes.plot(ANGLES, energies, "o-")
axes.set(xlabel="dihedral angle H-C-C-C (degrees)", ylabel="energy (meV)")
figure.savefig("torsion_scan.png", dpi=150)
print(f"barrier {energies.max():.1f} meV, closed within {abs(energies[-1] - energies[0]):.1f} meV")
