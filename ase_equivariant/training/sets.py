"""The training, validation and test sets of a run: read, turned into graphs once, and served in batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase.calculators.calculator import InputError
from ase.data import chemical_symbols

from ase_equivariant.text import said, shown
from ase_equivariant.training.config import DataConfig, TrainConfig
from ase_equivariant.training.data import (
    Batch,
    Draw,
    Structure,
    collate,
    config_type,
    element_weights,
    make_batch,
    read_structures,
    split,
    type_weights,
    without_offset,
)


@dataclass(frozen=True)
class Sets:
    """The structures of a run and their graphs, with the atomic numbers of the training structures."""

    train: list[Structure]
    valid: list[Structure]
    test: dict[str, list[Structure]]
    isolated: list[Structure]  # of atoms that only give reference energies
    graphs: dict[int, Batch]  # by id of the structure
    numbers: list[int]

    def batches(self, structures: list[Structure]) -> list[Batch]:
        return [self.graphs[id(s)] for s in structures]


def load_sets(config: TrainConfig, root: Path) -> Sets:
    """Read all structures, find the elements, make the graphs, set validation structures aside."""

    def read(paths: str | list[str] | None) -> list[Structure]:
        paths = [paths] if isinstance(paths, str) else paths or []
        structures = read_structures([root / path for path in paths], config.data.keys, config.loss)
        return [without_offset(s, config.data.stress_offset) for s in structures]

    train = read(config.data.train)
    check_types(config.data.config_type_weights, train)
    valid = read(config.data.valid)
    test = config.data.test if isinstance(config.data.test, dict) else {"test": config.data.test}
    tests = {label: structures for label, paths in test.items() if (structures := read(paths))}
    if config.loss.stress > 0 and all(s.stress is None for s in train):
        raise InputError(
            f"no training structure has a stress under the key {config.data.keys.stress!r} (loss.stress > 0)"
        )
    isolated = [s for s in train if config.data.atomic_energies == "isolated" and is_alone(s, config)]
    alone = {id(s) for s in isolated}
    train = [s for s in train if id(s) not in alone]
    numbers = sorted({int(z) for s in train for z in s.atoms.numbers})
    if config.data.valid_fraction is not None:
        train, valid = split(train, config.data.valid_fraction, config.seed)
    if not train or not valid:
        raise InputError(
            f"{len(train)} training and {len(valid)} validation structures; at least one of each is needed"
        )
    places = {"data.stress_offset": config.data.stress_offset, "loss.forces_factors": config.loss.forces_factors}
    for name, found in {"valid": valid, "test": [s for label in tests for s in tests[label]]}.items():
        places |= {f"data.{name} ({s.source})": s.atoms.symbols for s in found}
    check_elements(places, [chemical_symbols[z] for z in numbers])
    structures = [*train, *valid, *(s for label in tests for s in tests[label])]
    graphs = {id(s): make_batch(s, numbers, float(config.model["cutoff"])) for s in structures}
    return Sets(train, valid, tests, isolated, graphs, numbers)


def is_alone(structure: Structure, config: TrainConfig) -> bool:
    """Whether it is one atom without neighbours."""
    numbers = structure.atoms.numbers
    return len(numbers) == 1 and make_batch(structure, numbers, float(config.model["cutoff"])).graph.n_edges == 0


def check_types(weights: dict[str, float], train: list[Structure]) -> None:
    """Raise the `InputError` of weights of config_types that no training structure has."""
    there = {config_type(s) for s in train} - {""}
    if unknown := sorted(set(weights) - there):
        allowed = f"the config_types of data.train, {said(', '.join(sorted(there)))}" if there else "none, it has none"
        raise InputError(f"data.config_type_weights has {', '.join(map(shown, unknown))}; allowed: {allowed}")


def check_elements(places: dict[str, Iterable[str]], known: list[str]) -> None:
    """Raise the `InputError` of a place in the configuration whose elements no training structure holds."""
    for place, symbols in places.items():
        if unknown := sorted(set(symbols).difference(known)):
            raise InputError(
                f"{place} has {', '.join(unknown)}; allowed: the elements of data.train, {', '.join(known)}"
            )


def loaders(config: TrainConfig, sets: Sets) -> tuple[torch.utils.data.DataLoader, torch.utils.data.DataLoader]:
    """Batches for training, drawn anew each epoch, and for validation, always the same."""
    count = config.data.epoch_structures or len(sets.train)
    draw = Draw(structure_weights(config.data, sets.train), count, config.seed)
    own = torch.Generator()  # spares the process's random numbers
    common = {"batch_size": config.data.batch_size, "collate_fn": collate, "generator": own}
    return (
        torch.utils.data.DataLoader(sets.batches(sets.train), sampler=draw, **common),
        torch.utils.data.DataLoader(sets.batches(sets.valid), shuffle=False, **common),
    )


def structure_weights(config: DataConfig, structures: list[Structure]) -> np.ndarray:
    """How often a structure is drawn, or counts in a validation loss; the mean is 1."""
    weights = type_weights(structures, config.config_type_weights)
    weights = element_weights(structures, weights) if config.balance else weights
    return weights / weights.mean()
