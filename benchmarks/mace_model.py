"""A model of mace-torch with random weights, for benchmarks that run in its environment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from e3nn import o3


def make_mace(settings: dict, atomic_numbers: Sequence[int], atomic_energies: Sequence[float]) -> torch.nn.Module:
    """A ScaleShiftMACE of residual layers; `settings` go by our names, `scale` is 1 where it is missing."""
    from mace import modules  # here, because it greets on stdout

    interaction = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    return modules.ScaleShiftMACE(
        r_max=settings["cutoff"],
        num_bessel=settings["num_bessel"],
        num_polynomial_cutoff=settings["envelope_power"],
        max_ell=settings["l_max"],
        interaction_cls=interaction,
        interaction_cls_first=interaction,
        num_interactions=settings["num_interactions"],
        num_elements=len(atomic_numbers),
        hidden_irreps=o3.Irreps(settings["hidden_irreps"]),
        MLP_irreps=o3.Irreps(f"{settings['readout_mlp']}x0e"),
        atomic_energies=np.array(atomic_energies),
        avg_num_neighbors=settings["avg_num_neighbors"],
        atomic_numbers=list(atomic_numbers),
        correlation=settings["correlation"],
        gate=torch.nn.functional.silu,
        radial_MLP=settings["radial_mlp"],
        atomic_inter_scale=settings.get("scale", 1.0),
        atomic_inter_shift=0.0,
    )
