"""Whole runs on a GPU: training learns what it learns on the CPU, and commands write the same files.

Run by `make test-cuda`.
"""

import numpy as np
import pytest
import torch
import yaml
from ase.build import bulk
from ase.io import read, write
from test_cuda import BACKENDS
from test_torchscript import STRUCTURES, eager, error, inputs, load, numbers
from test_training import MODEL, log_of, quietly, raising, write_config, write_sets
from tiny import tiny_potential

from ase_equivariant import EquivariantCalculator, save_potential
from ase_equivariant.checkpoint import load_potential
from ase_equivariant.cli.main import main
from ase_equivariant.golden import verify_golden
from ase_equivariant.inference.torchscript import export
from ase_equivariant.training.progress import AtomicCheckpoints

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or hidden: see `make test-cuda`")
LEARNED = ("train_loss", "valid_loss", "lr")


COMMON = {name: value for name, value in MODEL.items() if name != "correlation"}
MODELS = {"mace": MODEL, "nequip": {**COMMON, "num_interactions": 2}, "botnet": {**COMMON, "num_interactions": 2}}


def write_run(folder, accelerator="gpu", epochs=2, architecture="mace", **changes):
    run = {"max_epochs": epochs, "accelerator": accelerator}
    path = write_config(write_sets(folder), run=run, precision="float64", architecture=architecture, **changes)
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "model": MODELS[architecture]}))
    return path


def learned(folder):
    """Losses and learning rates of all epochs."""
    return np.array([[row[name] for name in LEARNED] for row in log_of(folder)])


def largest_difference(one, other):
    pairs = zip(load_potential(one).parameters(), load_potential(other).parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("architecture", MODELS)
def test_training_is_that_of_the_cpu(architecture, tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) for name in ("cpu", "gpu")}
    files = {name: quietly(write_run(folder, name, architecture=architecture)) for name, folder in folders.items()}
    cpu, gpu = (learned(folder) for folder in folders.values())
    np.testing.assert_allclose(gpu, cpu, rtol=1e-6)
    assert largest_difference(files["gpu"], files["cpu"]) < 1e-6
    assert cpu[1, 0] < cpu[0, 0]


def test_a_run_broken_in_an_epoch_ends_where_the_unbroken_run_ends(tmp_path_factory, monkeypatch):
    """With Adam: what rounds differently from run to run decides the eigenbasis of SOAP where weights are few."""
    whole, broken, other = (tmp_path_factory.mktemp(name) for name in ("whole", "broken", "other"))
    changes = {"epochs": 4, "optimizer": {"patience": 0}}
    expected = quietly(write_run(whole, **changes))
    save, checkpoints = AtomicCheckpoints.save_checkpoint, []

    def killed(self, *arguments, **options):
        checkpoints.append(arguments)
        return save(self, *arguments, **options) if len(checkpoints) < 3 else raising(MemoryError("killed"))

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpoints, "save_checkpoint", killed)
        with pytest.raises(MemoryError, match="killed"):
            quietly(write_run(broken, **changes))
    found = quietly(write_run(broken, **changes))
    assert [row["epoch"] for row in log_of(broken)] == [0, 1, 2, 3]
    np.testing.assert_allclose(learned(broken), learned(whole), rtol=1e-6)
    assert largest_difference(found, expected) < 1e-6
    assert largest_difference(quietly(write_run(other, **changes, seed=1)), expected) > 1e-3


@pytest.mark.parametrize("machines", [("gpu", "cpu", "gpu"), ("cpu", "gpu", "cpu")])
def test_a_run_goes_on_on_the_other_machine_and_back(machines, tmp_path_factory):
    whole, mixed = (tmp_path_factory.mktemp(name) for name in ("whole", "mixed"))
    expected = quietly(write_run(whole, epochs=3))
    for epochs, accelerator in enumerate(machines, 1):
        found = quietly(write_run(mixed, accelerator, epochs))
    np.testing.assert_allclose(learned(mixed), learned(whole), rtol=1e-6)
    assert largest_difference(found, expected) < 1e-6


