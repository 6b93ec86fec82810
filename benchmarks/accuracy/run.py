"""Train one architecture on one set, and evaluate it on all its tests in float64.

    python benchmarks/accuracy/run.py SET ARCHITECTURE [--frames N] [--data FOLDER]

The configuration is configs/SET_ARCHITECTURE.yaml, which `ase-equivariant train` and `ablate` take as well. Everything
trained lies below runs/accuracy; the same command continues an interrupted training and does not repeat a finished one.
Results go to results/accuracy_SET_ARCHITECTURE.json and into the tables of results/accuracy.md.

With --frames, a point of the learning curve: N structures drawn from the training set, and as many steps as with all.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import ase.io
import numpy as np
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from rich.console import Console
from sets import ARCHITECTURES, SETS
from tables import result_name, write_tables

from ase_equivariant.training.config import TrainConfig
from ase_equivariant.training.parsing import parse
from ase_equivariant.training.train import train_as
from ase_equivariant.workflows.evaluate import evaluate

sys.path.append(str(Path(__file__).resolve().parents[1]))
from report import ROOT, calculator, parser, record  # noqa: E402

CONFIGS = Path(__file__).resolve().parent / "configs"
RUNS = ROOT / "runs" / "accuracy"
DATA = ROOT.parent / "shared" / "data"


def main() -> None:
    arguments = parser(__doc__, model=False)
    arguments.add_argument("set", choices=SETS)
    arguments.add_argument("architecture", choices=ARCHITECTURES)
    arguments.add_argument("--frames", type=int, help="structures to train on, validation included")
    arguments.add_argument("--data", type=Path, default=DATA, help="folder of the sets")
    args = arguments.parse_args()
    benchmark = SETS[args.set]
    raw = configuration(args.set, args.architecture, args.data, args.frames)
    config = parse(TrainConfig, raw, "")
    model = train_as(config, raw, CONFIGS, Console(width=120))
    history = [json.loads(line) for line in (model.parent / "log.jsonl").read_text().splitlines()]
    calc = calculator(model, "float64")
    kinds = {"tests": benchmark.tests, "curves": benchmark.curves}
    compare = {"tests": errors, "curves": relative_errors}
    result = {
        "set": args.set,
        "architecture": args.architecture,
        "frames": len(ase.io.read(CONFIGS / raw["data"]["train"], ":")),
        "parameters": sum(weight.numel() for weight in calc.potential.parameters()),
        "epochs": len(history),
        "minutes": round(sum(epoch["seconds"] for epoch in history) / 60, 1),
        "dtype": "float64",
        "units": {"energy": "meV", "forces": "meV/Å"},
    }
    for kind, files in kinds.items():
        result[kind] = {}
        for name, file in files.items():
            print(f"{name} ...", flush=True)
            result[kind][name] = compare[kind](evaluate(frames_of(args.data / file), calc))
    result["config"] = raw
    record(args.results, result_name(args.set, args.architecture, args.frames), result, model)
    write_tables(args.results)


def configuration(name: str, architecture: str, data: Path, frames: int | None) -> dict:
    """The committed configuration; its training file is the one in `data`, or a part of it."""
    raw = yaml.safe_load((CONFIGS / f"{name}_{architecture}.yaml").read_text())
    source = data / SETS[name].train
    if source.suffix == ".npz" or frames is not None:
        everything = frames_of(source)
        if frames is not None:
            if not 2 <= frames <= len(everything):
                raise SystemExit(f"--frames is {frames}; {source.name} has 2 to {len(everything)}")
            raw["run"]["max_epochs"] = round(raw["run"]["max_epochs"] * len(everything) / frames)
            raw["output"] += f"_{frames}"
            drawn = np.random.default_rng(0).permutation(len(everything))[:frames]  # each set holds the smaller ones
            everything = [everything[i] for i in drawn]
        source = RUNS / "data" / f"{name}_{len(everything)}.extxyz"
        source.parent.mkdir(parents=True, exist_ok=True)
        ase.io.write(source, everything)
    if source.is_relative_to(DATA) or source.is_relative_to(ROOT):
        raw["data"]["train"] = os.path.relpath(source, CONFIGS)
    else:
        raw["data"]["train"] = str(source)
    return raw


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


def errors(evaluated: list[Atoms]) -> dict:
    """Errors of energies per molecule and of force components."""
    energy = [a.calc.results["energy"] - a.info["ref_energy"] for a in evaluated]
    forces = [a.calc.results["forces"] - a.arrays["ref_forces"] for a in evaluated]
    return {"frames": len(evaluated), "energy": statistics(energy), "forces": statistics(np.concatenate(forces))}


def relative_errors(evaluated: list[Atoms]) -> dict:
    """Errors of energies along each path, relative to its mean, and how high the paths go, highest minus lowest."""
    deviations, heights = [], {}
    for kind in dict.fromkeys(a.info["config_type"] for a in evaluated):
        path = [a for a in evaluated if a.info["config_type"] == kind]
        found, expected = (
            np.array(energies)
            for energies in zip(*((a.calc.results["energy"], a.info["ref_energy"]) for a in path), strict=True)
        )
        difference = found - expected
        deviations.append(difference - difference.mean())
        heights[kind] = {"found": 1e3 * np.ptp(found), "expected": 1e3 * np.ptp(expected)}
    return {
        "frames": len(evaluated),
        "relative_energy": statistics(np.concatenate(deviations)),
        "height": {kind: {name: round(float(v), 2) for name, v in pair.items()} for kind, pair in heights.items()},
    }


def statistics(deviations: np.ndarray | list) -> dict[str, float]:
    """RMSE and MAE in thousandths, all entries counting alike."""
    flat = 1e3 * np.ravel(deviations)
    return {"rmse": round(float(np.sqrt(np.mean(flat**2))), 4), "mae": round(float(np.abs(flat).mean()), 4)}


if __name__ == "__main__":
    main()
