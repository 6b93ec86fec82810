"""`ase-equivariant models`: what is shipped."""

from __future__ import annotations

from ase_equivariant.cli.show import console, say, table

MANY_ELEMENTS = 12


def models() -> None:
    """List the models that are shipped with this package and work offline."""
    from ase_equivariant.zoo import available_models

    names = available_models()
    if not names:
        say("No models are shipped with this installation; give the path of a model file instead of a name.")
        return
    columns = ["name", "elements", "architecture", "level of theory", "size", "licence"]
    console().print(table(columns, [_row(name) for name in names], right=False))


def _row(name: str) -> list[str]:
    from ase_equivariant.checkpoint import read_header
    from ase_equivariant.zoo import resolve

    header = read_header(name)
    architecture = f"{header['architecture']}, {header['config']['cutoff']:g} Å"
    size = f"{resolve(name).stat().st_size / 1e6:.1f} MB"
    theory, licence = (str(header.get(key, "-")) for key in ("level_of_theory", "license"))
    theory = theory.split(" (")[0]  # `info` has the details
    return [name, element_list(header["atomic_numbers"]), architecture, theory, size, licence]


def element_list(atomic_numbers: list[int]) -> str:
    from ase.data import chemical_symbols

    if len(atomic_numbers) > MANY_ELEMENTS:
        return f"{len(atomic_numbers)} elements"
    return " ".join(chemical_symbols[number] for number in atomic_numbers)
