"""The scripted potential gives the eager one's numbers: in the calculator's backend, and from a file anywhere."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculatorSetupError, InputError
from ase.stress import full_3x3_to_voigt_6_stress
from tiny import tiny_potential

from ase_equivariant.derivatives import predict
from ase_equivariant.graph import from_atoms
from ase_equivariant.inference import torchscript
from ase_equivariant.inference.torchscript import ExportedPotential, TorchScript, export

CPU = torch.device("cpu")
NAMES = ("energy", "energies", "forces", "stress")


def rattled(atoms: Atoms) -> Atoms:
    atoms.rattle(0.1, seed=5)
    return atoms


def triclinic() -> Atoms:
    cell = [[4.1, 0.2, -0.3], [1.3, 3.9, 0.4], [-0.8, 1.1, 4.4]]
    return Atoms("SiCO", scaled_positions=[[0.1, 0.2, 0.0], [0.6, 0.5, 0.4], [1.2, -0.3, 0.8]], cell=cell, pbc=True)


STRUCTURES = {
    "molecule": rattled(molecule("CH3CH2OH")),
    "crystal": rattled(bulk("Si", cubic=True)),
    "triclinic": triclinic(),
    "left-handed": Atoms(
        "CuC", positions=[[0, 0, 0], [1.5, 1.3, 1.7]], cell=[[0, 3, 0], [3, 0, 0], [0, 0, 3.2]], pbc=True
    ),
    "cell much smaller than the cutoff": bulk("Cu"),
    "one atom without edges": Atoms("C"),
    "two atoms beyond the cutoff": Atoms("CO", positions=[[0, 0, 0], [9, 0, 0]], cell=[20, 20, 20]),
}


def eager(potential, atoms: Atoms, head: int = 0) -> dict[str, np.ndarray]:
    prediction = predict(potential, from_atoms(atoms, potential.atomic_numbers, potential.cutoff, head=head))
    with np.errstate(invalid="ignore", divide="ignore"):
        strain = prediction.strain_gradient[0].numpy() / np.float64(atoms.cell.volume)
    stress = full_3x3_to_voigt_6_stress(strain) if atoms.cell.rank == 3 else np.full(6, np.nan)
    tensors = (prediction.energy[0], prediction.node_energies, prediction.forces)
    return {**{name: tensor.numpy() for name, tensor in zip(NAMES, tensors, strict=False)}, "stress": stress}


def inputs(potential, atoms: Atoms, cutoff: float = 0.0) -> list[torch.Tensor]:
    """What the exported module takes, with the edges of a list up to `cutoff`, the potential's own by default."""
    graph = from_atoms(atoms, potential.atomic_numbers, cutoff or potential.cutoff)
    numbers = torch.tensor(atoms.numbers, dtype=torch.int64)
    return [graph.positions, graph.cell[0], numbers, graph.senders, graph.receivers, graph.shifts]


def load(path, **options) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(path, **options)


def run(module: torch.jit.ScriptModule, tensors: list[torch.Tensor]) -> dict[str, np.ndarray]:
    """Without the optimising executor, whose compilation takes longer than the tests' tiny models."""
    with torch.jit.optimized_execution(False):
        return numbers(module(*tensors))


def numbers(outputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    assert sorted(outputs) == sorted(NAMES)
    assert {tensor.dtype for tensor in outputs.values()} == {torch.float64}
    return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}


