"""`ase-equivariant info`: what a model file says about itself, on one screen or in full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ase_equivariant.cli import common
from ase_equivariant.cli.show import console, harmless, say, table

if TYPE_CHECKING:
    from ase_equivariant.potential import Potential

FIRST = ("name", "architecture", "level_of_theory", "training_data", "training_data_license", "license", "citation")
SHAPE = ("cutoff", "num_interactions", "l_max", "hidden_irreps", "correlation")  # the config in brief
MANY_ROWS = 12
ELSEWHERE = ("format_version", "atomic_numbers", "atomic_energies", "scale", "shift", "heads", "golden", "checksum")


def info(
    model: common.ModelArgument,
    verify: Annotated[bool, typer.Option("--verify", help="Recompute the file's golden structures.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Show all of the header, and the energies of all elements.")
    ] = False,
) -> None:
    """Show what a model file says of itself; exit code 1 if --verify finds wrong numbers."""
    import torch

    from ase_equivariant.checkpoint import describe, load_with_sha256
    from ase_equivariant.zoo import resolve

    path, (potential, sha256) = resolve(model), load_with_sha256(model)
    header = describe(potential)
    weights = sum(parameter.numel() for parameter in potential.architecture.parameters())
    say(f"[bold]{escape(str(path))}[/]: {path.stat().st_size / 1e6:.2f} MB, {weights:,} weights, {potential.dtype}")
    say(f"[bold]sha256[/]: {sha256}")
    exact = potential.astype(torch.float64).eval()
    shown = {key: header[key] for key in FIRST if key in header}
    rest = {key: value for key, value in header.items() if key not in (*FIRST, *ELSEWHERE)}
    for key, value in {**shown, **(rest if everything else _brief(header, potential))}.items():
        _show(key, value)
    if everything or len(exact.heads) * len(exact.atomic_numbers) <= MANY_ROWS:
        columns = ["species", "head", "E0 (eV)", "scale", "shift (eV)", "isolated atom (eV)"]
        console().print(table(columns, _species(exact), title="species"))
    count = len(header.get("golden", []))
    say(f"[bold]golden structures[/]: {count}" + (", recomputed by --verify" if count and not verify else ""))
    if not everything:
        say("--all shows the rest: config, training, errors and energies of each element.")
    if verify and not _verified(exact):
        raise typer.Exit(1)


def _brief(header: dict[str, Any], potential: Potential) -> dict[str, Any]:
    """What a user has to know of a model before its first step."""
    from ase.data import chemical_symbols

    brief: dict[str, Any] = {"elements": " ".join(chemical_symbols[z] for z in potential.atomic_numbers)}
    if len(potential.heads) > 1:
        brief |= {
            "heads": potential.heads,
            "default_head": header.get("default_head") or "none, choose one with head=…",
        }
    brief |= {key: header["config"][key] for key in SHAPE if key in header["config"]}
    for key, low, high, usual in potential.attributes:
        brief[f"atoms.info[{key!r}]"] = f"{low} to {high}, {usual} where it is missing"
    errors, provenance = header.get("errors"), header.get("provenance")
    if isinstance(errors, dict):
        units = errors.get("units")
        if isinstance(units, dict):
            brief["units_of_errors"] = [f"{name} {unit}" for name, unit in units.items()]
        brief["errors"] = _by_set({key: value for key, value in errors.items() if key != "units"})
    if isinstance(provenance, dict):
        brief["provenance"] = {key: value for key, value in provenance.items() if isinstance(value, str)}
    return brief


def _by_set(errors: dict[str, Any], name: str = "") -> dict[str, Any]:
    """Errors of whole sets of structures, without those of each element in them."""
    inner = {key: value for key, value in errors.items() if isinstance(value, dict)}
    if "all" in inner or not inner:
        return {name: inner.get("all", errors)}
    return {key: row for part, value in inner.items() for key, row in _by_set(value, f"{name} {part}".strip()).items()}


def _show(key: str, value: Any, indent: int = 0) -> None:
    """A header entry: a dict of flat dicts is a table, another dict a list of entries."""
    title = escape(harmless(key.replace("_", " ")))
    if _is_table(value):
        columns = list(dict.fromkeys(column for row in value.values() for column in row))
        rows = [[name, *(_text(row.get(column, ""), digits=4) for column in columns)] for name, row in value.items()]
        console().print(
            table(["", *(column.replace("_", " ") for column in columns)], rows, title=key.replace("_", " "))
        )
    elif isinstance(value, dict):
        say(f"{' ' * indent}[bold]{title}[/]:")
        for inner, entry in value.items():
            _show(inner, entry, indent + 2)
    else:
        say(f"{' ' * indent}[bold]{title}[/]: {escape(_text(value))}")


def _is_table(value: Any) -> bool:
    rows = list(value.values()) if isinstance(value, dict) else []
    return bool(rows) and all(isinstance(row, dict) and not any(map(_is_nested, row.values())) for row in rows)


def _is_nested(value: Any) -> bool:
    return isinstance(value, (dict, list))


def _text(value: Any, digits: int = 6) -> str:
    if isinstance(value, list):
        return ", ".join(_text(entry) for entry in value)
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _species(exact: Potential) -> list[list[str]]:
    """One row per species and head; the last column is what the model really gives for an atom alone."""
    from ase import Atoms
    from ase.data import chemical_symbols

    from ase_equivariant.derivatives import predict
    from ase_equivariant.graph import concatenate, from_atoms

    numbers, rows = exact.atomic_numbers, []
    for h, head in enumerate(exact.heads):
        asked = {"head": h, "attributes": exact.attributes}
        alone = concatenate([from_atoms(Atoms(numbers=[z]), numbers, exact.cutoff, **asked) for z in numbers])
        energies = predict(exact, alone, forces=False).energy.tolist()
        for s, z in enumerate(numbers):
            table_values = (exact.atomic_energies[h, s], exact.scale[h, s], exact.shift[h, s], energies[s])
            rows.append([chemical_symbols[z], head, *(f"{round(float(value), 6) + 0.0:.6f}" for value in table_values)])
    return rows


def _verified(potential: Potential) -> bool:
    """Whether the model in float64 reproduces its golden structures on this machine."""
    from ase_equivariant.golden import verify_golden
    from ase_equivariant.inference.verified import TOLERANCES

    errors, allowed = verify_golden(potential), TOLERANCES["float64"]
    units = {"energy": "eV/atom", "forces": "eV/Å", "stress": "eV/Å³"}
    rows = [[f"{name} ({units[name]})", f"{error:.1e}", f"{allowed[name]:.0e}"] for name, error in errors.items()]
    if not rows:
        say("[bold red]Nothing to verify[/]: the file holds no golden structures")
        return False
    console().print(table(["golden structures, float64", "largest error", "allowed"], rows))
    good = all(error <= allowed[name] for name, error in errors.items())
    say("[bold green]Verified[/] on this machine" if good else "[bold red]Wrong numbers on this machine[/]")
    return good
