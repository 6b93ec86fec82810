"""ASE at work with the calculator: dynamics, relaxation, files, copies."""

import copy
import json
import multiprocessing
import pickle

import ase.db
import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk, molecule
from ase.calculators.calculator import InputError
from ase.calculators.mixing import SumCalculator
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.io.trajectory import Trajectory
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import IsotropicMTKNPT, NoseHooverChainNVT
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from structures import copper, rattled
from tiny import tiny_potential

from ase_equivariant import EquivariantCalculator, save_potential


@pytest.fixture(scope="module")
def potential():
    return tiny_potential(dtype=torch.float32)


def counted(calc, run) -> int:
    before = calc.calls
    run()
    return calc.calls - before


@pytest.fixture
def crystal(potential):
    atoms = copper(0.05)
    atoms.calc = EquivariantCalculator(potential, "cpu", "float32")
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
    return atoms


@pytest.mark.parametrize(
    "dynamics",
    [
        lambda a: VelocityVerlet(a, units.fs),
        lambda a: Langevin(a, units.fs, temperature_K=300, friction=0.01, fixcm=False, rng=np.random.default_rng(0)),
        lambda a: NoseHooverChainNVT(a, units.fs, temperature_K=300, tdamp=100 * units.fs),
        lambda a: IsotropicMTKNPT(
            a, units.fs, temperature_K=300, pressure_au=0.0, tdamp=100 * units.fs, pdamp=1000 * units.fs
        ),
    ],
    ids=["nve", "langevin", "nose-hoover", "npt"],
)
def test_a_step_of_dynamics_is_one_model_call(crystal, dynamics):
    run = dynamics(crystal)
    run.attach(lambda: (crystal.get_total_energy(), crystal.get_stress(), crystal.get_potential_energies()))
    assert counted(crystal.calc, lambda: run.run(5)) == 6
    assert np.isfinite(crystal.get_total_energy())


def test_npt_changes_the_cell_and_conserves_its_energy(crystal):
    run = IsotropicMTKNPT(
        crystal, units.fs, temperature_K=300, pressure_au=0.0, tdamp=50 * units.fs, pdamp=500 * units.fs
    )
    volume = crystal.get_volume()
    run.run(1)
    before = run.get_conserved_energy()
    run.run(10)
    assert run.get_conserved_energy() == pytest.approx(before, abs=1e-3)
    assert abs(crystal.get_volume() - volume) > 1e-4


def test_a_relaxation_step_with_its_cell_is_one_model_call(crystal):
    relax = FIRE(FrechetCellFilter(crystal, scalar_pressure=1 * units.GPa), logfile=None)
    assert counted(crystal.calc, lambda: relax.run(fmax=0, steps=5)) == 6


def test_a_cell_relaxes_under_pressure(calc):
    atoms = bulk("Cu", a=3.75)
    atoms.calc = calc
    for pressure in (0.0, 0.5 * units.GPa):
        cell = FrechetCellFilter(atoms, scalar_pressure=pressure, hydrostatic_strain=True)
        FIRE(cell, logfile=None).run(fmax=1e-4, steps=100)
        assert atoms.get_stress()[:3] == pytest.approx(-pressure, abs=1e-5)


def test_fixed_atoms_stay(crystal):
    crystal.set_constraint(FixAtoms([0]))
    before = crystal.positions.copy()
    BFGS(crystal, logfile=None).run(fmax=0, steps=3)
    assert (crystal.positions[0] == before[0]).all()
    assert np.abs(crystal.positions[1:] - before[1:]).max() > 1e-3
    assert (crystal.get_forces()[0] == 0).all()
    assert np.abs(crystal.get_forces(apply_constraint=False)[0]).max() > 1e-3


