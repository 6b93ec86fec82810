"""Equations of state and elastic constants of the elemental crystals at 0 K, against DFT-PBE.

    python benchmarks/physics/crystals.py [--model NAME]

Energies in float64 at seven volumes, 0.94 to 1.06 of the one of lowest energy, fitted by Birch and Murnaghan's equation
(the protocol of the published references). Elastic constants from central differences of the stress, strain ±0.2 %,
atoms relaxed under shear.

The reference that counts is the published PBE equation of state made with VASP (tests/reference_pbe.json): the labels
are VASP's too, and the set's own energies of strained cells agree with it within 0.3 % in a and 2 % in B
(results/elastic_frames.json; its stress labels of Cu and Ni do not, see there). Targets: 0.5 % and 10 %. The published
crystal of Li is not bcc: it is compared with the set's own frames, without a target.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.eos import EquationOfState
from ase.stress import voigt_6_to_full_3x3_strain

from ase_equivariant.workflows.relax import relax

sys.path.append(str(Path(__file__).resolve().parents[1]))
from report import RESULTS, ROOT, calculator, parser, table, write  # noqa: E402

SOURCE = "vasp"  # of tests/reference_pbe.json: the reference that counts
LATTICE_TARGET, BULK_TARGET = 0.5, 10.0  # %
CRYSTALS = {  # structure and a lattice constant to start from, Å
    "Cu": ("fcc", 3.63),
    "Ni": ("fcc", 3.52),
    "Mo": ("bcc", 3.16),
    "Si": ("diamond", 5.47),
    "Ge": ("diamond", 5.77),
    "Li": ("bcc", 3.44),
}
CUBIC_ATOMS = {"fcc": 4, "bcc": 2, "diamond": 8}  # in the cubic cell
VOLUMES = np.linspace(0.94, 1.06, 7)  # as published references
STRAIN = 2e-3


def main() -> None:
    args = parser(__doc__).parse_args()
    published = json.loads((ROOT / "tests" / "reference_pbe.json").read_text())
    frames = json.loads((RESULTS / "elastic_frames.json").read_text())["elements"]
    model = calculator(args.model)
    elements = {}
    for symbol in CRYSTALS:
        found = equation_of_state(symbol, model)
        found["elastic_constants"] = elastic_constants(symbol, found["lattice_constant"], model)
        rows = {f"published_{name}": published["elements"][symbol][name] for name in published["sources"]}
        rows["elastic_frames"] = frames[symbol]
        found["deviations"] = {name: deviations(found, row) for name, row in rows.items() if "lattice_constant" in row}
        found["good"] = verdict(found["deviations"].get(f"published_{SOURCE}"))
        elements[symbol] = found
    result = {
        "reference": SOURCE,
        "targets_percent": {"lattice_constant": LATTICE_TARGET, "bulk_modulus": BULK_TARGET},
        "units": "Å, GPa, eV/atom; deviations in %",
        "elements": elements,
    }
    write(args.results, "crystals", result, markdown(elements, published["elements"], frames), args.model)


def crystal(symbol: str, lattice_constant: float, model: Calculator) -> Atoms:
    """The primitive cell."""
    atoms = bulk(symbol, CRYSTALS[symbol][0], a=lattice_constant)
    atoms.calc = model
    return atoms


def equation_of_state(symbol: str, model: Calculator) -> dict[str, float]:
    """Lattice constant (Å), bulk modulus (GPa), its derivative, and the energy (eV/atom) at the lowest point."""
    structure, lattice_constant = CRYSTALS[symbol]
    for _ in range(2):  # the second round is centred
        cells = [crystal(symbol, lattice_constant * factor ** (1 / 3), model) for factor in VOLUMES]
        volumes = [atoms.get_volume() / len(atoms) for atoms in cells]
        energies = [atoms.get_potential_energy() / len(atoms) for atoms in cells]
        eos = EquationOfState(volumes, energies, eos="birchmurnaghan")
        volume, energy, bulk_modulus = eos.fit(warn=False)
        lattice_constant = float(CUBIC_ATOMS[structure] * volume) ** (1 / 3)
    return {
        "structure": structure,
        "lattice_constant": lattice_constant,
        "bulk_modulus": float(bulk_modulus / units.GPa),
        "bulk_modulus_derivative": float(eos.eos_parameters[2]),
        "energy": float(energy),
    }


def elastic_constants(symbol: str, lattice_constant: float, model: Calculator) -> dict[str, float]:
    """C11, C12, C44 in GPa, from stresses at ±`STRAIN`."""
    slopes = []
    for component in (0, 3):  # xx, yz
        stresses = [strained_stress(symbol, lattice_constant, model, component, sign * STRAIN) for sign in (1, -1)]
        slopes.append((stresses[0] - stresses[1]) / (2 * STRAIN))
    (c11, c12), c44 = slopes[0][:2], slopes[1][3]
    return {"c11": float(c11), "c12": float(c12), "c44": float(c44)}


def strained_stress(symbol: str, lattice_constant: float, model: Calculator, component: int, strain: float):
    atoms = crystal(symbol, lattice_constant, model)
    voigt = np.eye(6)[component] * strain
    atoms.set_cell(atoms.cell @ voigt_6_to_full_3x3_strain(voigt), scale_atoms=True)  # it adds the identity
    relax(atoms, fmax=1e-6, steps=200)  # of the two atoms of diamond against each other
    return atoms.get_stress() / units.GPa


def deviations(found: dict, reference: dict) -> dict[str, float]:
    """In %."""
    return {key: 100 * (found[key] / reference[key] - 1) for key in ("lattice_constant", "bulk_modulus")}


def verdict(deviation: dict[str, float] | None) -> bool | None:
    if deviation is None:
        return None
    return abs(deviation["lattice_constant"]) < LATTICE_TARGET and abs(deviation["bulk_modulus"]) < BULK_TARGET


def markdown(elements: dict, published: dict, frames: dict) -> str:
    columns = ["", "a (Å)", "a PBE published", "deviation", "a set's frames", "B (GPa)", "B PBE published", "deviation"]
    columns += ["B set's frames", "C11 / C12 / C44 (GPa)", f"within {LATTICE_TARGET} % and {BULK_TARGET:g} %"]
    rows = []
    for symbol, found in elements.items():
        row = [f"{symbol} {found['structure']}"]
        deviation = found["deviations"].get(f"published_{SOURCE}")
        for key, digits in (("lattice_constant", 3), ("bulk_modulus", 1)):
            row.append(f"{found[key]:.{digits}f}")
            row.append(f"{published[symbol][SOURCE][key]:.{digits}f}" if deviation else "–")
            row.append(f"{deviation[key]:+.2f} %" if deviation else "–")
            row.append(f"{frames[symbol][key]:.{digits}f}")
        row.append(" / ".join(f"{value:.0f}" for value in found["elastic_constants"].values()))
        row.append({True: "yes", False: "no", None: "–"}[found["good"]])
        rows.append(row)
    return table(columns, rows)


if __name__ == "__main__":
    main()
