"""Lattice constant and bulk modulus of the mlearn set's own DFT labels, from its Elastic frames.

    python benchmarks/physics/elastic_frames.py [--data FOLDER]

Frames: all `Elastic` frames (train and test) whose cell is the cubic cell with one edge scaled by λ, |λ - 1| < 0.11.
With Lagrangian strain η = (λ² - 1)/2 and the volume V at λ = 1, energy and second Piola-Kirchhoff stresses along and
across the stretch are polynomials of η (for Li, stretched by 1 % only, one order lower),

    E/V = e0 + S0 η + C11 η²/2 + C111 η³/6 + C1111 η⁴/24,    S1 = d(E/V)/dη,    S2 = S0 + C12 η + ... + η³,

fitted together to the labels (energies weighted 1/(1 meV/atom), stresses 1/(0.1 GPa)). Stress labels may differ from
the energies' derivative by δ V/V(λ), as the Pulay stress of a fixed plane-wave cutoff does; δ is a parameter of the fit
(as an energy per atom: δ times an atom's volume). S0, minus the pressure at λ = 1, is thus the energies'. The short
way from λ = 1 to zero pressure is Murnaghan's equation with B = (C11 + 2 C12 - S0)/3 and the published dB/dp of
tests/reference_pbe.json, which uniaxial frames do not know. "from stresses alone" is the same with δ taken for real.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.io import read

sys.path.append(str(Path(__file__).resolve().parents[1]))
from report import ROOT, parser, table, write  # noqa: E402

CUBIC_ATOMS = {"Cu": 4, "Ni": 4, "Mo": 2, "Si": 8, "Ge": 8, "Li": 2}  # in the cubic cell
WINDOWS = (0.11, 0.07, 0.05)  # of |λ - 1|; the first counts, the others show how much that matters
ENERGY_WEIGHT, STRESS_WEIGHT = 1e3, 10.0  # 1/(eV/atom), 1/GPa


def main() -> None:
    args = parser(__doc__, model=False, data=True).parse_args()
    published = json.loads((ROOT / "tests" / "reference_pbe.json").read_text())["elements"]
    elements, rows = {}, []
    for symbol, cubic_atoms in CUBIC_ATOMS.items():
        frames = [a for split in ("train", "test") for a in read(args.data / f"{symbol}_{split}.extxyz", ":")]
        data = uniaxial([a for a in frames if a.info["config_type"] == "Elastic"])
        pbe = published[symbol]["vasp"]
        fits = [fit(data.within(window), pbe["bulk_modulus_derivative"], cubic_atoms) for window in WINDOWS]
        found = fits[0]
        for key in ("lattice_constant", "bulk_modulus"):
            found[f"{key}_over_windows"] = [min(f[key] for f in fits), max(f[key] for f in fits)]
        elements[symbol] = found
        rows.append(
            [
                symbol,
                found["frames"],
                f"{found['lattice_constant']:.3f}",
                f"{found['bulk_modulus']:.1f}",
                f"{found['stress_offset']:+.2f}",
                f"{found['from_stresses']['lattice_constant']:.3f}",
                f"{found['from_stresses']['bulk_modulus']:.1f}",
                f"{pbe['lattice_constant']:.3f}" if "lattice_constant" in pbe else "",
                f"{pbe['bulk_modulus']:.1f}" if "lattice_constant" in pbe else "",
            ]
        )
    columns = ["", "frames", "a (Å)", "B (GPa)", "δ of stress labels (GPa)", "a from stresses alone", "B from stresses"]
    columns += ["a published (PBE, VASP)", "B published"]
    result = {"method": __doc__, "windows": WINDOWS, "units": "Å, GPa; errors in meV/atom", "elements": elements}
    write(args.results, "elastic_frames", result, table(columns, rows))


@dataclass(frozen=True)
class Stretched:
    """Frames stretched along one axis."""

    stretches: np.ndarray  # [n] λ
    energies: np.ndarray  # [n] eV/atom
    along: np.ndarray  # [n] stress along the axis, GPa
    across: np.ndarray  # [n] mean of the two other normal stresses, GPa
    volume: float  # at λ = 1, Å³/atom

    def within(self, window: float) -> Stretched:
        near = abs(self.stretches - 1) < window
        return Stretched(self.stretches[near], self.energies[near], self.along[near], self.across[near], self.volume)


def uniaxial(frames: list[Atoms]) -> Stretched:
    """The frames stretched along one axis; all of one size, as energies of another one are not comparable to 1 meV."""
    size = Counter(map(len, frames)).most_common(1)[0][0]
    frames = [a for a in frames if len(a) == size and np.allclose(a.cell.angles(), 90, atol=0.05)]
    lengths = np.array([a.cell.lengths() for a in frames])
    reference = np.median(lengths)
    rows = []
    for atoms, stretch in zip(frames, lengths / reference, strict=True):
        axis = int(np.argmax(abs(stretch - 1)))
        if abs(np.delete(stretch, axis) - 1).max() < 1e-3:
            energy, stress = atoms.get_potential_energy() / size, atoms.get_stress()[:3] / units.GPa
            rows.append((stretch[axis], energy, stress[axis], np.delete(stress, axis).mean()))
    return Stretched(*np.array(rows).T, volume=reference**3 / size)


def fit(data: Stretched, derivative: float, cubic_atoms: int) -> dict[str, float]:
    """Everything in the module's docstring, for one element; `derivative` is dB/dp."""
    eta = (data.stretches**2 - 1) / 2
    degree = min(3, len(np.unique(data.stretches.round(3))) // 2)  # of the stresses
    powers = eta[:, None] ** np.arange(degree + 1)
    zeros = np.zeros((len(eta), degree))
    # unknowns: e0; S0, C11, C111/2, ...; C12, C112/2, ...; δ
    energy = np.column_stack([eta**0, powers * eta[:, None] / np.arange(1, degree + 2), zeros, 0 * eta])
    along = np.column_stack([0 * eta, powers, zeros, data.stretches**-2])
    across = np.column_stack([0 * eta, eta**0, zeros, powers[:, 1:], eta**0])
    density = (data.energies - data.energies.mean()) / data.volume / units.GPa
    # from Cauchy's stress of the labels to Piola and Kirchhoff's: S = J F⁻¹ σ F⁻ᵀ
    labels = [density, data.along / data.stretches, data.across * data.stretches]
    weights = np.repeat([ENERGY_WEIGHT * data.volume * units.GPa, STRESS_WEIGHT, STRESS_WEIGHT], len(eta))
    design, target = np.concatenate([energy, along, across]), np.concatenate(labels)
    found = np.linalg.lstsq(design * weights[:, None], target * weights, rcond=None)[0]
    errors = (design @ found - target).reshape(3, -1)
    s0, c11, c12, offset = found[1], found[2], found[degree + 2], found[-1]
    # the stress labels alone: the offset is taken for real, and then belongs to S1 = σ/λ, as do its derivatives
    stresses = at_zero_pressure(s0 + offset, c11 - 2 * offset, c12, data.volume, derivative, cubic_atoms)
    return {
        "frames": len(eta),
        **at_zero_pressure(s0, c11, c12, data.volume, derivative, cubic_atoms),
        "c11": c11,
        "c12": c12,
        "stress_offset": offset,
        "stress_offset_ev_per_atom": offset * units.GPa * data.volume,
        "pressure_of_unstretched_frame": -s0,
        "from_stresses": stresses,
        "energy_rmse_mev": float(np.sqrt(np.mean(errors[0] ** 2))) * data.volume * units.GPa * 1e3,
        "stress_rmse": float(np.sqrt(np.mean(errors[1:] ** 2))),
    }


def at_zero_pressure(s0, c11, c12, volume, derivative, cubic_atoms) -> dict[str, float]:
    """From λ = 1 to zero pressure on Murnaghan's equation p = (B/B') ((V0/V)^B' - 1), dB/dp = B'."""
    bulk_modulus = (c11 + 2 * c12 - s0) / 3 + derivative * s0
    factor = (1 - derivative * s0 / bulk_modulus) ** (1 / derivative)
    return {"lattice_constant": float(cubic_atoms * volume * factor) ** (1 / 3), "bulk_modulus": float(bulk_modulus)}


if __name__ == "__main__":
    main()
