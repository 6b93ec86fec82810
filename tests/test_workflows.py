"""Relaxation, dynamics and evaluation, with potentials of ASE whose physics is known."""

import csv

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed, CalculatorSetupError, InputError
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import read
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from tiny import tiny_potential

from ase_equivariant import EquivariantCalculator
from ase_equivariant.workflows import MDSettings, MDStopped, relax, run_md
from ase_equivariant.workflows.evaluate import compare, evaluate, reference_labels
from ase_equivariant.workflows.md import draw_velocities
from ase_equivariant.workflows.rdf import distance_distribution


class Counting(EMT):
    """EMT that counts its calls, and after some of them misbehaves as told."""

    def __init__(self, after=None, event=None):
        super().__init__()
        self.calls, self.after, self.event = 0, after, event

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.calls += 1
        if self.event and self.calls > self.after:
            self.event(self)


def explode(calculator):
    calculator.results["forces"][[3, 7]] = 1e6


def turn_nan(calculator):
    calculator.results["forces"][5] = np.nan


def press_ctrl_c(calculator):
    raise KeyboardInterrupt


def give_up(calculator):
    raise CalculationFailed("out of memory")


def copper(size=2, **kwargs) -> Atoms:
    atoms = bulk("Cu", cubic=True) * (size, size, size)
    atoms.calc = Counting(**kwargs)
    return atoms


def argon(smooth=True) -> Atoms:
    atoms = bulk("Ar", a=5.4, cubic=True) * (2, 2, 2)
    atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=5.3, ro=4.5, smooth=smooth)
    return atoms


# Relaxation


def test_relaxing_goes_downhill_to_vanishing_forces_with_one_call_per_step():
    atoms = copper()
    atoms.rattle(0.1, seed=1)
    result = relax(atoms, fmax=0.01)
    assert result.converged
    assert result.first.fmax > 0.5
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.01
    assert result.last.energy < result.first.energy
    assert atoms.calc.calls == result.steps + 1


@pytest.mark.parametrize("optimizer", ["bfgs", "lbfgs", "fire"])
def test_relaxing_the_cell_reaches_the_asked_pressure(optimizer, tmp_path):
    volumes = {}
    for pressure in (0.0, 10.0):
        atoms = bulk("Cu", a=3.7)
        atoms.calc = Counting()
        result = relax(atoms, cell=True, pressure=pressure, optimizer=optimizer, logfile=tmp_path / "log")
        assert result.converged
        np.testing.assert_allclose(-atoms.get_stress()[:3] / units.GPa, pressure, atol=0.01)
        assert atoms.calc.calls == result.steps + 1
        volumes[pressure] = atoms.get_volume()
    assert volumes[10.0] < 0.96 * volumes[0.0]


def test_relaxing_writes_every_step_to_trajectory_log_and_observer(tmp_path):
    atoms = copper()
    atoms.rattle(0.1, seed=1)
    seen = []
    result = relax(atoms, trajectory=tmp_path / "r.traj", logfile=tmp_path / "r.log", observer=seen.append)
    assert [step.step for step in seen] == list(range(result.steps + 1))
    assert [a.get_potential_energy() for a in read(tmp_path / "r.traj", ":")] == [step.energy for step in seen]
    assert len((tmp_path / "r.log").read_text().splitlines()) == len(seen) + 1


def test_relaxing_moves_no_fixed_atom_and_moves_others():
    atoms = copper()
    atoms.rattle(0.1, seed=1)
    atoms.set_constraint(FixAtoms([0, 1]))
    before = atoms.positions.copy()
    relax(atoms, fmax=0.05)
    moved = np.linalg.norm(atoms.positions - before, axis=1)
    assert (moved[:2] == 0).all()
    assert moved[2:].max() > 0.05


def test_relaxing_says_when_it_did_not_converge():
    atoms = copper()
    atoms.rattle(0.1, seed=1)
    result = relax(atoms, fmax=1e-6, steps=3)
    assert not result.converged
    assert result.steps == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pressure": 1.0}, "ask to relax the cell"),
        ({"optimizer": "newton"}, "bfgs, fire, lbfgs"),
        ({"fmax": 0.0}, "fmax must be"),
        ({"steps": 0}, "steps must be"),
        ({"cell": True, "pressure": np.nan}, "pressure must be"),
    ],
)
def test_relaxing_refuses_what_makes_no_sense(options, words):
    with pytest.raises(InputError, match=words):
        relax(copper(), **options)


