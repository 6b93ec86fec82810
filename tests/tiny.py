"""Tiny models with random weights, one per architecture: every physics test runs on each of them."""

from __future__ import annotations

import torch

from ase_equivariant.architectures import ARCHITECTURES, build, build_unweighted
from ase_equivariant.potential import Potential

TINY = {
    "mace": {
        "cutoff": 4.0,
        "avg_num_neighbors": 4.0,
        "num_bessel": 6,
        "radial_mlp": (16, 16),
        "l_max": 2,
        "hidden_irreps": "6x0e+6x1o",
        "correlation": 3,
    },
    "nequip": {
        "cutoff": 4.0,
        "avg_num_neighbors": 4.0,
        "num_bessel": 6,
        "bessel_norm": "unit",  # whose random weights give larger forces
        "radial_mlp": (8,),
        "l_max": 1,
        "hidden_irreps": "4x0e+3x1o+2x1e",
        "num_interactions": 4,
        "readout_mlp": 3,
    },
    "botnet": {
        "cutoff": 4.0,
        "avg_num_neighbors": 3.0,
        "num_bessel": 6,
        "bessel_norm": "unit",  # whose random weights give larger forces
        "radial_mlp": (16, 16),
        "l_max": 2,
        "hidden_irreps": "4x0e+3x1o+2x2e",
        "num_interactions": 3,
        "readout_mlp": 5,
    },
}


def tiny_potential(
    architecture: str = "mace",
    atomic_numbers: tuple[int, ...] = (1, 6, 8, 14, 29),
    dtype: torch.dtype = torch.float64,
    heads: tuple[str, ...] = ("default",),
    **config,
) -> Potential:
    """A potential with random weights, random E0s of some eV, and forces of some eV/Å."""
    settings = {**TINY[architecture], "num_species": len(atomic_numbers), "num_heads": len(heads), **config}
    generator = torch.Generator().manual_seed(1)
    table = torch.rand((3, len(heads), len(atomic_numbers)), generator=generator, dtype=torch.float64)
    return Potential(
        build(architecture, settings, seed=3, dtype=dtype),
        atomic_numbers=atomic_numbers,
        atomic_energies=-5 * table[0],
        scale=0.5 + table[1],
        shift=table[2] - 0.5,
        heads=heads,
    )


def unused_irreps(architecture: str, settings: dict) -> list[str]:
    """Those of `hidden_irreps` without which a model has as many weights: no layer carries them."""
    settings = {"num_species": 1, "cutoff": 4.0, "avg_num_neighbors": 4.0, **settings}
    kinds = ARCHITECTURES[architecture].Config(**settings).hidden_irreps.split("+")

    def weights(some):
        model = build_unweighted(architecture, {**settings, "hidden_irreps": "+".join(some)}, torch.float32)
        return sum(weight.numel() for weight in model.parameters())

    dispensable = [kind for kind in kinds if not kind.endswith("x0e")]
    return [kind for kind in dispensable if weights([k for k in kinds if k != kind]) == weights(kinds)]
