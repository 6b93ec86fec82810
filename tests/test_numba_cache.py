"""Kernels on disk: found again, made by others meanwhile, broken, or not to be had; the answer stays right."""

import errno
import multiprocessing
import os
import signal
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numba
import pytest
import torch
from ase.build import bulk
from numba.core import caching
from structures import copper
from tiny import tiny_potential

from ase_equivariant import EquivariantCalculator, inference
from ase_equivariant.graph import from_atoms
from ase_equivariant.inference import numba as backend
from ase_equivariant.inference.numba import compile as compilation

CPU = torch.device("cpu")
TINY = {"num_bessel": 2, "radial_mlp": (2,), "l_max": 1, "hidden_irreps": "1x0e", "correlation": 1}


@pytest.fixture(scope="module")
def potential():
    return tiny_potential("mace", **TINY)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache, and a backend that computes edge vectors and harmonics only: seconds to compile."""
    monkeypatch.setenv("ASE_EQUIVARIANT_CACHE", str(tmp_path))
    lower = backend.lower
    monkeypatch.setattr(backend, "lower", lambda *a, **k: replace(lower(*a, **k), stages=(), widths={}))
    return tmp_path / "kernels"


def start(potential):
    """A backend as in a new process, and the edge vectors it sees."""
    compilation._load.cache_clear()
    made = backend.Numba(potential, CPU)
    run = made._prepare(from_atoms(bulk("Cu"), potential.atomic_numbers, potential.cutoff), True, {}, [(0, 1)])
    made.geometry.forward(run, 0, 1)
    return made, run.harmonics


def compiled(folder, ending):
    return sorted(folder.glob(f"*/__pycache__/*.{ending}"))


def test_kernels_are_found_on_disk(potential, folder, caplog):
    made, expected = start(potential)
    assert made.geometry.strain.stats.cache_misses
    assert "compiling kernels" in caplog.text
    caplog.clear()
    again, found = start(potential)
    assert again.geometry.strain.stats.cache_hits
    assert not again.geometry.strain.stats.cache_misses
    assert caplog.text == ""
    assert (found == expected).all()
    assert abs(found).max() > 1.0


def test_broken_code_is_compiled_anew(potential, folder, caplog):
    _, expected = start(potential)
    for file in compiled(folder, "nbc"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 255
        file.write_bytes(data)
    made, found = start(potential)
    assert "compiled anew" in caplog.text
    assert made.geometry.strain.stats.cache_misses
    assert (found == expected).all()


def test_a_source_that_was_tampered_with_is_written_anew(potential, folder):
    start(potential)
    (path,) = folder.glob("*/kernels.py")
    text = path.read_text()
    path.write_text(text.replace("1.0", "2.0"))
    start(potential)
    assert path.read_text() == text


def test_a_broken_index_costs_one_warning_and_is_gone_afterwards(potential, folder):
    _, expected = start(potential)
    for file in compiled(folder, "nbi"):
        file.write_bytes(file.read_bytes()[:20])
    with pytest.warns(UserWarning, match="cache cannot be used") as caught:
        _, found = start(potential)
    assert len(caught) == 1
    assert (found == expected).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made, _ = start(potential)
    assert made.geometry.strain.stats.cache_misses
    assert list(folder.glob("*/sealed.json"))


def test_a_killed_compilation_leaves_nothing_that_harms(potential, folder):
    child = os.fork()
    if child == 0:
        try:
            start(potential)
        finally:  # whatever happens, it is no second test process
            os._exit(0)
    while not compiled(folder, "nbc"):
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not list(folder.glob("*/sealed.json"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start(potential)
    assert list(folder.glob("*/sealed.json"))


def test_a_full_disk_costs_one_warning(potential, folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _, expected = start(potential)
    compilation.shutil.rmtree(folder)
    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    with pytest.warns(UserWarning, match="No space left") as caught:
        _, found = start(potential)
    assert len(caught) == 1
    assert (found == expected).all()


def test_a_cache_that_cannot_be_written_costs_one_warning(potential, folder, tmp_path, monkeypatch, caplog):
    _, expected = start(potential)
    assert "once on this machine" in caplog.text
    caplog.clear()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ASE_EQUIVARIANT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="ASE_EQUIVARIANT_CACHE names another folder") as caught:
        _, found = start(potential)
    assert len(caught) == 1
    assert "compiling kernels" in caplog.text
    assert "once on this machine" not in caplog.text
    assert (found == expected).all()


def _numba_is_missing(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("ase_equivariant.inference.numba")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)


def _numba_is_too_old(monkeypatch):
    def njit(**options):
        raise TypeError(f"unknown option: {options}")

    monkeypatch.setattr(numba, "njit", njit)


@pytest.mark.parametrize("fault", [_numba_is_missing, _numba_is_too_old])
def test_without_a_working_numba_another_backend_answers_with_one_warning(potential, folder, monkeypatch, fault):
    monkeypatch.setitem(inference.FASTEST_FIRST, "cpu", ("numba", "eager"))
    fault(monkeypatch)
    with pytest.warns(UserWarning, match="backend 'numba'.*another backend is used instead") as caught:
        calc = EquivariantCalculator(potential, device="cpu")
    assert len(caught) == 1
    assert calc.parameters["backend"] == "eager"
    reference = EquivariantCalculator(potential, device="cpu", backend="eager")
    assert (calc.get_forces(copper()) == reference.get_forces(copper())).all()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


def test_compiling_in_the_background_serves_the_next_calculator(potential, cache, tmp_path, monkeypatch):
    (tmp_path / "numba.py").write_text("raise ImportError('a file in the working folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASE_EQUIVARIANT_CACHE", str(cache))
    monkeypatch.setitem(inference.FASTEST_FIRST, "cpu", ("numba", "eager"))
    with pytest.warns(UserWarning, match="compiled in the background.*another backend") as caught:
        first = EquivariantCalculator(potential, device="cpu", background_compile=True)
    assert len(caught) == 1
    atoms = copper()
    first.warm_up(atoms)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = EquivariantCalculator(potential, device="cpu", background_compile=True)
    second.warm_up(atoms)
    assert (first.parameters["backend"], second.parameters["backend"]) == ("eager", "numba")
    assert first.calls == second.calls == 1
    eager, fast = first.get_forces(atoms), second.get_forces(atoms)
    assert abs(eager - fast).max() < 1e-4 * abs(eager).max()
    assert second.calls == 1


def test_a_spawned_process_computes_the_same_with_kernels_from_disk(potential, cache, monkeypatch):
    monkeypatch.setenv("ASE_EQUIVARIANT_CACHE", str(cache))
    calc, atoms = EquivariantCalculator(potential, device="cpu", backend="numba"), copper()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(EquivariantCalculator.get_forces, (calc, atoms))
    assert calc.calls == 0
    assert (found == calc.get_forces(atoms)).all()
    assert calc.calls == 1
    assert len(list(cache.glob("kernels/*/kernels.py"))) == len(list(cache.glob("kernels/*/sealed.json")))


def test_calculators_are_made_and_used_in_two_threads(potential, cache, monkeypatch):
    monkeypatch.setenv("ASE_EQUIVARIANT_CACHE", str(cache))

    def forces(seed):
        calc, atoms = EquivariantCalculator(potential, device="cpu", backend="numba"), copper().repeat((3, 3, 2))
        atoms.rattle(0.05, seed=seed)
        return [calc.get_forces(atoms * (1, 1, n)) for n in (1, 2, 1)]

    expected = [forces(seed) for seed in range(4)]
    compilation._load.cache_clear()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(forces, range(4)))
    for one, other in zip(found, expected, strict=True):
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
    assert (expected[0][0] != expected[1][0]).any()