def test_the_cell_of_a_molecule_cannot_be_relaxed():
    atoms = molecule("H2O")
    atoms.calc = EMT()
    with pytest.raises(InputError, match="periodic in all three directions; H2O has pbc .* and 0 cell vectors"):
        relax(atoms, cell=True)


def test_atoms_without_a_calculator_are_refused():
    with pytest.raises(CalculatorSetupError, match="no calculator"):
        relax(bulk("Cu"))


# Dynamics


@pytest.mark.parametrize("ensemble", ["nve", "nvt-langevin", "nvt-nhc", "npt"])
def test_dynamics_calls_the_potential_once_per_step_and_writes_all_files(ensemble, tmp_path):
    atoms = copper()
    summary = run_md(atoms, MDSettings(ensemble, steps=20, interval=5), tmp_path / "new" / "run")
    assert atoms.calc.calls == 21
    assert summary.steps == 20
    frames = read(summary.files.trajectory, ":")
    rows = list(csv.DictReader(summary.files.log.read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == [0, 5, 10, 15, 20]
    np.testing.assert_allclose(
        [f.get_potential_energy() for f in frames], [float(r["potential_energy_eV"]) for r in rows]
    )
    final = read(summary.files.final)
    np.testing.assert_allclose(final.positions, atoms.positions, atol=1e-7)
    np.testing.assert_allclose(final.get_momenta(), atoms.get_momenta(), atol=1e-7)
    assert summary.files.picture.read_bytes().startswith(b"\x89PNG")


def test_nve_conserves_energy_while_kinetic_energy_varies(tmp_path):
    kinetic, total = [], []

    def observe(sample):
        kinetic.append(sample.kinetic_energy)
        total.append(sample.conserved_energy)

    atoms = argon()
    run_md(atoms, MDSettings("nve", temperature=40, steps=150, timestep=4), tmp_path / "run", observe)
    assert np.ptp(kinetic) > 0.03
    assert np.ptp(total) < 0.01 * np.ptp(kinetic)


@pytest.mark.parametrize("ensemble", ["nvt-langevin", "nvt-nhc"])
def test_thermostats_reach_the_asked_temperature_from_another(ensemble, tmp_path):
    atoms = argon()
    draw_velocities(atoms, 10, np.random.default_rng(0))
    settings = MDSettings(ensemble, temperature=40, steps=300, timestep=8, interval=2, friction=0.005)
    summary = run_md(atoms, settings, tmp_path / "run")
    assert summary.temperature[0] == pytest.approx(40, abs=7)


def test_npt_reaches_the_asked_pressure_and_conserves_its_energy(tmp_path):
    atoms = copper()
    settings = MDSettings("npt", pressure=5, steps=300, timestep=5, interval=2, barostat_time=300)
    summary = run_md(atoms, settings, tmp_path / "run")
    assert summary.pressure[0] == pytest.approx(5, abs=1.5)
    assert atoms.get_volume() < 0.98 * len(atoms) * 3.61**3 / 4
    assert abs(summary.drift) < 0.5


def test_a_molecule_needs_no_cell_and_has_no_pressure(tmp_path):
    atoms = molecule("CH3OH")
    atoms.calc = EMT()
    summary = run_md(atoms, MDSettings(steps=20), tmp_path / "run")
    assert summary.pressure is None
    assert summary.volume is None
    assert summary.files.picture.exists()


def test_a_single_atom_can_be_run(tmp_path):
    atoms = Atoms("Cu")
    atoms.calc = EMT()
    assert run_md(atoms, MDSettings("nve", steps=3), tmp_path / "run").temperature[0] == pytest.approx(300)


def test_the_seed_decides_the_trajectory(tmp_path):
    ends = []
    for seed in (0, 0, 1):
        atoms = copper()
        run_md(atoms, MDSettings(steps=5, seed=seed), tmp_path / "run")
        ends.append(atoms.positions)
    np.testing.assert_array_equal(ends[0], ends[1])
    assert np.abs(ends[0] - ends[2]).max() > 1e-3


def test_a_run_continues_the_velocities_that_atoms_carry(tmp_path):
    whole, halves = copper(), copper()
    run_md(whole, MDSettings("nve", steps=20), tmp_path / "whole")
    run_md(halves, MDSettings("nve", steps=10), tmp_path / "first")
    rest = read(tmp_path / "first.traj")
    rest.calc = EMT()
    run_md(rest, MDSettings("nve", steps=10, seed=7), tmp_path / "second")
    np.testing.assert_allclose(rest.positions, whole.positions, atol=1e-9)


def test_fixed_atoms_stay_where_they_are_and_others_move(tmp_path):
    atoms = copper()
    atoms.set_constraint(FixAtoms([0]))
    before = atoms.positions.copy()
    run_md(atoms, MDSettings(steps=10), tmp_path / "run")
    moved = np.linalg.norm(atoms.positions - before, axis=1)
    assert moved[0] == 0
    assert moved[1:].min() > 0


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (explode, "atoms 3, 7 is 1.73e\\+06 eV/Å"),
        (turn_nan, "atoms 5 is not a number"),
        (give_up, "out of memory"),
    ],
)
def test_a_failing_run_names_step_and_atoms_and_keeps_what_was_done(event, words, tmp_path):
    atoms = copper(after=8, event=event)
    with pytest.raises(MDStopped, match=f"at step 8 of 20: .*{words}") as stopped:
        run_md(atoms, MDSettings("nve", steps=20, interval=5), tmp_path / "run")
    summary = stopped.value.summary
    assert summary.steps == 7
    assert len(read(summary.files.trajectory, ":")) == 3  # steps 0, 5, 7
    assert np.isfinite(read(summary.files.final).get_forces()).all()
    assert summary.files.picture.exists()


