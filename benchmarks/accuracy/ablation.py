"""What makes radial functions smooth, and what that does inside and outside of the training domain.

    python benchmarks/accuracy/ablation.py [MODEL] [--jobs N]

A model of half the channels, a MACE unless MODEL names another, learns 125 structures of acetylacetone at 300 K, so
long that it knows them far better than others of their kind. Its errors are those on the rest of the training set, and
on train_600K.xyz; no test of run.py is used, so that what is chosen by them is not fitted to those tests. The same as
`ase-equivariant ablate` with the configuration that this writes to runs/accuracy/ablation_125, and with VARY.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import ase.io
import yaml
from ase import Atoms
from rich.console import Console
from run import CONFIGS, DATA, RUNS, frames_of, shuffled
from sets import SETS

from ase_equivariant.training.ablate import ablate

sys.path.append(str(Path(__file__).resolve().parents[1]))
from report import parser, table, write  # noqa: E402

HALVED = {
    "mace": "32x0e+32x1o",
    "nequip": "16x0e+16x1o+8x2e+4x3o",
    "botnet": "16x0e+16x1o+8x2e",
}
VARY = ("radial_mlp=[64, 64, 64],[]", "bessel_norm=unit,paper", "bessel_decay=0,1")
STRUCTURES = 125  # validation included
FOLDER = RUNS / f"ablation_{STRUCTURES}"  # runs that were finished with other data are no results of these
FILES = {"train": "train.extxyz", "300 K": "others.extxyz"}


def main() -> None:
    arguments = parser(__doc__, model=False)
    arguments.add_argument("model", nargs="?", default="mace", choices=HALVED)
    arguments.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    args = arguments.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, frames in split(frames_of(DATA / SETS["acac"].train)).items():
        ase.io.write(FOLDER / FILES[name], frames)
    path = FOLDER / f"acac_{args.model}.yaml"
    path.write_text(yaml.safe_dump(configuration(args.model), sort_keys=False))
    report = ablate(path, VARY, args.jobs, Console(width=120))
    if report["failed"]:
        raise SystemExit(f"failed: {report['failed']}")
    write(args.results, f"ablation_{args.model}", report, markdown(report["runs"]))


def split(frames: list[Atoms]) -> dict[str, list[Atoms]]:
    frames = shuffled(frames)
    return {"train": frames[:STRUCTURES], "300 K": frames[STRUCTURES:]}


def configuration(model: str) -> dict:
    """That of acac with less of the data, a smaller model and less time; paths are relative to FOLDER."""
    raw = yaml.safe_load((CONFIGS / f"acac_{model}.yaml").read_text())
    raw["output"] = model
    warm = os.path.relpath(DATA / "acac" / "train_600K.xyz", FOLDER)
    raw["data"] |= {"train": FILES["train"], "test": {"300 K": FILES["300 K"], "600 K": warm}}
    raw["model"]["hidden_irreps"] = HALVED[model]
    raw["run"] = {"max_epochs": 100}
    return raw


def markdown(runs: list[dict]) -> str:
    """Force errors of each run on every set."""
    columns = [f"`{path.split('.')[-1]}`" for path in runs[0]["settings"]]
    columns += [f"{name}, meV/Å" for name in runs[0]["errors"]]
    rows = [[*run["settings"].values(), *(f"{e['forces_rmse']:.1f}" for e in run["errors"].values())] for run in runs]
    return table(columns, rows)


if __name__ == "__main__":
    main()