def error(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Largest difference of any result; NaN must stand where NaN is expected."""
    for name in NAMES:
        assert found[name].shape == expected[name].shape
        np.testing.assert_array_equal(np.isnan(found[name]), np.isnan(expected[name]))
    return max(np.nanmax(np.abs(found[n] - expected[n]), initial=0.0) for n in NAMES)


@pytest.fixture(scope="module")
def potential():
    return tiny_potential()


@pytest.fixture(scope="module")
def path(potential, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "tiny.pt"
    export(potential, path)
    return path


@pytest.fixture(scope="module")
def module(path):
    return load(path)


def test_an_exported_file_gives_the_eager_numbers_for_any_structure_at_every_call(potential, module):
    worst = [
        error(numbers(module(*inputs(potential, atoms))), eager(potential, atoms))
        for _ in range(2)  # the executor compiles after its first call, and again when sizes change
        for atoms in STRUCTURES.values()
    ]
    assert max(worst) < 1e-10


def test_an_exported_file_has_the_precision_and_the_weights_of_its_potential(potential, tmp_path):
    crystal = STRUCTURES["crystal"]
    single = potential.astype(torch.float32)
    export(single, tmp_path / "single.pt")
    found = run(load(tmp_path / "single.pt"), inputs(single, crystal))
    assert 0 < error(found, eager(potential, crystal)) < 1e-4
    assert error(found, eager(single, crystal)) < 1e-5
    assert error(found, eager(tiny_potential(correlation=2), crystal)) > 1e-2


def test_the_energies_sum_to_the_energy(potential, module):
    found = module(*inputs(potential, STRUCTURES["molecule"]))
    assert float(found["energies"].sum()) == pytest.approx(float(found["energy"]), abs=1e-12)
    assert found["energies"].std() > 0.01


def test_forces_of_an_exported_file_are_finite_differences_of_its_energy(potential, module):
    positions, *rest = inputs(potential, STRUCTURES["triclinic"])
    step = 1e-4
    displaced = [
        positions + sign * step * torch.eye(9, dtype=torch.float64).view(9, 3, 3)[k]
        for k in range(9)
        for sign in (1, -1)
    ]
    energies = torch.stack([module(x, *rest)["energy"] for x in displaced]).view(9, 2)
    expected = -(energies[:, 0] - energies[:, 1]) / (2 * step)
    torch.testing.assert_close(module(positions, *rest)["forces"].flatten(), expected, rtol=0, atol=1e-6)
    assert expected.abs().max() > 1e-2


def test_stress_of_an_exported_file_is_the_finite_difference_of_its_energy(potential, module):
    positions, cell, *rest = inputs(potential, STRUCTURES["triclinic"])
    step, expected = 1e-5, []
    for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        strain = torch.zeros(3, 3, dtype=torch.float64)
        strain[i, j] += step / 2
        strain[j, i] += step / 2
        up, down = (torch.eye(3, dtype=torch.float64) + sign * strain for sign in (1, -1))
        difference = (
            module(positions @ up, cell @ up, *rest)["energy"] - module(positions @ down, cell @ down, *rest)["energy"]
        )
        expected.append(difference / (2 * step) / torch.linalg.det(cell).abs())
    found = module(positions, cell, *rest)["stress"]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-6)
    assert found.abs().min() > 1e-4


@pytest.mark.parametrize("cell", [np.zeros((3, 3)), np.diag([5.0, 5.0, 0.0]), np.arange(1.0, 10.0).reshape(3, 3)])
def test_stress_without_a_volume_is_nan_and_nothing_else_is(cell, potential, module):
    positions, _, *rest = inputs(potential, STRUCTURES["molecule"])
    found = module(positions, torch.from_numpy(cell), *rest)
    assert found["stress"].isnan().all()
    assert not any(found[name].isnan().any() for name in ("energy", "energies", "forces"))
    assert not module(positions, 9.0 * torch.eye(3), *rest)["stress"].isnan().any()


def test_a_process_that_never_imports_the_package_runs_an_exported_file(potential, path, tmp_path):
    crystal = STRUCTURES["crystal"]
    np.savez(tmp_path / "inputs.npz", *[tensor.numpy() for tensor in inputs(potential, crystal)])
    program = """if True:
        import json, sys, numpy, torch
        arrays = numpy.load(sys.argv[2])
        module = torch.jit.load(sys.argv[1])
        outputs = module(*[torch.from_numpy(arrays[f"arr_{i}"]) for i in range(6)])
        foreign = sorted({name.split(".")[0] for name in sys.modules} & {"ase_equivariant", "ase", "e3nn"})
        print(json.dumps([foreign, {name: tensor.tolist() for name, tensor in outputs.items()}]))
    """
    command = [sys.executable, "-I", "-W", "ignore", "-c", program, str(path), str(tmp_path / "inputs.npz")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    foreign, outputs = json.loads(done.stdout)
    assert foreign == []
    assert error({name: np.array(values) for name, values in outputs.items()}, eager(potential, crystal)) < 1e-10


@pytest.mark.parametrize("number", [79, 7, 0, -1, 1000])
def test_an_unknown_element_is_named_with_the_elements_of_the_model(number, potential, module):
    positions, cell, atomic_numbers, *rest = inputs(potential, STRUCTURES["molecule"])
    atomic_numbers[4] = number
    message = rf"atom 4 has atomic number {number}, .* its elements are H \(1\), C \(6\), O \(8\), Si \(14\), Cu \(29\)"
    with pytest.raises(torch.jit.Error, match=message):
        module(positions, cell, atomic_numbers, *rest)


def test_metadata_says_what_the_file_is_and_leaves_the_golden_structures_out(tmp_path):
    potential = tiny_potential(atomic_numbers=(1, 8), heads=("pbe", "r2scan"), dtype=torch.float32)
    potential.metadata.update(name="tiny", license="MIT", citation="", golden=[{"energy": 1.0}], default_head="r2scan")
    export(potential, tmp_path / "tiny.pt")
    extra = {"metadata.json": ""}
    load(tmp_path / "tiny.pt", _extra_files=extra)
    metadata = json.loads(extra["metadata.json"])
    assert metadata["elements"] == ["H", "O"]
    assert metadata["atomic_numbers"] == [1, 8]
    assert metadata["cutoff"] == potential.cutoff
    assert metadata["dtype"] == "float32"
    assert (metadata["heads"], metadata["head"]) == (["pbe", "r2scan"], "r2scan")
    assert metadata["units"]["forces"] == "eV/Å"
    assert (metadata["name"], metadata["license"]) == ("tiny", "MIT")
    assert metadata["format_version"] == 1
    assert "golden" not in metadata


def test_one_head_is_exported_the_one_asked_for_or_the_default(tmp_path):
    potential = tiny_potential(heads=("pbe", "r2scan"))
    atoms = STRUCTURES["triclinic"]
    results = [eager(potential, atoms, head) for head in (0, 1)]
    export(potential, tmp_path / "asked.pt", head="r2scan")
    found = run(load(tmp_path / "asked.pt"), inputs(potential, atoms))
    assert error(found, results[1]) < 1e-10
    assert error(found, results[0]) > 1e-2
    with pytest.raises(InputError, match="no default; choose one of pbe, r2scan"):
        export(potential, tmp_path / "none.pt")
    potential.metadata["default_head"] = "pbe"
    export(potential, tmp_path / "default.pt")
    assert error(run(load(tmp_path / "default.pt"), inputs(potential, atoms)), results[0]) < 1e-10


def test_strided_other_precision_and_superfluous_inputs_give_the_same_numbers(potential, module):
    atoms = STRUCTURES["crystal"]
    plain = inputs(potential, atoms)
    expected = run(module, plain)
    strided = [torch.stack([tensor, -tensor], -1)[..., 0] for tensor in plain]
    strided[1] = plain[1].t().contiguous().t()
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert error(run(module, strided), expected) < 1e-12
    assert error(run(module, [*plain[:5], plain[5].long()]), expected) == 0
    single = run(module, [plain[0].float(), *plain[1:]])
    assert 0 < error(single, expected) < 1e-3
    wider = inputs(potential, atoms, cutoff=potential.cutoff + 1)
    assert len(wider[3]) > len(plain[3])
    assert error(run(module, wider), expected) < 1e-10


def test_a_caller_that_switched_gradients_off_gets_forces_and_keeps_them_off(potential, module):
    with torch.no_grad():
        found = numbers(module(*inputs(potential, STRUCTURES["molecule"])))
        assert not torch.is_grad_enabled()
    assert error(found, eager(potential, STRUCTURES["molecule"])) < 1e-10
    assert torch.is_grad_enabled()


def test_no_device_is_baked_into_an_exported_file(potential, path):
    """A tensor made without a device is "meta" here, and cannot meet the others."""
    with zipfile.ZipFile(path) as archive:
        code = "".join(archive.read(name).decode() for name in archive.namelist() if name.endswith(".py"))
    assert "prim.device(" in code
    assert "torch.device(" not in code
    atoms = STRUCTURES["triclinic"]
    own, tensors = ExportedPotential(potential, 0), inputs(potential, atoms)
    with torch.device("meta"):
        found = own(*tensors)
        with pytest.raises(RuntimeError, match="device"):
            torch.zeros(3, 3).index_add(0, tensors[3][:1], tensors[0][:1])
    assert error(numbers(found), eager(potential, atoms)) < 1e-10


def test_a_device_that_is_not_there_is_refused(potential, tmp_path):
    with pytest.raises(InputError, match="cannot put the model on device 'gpu'.*map_location"):
        export(potential, tmp_path / "tiny.pt", device="gpu")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_what_was_there(potential, tmp_path, monkeypatch):
    target = tmp_path / "tiny.pt"
    target.write_text("before")

    def no_space(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_space)
        with pytest.raises(InputError, match=r"cannot write .*tiny\.pt: No space left on device; nothing was changed"):
            export(potential, target)
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.pt"]
    assert target.read_text() == "before"
    export(potential, target)
    assert target.read_bytes() != b"before"
    with pytest.raises(InputError, match="No such file or directory"):
        export(potential, tmp_path / "nowhere" / "tiny.pt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_backend_gives_the_eager_numbers_for_a_batch_of_two_heads(dtype):
    potential = tiny_potential(heads=("pbe", "r2scan"), dtype=dtype)
    backend = TorchScript(potential, CPU)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]
    for atoms in STRUCTURES.values():
        graph = from_atoms(atoms, potential.atomic_numbers, potential.cutoff, head=1)
        found, expected = backend(graph, True), predict(potential, graph)
        for name in ("energy", "node_energies", "forces", "strain_gradient"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=tolerance)
        other = backend(replace(graph, heads=torch.zeros_like(graph.heads)), True)
        assert (other.energy - expected.energy).abs().max() > 1e-2


def test_the_backend_repeats_its_numbers_bit_for_bit_from_the_first_call_on(potential):
    backend = TorchScript(potential, CPU)
    graphs = [from_atoms(atoms, potential.atomic_numbers, potential.cutoff) for atoms in STRUCTURES.values()]
    first = [backend(graph, True).forces for graph in graphs]
    for _ in range(3):
        for graph, forces in zip(graphs, first, strict=True):
            assert torch.equal(backend(graph, True).forces, forces)
    assert not torch.equal(first[0], torch.zeros_like(first[0]))


def test_the_backend_computes_no_gradient_for_energies_alone(potential, monkeypatch):
    backend = TorchScript(potential, CPU)
    graph = from_atoms(STRUCTURES["crystal"], potential.atomic_numbers, potential.cutoff)
    energy = backend(graph, True).energy

    def refuse(*_, **__):
        raise AssertionError("a gradient")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    prediction = backend(graph, False)
    torch.testing.assert_close(prediction.energy, energy, rtol=0, atol=1e-12)
    assert prediction.forces is None
    assert not prediction.energy.requires_grad
    with pytest.raises(AssertionError, match="a gradient"):
        backend(graph, True)


def test_export_and_backend_leave_torch_and_its_warnings_as_they_were(potential, tmp_path, recwarn):
    def state():
        return (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch._C._get_graph_executor_optimize(),
            torch.random.get_rng_state().sum().item(),
            list(warnings.filters),
            {name: (p.requires_grad, p.device) for name, p in potential.named_parameters()},
        )

    before, seen = state(), []
    backend = TorchScript(potential, CPU)
    watcher = threading.Thread(target=lambda: seen.append(torch._C._get_graph_executor_optimize()))
    watched = SimpleNamespace(to=lambda _: watcher.start() or watcher.join() or seen.append(1 / 0))
    with pytest.raises(ZeroDivisionError):
        backend(watched, True)
    export(potential, tmp_path / "tiny.pt")
    assert state() == before
    assert seen == [True]  # another thread keeps its executor while the backend runs
    assert [str(w.message) for w in recwarn if "torch.jit" in str(w.message)] == []


def test_threads_script_one_after_the_other_and_leave_the_warnings_as_they_were(potential, tmp_path, monkeypatch):
    graph = from_atoms(STRUCTURES["triclinic"], potential.atomic_numbers, potential.cutoff)
    expected, before = TorchScript(potential, CPU)(graph, True).forces, list(warnings.filters)
    inside, most = [], set()

    def watched(original, *arguments, **options):
        inside.append(threading.get_ident())  # torch calls it again for functions
        time.sleep(0.05)  # for the other to come
        most.add(len(set(inside)))
        result = original(*arguments, **options)
        inside.pop()
        return result

    monkeypatch.setattr(torch.jit, "script", partial(watched, torch.jit.script))
    monkeypatch.setattr(torch.jit, "save", partial(watched, torch.jit.save))
    with ThreadPoolExecutor(2) as pool:
        exported = pool.submit(export, potential, tmp_path / "tiny.pt")
        backend = pool.submit(TorchScript, potential, CPU).result()
    assert exported.result() is None
    assert most == {1}
    assert warnings.filters == before
    assert backend(graph, True).forces.equal(expected)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_a_process_forked_while_another_thread_scripts_does_not_wait_for_it(potential):
    child = multiprocessing.get_context("fork").Process(target=TorchScript, args=(potential, CPU))
    with torchscript._quiet():
        child.start()
        child.join(20)
    child.kill()  # where it waits for ever
    assert child.exitcode == 0


def test_a_hostile_default_dtype_changes_nothing(potential, tmp_path):
    atoms = STRUCTURES["triclinic"]
    single = potential.astype(torch.float32)
    expected = eager(single, atoms)
    graph = from_atoms(atoms, potential.atomic_numbers, potential.cutoff)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype({torch.float32: torch.float64, torch.float64: torch.float32}[before])
        hostile = torch.get_default_dtype()
        export(single, tmp_path / "tiny.pt")
        module = load(tmp_path / "tiny.pt")
        found = [numbers(module(*inputs(single, atoms))) for _ in range(3)]
        forces = TorchScript(single, CPU)(graph, True).forces
        assert torch.get_default_dtype() == hostile
    finally:
        torch.set_default_dtype(before)
    assert max(error(results, expected) for results in found) < 1e-5
    np.testing.assert_allclose(forces, expected["forces"], rtol=0, atol=1e-5)


def test_python_3_14_is_told_that_torchscript_is_not_available(potential, tmp_path, monkeypatch):
    TorchScript(potential, CPU)
    monkeypatch.setattr(torchscript, "sys", SimpleNamespace(version_info=(3, 14, 0)))
    for attempt in (lambda: TorchScript(potential, CPU), lambda: export(potential, tmp_path / "tiny.pt")):
        with pytest.raises(CalculatorSetupError, match="TorchScript is not available.*Python 3.14.*backend='eager'"):
            attempt()
    assert list(tmp_path.iterdir()) == []
