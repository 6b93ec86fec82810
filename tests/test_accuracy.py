"""The accuracy benchmarks: every set has a configuration of every architecture, and a row of the table."""

import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import InputError
from ase.calculators.singlepoint import SinglePointCalculator

pytest.importorskip("lightning")

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "benchmarks" / "accuracy"))  # before benchmarks/peers, which has a run.py too
import ablation  # noqa: E402
import run  # noqa: E402
import tables  # noqa: E402
from sets import ARCHITECTURES, SETS  # noqa: E402
from test_training import write_config, write_sets  # noqa: E402

from ase_equivariant.architectures import build_unweighted  # noqa: E402
from ase_equivariant.checkpoint import load_potential, read_header  # noqa: E402
from ase_equivariant.training.ablate import grid  # noqa: E402
from ase_equivariant.training.config import read_config  # noqa: E402

PAIRS = [(name, model) for name, benchmark in SETS.items() for model in benchmark.models]
MLEARN = [("mlearn", architecture) for architecture in ("nequip", "botnet")]  # mace-mlearn is a shipped model


@pytest.mark.parametrize(("name", "model"), PAIRS + MLEARN)
def test_every_set_has_a_configuration_of_every_model(name, model):
    config, _ = read_config(run.CONFIGS / f"{name}_{model}.yaml")
    assert config.architecture == model.removesuffix("_paper")
    assert Path(config.output).name == f"{name}_{model}"
    assert config.data.test
    settings = {"num_species": 6, "avg_num_neighbors": 10.0, **config.model}
    assert build_unweighted(config.architecture, settings, torch.float32).config.cutoff == config.model["cutoff"]


@pytest.mark.parametrize(("name", "species", "published"), [("acac", 3, 2_803_984), ("3bpa", 4, 2_983_184)])
def test_the_paper_s_mace_has_the_parameters_that_are_published(name, species, published):
    """But for weights of couplings that depend on others: 187 paths there, 62 here, for each species and channel."""
    config, _ = read_config(run.CONFIGS / f"{name}_mace_paper.yaml")
    settings = {"num_species": species, "avg_num_neighbors": 10.0, **config.model}
    model = build_unweighted("mace", settings, torch.float32)
    assert sum(weight.numel() for weight in model.parameters()) == published - (187 - 62) * 256 * species


def test_every_set_has_all_architectures_and_every_configuration_is_of_a_set():
    assert all(set(benchmark.models) >= set(ARCHITECTURES) for benchmark in SETS.values())
    assert {f"{name}_{model}" for name, model in PAIRS + MLEARN} == {path.stem for path in run.CONFIGS.glob("*.yaml")}


def test_what_was_not_run_stands_in_the_table_with_its_command(tmp_path):
    text = tables.write_tables(tmp_path)
    for name, model in PAIRS:
        assert f"not run: `python benchmarks/accuracy/run.py {name} {model}`" in text
    for points in (50, 200):
        assert f"| {points} | not run: `python benchmarks/accuracy/run.py rmd17_ethanol mace --frames {points}`" in text
    assert "not run: `ase-equivariant train benchmarks/accuracy/configs/mlearn_nequip.yaml && python" in text
    assert "MACE, published | 0.9 / 5.1 | 4.6 / 22.4" in text
    assert (tmp_path / "accuracy.md").read_text() == text


