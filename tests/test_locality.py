"""What is far away does not matter, and it stops to matter smoothly; for every architecture."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from blocks import assert_same
from structures import STRUCTURES, rattled
from tiny import tiny_potential

from ase_equivariant.architectures import ARCHITECTURES
from ase_equivariant.derivatives import predict
from ase_equivariant.graph import concatenate, from_atoms

WITH_SHARES = [name for name, kind in ARCHITECTURES.items() if hasattr(kind, "contributions")]  # a readout per layer
SYMBOLS = ["H", "C", "O", "Si", "Cu"]


def node_energies_of(potential, graph):
    return potential(graph.vectors(), graph.species, graph.senders, graph.receivers, graph.heads[graph.batch])


def chain(potential, share):
    """One atom more than the first one can feel, spaced between too close for that (0) and the cutoff (1)."""
    layers = potential.architecture.config.num_interactions
    spacing = potential.cutoff * (layers + share) / (layers + 1)
    return Atoms(f"Si{layers + 2}", [[i * spacing, 0.1 * i, 0] for i in range(layers + 2)])


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_nothing_is_felt_beyond_the_cutoff_of_all_layers_and_something_just_inside(share, potential, graph_of):
    graph = graph_of(chain(potential, share))
    reach = potential.architecture.config.num_interactions * potential.cutoff
    distances = (graph.positions - graph.positions[0]).norm(dim=1)
    assert distances[-2] < reach < distances[-1]
    graph = replace(graph, positions=graph.positions.requires_grad_())
    (gradient,) = torch.autograd.grad(node_energies_of(potential, graph)[0], graph.positions)
    assert (gradient[-1] == 0).all()
    assert (gradient[:-1].abs().amax(1) > 1e-12).all()


@pytest.mark.parametrize("name", WITH_SHARES)
def test_the_first_layer_feels_neighbours_only(name):
    potential = tiny_potential(name)
    graph = from_atoms(chain(potential, 0.1), potential.atomic_numbers, potential.cutoff)
    vectors = graph.vectors().requires_grad_()
    shares = potential.architecture.contributions(vectors, graph.species, graph.senders, graph.receivers)
    (gradient,) = torch.autograd.grad(shares[0, 0].sum(), vectors)
    assert (gradient[graph.receivers != 0] == 0).all()
    assert (gradient[graph.receivers == 0] != 0).any()


def trimer(distance):
    """Two atoms, and a third that only the first can feel."""
    return Atoms("COH", [[0, 0, 0], [-1.2, 0.3, 0.1], [distance, 0, 0]])


def test_energy_and_forces_go_to_zero_smoothly_at_the_cutoff(potential, graph_of):
    """At δ before the cutoff the energy is O(δ³) and the force O(δ²), so two derivatives are continuous."""
    steps = [0.02, 0.01, 0.0, -0.5]
    prediction = predict(potential, graph_of(*[trimer(potential.cutoff - step) for step in steps]))
    energy = prediction.energy - prediction.energy[-1]
    force = prediction.forces.view(len(steps), 3, 3)[:, 2, 0]
    assert abs(energy[2]) < 1e-13 * abs(prediction.energy[2])
    assert force[2] == 0
    assert abs(energy[0]) > 7.5 * abs(energy[1]) > 0
    assert abs(force[0]) > 3.8 * abs(force[1]) > 0
    inside = predict(potential, graph_of(trimer(potential.cutoff / 2)))
    assert inside.forces[2, 0].abs() > 0.01


def test_a_neighbour_that_crosses_the_cutoff_makes_no_step(potential, graph_of):
    """In a crystal, many do so at once: the energy along a strain is as smooth with them as without."""
    atoms = STRUCTURES["crystal"]()
    lengths = graph_of(atoms).vectors().norm(dim=1)
    scale = potential.cutoff / lengths.max().item()  # at this strain the farthest neighbours leave
    strains = scale * (1 + 1e-5 * np.arange(-2, 3))
    structures = [Atoms(atoms.numbers, cell=s * atoms.cell, positions=s * atoms.positions, pbc=True) for s in strains]
    counts = {graph_of(structure).n_edges for structure in structures}
    assert len(counts) > 1
    prediction = predict(potential, graph_of(*structures))
    slopes = torch.einsum("gii->g", prediction.strain_gradient)
    second = slopes.diff()
    assert slopes.abs().min() > 0.01
    assert second.diff().abs().max() < 1e-2 * second.abs().max()


def test_two_molecules_far_apart_add(potential, graph_of):
    one, other = rattled(molecule("CH3OH")), rattled(molecule("H2CO"))

    def together(distance):
        moved = other.copy()
        moved.positions += [0, 0, distance]
        return one + moved

    energies = predict(potential, graph_of(one, other, together(40), together(3))).energy
    assert_same(energies[2], energies[0] + energies[1])
    assert abs(energies[3] - energies[0] - energies[1]) > 0.01


@pytest.mark.parametrize("settings", [{}, {"interaction_first": "residual"}], ids=str)
def test_an_isolated_atom_has_an_energy_of_interaction_from_a_residual_first_layer_only(settings, architecture):
    """And no force; else exactly the constants of its species."""
    potential = tiny_potential(architecture, **settings)
    alone = [Atoms(s, positions=[[7, 8, 9]], cell=9 * np.eye(3), pbc=pbc) for s in SYMBOLS for pbc in (False, True)]
    graph = concatenate([from_atoms(atoms, potential.atomic_numbers, potential.cutoff) for atoms in alone])
    assert graph.n_edges == 0
    prediction = predict(potential, graph)
    assert (prediction.forces == 0).all()
    molecules, crystals = (prediction.node_energies - sum_of_constants(potential)[graph.species]).view(-1, 2).T
    assert torch.equal(molecules, crystals)
    residual = potential.architecture.config.interaction_first == "residual"
    assert (molecules == 0).tolist() == [not residual] * len(SYMBOLS)
    assert (molecules.abs() > 1e-3).tolist() == [residual] * len(SYMBOLS)
    assert sum_of_constants(potential).unique().shape == (len(SYMBOLS),)


def sum_of_constants(potential):
    return potential.atomic_energies[0] + potential.shift[0]


def test_a_neighbour_of_any_species_that_leaves_leaves_the_isolated_atom_behind(potential, graph_of):
    """At a thousandth of the cutoff before it; at half of it, each neighbour does something else to each atom."""
    alone = predict(potential, graph_of(*map(Atoms, SYMBOLS))).node_energies.repeat_interleave(len(SYMBOLS))
    pairs = list(product(SYMBOLS, repeat=2))

    def difference(share):
        atoms = [Atoms(pair, [[0, 0, 0], [0, share * potential.cutoff, 0]]) for pair in pairs]
        return predict(potential, graph_of(*atoms)).node_energies[::2] - alone

    assert (difference(1.001) == 0).all()
    assert 0 < difference(0.999).abs().max() < 1e-5
    assert difference(0.5).abs().min() > 1e-4
    assert difference(0.5).unique().shape == alone.shape


@pytest.mark.parametrize("name", WITH_SHARES)
def test_the_shares_of_the_layers_sum_to_the_energy(name):
    potential = tiny_potential(name)
    graph = from_atoms(STRUCTURES["triclinic"](), potential.atomic_numbers, potential.cutoff)
    arguments = (graph.vectors(), graph.species, graph.senders, graph.receivers)
    shares = potential.architecture.contributions(*arguments)
    config = potential.architecture.config
    assert shares.shape == (graph.n_nodes, config.num_interactions, config.num_heads)
    assert_same(shares.sum(1), potential.architecture(*arguments))
    assert (shares.abs().amax((0, 2)) > 0.001).all()
