"""Twenty elements and ten compounds relaxed and compressed with a Nequix model, beside PBE.

    python examples/nequix_solids.py [model [formula ...]]    # nequix-mp-1 by default, downloaded once

Elements: WIEN2k, K. Lejaeghere et al., Crit. Rev. Solid State (2014), doi 10.1080/10408436.2013.772503, as ASE has it.
Compounds: VASP, J. Harl et al., Phys. Rev. B 81, 115126 (2010), without bulk moduli.
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

PER_CUBE = {"fcc": 4, "bcc": 2, "diamond": 8, "rocksalt": 8, "zincblende": 8}  # atoms
ROCKSALT = {"LiF": 4.069, "LiCl": 5.149, "NaF": 4.707, "NaCl": 5.697, "MgO": 4.259}  # a in Å with PBE
ZINCBLENDE = {"SiC": 4.378, "AlP": 5.501, "AlAs": 5.727, "GaP": 5.507, "GaAs": 5.749}
STRUCTURES = {
    **dict.fromkeys(["Al", "Ca", "Ni", "Cu", "Sr", "Rh", "Pd", "Ag", "Ir", "Pt", "Au", "Pb"], "fcc"),
    **dict.fromkeys(["V", "Nb", "Mo", "Ta", "W"], "bcc"),
    **dict.fromkeys(["Si", "Ge", "Sn"], "diamond"),
    **dict.fromkeys(ROCKSALT, "rocksalt") | dict.fromkeys(ZINCBLENDE, "zincblende"),
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


model, *formulas = sys.argv[1:] or ["nequix-mp-1"]
calculator = EquivariantCalculator(model, dtype="float64")
print("                   a (Å)             B (GPa)\n                model    PBE       model   PBE")
errors = []
for formula in formulas or STRUCTURES:
    structure, element = STRUCTURES[formula], dcdft.data.get(formula)
    expected = (ROCKSALT | ZINCBLENDE).get(formula) or (PER_CUBE[structure] * element["wien2k_volume"]) ** (1 / 3)
    atoms = bulk(formula, structure, a=expected)
    atoms.calc = calculator
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.005, steps=50)
    volume, modulus = equation_of_state(atoms)
    a = (PER_CUBE[structure] * volume) ** (1 / 3)
    errors.append(a / expected - 1)
    beside = f"{element['wien2k_B']:6.1f}" if element else "     -"
    print(f"{f'{formula} {structure}':15}{a:6.3f} {expected:6.3f}     {modulus:7.1f} {beside}", flush=True)
print(f"mean absolute error of a: {100 * np.abs(errors).mean():.2f} %")
