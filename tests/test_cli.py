"""The command line: what it prints and writes, its exit codes, and one sentence for everything a user can put right."""

import errno
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read, write
from ase.io.trajectory import TrajectoryWriter
from tiny import tiny_potential

from ase_equivariant import EquivariantCalculator, available_models, inference, load_potential, save_potential, zoo
from ase_equivariant.cli import common
from ase_equivariant.cli.main import main
from ase_equivariant.golden import golden_structures

HEAVY = ("torch", "ase", "numpy", "matplotlib", "e3nn", "lightning")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model file with everything that a header can hold, and a second head."""
    potential = tiny_potential(dtype=torch.float32, heads=("pbe", "r2scan"))
    crystal = bulk("Si", cubic=True)
    crystal.rattle(0.05, seed=0)
    potential.metadata.update(
        name="tiny",
        default_head="pbe",
        level_of_theory="PBE [plane waves]",
        license="MIT",
        citation="Nobody, J. Irreprod. Res. 1, 1",
        errors={"test": {"energy_meV_per_atom": 1.25, "forces_meV_per_A": 20.5}},
        provenance={"seed": 1, "structures": {"train": 10, "validation": [1, 2]}},
    )
    potential.metadata["golden"] = golden_structures(potential, [crystal])
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save_potential(potential, path)
    return path


@pytest.fixture
def silicon(tmp_path):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=0)
    write(tmp_path / "si.xyz", atoms)
    return tmp_path / "si.xyz"


@pytest.fixture
def run(capsys):
    """Run a command; gives its exit code, stdout and stderr."""

    def runner(*args):
        with pytest.raises(SystemExit) as end:
            main([str(arg) for arg in args])
        return end.value.code or 0, *capsys.readouterr()

    return runner


@pytest.mark.parametrize(
    "command", ["", "models", "info", "convert", "evaluate", "relax", "md", "benchmark", "train", "export"]
)
def test_help_imports_nothing_heavy(command):
    code = f"""
import sys
from ase_equivariant.cli.main import main
try:
    main({[command, "--help"] if command else ["--help"]})
