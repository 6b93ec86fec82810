"""What goes into the header of a model file: names, licences, errors, provenance and golden structures."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ase.data import chemical_symbols

from ase_equivariant.golden import golden_structures
from ase_equivariant.potential import Potential
from ase_equivariant.training.config import TrainConfig
from ase_equivariant.training.data import Structure
from ase_equivariant.training.loss import UNITS

if TYPE_CHECKING:
    from ase_equivariant.training.sets import Sets

PACKAGES = ("ase-equivariant", "torch", "lightning", "pytorch-optimizer", "e3nn", "ase", "vesin", "numpy")


def describe_model(config: TrainConfig, raw: dict, sets: Sets, potential: Potential, record: dict) -> dict[str, Any]:
    """The free keys of the header; `raw` is the configuration as written, `record` the epoch the weights are from."""
    start = potential.metadata.get("start", {})
    inherited = {key: start.get(key, "") for key in ("license", "citation") if not getattr(config.metadata, key)}
    return {
        "name": config.name,
        "units": {"energy": "eV", "length": "Å"},
        "atomic_energies_source": energies_source(config),
        **asdict(config.metadata),
        **inherited,
        "errors": {"units": UNITS, "validation": record["valid"]},
        "provenance": {
            "date": datetime.now(timezone.utc).date().isoformat(),
            "packages": package_versions(),
            "seed": config.seed,
            "epoch": record["epoch"],
            "structures": {"train": len(sets.train), "validation": len(sets.valid)},
            "elements": count_structures(sets.train),
            "config": raw,
        },
        "golden": golden_structures(potential, [s.atoms for s in choose_golden(sets.valid, config.golden)]),
    }


def energies_source(config: TrainConfig) -> str:
    """Where the reference energies come from, in words."""
    mode = config.data.atomic_energies
    if isinstance(mode, dict):
        return "given"
    if mode == "isolated":
        return "isolated atoms"
    if config.start is None:
        return "least squares"
    return "the start's" if mode is None else "the start's, corrected by least squares"


def package_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from a source tree
            continue
    return versions


def count_structures(structures: list[Structure]) -> dict[str, int]:
    """Training structures in which each element occurs."""
    numbers = [int(z) for s in structures for z in set(s.atoms.numbers)]
    return {chemical_symbols[z]: numbers.count(z) for z in sorted(set(numbers))}


def choose_golden(structures: list[Structure], count: int) -> list[Structure]:
    """Small structures that differ in composition: the smallest of each chemical system, then the second smallest, …"""
    by_size = sorted(structures, key=lambda s: (len(s.atoms), s.source))
    seen: dict[str, int] = {}
    ranked = []
    for structure in by_size:
        seen[structure.system] = seen.get(structure.system, 0) + 1
        ranked.append((seen[structure.system], len(structure.atoms), structure.source, structure))
    return [entry[-1] for entry in sorted(ranked, key=lambda entry: entry[:3])][:count]
