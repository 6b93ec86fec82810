"""`ase-equivariant models`: what is shipped, and what is published elsewhere and downloaded by name."""

from __future__ import annotations

from typing import Annotated

import typer

from ase_equivariant.cli.show import console, say, table

MANY_ELEMENTS = 12


def models(
    accept: Annotated[
        str | None, typer.Option(metavar="NAME", help="Accept the licence of a published model, once for this user.")
    ] = None,
) -> None:
    """List the models that have a name: shipped ones work offline, published ones are downloaded on first use."""
    from ase_equivariant.published import accept as accept_licence
    from ase_equivariant.zoo import available_models

    if accept is not None:
        say(f"Accepted: {accept_licence(accept)}")
        return
    names = available_models()
    if names:
        columns = ["shipped", "elements", "cutoff", "level of theory", "size", "licence"]
        _print(columns, [_row(name) for name in names])
    else:
        say("No models are shipped with this installation.")
    columns = ["published", "elements", "level of theory", "size", "licence", ""]
    published = [name for name in available_models(published=True) if name not in names]
    _print(columns, [_published_row(name) for name in published])
    say("`info NAME` tells more of a model, and downloads it. Licences with a * must be accepted once: --accept NAME.")


def _print(columns: list[str], rows: list[list[str]]) -> None:
    """A table whose names and licences stay whole on a narrow terminal."""
    listed = table(columns, rows, right=False)
    for column in (0, columns.index("licence")):
        listed.columns[column].no_wrap = True
    console().print(listed)


def _published_row(name: str) -> list[str]:
    from ase_equivariant.published import cached_file, entry, is_accepted

    model = entry(name)
    elements = model["elements"] if isinstance(model["elements"], int) else len(model["elements"])
    size = f"{model['size'] / 1e6:.1f} MB" if model["size"] else "-"
    licence = model["license"] + ("" if is_accepted(model["license"]) else "*")
    state = "here" if cached_file(name).is_file() else ""
    return [name, str(elements), model["level_of_theory"].split(" (")[0], size, licence, state]


def _row(name: str) -> list[str]:
    from ase_equivariant.checkpoint import read_header
    from ase_equivariant.zoo import resolve

    header = read_header(name)
    cutoff = f"{header['config']['cutoff']:g} Å"
    size = f"{resolve(name).stat().st_size / 1e6:.1f} MB"
    theory, licence = (str(header.get(key, "-")) for key in ("level_of_theory", "license"))
    theory = theory.split(" (")[0]  # `info` has the details
    return [name, element_list(header["atomic_numbers"]), cutoff, theory, size, licence]


def element_list(atomic_numbers: list[int]) -> str:
    from ase.data import chemical_symbols

    if len(atomic_numbers) > MANY_ELEMENTS:
        return f"{len(atomic_numbers)} elements"
    return " ".join(chemical_symbols[number] for number in atomic_numbers)