def test_results_stand_beside_published_ones_and_make_learning_curves(tmp_path):
    found = {"energy": {"rmse": 0.5, "mae": 0.4}, "forces": {"rmse": 4.96, "mae": 3.0}}
    curve = {"relative_energy": {"rmse": 7.0, "mae": 5.0}, "height": {"one": {"found": 12.0, "expected": 14.0}}}
    result = {"parameters": 1234, "minutes": 20.4, "frames": 500}
    result |= {"tests": {"300 K": found, "600 K": found}, "curves": {"dihedral": curve, "H transfer": curve}}
    (tmp_path / "accuracy_acac_mace.json").write_text(json.dumps(result))
    result |= {"tests": {"test": found}, "curves": {}}
    (tmp_path / "accuracy_rmd17_ethanol_mace_200.json").write_text(json.dumps(result))
    (tmp_path / "accuracy_rmd17_ethanol_nequip.json").write_text(json.dumps(result))
    part = {kind: {"rmse": 1.26} for kind in ("energy", "forces", "stress")}
    (tmp_path / "mlearn_nequip.json").write_text(json.dumps({"elements": dict.fromkeys(tables.mlearn.ELEMENTS, part)}))
    text = tables.write_tables(tmp_path)
    assert "| **MACE, ours** | 0.50 / 5.0 | 0.50 / 5.0 | 7.0 | 7.0 | 1,234 | 20 |" in text
    assert "- H transfer: 14; MACE 12" in text
    assert "| MACE, published | 50 | 6.7 / 32.6 | – | – |" in text
    assert "| **MACE, ours** | 200 | 0.40 / 3.0 | 1,234 | 20 |" in text
    assert "| **NequIP, ours** | 1.3 / 1.3 / 1.26 | 1.3" in text
    brief = (tmp_path / "accuracy_brief.md").read_text()
    assert "| **NequIP, ours** | – | – | – | – | – | 3.0 | – |" in brief  # a mean absolute error
    assert "|  | AcAc 300 K | AcAc 600 K | 3BPA 300 K |" in brief
    assert "| MACE, published | 5.1 | 22.4 | 8.8 | 21.8 | 62.0 | 2.1 | 6.6 |" in brief
    assert "| **MACE, ours** | 5.0 | 5.0 | – | – | – | – | – |" in brief


def test_an_ablation_has_a_column_per_axis_and_per_set():
    runs = [
        {
            "settings": {"model.l_max": l_max},
            "errors": {"validation": {"forces_rmse": 4.96 + l_max}},
        }
        for l_max in (1, 2)
    ]
    assert ablation.markdown(runs).splitlines() == [
        "| `l_max` | validation, meV/Å |",
        "| --- | --- |",
        "| 1 | 6.0 |",
        "| 2 | 7.0 |",
    ]


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_the_ablation_uses_no_test_of_the_benchmark(model):
    raw = ablation.configuration(model)
    points = grid(raw, ablation.VARY)
    fields = ("radial_mlp", "bessel_norm", "bessel_decay")
    varied = [tuple(point.settings[f"model.{field}"] for field in fields) for point in points]
    assert varied == list(itertools.product(([64, 64, 64], []), ("unit", "paper"), (0, 1)))
    used = {Path(name).name for name in [raw["data"]["train"], *raw["data"]["test"].values()]}
    tests = {Path(name).name for name in [*SETS["acac"].tests.values(), *SETS["acac"].curves.values()]}
    assert used == {*ablation.FILES.values(), "train_600K.xyz"}
    assert len(tests) == 4
    assert used.isdisjoint(tests)
    _, whole = read_config(run.CONFIGS / f"acac_{model}.yaml")
    assert (raw["optimizer"], raw["loss"], raw["seed"]) == (whole["optimizer"], whole["loss"], whole["seed"])


def test_the_ablation_learns_none_of_the_structures_that_it_is_judged_by():
    parts = ablation.split([Atoms("H", [(i, 0, 0)]) for i in range(500)])
    trained, judged = ({atoms.positions[0, 0] for atoms in parts[name]} for name in ("train", "300 K"))
    assert (len(trained), len(judged)) == (125, 375)
    assert trained.isdisjoint(judged)


@pytest.mark.parametrize("name", sorted(path.stem for path in RESULTS.glob("accuracy_*.json")))
def test_results_are_those_of_the_committed_configurations(name):
    result = json.loads((RESULTS / f"{name}.json").read_text())
    model = re.fullmatch(rf"accuracy_{result['set']}_(\w+?)(_\d+)?", name)[1]
    _, raw = read_config(run.CONFIGS / f"{result['set']}_{model}.yaml")
    decisive = ("architecture", "model", "loss", "optimizer", "seed", "precision")
    assert {key: result["config"][key] for key in decisive} == {key: raw[key] for key in decisive}


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_the_ablation_has_the_runs_that_its_command_makes(model):
    runs = json.loads((RESULTS / f"ablation_{model}.json").read_text())["runs"]
    points = grid(ablation.configuration(model), ablation.VARY)
    assert [(r["settings"], r["config"]["model"]) for r in runs] == [(p.settings, p.raw["model"]) for p in points]


