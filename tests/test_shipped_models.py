"""Every model in models/: complete, unaltered, right on this machine; and the physics of mace-mlearn.

The functions and the choice of references are those of the benchmarks, so that tests and published tables agree.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from ase_equivariant import EquivariantCalculator, available_models, load_potential
from ase_equivariant.checkpoint import read_header
from ase_equivariant.cli.main import main
from ase_equivariant.golden import verify_golden
from ase_equivariant.inference.verified import TOLERANCES
from ase_equivariant.workflows.md import MDSettings, run_md
from ase_equivariant.zoo import resolve

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT / "benchmarks" / folder) for folder in ("accuracy", "physics")]
import closest_pairs  # noqa: E402
import crystals  # noqa: E402
import mlearn  # noqa: E402

DATA = ROOT.parent / "shared" / "data" / "mlearn"
PUBLISHED = json.loads((ROOT / "tests" / "reference_pbe.json").read_text())["elements"]
FRAMES = json.loads((ROOT / "benchmarks" / "results" / "elastic_frames.json").read_text())["elements"]
METADATA = (
    "name",
    "atomic_energies_source",
    "units",
    "level_of_theory",
    "training_data",
    "training_data_license",
    "license",
    "citation",
    "errors",
    "provenance",
    "golden",
)
MOLECULES = ("3bpa", "acac", "rmd17-ethanol")
PROMISED = {"mace-mlearn", *(f"{a}-{m}" for a in ("botnet", "mace", "nequip") for m in MOLECULES)}
SHIPPED = sorted(PROMISED.union(available_models()))  # a missing one fails its tests instead of having none
METALS_AND_SEMICONDUCTORS = ("Cu", "Ni", "Mo", "Si", "Ge")
MLEARN = ("Cu", "Ge", "Li", "Mo", "Ni", "Si")


@pytest.fixture(scope="module")
def exact():
    """mace-mlearn in float64."""
    return EquivariantCalculator("mace-mlearn", device="cpu", dtype="float64")


def test_the_models_that_we_promise_are_there():
    assert set(available_models()) >= PROMISED


@pytest.mark.parametrize("name", SHIPPED)
def test_the_header_of_a_shipped_model_is_complete_and_its_file_small(name):
    header = read_header(name)
    assert [key for key in METADATA if not header.get(key)] == []
    assert header["name"] == name
    assert set(header["errors"]) >= {"units", "validation", "test"}
    tests = header["errors"]["test"]
    assert tests
    assert all(errors["all"]["forces_rmse"] > 0 for errors in [header["errors"]["validation"], *tests.values()])
    assert resolve(name).stat().st_size < 10e6


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_golden_structures_of_a_shipped_model_are_reproduced(name, dtype):
    errors = verify_golden(load_potential(name).astype(getattr(torch, dtype)))
    assert set(errors) >= {"energy", "forces"}  # and stress, where a structure has a volume
    assert {key: error for key, error in errors.items() if not error <= TOLERANCES[dtype][key]} == {}


@pytest.mark.parametrize("name", SHIPPED)
def test_golden_structures_notice_a_changed_weight(name):
    potential = load_potential(name).astype(torch.float64)
    with torch.no_grad():
        next(potential.architecture.parameters()).mul_(1.001)
    assert verify_golden(potential)["energy"] > TOLERANCES["float64"]["energy"]


def test_golden_crystals_have_a_stress():
    assert "stress" in verify_golden(load_potential("mace-mlearn"))


def test_elements_of_mace_mlearn():
    assert sorted(Atoms(numbers=load_potential("mace-mlearn").atomic_numbers).symbols) == list(MLEARN)


@pytest.mark.parametrize("symbol", METALS_AND_SEMICONDUCTORS)
def test_published_equations_of_state_and_the_energies_of_the_set_agree(symbol):
    """The reference that counts is thus no matter of taste."""
    deviation = crystals.deviations(FRAMES[symbol], PUBLISHED[symbol][crystals.SOURCE])
    assert abs(deviation["lattice_constant"]) < 0.35
    assert abs(deviation["bulk_modulus"]) < 2.5


@pytest.mark.parametrize("symbol", METALS_AND_SEMICONDUCTORS)
def test_lattice_constants_are_those_of_pbe(symbol, exact):
    deviation = crystals.deviations(crystals.equation_of_state(symbol, exact), PUBLISHED[symbol][crystals.SOURCE])
    assert abs(deviation["lattice_constant"]) < crystals.LATTICE_TARGET
    assert abs(deviation["bulk_modulus"]) < 1.5 * crystals.BULK_TARGET


@pytest.mark.parametrize("symbol", METALS_AND_SEMICONDUCTORS)
def test_bulk_moduli_are_those_of_pbe(symbol, exact):
    deviation = crystals.deviations(crystals.equation_of_state(symbol, exact), PUBLISHED[symbol][crystals.SOURCE])
    assert abs(deviation["bulk_modulus"]) < crystals.BULK_TARGET


@pytest.mark.parametrize("symbol", MLEARN)
def test_crystals_are_elastically_stable(symbol, exact):
    constants = crystals.elastic_constants(symbol, FRAMES[symbol]["lattice_constant"], exact)
    assert constants["c11"] > constants["c12"] > 0
    assert constants["c44"] > 0


@pytest.mark.parametrize(("symbol", "height"), [("Cu", 5), ("Ge", 5), ("Li", 2), ("Mo", 5), ("Ni", 5), ("Si", 5)])
def test_neighbours_that_approach_each_other_meet_a_wall_that_heat_does_not_climb(symbol, height):
    """Without a pair repulsion they attract each other below the closest pairs of the training data."""
    structure, lattice_constant = crystals.CRYSTALS[symbol]
    crystal = bulk(symbol, structure, lattice_constant, cubic=True).repeat(2)
    _, energy = closest_pairs.wall(crystal, EquivariantCalculator("mace-mlearn", device="cpu"))
    assert energy > height


@pytest.mark.parametrize("symbol", MLEARN)
def test_an_isolated_atom_feels_no_force_and_has_the_energy_that_info_reports(symbol, exact, capsys):
    alone, pair = Atoms(symbol), Atoms([symbol, symbol], [(0, 0, 0), (0, 0, 2.3)])
    alone.calc = pair.calc = exact
    with pytest.raises(SystemExit) as end:
        main(["info", "mace-mlearn"])
    assert not end.value.code
    row = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:2] == [symbol, "default"])
    assert f"{alone.get_potential_energy():.6f}" in row
    assert np.abs(alone.get_forces()).max() == 0
    assert np.abs(pair.get_forces()).max() > 0.01


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_dynamics_of_silicon_keeps_its_energy_with_one_call_per_step(dtype, tmp_path):
    """64 atoms, 0.5 ps; benchmarks/physics/nve.py is the long one."""
    atoms = bulk("Si", cubic=True).repeat(2)
    atoms.calc = EquivariantCalculator("mace-mlearn", device="cpu", dtype=dtype)
    samples = []
    summary = run_md(atoms, MDSettings("nve", 600.0, steps=500), tmp_path / "nve", samples.append)
    potential = [sample.potential_energy for sample in samples]
    assert np.std(potential) / len(atoms) > 1e-3  # eV/atom: energy does change its form
    assert abs(summary.drift) < 0.02  # meV/atom/ps
    assert atoms.calc.calls == summary.steps + 1


@pytest.fixture(scope="module")
def found():
    """Errors of mace-mlearn on the official test set, per element."""
    calc = EquivariantCalculator("mace-mlearn", device="cpu")
    return {symbol: mlearn.assess(symbol, DATA, calc) for symbol in MLEARN}


needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the mlearn set at {DATA.relative_to(ROOT.parent)}")


@needs_data
@pytest.mark.parametrize("symbol", MLEARN)
def test_energies_on_the_official_test_set_are_better_than_m3gnet_s_for_all_elements(symbol, found):
    assert found[symbol]["frames"] > 20
    assert found[symbol]["energy"]["rmse"] < mlearn.PUBLISHED["M3GNet-all"][symbol][0]


@needs_data
@pytest.mark.parametrize("symbol", MLEARN)
def test_forces_on_the_official_test_set_are_better_than_m3gnet_s_for_all_elements(symbol, found):
    assert found[symbol]["forces"]["rmse"] < mlearn.PUBLISHED["M3GNet-all"][symbol][1]


@needs_data
def test_forces_on_the_official_test_set_are_as_the_card_says(found):
    card = json.loads((ROOT / "benchmarks" / "results" / "mlearn.json").read_text())["elements"]
    for symbol, errors in found.items():
        assert errors["forces"]["rmse"] == pytest.approx(card[symbol]["forces"]["rmse"], rel=1e-3)