def test_ctrl_c_in_the_middle_of_a_step_ends_the_run_after_the_last_whole_one(tmp_path):
    whole, broken = copper(), copper(after=8, event=press_ctrl_c)
    run_md(whole, MDSettings("nve", steps=7), tmp_path / "whole")
    summary = run_md(broken, MDSettings("nve", steps=20), tmp_path / "broken")
    assert summary.interrupted
    assert summary.steps == 7
    np.testing.assert_array_equal(broken.positions, whole.positions)
    np.testing.assert_array_equal(broken.get_momenta(), whole.get_momenta())
    assert summary.files.picture.exists()


def test_bad_structures_are_refused_before_any_file_is_opened(tmp_path):
    atoms = copper(after=0, event=turn_nan)
    with pytest.raises(CalculationFailed, match="not a number"):
        run_md(atoms, MDSettings(), tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ensemble": "nvt"}, "unknown ensemble 'nvt'; choose one of nve, nvt-langevin, nvt-nhc, npt"),
        ({"temperature": 0}, "temperature must be a number above 0; got 0"),
        ({"timestep": np.nan}, "timestep must be"),
        ({"interval": 0}, "interval must be"),
        ({"thermostat_time": -1}, "thermostat time must be"),
        ({"pressure": 1.0}, "needs ensemble npt"),
    ],
)
def test_settings_refuse_what_makes_no_sense(values, words):
    with pytest.raises(InputError, match=words):
        MDSettings(**values)


@pytest.mark.parametrize("ensemble", ["nvt-nhc", "npt"])
def test_thermostats_that_would_overheat_free_atoms_refuse_fixed_ones(ensemble, tmp_path):
    atoms = copper()
    atoms.set_constraint(FixAtoms([0]))
    with pytest.raises(InputError, match="use nvt-langevin"):
        run_md(atoms, MDSettings(ensemble), tmp_path / "run")


def test_our_own_calculator_is_called_once_per_step_of_relaxation_and_of_dynamics(tmp_path):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=0)
    atoms.calc = EquivariantCalculator(tiny_potential(), dtype="float64")
    result = relax(atoms, cell=True, steps=5)
    assert atoms.calc.calls == result.steps + 1
    run_md(atoms, MDSettings("npt", steps=5), tmp_path / "run")
    assert atoms.calc.calls == result.steps + 1 + 5  # the last relaxed structure is known already


# Distances


def test_the_radial_distribution_of_fcc_has_twelve_nearest_neighbours():
    atoms = bulk("Cu", a=3.6, cubic=True) * (3, 3, 3)
    distances = distance_distribution([atoms, atoms])
    shells = np.diff(np.linspace(0, 8, len(distances.radii) + 1) ** 3) * 4 / 3 * np.pi
    first = distances.radii < 3.0
    counts = distances.curves["Cu–Cu"] * shells * len(atoms) / atoms.get_volume()
    assert counts[first].sum() == pytest.approx(12)


