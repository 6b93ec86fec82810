"""`ase-equivariant relax`: a structure, and its cell, to the nearest minimum."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ase_equivariant.cli import common
from ase_equivariant.cli.show import console, say, say_written, table

if TYPE_CHECKING:
    from ase import Atoms

    from ase_equivariant.workflows.relax import RelaxResult, RelaxStep


def relax(
    file: common.Structure,
    model: common.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Relaxed structure, in any format of ASE.")],
    cell: Annotated[bool, typer.Option("--cell", help="Relax the cell too.")] = False,
    pressure: Annotated[float, typer.Option(help="Hydrostatic pressure in GPa, with --cell.")] = 0.0,
    fmax: Annotated[float, typer.Option(help="Largest force allowed on an atom, eV/Å.")] = 0.01,
    smax: Annotated[float, typer.Option(help="Largest stress allowed beside the pressure, GPa, with --cell.")] = 0.01,
    steps: Annotated[int, typer.Option(help="Give up after this many steps.")] = 500,
    optimizer: Annotated[str, typer.Option(help="bfgs; lbfgs for thousands of atoms; fire for rough starts.")] = "bfgs",
    head: common.Head = None,
    dtype: common.Dtype = "float32",
    device: common.Device = "auto",
    backend: common.Backend = "auto",
) -> None:
    """Relax a structure, with --cell also its cell. Exit code 1 if it did not converge."""
    common.check_output(output)
    trajectory, logfile = output.with_name(f"{output.stem}-relax.traj"), output.with_name(f"{output.stem}-relax.log")
    common.keep_structure(file, output, trajectory, logfile)
    atoms = common.read_structure(file)
    atoms.calc = common.make_calculator(model, head, dtype, device, backend)
    options = {"cell": cell, "pressure": pressure, "fmax": fmax, "smax": smax, "steps": steps, "optimizer": optimizer}
    try:
        result = relax_and_show(atoms, trajectory=trajectory, logfile=logfile, **options)
    except KeyboardInterrupt:
        say("[bold yellow]Interrupted[/]: no relaxed structure is written, the steps until now are kept")
        say_written(trajectory=trajectory, log=logfile)
        raise typer.Exit(common.INTERRUPTED) from None
    common.write_structures(output, [atoms])
    say_written(structure=output, trajectory=trajectory, log=logfile)
    if not result.converged:
        raise typer.Exit(1)


def relax_and_show(atoms: Atoms, **options) -> RelaxResult:
    """`workflows.relax` with every step on the terminal, and what changed at the end."""
    from ase_equivariant.workflows import relax as run

    before = atoms.copy()
    result = run(atoms, observer=_show, **options)
    rows = [*_changes(result), *_geometry(before, atoms)]
    console().print(table(["", "before", "after"], rows))
    if result.converged:
        say(f"[bold green]Converged[/] after {result.steps} steps")
    else:
        left = "" if result.last.smax is None else f", stress {result.last.smax:.4f} GPa"
        say(f"[bold red]Not converged[/] within {result.steps} steps: force {result.last.fmax:.4f} eV/Å{left} remain")
    return result


def _show(step: RelaxStep) -> None:
    if step.step == 0:
        say(f"[bold]{'step':>6}{'energy (eV)':>18}{'fmax (eV/Å)':>14}{'pressure (GPa)':>17}[/]")
    pressure = "-" if step.pressure is None else f"{step.pressure:.4f}"
    say(f"{step.step:6d}{step.energy:18.6f}{step.fmax:14.5f}{pressure:>17}")


def _changes(result: RelaxResult) -> list[tuple[str, str, str]]:
    both = (result.first, result.last)
    rows = [("energy (eV)", *(f"{step.energy:.6f}" for step in both))]
    rows.append(("largest force (eV/Å)", *(f"{step.fmax:.5f}" for step in both)))
    if result.last.pressure is not None:
        rows.append(("pressure (GPa)", *(f"{step.pressure:.4f}" for step in both)))
    return rows


def _geometry(before: Atoms, after: Atoms) -> list[tuple[str, str, str]]:
    both = (before.cell, after.cell)
    if before.cell.rank < 3:
        return []
    lengths = (" ".join(f"{length:.4f}" for length in cell.lengths()) for cell in both)
    angles = (" ".join(f"{angle:.3f}" for angle in cell.angles()) for cell in both)
    volumes = (f"{cell.volume:.4f}" for cell in both)
    return [("a b c (Å)", *lengths), ("α β γ (°)", *angles), ("volume (Å³)", *volumes)]
