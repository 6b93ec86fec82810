"""Small structures of all kinds, of the elements of tiny_potential."""

from ase import Atoms
from ase.build import bulk, fcc111, molecule


def rattled(atoms: Atoms, amplitude: float = 0.1) -> Atoms:
    atoms.rattle(amplitude, seed=1)
    return atoms


def copper(amplitude: float = 0.1) -> Atoms:
    return rattled(bulk("Cu", cubic=True), amplitude)


def slab() -> Atoms:
    return rattled(fcc111("Cu", (2, 1, 2), vacuum=4.0, orthogonal=False))


def tiny_cell() -> Atoms:
    cell = [[2.4, 0, 0], [0.3, 2.2, 0], [-0.2, 0.4, 2.5]]
    return Atoms("SiC", cell=cell, pbc=True, positions=[[0, 0, 0], [1, 1.3, 1]])


def triclinic() -> Atoms:
    cell = [[4.1, 0.2, -0.3], [1.9, 3.7, 0.1], [0.8, -1.1, 4.3]]
    positions = [[0, 0, 0], [0.4, 0.1, 0], [0.1, 0.5, 0.5], [0.7, 0.6, 0.4]]
    return Atoms("SiOCH", cell=cell, pbc=True, scaled_positions=positions)


def left_handed() -> Atoms:
    return Atoms("SiC", cell=[[0, 3, 0], [3, 0.5, 0], [0, 0, 3]], pbc=True, positions=[[0, 0, 0], [1, 1.5, 1]])


STRUCTURES = {
    "molecule": lambda: rattled(molecule("CH3OH")),
    "crystal": copper,
    "triclinic": triclinic,
    "left-handed": left_handed,
    "tiny cell": tiny_cell,
    "slab": slab,
    "wire": lambda: Atoms("CH", cell=[0, 0, 2.5], pbc=(0, 0, 1), positions=[[0, 0, 0], [0.8, 0.7, 0.3]]),
}
WITH_VOLUME = ["crystal", "triclinic", "left-handed", "tiny cell", "slab"]
