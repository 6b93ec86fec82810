"""Choosing a model and its options, bad input, failures, and models that prove themselves."""

import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.calculator import (
    CalculationFailed,
    CalculatorSetupError,
    InputError,
    PropertyNotImplementedError,
)
from structures import copper, rattled
from tiny import tiny_potential

import ase_equivariant.calculator as module
from ase_equivariant import EquivariantCalculator, inference, zoo
from ase_equivariant.golden import golden_structures
from ase_equivariant.inference import eager


@pytest.fixture(scope="module")
def potential():
    return tiny_potential(dtype=torch.float32)


@pytest.fixture
def proven():
    potential = tiny_potential()
    potential.metadata["golden"] = golden_structures(potential, [copper(), rattled(molecule("CH3OH"))])
    return potential


def test_a_shipped_name_is_kept_as_a_name(path, monkeypatch):
    monkeypatch.setattr(zoo, "MODELS", path.parent)
    calc = EquivariantCalculator("tiny", "cpu")
    assert calc.parameters["model"] == "tiny"
    assert pickle.loads(pickle.dumps(calc)).get_potential_energy(copper()) == calc.get_potential_energy(copper())
    with pytest.raises(InputError, match="did you mean tiny"):
        EquivariantCalculator("tinny")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype 'float16' is not available; choose one of float32, float64"),
        ({"dtype": torch.float64}, "choose one of float32, float64"),
        ({"backend": "jax"}, "backend 'jax' is not available; choose one of auto, eager"),
        ({"device": "tpu"}, "device 'tpu' is not available on this machine; choose one of auto, cpu"),
        ({"device": None}, "device None is not available"),
        ({"head": "pbe"}, "unknown head 'pbe'; choose one of default"),
    ],
)
def test_unknown_options_list_what_is_allowed(potential, options, message):
    with pytest.raises(InputError, match=message):
        EquivariantCalculator(potential, **{"device": "cpu"} | options)


def test_settings_cannot_change_during_the_life_of_a_calculator(calc):
    with pytest.raises(InputError, match="cannot change dtype"):
        calc.set(dtype="float32")
    assert calc.parameters["dtype"] == "float64"


def test_a_head_is_chosen_by_name_or_by_the_default_of_the_file():
    potential = tiny_potential(heads=("pbe", "scan"))
    with pytest.raises(InputError, match="several heads and no default; choose one of pbe, scan"):
        EquivariantCalculator(potential)
    energies = [
        EquivariantCalculator(potential, "cpu", "float64", head=head).get_potential_energy(copper())
        for head in ("pbe", "scan")
    ]
    assert abs(energies[0] - energies[1]) > 0.1
    potential.metadata["default_head"] = "scan"
    calc = EquivariantCalculator(potential, "cpu", "float64")
    assert calc.parameters["head"] == "scan"
    assert calc.get_potential_energy(copper()) == pytest.approx(energies[1], abs=1e-12)
    potential.metadata["default_head"] = "hse"
    with pytest.raises(InputError, match="unknown head 'hse'; choose one of pbe, scan"):
        EquivariantCalculator(potential)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a.numbers.__setitem__([1, 3], 54), r"Xe .*1, 3.*H, C, O, Si, Cu"),
        (lambda a: a.positions.__setitem__((2, 1), np.nan), "[Pp]ositions.*2"),
        (lambda a: a.positions.__setitem__(1, a.positions[0]), "atoms 0 and 1|0.*1"),
        (lambda a: a.set_cell([0, 0, 0]), "cell vector"),
        (lambda a: a.set_cell([[3, 0, 0], [0, 3, 0], [3, 3, 0]]), "linearly dependent"),
    ],
    ids=["element", "nan", "coincident", "no cell", "singular cell"],
)
def test_structures_without_meaning_are_input_errors_and_leave_no_results(calc, spoil, message):
    atoms = copper()
    atoms.calc = calc
    atoms.get_forces()
    spoil(atoms)
    with pytest.raises(InputError, match=message):
        atoms.get_potential_energy()
    with pytest.raises(InputError, match=message):
        calc.calculate(atoms, ["forces"])
    assert calc.results == {}
    good = copper()
    good.calc = calc
    assert np.isfinite(good.get_forces()).all()


def test_a_failed_direct_call_leaves_no_results_of_other_atoms(calc):
    calc.calculate(copper(), ["forces"])
    with pytest.raises(PropertyNotImplementedError):
        calc.calculate(molecule("CH4"), ["stress"])
    assert calc.results == {}


def test_a_list_of_atoms_is_refused_and_does_not_become_the_atoms(potential):
    calc = EquivariantCalculator(potential, "cpu")
    for call in (calc.get_potential_energy, calc.calculate, calc.estimate):
        with pytest.raises(InputError, match="takes one Atoms at a time, not a list"):
            call([copper(), copper()])
    assert calc.get_potential_energy(copper()) == EquivariantCalculator(potential, "cpu").get_potential_energy(copper())
    with pytest.raises(InputError, match="takes one Atoms at a time, not a tuple"):
        calc.get_forces((copper(),))


