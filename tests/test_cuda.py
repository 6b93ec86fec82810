"""What a GPU computes: on every backend and for every architecture the numbers of the CPU, and the same physics.

Run by `make test-cuda`; what the calculator makes of them is in test_cuda_calculator.py, runs are in test_cuda_runs.py.
"""

from functools import cache

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from blocks import assert_same
from graphs import batch, big
from structures import STRUCTURES, copper
from test_derivatives import STEPS, WEIGHTS, moved, strained
from tiny import tiny_potential

from ase_equivariant import EquivariantCalculator, inference, load_potential
from ase_equivariant.derivatives import predict
from ase_equivariant.device_list import DeviceList
from ase_equivariant.golden import verify_golden
from ase_equivariant.graph import concatenate, from_atoms
from ase_equivariant.inference.verified import TOLERANCES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or hidden: see `make test-cuda`")
CUDA = torch.device("cuda")
BACKENDS = inference.FASTEST_FIRST["cuda"]
REPEATABLE = [name for name in BACKENDS if name not in ("eager", "torchscript")]  # these two sum by atomic additions
RESULTS = ("energy", "node_energies", "forces", "strain_gradient")


def graph(*structures):
    return lambda potential: concatenate(
        [from_atoms(atoms, potential.atomic_numbers, potential.cutoff) for atoms in structures]
    )


GRAPHS = {
    "one molecule": graph(STRUCTURES["molecule"]()),
    "one crystal of two elements": big,
    "a batch of all kinds": batch,
    "a batch with atoms alone": graph(Atoms("H"), copper(), Atoms("C"), STRUCTURES["molecule"](), Atoms("O")),
    "one atom": graph(Atoms("C")),
    "one atom with images": graph(Atoms("Cu", cell=[[2.4, 0.1, 0], [0.3, 2.2, 0], [-0.2, 0.4, 2.5]], pbc=True)),
    "no edges": graph(Atoms("HCO", positions=[[0, 0, 0], [30, 0, 0], [0, 30, 0]])),
}


@pytest.fixture(params=BACKENDS, scope="session")
def backend(request):
    return request.param


@cache
def started(architecture, backend, dtype):
    """The backend itself, as a calculator starts it but without a reference that could stand in for it."""
    potential = tiny_potential(architecture).astype(dtype).to(CUDA).eval().requires_grad_(False)
    return inference.start(backend, potential, CUDA)


@pytest.fixture
def exact(architecture, backend):
    return started(architecture, backend, torch.float64)


def on_cpu(prediction):
    """Copies of the results by name, which are in float64."""
    tensors = {name: getattr(prediction, name) for name in RESULTS}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float64}
    return {name: tensor.cpu().clone() for name, tensor in tensors.items()}


# Neighbours ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRUCTURES)
def test_neighbours_are_those_that_the_cpu_finds_in_the_same_order(name):
    atoms = STRUCTURES[name]()
    atoms *= np.where(atoms.pbc, 3, 1)
    structure = atoms.positions, atoms.cell.array, atoms.pbc
    found, expected = (DeviceList(3.0, device).update(*structure) for device in (CUDA, torch.device("cpu")))
    for one, other in zip(found, expected, strict=True):
        assert one.is_cuda
        assert torch.equal(one.cpu(), other)
    assert len(found[0]) > 4


# Parity with the modules on the CPU ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 9), (torch.float32, 4)])
@pytest.mark.parametrize("name", GRAPHS)
def test_all_results_are_those_of_the_cpu(name, dtype, digits, architecture, backend, potential):
    own = GRAPHS[name](potential)
    found, expected = on_cpu(started(architecture, backend, dtype)(own, True)), predict(potential, own)
    for key in RESULTS:
        assert_same(found[key], getattr(expected, key), digits)
    assert expected.energy.abs().min() > 0.01


def test_single_precision_is_not_double_precision(architecture, backend, potential):
    own = big(potential)
    single, double = (started(architecture, backend, dtype)(own, True) for dtype in (torch.float32, torch.float64))
    assert 1e-12 < (single.forces - double.forces).abs().max() < 1e-3


def test_atoms_without_neighbours_have_no_force_at_all(exact, potential):
    lonely = exact(GRAPHS["no edges"](potential), True)
    assert (lonely.forces == 0).all()
    assert (lonely.strain_gradient == 0).all()
    assert exact(big(potential), True).forces.abs().max() > 0.01


def test_energies_alone_are_the_same_energies(exact, potential):
    own = batch(potential)
    alone, full = exact(own, False), exact(own, True)
    assert (alone.forces, alone.strain_gradient) == (None, None)
    assert_same(alone.energy, full.energy)
    assert_same(alone.node_energies, full.node_energies)


def test_results_stay_as_they_are_while_others_are_computed(exact, potential):
    """Nothing that is given away is memory that the next call writes to, whether it is larger or of the same size."""
    first, second = graph(copper(0.1))(potential), graph(copper(0.2))(potential)
    results = exact(first, True)
    kept = on_cpu(results)
    others = [on_cpu(exact(other, True)) for other in (second, big(potential), second)]
    assert all(torch.equal(getattr(results, key).cpu(), kept[key]) for key in RESULTS)
    assert (others[0]["forces"] - kept["forces"]).abs().max() > 0.01


