"""Acetylacetone passes a hydrogen from one oxygen to the other: the barrier, by a nudged elastic band.

Between the same two states PBE-D3 has 14 meV (Batatia et al., arXiv:2205.06643, test_H_transfer).
"""

from pathlib import Path

import numpy as np
from ase.io import read
from ase.mep import NEB, NEBTools
from ase.optimize import BFGS, FIRE
from matplotlib.figure import Figure

from ase_equivariant import EquivariantCalculator

STEPS = 300
OXYGENS, HYDROGEN = (3, 5), 11

atoms = read(Path(__file__).with_name("acetylacetone.xyz"))
atoms.calc = EquivariantCalculator("mace-acac", dtype="float64")

product = atoms.copy()
product.calc = atoms.calc
first, second = atoms.positions[list(OXYGENS)]
along = (second - first) / np.linalg.norm(second - first)
product.positions[HYDROGEN] -= (2 * atoms.positions[HYDROGEN] - first - second) @ along * along  # its mirror image
for state in (atoms, product):
    BFGS(state, logfile=None).run(fmax=0.005, steps=STEPS)

images = [atoms, *(atoms.copy() for _ in range(5)), product]
for image in images[1:-1]:
    image.calc = atoms.calc
band = NEB(images, climb=True, method="improvedtangent", allow_shared_calculator=True)
band.interpolate("idpp")
FIRE(band, trajectory="hydrogen_transfer.traj", logfile=None).run(fmax=0.01, steps=STEPS)

figure = Figure(layout="constrained")
NEBTools(images).plot_band(figure.add_subplot())
figure.savefig("hydrogen_transfer.png")
print(f"barrier {1000 * NEBTools(images).get_barrier()[0]:.1f} meV")
