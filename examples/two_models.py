"""Two foundation models of packages that cannot be installed together, MACE and Nequix, on the same crystals.

    python examples/two_models.py [nequix-mp-1.nqx [some-mace.model]]

Without files they are nequix-mp-1, downloaded once, and the shipped mace-mlearn. Energies are relative to the crystal
at its first lattice constant, since the models' zeros differ.
"""

import sys
from pathlib import Path

from ase.build import bulk

from ase_equivariant import EquivariantCalculator

CRYSTALS = {"Si": (5.35, 5.45, 5.55), "Cu": (3.55, 3.63, 3.71)}  # lattice constants, Å

models = [*(sys.argv[1:2] or ["nequix-mp-1"]), *(sys.argv[2:] or ["mace-mlearn"])]
calculators = {Path(model).stem: EquivariantCalculator(model) for model in models}

print("meV/atom and eV/Å  ", *(f"{name:>26}" for name in calculators))
for symbol, constants in CRYSTALS.items():
    first = {}
    for a in constants:
        row = []
        for name, calculator in calculators.items():
            atoms = bulk(symbol, a=a, cubic=True)
            atoms.calc = calculator
            energy = atoms.get_potential_energy() / len(atoms)
            first.setdefault(name, energy)
            atoms.positions[0, 0] += 0.1  # the force that pulls a displaced atom back
            row.append(f"{1000 * (energy - first[name]):12.1f} {atoms.get_forces()[0, 0]:13.3f}")
        print(f"{symbol} a = {a:.2f} Å      ", *row)