def test_sizes_may_grow_and_shrink_from_call_to_call(exact, potential):
    """Whatever is kept or padded for one size serves the next."""
    sizes = [copper().repeat((n, 1, 1)) for n in (1, 4, 2, 9, 1, 9)]
    for atoms in sizes:
        own = graph(atoms)(potential)
        assert_same(exact(own, True).forces.cpu(), predict(potential, own).forces, 9)


@pytest.mark.parametrize("backend", REPEATABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_repeat_bit_for_bit(architecture, backend, dtype, potential):
    first, again = big(potential), batch(potential)
    call = started(architecture, backend, dtype)
    other = started.__wrapped__(architecture, backend, dtype)
    expected = on_cpu(call(first, True))
    call(again, True)
    for found in (on_cpu(call(first, True)), on_cpu(other(first, True))):
        assert all(torch.equal(found[key], expected[key]) for key in RESULTS)


# Physics -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["molecule", "triclinic"])
def test_forces_are_finite_differences_of_the_energy(name, exact, graph_of):
    own = graph_of(STRUCTURES[name]())
    changes = [moved(own, node, axis, step) for node in range(own.n_nodes) for axis in range(3) for step in STEPS]
    numerical = -exact(concatenate(changes), False).energy.cpu().view(-1, 3, 4) @ WEIGHTS
    assert numerical.abs().max() > 0.01
    assert_same(exact(own, True).forces.cpu(), numerical, digits=8)


@pytest.mark.parametrize("name", ["triclinic", "tiny cell"])
def test_the_strain_gradient_is_the_finite_difference_of_the_energy(name, exact, graph_of):
    own = graph_of(STRUCTURES[name]())
    directions = torch.eye(9, dtype=torch.float64).view(9, 3, 3)
    changes = [strained(own, step * (unit + unit.T) / 2) for unit in directions for step in STEPS / 10]
    numerical = exact(concatenate(changes), False).energy.cpu().view(3, 3, 4) @ WEIGHTS * 10
    assert numerical.abs().max() > 0.01
    assert_same(exact(own, True).strain_gradient[0].cpu(), numerical, digits=8)


def turned(atoms, matrix, of_cell):
    copy = atoms.copy()
    copy.positions[:] = atoms.positions @ matrix.numpy().T
    copy.cell[:] = atoms.cell.array @ of_cell.numpy().T
    return copy


@pytest.mark.parametrize("name", ["molecule", "triclinic", "slab"])
@pytest.mark.parametrize("sign", [1, -1])
def test_rotation_inversion_and_another_order_of_the_atoms_change_nothing(name, sign, exact, graph_of, rotation):
    atoms, matrix = STRUCTURES[name](), sign * rotation
    order = np.random.default_rng(1).permutation(len(atoms))
    before, after = (on_cpu(exact(graph_of(a), True)) for a in (atoms, turned(atoms, matrix, matrix)[order]))
    assert_same(after["energy"], before["energy"], 10)
    assert_same(after["node_energies"], before["node_energies"][order], 10)
    assert_same(after["forces"], before["forces"][order] @ matrix.T, 10)
    assert_same(after["strain_gradient"], matrix @ before["strain_gradient"] @ matrix.T, 10)
    assert before["strain_gradient"].abs().max() > 0.01


def test_turning_the_positions_without_the_cell_is_another_structure(exact, graph_of, rotation):
    atoms = STRUCTURES["triclinic"]()
    before, after = (exact(graph_of(a), False).energy for a in (atoms, turned(atoms, rotation, torch.eye(3))))
    assert (after - before).abs().item() > 0.01


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dynamics_keeps_its_energy(dtype, potential, backend):
    atoms = copper().repeat((2, 2, 1))
    atoms.calc = EquivariantCalculator(potential, CUDA.type, dtype, backend)
    thermalize_momenta(atoms, temperature_K=3000, rng=np.random.default_rng(0))
    run, potentials, totals = VelocityVerlet(atoms, 0.25 * units.fs), [], []
    run.attach(lambda: potentials.append(atoms.get_potential_energy()))
    run.attach(lambda: totals.append(atoms.get_total_energy()))
    run.run(30)
    assert np.ptp(potentials) > 0.01  # eV: energy does change its form
    assert np.ptp(totals) < 2e-3 * np.ptp(potentials)


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("model", ["mace-mlearn", "mace-3bpa", "nequip-3bpa", "botnet-3bpa"])
def test_golden_structures_of_a_shipped_model_are_reproduced(model, dtype, backend):
    potential = load_potential(model).astype(getattr(torch, dtype)).to(CUDA).eval().requires_grad_(False)
    errors = verify_golden(potential, inference.start(backend, potential, CUDA))
    assert set(errors) >= {"energy", "forces"}
    assert {key: error for key, error in errors.items() if not error <= TOLERANCES[dtype][key]} == {}
