"""`ase-equivariant`: the commands, and the one place where errors become a sentence.

Nothing here imports torch, ase, numpy or matplotlib before a command runs, so that `--help` is instant.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer

from ase_equivariant import __version__
from ase_equivariant.cli.ablate import ablate
from ase_equivariant.cli.benchmark import benchmark
from ase_equivariant.cli.convert import convert
from ase_equivariant.cli.evaluate import evaluate
from ase_equivariant.cli.export import export
from ase_equivariant.cli.info import info
from ase_equivariant.cli.md import md
from ase_equivariant.cli.models import models
from ase_equivariant.cli.relax import relax
from ase_equivariant.cli.show import harmless
from ase_equivariant.cli.train import train

app = typer.Typer(name="ase-equivariant", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (models, info, convert, evaluate, relax, md, benchmark, train, ablate, export):
    app.command()(command)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """E(3)-equivariant interatomic potentials for ASE: relax, run dynamics, evaluate, train, export."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; what a user can put right is reported in one sentence, with exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # of a stream that is no file
            stream.reconfigure(errors="replace")  # an Å that a terminal cannot show is no reason to fail
    try:
        app(args)
    except Exception as error:
        if not _is_users(error):
            raise
        print(f"error: {harmless(_sentence(error))}", file=sys.stderr)
        raise SystemExit(2) from None


def _is_users(error: Exception) -> bool:
    from ase.calculators.calculator import CalculatorError, PropertyNotImplementedError

    return isinstance(error, (CalculatorError, PropertyNotImplementedError, OSError, MemoryError))


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return f"this does not fit into memory, ask for less: {error or 'nothing is left'}"
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
