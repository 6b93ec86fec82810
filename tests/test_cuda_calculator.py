"""The calculator on a GPU gives ASE what it gives on the CPU, in every process and thread, and disturbs nobody.

Run by `make test-cuda`. What the backends compute is in test_cuda.py; here each serves one model.
"""

import copy
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import CalculatorSetupError, InputError
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import FIRE
from structures import STRUCTURES, copper
from test_cuda import BACKENDS, CUDA, REPEATABLE
from tiny import tiny_potential

from ase_equivariant import EquivariantCalculator, save_potential

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or hidden: see `make test-cuda`")
PROPERTIES = ["energy", "forces"]


@pytest.fixture(scope="module")
def potential():
    return tiny_potential()


@pytest.fixture(params=BACKENDS, scope="module")
def backend(request):
    return request.param


@pytest.fixture
def gpu(potential, backend):
    return EquivariantCalculator(potential, "cuda", "float64", backend)


@pytest.fixture(scope="module")
def eager(potential):
    """The reference, on the CPU in float64."""
    return EquivariantCalculator(potential, "cpu", "float64", "eager")


def assert_same(atoms, found, expected, tolerance=1e-8):
    """Both calculators say the same of the atoms, whoever is asked first."""
    for calc in (found, expected):
        calc.calculate(atoms, PROPERTIES)
    assert found.results.keys() == expected.results.keys()
    for name, value in expected.results.items():
        np.testing.assert_allclose(found.results[name], value, rtol=0, atol=tolerance * max(1, np.abs(value).max()))


# What it is asked for and what it gives ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_auto_is_the_gpu_and_its_fastest_backend_without_any_warning(dtype, potential):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*backend is used instead")
        calc = EquivariantCalculator(potential, dtype=dtype)
        calc.get_forces(copper())
    assert (calc.parameters["device"], calc.parameters["backend"]) == ("cuda", BACKENDS[0])
    assert next(calc.potential.parameters()).is_cuda


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_a_gpu_has_two_names(name, potential, eager):
    calc = EquivariantCalculator(potential, name, "float64")
    assert calc.parameters["device"] == name
    assert_same(copper(), calc, eager)


