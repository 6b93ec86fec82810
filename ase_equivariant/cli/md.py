"""`ase-equivariant md`: molecular dynamics with a progress bar, and a picture at the end."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ase_equivariant.cli import common
from ase_equivariant.cli.show import console, progress, say, say_written, table

if TYPE_CHECKING:
    from ase import Atoms

    from ase_equivariant.workflows import MDSettings
    from ase_equivariant.workflows.record import MDSample, MDSummary


def md(
    file: common.Structure,
    model: common.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Prefix of the files to write.")],
    ensemble: Annotated[str, typer.Option(help="nve, nvt-langevin, nvt-nhc or npt.")] = "nvt-langevin",
    temperature: Annotated[float, typer.Option(help="K; of the thermostat and of new velocities.")] = 300.0,
    pressure: Annotated[float, typer.Option(help="GPa, for npt.")] = 0.0,
    timestep: Annotated[float, typer.Option(help="fs.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Number of steps.")] = 1000,
    supercell: Annotated[str, typer.Option(help="Repeat the cell, as in 3,3,3; velocities start anew.")] = "1,1,1",
    friction: Annotated[float, typer.Option(help="1/fs, for nvt-langevin.")] = 0.01,
    thermostat_time: Annotated[float, typer.Option(help="fs, for nvt-nhc and npt.")] = 100.0,
    barostat_time: Annotated[float, typer.Option(help="fs, for npt.")] = 1000.0,
    interval: Annotated[int, typer.Option(help="Steps between frames and log lines.")] = 10,
    seed: Annotated[int, typer.Option(help="Of velocities and of the Langevin noise.")] = 0,
    head: common.Head = None,
    dtype: common.Dtype = "float32",
    device: common.Device = "auto",
    backend: common.Backend = "auto",
) -> None:
    """Run molecular dynamics; velocities in the file are continued. Ctrl-C ends it early and in order."""
    from ase_equivariant.workflows import MDSettings, MDStopped
    from ase_equivariant.workflows.record import MDFiles

    settings = MDSettings(
        ensemble=ensemble,
        temperature=temperature,
        pressure=pressure,
        timestep=timestep,
        steps=steps,
        friction=friction,
        thermostat_time=thermostat_time,
        barostat_time=barostat_time,
        interval=interval,
        seed=seed,
    )
    files = MDFiles.at(output)
    common.keep_structure(file, *vars(files).values())
    _keep_run(*vars(files).values())
    atoms = _repeated(common.read_structure(file), supercell)
    atoms.calc = common.make_calculator(model, head, dtype, device, backend)
    try:
        summary = md_and_show(atoms, settings, output)
    except MDStopped as stopped:
        show_summary(stopped.summary)
        raise
    if summary.interrupted:
        raise typer.Exit(common.INTERRUPTED)


def _keep_run(*files: Path) -> None:
    """Raise InputError if one of the files is there: it may be the work of days."""
    from ase.calculators.calculator import InputError

    for file in files:
        if file.exists():
            raise InputError(f"{file} exists already; choose another --output, or move what an earlier run left")


def md_and_show(atoms: Atoms, settings: MDSettings, prefix: str | Path) -> MDSummary:
    """`workflows.run_md` with a progress bar, and its summary on the terminal."""
    from ase_equivariant.workflows import run_md

    say(_announcement(atoms, settings))
    started = None
    with progress(settings.steps, settings.ensemble) as update:

        def observe(sample: MDSample) -> None:
            nonlocal started
            started = started or perf_counter()
            speed = sample.time * 1e-3 * 86400 / max(perf_counter() - started, 1e-9)
            pressure = "" if sample.pressure is None else f"{sample.pressure:7.2f} GPa"
            update(sample.step, f"{sample.temperature:5.0f} K{pressure}" + (f"{speed:8.2f} ns/day" if speed else ""))

        summary = run_md(atoms, settings, prefix, observe)
    show_summary(summary)
    return summary


def show_summary(summary: MDSummary) -> None:
    """Averages of a run and the files it left."""
    settings, files = summary.settings, summary.files
    if summary.interrupted:
        say(f"[bold yellow]Interrupted[/] after {summary.steps} of {settings.steps} steps; all until then is kept")
        say(f"To continue, run dynamics of {escape(str(files.final))} with its velocities and another --output")
    averages = {"temperature (K)": summary.temperature, "pressure (GPa)": summary.pressure}
    if settings.ensemble == "npt":
        averages["volume (Å³)"] = summary.volume
    rows = [(name, f"{value[0]:.3f}", f"{value[1]:.3f}") for name, value in averages.items() if value]
    if summary.drift is not None:
        rows.append(("drift of the conserved energy (meV/atom/ps)", f"{summary.drift:+.4f}", ""))
    rows.append(("speed (ns/day)", f"{summary.ns_per_day:.3f}", ""))
    rows.append(("time per step (ms)", f"{summary.seconds / max(summary.steps, 1) * 1e3:.1f}", ""))
    console().print(table(["mean over the second half", "", "± deviation"], rows))
    say_written(trajectory=files.trajectory, log=files.log, last_structure=files.final, picture=files.picture)


def _announcement(atoms: Atoms, settings: MDSettings) -> str:
    velocities = "its velocities continued" if atoms.get_momenta().any() else f"new velocities, seed {settings.seed}"
    time = settings.steps * settings.timestep * 1e-3
    what = f"{atoms.get_chemical_formula()} ({len(atoms)} atoms), {settings.steps} steps of {settings.timestep:g} fs"
    return f"[bold]{settings.ensemble}[/]: {what} = {time:g} ps at {settings.temperature:g} K, {velocities}"


def _repeated(atoms: Atoms, supercell: str) -> Atoms:
    """The supercell, without the velocities: copies that move alike would never part."""
    from ase.calculators.calculator import InputError

    try:
        counts = tuple(int(count) for count in supercell.split(","))
    except ValueError:
        counts = ()
    if len(counts) != 3 or min(counts) < 1:
        raise InputError(f"supercell {supercell!r} must be three whole numbers above 0, such as 3,3,3")
    if counts == (1, 1, 1):
        return atoms
    if any(count > 1 and not vector.any() for count, vector in zip(counts, atoms.cell, strict=True)):
        raise InputError(f"supercell {supercell} repeats a direction in which the structure has no cell vector")
    atoms = atoms.repeat(counts)
    atoms.arrays.pop("momenta", None)
    return atoms
