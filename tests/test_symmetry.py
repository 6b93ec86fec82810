"""Energies, forces and strain gradients under everything that leaves physics unchanged, for every architecture."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from blocks import assert_same
from structures import STRUCTURES
from tiny import TINY

from ase_equivariant.architectures import ARCHITECTURES
from ase_equivariant.derivatives import predict

ONE_ATOM = Atoms("Cu", cell=[[2.4, 0.1, 0], [0.3, 2.2, 0], [-0.2, 0.4, 2.5]], pbc=True)
NAMES = ["molecule", "crystal", "triclinic", "slab", "one atom"]
KINDS = {True: ("rotation", "inversion", "reflection"), False: ("rotation",)}  # by the config's parity


@pytest.fixture(params=NAMES)
def atoms(request):
    return {**STRUCTURES, "one atom": ONE_ATOM.copy}[request.param]()


@pytest.fixture
def check(potential, graph_of):
    """Compare changed atoms, whose atoms i are the original atoms order[i], turned by a matrix."""

    def compare(atoms, changed, matrix=None, order=None, copies=1):
        matrix = torch.eye(3, dtype=torch.float64) if matrix is None else matrix
        order = np.arange(len(atoms)) if order is None else order
        before, after = predict(potential, graph_of(atoms)), predict(potential, graph_of(changed))
        strain = copies * matrix @ before.strain_gradient @ matrix.T
        assert_same(after.energy, copies * before.energy)
        assert_same(after.node_energies, before.node_energies[order])
        assert_same(after.forces, before.forces[order] @ matrix.T)
        assert_same(after.strain_gradient, strain)
        assert before.strain_gradient.abs().max() > 0.01

    return compare


def test_every_architecture_has_a_tiny_config_and_so_inherits_these_tests():
    assert list(TINY) == list(ARCHITECTURES)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [(name, kind) for name, config in TINY.items() for kind in KINDS[config.get("parity", True)]],
    indirect=["architecture"],
)
def test_forces_and_strain_turn_with_the_structure(atoms, kind, rotation, check):
    matrix = {"rotation": rotation, "inversion": -torch.eye(3, dtype=torch.float64), "reflection": -rotation}[kind]
    turned = atoms.copy()
    turned.cell[:] = atoms.cell.array @ matrix.numpy().T
    turned.positions[:] = atoms.positions @ matrix.numpy().T
    check(atoms, turned, matrix)


def test_turning_the_positions_without_the_cell_is_another_structure(potential, graph_of, rotation):
    atoms = STRUCTURES["triclinic"]()
    turned = atoms.copy()
    turned.positions[:] = atoms.positions @ rotation.numpy().T
    before, after = predict(potential, graph_of(atoms)), predict(potential, graph_of(turned))
    assert (after.energy - before.energy).abs().item() > 0.01


def test_moving_everything_changes_nothing(atoms, check):
    moved = atoms.copy()
    moved.positions += [1.3, -20.7, 3.9]
    check(atoms, moved)


def test_images_of_atoms_in_other_cells_are_the_same_atoms(atoms, check):
    moved = atoms.copy()
    moved.positions += np.random.default_rng(1).integers(-3, 4, (len(atoms), 3)) * atoms.pbc @ atoms.cell.array
    check(atoms, moved)
    moved.positions += 0.37
    moved.wrap()
    check(atoms, moved)


def test_the_order_of_the_atoms_has_no_meaning(atoms, check):
    order = np.random.default_rng(1).permutation(len(atoms))
    check(atoms, atoms[order], order=order)


def test_a_supercell_has_the_energy_of_its_cells(atoms, check):
    repeats = np.where(atoms.pbc, 2, 1)
    copies = int(np.prod(repeats))
    check(atoms, atoms.repeat(repeats), order=np.tile(np.arange(len(atoms)), copies), copies=copies)


def test_species_matter(potential, graph_of):
    energies = [
        predict(potential, graph_of(Atoms(symbols, [[0, 0, 0], [0, 0, 1.5]]))).energy for symbols in ("CO", "CC")
    ]
    assert (energies[0] - energies[1]).abs().item() > 0.01


def test_a_batch_gives_what_each_structure_gives_alone(potential, graph_of):
    structures = [STRUCTURES[name]() for name in ("molecule", "triclinic", "tiny cell")] + [Atoms("H"), ONE_ATOM]
    batch = predict(potential, graph_of(*structures))
    alone = [predict(potential, graph_of(atoms)) for atoms in structures]
    for name in ("energy", "node_energies", "forces", "strain_gradient"):
        expected = torch.cat([getattr(prediction, name) for prediction in alone])
        assert_same(getattr(batch, name), expected)


def test_structures_of_a_batch_do_not_feel_each_other(potential, graph_of):
    graph = graph_of(STRUCTURES["molecule"](), STRUCTURES["molecule"]())
    graph = replace(graph, positions=graph.positions.requires_grad_())
    energies = potential(graph.vectors(), graph.species, graph.senders, graph.receivers, graph.heads[graph.batch])
    (gradient,) = torch.autograd.grad(energies[graph.batch == 0].sum(), graph.positions)
    assert (gradient[graph.batch == 1] == 0).all()
    assert gradient[graph.batch == 0].abs().max() > 0.01