@pytest.mark.parametrize("name", ["cuda:99", "cuda:-1", "CUDA", "gpu"])
def test_another_device_is_refused_with_those_that_are_there(name, potential):
    with pytest.raises(InputError, match=f"device '{name}' is not available.*choose one of auto, cpu, cuda, cuda:0"):
        EquivariantCalculator(potential, name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_have_the_types_that_ase_expects(dtype, potential, backend):
    calc, atoms = EquivariantCalculator(potential, "cuda", dtype, backend), STRUCTURES["triclinic"]()
    calc.calculate(atoms, ["forces"])
    assert list(calc.results) == ["energy", "free_energy", "energies", "forces", "stress"]
    assert type(calc.results["energy"]) is type(calc.results["free_energy"]) is float
    for name, shape in {"energies": (4,), "forces": (4, 3), "stress": (6,)}.items():
        value = calc.results[name]
        assert (type(value), value.dtype, value.shape) == (np.ndarray, np.float64, shape)
        assert value.flags["C_CONTIGUOUS"]
        assert value.flags["WRITEABLE"]
        assert np.abs(value).min() > 0
    assert calc.results["energies"].sum() == pytest.approx(calc.results["energy"], abs=1e-10)
    assert np.abs(calc.results["forces"].sum(axis=0)).max() < {"float32": 1e-4, "float64": 1e-11}[dtype]
    strain = calc.extras["strain_gradient"]
    assert (strain.dtype, strain.shape) == (np.float64, (3, 3))


def test_an_estimate_is_of_the_order_of_what_a_step_takes(gpu):
    atoms = copper().repeat((6, 5, 5))
    estimate = gpu.estimate(atoms)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gpu.get_forces(atoms)
    used = torch.cuda.max_memory_allocated() - before
    assert estimate.seconds > 0
    assert used / 3 < estimate.memory < 3 * used


# Runs, step by step --------------------------------------------------------------------------------------------------


@pytest.fixture
def crystal():
    atoms = copper(0.05).repeat((2, 2, 1))
    atoms.numbers[::3] = 14
    thermalize_momenta(atoms, temperature_K=3000, rng=np.random.default_rng(0))
    return atoms


RUNS = {
    "large displacements": lambda a: Langevin(
        a, 3 * units.fs, temperature_K=5000, friction=0.05, fixcm=False, rng=np.random.default_rng(0)
    ),
    "changing cell": lambda a: IsotropicMTKNPT(
        a, units.fs, temperature_K=3000, pressure_au=5 * units.GPa, tdamp=20 * units.fs, pdamp=50 * units.fs
    ),
    "relaxation with its cell": lambda a: FIRE(FrechetCellFilter(a), logfile=None),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_step_of_a_run_is_that_of_the_cpu(name, crystal, gpu, eager):
    crystal.calc = gpu
    start, run = crystal.copy(), RUNS[name](crystal)
    run.attach(lambda: assert_same(crystal, gpu, eager))
    run.run(steps=25)
    assert gpu.calls > 25
    assert gpu._neighbors[gpu.keeps_edges].n_rebuilds > 1  # the lists did change
    assert np.abs(crystal.positions - start.positions).max() > 0.1


def test_atoms_come_and_go_and_change_their_element(gpu, eager):
    atoms = copper()

    def replace():
        atoms.numbers[1] = 14

    changes = [
        lambda: None,
        lambda: atoms.append("C"),
        replace,
        lambda: atoms.extend(Atoms("H2", [[1, 1, 9], [1, 1.8, 9]])),
        lambda: atoms.pop(0),
        lambda: atoms.set_pbc(False),
        lambda: atoms.set_cell(1.1 * atoms.cell, scale_atoms=True),
        lambda: atoms.__delitem__(slice(1, None)),
    ]
    energies = []
    for change in changes:
        change()
        atoms.positions += [[0.3, 0.2, 0.1 * i * i] for i in range(len(atoms))]
        assert_same(atoms, gpu, eager)
        energies.append(gpu.results["energy"])
    assert len(set(energies)) == len(changes)


def test_one_calculator_serves_many_atoms_in_turn(gpu, eager):
    structures = [build() for build in STRUCTURES.values()] + [Atoms("C"), copper().repeat((3, 3, 2))]
    for turn in range(3):
        for atoms in structures:
            atoms.rattle(0.02, seed=turn)
            assert_same(atoms, gpu, eager)


def test_energies_alone_then_forces_then_stress(gpu, eager):
    atoms = copper()
    atoms.calc = gpu
    assert atoms.get_potential_energy() == pytest.approx(eager.get_potential_energy(copper()), abs=1e-9)
    assert "forces" not in gpu.results
    assert_same(atoms, gpu, eager)
    assert atoms.get_stress() == pytest.approx(eager.get_stress(copper()), abs=1e-9)
    assert gpu.calls == 2


# Repeatability, copies, threads, processes ---------------------------------------------------------------------------


@pytest.mark.parametrize("backend", REPEATABLE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_forces_repeat_bit_for_bit_in_one_calculator_and_in_another(backend, dtype, potential):
    one, other = (EquivariantCalculator(potential, "cuda", dtype, backend) for _ in range(2))
    here, there = copper().repeat((3, 2, 2)), copper(0.2).repeat((3, 2, 2))
    first = one.get_forces(here)
    assert (other.get_forces(here) == first).all()
    assert np.abs(one.get_forces(there) - first).max() > 0.01
    one.reset()
    assert (one.get_forces(here) == first).all()


@pytest.mark.parametrize("backend", REPEATABLE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_where_neighbours_were_searched_changes_no_bit(backend, dtype, potential):
    one, other = (EquivariantCalculator(potential, "cuda", dtype, backend) for _ in range(2))
    here, near = copper().repeat((3, 2, 2)), copper().repeat((3, 2, 2))
    near.rattle(0.03, seed=4)
    other.warm_up(near)
    assert (other.get_forces(here) == one.get_forces(here)).all()
    assert other._neighbors[other.keeps_edges].n_rebuilds == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("kind", ["path", "potential"])
def test_copies_give_the_same_results_and_live_on_their_own(copied, kind, path, potential, backend):
    atoms = copper()
    atoms.calc = EquivariantCalculator({"path": path, "potential": potential}[kind], "cuda", "float64", backend)
    forces = atoms.get_forces()
    twin = copied(atoms)
    assert (twin.get_forces() == forces).all()
    assert twin.calc.calls == 1
    twin.calc.reset()
    assert np.abs(twin.get_forces() - forces).max() < 1e-10
    twin.rattle(0.1, seed=3)
    assert np.abs(twin.get_forces() - forces).max() > 1e-2
    assert (atoms.get_forces() == forces).all()
    assert twin.calc.parameters == atoms.calc.parameters
    assert twin.calc.parameters["device"] == "cuda"
    assert (atoms.calc.calls, twin.calc.calls) == (1, 3)


def trajectory(potential, backend, seed):
    """Forces along a run of a calculator of its own, whose sizes change on the way."""
    calc, frames = EquivariantCalculator(potential, "cuda", "float64", backend), []
    for n in (1, 2, 1, 3):
        atoms = copper().repeat((3, 2, n))
        for step in range(5):
            atoms.rattle(0.02, seed=100 * seed + step)
            frames.append(calc.get_forces(atoms))
    return np.concatenate(frames)


def test_two_threads_with_a_calculator_each_compute_what_one_does(potential, backend):
    serial = [trajectory(potential, backend, seed) for seed in range(4)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda seed: trajectory(potential, backend, seed), range(4)))
    assert max(np.abs(a - b).max() for a, b in zip(found, serial, strict=True)) < 1e-9
    assert np.abs(serial[0] - serial[1]).max() > 0.01


def test_a_deep_copy_computes_in_a_thread_of_its_own(gpu):
    """Copies share their weights, and must not share what a call writes to."""
    structures = [copper().repeat((2, 2, n)) for n in (1, 2)]
    expected = [copy.deepcopy(gpu).get_forces(atoms) for atoms in structures]
    calculators = [gpu, copy.deepcopy(gpu)]

    def repeated(calc, atoms):
        return [(calc.reset(), calc.get_forces(atoms))[1] for _ in range(20)]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(repeated, calculators, structures))
    for forces, wanted in zip(found, expected, strict=True):
        assert max(np.abs(own - wanted).max() for own in forces) < 1e-9


def test_a_spawned_process_computes_the_same(potential, eager):
    atoms, calc = copper(), EquivariantCalculator(potential, dtype="float64")
    expected = eager.get_forces(atoms)
    assert np.abs(calc.get_forces(copper(0.2)) - expected).max() > 0.01  # this process uses the GPU too
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(EquivariantCalculator.get_forces, (calc, atoms))
    assert np.abs(found - expected).max() < 1e-9


def forces_of(options):
    return EquivariantCalculator(tiny_potential(), dtype="float64", backend="eager", **options).get_forces(copper())


INHERITED = {}  # what a forked process finds


def forces_of_inherited(name):
    return INHERITED[name].get_forces(copper(0.2))


def in_a_fork(function, argument):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply_async(function, (argument,)).get(timeout=60)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_process_forked_after_the_gpu_was_used_is_told_what_to_do(device):
    """Torch's reverse pass does not survive it either, on any device."""
    expected = forces_of({"device": "cuda"})
    with pytest.raises(CalculatorSetupError, match="spawn"):
        in_a_fork(forces_of, {"device": device})
    assert np.abs(forces_of({"device": "cuda"}) - expected).max() < 1e-9  # the parent is as before


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_cannot_use_its_parent_s_gpu_and_is_told_what_to_do(gpu, eager, monkeypatch):
    monkeypatch.setitem(INHERITED, "gpu", gpu)
    monkeypatch.setitem(INHERITED, "cpu", eager)
    gpu.get_forces(copper())
    with pytest.raises(RuntimeError, match="spawn"):
        in_a_fork(forces_of_inherited, "gpu")
    assert_same(copper(0.2), gpu, eager)
    assert np.abs(in_a_fork(forces_of_inherited, "cpu") - gpu.results["forces"]).max() < 1e-9


# Nobody is disturbed -------------------------------------------------------------------------------------------------


def process_state():
    return {
        "default dtype": torch.get_default_dtype(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "precision": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.enabled),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "executor": torch._C._get_graph_executor_optimize(),
        "threads": torch.get_num_threads(),
        "stream": torch.cuda.current_stream().cuda_stream,
        "device": torch.cuda.current_device(),
        "random": (random.getstate(), np.random.get_state()[1].tolist()),
        "torch random": (torch.get_rng_state().tolist(), torch.cuda.get_rng_state().tolist()),
        "environment": dict(os.environ),
    }


@pytest.fixture
def unusual():
    """A process with other defaults and on another stream, put back afterwards."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.cuda.manual_seed(7)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        yield
    torch.set_default_dtype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_global_state_is_neither_used_nor_touched(dtype, path, backend, eager, unusual):
    before = process_state()
    calc = EquivariantCalculator(path, "cuda", dtype, backend)
    states = [process_state()]
    for atoms in (copper(), copper(0.2), copper().repeat(2), STRUCTURES["molecule"]()):
        assert_same(atoms, calc, eager, {"float32": 1e-4, "float64": 1e-8}[dtype])
        states.append(process_state())
    for bad in (Atoms("Au"), Atoms("C2"), Atoms("C", cell=np.zeros((3, 3)), pbc=True)):
        with pytest.raises(InputError):
            calc.get_forces(bad)
        states.append(process_state())
    assert all(state == before for state in states)


def test_a_caller_s_inference_mode_neither_hinders_nor_spoils_a_calculator(potential, backend, eager):
    with torch.inference_mode():
        calc = EquivariantCalculator(potential, "cuda", "float64", backend)
        calc.warm_up(copper())
        assert_same(copper(), calc, eager)
        assert torch.is_inference_mode_enabled()
    calc.reset()
    assert_same(copper(), calc, eager)


OUT_OF_MEMORY = """
import json, sys
import torch
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed
from ase_equivariant import EquivariantCalculator

def message_of(calc, atoms):
    try:
        calc.get_forces(atoms)
    except CalculationFailed as error:
        return str(error)

def share(spare):
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + spare) / total))

