"""What the smoothness of radial functions does to a MACE inside and outside of what it was trained on: 3BPA.

    python benchmarks/accuracy/ablation.py [--jobs N]

The same as `ase-equivariant ablate configs/3bpa_mace.yaml` with the VARY below, on the data that this file names: a
model of half the channels, and 25 epochs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from run import CONFIGS

from ase_equivariant.training.ablate import ablate

sys.path.append(str(Path(__file__).resolve().parents[1]))
from report import parser, table, write  # noqa: E402

VARY = ("bessel_decay=0,1,2", "hidden_irreps=32x0e+32x1o", "run.max_epochs=25")
VARY += ("optimizer.lr=0.03", "loss.energy=10000", "loss.forces=1000")  # gradients that are always clipped: faster


def main() -> None:
    arguments = parser(__doc__, model=False)
    arguments.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    args = arguments.parse_args()
    report = ablate(CONFIGS / "3bpa_mace.yaml", VARY, args.jobs, Console(width=120))
    if report["failed"]:
        raise SystemExit(f"failed: {report['failed']}")
    write(args.results, "ablation", report, markdown(report["runs"]))


def markdown(runs: list[dict]) -> str:
    """Force errors of each run on every set; only what differs between runs is named."""
    settings = [run["settings"] for run in runs]
    axes = [path for path in settings[0] if len({str(each[path]) for each in settings}) > 1]
    columns = [f"`{path.split('.')[-1]}`" for path in axes]
    columns += [f"{name}, meV/Å" for name in runs[0]["errors"]]
    rows = [
        [*(run["settings"][path] for path in axes), *(f"{e['forces_rmse']:.1f}" for e in run["errors"].values())]
        for run in runs
    ]
    return table(columns, rows)


if __name__ == "__main__":
    main()