except SystemExit:
    print(sorted(set({HEAVY}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_models_lists_what_is_shipped(run, model, monkeypatch):
    monkeypatch.setattr(zoo, "MODELS", model.parent)
    code, out, _ = run("models")
    assert code == 0
    assert all(word in out for word in ("tiny", "H C O Si Cu", "4 Å", "PBE [plane waves]", "MIT"))


def test_names_and_licences_stay_whole_on_a_narrow_terminal(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("models")[1].splitlines()
    assert len(available_models()) == 10
    for name in available_models():
        assert next(line for line in lines if name in line).rstrip().endswith("MIT")


def test_a_terminal_that_knows_ascii_only_gets_question_marks(model):
    command = [sys.executable, "-m", "ase_equivariant.cli.main", "info", str(model), "--verify"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert b"6x0e+6x1o" in done.stdout
    assert b"forces (eV/?)" in done.stdout


def test_models_says_so_when_nothing_is_shipped(run, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "MODELS", tmp_path)
    assert "No models are shipped" in run("models")[1]


def test_models_lists_what_is_published(run):
    out = run("models")[1]
    for name in available_models(published=True):
        assert name in out
    row = next(line for line in out.splitlines() if "mace-off23-small" in line)
    assert all(word in row for word in ("10", "ωB97M", "ASL*"))


def test_a_licence_is_accepted_on_the_command_line(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ASE_EQUIVARIANT_CACHE", str(tmp_path))
    assert "ASL*" in run("models")[1]
    code, _, err = run("info", "mace-off23-small")
    assert code == 2
    assert "--accept ASL" in err
    assert run("models", "--accept", "mace-off23-small")[:2] == (0, "Accepted: ASL\n")
    assert "ASL*" not in run("models")[1]
    assert run("models", "--accept", "GPL")[0] == 2


def test_convert_keeps_what_is_asked_for(run, model, tmp_path):
    small = tmp_path / "small.safetensors"
    about = ("--license", "CC0-1.0", "--name", "small", "--level-of-theory", "PBE")
    code, out, _ = run("convert", model, "-o", small, "--elements", "Si,O", "--head", "r2scan", *about)
    assert code == 0
    assert all(word in out for word in ("O Si; heads: r2scan", "2 golden structures", "small.safetensors"))
    code, out, _ = run("info", small, "--verify")
    assert code == 0
    assert all(word in out for word in ("CC0-1.0", "name: small", "restricted to: O Si of 5 elements", "tiny.safeten"))
    energies = [
        EquivariantCalculator(f, backend="eager", head="r2scan").get_potential_energy(bulk("Si"))
        for f in (model, small)
    ]
    assert energies[0] == pytest.approx(energies[1], abs=1e-6)


def test_info_shows_the_header_and_what_an_isolated_atom_gives(run, model):
    code, out, _ = run("info", model, "--all")
    assert code == 0
    words = ("hidden irreps: 6x0e+6x1o", "cutoff: 4", "PBE [plane waves]", "MIT", "Nobody", "1.25", "validation: 1, 2")
    assert all(word in out for word in (*words, "sha256", "golden structures: 1"))
    alone = Atoms("Si")
    for head in ("pbe", "r2scan"):
        alone.calc = EquivariantCalculator(model, dtype="float64", head=head)
        row = next(line.split() for line in out.splitlines() if line.split()[:2] == ["Si", head])
        assert float(row[-1]) == pytest.approx(alone.get_potential_energy(), abs=1e-6)


def test_info_of_a_universal_model_fits_a_screen(run, tmp_path):
    many = tiny_potential(atomic_numbers=tuple(range(1, 90)), attributes=(("charge", -1, 2, 0),), correlation=1)
    groups = {"all": {"energy": 1.25}, **{symbol: {"energy": 3.75} for symbol in ("Si", "Cu")}}
    many.metadata["errors"] = {"units": {"energy": "meV/atom"}, "test": {"near": groups, "far": groups}}
    save_potential(many, tmp_path / "many.safetensors")
    code, brief, _ = run("info", tmp_path / "many.safetensors")
    assert code == 0
    assert len(brief.splitlines()) <= 25
    words = (
        "H He Li",
        "Fr Ra Ac",
        "cutoff: 4",
        "atoms.info['charge']: -1 to 2",
        "errors: energy meV/atom",
        "test far",
        "1.25",
    )
    assert [word for word in words if word not in brief] == []
    assert "3.75" not in brief
    full = run("info", tmp_path / "many.safetensors", "--all")[1]
    assert "3.75" in full
    assert sum(line.split()[1:2] == ["default"] for line in full.splitlines()) == 89


def test_what_a_file_says_cannot_steer_the_terminal(run, tmp_path):
    potential = tiny_potential()
    potential.metadata.update(name="\x1b]0;owned\x07", license="\x9b2J", errors={"all\x1b[2J": {"energy\r[/]": 1.0}})
    save_potential(potential, tmp_path / "evil.safetensors")
    code, out, _ = run("info", tmp_path / "evil.safetensors")
    assert code == 0
    assert "owned" in out
    potential.metadata["golden"] = [{}]
    save_potential(potential, tmp_path / "\x1b[2J.safetensors")
    _, _, err = run("md", "none", "-m", tmp_path / "\x1b[2J.safetensors", "-o", tmp_path / "run")
    assert not set(out + err) & set("\x1b\x07\x9b\r")


def test_info_verifies_golden_structures_and_notices_wrong_ones(run, model, tmp_path):
    code, out, _ = run("info", model, "--verify")
    assert code == 0
    assert "Verified" in out
    wrong = tiny_potential()
    wrong.metadata["golden"] = golden_structures(wrong, [bulk("Si")])
    wrong.metadata["golden"][0]["energy"] += 0.1
    save_potential(wrong, tmp_path / "wrong.safetensors")
    code, out, _ = run("info", tmp_path / "wrong.safetensors", "--verify")
    assert code == 1
    assert "Wrong numbers" in out


def test_relax_converges_writes_structure_trajectory_and_log(run, model, silicon, tmp_path):
    code, out, _ = run(
        "relax", silicon, "-m", model, "-o", tmp_path / "out.vasp", "--cell", "--fmax", 0.05, "--smax", 1
    )
    assert code == 0
    assert "Converged" in out
    assert read(tmp_path / "out.vasp").get_chemical_formula() == "Si8"
    assert len(read(tmp_path / "out-relax.traj", ":")) >= 1
    assert "fmax" in (tmp_path / "out-relax.log").read_text()


def test_relax_exits_with_1_when_not_converged_and_keeps_the_structure(run, model, silicon, tmp_path):
    code, out, _ = run("relax", silicon, "-m", model, "-o", tmp_path / "out.xyz", "--fmax", 1e-9, "--steps", 2)
    assert code == 1
    assert "Not converged within 2 steps" in out
    assert len(read(tmp_path / "out.xyz")) == 8


@pytest.mark.parametrize("ensemble", ["nve", "nvt-langevin", "nvt-nhc", "npt"])
def test_md_of_a_supercell_ends_with_a_summary_and_a_picture(ensemble, run, model, silicon, tmp_path):
    options = ("--ensemble", ensemble, "--steps", 4, "--interval", 2, "--supercell", "2,1,1")
    code, out, _ = run("md", silicon, "-m", model, "-o", tmp_path / "run", *options)
    assert code == 0
    assert all(word in out for word in ("Si16 (16 atoms)", "ns/day", "temperature (K)", "pressure (GPa)", "run.png"))
    assert [len(frame) for frame in read(tmp_path / "run.traj", ":")] == [16, 16, 16]
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_md_continues_velocities_but_not_into_a_supercell(run, model, silicon, tmp_path):
    first = ("md", silicon, "-m", model, "-o", tmp_path / "first", "--steps", 2)
    assert "new velocities" in run(*first)[1]
    again = ("md", tmp_path / "first-final.xyz", "-m", model, "-o", tmp_path / "second", "--steps", 2)
    assert "its velocities continued" in run(*again)[1]
    assert "new velocities" in run(*again[:-3], tmp_path / "third", "--steps", 2, "--supercell", "2,2,2")[1]


def test_ctrl_c_ends_md_with_its_summary_and_picture(run, model, silicon, tmp_path, monkeypatch):
    calculate = EquivariantCalculator.calculate

    def interrupted(self, *args, **kwargs):
        if self.calls == 4:
            raise KeyboardInterrupt
        calculate(self, *args, **kwargs)

    monkeypatch.setattr(EquivariantCalculator, "calculate", interrupted)
    code, out, _ = run("md", silicon, "-m", model, "-o", tmp_path / "run", "--steps", 20)
    assert code == 130
    assert "Interrupted after 3 of 20 steps" in out
    assert f"To continue, run dynamics of {tmp_path}/run-final.xyz with its velocities" in out
    assert "temperature (K)" in out
    assert (tmp_path / "run.png").exists()


def test_ctrl_c_ends_a_relaxation_and_tells_where_its_steps_are(run, model, silicon, tmp_path, monkeypatch):
    calculate = EquivariantCalculator.calculate

    def interrupted(self, *args, **kwargs):
        if self.calls == 3:
            raise KeyboardInterrupt
        calculate(self, *args, **kwargs)

    monkeypatch.setattr(EquivariantCalculator, "calculate", interrupted)
    code, out, _ = run("relax", silicon, "-m", model, "-o", tmp_path / "out.xyz", "--fmax", 1e-9)
    assert code == 130
    assert "Interrupted" in out
    assert len(read(tmp_path / "out-relax.traj", ":")) == 3
    assert not (tmp_path / "out.xyz").exists()


def test_benchmark_times_every_backend_on_the_user_s_structure(run, model, silicon, monkeypatch):
    names = {name: inference.BACKENDS[name] for name in ("eager", "torchscript")}
    monkeypatch.setattr(inference, "BACKENDS", names | {"absent": ("ase_equivariant.no_such_module", "Absent")})
    code, out, _ = run("benchmark", model, silicon, "--steps", 2)
    assert code == 0
    assert "8 atoms, 128 edges" in " ".join(out.split())
    assert "absent: backend 'absent' is not available" in out
    assert re.search("torchscript +eager", out)
    columns = zip(
        *([float(x) for x in line.split()[-2:]] for line in re.findall(r"^  .*\d(?= *$)", out, re.M)), strict=True
    )
    for step, neighbours, energy, forces, per_atom, ns_per_day, memory, deviation in columns:
        assert step == pytest.approx(neighbours + energy + forces, abs=0.03)
        assert per_atom == pytest.approx(1e3 * step / 8, rel=0.01)
        assert ns_per_day == pytest.approx(86.4 / step, rel=0.05)
        assert memory > 0.1
        assert deviation < 0.1


def test_benchmark_reads_the_structure_before_it_starts_anything(run, model, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "make_calculator", lambda *_: pytest.fail("a backend was started"))
    code, _, error = run("benchmark", model, tmp_path / "missing.xyz")
    assert code == 2
    assert "there is no file" in error


def test_benchmark_takes_a_structure_of_the_model_and_prints_json(run, model, monkeypatch):
    monkeypatch.setattr(inference, "BACKENDS", {name: inference.BACKENDS[name] for name in ("eager",)})
    code, out, _ = run("benchmark", model, "--steps", 1, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["structure"] == "Si128"
    assert found["dtype"] == "float32"
    (timing,) = found["backends"]
    assert (timing["backend"], timing["atoms"]) == ("eager", 128)
    assert timing["memory"] > 1e5
    assert timing["deviation"] == 0.0


def test_evaluate_writes_results_of_all_frames_and_errors_against_labels(run, model, silicon, tmp_path):
    atoms = read(silicon)
    atoms.calc = EquivariantCalculator(model)
    atoms.get_forces()
    labelled = molecule("H2O")
    labelled.calc = EquivariantCalculator(model)
    labelled.get_forces()
    write(tmp_path / "labelled.xyz", [atoms, labelled, molecule("H2O")])
    code, out, _ = run("evaluate", tmp_path / "labelled.xyz", "-m", model, "-o", tmp_path / "out.traj")
    assert code == 0
    assert all(f"forces on {symbol}" in out for symbol in ("H", "O", "Si"))
    crystal, _, water = read(tmp_path / "out.traj", ":")
    np.testing.assert_allclose(crystal.get_forces(), atoms.get_forces(), atol=1e-5)
    assert crystal.info["ref_energy"] == pytest.approx(atoms.get_potential_energy())
    assert water.get_forces().shape == (3, 3)
    run("evaluate", f"{tmp_path / 'labelled.xyz'}@2:", "-m", model, "-o", tmp_path / "out.traj")
    assert len(read(tmp_path / "out.traj", ":")) == 1
    out = run("evaluate", f"{tmp_path / 'labelled.xyz'}@:1", "-m", model, "-o", tmp_path / "out.traj")[1]
    assert "forces (meV/Å)" in out
    assert "forces on" not in out


def test_evaluate_compares_with_labels_of_any_name(run, model, silicon, tmp_path):
    atoms = read(silicon)
    atoms.info["REF_energy"] = 1.0
    write(tmp_path / "named.xyz", atoms)
    asked = ("evaluate", tmp_path / "named.xyz", "-m", model, "-o", tmp_path / "out.traj")
    out = run(*asked)[1]
    assert "no labels" in out
    assert "--energy-key, --forces-key and --stress-key name them; there are: REF_energy" in out
    assert "energy (meV/atom)" in run(*asked, "--energy-key", "REF_energy")[1]
    code, _, error = run(*asked, "--energy-key", "REF_energy", "--forces-key", "REF_forces")
    assert code == 2
    assert "no structure has --forces-key REF_forces; there are: REF_energy" in error


def test_words_of_a_file_are_no_markup(run, model, silicon, tmp_path, monkeypatch):
    potential = load_potential(model)
    potential.heads[0] = potential.metadata["default_head"] = "[/x]"
    del potential.metadata["golden"]  # they name the head
    save_potential(potential, tmp_path / "old.safetensors")
    code, out, _ = run("convert", tmp_path / "old.safetensors", "-o", tmp_path / "a [b] c.safetensors")
    assert code == 0
    assert "heads: [/x], r2scan" in out
    absent = "ase_equivariant.[/no] such module", "Absent"
    monkeypatch.setattr(inference, "BACKENDS", {"eager": inference.BACKENDS["eager"], "absent": absent})
    code, out, _ = run("benchmark", tmp_path / "a [b] c.safetensors", silicon, "--steps", "1")
    assert code == 0
    assert "a [b] c.safetensors" in out.replace("\n", "")
    assert "[/no]" in out


def test_benchmark_of_a_model_that_no_backend_serves_says_why(run, model, silicon, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "BACKENDS", {"eager": inference.BACKENDS["eager"]})
    potential = load_potential(model)
    potential.atomic_energies += 1
    save_potential(potential, tmp_path / "wrong.safetensors")
    code, _, error = run("benchmark", tmp_path / "wrong.safetensors", silicon)
    assert code == 2
    assert "golden" in error


def test_the_head_decides_the_energy(run, model, silicon, tmp_path):
    energies = []
    for head in ("pbe", "r2scan"):
        run("evaluate", silicon, "-m", model, "-o", tmp_path / "out.xyz", "--head", head)
        energies.append(read(tmp_path / "out.xyz").get_potential_energy())
    assert abs(energies[0] - energies[1]) > 0.1


def test_export_writes_a_file_that_torch_loads(run, model, tmp_path):
    assert run("export", model, "-o", tmp_path / "model.pt")[0] == 0
    with pytest.warns(DeprecationWarning, match="torch.jit.load"):
        assert next(torch.jit.load(tmp_path / "model.pt").parameters()).dtype == torch.float32
    assert run("export", model, "-o", tmp_path / "model.pt", "--dtype", "float64")[0] == 0
    with pytest.warns(DeprecationWarning, match="torch.jit.load"):
        assert next(torch.jit.load(tmp_path / "model.pt").parameters()).dtype == torch.float64
    code, _, error = run("export", model, "-o", tmp_path / "model.pt", "--dtype", "half")
    assert code == 2
    assert "--dtype is 'half'; choose one of float32, float64" in error


BAD = {
    "no such model": (("relax", "{si}", "-m", "nope", "-o", "{out}.xyz"), "unknown model 'nope'"),
    "no such file": (("relax", "nothing.xyz", "-m", "{model}", "-o", "{out}.xyz"), "there is no file nothing.xyz"),
    "empty file": (("md", "{empty}", "-m", "{model}", "-o", "{out}"), "it is empty"),
    "not a structure": (("evaluate", "{text}", "-m", "{model}", "-o", "{out}.xyz"), "cannot read structures from"),
    "no such frame": (("relax", "{si}@7", "-m", "{model}", "-o", "{out}.xyz"), "it has no frame 7"),
    "a folder": (("relax", "{folder}", "-m", "{model}", "-o", "{out}.xyz"), "it is a directory"),
    "into a folder": (("relax", "{si}", "-m", "{model}", "-o", "{folder}"), "it is not a regular file"),
    "folder as prefix": (
        ("md", "{si}", "-m", "{model}", "-o", "{folder}"),
        "folder.xyz is a directory; give the begin",
    ),
    "file as folder": (("md", "{si}", "-m", "{model}", "-o", "{si}/run"), "is not a directory"),
    "seed": (("md", "{si}", "-m", "{model}", "-o", "{out}", "--seed", "-1"), "seed must be 0 or more; got -1"),
    "memory": (("md", "{si}", "-m", "{model}", "-o", "{out}", "--supercell", "99999,99999,99999"), "fit into memory"),
    "no such format": (("relax", "{si}", "-m", "{model}", "-o", "{out}.docx"), "ASE cannot write a file called"),
    "no such folder": (("relax", "{si}", "-m", "{model}", "-o", "{out}/x.xyz"), "there is no directory"),
    "one frame only": (("evaluate", "{two}", "-m", "{model}", "-o", "{out}.vasp"), "cannot write"),
    "ensemble": (
        ("md", "{si}", "-m", "{model}", "-o", "{out}", "--ensemble", "nvt"),
        "nve, nvt-langevin, nvt-nhc, npt",
    ),
    "temperature": (("md", "{si}", "-m", "{model}", "-o", "{out}", "--temperature", "0"), "temperature must be"),
    "supercell": (("md", "{si}", "-m", "{model}", "-o", "{out}", "--supercell", "3x3"), "three whole numbers"),
    "molecule npt": (("md", "{h2o}", "-m", "{model}", "-o", "{out}", "--ensemble", "npt"), "periodic in all three"),
    "molecule repeated": (("md", "{h2o}", "-m", "{model}", "-o", "{out}", "--supercell", "2,1,1"), "no cell vector"),
    "molecule pressed": (("relax", "{h2o}", "-m", "{model}", "-o", "{out}.xyz", "--cell"), "periodic in all three"),
    "unknown element": (("relax", "{gold}", "-m", "{model}", "-o", "{out}.xyz"), "Au"),
    "head": (("relax", "{si}", "-m", "{model}", "-o", "{out}.xyz", "--head", "mp2"), "pbe, r2scan"),
    "dtype": (("relax", "{si}", "-m", "{model}", "-o", "{out}.xyz", "--dtype", "half"), "float32, float64"),
    "not a model": (("info", "{si}"), "si.xyz"),
    "convert no model": (("convert", "{si}", "-o", "{out}.safetensors"), "si.xyz"),
    "convert unknown element": (
        ("convert", "{model}", "-o", "{out}.safetensors", "--elements", "Au"),
        "does not know Au; choose from H C O Si Cu",
    ),
    "convert unknown head": (("convert", "{model}", "-o", "{out}.safetensors", "--head", "mp2"), "pbe, r2scan"),
    "convert default head": (("convert", "{model}", "-o", "{out}.safetensors", "--default-head", "mp2"), "pbe, r2scan"),
    "convert onto itself": (("convert", "{model}", "-o", "{model}"), "is the file that is read"),
    "export onto itself": (("export", "{model}", "-o", "{model}"), "is the file that is read"),
    "evaluate onto itself": (("evaluate", "{si}@:", "-m", "{model}", "-o", "{si}"), "is the file that is read"),
    "relax onto itself": (("relax", "{si}", "-m", "{model}", "-o", "{si}"), "si.xyz is the file that is read"),
    "md onto itself": (("md", "{run}-final.xyz", "-m", "{model}", "-o", "{run}"), "run-final.xyz is the file that is"),
    "md over a run": (("md", "{si}", "-m", "{model}", "-o", "{done}"), "done.traj exists already"),
    "format": (("relax", "{notes}", "-m", "{model}", "-o", "{out}.xyz"), "ASE recognises its format neither by"),
    "no such config": (("train", "nothing.yaml"), "nothing.yaml"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_on_stderr_with_exit_code_2_and_leaves_no_file(case, run, model, silicon, tmp_path):
    files = {name: tmp_path / f"{name}.xyz" for name in ("empty", "text", "two", "h2o", "gold")}
    files["empty"].touch()
    files["text"].write_text("Lorem ipsum\ndolor sit amet\n")
    write(files["two"], [bulk("Si"), bulk("Si")])
    write(files["h2o"], molecule("H2O"))
    write(files["gold"], bulk("Au"))
    files["notes"] = tmp_path / "notes.txt"
    files["notes"].write_text("hello")
    files["run"] = tmp_path / "run"
    write(tmp_path / "run-final.xyz", bulk("Si"))
    files["done"] = tmp_path / "done"
    (tmp_path / "done.traj").touch()
    files["folder"] = tmp_path / "folder.xyz"
    files["folder"].mkdir()
    before = sorted(tmp_path.rglob("*"))
    command, words = BAD[case]
    args = [part.format(**files, si=silicon, model=model, out=tmp_path / "out") for part in command]
    code, _, err = run(*args)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["relax", "md"])
def test_a_full_disk_is_one_sentence_that_names_the_file(command, run, model, silicon, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(TrajectoryWriter, "write", full)
    code, _, err = run(command, silicon, "-m", model, "-o", tmp_path / "out.xyz")
    assert code == 2
    assert re.fullmatch(r"error: cannot write .*out.*\.traj: No space left on device; .* are kept\n", err)


def test_wrong_options_are_usage_errors(run, silicon):
    code, _, err = run("md", silicon, "--steps", "many")
    assert code == 2
    assert "Traceback" not in err


def test_our_own_mistakes_are_not_hidden(monkeypatch, silicon, model, tmp_path):
    monkeypatch.setattr(EquivariantCalculator, "calculate", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["relax", str(silicon), "-m", str(model), "-o", str(tmp_path / "out.xyz")])
