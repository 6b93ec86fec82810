"""Train one architecture on one set, and evaluate it on all its tests in float64.

    python benchmarks/accuracy/run.py SET MODEL [--frames N] [--data FOLDER]

The configuration is configs/SET_MODEL.yaml, which `ase-equivariant train` and `ablate` take as well, for rMD17 once
this has made its copies of the sets. Everything trained lies below runs/accuracy; the same command continues an
interrupted training and does not repeat a finished one. On a machine without a GPU, what another one's GPU has trained
is evaluated as it is. Results go to results/accuracy_SET_MODEL.json and into the tables of results/accuracy.md.

With --frames, a point of the learning curve: N structures drawn from the training set, and as many steps as with all.
"""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
import torch
import yaml
from ase import Atoms
from ase.calculators.calculator import InputError
from ase.calculators.singlepoint import SinglePointCalculator
from rich.console import Console
from sets import ARCHITECTURES, PAPER, SETS
from tables import result_name, write_tables

from ase_equivariant.checkpoint import load_potential, read_header
from ase_equivariant.derivatives import predict
from ase_equivariant.graph import concatenate, from_atoms
from ase_equivariant.potential import Potential
from ase_equivariant.storage import write_atomically
from ase_equivariant.training.acceleration import fuse
from ase_equivariant.training.config import TrainConfig
from ase_equivariant.training.parsing import parse
from ase_equivariant.training.sets import load_sets
from ase_equivariant.training.train import finish, identify, train_as

sys.path.append(str(Path(__file__).resolve().parents[1]))
from report import ROOT, parser, record  # noqa: E402

CONFIGS = Path(__file__).resolve().parent / "configs"
RUNS = ROOT / "runs" / "accuracy"
DATA = ROOT.parent / "shared" / "data"


def main() -> None:
    arguments = parser(__doc__, model=False)
    arguments.add_argument("set", choices=SETS)
    arguments.add_argument("model", choices=(*ARCHITECTURES, PAPER))
    arguments.add_argument("--frames", type=int, help="structures to train on, validation included")
    arguments.add_argument("--data", type=Path, default=DATA, help="folder of the sets")
    args = arguments.parse_args()
    benchmark = SETS[args.set]
    raw = configuration(args.set, args.model, args.data, args.frames)
    config = parse(TrainConfig, raw, "")
    try:
        model = trained(config, raw)
    except InputError as error:
        raise SystemExit(str(error)) from None
    history = [json.loads(line) for line in (model.parent / "log.jsonl").read_text().splitlines()]
    potential = fuse(load_potential(model).astype(torch.float64).requires_grad_(False))
    kinds = {"tests": benchmark.tests, "curves": benchmark.curves}
    compare = {"tests": errors, "curves": relative_errors}
    result = {
        "set": args.set,
        "architecture": config.architecture,
        "frames": len(ase.io.read(CONFIGS / raw["data"]["train"], ":")),
        "parameters": sum(weight.numel() for weight in potential.parameters()),
        "epochs": len(history),
        "minutes": round(sum(epoch["seconds"] for epoch in history) / 60, 1),
        "device": history[-1]["device"],
        "dtype": "float64",
        "units": {"energy": "meV", "forces": "meV/Å"},
    }
    for kind, files in kinds.items():
        result[kind] = {}
        for name, file in files.items():
            print(f"{name} ...", flush=True)
            result[kind][name] = compare[kind](evaluate(frames_of(args.data / file), potential))
    result["config"] = read_header(model)["provenance"]["config"]  # another machine may have given it other minutes
    record(args.results, result_name(args.set, args.model, args.frames), result, model)
    write_tables(args.results)


def configuration(name: str, model: str, data: Path, frames: int | None) -> dict:
    """The committed configuration; its files are those in `data`, or parts and copies of them."""
    path = CONFIGS / f"{name}_{model}.yaml"
    if not path.exists():
        raise SystemExit(f"there is no {path.name}; models of {name} are {', '.join(SETS[name].models)}")
    raw = yaml.safe_load(path.read_text())
    source = data / SETS[name].train
    if frames is not None:
        everything = frames_of(source)
        if not 2 <= frames <= len(everything):
            raise SystemExit(f"--frames is {frames}; {source.name} has 2 to {len(everything)}")
        if "epoch_structures" not in raw["data"]:
            raw["run"]["max_epochs"] = round(raw["run"]["max_epochs"] * len(everything) / frames)
        raw["output"] += f"_{frames}"
        source = written(f"{name}_{frames}", shuffled(everything)[:frames])
    raw["data"]["train"] = located(source)
    if "test" in raw["data"]:
        raw["data"]["test"] = {test: located(data / file) for test, file in SETS[name].tests.items()}
    return raw


