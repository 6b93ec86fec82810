"""`ase-equivariant ablate`: one training with some of its fields varied, and a table that compares the results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ase_equivariant.cli.show import console, say_written, table
from ase_equivariant.cli.train import training

Vary = Annotated[
    list[str],
    typer.Option("--vary", help="axis=value,value; an axis is a field of the model or a path such as optimizer.lr."),
]


def ablate(
    base: Annotated[Path, typer.Argument(help="CONFIG.yaml of the training that is varied.")],
    vary: Vary,
    jobs: Annotated[int, typer.Option(help="Runs at a time, each in a process of its own.")] = 1,
) -> None:
    """Train and compare a grid of configurations: several --vary make a grid. The same command continues."""
    with training():
        from ase_equivariant.training.ablate import ablate as run
        from ase_equivariant.training.config import read_config

        report = run(base, vary, jobs, console())
        folder = base.parent / read_config(base)[0].output
    console().print(table(*_comparison(report["runs"]), title="RMSE: energy meV/atom / forces meV/Å"))
    say_written(results=folder / "ablation.json")
    raise typer.Exit(1 if report["failed"] else 0)


def _comparison(runs: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, one for each run; errors as energy / forces."""
    axes, sets = list(runs[0]["settings"]), list(runs[0]["errors"])
    columns = [*(axis.split(".")[-1] for axis in axes), "parameters", "minutes", *sets]
    rows = [
        [
            *(str(run["settings"][axis]) for axis in axes),
            f"{run['parameters']:,}",
            f"{run['minutes']:.1f}",
            *(_pair(run["errors"].get(name, {})) for name in sets),
        ]
        for run in runs
    ]
    return columns, rows


def _pair(errors: dict[str, float]) -> str:
    values = [errors.get(f"{name}_rmse") for name in ("energy", "forces")]
    return " / ".join("–" if value is None else f"{value:.2f}" for value in values)
