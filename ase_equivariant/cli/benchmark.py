"""`ase-equivariant benchmark`: what a step of a model costs on this machine, with every backend there is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ase_equivariant.cli import common
from ase_equivariant.cli.show import console, progress, say, table

if TYPE_CHECKING:
    from ase_equivariant.calculator import EquivariantCalculator
    from ase_equivariant.workflows.benchmark import Timing


def benchmark(
    model: common.ModelArgument,
    file: Annotated[
        str, typer.Argument(help="Structure in any format of ASE; by default one of the model's own.")
    ] = "",
    steps: Annotated[int, typer.Option(min=1, help="Steps to take the median of.")] = 10,
    timestep: Annotated[float, typer.Option(help="Of the dynamics whose ns/day are told, fs.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with seconds and bytes.")] = False,
    head: common.Head = None,
    dtype: common.Dtype = "float32",
    device: common.Device = "auto",
) -> None:
    """Time energy, forces and stress with the available backends in turn; medians."""
    from ase_equivariant.workflows.benchmark import benchmark as run
    from ase_equivariant.workflows.benchmark import example

    given = common.read_structure(file) if file else None  # first: kernels may take a minute to compile
    calculators, missing = _start(model, head, dtype, device)
    *_, calc = calculators.values()
    atoms = given or example(calc.potential)
    if as_json:
        facts = _facts(calc, atoms.get_chemical_formula())
        typer.echo(json.dumps({**facts, "backends": [vars(timing) for timing in run(calculators, atoms, steps)]}))
        return
    with progress(steps, "benchmark") as update:
        timings = run(calculators, atoms, steps, lambda done, _: update(done, "steps"))
    _show(timings, timestep, _facts(calc, atoms.get_chemical_formula()))
    for name, why in missing.items():
        say(f"[bold]{name}[/]: {escape(why)}")


def _start(model: str, head: str | None, dtype: str, device: str):
    """Calculators by backend, the reference one at the end, and why others are missing."""
    from ase.calculators.calculator import CalculatorSetupError

    from ase_equivariant.inference import BACKENDS

    calculators: dict[str, EquivariantCalculator] = {}
    missing: dict[str, str] = {}
    for name in sorted(BACKENDS, key=lambda name: name == "eager"):
        try:
            calculators[name] = common.make_calculator(model, head, dtype, device, name)
        except CalculatorSetupError as error:
            missing[name] = str(error)
    if not calculators:
        raise CalculatorSetupError(missing["eager"])
    return calculators, missing


def _facts(calc: EquivariantCalculator, formula: str) -> dict[str, str | int]:
    import torch

    names = ("model", "device", "dtype")
    return {"structure": formula, **{k: calc.parameters[k] for k in names}, "threads": torch.get_num_threads()}


def _show(timings: list[Timing], timestep: float, facts: dict[str, str | int]) -> None:
    rows = {
        "ms per step": [f"{1e3 * t.step:.2f}" for t in timings],
        "  neighbours": [f"{1e3 * t.neighbors:.2f}" for t in timings],
        "  energy": [f"{1e3 * t.energy:.2f}" for t in timings],
        "  forces and stress": [f"{1e3 * t.gradient:.2f}" for t in timings],
        "µs per atom": [f"{1e6 * t.step / t.atoms:.1f}" for t in timings],
        f"ns per day at {timestep:g} fs": [f"{t.nanoseconds_per_day(timestep):.3g}" for t in timings],
        "memory (MiB)": [f"{t.memory / 2**20:.1f}" for t in timings],
        "largest deviation of a force (meV/Å)": [f"{1e3 * t.deviation:.1g}" for t in timings],
    }
    title = f"{timings[0].atoms} atoms, {timings[0].edges} edges; " + ", ".join(f"{k} {v}" for k, v in facts.items())
    console().print(
        table(["", *(t.backend for t in timings)], [[name, *cells] for name, cells in rows.items()], title=title)
    )
