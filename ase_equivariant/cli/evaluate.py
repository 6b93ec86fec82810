"""`ase-equivariant evaluate`: energy, forces and stress of many structures, and errors against their labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ase_equivariant.cli import common
from ase_equivariant.cli.show import console, progress, say, say_written, table

if TYPE_CHECKING:
    from ase import Atoms

    from ase_equivariant.workflows.evaluate import Comparison, Errors


def evaluate(
    file: Annotated[str, typer.Argument(help="Structures in any format of ASE, all frames; FILE@SLICE picks some.")],
    model: common.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Structures with results, in any format of ASE.")],
    head: common.Head = None,
    dtype: common.Dtype = "float32",
    device: common.Device = "auto",
    backend: common.Backend = "auto",
    energy_key: Annotated[str, typer.Option(help="Name of the energies to compare with, REF_energy ...")] = "energy",
    forces_key: Annotated[str, typer.Option(help="Name of the forces to compare with.")] = "forces",
    stress_key: Annotated[str, typer.Option(help="Name of the stresses to compare with.")] = "stress",
) -> None:
    """Compute energy, forces and stress of all structures; compare them with labels that the file holds."""
    from ase_equivariant.workflows.evaluate import compare
    from ase_equivariant.workflows.evaluate import evaluate as run

    common.check_output(output)
    common.keep_structure(file, output)
    frames = common.read_structures(file)
    keys = {"energy": energy_key, "forces": forces_key, "stress": stress_key}
    there = _labels(frames)
    _check_keys(keys, there)
    calculator = common.make_calculator(model, head, dtype, device, backend)
    with progress(len(frames), "evaluate") as update:
        evaluated = run(frames, calculator, lambda done, _: update(done, "structures"), keys)
    common.write_structures(output, evaluated)
    _show(compare(evaluated), there)
    say_written(structures=output)


def _check_keys(keys: dict[str, str], there: list[str]) -> None:
    """Raise InputError, before any work, for a name that was chosen and no structure has."""
    from ase.calculators.calculator import InputError

    from ase_equivariant.workflows.evaluate import KEYS

    missing = [f"--{name}-key {key}" for name, key in keys.items() if key != KEYS[name] and key not in there]
    if missing:
        raise InputError(f"no structure has {' or '.join(missing)}; there are: {', '.join(there) or 'no labels'}")


def _labels(frames: list[Atoms]) -> list[str]:
    """Names of all that the structures came with."""
    from ase_equivariant.labels import names_of

    return sorted(set().union(*map(names_of, frames)))


def _show(comparison: Comparison, there: list[str]) -> None:
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
        if there:
            say(f"--energy-key, --forces-key and --stress-key name them; there are: {escape(', '.join(there))}")


def _row(name: str, errors: Errors) -> tuple[str, ...]:
    return (name, f"{errors.rmse:.3f}", f"{errors.mae:.3f}", f"{errors.bias:+.3f}", f"{errors.count:,}")