def difference(calc, atoms, expected):
    calc.reset()
    return float(abs(calc.get_forces(atoms) - expected).max())

small, large, found = bulk("Cu", cubic=True), bulk("Cu", cubic=True).repeat(14), {}
for atoms in (small, large):
    atoms.rattle(0.1, seed=1)
for backend in sys.argv[2:]:
    forces = EquivariantCalculator(sys.argv[1], "cuda", "float64", backend).get_forces(large)
    calc = EquivariantCalculator(sys.argv[1], "cuda", "float64", backend)
    before = calc.get_forces(small)
    share(2**24)
    messages = [message_of(calc, large)]
    errors = [difference(calc, small, before)]
    messages.append(message_of(calc, large))
    share(2**40)
    errors.append(difference(calc, large, forces))
    found[backend] = [messages, errors]
print(json.dumps(found))
"""


def test_out_of_memory_is_said_and_fewer_atoms_or_more_memory_then_work(path):
    """In a process of its own, whose share of the GPU becomes small."""
    command = [sys.executable, "-c", OUT_OF_MEMORY, str(path), *BACKENDS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == list(BACKENDS)
    n = len(bulk("Cu", cubic=True).repeat(14))
    for messages, errors in found.values():
        for message in messages:
            assert message.startswith(f"out of memory on cuda with {n} atoms")
            assert "use fewer atoms, dtype='float32', or a device with more memory" in message
        assert max(errors) < 1e-9


def test_a_file_written_from_a_gpu_is_the_file_written_from_the_cpu(tmp_path, potential):
    save_potential(potential, tmp_path / "cpu")
    save_potential(copy.deepcopy(potential).to(CUDA), tmp_path / "gpu")
    assert (tmp_path / "cpu").read_bytes() == (tmp_path / "gpu").read_bytes()
