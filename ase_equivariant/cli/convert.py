"""`ase-equivariant convert`: any model as a safe file of this package, whole or with what is needed of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ase_equivariant.cli import common
from ase_equivariant.cli.models import element_list
from ase_equivariant.cli.show import say, say_written


def convert(
    model: common.ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Model file to write, FILE.safetensors.")],
    elements: Annotated[str | None, typer.Option(help="Keep these elements only: H,C,N,O.")] = None,
    head: Annotated[list[str] | None, typer.Option(help="Keep this head only; may be given again.")] = None,
    default_head: Annotated[str | None, typer.Option(help="Head that answers where none is asked for.")] = None,
    fix: Annotated[
        str | None, typer.Option(help="Fix what the model reads from atoms.info, for all structures: charge=1,spin=2.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the model is called.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the model, as the file shall say.")] = None,
    level_of_theory: Annotated[str | None, typer.Option(help="What the model was trained to reproduce.")] = None,
) -> None:
    """Convert a model of MACE, NequIP or Nequix, or shrink any model, to a file that cannot run code."""
    from ase_equivariant.checkpoint import save_potential
    from ase_equivariant.convert import convert as converted
    from ase_equivariant.zoo import resolve

    common.keep(resolve(model), output)
    symbols = None if elements is None else elements.replace(",", " ").split()
    about = {"name": name, "license": license, "level_of_theory": level_of_theory}
    fixed = None if fix is None else _numbers(fix)
    potential = converted(model, symbols, head or None, default_head, fixed, **about)
    save_potential(potential, output)
    golden = len(potential.metadata["golden"])
    say(
        f"{element_list(potential.atomic_numbers)}; heads: {escape(', '.join(potential.heads))}; "
        f"{output.stat().st_size / 1e6:.2f} MB; {golden} golden structures"
    )
    if "license" not in potential.metadata:
        say("The file says nothing of its licence; --license adds it.")
    say_written(model=output)


def _numbers(text: str) -> dict[str, int]:
    """What --fix says, by key."""
    from ase.calculators.calculator import InputError

    try:
        pairs = [(key.strip(), int(number)) for key, number in (entry.split("=") for entry in text.split(","))]
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name comes twice")
        return dict(pairs)
    except ValueError:
        raise InputError(f"--fix takes numbers by name, each once, such as charge=1,spin=2, not {text!r}") from None
