"""Training on tiny sets labelled by ASE's EMT: what is learned, what is written, and what a break costs (nothing)."""

from __future__ import annotations

import copy
import errno
import hashlib
import io
import json
import math
import os
import re
import signal
from itertools import pairwise
from pathlib import Path

import ase.io
import numpy as np
import pytest
import tiny
import torch
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import InputError
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from rich.console import Console
from tiny import tiny_potential
from torch.utils._pytree import tree_flatten

pytest.importorskip("lightning")

from ase_equivariant.architectures import ARCHITECTURES
from ase_equivariant.checkpoint import load_potential, read_header, save_potential
from ase_equivariant.derivatives import predict
from ase_equivariant.golden import verify_golden
from ase_equivariant.graph import from_atoms
from ase_equivariant.training import references
from ase_equivariant.training.config import Keys, LossConfig, OptimizerConfig, check_model, read_config, read_yaml
from ase_equivariant.training.data import (
    Draw,
    collate,
    element_weights,
    make_batch,
    read_labels,
    read_structures,
    split,
    type_weights,
    without_offset,
)
from ase_equivariant.training.loss import Loss, Residuals, errors, residuals
from ase_equivariant.training.module import TrainingModule, follow, make_optimizer, parameter_groups
from ase_equivariant.training.progress import AtomicCheckpoints
from ase_equivariant.training.sets import load_sets
from ase_equivariant.training.start import start_model
from ase_equivariant.training.train import initial_potential, train, unused_irreps

MODEL = {"cutoff": 4.0, "num_bessel": 4, "radial_mlp": [8], "l_max": 1, "hidden_irreps": "4x0e", "correlation": 2}


def labelled(symbol: str, seed: int, size: int = 1) -> Atoms:
    """A strained, rattled crystal with EMT's energy, forces and stress."""
    atoms = bulk(symbol, cubic=True) * (size, 1, 1)
    rng = np.random.default_rng(seed)
    atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(scale=0.02, size=(3, 3))), scale_atoms=True)
    atoms.positions += rng.normal(scale=0.1, size=(len(atoms), 3))
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def write_config(folder, **changes):
    """CONFIG.yaml with small settings; `changes` replace sections, or single keys of sections given as dictionaries."""
    config = {
        "name": "tiny",
        "output": "run",
        "data": {"train": "train.extxyz", "valid": "valid.extxyz", "batch_size": 3},
        "architecture": "mace",
        "model": MODEL,
        "loss": {"energy": 1.0, "forces": 10.0, "stress": 100.0},
        "optimizer": {"lr": 0.02, "ema": 0.9},
        "run": {"max_epochs": 4, "accelerator": "cpu"},
        "golden": 2,
    }
    for name, value in changes.items():
        merge = isinstance(value, dict) and isinstance(config.get(name), dict)
        config[name] = {**config[name], **value} if merge else value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def write_sets(folder):
    ase.io.write(folder / "train.extxyz", [labelled(s, seed) for seed in range(4) for s in ("Cu", "Ni")])
    ase.io.write(folder / "valid.extxyz", [labelled("Cu", 10), labelled("Ni", 11, 2), labelled("Cu", 12)])
    return folder


def quietly(path):
    return train(path, Console(file=io.StringIO(), width=200))


