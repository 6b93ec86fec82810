"""ase-equivariant, with the backend asked for."""

from __future__ import annotations

import argparse

from worker import MODEL, serve

from ase_equivariant import EquivariantCalculator
from ase_equivariant.architectures import build
from ase_equivariant.potential import Potential


def make(args: argparse.Namespace):
    config = {**MODEL, "num_species": 1, "interaction_first": "residual"}
    unit, zero = [[1.0]], [[0.0]]
    potential = Potential(build("mace", config), atomic_numbers=[14], atomic_energies=zero, scale=unit, shift=zero)
    calc = EquivariantCalculator(potential, device="cpu", backend=args.backend)
    return calc, {"parameters": sum(p.numel() for p in potential.parameters()), "backend": calc.parameters["backend"]}


serve(make, ["torch", "numba"])
