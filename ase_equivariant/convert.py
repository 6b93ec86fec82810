"""Any model that can be read, as a file of this package: with its origin, its licence, and numbers that prove it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from ase.data import chemical_symbols

from ase_equivariant.checkpoint import load_with_sha256
from ase_equivariant.golden import golden_probes
from ase_equivariant.potential import Potential
from ase_equivariant.restrict import choose_head, fix_attributes, restricted
from ase_equivariant.zoo import resolve


def convert(
    model: str | os.PathLike,
    elements: Iterable[str] | None = None,
    heads: Iterable[str] | None = None,
    default_head: str | None = None,
    fix: Mapping[str, int] | None = None,
    **about: str | None,
) -> Potential:
    """The potential of any model file or name, with all that its file shall hold: `save_potential` writes it.

    Parameters
    ----------
    elements : symbols of those to keep, all by default; energies of what is left do not change
    heads : names of those to keep, all by default
    default_head : the one that answers where none is asked for
    fix : numbers that the model would read from `Atoms.info`, such as its charge, and which then are those of every
        structure; such a model can be exported and trained, too
    about : what the file shall say of itself, such as `name`, `license`, `level_of_theory`; None leaves it as it is
    """
    whole, sha256 = load_with_sha256(model)
    potential = whole if elements is None and heads is None else restricted(whole, elements, heads)
    if fix is not None:
        potential = fix_attributes(potential, fix)
    if default_head is not None:
        potential.metadata["default_head"] = choose_head(potential, default_head)
    potential.metadata.update({key: value for key, value in about.items() if value is not None})
    path = resolve(model)
    earlier = potential.metadata.get("provenance")
    provenance = {
        "source_file": path.name,
        "source_sha256": sha256,
        **(earlier if isinstance(earlier, dict) else {}),
    }
    if len(potential.atomic_numbers) < len(whole.atomic_numbers):
        symbols = [chemical_symbols[z] for z in potential.atomic_numbers]
        provenance["restricted_to"] = f"{' '.join(symbols)} of {len(whole.atomic_numbers)} elements"
    if len(potential.heads) < len(whole.heads):
        provenance["restricted_to_heads"] = f"{', '.join(potential.heads)} of {', '.join(whole.heads)}"
    if fix is not None:
        provenance["fixed"] = ", ".join(f"{key} {fix.get(key, usual)}" for key, _, _, usual in whole.attributes)
    potential.metadata["provenance"] = provenance
    potential.metadata["golden"] = potential.metadata.get("golden") or golden_probes(potential)
    return potential