def test_a_model_of_the_gpu_lives_on_the_cpu_and_training_leaves_the_process_as_it_was(tmp_path):
    def state():
        tf32 = torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()
        random = torch.get_rng_state().tolist(), torch.cuda.get_rng_state().tolist()
        return torch.get_default_dtype(), tf32, random, torch.cuda.current_stream(), torch.cuda.current_device()

    torch.cuda.init()
    before = state()
    model = quietly(write_config(write_sets(tmp_path), run={"max_epochs": 3, "accelerator": "auto"}))
    assert state() == before
    potential = load_potential(model)
    assert {tensor.device.type for tensor in potential.state_dict().values()} == {"cpu"}
    assert max(verify_golden(potential).values()) < 1e-4
    assert learned(tmp_path)[-1, 0] < learned(tmp_path)[0, 0]


# Commands and files --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def silicon(tmp_path_factory):
    """Two frames, labelled by the model itself on the CPU, and the model's file."""
    folder = tmp_path_factory.mktemp("silicon")
    save_potential(tiny_potential(), folder / "tiny.safetensors")
    frames = [bulk("Si", cubic=True) for _ in range(2)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
        atoms.calc = EquivariantCalculator(folder / "tiny.safetensors", "cpu", "float64")
        atoms.get_forces()
    write(folder / "si.xyz", frames)
    return folder


def command(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert not end.value.code


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_dynamics_from_the_command_line_is_that_of_the_cpu(backend, silicon, tmp_path):
    for output, device, name in (("reference", "cpu", "eager"), ("found", "cuda", backend)):
        options = ("--device", device, "--backend", name, "--dtype", "float64", "--ensemble", "npt")
        model = ("--model", silicon / "tiny.safetensors", "--output", tmp_path / output)
        command("md", silicon / "si.xyz", *model, *options, "--steps", 10, "--interval", 5, "--supercell", "2,1,1")
    cpu, gpu = (read(tmp_path / f"{name}.traj", ":") for name in ("reference", "found"))
    assert len(cpu) == len(gpu) == 3
    for one, other in zip(cpu, gpu, strict=True):
        np.testing.assert_allclose(other.positions, one.positions, rtol=0, atol=1e-8)
        np.testing.assert_allclose(other.cell.array, one.cell.array, rtol=0, atol=1e-8)
        np.testing.assert_allclose(other.get_forces(), one.get_forces(), rtol=0, atol=1e-6)
    assert np.abs(cpu[-1].positions - cpu[0].positions).max() > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("float64", 1e-7)])
def test_evaluation_from_the_command_line_finds_the_labels_of_the_cpu(dtype, tolerance, backend, silicon, tmp_path):
    options = ("--device", "cuda", "--backend", backend, "--dtype", dtype, "--output", tmp_path / "out.extxyz")
    command("evaluate", silicon / "si.xyz", "--model", silicon / "tiny.safetensors", *options)
    for atoms in read(tmp_path / "out.extxyz", ":"):
        assert atoms.get_forces() == pytest.approx(atoms.arrays["ref_forces"], abs=tolerance)
        assert atoms.get_stress() == pytest.approx(atoms.info["ref_stress"], abs=tolerance)
        assert atoms.get_potential_energy() == pytest.approx(atoms.info["ref_energy"], abs=tolerance)
        assert np.abs(atoms.get_forces()).max() > 0.01


@pytest.mark.parametrize(("device", "place"), [("cpu", "cuda"), ("cuda", "cuda"), ("cuda", "cpu")])
def test_an_exported_file_runs_wherever_it_is_put(device, place, tmp_path):
    potential = tiny_potential()
    export(potential, tmp_path / "tiny.pt", device)
    module = load(tmp_path / "tiny.pt", map_location=place)
    for atoms in STRUCTURES.values():
        with torch.jit.optimized_execution(False):
            outputs = module(*[tensor.to(place) for tensor in inputs(potential, atoms)])
        assert {tensor.device.type for tensor in outputs.values()} == {place}
        assert error(numbers(outputs), eager(potential, atoms)) < 1e-8
