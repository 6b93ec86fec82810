"""The closest pairs of the mlearn training set, how hard ZBL pushes them, and how far down the model has a wall.

    python benchmarks/physics/closest_pairs.py [--model NAME] [--data FOLDER]

The force between the atoms of a pair is half the difference of their forces along the line between them, here its mean
over the ten closest pairs of the training frames that are not `Elastic`. The largest radius is the one, up to half the
distance of neighbours in the crystal, with which ZBL gives these pairs no more than this force. For the wall two
neighbours of a crystal approach each other while the others stay: its top is where the energy no longer rises.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers
from ase.io import read
from ase.neighborlist import neighbor_list

from ase_equivariant.nn.pair_repulsion import ZBL, ZBLConfig

sys.path.append(str(Path(__file__).resolve().parents[1]))
from crystals import CRYSTALS  # noqa: E402
from report import calculator, parser, table, write  # noqa: E402

PAIRS = 10
RADIUS_STEP, APPROACH_STEP = 0.01, 0.02  # Å


def main() -> None:
    args = parser(__doc__, data=True).parse_args()
    model = calculator(args.model)
    repulsion = model.potential.architecture.config.pair_repulsion
    used = dict(zip(model.potential.atomic_numbers, repulsion.radii if repulsion else (), strict=False))
    elements, rows = {}, []
    for symbol, (structure, a) in CRYSTALS.items():
        crystal = bulk(symbol, structure, a, cubic=True).repeat(2)
        half = neighbor_list("d", crystal, a).min() / 2
        frames = [f for f in read(args.data / f"{symbol}_train.extxyz", ":") if f.info["config_type"] != "Elastic"]
        lengths, forces = closest(frames, 2 * half)
        z = atomic_numbers[symbol]
        found = {
            "closest": float(lengths[0]),
            "mean_distance": float(lengths.mean()),
            "mean_force": float(forces.mean()),
            "half_neighbor_distance": float(half),
            "zbl_force_at_half": zbl_force(z, half, lengths),
            "largest_radius": largest_radius(z, half, lengths, forces.mean()),
            "used_radius": used.get(z),
        }
        found["wall_top"], found["wall_height"] = wall(crystal, model)
        elements[symbol] = found
        rows.append([symbol, *(f"{x:.2f}" if x is not None else "–" for x in found.values())])
    columns = ["", "closest (Å)", "ten closest, mean (Å)", "force (eV/Å)", "half of neighbours' distance (Å)"]
    columns += ["force of ZBL with that radius (eV/Å)", "largest radius (Å)", "radius in the model (Å)"]
    columns += ["top of the wall (Å)", "its height (eV)"]
    write(args.results, "closest_pairs", {"method": __doc__, "elements": elements}, table(columns, rows), args.model)


def closest(frames: list[Atoms], cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Distances, Å, and repulsive forces, eV/Å, [PAIRS] each, of the closest pairs, all below `cutoff`, Å."""
    lengths, forces = [], []
    for atoms in frames:
        i, j, d, vectors = neighbor_list("ijdD", atoms, cutoff)
        f = atoms.get_forces()
        once = i < j
        lengths.append(d[once])
        forces.append(((f[j] - f[i]) * vectors / d[:, None]).sum(1)[once] / 2)
    lengths, forces = np.concatenate(lengths), np.concatenate(forces)
    first = np.argsort(lengths)[:PAIRS]
    return lengths[first], forces[first]


def zbl_force(z: int, radius: float, lengths: np.ndarray) -> float:
    """Mean repulsive force, eV/Å, between two atoms at these distances, Å."""
    zbl = ZBL(ZBLConfig(radii=(float(radius),)), [z], cutoff=2 * float(radius))
    vectors = torch.tensor(lengths)[:, None] * torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    vectors.requires_grad_(True)
    n = len(lengths)
    half = zbl(vectors, torch.zeros(2 * n, dtype=torch.long), torch.arange(n), torch.arange(n, 2 * n))
    (gradient,) = torch.autograd.grad(2 * half.sum(), vectors)
    return -gradient[:, 0].mean().item()


def largest_radius(z: int, half: float, lengths: np.ndarray, force: float) -> float:
    """The largest radius, Å, up to `half`, with which ZBL pushes no harder than `force`, eV/Å."""
    return next(r for r in np.arange(half, 0, -RADIUS_STEP).tolist() if zbl_force(z, r, lengths) <= force)


def wall(crystal: Atoms, model: Calculator) -> tuple[float, float]:
    """Where the energy stops rising, Å, and how far it rose, eV, as the first atom and its neighbour approach."""
    atoms = crystal.copy()
    atoms.calc = model
    distances = atoms.get_distances(0, range(1, len(atoms)), mic=True)
    other = 1 + int(distances.argmin())
    vector = atoms.get_distance(0, other, mic=True, vector=True)
    energies = [atoms.get_potential_energy()]
    for _ in range(int(distances.min() / APPROACH_STEP) - 1):
        atoms.positions[[0, other]] += np.array([[0.5], [-0.5]]) * APPROACH_STEP * vector / np.linalg.norm(vector)
        energies.append(atoms.get_potential_energy())
        if energies[-1] < energies[-2]:
            break
    top = int(np.argmax(energies))
    return float(distances.min() - top * APPROACH_STEP), energies[top] - energies[0]


if __name__ == "__main__":
    main()