def test_the_radial_distribution_of_an_ideal_gas_is_one_for_every_pair_of_elements():
    rng = np.random.default_rng(0)
    frames = [Atoms("Ar300Ne300", rng.random((600, 3)) * 20, cell=[20] * 3, pbc=True) for _ in range(5)]
    distances = distance_distribution(frames)
    assert set(distances.curves) == {"Ar–Ar", "Ar–Ne", "Ne–Ne"}
    far = distances.radii > 4
    for curve in distances.curves.values():
        assert curve[far].mean() == pytest.approx(1, abs=0.02)


def test_a_cell_smaller_than_any_shell_has_no_distribution():
    assert distance_distribution([bulk("Cu")]) is None


# Evaluation


def labelled(energy_shift: float, force_shift: float, stress_shift: float) -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.symbols[0] = "Au"
    atoms.rattle(0.05, seed=2)
    atoms.calc = EMT()
    labels = {
        "energy": atoms.get_potential_energy() - energy_shift,
        "forces": atoms.get_forces() - np.array([[force_shift]] + [[0.0]] * 3),
        "stress": atoms.get_stress() - stress_shift,
    }
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def test_errors_are_per_atom_per_element_and_signed():
    frames = [labelled(0.4, 0.1, 1 * units.GPa), labelled(-0.4, 0.1, 1 * units.GPa)]
    comparison = compare(evaluate(frames, EMT()))
    assert comparison.energy.rmse == pytest.approx(100)
    assert comparison.energy.bias == pytest.approx(0, abs=1e-6)
    assert comparison.forces["Au"].mae == pytest.approx(100)
    assert comparison.forces["Cu"].mae == pytest.approx(0, abs=1e-6)
    assert comparison.forces["all"].rmse == pytest.approx(50)
    assert comparison.stress.bias == pytest.approx(1)


def test_evaluation_keeps_frames_labels_and_order_and_leaves_the_input_alone():
    frames = [labelled(0.4, 0.1, 0.0), molecule("H2O")]
    seen = []
    crystal, water = evaluate(frames, EMT(), lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert crystal.info["ref_energy"] == frames[0].get_potential_energy()
    assert crystal.get_potential_energy() == pytest.approx(frames[0].get_potential_energy() + 0.4)
    assert "stress" not in water.calc.results
    assert "ref_energy" not in water.info
    assert frames[0].info == {}
    assert frames[1].calc is None


def test_labels_are_compared_on_fixed_atoms_too():
    frame = labelled(0.0, 0.1, 0.0)
    frame.set_constraint(FixAtoms([0]))
    assert compare(evaluate([frame], EMT())).forces["Au"].mae == pytest.approx(100)


def test_labels_have_the_names_that_are_given():
    frame = labelled(0.4, 0.1, 1 * units.GPa)
    renamed = frame.copy()
    stress = full_3x3_to_voigt_6_stress(np.eye(3)) + frame.get_stress()
    renamed.info = {"REF_energy": frame.get_potential_energy(), "REF_stress": voigt_6_to_full_3x3_stress(stress)}
    renamed.arrays["REF_forces"] = frame.get_forces()
    assert reference_labels(renamed) == {}
    keys = {name: f"REF_{name}" for name in ("energy", "forces", "stress")}
    named = compare(evaluate([renamed], EMT(), keys=keys))
    usual = compare(evaluate([frame], EMT()))
    assert (named.energy, named.forces) == (usual.energy, usual.forces)
    np.testing.assert_allclose(reference_labels(renamed, keys)["stress"], stress)
    renamed.info["REF_stress"] = voigt_6_to_full_3x3_stress(stress).ravel()
    np.testing.assert_allclose(reference_labels(renamed, keys)["stress"], stress)


@pytest.mark.parametrize("value", [np.zeros(3), [1.0], "low", True, np.nan])
def test_label_of_another_shape_is_refused_before_any_work(value):
    calculator = EMT()
    frame = labelled(0.0, 0.0, 0.0)
    frame.info["free"] = value
    with pytest.raises(
        InputError, match=r"^frame 0: 'free' (has shape .* as energy it must be \(\)|.*not numbers|holds NaN)"
    ):
        evaluate([frame], calculator, keys={"energy": "free"})
    assert calculator.atoms is None


def test_results_of_a_shared_calculator_are_labels_of_the_frame_that_they_are_of():
    first, second = labelled(0.0, 0.0, 0.0), labelled(0.0, 0.0, 0.0)
    second.rattle(0.1, seed=5)
    second.calc = first.calc = EMT()
    first.get_forces()
    right = second.get_forces()
    assert reference_labels(first) == {}
    np.testing.assert_array_equal(reference_labels(second)["forces"], right)
