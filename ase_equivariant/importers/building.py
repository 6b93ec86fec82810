"""Architectures for the weights of a file, whose description may ask for more than any machine has."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ase_equivariant.architectures import build_unweighted
from ase_equivariant.importers.unpickling import ForeignFileError, Record, tensors_out

# Ours may have a matrix for each element where theirs has one for all, and zeros where its layers differ in width;
# small models are no danger whatever their file holds.
MAX_GROWTH = 100
SMALL = 10_000_000


def build_for(name: str, config: Any, root: Record) -> torch.nn.Module:
    """An architecture in float64 for the tensors at `root`, refused before it takes memory if they are far too few.

    Its weights are NaN until they are set, so that one which an importer forgets is noticed.
    """
    architecture = build_unweighted(name, asdict(config), torch.float64)
    shapes = architecture.state_dict()
    asked, held = sum(weight.numel() for weight in shapes.values()), numbers_in(root)
    if asked > max(SMALL, MAX_GROWTH * held):
        raise ForeignFileError(f"it describes a model of {asked} weights, and holds {held} numbers only")
    weights = {key: torch.full(weight.shape, torch.nan, dtype=weight.dtype) for key, weight in shapes.items()}
    architecture.load_state_dict(weights, assign=True)
    return architecture


def numbers_in(root: Record) -> int:
    """How many numbers the tensors of a module tree hold, shared ones once."""
    waiting: list[Any] = [root]
    seen: set[int] = set()
    storages: dict[int, int] = {}  # numbers by address
    while waiting:
        value = tensors_out(waiting.pop())
        if isinstance(value, Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes() // value.element_size()
        elif id(value) not in seen:
            seen.add(id(value))
            waiting += _inside(value)
    return sum(storages.values())


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Record):
        return list(value.state.values())
    return list(value.values()) if isinstance(value, dict) else []
