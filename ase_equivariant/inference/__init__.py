"""Backends: different ways to run the same potential.

A backend is made by `Backend(potential, device)` and called as `backend(graph, forces) -> Prediction`. One that says
`keeps_edges` also takes graphs with edges beyond the cutoff, on its own device while the rest is on the CPU, and is
faster where these are the same tensors as before: those of a `DeviceList`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from ase.calculators.calculator import CalculatorSetupError

from ase_equivariant.derivatives import Prediction
from ase_equivariant.graph import Graph
from ase_equivariant.potential import Potential

BACKENDS = {  # name -> module and class, imported when asked for
    "eager": ("ase_equivariant.inference.eager", "Eager"),
    "numba": ("ase_equivariant.inference.numba", "Numba"),
    "torchscript": ("ase_equivariant.inference.torchscript", "TorchScript"),
    "triton": ("ase_equivariant.inference.triton", "Triton"),
}
FASTEST_FIRST = {"cpu": ("numba", "eager"), "cuda": ("triton", "torchscript", "eager")}


def start(name: str, potential: Potential, device: torch.device, **options) -> Callable[[Graph, bool], Prediction]:
    """Make the backend called `name` for a potential on a device, with options of its own."""
    module, backend = BACKENDS[name]
    try:
        found = import_module(module)
    except Exception as error:  # a compiled package that does not fit another fails in any way
        raise CalculatorSetupError(f"backend {name!r} is not available: {error}") from error
    return getattr(found, backend)(potential, device, **options)
