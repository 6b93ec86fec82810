"""The comparison with other programs, without any of them: agreement, limits, failures and the table."""

import json
import re
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import tiny_potential

from ase_equivariant import EquivariantCalculator, save_potential

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers"
RESULTS = PEERS.parent / "results"
sys.path.append(str(PEERS))
import turns  # noqa: E402
from calculators import CALCULATORS  # noqa: E402
from cases import CASES, silicon, water  # noqa: E402
from environments import PACKAGES, NotInstalledError, interpreter  # noqa: E402
from floor import flop_per_atom  # noqa: E402
from summary import brief, draw, of_peak, tables  # noqa: E402


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return turns.Setting(peers=tmp_path_factory.mktemp("peers"), threads=1, memory=16.0, turns=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    file = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_potential(tiny_potential(), file)
    return file


@pytest.fixture
def no_peer_installs(monkeypatch):
    def refuse(name, folder):
        raise NotInstalledError(f"no {name} today")

    monkeypatch.setattr(turns, "interpreter", refuse)


def side(potential, atoms, dtype="float32"):
    """What a process of this potential would have said."""
    atoms.calc = EquivariantCalculator(potential, device="cpu", dtype=dtype, backend="eager")
    results = {"forces": atoms.get_forces().tolist(), "energy": atoms.get_potential_energy()}
    return SimpleNamespace(results=results, failed="")


def test_equal_models_agree_and_one_weight_more_is_a_disagreement():
    atoms, potential, other = silicon(8), tiny_potential(), tiny_potential()
    other.architecture.layers[0].linear.maps[0].weight.data.mul_(1.05)
    sides = side(potential, atoms), side(potential, atoms, "float64"), side(other, atoms)
    turns.compare(sides)
    assert [one.failed[:9] for one in sides] == ["", "", "disagrees"]
    assert 0 < sides[1].agreement["forces_eV_per_A"] < 1e-4 < sides[2].agreement["forces_eV_per_A"]


def test_a_side_that_nobody_confirms_is_wrong_even_where_it_is_first():
    atoms, potential, other = silicon(8), tiny_potential(), tiny_potential()
    other.architecture.layers[0].linear.maps[0].weight.data.mul_(1.05)
    broken = side(potential, atoms)
    broken.results["energy"] = float("nan")
    sides = broken, side(other, atoms), side(potential, atoms), side(potential, atoms, "float64")
    turns.compare(sides)
    assert [one.failed[:9] for one in sides] == ["disagrees", "disagrees", "", ""]


def test_a_side_is_timed_and_one_that_does_not_install_is_an_entry(model, setting, no_peer_installs, tmp_path):
    names = ("ours, eager", "mace-torch")
    sides = turns.measure(names, model, silicon(8), setting)
    ours = sides["ours, eager"]
    assert ours["ms"] > 0
    assert ours["ratio"]["median"] == 1
    assert ours["peak_memory_MiB"] > 50
    machine = {"processor": "a processor", "sgemm_GFLOP_per_s": 100, "copy_GB_per_s": 10.0}
    entry = {"what": "tiny", "turns": 1, "threads": 1, "memory_limit_GiB": 16.0, "machine": machine, "sides": sides}
    results = {"tiny": {str(n): {**entry, "atoms": n} for n in (8, 64)}}
    table = tables(json.loads(json.dumps(results)))
    assert table.count("| 64 |") == 2
    assert "does not install: no mace today" in table
    assert "| tiny | 8 | " in brief([results["tiny"]["8"]])
    assert f"| mace-torch does not install: no mace today | ours {ours['peak_memory_MiB']} |" in brief(
        [results["tiny"]["8"]]
    )
    draw(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_operations_are_counted_for_mace_and_shown_as_a_share_of_the_peak():
    """The model of 128x0e+128x1o in bulk silicon: ten million, more than twice those of 128x0e."""
    atoms = silicon(64)
    scalar, vector = (flop_per_atom(CASES["cpu"][name], atoms) for name in ("silicon", "silicon-1o"))
    assert flop_per_atom(CASES["cpu"]["water"], water(24)) is None
    assert 4.0e6 < scalar < 5.0e6
    assert 9.0e6 < vector < 10.0e6
    entry = {"flop_per_atom": scalar, "atoms": 64, "machine": {"sgemm_GFLOP_per_s": 100}}
    assert of_peak(entry, ms=1e-6 * 64 * scalar / 50) == "50%"


def test_a_process_that_needs_more_than_its_share_is_out_of_memory(model, setting):
    """The control is the test above: the same model and structure within 16 GiB."""
    small = turns.Setting(setting.peers, threads=1, memory=0.1, turns=1)
    file = setting.peers / "structure.traj"
    silicon(8).write(file)
    starved = turns.Side("ours, eager", model, file, small)
    starved.start()
    starved.end()
    assert starved.failed == "out of memory"


def test_a_run_on_a_gpu_names_it_and_lives_without_the_first_side():
    machine = {"gpu": "a GPU", "driver": "1.2", "processor": "a processor"}
    peaks = {"sgemm_GFLOP_per_s": 100, "copy_GB_per_s": 10.0}
    row = {"ms": 2.0, "ratio": {"median": 1.0, "min": 1.0, "max": 1.0}, "agreement": {}, "peak_memory_MiB": None}
    sides = {"ours, triton": {"failed": "RuntimeError: no", "agreement": {}}, "mace-torch": row}
    settings = {"what": "tiny", "turns": 1, "threads": 1, "memory_limit_GiB": None, "machine": {**machine, **peaks}}
    entry = {**settings, "atoms": 8, "sides": sides}
    table = tables({"tiny": {"8": entry}})
    assert "8 atoms, 1 turns: a GPU, whose memory is meant, driver 1.2, beside 1 threads" in table
    assert "| 8 | mace-torch | 2 | 250 | 1.0 (1.0–1.0) | – | – |" in table
    assert "| tiny | 8 | RuntimeError: no | mace-torch 1.0 (1.0–1.0) | – |" in brief([entry])


def test_a_carried_environment_runs_this_python_with_its_packages_first(tmp_path):
    (tmp_path / "numpy.py").write_text("carried = True")
    with tarfile.open(tmp_path / "peers.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "numpy.py", "site/numpy.py")
    unpack = runpy.run_path(str(PEERS.parent / "device" / "peers.py"))["unpack"]
    unpack(tmp_path / "peers.tar.xz", tmp_path / "there")
    pythons = {interpreter(name, tmp_path / "there") for name, _ in turns.PEERS["cuda"].values()}
    assert len(pythons) == 3
    for python in pythons:
        subprocess.run([python, "-c", "import numpy; assert numpy.carried"], check=True)


@pytest.mark.parametrize(
    ("name", "device", "count"), [("peers", "cpu", len(CASES["cpu"]) - 1), ("peers_cuda", "cuda", 2)]
)
def test_stored_tables_are_those_of_the_stored_results(name, device, count):
    """On a CPU all cases but the one over sizes are headlines."""
    results = json.loads((RESULTS / f"{name}.json").read_text())
    headlines = runpy.run_path(str(PEERS / "run.py"))["headlines"](results, CASES[device])
    assert (RESULTS / f"{name}.md").read_text() == tables(results)
    assert (RESULTS / f"{name}_brief.md").read_text() == brief(headlines)
    assert len(headlines) == count


def test_times_of_calls_in_the_readme_are_the_measured_ones():
    calls = re.findall(
        r"^triton (\d+) call ([\d.]+) ms", (RESULTS / "triton_check.txt").read_text(), flags=re.MULTILINE
    )
    readme = (PEERS.parents[1] / "README.md").read_text()
    told = re.findall(r"([\d.]+) ms (?:per call )?for ([\d,]+)", readme)
    assert told == [(f"{float(ms):.3g}", f"{int(atoms):,}") for atoms, ms in calls]
    assert len(told) == 3


@pytest.mark.parametrize("device", CASES)
def test_every_case_is_whole(device):
    for case in CASES[device].values():
        assert case.sides[0].startswith("ours")
        assert set(case.sides) <= set(CALCULATORS)
        assert [name for group in turns.groups(case.sides, device) for name in group] == list(case.sides)
        peers = [turns.PEERS[device][name][0] for name in case.sides if not name.startswith("ours")]
        assert peers
        assert all(name in PACKAGES for name in peers)
        assert all(len(case.structure(n)) == n for n in case.sizes)


def test_molecules_of_water_are_not_on_top_of_one_another():
    distances = water(192).get_all_distances(mic=True)
    assert distances[distances > 0].min() > 0.9  # Å
