"""`ase-equivariant train`: from a configuration and labelled structures to a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ase_equivariant.cli import common


def train(config: Annotated[Path, typer.Argument(help="CONFIG.yaml; paths in it are relative to its folder.")]) -> None:
    """Train a potential, or resume: the same command continues after the last finished epoch."""
    from ase.calculators.calculator import CalculatorSetupError

    from ase_equivariant.cli.show import console

    try:
        from ase_equivariant.training.train import train as run
    except ModuleNotFoundError as error:
        if error.name not in ("lightning", "yaml"):
            raise
        raise CalculatorSetupError(f"training needs {error.name}: pip install 'ase-equivariant[train]'") from None
    try:
        run(config, console())
    except KeyboardInterrupt:
        raise typer.Exit(common.INTERRUPTED) from None
