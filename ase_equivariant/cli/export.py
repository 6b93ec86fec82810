"""`ase-equivariant export`: a TorchScript file that runs without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ase_equivariant.cli import common
from ase_equivariant.cli.show import say_written


def export(
    model: common.ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="TorchScript file to write, FILE.pt.")],
    device: Annotated[str, typer.Option(help="Where the exported model starts out: cpu, cuda ...")] = "cpu",
    head: common.Head = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64; the model's own by default.")] = None,
) -> None:
    """Export a model to TorchScript, with forces, stress and its metadata."""
    from ase.calculators.calculator import InputError

    from ase_equivariant.calculator import DTYPES
    from ase_equivariant.checkpoint import load_potential
    from ase_equivariant.inference import torchscript
    from ase_equivariant.zoo import resolve

    common.keep(resolve(model), output)
    if dtype not in (None, *DTYPES):
        raise InputError(f"--dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    potential = load_potential(model)
    torchscript.export(potential if dtype is None else potential.astype(DTYPES[dtype]), output, device, head)
    say_written(TorchScript=output)
