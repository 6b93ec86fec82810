"""Grids of trainings: what the axes may be, what is trained, compared and kept, on tiny sets labelled by EMT."""

import io
import json

import ase.io
import pytest
from ase.calculators.calculator import CalculationFailed, InputError
from rich.console import Console

pytest.importorskip("lightning")

from test_training import labelled, write_config, write_sets

from ase_equivariant.checkpoint import read_header
from ase_equivariant.cli.main import main
from ase_equivariant.training.ablate import ablate, check_data, grid
from ase_equivariant.training.config import read_config
from ase_equivariant.training.sets import load_sets

SHORT = {"run": {"max_epochs": 2, "accelerator": "cpu"}, "data": {"test": {"far": "valid.extxyz"}}}


@pytest.fixture
def raw(tmp_path):
    return read_config(write_config(tmp_path))[1]


@pytest.fixture
def config(tmp_path):
    return write_config(write_sets(tmp_path), **SHORT)


def quietly(config, vary, jobs=1):
    return ablate(config, vary, jobs, Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A grid of two runs in two processes: its folder, its configuration, its report."""
    config = write_config(write_sets(tmp_path_factory.mktemp("grid")), **SHORT)
    return config.parent / "run", config, quietly(config, ["l_max=0,1"], jobs=2)


def test_every_run_of_a_grid_is_trained_with_its_values_and_compared(compared):
    folder, _, report = compared
    assert not report["failed"]
    assert [run["settings"] for run in report["runs"]] == [{"model.l_max": 0}, {"model.l_max": 1}]
    small, large = report["runs"]
    assert small["parameters"] < large["parameters"]
    assert small["epochs"] == 2
    assert set(small["errors"]) == {"validation", "far"}
    assert small["errors"]["far"]["forces_rmse"] != large["errors"]["far"]["forces_rmse"]
    for run in report["runs"]:
        header = read_header(folder / run["label"] / "tiny.safetensors")
        assert header["config"]["l_max"] == run["settings"]["model.l_max"]
        assert header["errors"]["validation"]["all"] == run["errors"]["validation"]
    assert json.loads((folder / "ablation.json").read_text()) == report


def test_finished_runs_are_not_repeated_and_an_interrupted_one_is_continued(compared, monkeypatch):
    folder, config, report = compared
    files = [folder / run["label"] / "log.jsonl" for run in report["runs"]]
    before = [file.stat().st_mtime_ns for file in files]
    (folder / "l_max=1" / "result.json").unlink()  # as if killed before it was written
    assert quietly(config, ["l_max=0,1"]) == report
    assert [file.stat().st_mtime_ns for file in files] == before
    assert "Resuming after epoch 1" in (folder / "l_max=1" / "train.log").read_text()


def test_the_command_prints_a_table_and_tells_where_the_results_are(compared, capsys):
    folder, config, report = compared
    with pytest.raises(SystemExit) as stop:
        main(["ablate", str(config), "--vary", "l_max=0,1"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"{report['runs'][1]['parameters']:,}" in out
    assert f"{report['runs'][1]['errors']['far']['forces_rmse']:.2f}" in out
    assert "far" in out
    assert "ablation.json" in out


def test_a_run_that_fails_does_not_stop_the_others_and_is_told(config):
    report = quietly(config, ["optimizer.lr=1e-3,1e9", "hidden_irreps=4x0e"])
    assert [run["settings"]["optimizer.lr"] for run in report["runs"]] == ["1e-3"]
    assert list(report["failed"]) == ["lr=1e9,hidden_irreps=4x0e"]
    with pytest.raises(CalculationFailed, match="every run failed; lr=1e9: training diverged"):
        quietly(config, ["optimizer.lr=1e9"])


def test_several_axes_make_a_grid_and_values_are_read_as_yaml(raw):
    points = grid(raw, ["radial_mlp=[],[16, 16]", "optimizer.lr=0.1,1e-3", "loss.stress=0"])
    assert [point.settings["model.radial_mlp"] for point in points] == [[], [], [16, 16], [16, 16]]
    assert points[0].label == "radial_mlp=empty,lr=0.1,stress=0"
    assert points[3].raw["model"]["radial_mlp"] == [16, 16]
    assert points[3].raw["optimizer"] == {**raw["optimizer"], "lr": "1e-3"}
    assert points[3].label == "radial_mlp=16_16,lr=1e-3,stress=0"
    assert points[3].raw["output"] == f"run/{points[3].label}"
    assert len({point.label for point in points}) == 4
    assert raw["output"] == "run"


def test_architectures_can_be_crossed_with_what_all_of_them_have(raw):
    vary = ["architecture=mace,nequip,botnet", "skip=species,shared", "interaction=residual,nonresidual"]
    vary += ["radial_basis=bessel,gaussian", "readout_mlp=0,8", "correlation=1", "radial=agnostic", "l_max=0,2"]
    vary += ["normalisation=none", "parity=true", "trainable_bessel=false"]
    points = grid({**raw, "model": {"cutoff": 4.0, "hidden_irreps": "4x0e"}}, vary)
    assert [point.raw["architecture"] for point in points] == ["mace"] * 32 + ["nequip"] * 32 + ["botnet"] * 32


def test_settings_with_values_for_each_element_can_be_axes(raw):
    points = grid(raw, ["distance_transform=none,agnesi", "pair_repulsion=null,{},{radii: [1.2, 1.3]}"])
    assert [point.settings["model.pair_repulsion"] for point in points[:3]] == [None, {}, {"radii": [1.2, 1.3]}]


@pytest.mark.parametrize(
    ("vary", "sentence"),
    [
        (["lmax=1,2"], "no axis 'lmax'.* did you mean l_max"),
        (["name=a,b"], "no axis 'name'"),
        (["elephant=1"], "no axis 'elephant'.* top-level keys are data, architecture"),
        (["l_max"], "axis 'l_max' has no values"),
        (["l_max="], "axis 'l_max=' has no values"),
        (["radial_mlp=[8"], r"values of radial_mlp are '\[8'"),
        (["l_max=2020-99-99"], "values of l_max are '2020-99-99'; .* month must be"),
        (["l_max=" + "[" * 3000], "values of l_max are .* nested too deeply"),
        (["model.cutoff=4,1e300"], "cutoff=1e300: model.cutoff is 1e"),
        (["data.valid=valid.extxyz,absent.extxyz"], "valid=absent.extxyz: cannot read structures from"),
        (["data.valid=valid.extxyz,gold.extxyz"], "valid=gold.extxyz: data.valid .*frame 0. has Au"),
        (["pair_repulsion=null,{radii: [1, 1, 1]}"], "radii_1_1_1: model: pair_repulsion = .* one per species"),
        (["l_max=1,two"], "l_max=two: model: l_max = 'two' in the mace config: it must be a whole number"),
        (["l_max=1,99"], "l_max=99: model: l_max = 99 "),
        (["l_max=1,1"], "two runs would have the folder l_max=1"),
        (["l_max=1", "model.l_max=2"], "each once"),
        ([], "axes are none"),
        (["optimizer.lr=0"], "optimizer.lr is 0.0; allowed: above 0"),
        (["optimizer.speed=3"], "unknown key 'speed' in optimizer; allowed: algorithm, lr"),
        (["architecture.lr=0"], "architecture is no section of the configuration"),
        (["architecture=mace,nequip", "correlation=1,3"], "architecture=nequip,correlation=3: model: correlation = 3 "),
        (["architecture=mace,gap"], "architecture is 'gap'; allowed: mace, nequip, botnet"),
        ([f"seed={','.join(map(str, range(40)))}", f"l_max={','.join(map(str, range(40)))}"], "more than 1000 runs"),
    ],
)
def test_a_wrong_axis_or_value_is_one_sentence_before_anything_is_trained(vary, sentence, config):
    ase.io.write(config.parent / "gold.extxyz", labelled("Au", 0))
    with pytest.raises(InputError, match=sentence):
        quietly(config, vary)
    assert not (config.parent / "run").exists()


def test_data_that_points_have_in_common_are_read_once(raw, config, monkeypatch):
    reads = []

    def read(config, root):
        reads.append(config.data)
        return load_sets(config, root)

    monkeypatch.setattr("ase_equivariant.training.ablate.load_sets", read)
    check_data(grid(raw, ["loss.forces=1,10,0", "l_max=0,1", "data.batch_size=2"]), config.parent)
    assert len(reads) == 2  # with and without forces


def test_at_least_one_job_is_needed(config):
    with pytest.raises(InputError, match="jobs is 0; it must be 1 or more"):
        quietly(config, ["l_max=1"], jobs=0)