def test_tables_are_those_of_the_results(tmp_path):
    for path in [*RESULTS.glob("accuracy_*.json"), *RESULTS.glob("mlearn*.json")]:
        shutil.copy(path, tmp_path)
    tables.write_tables(tmp_path)
    for name in ("accuracy.md", "accuracy_brief.md"):
        assert (tmp_path / name).read_text() == (RESULTS / name).read_text()


def pair(energy: float, label: float, kind: str = "a") -> run.Pair:
    atoms = molecule("H2O")
    atoms.info["config_type"] = kind
    atoms.calc = SinglePointCalculator(atoms, energy=label, forces=0 * atoms.positions)
    return run.Pair(atoms, energy, torch.full((len(atoms), 3), 0.002))


def test_errors_are_per_molecule_and_along_paths_without_their_mean():
    found = run.errors([pair(1.001, 1.0), pair(2.003, 2.0)])
    assert found["energy"] == {"rmse": pytest.approx(5**0.5, abs=1e-3), "mae": pytest.approx(2.0)}
    assert found["forces"] == {"rmse": pytest.approx(2.0), "mae": pytest.approx(2.0)}
    paths = run.relative_errors([pair(1.5, 1.0), pair(2.5, 2.0), pair(9.0, 3.0, "b"), pair(9.0, 3.002, "b")])
    assert paths["relative_energy"]["mae"] == pytest.approx(0.5)
    assert paths["height"] == {"a": {"found": 1000, "expected": 1000}, "b": {"found": 0, "expected": 2}}


def test_all_files_of_a_configuration_are_those_of_the_folder_of_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = run.configuration("acac", "mace", Path("elsewhere"), None)["data"]
    files = {"train": SETS["acac"].train, **SETS["acac"].tests}
    assert {"train": data["train"], **data["test"]} == {k: str(tmp_path / "elsewhere" / v) for k, v in files.items()}
    ours = run.configuration("acac", "mace", run.DATA, None)["data"]
    assert ours["train"] == yaml.safe_load((run.CONFIGS / "acac_mace.yaml").read_text())["data"]["train"]


def test_what_another_machine_s_gpu_trained_is_evaluated_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "CONFIGS", tmp_path)
    config, raw = read_config(write_config(write_sets(tmp_path), run={"max_epochs": 1, "accelerator": "cpu"}))
    model = run.trained(config, raw)
    weights = load_potential(model).state_dict()
    elsewhere = {"run": {"max_epochs": 9, "accelerator": "gpu"}, "data": {"test": {"again": "valid.extxyz"}}}
    config, raw = read_config(write_config(tmp_path, **elsewhere))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.trained(config, raw) == model
    torch.testing.assert_close(load_potential(model).state_dict(), weights, rtol=0, atol=0)
    assert read_header(model)["errors"]["test"].keys() == {"again"}
    with pytest.raises(InputError, match="trained with another configuration"):
        run.trained(config, raw | {"seed": 5})
    model.unlink()
    with pytest.raises(InputError, match="accelerator is 'gpu', but torch finds none"):
        run.trained(config, raw)


def test_frames_of_npz_and_parts_of_a_set_that_hold_the_smaller_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RUNS", tmp_path / "runs")
    (tmp_path / "rmd17").mkdir()
    coords = np.random.default_rng(1).normal(size=(9, 2, 3))
    arrays = {"nuclear_charges": [8, 1], "coords": coords, "energies": np.arange(9.0), "forces": -coords}
    for file in (SETS["rmd17_ethanol"].train, SETS["rmd17_ethanol"].tests["test"]):
        np.savez(tmp_path / file, **arrays)
    drawn, epochs = [], run.configuration("rmd17_ethanol", "mace", tmp_path, None)["run"]["max_epochs"]
    for frames in (3, 6):
        raw = run.configuration("rmd17_ethanol", "mace", tmp_path, frames)
        read = run.frames_of(run.CONFIGS / raw["data"]["train"])
        assert isinstance(read[0], Atoms)
        drawn.append({atoms.get_potential_energy() for atoms in read})
        assert raw["run"]["max_epochs"] == epochs * 9 / frames
        assert raw["output"].endswith(f"rmd17_ethanol_mace_{frames}")
        assert len(run.frames_of(run.CONFIGS / raw["data"]["test"]["test"])) == 9
    assert drawn[0] < drawn[1]
    assert [len(energies) for energies in drawn] == [3, 6]
