"""The contract with ASE: what a calculator must compute, once, and what it must leave alone."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase._4.calculators.calculator import Version4Adaptor
from ase.calculators.calculator import (
    BaseCalculator,
    InputError,
    PropertyNotImplementedError,
)
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.stress import voigt_6_to_full_3x3_stress
from structures import STRUCTURES, WITH_VOLUME, copper
from tiny import tiny_potential

from ase_equivariant import EquivariantCalculator


@pytest.fixture(scope="module")
def potential():
    return tiny_potential(dtype=torch.float32)


@pytest.mark.parametrize("name", STRUCTURES)
def test_forces_equal_finite_differences(calc, name):
    atoms = STRUCTURES[name]()
    atoms.calc = calc
    numerical = calculate_numerical_forces(atoms, eps=1e-5, force_consistent=True)
    assert np.abs(numerical).max() > 1e-2
    assert np.abs(atoms.get_forces() - numerical).max() < 1e-6


@pytest.mark.parametrize("name", WITH_VOLUME)
def test_stress_equals_finite_differences(calc, name):
    atoms = STRUCTURES[name]()
    atoms.calc = calc
    numerical = calculate_numerical_stress(atoms, eps=1e-5, force_consistent=True)
    assert np.abs(numerical).max() > 1e-4
    assert np.abs(atoms.get_stress() - numerical).max() < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_have_the_types_and_shapes_that_ase_expects(potential, dtype):
    calc = EquivariantCalculator(potential, "cpu", dtype)
    atoms = STRUCTURES["triclinic"]()
    calc.calculate(atoms, ["forces"])
    results = calc.results
    assert list(results) == ["energy", "free_energy", "energies", "forces", "stress"]
    assert type(results["energy"]) is float
    assert results["free_energy"] == results["energy"]
    for name, shape in {"energies": (4,), "forces": (4, 3), "stress": (6,)}.items():
        assert results[name].dtype == np.float64
        assert results[name].shape == shape
        assert results[name].flags["C_CONTIGUOUS"]
        assert np.abs(results[name]).min() > 0
    assert results["energies"].sum() == pytest.approx(results["energy"], abs=1e-12)
    assert np.abs(results["forces"].sum(axis=0)).max() < {"float32": 1e-6, "float64": 1e-13}[dtype]
    stress = voigt_6_to_full_3x3_stress(results["stress"])
    assert calc.extras["strain_gradient"] == pytest.approx(atoms.cell.volume * stress, abs=1e-12)
    assert set(calc.export_properties()) == {*results, "natoms"}


class Version4(Version4Adaptor):
    wrapped_class = EquivariantCalculator


def test_calculate_has_the_defaults_that_ase_relies_on(calc):
    calc.calculate(copper())
    assert list(calc.results) == ["energy", "free_energy", "energies"]
    results = Version4(calc.potential).evaluate(copper(), ["forces"])
    assert results.properties["forces"].shape == (4, 3)
    with pytest.raises(InputError, match="no atoms"):
        EquivariantCalculator(calc.potential).calculate()


def test_energy_alone_computes_no_gradient_and_forces_bring_everything(calc, monkeypatch):
    asked = []
    backend = calc._backend
    monkeypatch.setattr(calc, "_backend", lambda graph, forces: asked.append(forces) or backend(graph, forces))
    atoms = copper()
    atoms.calc = calc
    energy = atoms.get_potential_energy()
    assert (asked, calc.extras) == ([False], {})
    atoms.get_forces()
    assert asked == [False, True]
    atoms.get_stress()
    atoms.get_potential_energies()
    assert atoms.get_potential_energy(force_consistent=True) == pytest.approx(energy, abs=1e-12)
    assert asked == [False, True]
    assert calc.calls == 2
    atoms.positions[0, 0] += 1e-3
    atoms.get_stress()
    atoms.get_forces()
    assert asked == [False, True, True]


@pytest.mark.parametrize("name", ["molecule", "wire"])
def test_stress_is_not_implemented_without_three_lattice_vectors(calc, name):
    atoms = STRUCTURES[name]()
    atoms.calc = calc
    atoms.get_forces()
    assert "stress" not in calc.results
    assert calc.extras["strain_gradient"].shape == (3, 3)
    with pytest.raises(PropertyNotImplementedError, match="three lattice vectors"):
        atoms.get_stress()
    assert calc.calls == 1
    atoms.set_cell([8, 8, 8])
    assert atoms.get_stress().shape == (6,)


def test_a_flat_cell_of_three_vectors_has_no_stress(calc):
    atoms = Atoms("CO", positions=[[0, 0, 0], [1.2, 0, 0]], cell=[[5, 0, 0], [0, 5, 0], [5, 5, 0]])
    atoms.calc = calc
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


@pytest.mark.parametrize("change", ["positions", "cell", "pbc", "numbers"])
def test_a_change_of_the_atoms_is_noticed(calc, change):
    atoms = copper()
    atoms.calc = calc
    before = atoms.get_potential_energy()
    changed = {
        "positions": lambda: atoms.rattle(0.01, seed=2),
        "cell": lambda: atoms.set_cell(1.01 * atoms.cell),
        "pbc": lambda: atoms.set_pbc(False),
        "numbers": lambda: atoms.set_atomic_numbers([14, 29, 29, 29]),
    }
    changed[change]()
    after = atoms.get_potential_energy()
    assert abs(after - before) > 1e-6
    fresh = atoms.copy()
    fresh.calc = EquivariantCalculator(calc.potential, "cpu", "float64")
    assert fresh.get_potential_energy() == pytest.approx(after, abs=1e-12)


def test_what_the_model_ignores_costs_no_call(calc):
    atoms = copper()
    atoms.calc = calc
    atoms.get_forces()
    atoms.set_initial_charges([1, 0, 0, -1])
    atoms.set_initial_magnetic_moments([1, 0, 0, 0])
    atoms.info["anything"] = np.arange(3)
    atoms.set_velocities(np.ones((4, 3)))
    atoms.get_forces()
    assert calc.calls == 1


def test_the_atoms_and_the_results_of_the_user_stay_as_they_are(calc):
    atoms = copper()
    atoms.info["key"] = [1, 2]
    atoms.positions += 20.0
    before = atoms.copy()
    atoms.calc = calc
    forces = atoms.get_forces()
    forces *= 0
    assert np.abs(atoms.get_forces()).max() > 1e-2
    assert atoms == before
    assert atoms.info == before.info
    assert set(atoms.arrays) == set(before.arrays)


def test_one_calculator_serves_many_atoms(calc):
    structures = [build() for build in STRUCTURES.values()]
    for _ in range(2):
        for atoms in structures:
            alone = EquivariantCalculator(calc.potential, "cpu", "float64")
            assert calc.get_potential_energy(atoms) == pytest.approx(alone.get_potential_energy(atoms), abs=1e-10)
            assert np.abs(calc.get_forces(atoms) - alone.get_forces(atoms)).max() < 1e-10


def test_two_precisions_live_in_one_process(potential):
    single = EquivariantCalculator(potential, "cpu", "float32")
    double = EquivariantCalculator(potential, "cpu", "float64")
    atoms = copper()
    first = single.get_forces(atoms)
    difference = np.abs(double.get_forces(atoms) - first).max()
    assert 0 < difference < 1e-4
    atoms.positions += 1e-9
    assert np.abs(single.get_forces(atoms) - first).max() < 1e-5
    assert (single.potential.dtype, double.potential.dtype) == (torch.float32, torch.float64)


def test_a_given_potential_is_copied_and_never_changed(potential):
    mine = tiny_potential(dtype=torch.float32)
    mine.train()
    calc = EquivariantCalculator(mine, "cpu", "float64")
    before = calc.get_potential_energy(copper())
    assert mine.dtype == torch.float32
    assert mine.training
    assert all(parameter.requires_grad for parameter in mine.parameters())
    with torch.no_grad():
        next(mine.architecture.parameters()).mul_(2)
    calc.reset()
    assert calc.get_potential_energy(copper()) == before
    assert abs(EquivariantCalculator(mine, "cpu", "float64").get_potential_energy(copper()) - before) > 1e-3


@pytest.fixture
def hostile_state():
    """A process with unusual defaults, put back afterwards."""
    dtype, threads, seed = torch.get_default_dtype(), torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.set_rng_state(seed)
    torch.set_grad_enabled(True)
    torch.set_default_device(None)


def test_global_state_is_neither_used_nor_touched(path, hostile_state):
    reference = EquivariantCalculator(path, "cpu", "float32")
    expected = reference.get_forces(copper())
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(7)
    np.random.seed(7)
    torch.set_grad_enabled(False)
    torch.set_default_device("meta")  # whose tensors hold nothing
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    calc = EquivariantCalculator(path, "cpu", "float32")
    assert np.abs(calc.get_forces(copper()) - expected).max() < 1e-6
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.get_default_dtype() == torch.float64
    assert not torch.is_grad_enabled()
    assert torch.get_default_device() == torch.zeros(1).device == torch.device("meta")
    assert BaseCalculator.implemented_properties == []


def test_a_caller_s_inference_mode_neither_hinders_nor_spoils_a_calculator(path):
    expected = EquivariantCalculator(path, "cpu", "float64").get_forces(copper())
    with torch.inference_mode():
        calc = EquivariantCalculator(path, "cpu", "float64")
        assert (calc.get_forces(copper()) == expected).all()
        assert torch.is_inference_mode_enabled()
    calc.reset()
    assert (calc.get_forces(copper()) == expected).all()


def test_an_isolated_atom_has_no_force_and_atoms_far_apart_add(calc):
    alone = Atoms("Cu")
    alone.calc = calc
    energy = alone.get_potential_energy()
    assert (alone.get_forces() == 0).all()
    pair = Atoms("Cu2", positions=[[0, 0, 0], [9, 0, 0]])
    pair.calc = calc
    assert pair.get_potential_energy() == pytest.approx(2 * energy, abs=1e-12)
    pair.positions[1, 0] = 2.5
    assert abs(pair.get_potential_energy() - 2 * energy) > 1e-3
    assert np.abs(pair.get_forces()).max() > 1e-3


def test_a_structure_seen_lately_costs_no_call(potential):
    calc = EquivariantCalculator(potential, device="cpu", dtype="float64")
    first, second = copper(0.05), copper(0.05)
    second.positions[0, 0] += 0.1
    forces = [calc.get_forces(atoms) for atoms in (first, second, first)]
    assert calc.calls == 2
    assert (forces[2] == forces[0]).all()
    assert not np.allclose(forces[1], forces[0])
    calc.results["forces"][:] = 0.0
    assert (calc.get_forces(second) == forces[1]).all()
    assert (calc.get_forces(first) == forces[0]).all()
    assert calc.calls == 2
    assert list(calc.extras) == ["strain_gradient"]
    calc.reset()
    assert calc.extras == {}
    assert (calc.get_forces(first) == forces[0]).all()
    assert calc.calls == 3
    assert calc.get_potential_energy(copper()) != calc.get_potential_energy(first)
    assert calc.get_forces(copper()).shape == forces[0].shape
    assert calc.calls == 5


def test_an_estimate_counts_as_no_call(calc):
    calc.get_forces(copper())
    assert calc.estimate(copper()).atoms == 4
    assert calc.calls == 1


def test_a_calculator_says_in_a_line_what_it_is(path, potential):
    options = "device='cpu', dtype='float32', backend='eager'"
    assert repr(EquivariantCalculator(path, "cpu")) == f"EquivariantCalculator({str(path)!r}, {options})"
    assert repr(EquivariantCalculator(potential, "cpu")) == f"EquivariantCalculator('unnamed potential', {options})"