def log_of(folder):
    return [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its folder, and the process-wide state before and after it."""
    folder = write_sets(tmp_path_factory.mktemp("finished"))
    metadata = {"license": "MIT", "level_of_theory": "EMT", "training_data_license": "CC0"}
    path = write_config(
        folder,
        data={"test": {"same": "valid.extxyz"}},
        run={"max_epochs": 60},
        optimizer={"schedule": "cosine"},
        metadata=metadata,
    )

    def state():
        return (
            torch.get_rng_state().tolist(),
            torch.get_default_dtype(),
            signal.getsignal(signal.SIGINT),
            sorted(os.environ),
        )

    before = state()
    model = quietly(path)
    return folder, model, before, state()


@pytest.fixture
def sets(tmp_path):
    return write_sets(tmp_path)


# What is learned and written


def test_loss_on_a_handful_of_structures_falls_twentyfold(finished):
    log = log_of(finished[0])
    assert log[-1]["train_loss"] < log[0]["train_loss"] / 20
    assert min(row["valid_loss"] for row in log) < log[0]["valid_loss"] / 5


def test_cosine_schedule_ends_near_zero(finished):
    log = log_of(finished[0])
    assert log[0]["lr"] == 0.02
    assert 0 < log[-1]["lr"] < 1e-4


def test_process_global_state_is_untouched(finished):
    assert finished[2] == finished[3]


def test_folder_holds_the_log_the_checkpoint_and_the_model_and_nothing_else(finished):
    assert sorted(p.name for p in (finished[0] / "run").iterdir()) == ["last.ckpt", "log.jsonl", "tiny.safetensors"]
    assert sorted(p.name for p in finished[0].iterdir()) == ["config.yaml", "run", "train.extxyz", "valid.extxyz"]


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("nequip", {"num_interactions": 2}),
        ("nequip", {"num_interactions": 2, "trainable_bessel": True, "normalisation": "rms"}),
        ("botnet", {"num_interactions": 2}),
        ("botnet", {"num_interactions": 2, "radial": "element"}),
    ],
)
def test_every_architecture_trains(architecture, settings, sets):
    path = write_config(sets, architecture=architecture, run={"max_epochs": 3})
    config = yaml.safe_load(path.read_text())
    common = {name: value for name, value in MODEL.items() if name != "correlation"}
    path.write_text(yaml.safe_dump({**config, "model": {**common, **settings}}))
    model = load_potential(quietly(path))
    log = log_of(sets)
    assert len(log) == 3
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    assert type(model.architecture).__name__.lower() == architecture
    assert max(verify_golden(model).values()) < 1e-5


def test_header_says_where_the_model_comes_from(finished):
    header = read_header(finished[1])
    assert (header["name"], header["license"], header["level_of_theory"]) == ("tiny", "MIT", "EMT")
    assert header["atomic_numbers"] == [28, 29]
    assert header["atomic_energies_source"] == "least squares"
    provenance = header["provenance"]
    assert provenance["structures"] == {"train": 8, "validation": 3}
    assert provenance["config"]["model"] == MODEL
    assert provenance["packages"]["torch"] == torch.__version__
    assert len(header["golden"]) == 2
    assert str(finished[0]) not in json.dumps(header)


def test_reported_errors_are_those_of_the_written_model(finished):
    potential = load_potential(finished[1])
    frames = ase.io.read(finished[0] / "valid.extxyz", ":")
    energy, forces, stress = [], [], []
    for atoms in frames:
        result = predict(potential, from_atoms(atoms, potential.atomic_numbers, potential.cutoff))
        energy.append((result.energy.item() - atoms.get_potential_energy()) / len(atoms))
        forces.append(result.forces.numpy() - atoms.get_forces())
        stress.append(result.strain_gradient[0].numpy() / atoms.cell.volume - atoms.get_stress(voigt=False))
    stress = np.array(stress)[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    expected = {"energy": np.array(energy), "forces": np.concatenate(forces), "stress": stress}
    header = read_header(finished[1])
    for reported in (header["errors"]["validation"]["all"], header["errors"]["test"]["same"]["all"]):
        for name, difference in expected.items():
            assert reported[f"{name}_rmse"] == pytest.approx(1000 * np.sqrt(np.mean(difference**2)), rel=1e-3)
            assert reported[f"{name}_mae"] == pytest.approx(1000 * np.mean(np.abs(difference)), rel=1e-3)
    assert set(header["errors"]["validation"]) == {"all", "Cu", "Ni"}
    cu = [0, 2]
    rmse = 1000 * np.sqrt(np.mean(expected["energy"][cu] ** 2))
    assert header["errors"]["validation"]["Cu"]["energy_rmse"] == pytest.approx(rmse, rel=1e-3)


def test_best_epoch_is_written_and_proves_itself(finished):
    header = read_header(finished[1])
    log = log_of(finished[0])
    assert header["provenance"]["epoch"] == int(np.argmin([row["valid_loss"] for row in log]))
    errors = verify_golden(load_potential(finished[1]))
    assert max(errors.values()) < 1e-4


# A break costs nothing


def states_of(folder):
    checkpoint = torch.load(folder / "run" / "last.ckpt", weights_only=True)
    optimizer = checkpoint["optimizer_states"][0]["state"]
    leaves, structure = tree_flatten(optimizer)  # a preconditioner is a list of matrices
    return checkpoint, {**checkpoint["state_dict"], str(structure): torch.empty(0), **dict(enumerate(leaves))}


def without_time(log):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in log]


@pytest.mark.parametrize("algorithm", ["adam", "soap"])
def test_run_broken_by_a_full_disk_and_a_kill_equals_the_unbroken_run(algorithm, sets, tmp_path_factory, monkeypatch):
    optimizer = {"algorithm": algorithm, "patience": 0}
    settings = {"run": {"max_epochs": 5}, "optimizer": optimizer, "data": {"balance": "elements"}}
    whole = write_sets(tmp_path_factory.mktemp("whole"))
    quietly(write_config(whole, **settings))

    path = write_config(sets, **settings)
    save, fsync, checkpoints = AtomicCheckpoints.save_checkpoint, os.fsync, []

    def counted(self, *arguments, **options):
        checkpoints.append(arguments)
        return save(self, *arguments, **options)

    def full_disk(descriptor):
        return fsync(descriptor) if len(checkpoints) < 3 else raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpoints, "save_checkpoint", counted)
        patch.setattr(os, "fsync", full_disk)  # at the third checkpoint
        with pytest.raises(InputError, match=r"last\.ckpt: No space left"):
            quietly(path)
    assert states_of(sets)[0]["epoch"] == 1
    step, calls = TrainingModule.training_step, []

    def killed(self, batch, index):
        calls.append(index)
        return step(self, batch, index) if len(calls) < 5 else raising(MemoryError("killed"))

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", killed)
        with pytest.raises(MemoryError):
            quietly(path)
    assert states_of(sets)[0]["epoch"] == 2
    quietly(path)

    (one, weights), (two, expected) = states_of(sets), states_of(whole)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(*map(torch.as_tensor, (weights[name], expected[name]))) for name in weights)
    assert one["plateau"] == two["plateau"]
    assert without_time(log_of(sets)) == without_time(log_of(whole))
    assert (sets / "run" / "tiny.safetensors").read_bytes() == (whole / "run" / "tiny.safetensors").read_bytes()
    assert not list((sets / "run").glob(".*"))


def raising(error):
    raise error


def test_irreps_that_no_layer_carries_are_told(sets):
    told = {}
    for hidden in ("2x0e+2x1o", "2x0e+2x1o+3x1e"):
        model = {"hidden_irreps": hidden, "num_interactions": 2, "correlation": 1}
        path = write_config(sets, output=hidden, architecture="nequip", model=model, run={"max_epochs": 1})
        train(path, Console(file=told.setdefault(hidden, io.StringIO())))
    assert "hidden_irreps: no layer carries 3x1e, through which no path" in told["2x0e+2x1o+3x1e"].getvalue()
    assert "no layer carries" not in told["2x0e+2x1o"].getvalue()


@pytest.mark.parametrize("hidden", ["4x0e", "4x0e+4x1o"])
@pytest.mark.parametrize("num_interactions", [1, 2])
def test_what_no_layer_carries_has_no_weights(architecture, num_interactions, hidden):
    settings = {"num_interactions": num_interactions, "l_max": 1, "hidden_irreps": hidden}
    config = ARCHITECTURES[architecture].Config(num_species=1, cutoff=4.0, avg_num_neighbors=4.0, **settings)
    assert unused_irreps(config) == "+".join(tiny.unused_irreps(architecture, settings))


def test_control_another_seed_gives_other_weights(sets, tmp_path_factory):
    other = write_sets(tmp_path_factory.mktemp("other"))
    quietly(write_config(sets, run={"max_epochs": 1}))
    quietly(write_config(other, run={"max_epochs": 1}, seed=1))
    assert log_of(sets)[0]["valid_loss"] != log_of(other)[0]["valid_loss"]


def test_finished_run_goes_on_with_more_epochs_but_not_with_other_data_or_model(sets):
    quietly(write_config(sets, run={"max_epochs": 1}))
    quietly(write_config(sets, run={"max_epochs": 2}))
    assert [row["epoch"] for row in log_of(sets)] == [0, 1]
    with pytest.raises(InputError, match=r"last\.ckpt is of a run with other values of model, loss"):
        quietly(write_config(sets, run={"max_epochs": 3}, model={"correlation": 1}, loss={"forces": 1.0}))
    (sets / "run" / "last.ckpt").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"cannot resume from .*last\.ckpt"):
        quietly(write_config(sets, run={"max_epochs": 3}))


def test_radii_that_a_configuration_leaves_open_are_covalent(sets):
    left_open = {"pair_repulsion": {"envelope_power": 5}, "distance_transform": "agnesi"}
    first = quietly(write_config(sets, model=left_open, run={"max_epochs": 1}))
    own = load_potential(first).architecture.config
    assert own.covalent_radii == own.pair_repulsion.radii == (1.24, 1.32)
    assert own.pair_repulsion.envelope_power == 5
    again = {"name": "again", "output": "again", "start": "run/tiny.safetensors", "run": {"max_epochs": 1}}
    closer = {**left_open, "pair_repulsion": {"radii": [1.0, 1.1]}}
    started = load_potential(quietly(write_config(sets, **again, model=closer, optimizer={"lr": 1e-9})))
    assert started.architecture.config.pair_repulsion.radii == (1.0, 1.1)
    weights = zip(started.parameters(), load_potential(first).parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in weights)
    few = {**left_open, "pair_repulsion": {"radii": [1.0]}}
    with pytest.raises(InputError, match="model: .*radii"):
        quietly(write_config(sets, **{**again, "output": "other"}, model=few))
    with pytest.raises(InputError, match="has another distance_transform than"):
        quietly(write_config(sets, **{**again, "output": "other"}, model={**closer, "distance_transform": "soft"}))


def test_run_can_start_from_a_model_file(sets):
    first = quietly(write_config(sets, run={"max_epochs": 30}))
    again = {"name": "again", "output": "again", "start": "run/tiny.safetensors"}
    quietly(write_config(sets, **again, run={"max_epochs": 1}, optimizer={"lr": 1e-9}))
    before, after = (load_potential(path) for path in (first, sets / "again" / "again.safetensors"))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert (before.atomic_energies == after.atomic_energies).all()
    with pytest.raises(InputError, match=r"start is 'run/tiny\.safetensors', the very file that is written"):
        quietly(write_config(sets, start="run/tiny.safetensors"))
    with pytest.raises(InputError, match=r"start: .*tiny\.safetensors has another num_bessel"):
        quietly(write_config(sets, **again, model={"num_bessel": 5}))
    ase.io.write(sets / "train.extxyz", [labelled("Cu", seed) for seed in range(3)])
    ase.io.write(sets / "valid.extxyz", [labelled("Cu", 5)])
    with pytest.raises(InputError, match=r"is for Ni, Cu, the training set holds Cu"):
        quietly(write_config(sets, **{**again, "output": "other"}))


def test_time_budget_stops_after_an_epoch_and_for_good(sets):
    for _ in range(2):
        quietly(write_config(sets, run={"max_epochs": 50, "max_minutes": 1e-6}))
        assert len(log_of(sets)) == 1
    quietly(write_config(sets, run={"max_epochs": 2}))
    assert len(log_of(sets)) == 2


def test_cosine_schedule_follows_the_time_where_that_ends_sooner(sets):
    cosine = {"lr": 0.01, "schedule": "cosine"}
    quietly(write_config(sets, optimizer=cosine, run={"max_epochs": 1000, "max_minutes": 0.02}))
    log = log_of(sets)
    spent = sum(row["seconds"] for row in log[:-1]) / 1.2
    assert log[-1]["lr"] == pytest.approx(0.005 * (1 + math.cos(math.pi * spent)))
    assert 0 < spent < 1


def test_interrupt_leaves_the_best_model_and_says_so(sets, monkeypatch):
    step = TrainingModule.training_step
    monkeypatch.setattr(
        TrainingModule,
        "training_step",
        lambda self, batch, i: step(self, batch, i) if self.current_epoch < 1 else raising(KeyboardInterrupt()),
    )
    handler, out = signal.getsignal(signal.SIGINT), io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        train(write_config(sets), Console(file=out))
    assert signal.getsignal(signal.SIGINT) is handler
    assert "tiny.safetensors; the same command continues" in out.getvalue()
    assert read_header(sets / "run" / "tiny.safetensors")["provenance"]["epoch"] == 0


# Averaged weights, loss, reference energies


def test_steps_of_soap_do_not_depend_on_the_basis_of_the_weights_and_those_of_adam_do():
    generator = torch.Generator().manual_seed(0)
    start, left, right, target = (torch.randn(6, 6, generator=generator, dtype=torch.float64) for _ in range(4))

    def end(algorithm, turn):
        weight = (turn @ start).requires_grad_()
        optimizer = make_optimizer([{"params": [weight], "pace": 1.0, "weight_decay": 0.0}], OptimizerConfig(algorithm))
        for _ in range(40):
            optimizer.zero_grad()
            (left @ turn.T @ weight @ right - target).square().mean().backward()
            optimizer.step()
        return (turn.T @ weight).detach()

    one, turned = torch.eye(6, dtype=torch.float64), torch.linalg.qr(left)[0]
    moved = (end("soap", one) - start).norm()
    assert (end("soap", one) - end("soap", turned)).norm() < 1e-3 * moved
    assert (end("adam", one) - end("adam", turned)).norm() > 0.1 * moved


def test_weights_of_products_take_steps_by_their_order_and_alone_decay():
    potential = tiny_potential("mace", correlation=3, avg_num_neighbors=16.0)
    groups = parameter_groups(potential, 0.1)
    names = {id(parameter): name for name, parameter in potential.named_parameters()}
    paces = {names[id(p)]: group["pace"] for group in groups for p in group["params"]}
    assert sorted(paces) == sorted(names.values())
    products = {name: pace for name, pace in paces.items() if ".orders." in name}
    assert products == {name: pytest.approx(4.0 ** -(int(name.split(".")[-2]) + 1)) for name in products}
    assert {pace for name, pace in paces.items() if name not in products} == {1.0}
    assert {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]} == set(products)
    rates = {group["pace"]: group["lr"] for group in make_optimizer(groups, OptimizerConfig(lr=0.02)).param_groups}
    assert rates == {pace: pytest.approx(0.02 * pace) for pace in (1.0, 1 / 4, 1 / 16, 1 / 64)}


def test_averaged_weights_are_an_exponential_moving_average():
    module = torch.nn.Linear(2, 2)
    average = copy.deepcopy(module)
    expected = module.weight.detach().clone()
    for step in (1, 2, 500):
        module.weight.data += 1.0
        follow(average, module, torch.tensor(float(step)), 0.9)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    assert torch.allclose(average.weight, expected, atol=1e-6)
    assert not torch.allclose(average.weight, module.weight, atol=0.1)


def energies_only(x):
    return Residuals(torch.tensor(x, dtype=torch.float64), torch.ones(len(x), dtype=torch.float64))


def test_huber_loss_is_the_square_below_delta_and_linear_beyond():
    square = Loss(LossConfig(energy=2.0, forces=0.0), [29])
    huber = Loss(LossConfig(energy=2.0, forces=0.0, huber_delta=0.5), [29])
    assert huber(energies_only([0.1, -0.3])) == square(energies_only([0.1, -0.3])) == pytest.approx(0.1)
    assert huber(energies_only([2.0])).item() == pytest.approx(2 * 0.5 * (2 * 2.0 - 0.5))
    assert square(energies_only([2.0])).item() == pytest.approx(8.0)


def test_the_force_errors_of_an_element_are_multiplied_by_its_factor():
    forces = torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.2, 0.0]], dtype=torch.float64)
    nothing, ones = torch.zeros(1, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    r = Residuals(nothing, nothing, forces, ones, torch.tensor([1, 0]))
    config = LossConfig(energy=0.0, forces=1.0, forces_factors={"Cu": 3.0})
    assert Loss(config, [14, 29])(r).item() == pytest.approx((0.3**2 + 0.2**2) / 6)  # copper is the first atom
    assert Loss(config, [29, 47])(r).item() == pytest.approx((0.1**2 + 0.6**2) / 6)  # copper is the second atom
    assert errors(r)["forces_rmse"] == pytest.approx(1000 * ((0.1**2 + 0.2**2) / 6) ** 0.5)  # what people read stays


def structures_of(folder, frames, loss=None, keys=None):
    ase.io.write(folder / "frames.extxyz", frames)
    return read_structures([folder / "frames.extxyz"], keys or Keys(), loss or LossConfig())


def test_structures_without_stress_do_not_count_in_its_mean(tmp_path):
    frames = [labelled("Cu", 0), labelled("Cu", 1)]
    del frames[1].calc.results["stress"]
    with_stress, without = structures_of(tmp_path, frames)
    assert without.stress is None
    loss = Loss(LossConfig(energy=0.0, forces=0.0, stress=1.0), [29])
    batches = [make_batch(s, [29], 4.0) for s in (with_stress, without)]
    zero = torch.zeros
    alone, both, nothing = (
        loss(residuals(FakePrediction(zero(len(b.energy)), zero(b.forces.shape), zero(b.stress.shape)), b))
        for b in (batches[0], collate(batches), batches[1])
    )
    assert both == alone
    assert alone.item() == pytest.approx(np.mean(with_stress.stress**2))
    assert nothing == 0


def test_batch_without_any_stress_has_a_finite_gradient(tmp_path):
    frame = labelled("Cu", 0)
    with_stress = structures_of(tmp_path, [frame])[0]
    del frame.calc.results["stress"]
    batches = [make_batch(s, [29], 4.0) for s in (with_stress, structures_of(tmp_path, [frame])[0])]
    loss = Loss(LossConfig(energy=0.0, forces=0.0, stress=1.0), [29])
    gradients = []
    for batch in batches:
        strain_gradient = torch.ones_like(batch.stress, requires_grad=True)
        loss(residuals(FakePrediction(batch.energy, batch.forces, strain_gradient), batch)).backward()
        gradients.append(strain_gradient.grad)
    assert gradients[0].abs().min() > 0
    assert (gradients[1] == 0).all()


def test_pulay_stress_is_taken_from_the_labels(tmp_path):
    structure = structures_of(tmp_path, [labelled("Cu", 0)])[0]
    atoms, other = structure.atoms, without_offset(structure, {"Ni": 0.3})
    corrected = without_offset(structure, {"Cu": 0.2, "Ni": 0.3})
    assert structure.stress - corrected.stress == pytest.approx(0.2 * len(atoms) / atoms.cell.volume * np.eye(3))
    assert (other.stress == structure.stress).all()


class FakePrediction:
    def __init__(self, energy, forces, strain_gradient):
        self.energy, self.forces, self.strain_gradient = energy, forces, strain_gradient


def mixed(composition, energy):
    atoms = Atoms(composition, positions=[(3.0 * i, 0, 0) for i in range(len(Atoms(composition)))])
    atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return atoms


def test_reference_energies_are_fitted_given_or_of_isolated_atoms(tmp_path):
    frames = [mixed("Cu2Ni", -7.0), mixed("CuNi2", -8.0), mixed("Cu", -1.0), mixed("Ni", -2.0)]
    structures = structures_of(tmp_path, frames, LossConfig(forces=0.0))
    compounds, atoms = structures[:2], structures[2:]
    numbers = [28, 29]
    assert references.atomic_energies("least_squares", compounds, [], numbers) == pytest.approx([-3.0, -2.0])
    assert references.atomic_energies("isolated", compounds, atoms, numbers) == [-2.0, -1.0]
    assert references.atomic_energies({"Ni": 5.0, "Cu": 7.0}, compounds, [], numbers) == [5.0, 7.0]
    with pytest.raises(InputError, match="isolated atoms in data.train have no energy of Ni"):
        references.atomic_energies("isolated", compounds, atoms[:1], numbers)
    with pytest.raises(InputError, match="data.atomic_energies has no energy of Cu"):
        references.atomic_energies({"Ni": 1.0}, compounds, [], numbers)
    shift = references.energy_shift(compounds, [-2.0, -1.0], numbers)
    assert shift == pytest.approx(np.mean([(-7 + 4) / 3, (-8 + 5) / 3]))


def test_fitted_energy_of_an_element_alone_is_its_mean_per_atom(tmp_path):
    frames = [labelled("Cu", 0), labelled("Cu", 1, 2), labelled("Ni", 2)]
    mean = np.mean([frame.get_potential_energy() / len(frame) for frame in frames[:2]])
    structures = structures_of(tmp_path, frames)
    assert references.least_squares(structures, [28, 29])[1] == pytest.approx(mean)
    assert references.energy_shift(
        structures, references.least_squares(structures, [28, 29]), [28, 29]
    ) == pytest.approx(0)


def test_scale_is_the_rms_force_of_all_or_of_each_species(tmp_path):
    frames = [labelled("Cu", 0), labelled("Ni", 1)]
    rms = [np.sqrt(np.mean(frame.get_forces() ** 2)) for frame in frames]
    structures = structures_of(tmp_path, frames)
    assert references.force_scale("per_species_rms_forces", structures, [28, 29]) == pytest.approx(rms[::-1])
    both = np.sqrt(np.mean(np.square(rms)))
    assert references.force_scale("rms_forces", structures, [28, 29]) == pytest.approx([both, both])


def test_isolated_atoms_give_energies_and_are_not_trained_on(sets):
    frames = ase.io.read(sets / "train.extxyz", ":")
    for symbol, energy in (("Cu", 3.25), ("Au", 1.0), ("Ni", 4.5)):
        atom = Atoms(symbol, cell=[20, 20, 20], pbc=True)
        atom.calc = SinglePointCalculator(atom, energy=energy)  # and no forces: they are zero
        frames.append(atom)
    ase.io.write(sets / "train.extxyz", frames)
    model = quietly(write_config(sets, data={"atomic_energies": "isolated"}, run={"max_epochs": 1}))
    header = read_header(model)
    assert header["atomic_numbers"] == [28, 29]  # weights of gold would never be trained
    assert header["atomic_energies"] == [[4.5, 3.25]]
    assert header["provenance"]["structures"]["train"] == 8


# Drawing


def test_validation_takes_its_share_of_each_chemical_system(tmp_path):
    frames = [labelled("Cu", i) for i in range(10)] + [labelled("Ni", i) for i in range(4)]
    structures = structures_of(tmp_path, frames)
    train_set, valid = split(structures, 0.3, seed=0)
    assert sorted(s.system for s in valid) == ["Cu"] * 3 + ["Ni"]
    assert len(train_set) + len(valid) == 14
    assert [s.source for s in split(structures, 0.3, seed=0)[1]] == [s.source for s in valid]
    assert [s.source for s in split(structures, 0.3, seed=1)[1]] != [s.source for s in valid]


def test_equal_weights_draw_every_structure_once_in_an_order_of_seed_and_epoch():
    draw = Draw(np.ones(20), 20, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        draw.set_epoch(epoch)
        orders.append(list(draw))
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] == orders[2] != orders[1]


def test_balanced_drawing_gives_each_element_as_many_atoms(tmp_path):
    frames = [labelled("Cu", i, 2) for i in range(12)] + [labelled("Ni", i) for i in range(3)]
    structures = structures_of(tmp_path, frames)
    draw = Draw(element_weights(structures, np.ones(15)), 15, seed=0)
    atoms = {"Cu": 0, "Ni": 0}
    for epoch in range(200):
        draw.set_epoch(epoch)
        drawn = np.bincount(list(draw), minlength=15)
        assert np.all(np.abs(drawn - draw.expected) < 1)
        for index, times in enumerate(drawn):
            atoms[structures[index].system] += int(times) * len(structures[index].atoms)
    assert atoms["Cu"] / atoms["Ni"] == pytest.approx(1, abs=0.03)
    plain = {s: sum(len(x.atoms) for x in structures if x.system == s) for s in atoms}
    assert plain["Cu"] / plain["Ni"] == 8


def test_a_config_type_is_drawn_as_often_as_its_weight_says_and_elements_stay_balanced(tmp_path):
    frames = [labelled("Cu", i) for i in range(12)] + [labelled("Ni", i) for i in range(4)]
    for atoms in frames[:6]:
        atoms.info["config_type"] = "Elastic"
    structures = structures_of(tmp_path, frames)
    weights = type_weights(structures, {"Elastic": 0.25})
    assert weights.tolist() == [0.25] * 6 + [1.0] * 10
    balanced = element_weights(structures, weights)
    assert balanced[0] / balanced[6] == pytest.approx(0.25)
    assert balanced[:12].sum() == pytest.approx(balanced[12:].sum())
    assert weights[:12].sum() != weights[12:].sum()


# Input


def test_labels_are_found_under_any_key_name(tmp_path):
    frame = labelled("Cu", 0)
    renamed = frame.copy()
    renamed.info["REF_energy"], renamed.arrays["dft_forces"] = frame.get_potential_energy(), frame.get_forces()
    renamed.info["REF_stress"] = frame.get_stress(voigt=False)
    plain = structures_of(tmp_path, [frame])[0]
    found = structures_of(tmp_path, [renamed], keys=Keys("REF_energy", "dft_forces", "REF_stress"))[0]
    assert found.energy == pytest.approx(plain.energy, abs=1e-7)
    assert np.allclose(found.forces, plain.forces, atol=1e-7)
    assert np.allclose(found.stress, plain.stress, atol=1e-7)
    ignored = structures_of(tmp_path, [frame], keys=Keys(stress=None))[0]
    assert ignored.stress is None


def without(atoms, key):
    del atoms.calc.results[key]


def spoiled(atoms, key):
    atoms.calc.results[key] = atoms.calc.results[key] * np.nan


def flat(atoms, key):
    atoms.calc.results["stress"] = np.zeros(6)
    atoms.set_cell([5, 5, 0])
    atoms.pbc = (True, True, False)


@pytest.mark.parametrize(
    ("damage", "key", "keys", "message"),
    [
        (without, "energy", Keys(), "frame 1: no energy under the key 'energy' .*it has forces, stress"),
        (without, "forces", Keys(), "frame 1: no forces under the key 'forces'"),
        (without, "stress", Keys(energy="REF"), "frame 0: no energy under the key 'REF' .*it has energy"),
        (spoiled, "forces", Keys(), "frame 1: 'forces' holds NaN"),
        (spoiled, "energy", Keys(), "frame 1: 'energy' holds NaN"),
        (flat, "", Keys(), "frame 1: 'stress' needs a three-dimensional cell"),
    ],
)
def test_bad_labels_are_named_by_file_frame_and_key(tmp_path, damage, key, keys, message):
    frames = [labelled("Cu", 0), labelled("Cu", 1)]
    damage(frames[1], key)
    with pytest.raises(InputError, match=r"frames\.extxyz, " + message):
        structures_of(tmp_path, frames, keys=keys)


def test_what_no_model_reads_does_not_hide_labels(tmp_path):
    frame = labelled("Cu", 0)
    plain = structures_of(tmp_path, [frame])[0]
    frame.calc.results["magmoms"] = np.full(len(frame), np.nan)
    frame.info["REF"] = None
    assert structures_of(tmp_path, [frame])[0].energy == pytest.approx(plain.energy, abs=1e-7)
    frame.set_initial_magnetic_moments([np.nan] * len(frame))
    assert read_labels(frame, Keys(), LossConfig(), "test").energy == pytest.approx(plain.energy, abs=1e-7)
    with pytest.raises(InputError, match="no energy under the key 'REF' .*it has energy, forces, initial_magmoms, mag"):
        read_labels(frame, Keys(energy="REF"), LossConfig(), "test")


def test_labels_of_a_wrong_shape_or_kind_are_named(tmp_path):
    frame = labelled("Cu", 0)
    frame.arrays["pairs"], frame.info["word"] = np.zeros((4, 2)), "low"
    with pytest.raises(InputError, match=r"frame 0: 'pairs' has shape \(4, 2\); as forces it must be \(4, 3\)"):
        structures_of(tmp_path, [frame], keys=Keys(forces="pairs"))
    with pytest.raises(InputError, match="frame 0: 'word' is 'low', not numbers"):
        structures_of(tmp_path, [frame], keys=Keys(energy="word"))


def test_unreadable_files_and_unknown_elements_are_named(sets):
    with pytest.raises(InputError, match=r"cannot read structures from .*absent\.extxyz"):
        quietly(write_config(sets, data={"train": "absent.extxyz"}))
    (sets / "broken.extxyz").write_text("4\nLattice\nCu 0 0\n")
    with pytest.raises(InputError, match=r"cannot read structures from .*broken\.extxyz"):
        quietly(write_config(sets, data={"train": "broken.extxyz"}))
    ase.io.write(sets / "valid.extxyz", labelled("Au", 0))
    with pytest.raises(InputError, match=r"data\.valid \(.*valid\.extxyz, frame 0\) has Au; allowed: .*train, Ni, Cu$"):
        quietly(write_config(sets))
    assert not (sets / "run").exists()


@pytest.mark.parametrize(("section", "table"), [("data", "stress_offset"), ("loss", "forces_factors")])
def test_tables_of_elements_that_are_not_trained_are_refused(sets, section, table):
    with pytest.raises(InputError, match=rf"{section}\.{table} has Au; allowed: the elements of data\.train, Ni, Cu"):
        quietly(write_config(sets, **{section: {table: {"Au": 1.0}}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "unknown key 'colour' in the configuration; allowed: name, output"),
        ({"data": {"batchsize": 1}}, "unknown key 'batchsize' in data"),
        ({"data": {"batch_size": "five"}}, "data.batch_size is 'five'; allowed: a whole number"),
        ({"data": {"batch_size": 0}}, "data.batch_size is 0; allowed: 1 or more"),
        ({"data": {"batch_size": True}}, "data.batch_size is True"),
        ({"data": {"balance": "atoms"}}, "data.balance is 'atoms'; allowed: \"elements\" or null"),
        ({"data": {"atomic_energies": {"Xx": 1.0}}}, "data.atomic_energies is"),
        ({"data": {"atomic_energies": {"Cu": "low"}}}, "data.atomic_energies.Cu is 'low'; allowed: a number"),
        ({"data": {"valid": None}}, "data.valid is None"),
        ({"data": {"train": []}}, "data.train is"),
        ({"data": {"keys": {"force": "f"}}}, "unknown key 'force' in data.keys; allowed: energy, forces, stress"),
        ({"loss": {"huber_delta": -1}}, "loss.huber_delta is -1"),
        ({"loss": {"forces": -1}}, "loss.forces is -1.0; allowed: 0 or more"),
        ({"loss": dict.fromkeys(("energy", "forces", "stress"), 0)}, "stress are 0; allowed: one weight above 0"),
        ({"data": {"epoch_structures": 10**30}}, "data.epoch_structures is 10000.*; allowed: 1 to 100000000, or null"),
        ({"data": {"epoch_structures": 0}}, "data.epoch_structures is 0; allowed: 1 to"),
        ({"loss": {"forces_factors": {"Cu": 0}}}, "loss.forces_factors is .*allowed: a table {symbol: above 0}"),
        ({"loss": {"forces_factors": {"Xx": 1}}}, "loss.forces_factors is"),
        ({"optimizer": {"schedule": "linear"}}, 'optimizer.schedule is \'linear\'; allowed: "plateau" or "cosine"'),
        ({"model": {"cutoff": -5}}, "model.cutoff is -5; allowed: a number above 0, at most 100, in Å"),
        ({"model": {"cutoff": True}}, "model.cutoff is True; allowed"),
        ({"model": {"cutoff": math.inf}}, "model.cutoff is inf; allowed"),
        ({"model": {"cutoff": math.nan}}, "model.cutoff is nan; allowed"),
        ({"model": {"cutoff": 10**400}}, "model.cutoff is 1000.*; allowed"),
        ({"model": {"num_heads": 2}}, "model.num_heads is 2; allowed: .*without num_species and num_heads, which the"),
        ({"model": {"colour": 1}}, "unknown key 'colour' in model; allowed: cutoff, avg_num_neighbors, num_bessel"),
        ({"optimizer": {"lr": math.inf}}, "optimizer.lr is inf; allowed: a number"),
        ({"data": {"atomic_energies": {"Cu": math.nan}}}, "data.atomic_energies.Cu is nan; allowed: a number"),
        ({"seed": 10**30}, "seed is 1000.*; allowed: 0 or more, below"),
        ({"precision": "float16"}, "precision is 'float16'"),
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"name": "n" * 201}, "name is 'nnn.*; allowed: a file name without folder .*at most 200 bytes"),
        ({"name": "ü" * 101}, "name is 'ü"),
        ({"name": "a\0b"}, r"name is 'a\\x00b'"),
        ({"name": "a\nb"}, r"name is 'a\\nb'"),
        ({"output": "a\0b"}, r"output is 'a\\x00b'; allowed: the path of a folder"),
        ({"start": "a\0b"}, r"start is 'a\\x00b'; allowed: a model's name, the path of its file, or null"),
        ({"loss": 3}, "loss is 3; allowed: a section with the keys energy, forces"),
    ],
)
def test_configuration_is_read_strictly(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read_config(write_config(tmp_path, **changes))


def test_numbers_that_yaml_takes_for_words_are_numbers(tmp_path):
    path = write_config(tmp_path, optimizer={"lr": "1e-3"})  # YAML 1.1 wants a dot
    assert read_config(path)[0].optimizer.lr == 1e-3
    settings = {"cutoff": "4e0", "bessel_decay": "1e-1", "pair_repulsion": {"coulomb": "1e1", "radii": ["1e0", 2]}}
    model = read_config(write_config(tmp_path, model=settings))[0].model
    assert (model["cutoff"], model["bessel_decay"]) == (4.0, 0.1)
    assert model["pair_repulsion"] == {"coulomb": 10.0, "radii": [1.0, 2]}
    words = {"hidden_irreps": "4x0e", "num_bessel": "8", "cutoff": 4.0, "edge_irreps": "1e1"}  # not of type float
    assert read_config(write_config(tmp_path, model=words))[0].model == {**MODEL, **words}


def test_a_model_without_a_cutoff_is_told_so(tmp_path):
    path = write_config(tmp_path)
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "model": {"l_max": 1}}))
    with pytest.raises(InputError, match="model lacks the key 'cutoff'; allowed: a number above 0"):
        read_config(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("lr: 2020-99-99", "'2020-99-99' is no value: month must be in"),
        ("lr: !!float abc", "'abc' is no value: could not convert"),
        ("lr: !!bool abc", "'abc' is no value"),
        ("seed: " + "9" * 5000, "'9999.* is no value: Exceeds the limit"),
        ("a: {b: 1, c: 2, b: 3}", "the key 'b' stands there twice"),
        ("name: \xff", "is not YAML: "),
    ],
)
def test_values_that_are_none_and_repeated_keys_are_named_with_their_place(tmp_path, text, reason):
    (tmp_path / "bad.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=rf"bad\.yaml is not YAML: .*{reason.removeprefix('is not YAML: ')}"):
        read_config(tmp_path / "bad.yaml")


def test_keys_that_an_anchor_brings_may_be_overridden():
    text = "outer: {base: &a {<<: &b {x: 1, y: 1}, x: 2}}\nother: {<<: *a, y: 3}"
    assert read_yaml(text, "it") == {"outer": {"base": {"x": 2, "y": 1}}, "other": {"x": 2, "y": 3}}


def test_unreadable_configurations_are_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none\.yaml"):
        read_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(InputError, match=r"bad\.yaml is not YAML"):
        read_config(tmp_path / "bad.yaml")
    (tmp_path / "deep.yaml").write_text("[" * 20_000)
    with pytest.raises(InputError, match=r"deep\.yaml is nested too deeply"):
        read_config(tmp_path / "deep.yaml")
    (tmp_path / "run.yaml").write_text("name: !!python/object/apply:os.mkdir [executed]")
    with pytest.raises(InputError, match=r"run\.yaml is not YAML"):
        read_config(tmp_path / "run.yaml")
    assert not Path("executed").exists()
    (tmp_path / "short.yaml").write_text("name: x")
    with pytest.raises(InputError, match="lacks the key 'output'"):
        read_config(tmp_path / "short.yaml")


def test_wrong_fields_of_the_architecture_are_named(sets):
    with pytest.raises(InputError, match="unknown key 'colour' in model"):
        quietly(write_config(sets, model={"colour": 1}))
    with pytest.raises(InputError, match="architecture is 'mice'; allowed: mace, nequip, botnet"):
        quietly(write_config(sets, architecture="mice"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_irreps": "4x0e+2x1q"}, "model: hidden_irreps = '4x0e"),
        ({"pair_repulsion": {"radii": 5}}, "model: radii of the pair repulsion is 5; allowed: a list of positive"),
        ({"pair_repulsion": {"coefficients": {"a": 1}}}, "model: coefficients of the pair repulsion is {'a': 1}"),
        ({"pair_repulsion": {"coulomb": 10**400}}, "model: the pair repulsion has the constants"),
    ],
)
def test_a_model_is_checked_before_the_data_are_read(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        quietly(write_config(tmp_path, model=settings))
    start = {"start": "absent.safetensors", "model": {"pair_repulsion": {"radii": 5}}}
    with pytest.raises(InputError, match="radii of the pair repulsion is 5"):
        check_model(read_config(write_config(tmp_path, **start))[0])


def test_settings_that_a_start_makes_possible_are_not_refused(tmp_path):
    """One-dimensional harmonics do not suit the default hidden irreps, but those of a start they may."""
    path = write_config(tmp_path, architecture="nequip", start="absent.safetensors")
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "model": {"cutoff": 4.0, "l_max": 1}}))
    check_model(read_config(path)[0])


def test_structures_without_atoms_or_of_no_element_are_refused(sets):
    frames = [labelled("Cu", 0), Atoms(info={"energy": 0.0})]
    with pytest.raises(InputError, match=r"frames\.extxyz, frame 1 has no atoms; remove it"):
        structures_of(sets, frames)
    frames[1] = labelled("Cu", 1)
    frames[1].numbers[0] = 0
    with pytest.raises(InputError, match=r"frames\.extxyz, frame 1 has the atomic numbers \[0\]; allowed: 1 to 118"):
        structures_of(sets, frames)


def test_a_folder_in_place_of_structures_is_called_one(sets):
    with pytest.raises(InputError, match="cannot read structures from .*: it is a directory"):
        quietly(write_config(sets, data={"train": "."}))


def test_weights_of_config_types_that_no_training_structure_has_are_refused(sets):
    weights = {"data": {"config_type_weights": {"Elastic": 2.0, "1": 2.0}}}
    with pytest.raises(InputError, match="data.config_type_weights has '1', 'Elastic'; allowed: none, it has none"):
        quietly(write_config(sets, **weights))
    frames = [labelled("Cu", seed) for seed in range(3)] + [labelled("Ni", 3)]
    for atoms, name in zip(frames, ("elastic", 1), strict=False):
        atoms.info["config_type"] = name
    ase.io.write(sets / "train.extxyz", frames)
    with pytest.raises(InputError, match="has 'Elastic'; allowed: the config_types of data.train, 1, elastic"):
        quietly(write_config(sets, **weights))
    assert type_weights(structures_of(sets, frames), {"1": 2.0, "elastic": 3.0}).tolist() == [3.0, 2.0, 1.0, 1.0]


def test_a_model_that_does_not_fit_into_memory_is_refused(sets):
    with pytest.raises(InputError, match="model: it cannot be made, take fewer channels"):
        quietly(write_config(sets, model={"radial_mlp": [10**13]}))


def test_an_accelerator_that_is_not_there_is_refused(sets, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="run.accelerator is 'gpu', but torch finds none"):
        quietly(write_config(sets, run={"accelerator": "gpu"}))


def test_a_value_that_unfolds_to_gigabytes_is_not_written_out(tmp_path):
    levels = [f"&{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghijk")]
    text = f"name: x\noutput: y\ndata: [&a [1, 1], {', '.join(levels)}]\narchitecture: mace\nmodel: {{}}"
    (tmp_path / "bomb.yaml").write_text(text)
    with pytest.raises(InputError, match="data is .*; allowed: a section") as refused:
        read_config(tmp_path / "bomb.yaml")
    assert len(str(refused.value)) < 10_000


# Starting from a model


AGAIN = {"name": "again", "output": "again", "start": "run/tiny.safetensors", "run": {"max_epochs": 1}}


def relabelled(path, offset):
    """Add `offset` {symbol: eV} of each atom to the energies of the structures in a file."""
    frames = ase.io.read(path, ":")
    for atoms in frames:
        results = {key: atoms.calc.results[key] for key in ("energy", "forces", "stress")}
        results["energy"] += sum(offset[symbol] for symbol in atoms.symbols)
        atoms.calc = SinglePointCalculator(atoms, **results)
    ase.io.write(path, frames)


def start_of(folder, **changes):
    """The potential that a run begins with."""
    config, _ = read_config(write_config(folder, **{**AGAIN, **changes}))
    return initial_potential(config, load_sets(config, folder), folder)


def test_model_that_a_run_starts_from_is_kept_until_an_epoch_does_better(sets):
    first = quietly(write_config(sets, run={"max_epochs": 30}))
    screen = io.StringIO()
    ruined = train(write_config(sets, **AGAIN, optimizer={"lr": 1.0}), Console(file=screen, width=200))
    assert "No epoch did better than the model in `start`" in screen.getvalue()
    assert re.search(r"start\*\s+–\s+–\s+\S+\s+\d", screen.getvalue())
    kept, before = load_potential(ruined), load_potential(first)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), before.parameters(), strict=True))
    errors = [potential.metadata["errors"]["validation"]["all"]["forces_rmse"] for potential in (kept, before)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)
    config = write_config(sets, **AGAIN | {"output": "better"}, optimizer={"lr": 0.002})
    better = load_potential(quietly(config)).metadata
    assert better["provenance"]["epoch"] == 0
    assert better["errors"]["validation"]["all"]["forces_rmse"] < errors[1]


def test_reference_energies_of_a_start_are_kept_given_or_corrected(sets):
    own = load_potential(quietly(write_config(sets, run={"max_epochs": 1}))).atomic_energies
    kept = start_of(sets, data={"atomic_energies": None})
    given = start_of(sets, data={"atomic_energies": {"Cu": -1.0, "Ni": -2.0}})
    assert torch.equal(kept.atomic_energies, own)
    assert given.atomic_energies.tolist() == [[-2.0, -1.0]]  # Ni, Cu
    fitted = start_of(sets, data={"atomic_energies": "least_squares"})
    relabelled(sets / "train.extxyz", {"Cu": 3.0, "Ni": -70.0})
    moved = start_of(sets, data={"atomic_energies": "least_squares"})
    assert (moved.atomic_energies - fitted.atomic_energies).tolist() == [pytest.approx([-70.0, 3.0])]
    assert torch.equal(moved.shift, kept.shift)


def test_corrected_reference_energies_count_cohesion_once(sets):
    """Energies that the start predicts itself need no correction, however much cohesion it has in its shift."""
    first = quietly(write_config(sets, run={"max_epochs": 1}, data={"atomic_energies": {"Cu": -500.0, "Ni": 300.0}}))
    own = load_potential(first)
    frames = ase.io.read(sets / "train.extxyz", ":")
    for atoms in frames:
        forces = atoms.get_forces()
        energy = predict(own, from_atoms(atoms, own.atomic_numbers, own.cutoff), forces=False).energy.item()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    ase.io.write(sets / "train.extxyz", frames)
    changes = {"data": {"atomic_energies": "least_squares"}, "loss": {"stress": 0.0}}
    assert start_of(sets, **changes).atomic_energies.tolist() == [pytest.approx([300.0, -500.0], abs=1e-6)]
    assert (start_of(sets, **changes).shift.abs() > 1).all()


def test_file_of_a_model_that_started_from_another_names_it_and_its_licence(sets):
    about = {"license": "ASL", "citation": "the authors", "level_of_theory": "EMT"}
    first = quietly(write_config(sets, run={"max_epochs": 1}, metadata=about))
    heir = read_header(quietly(write_config(sets, **AGAIN)))
    sha256 = hashlib.sha256(first.read_bytes()).hexdigest()
    assert heir["start"] == {"file": "tiny.safetensors", "sha256": sha256, "name": "tiny", **about}
    assert (heir["license"], heir["citation"], heir["level_of_theory"]) == ("ASL", "the authors", "")
    assert heir["atomic_energies_source"] == "the start's"
    config = write_config(sets, **AGAIN | {"output": "own"}, metadata={"license": "MIT"})
    assert read_header(quietly(config))["license"] == "MIT"


def test_run_can_start_from_a_shipped_model_by_its_name(sets):
    frames = [labelled("Cu", seed) for seed in range(4)]
    names = start_model(read_config(write_config(sets, start="mace-mlearn"))[0], sets)
    path = start_model(read_config(write_config(sets, start="mace-mlearn.safetensors"))[0], sets)
    assert (names, path) == ("mace-mlearn", sets.resolve() / "mace-mlearn.safetensors")
    dotted = start_model(read_config(write_config(sets, start="./mace-mlearn"))[0], Path())
    assert dotted == Path.cwd() / "mace-mlearn"  # not the relative `mace-mlearn`, which is a name
    ase.io.write(sets / "train.extxyz", frames)
    ase.io.write(sets / "valid.extxyz", frames[:1])
    with pytest.raises(
        InputError, match=r"start: mace-mlearn is for Li, Si, Ni, Cu, Ge, Mo, the training set holds Cu"
    ):
        quietly(write_config(sets, start="mace-mlearn", model={"cutoff": 5.0}))
    with pytest.raises(InputError, match=r"there is no model file .*mace-mlearm"):
        quietly(write_config(sets, start="mace-mlearm", model={"cutoff": 5.0}))


def test_start_of_several_heads_and_a_scale_beside_a_start_are_refused(sets):
    save_potential(tiny_potential(atomic_numbers=(28, 29), heads=("pbe", "r2scan")), sets / "two.safetensors")
    with pytest.raises(InputError, match=r"two\.safetensors has the heads pbe, r2scan; .* convert --head"):
        quietly(write_config(sets, start="two.safetensors"))
    with pytest.raises(InputError, match=r"scale is 'rms_forces'; allowed: null with start"):
        quietly(write_config(sets, start="two.safetensors", scale="rms_forces"))
