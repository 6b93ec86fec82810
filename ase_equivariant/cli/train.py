"""`ase-equivariant train`: from a configuration and labelled structures to a model file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ase_equivariant.cli import common


@contextmanager
def training() -> Iterator[None]:
    """Around imports of the training package and what it does: says what is not installed; Ctrl-C is an exit code."""
    from ase.calculators.calculator import CalculatorSetupError

    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("lightning", "pytorch_optimizer", "yaml"):
            raise
        raise CalculatorSetupError(f"training needs {error.name}: pip install 'ase-equivariant[train]'") from None
    except KeyboardInterrupt:
        raise typer.Exit(common.INTERRUPTED) from None


def train(config: Annotated[Path, typer.Argument(help="CONFIG.yaml; paths in it are relative to its folder.")]) -> None:
    """Train a potential, or resume: the same command continues after the last finished epoch."""
    from ase_equivariant.cli.show import console

    with training():
        from ase_equivariant.training.train import train as run

        run(config, console())
