"""Graphs that backends are compared on."""

from dataclasses import replace

import torch
from ase.build import bulk
from structures import STRUCTURES

from ase_equivariant.derivatives import predict
from ase_equivariant.graph import concatenate, from_atoms


def batch(potential):
    structures = [make() for make in STRUCTURES.values()]
    for i, atoms in enumerate(structures):
        atoms.info |= {key: low + i % (high - low + 1) for key, low, high, _ in potential.attributes}
    known = potential.atomic_numbers, potential.cutoff
    graphs = [from_atoms(atoms, *known, attributes=potential.attributes) for atoms in structures]
    heads = torch.arange(len(graphs)) % len(potential.heads)
    return replace(concatenate(graphs), heads=heads)


def big(potential):
    atoms = bulk("Cu", cubic=True) * (3, 3, 2)
    atoms.rattle(0.1, seed=1)
    atoms.numbers[::3] = 14
    return from_atoms(atoms, potential.atomic_numbers, potential.cutoff, attributes=potential.attributes)


def same_bits(a, b):
    return all(getattr(a, name).equal(getattr(b, name)) for name in ("node_energies", "forces", "strain_gradient"))


def assert_eager_to_the_last_digits(backend, potential):
    graph = batch(potential)
    found, expected = backend(graph, True), predict(potential, graph)
    for name in ("energy", "node_energies", "forces", "strain_gradient"):
        a, b = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * b.abs().max().item())
    assert expected.forces.abs().max() > 0.1