def trained(config: TrainConfig, raw: dict) -> Path:
    """The model file, after training; without the GPU that it needs, the one that another machine has left here."""
    console, path = Console(width=120), CONFIGS / config.output / f"{config.name}.safetensors"
    if config.run.accelerator != "gpu" or torch.cuda.is_available() or not path.exists():
        return train_as(config, raw, CONFIGS, console)
    if identify(read_header(path)["provenance"]["config"]) != identify(raw):
        raise InputError(f"{path} was trained with another configuration; remove it, or restore the configuration")
    finish(config, load_sets(config, CONFIGS), path, console)
    return path


def written(name: str, frames: list[Atoms]) -> Path:
    """An extended XYZ file of them, which training reads."""
    path, text = RUNS / "data" / f"{name}.extxyz", io.StringIO()
    path.parent.mkdir(parents=True, exist_ok=True)
    ase.io.write(text, frames, format="extxyz")
    write_atomically(text.getvalue().encode(), path)  # others may be reading the old one
    return path


def shuffled(frames: list[Atoms]) -> list[Atoms]:
    """In an order that is always the same, so that the first N hold the first of fewer."""
    return [frames[i] for i in np.random.default_rng(0).permutation(len(frames))]


def located(path: Path) -> str:
    """Relative to the configurations, unless it is somewhere else altogether; what training cannot read, as a copy."""
    if path.suffix == ".npz":
        path = written(path.stem, frames_of(path))
    path = Path(os.path.abspath(path))
    ours = path.is_relative_to(DATA) or path.is_relative_to(ROOT)
    return os.path.relpath(path, CONFIGS) if ours else str(path)


def frames_of(path: Path) -> list[Atoms]:
    """Structures with energy (eV) and forces (eV/Å) where there are any, of extended XYZ or rMD17's npz."""
    if path.suffix != ".npz":
        return ase.io.read(path, ":")
    arrays = np.load(path)
    frames = []
    for positions, energy, forces in zip(arrays["coords"], arrays["energies"], arrays["forces"], strict=True):
        atoms = Atoms(arrays["nuclear_charges"], positions)
        atoms.calc = SinglePointCalculator(atoms, energy=float(energy), forces=forces)
        frames.append(atoms)
    return frames


def evaluate(frames: list[Atoms], potential: Potential, batch_size: int = 20) -> list[Pair]:
    """Predictions of energy and forces beside the labels of each structure."""
    pairs = []
    for start in range(0, len(frames), batch_size):
        chunk = frames[start : start + batch_size]
        graphs = [from_atoms(atoms, potential.atomic_numbers, potential.cutoff) for atoms in chunk]
        prediction = predict(potential, concatenate(graphs))
        forces = prediction.forces.split([len(atoms) for atoms in chunk])
        pairs += [Pair(*pair) for pair in zip(chunk, prediction.energy.tolist(), forces, strict=True)]
    return pairs


@dataclass(frozen=True)
class Pair:
    """A labelled structure and what a model says of it; differences are prediction minus label."""

    atoms: Atoms
    energy: float  # eV
    forces: torch.Tensor  # [n_atoms, 3] eV/Å

    @property
    def energy_difference(self) -> float:
        return self.energy - self.atoms.get_potential_energy()

    @property
    def forces_difference(self) -> np.ndarray:
        return self.forces.numpy() - self.atoms.get_forces()


def errors(pairs: list[Pair]) -> dict:
    """Errors of energies per molecule and of force components."""
    energy = [pair.energy_difference for pair in pairs]
    forces = np.concatenate([pair.forces_difference for pair in pairs])
    return {"frames": len(pairs), "energy": statistics(energy), "forces": statistics(forces)}


def relative_errors(pairs: list[Pair]) -> dict:
    """Errors of energies along each path, its mean deviation removed, and how high it goes, highest minus lowest."""
    deviations, heights = [], {}
    for kind in dict.fromkeys(pair.atoms.info["config_type"] for pair in pairs):
        path = [pair for pair in pairs if pair.atoms.info["config_type"] == kind]
        difference = np.array([pair.energy_difference for pair in path])
        deviations.append(difference - difference.mean())
        energies = {"found": [p.energy for p in path], "expected": [p.atoms.get_potential_energy() for p in path]}
        heights[kind] = {name: round(1e3 * float(np.ptp(values)), 2) for name, values in energies.items()}
    return {"frames": len(pairs), "relative_energy": statistics(np.concatenate(deviations)), "height": heights}


def statistics(deviations: np.ndarray | list) -> dict[str, float]:
    """RMSE and MAE in thousandths, all entries counting alike."""
    flat = 1e3 * np.ravel(deviations)
    return {"rmse": round(float(np.sqrt(np.mean(flat**2))), 4), "mae": round(float(np.abs(flat).mean()), 4)}


if __name__ == "__main__":
    main()
