"""Forces and strain gradients are derivatives of the energy and can be differentiated again, for every architecture."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from blocks import assert_same
from structures import STRUCTURES, rattled
from tiny import tiny_potential

from ase_equivariant.derivatives import predict
from ase_equivariant.graph import concatenate

SINGLE = Atoms("HCO", positions=[[0, 0, 0], [30, 0, 0], [0, 30, 0]])
DIFFERENCES = ["molecule", "crystal", "triclinic", "tiny cell"]
STEPS = 1e-4 * torch.tensor([-2.0, -1, 1, 2], dtype=torch.float64)  # of a derivative exact for polynomials of degree 4
WEIGHTS = torch.tensor([1.0, -8, 8, -1], dtype=torch.float64) / 12e-4


def moved(graph, node, axis, step):
    positions = graph.positions.clone()
    positions[node, axis] += step
    return replace(graph, positions=positions)


def strained(graph, strain):
    """Strain both positions and cell, x → (1 + ε) x."""
    matrix = torch.eye(3, dtype=torch.float64) + strain
    return replace(graph, positions=graph.positions @ matrix.T, cell=graph.cell @ matrix.T)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_forces_are_finite_differences_of_the_energy(name, potential, graph_of):
    graph = graph_of(STRUCTURES[name]())
    changes = [moved(graph, node, axis, step) for node in range(graph.n_nodes) for axis in range(3) for step in STEPS]
    numerical = -predict(potential, concatenate(changes), forces=False).energy.view(-1, 3, 4) @ WEIGHTS
    assert numerical.abs().max() > 0.01
    assert_same(predict(potential, graph).forces, numerical, digits=8)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_the_strain_gradient_is_the_finite_difference_of_the_energy(name, potential, graph_of):
    graph = graph_of(STRUCTURES[name]())
    units = torch.eye(9, dtype=torch.float64).view(9, 3, 3)
    changes = [strained(graph, step * (unit + unit.T) / 2) for unit in units for step in STEPS / 10]
    numerical = predict(potential, concatenate(changes), forces=False).energy.view(3, 3, 4) @ WEIGHTS * 10
    assert numerical.abs().max() > 0.01
    assert_same(predict(potential, graph).strain_gradient[0], numerical, digits=8)


@pytest.mark.parametrize("name", STRUCTURES)
def test_edge_gradients_give_what_positions_and_a_strained_cell_give(name, potential, graph_of):
    """The one way of the package against the other way, with autograd through positions and strain."""
    graph = graph_of(STRUCTURES[name]())
    positions = graph.positions.clone().requires_grad_()
    strain = torch.zeros((3, 3), dtype=torch.float64, requires_grad=True)
    other = strained(replace(graph, positions=positions), (strain + strain.T) / 2)
    energies = potential(other.vectors(), graph.species, graph.senders, graph.receivers, graph.heads[graph.batch])
    gradient, strain_gradient = torch.autograd.grad(energies.sum(), [positions, strain])
    prediction = predict(potential, graph)
    assert_same(prediction.forces, -gradient)
    assert_same(prediction.strain_gradient[0], strain_gradient)
    assert torch.equal(prediction.strain_gradient, prediction.strain_gradient.mT)
    assert strain_gradient.abs().max() > 0.01


@pytest.mark.parametrize("name", STRUCTURES)
def test_forces_sum_to_zero(name, potential, graph_of):
    forces = predict(potential, graph_of(STRUCTURES[name]())).forces
    assert forces.abs().max() > 0.01
    assert forces.sum(0).abs().max() < 1e-12 * forces.abs().max()


def test_a_molecule_feels_no_torque(potential, graph_of):
    graph = graph_of(STRUCTURES["molecule"]())
    torques = torch.linalg.cross(graph.positions, predict(potential, graph).forces)
    assert torques.abs().max() > 0.01
    assert torques.sum(0).abs().max() < 1e-12 * torques.abs().max()


def loss_of(potential, graph):
    """A loss of energy, forces and strain gradient, differentiable with respect to the weights."""
    prediction = predict(potential, graph, create_graph=True)
    parts = (prediction.energy / 10, prediction.forces, prediction.strain_gradient / 10)
    return sum(part.square().mean() for part in parts)


def test_a_loss_of_forces_and_stress_can_be_differentiated_with_respect_to_every_weight(architecture, graph_of):
    potential = tiny_potential(architecture)
    graph = graph_of(*[STRUCTURES[name]() for name in ("molecule", "triclinic", "tiny cell")])
    weights = dict(potential.named_parameters())
    gradients = torch.autograd.grad(loss_of(potential, graph), list(weights.values()))
    generator = torch.Generator().manual_seed(2)
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        step = 1e-5 * (weight.norm() / direction.norm()).item()
        losses = []
        for sign in (1, -1):
            weight.data.add_(direction, alpha=sign * step)
            losses.append(loss_of(potential, graph).item())
            weight.data.sub_(direction, alpha=sign * step)
        numerical = (losses[0] - losses[1]) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(numerical, rel=1e-4, abs=1e-6), name
        assert gradient.abs().max() > 0, name


def test_without_create_graph_nothing_of_the_calculation_is_kept(potential, graph_of):
    prediction = predict(potential, graph_of(STRUCTURES["molecule"]()))
    assert not any(tensor.requires_grad for tensor in vars(prediction).values())
    kept = predict(potential, graph_of(STRUCTURES["molecule"]()), create_graph=True)
    assert all(tensor.requires_grad for tensor in vars(kept).values())


def test_energies_alone_are_the_same_energies(potential, graph_of):
    graph = graph_of(STRUCTURES["molecule"](), STRUCTURES["slab"]())
    alone, full = predict(potential, graph, forces=False), predict(potential, graph)
    assert alone.forces is None
    assert alone.strain_gradient is None
    torch.testing.assert_close(alone.energy, full.energy, rtol=0, atol=0)
    sums = [part.sum() for part in full.node_energies.split([6, 4])]
    assert_same(full.energy, torch.stack(sums))


def test_a_caller_that_switched_gradients_off_gets_forces(potential, graph_of):
    graph = graph_of(STRUCTURES["triclinic"]())
    expected = predict(potential, graph)
    with torch.no_grad():
        found = predict(potential, graph)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=0)
    torch.testing.assert_close(found.strain_gradient, expected.strain_gradient, rtol=0, atol=0)


@pytest.mark.parametrize("structures", [[SINGLE], [SINGLE, Atoms("Si")], [Atoms("Cu", cell=9 * np.eye(3), pbc=True)]])
def test_atoms_without_neighbours_have_energies_and_no_forces(structures, potential, graph_of):
    graph = graph_of(*structures)
    assert graph.n_edges == 0
    prediction = predict(potential, graph)
    assert prediction.energy.isfinite().all()
    assert (prediction.forces == 0).all()
    assert (prediction.strain_gradient == 0).all()
    assert predict(potential, graph_of(rattled(Atoms("HH", [[0, 0, 0], [0, 0, 1]])))).forces.abs().max() > 1e-4


def test_weights_can_be_trained_on_a_batch_without_any_edge(architecture, graph_of):
    potential = tiny_potential(architecture)
    loss_of(potential, graph_of(SINGLE)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in potential.parameters())


def test_the_sign_of_the_strain_gradient_is_that_of_a_tension(potential, graph_of):
    """Stretching a bond costs what its force along the bond does: dE/dε_xx = -f·x for a dimer along x."""
    atoms = Atoms("CO", [[0, 0, 0], [1.4, 0, 0]])
    prediction = predict(potential, graph_of(atoms))
    expected = -1.4 * prediction.forces[1, 0]
    assert_same(prediction.strain_gradient[0, 0, 0], expected)
    assert expected.abs() > 0.01