def test_a_result_that_is_not_a_number_is_a_failed_calculation(potential):
    broken = potential.astype(torch.float32)
    with torch.no_grad():
        next(broken.architecture.parameters()).fill_(torch.nan)
    calc = EquivariantCalculator(broken, "cpu")
    with pytest.raises(CalculationFailed, match="NaN or infinite energy, free_energy, energies for Cu4"):
        calc.get_potential_energy(copper())
    with pytest.raises(CalculationFailed, match="forces, stress"):
        calc.get_forces(copper())
    assert calc.results == {}


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", FULL)
def test_out_of_memory_is_a_failed_calculation_with_advice(calc, monkeypatch, error):
    def full(graph, forces):
        raise error

    monkeypatch.setattr(calc, "_backend", full)
    with pytest.raises(CalculationFailed, match="out of memory on cpu with 4 atoms and [0-9]+ edges; use fewer atoms"):
        calc.get_forces(copper())


@pytest.mark.parametrize("error", FULL)
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_out_of_memory_at_the_start_is_a_failed_calculation_with_advice(proven, monkeypatch, error, backend):
    def full(potential, graph, forces):
        raise error

    EquivariantCalculator(proven, "cpu", backend=backend)
    monkeypatch.setattr(eager, "predict", full)
    with pytest.raises(CalculationFailed, match="out of memory on cpu with the model alone; use a smaller model, dtyp"):
        EquivariantCalculator(proven, "cpu", backend=backend)


def test_other_errors_of_a_backend_are_not_hidden(calc, monkeypatch):
    def wrong(graph, forces):
        raise RuntimeError("something else")

    monkeypatch.setattr(calc, "_backend", wrong)
    with pytest.raises(RuntimeError, match="something else"):
        calc.get_forces(copper())


def test_a_file_called_fork_is_no_forked_process(calc, monkeypatch):
    with pytest.raises(InputError, match="^there is no model file"):
        EquivariantCalculator("nowhere/fork.model", "cpu")

    def forked(graph, forces):
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    monkeypatch.setattr(calc, "_backend", forked)
    with pytest.raises(CalculatorSetupError, match="start processes with multiprocessing.get_context..spawn"):
        calc.get_forces(copper())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_golden_structures_are_verified_at_the_start(proven, dtype):
    assert EquivariantCalculator(proven, "cpu", dtype).calls == 0
    with torch.no_grad():
        next(proven.architecture.parameters()).mul_(1.1)
    with pytest.raises(CalculatorSetupError, match=rf"'eager' on cpu in {dtype} .*errors in energy .*allowed"):
        EquivariantCalculator(proven, "cpu", dtype)


class Wrong:
    """A backend whose energies are off."""

    def __init__(self, potential, device):
        self.backend = inference.start("eager", potential, device)

    def __call__(self, graph, forces):
        prediction = self.backend(graph, forces)
        return replace(prediction, energy=prediction.energy + 1)


class Uncompiled(Wrong):
    """A backend whose kernels fail when they first run."""

    def __call__(self, graph, forces):
        raise RuntimeError("Failed to find C compiler")


class Unmade(Wrong):
    """A backend that cannot even be made."""

    def __init__(self, potential, device):
        raise RuntimeError("Can't redefine method")


class Unfit(Wrong):
    """A backend that says itself why it cannot serve."""

    def __init__(self, potential, device):
        raise CalculatorSetupError("backend 'wrong' on cpu knows no such model")


FAULTS = {
    "Wrong": "on cpu in float64 .*errors in energy",
    "Uncompiled": "on cpu fails: RuntimeError: Failed to find C",
    "Unmade": "on cpu fails: RuntimeError: Can't redefine",
    "Unfit": "on cpu knows no",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_auto_falls_back_with_one_warning_when_a_faster_backend_is_wrong_or_fails(fault, proven, monkeypatch):
    monkeypatch.setattr(module.inference, "BACKENDS", inference.BACKENDS | {"wrong": (__name__, fault)})
    monkeypatch.setattr(module.inference, "FASTEST_FIRST", {"cpu": ("wrong", "eager")})
    with pytest.warns(UserWarning, match=f"'wrong' {FAULTS[fault]} .*another backend") as caught:
        calc = EquivariantCalculator(proven, "cpu", "float64")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert calc.parameters["backend"] == "eager"
    with pytest.raises(CalculatorSetupError, match=f"^backend 'wrong' {FAULTS[fault]}"):
        EquivariantCalculator(proven, "cpu", "float64", backend="wrong")
    monkeypatch.setattr(module.inference, "FASTEST_FIRST", {"cpu": ("eager", "wrong")})
    with warnings.catch_warnings(action="error"):
        assert EquivariantCalculator(proven, "cpu").parameters["backend"] == "eager"
