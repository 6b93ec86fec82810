"""Relax a silicon crystal together with its cell, at zero pressure and at 5 GPa."""

from ase import units
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from ase_equivariant import EquivariantCalculator

MAX_STEPS = 100

atoms = bulk("Si", cubic=True)
atoms.rattle(0.05, seed=0)
atoms.calc = EquivariantCalculator("mace-mlearn")

for pressure in (0.0, 5.0):
    cell = FrechetCellFilter(atoms, scalar_pressure=pressure * units.GPa)
    BFGS(cell, logfile="relax_cell.log", trajectory=f"relax_cell_{pressure:g}GPa.traj").run(fmax=0.002, steps=MAX_STEPS)
    found = -atoms.get_stress()[:3].mean() / units.GPa
    print(f"{pressure:g} GPa asked, {found:.2f} GPa found: a = {atoms.cell.lengths().mean():.4f} Å")
