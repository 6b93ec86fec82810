"""`ase-equivariant evaluate`: energy, forces and stress of many structures, and errors against their labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ase_equivariant.cli import common
from ase_equivariant.cli.show import console, progress, say, say_written, table

if TYPE_CHECKING:
    from ase_equivariant.workflows.evaluate import Comparison, Errors


def evaluate(
    file: Annotated[str, typer.Argument(help="Structures in any format of ASE, all frames; FILE@SLICE picks some.")],
    model: common.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Structures with results, in any format of ASE.")],
    head: common.Head = None,
    dtype: common.Dtype = "float32",
    device: common.Device = "auto",
    backend: common.Backend = "auto",
) -> None:
    """Compute energy, forces and stress of all structures; compare them with labels that the file holds."""
    from ase_equivariant.workflows.evaluate import compare
    from ase_equivariant.workflows.evaluate import evaluate as run

    common.check_output(output)
    common.keep_structure(file, output)
    frames = common.read_structures(file)
    calculator = common.make_calculator(model, head, dtype, device, backend)
    with progress(len(frames), "evaluate") as update:
        evaluated = run(frames, calculator, lambda done, _: update(done, "structures"))
    common.write_structures(output, evaluated)
    _show(compare(evaluated))
    say_written(structures=output)


def _show(comparison: Comparison) -> None:
    rows = []
    if comparison.energy:
        rows.append(_row("energy (meV/atom)", comparison.energy))
    for species, errors in comparison.forces.items():
        if species != "all" and len(comparison.forces) == 2:  # of the one element there is
            continue
        rows.append(_row("forces (meV/Å)" if species == "all" else f"forces on {species} (meV/Å)", errors))
    if comparison.stress:
        rows.append(_row("stress (GPa)", comparison.stress))
    if rows:
        console().print(table(["against the file's labels", "RMSE", "MAE", "mean deviation", "values"], rows))
    else:
        say("The file holds no labels to compare with.")


def _row(name: str, errors: Errors) -> tuple[str, ...]:
    return (name, f"{errors.rmse:.3f}", f"{errors.mae:.3f}", f"{errors.bias:+.3f}", f"{errors.count:,}")
