"""What is compared: a case is one model, one structure of any size, and the sides that open the model's file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule

SHARED = Path(__file__).resolve().parents[3] / "shared"


@dataclass(frozen=True)
class Case:
    """`model`: a file, or the arguments from which `writer`, a peer, writes one with random weights."""

    what: str
    model: dict | Path
    structure: Callable[[int], Atoms]
    sizes: tuple[int, ...]  # atoms
    sides: tuple[str, ...]  # the first is the one to compare with
    writer: str = ""


def silicon(n_atoms: int) -> Atoms:
    """8 n³ atoms, rattled."""
    n = round((n_atoms / 8) ** (1 / 3))
    if 8 * n**3 != n_atoms:
        raise SystemExit(f"silicon comes in cubes of 8 n³ atoms (8, 64, 216, 512, 1000, …), not {n_atoms}")
    atoms = bulk("Si", cubic=True) * n
    atoms.rattle(0.05, seed=1)
    return atoms


def ethanol(n_atoms: int) -> Atoms:
    """One molecule."""
    if n_atoms != 9:
        raise SystemExit(f"ethanol has 9 atoms, not {n_atoms}")
    return molecule("CH3CH2OH")


def water(n_atoms: int) -> Atoms:
    """3 n³ atoms: molecules on a grid at the density of water, each turned at random."""
    n = round((n_atoms / 3) ** (1 / 3))
    if 3 * n**3 != n_atoms:
        raise SystemExit(f"water comes in cubes of 3 n³ atoms (24, 81, 192, …), not {n_atoms}")
    grid, random = 3.104, np.random.default_rng(1)  # Å: one molecule in 29.9 Å³
    atoms = Atoms(cell=[n * grid] * 3, pbc=True)
    for corner in np.ndindex(n, n, n):
        one = molecule("H2O")
        one.euler_rotate(*random.uniform(0, 360, 3), center="COM")
        one.translate(grid * np.array(corner) - one.get_center_of_mass())
        atoms += one
    return atoms


MACE = {
    "hidden_irreps": "128x0e",
    "l_max": 3,
    "correlation": 3,
    "num_interactions": 2,
    "cutoff": 6.0,
    "num_bessel": 8,
    "envelope_power": 5,
    "radial_mlp": [64, 64, 64],
    "readout_mlp": 16,
    "avg_num_neighbors": 44.5,
    "atomic_numbers": [14],
    "scale": 10.0,  # forces of some 0.1 eV/Å
}
NEQUIP = {
    "r_max": 4.5,
    "type_names": ["H", "O"],
    "num_layers": 4,
    "l_max": 2,
    "parity": True,
    "num_features": 64,
    "radial_mlp_depth": 2,
    "radial_mlp_width": 64,
    "num_bessels": 8,
    "polynomial_cutoff_p": 6,
    "avg_num_neighbors": 38.0,
}
OURS = ("ours, numba", "ours, eager")
CUBES = (8, 64, 216, 1000, 2744, 10648, 97336)
CPU = {
    "silicon": Case(
        "MACE 128x0e, l_max 3, ν 3, 6 Å, bulk Si", MACE, silicon, (216,), (*OURS, "mace-torch", "symmetrix-xl"), "mace"
    ),
    "silicon-1o": Case(
        "MACE 128x0e+128x1o, l_max 3, ν 3, 6 Å, bulk Si",
        {**MACE, "hidden_irreps": "128x0e+128x1o"},
        silicon,
        (216,),
        (*OURS, "mace-torch", "symmetrix-xl"),
        "mace",
    ),
    "molecule": Case(
        "MACE 96x0e, l_max 3, ν 3, 4.5 Å, ethanol",
        {
            **MACE,
            "hidden_irreps": "96x0e",
            "cutoff": 4.5,
            "avg_num_neighbors": 8.0,
            "atomic_numbers": [1, 6, 8],
        },
        ethanol,
        (9,),
        (*OURS, "mace-torch"),
        "mace",
    ),
    "water": Case(
        "NequIP 64 features, l_max 2, 4 layers, 4.5 Å, water",
        NEQUIP,
        water,
        (192,),
        (*OURS, "nequip", "nequip, compiled"),
        "nequip",
    ),
    "nequix": Case(
        "nequix-mp-1, bulk Si",
        SHARED / "checkpoints" / "nequix" / "nequix-mp-1.nqx",
        silicon,
        (64,),
        (*OURS, "nequix"),
    ),
    "scaling": Case(
        "MACE 128x0e, l_max 3, ν 3, 6 Å, bulk Si",
        MACE,
        silicon,
        CUBES,
        ("ours, numba", "mace-torch", "symmetrix-xl"),
        "mace",
    ),
}
FAST = ("ours, triton", "mace-torch", "mace-torch, cuEquivariance", "symmetrix-xl")
CUDA_SIDES = (*FAST, "ours, torchscript", "ours, eager")
CUDA = {
    "silicon": replace(CPU["silicon"], sides=CUDA_SIDES),
    "silicon-1o": replace(CPU["silicon-1o"], sizes=(64,), sides=CUDA_SIDES),
    "large": replace(CPU["silicon-1o"], sizes=(10648,), sides=FAST),  # all of which share one GPU's memory
}
CASES = {"cpu": CPU, "cuda": CUDA}
