"""Backends: different ways to run the same potential.

A backend is made by `Backend(potential, device)` and called as `backend(graph, forces) -> Prediction`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch

from ase_equivariant.derivatives import Prediction
from ase_equivariant.graph import Graph
from ase_equivariant.potential import Potential

BACKENDS = {  # name -> module and class, imported when asked for
    "eager": ("ase_equivariant.inference.eager", "Eager"),
    "torchscript": ("ase_equivariant.inference.torchscript", "TorchScript"),
}
FASTEST_FIRST = {"cpu": ("eager",), "cuda": ("torchscript", "eager")}


def start(name: str, potential: Potential, device: torch.device) -> Callable[[Graph, bool], Prediction]:
    """Make the backend called `name` for a potential on a device."""
    module, backend = BACKENDS[name]
    return getattr(import_module(module), backend)(potential, device)