def test_a_band_with_one_shared_calculator_runs(calc):
    start, end = rattled(molecule("NH3"), 0), rattled(molecule("NH3"), 0)
    for atoms in (start, end):
        atoms.set_atomic_numbers([6, 1, 1, 1])
    end.positions[:, 2] *= -1
    band = NEB([start, *(start.copy() for _ in range(3)), end], method="improvedtangent", allow_shared_calculator=True)
    band.interpolate()
    for image in band.images:
        image.calc = calc
    BFGS(band, logfile=None).run(fmax=0, steps=2)
    assert np.isfinite(band.get_forces()).all()


def test_trajectory_and_database_keep_results_and_settings(path, tmp_path):
    atoms = copper()
    atoms.calc = EquivariantCalculator(path, "cpu")
    forces, stress = atoms.get_forces(), atoms.get_stress()
    with Trajectory(tmp_path / "a.traj", "w", atoms) as trajectory:
        trajectory.write()
    saved = read(tmp_path / "a.traj")
    assert (saved.get_forces() == forces).all()
    assert (saved.get_stress() == stress).all()
    assert saved.calc.parameters["model"] == str(path)
    atoms.write(tmp_path / "a.extxyz")
    assert read(tmp_path / "a.extxyz").get_forces() == pytest.approx(forces, abs=1e-7)
    with ase.db.connect(tmp_path / "a.db") as database:
        row = database.get(database.write(atoms))
    assert (row.forces == forces).all()
    assert len(row.calculator_parameters["sha256"]) == 64
    assert json.loads(json.dumps(atoms.calc.todict())) == {
        "model": str(path),
        "sha256": row.calculator_parameters["sha256"],
        "device": "cpu",
        "dtype": "float32",
        "backend": "eager",
        "head": "default",
    }


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("kind", ["path", "potential"])
def test_copies_give_the_same_results_and_live_on_their_own(copied, kind, path, potential):
    atoms = copper()
    atoms.calc = EquivariantCalculator({"path": path, "potential": potential}[kind], "cpu", "float64")
    forces = atoms.get_forces()
    twin = copied(atoms)
    assert twin.calc is not atoms.calc
    assert (twin.get_forces() == forces).all()
    assert twin.calc.calls == 1
    twin.calc.reset()
    assert np.abs(twin.get_forces() - forces).max() < 1e-12
    twin.rattle(0.1, seed=3)
    assert np.abs(twin.get_forces() - forces).max() > 1e-2
    assert twin.calc.parameters == atoms.calc.parameters
    assert atoms.calc.calls == 1
    assert twin.calc.calls == 3


def test_a_pickled_calculator_notices_that_its_file_has_changed(path):
    data = pickle.dumps(EquivariantCalculator(path, "cpu"))
    assert pickle.loads(data).parameters["model"] == str(path)
    assert len(data) < 2000
    save_potential(tiny_potential(atomic_numbers=(29,)), path)
    with pytest.raises(InputError, match="has changed since"):
        pickle.loads(data)


def test_calculators_can_be_added(calc):
    atoms = copper()
    expected = 2 * calc.get_forces(atoms)
    twin = copy.deepcopy(calc)
    atoms.calc = SumCalculator([calc, twin])
    assert atoms.get_forces() == pytest.approx(expected, abs=1e-12)
    assert atoms.get_stress() == pytest.approx(2 * calc.get_stress(atoms), abs=1e-12)
    assert (calc.calls, twin.calls) == (1, 1)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_a_forked_process_computes_although_its_parent_s_threads_are_gone(calc):
    here, there = copper(0.1) * (3, 3, 3), copper(0.2) * (3, 3, 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        calc.get_forces(here)  # wakes torch's second thread
        with multiprocessing.get_context("fork").Pool(1) as pool:
            found = pool.apply_async(calc.get_forces, (there,)).get(timeout=60)
        expected = calc.get_forces(there)
    finally:
        torch.set_num_threads(threads)
    assert np.abs(found - expected).max() < 1e-10
    assert np.abs(expected).max() > 0.1
