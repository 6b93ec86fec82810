"""Twenty elemental crystals relaxed and compressed with a Nequix model, beside all-electron PBE.

    python examples/nequix_solids.py nequix-mp-1.nqx [element ...]

PBE: WIEN2k equations of state of K. Lejaeghere et al., Crit. Rev. Solid State (2014), doi 10.1080/10408436.2013.772503,
as ASE ships them in `ase.collections.dcdft`.
"""

import sys

import numpy as np
from ase.build import bulk
from ase.collections import dcdft
from ase.eos import EquationOfState
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from ase.units import GPa

from ase_equivariant import EquivariantCalculator

PER_CUBE = {"fcc": 4, "bcc": 2, "diamond": 8}  # atoms
STRUCTURES = {
    **dict.fromkeys(["Al", "Ca", "Ni", "Cu", "Sr", "Rh", "Pd", "Ag", "Ir", "Pt", "Au", "Pb"], "fcc"),
    **dict.fromkeys(["V", "Nb", "Mo", "Ta", "W"], "bcc"),
    **dict.fromkeys(["Si", "Ge", "Sn"], "diamond"),
}


def equation_of_state(relaxed, strains=(-0.02, -0.01, 0.0, 0.01, 0.02)) -> tuple[float, float]:
    """Volume per atom (Å³) and bulk modulus (GPa) at zero pressure."""
    volumes, energies = [], []
    for strain in strains:
        atoms = relaxed.copy()
        atoms.set_cell(relaxed.cell * (1 + strain), scale_atoms=True)
        atoms.calc = relaxed.calc
        volumes.append(atoms.get_volume() / len(atoms))
        energies.append(atoms.get_potential_energy() / len(atoms))
    volume, _, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit()
    return volume, modulus / GPa


model, *elements = sys.argv[1:]
calculator = EquivariantCalculator(model, dtype="float64")
print("             a (Å)             B (GPa)\n          model    PBE       model   PBE")
errors = []
for symbol in elements or STRUCTURES:
    structure, pbe = STRUCTURES[symbol], dcdft.data[symbol]
    expected = (PER_CUBE[structure] * pbe["wien2k_volume"]) ** (1 / 3)
    atoms = bulk(symbol, structure, a=expected)
    atoms.calc = calculator
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.005, steps=50)
    volume, modulus = equation_of_state(atoms)
    a = (PER_CUBE[structure] * volume) ** (1 / 3)
    errors.append(a / expected - 1)
    print(f"{symbol:2} {structure:7}{a:6.3f} {expected:6.3f}     {modulus:7.1f} {pbe['wien2k_B']:6.1f}", flush=True)
print(f"mean absolute error of a: {100 * np.abs(errors).mean():.2f} %")
