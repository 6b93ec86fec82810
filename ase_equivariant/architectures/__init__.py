"""The architectures: functions of edge vectors and species to node energies, and nothing else.

Each is a final `torch.nn.Module` built from one frozen dataclass, its `Config`. `forward` takes

    vectors [n_edges, 3] Å from sender to receiver, species [n_nodes], senders [n_edges], receivers [n_edges]

and returns node energies [n_nodes, n_heads]. One whose config has `attributes`, whole numbers that it reads of a
structure, takes them last, expanded per node as int64 [n_nodes, n_attributes].

So that a model can be cut down to fewer elements and heads (see `restrict`), a class says what belongs to which:

    SPECIES_WEIGHTS  pattern of the names of weights whose first axis is the species, unless a setting makes them the
                     same for all
    SPECIES_TABLES   fields of the config with one entry per species
    HEAD_WEIGHTS     pattern of the names of weights with one block per head -> the axis of the blocks

A config whose `tabulable` is true says that every `RadialMLP` of its architecture reads `radial` of the lengths as it
is, and nothing else does, so that training on a CPU may read them from a table.

A config's `features`, if it has them, are the irreps of the features before, between and after the layers, so that
training can tell which of `hidden_irreps` no layer carries.

To add an architecture: its file, a line below, and a tiny config in tests/tiny.py.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch.overrides import TorchFunctionMode

from ase_equivariant.architectures.botnet import BOTNet
from ase_equivariant.architectures.mace import MACE
from ase_equivariant.architectures.nequip import NequIP

ARCHITECTURES: dict[str, type[torch.nn.Module]] = {"mace": MACE, "nequip": NequIP, "botnet": BOTNet}


def name_of(architecture: torch.nn.Module) -> str | None:
    """The registered name of an architecture's class, None where it has none."""
    return next((name for name, kind in ARCHITECTURES.items() if type(architecture) is kind), None)


def build(name: str, config: dict, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Make an architecture from its registered name and the fields of its config, with seeded random weights."""
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}: known are {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    known = [f.name for f in fields(architecture.Config)]
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise ValueError(f"unknown {name} config key(s) {', '.join(unknown)}: allowed are {', '.join(known)}")
    try:
        settings = architecture.Config(**config)
    except TypeError as error:
        raise ValueError(f"{name} config: {error}") from error
    return architecture(settings, seed=seed).to(dtype)


def build_unweighted(name: str, config: dict, dtype: torch.dtype) -> torch.nn.Module:
    """Make an architecture whose weights have shapes and no memory, for `load_state_dict(..., assign=True)`.

    So a file that describes a gigantic model is compared with its own tensors before anything gigantic is allocated.
    """
    with _NoWeights():
        return build(name, config, dtype=dtype)


class _NoWeights(TorchFunctionMode):
    """Random and constant numbers that only weights consist of are made on the meta device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.randn:
            kwargs |= {"device": "meta", "generator": None}
        elif function is torch.full:
            kwargs |= {"device": "meta"}
        return function(*args, **kwargs)
