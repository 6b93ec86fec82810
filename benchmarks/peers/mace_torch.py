"""mace-torch, in its own environment: the same model with weights of its own."""

from __future__ import annotations

import argparse
import tempfile

import numpy as np
import torch
from e3nn import o3
from worker import MODEL, serve


def make(args: argparse.Namespace):
    from mace import modules  # here, because it greets on stdout
    from mace.calculators import MACECalculator

    torch.set_default_dtype(torch.float32)
    interaction = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    model = modules.ScaleShiftMACE(
        r_max=MODEL["cutoff"],
        num_bessel=MODEL["num_bessel"],
        num_polynomial_cutoff=MODEL["envelope_power"],
        max_ell=MODEL["l_max"],
        interaction_cls=interaction,
        interaction_cls_first=interaction,
        num_interactions=MODEL["num_interactions"],
        num_elements=1,
        hidden_irreps=o3.Irreps(MODEL["hidden_irreps"]),
        MLP_irreps=o3.Irreps(f"{MODEL['readout_mlp']}x0e"),
        atomic_energies=np.zeros(1),
        avg_num_neighbors=MODEL["avg_num_neighbors"],
        atomic_numbers=[14],
        correlation=MODEL["correlation"],
        gate=torch.nn.functional.silu,
        radial_MLP=MODEL["radial_mlp"],
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        torch.save(model, file.name)
        calc = MACECalculator(model_paths=file.name, device="cpu", default_dtype="float32")
    return calc, {"parameters": sum(p.numel() for p in model.parameters())}


serve(make, ["torch", "e3nn", "mace-torch"])
