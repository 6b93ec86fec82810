"""Writes mace_blocks.json: tiny models of mace-torch as plain data, and what its own calculator gives for them.

Run with mace-torch 0.3.16 (e3nn 0.4.4), which this package does not need: python tests/make_mace_blocks.py
Weights are sines of their index times a factor, so that only the factors are kept; of buffers, what is not zero.
"""

import json
import os
from pathlib import Path

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn 0.4.4 loads its own constants with pickle

import numpy as np
import torch
from ase import Atoms
from e3nn import o3
from mace import modules
from mace.calculators import MACECalculator

NONLINEAR = "RealAgnosticResidualNonLinearInteractionBlock"
ATTENTION = "RealAgnosticAttResidualInteractionBlock"
E0 = [-13.5, -2041.75]
MODELS = {
    "attention": {"interaction_cls": ATTENTION, "interaction_cls_first": "RealAgnosticInteractionBlock"},
    "attention, late cutoff": {
        "interaction_cls": ATTENTION,
        "interaction_cls_first": ATTENTION,
        "apply_cutoff": False,
        "factor": 1.2,
    },
    "density, late cutoff": {"interaction_cls": "RealAgnosticDensityResidualInteractionBlock", "apply_cutoff": False},
    "nonlinear": {
        "interaction_cls": NONLINEAR,
        "interaction_cls_first": NONLINEAR,
        "correlation": [2, 1],
        "factor": 1.5,
    },
    "gaussian": {"radial_type": "gaussian"},
    "chebyshev": {"radial_type": "chebyshev", "distance_transform": "Agnesi"},
    "trained frequencies": {},
    "soft": {"distance_transform": "Soft"},
    "correlations": {"correlation": [3, 1]},
    "edge irreps": {"edge_irreps": "1x0e+1x1o"},
    "first edge irreps": {"edge_irreps": "1x0e+1x1o", "use_edge_irreps_first": True},
    "rotations only": {"use_so3": True, "hidden_irreps": "2x0e+2x1e", "max_ell": 2},
    "one layer": {"num_interactions": 1},
    "three layers, last readout": {"num_interactions": 3, "use_last_readout_only": True},
    "no scale, repulsion": {"class": "MACE", "pair_repulsion": True},
    "tanh": {"gate": torch.tanh},
    "abs": {"gate": torch.abs},
    "no activation": {"gate": None},
    "charge and spin": {
        "embedding_specs": {
            "total_spin": {"type": "categorical", "per": "graph", "num_classes": 4, "emb_dim": 3},
            "total_charge": {"type": "categorical", "per": "graph", "num_classes": 5, "emb_dim": 2, "offset": 2},
        },
    },
    "charge, heads, embedding readout": {
        "embedding_specs": {
            "total_charge": {"type": "categorical", "per": "graph", "num_classes": 3, "emb_dim": 2, "offset": 1},
        },
        "use_embedding_readout": True,
        "heads": ["pbe", "omol"],
        "MLP_irreps": "2x0e",
        "atomic_energies": [E0, [-12.5, -2040.0]],
        "atomic_inter_scale": [0.8, 1.3],
        "atomic_inter_shift": [0.125, -0.25],
    },
    "spin, embedding readout, no scale": {
        "class": "MACE",
        "embedding_specs": {"total_spin": {"type": "categorical", "per": "graph", "num_classes": 3, "emb_dim": 2}},
        "use_embedding_readout": True,
    },
}
REFUSED = {"both parities": {"hidden_irreps": "2x0e+2x0o+2x1o+2x1e"}}
BASE = {
    "class": "ScaleShiftMACE",
    "factor": 4.0,  # of the weights of linear maps
    "r_max": 4.5,
    "num_bessel": 4,
    "num_polynomial_cutoff": 5,
    "max_ell": 1,
    "num_interactions": 2,
    "interaction_cls": "RealAgnosticResidualInteractionBlock",
    "interaction_cls_first": "RealAgnosticResidualInteractionBlock",
    "hidden_irreps": "2x0e+2x1o",
    "MLP_irreps": "3x0e",
    "atomic_energies": E0,
    "atomic_numbers": [1, 8],
    "num_elements": 2,
    "avg_num_neighbors": 7.3,
    "correlation": 2,
    "gate": torch.nn.functional.silu,
    "radial_MLP": [5, 4],
    "atomic_inter_scale": 0.8,
    "atomic_inter_shift": 0.125,
}
ATTRIBUTES = ["heads", "apply_cutoff", "use_agnostic_product", "use_last_readout_only", "avg_num_neighbors"]
ATTRIBUTES += ["specs", "irreps_in", "irreps_out", "hidden_irreps", "f", "cst", "act", "eps"]
ATTRIBUTES += ["_act_scalar", "_act_gate", "_scalar_cst", "_gate_cst", "_layout_is_ir_mul"]
CODE = ("conv_tp.", "contractions_weighting", "contractions_features", "graph_opt")  # modules that are only code
STRUCTURES = [
    Atoms("OH2", [[0.0, 0.0, 0.1], [0.9, 0.1, -0.5], [-0.7, 0.25, -0.6]]),
    Atoms(
        "OHO",
        [[0.0, 0.0, 0.1], [0.9, 0.1, -0.7], [1.5, 1.25, 0.6]],
        cell=[[3, 0.3, 0], [0, 3.2, 0.5], [0.4, 0, 2.9]],
        pbc=True,
    ),
]
STRUCTURES[1].info = {"charge": -1, "spin": 2}  # the first has what is usual, and does not say so


def build(settings):
    settings = {**BASE, **settings}
    kind = settings.pop("class")
    del settings["factor"]
    for name in ("interaction_cls", "interaction_cls_first"):
        settings[name] = modules.interaction_classes[settings[name]]
    for name in ("hidden_irreps", "MLP_irreps", "edge_irreps"):
        settings[name] = o3.Irreps(settings[name]) if settings.get(name) else None
    settings["atomic_energies"] = np.array(settings["atomic_energies"])
    if kind == "MACE":
        del settings["atomic_inter_scale"], settings["atomic_inter_shift"]
    return getattr(modules, kind)(**settings)


def set_weights(model, factor_of_maps):
    """Sines with factors that make forces of about one eV/Å; returns place and factor of each weight."""
    places = {}
    with torch.no_grad():
        for place, (name, weight) in enumerate(model.named_parameters()):
            factor = factor_of_maps if name.endswith(("linear.weight", "linear_1.weight", "linear_2.weight")) else 1.0
            places[name] = [place, factor]
            weight.copy_(factor * torch.sin(1.0 + place + 1.7 * torch.arange(weight.numel())).reshape(weight.shape))
            if name.endswith(("alpha", "beta")):  # of a denominator
                places[name] = [place, factor := 1.0 if weight > 0 else -1.0]
                weight.mul_(factor)
    return places


def describe(module, factors, path=""):
    """A module as plain data."""
    tensors = {}
    for name, weight in module._parameters.items():
        if weight is not None and weight.numel():
            place, factor = factors[path + name]
            tensors[name] = {"shape": list(weight.shape), "place": place, "factor": factor}
    for name, buffer in module._buffers.items():
        if name != "output_mask" and buffer.numel():
            kept = (1, 8) if name == "covalent_radii" else range(buffer.numel())
            sparse = [[i, buffer.flatten()[i].item()] for i in kept if buffer.flatten()[i]]
            dtype = str(buffer.dtype).removeprefix("torch.")
            tensors[name] = {"shape": list(buffer.shape), "dtype": dtype, "sparse": sparse}
    attributes = {name: plain(value) for name, value in vars(module).items() if name in ATTRIBUTES}
    inner = {
        name: child for name, child in module._modules.items() if child is not None and not f"{name}.".startswith(CODE)
    }
    return {
        "class": f"{type(module).__module__}.{type(module).__name__}",
        "attributes": attributes,
        "tensors": tensors,
        "modules": {name: describe(child, factors, f"{path}{name}.") for name, child in inner.items()},
    }


def plain(value):
    if callable(value):
        name = f"{value.__module__ or 'torch'}.{value.__name__}"
        return {"function": name.replace("torch._C._nn", "torch.nn.functional")}
    return str(value) if isinstance(value, o3.Irreps) else value


def results(model, atoms):
    atoms = atoms.copy()
    atoms.calc = MACECalculator(models=[model], device="cpu", default_dtype="float64", head=model.heads[-1])
    found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces().tolist()}
    return found | ({"stress": atoms.get_stress().tolist()} if atoms.pbc.all() else {})


def main():
    torch.set_default_dtype(torch.float64)
    record = {"structures": [], "models": {}}
    for atoms in STRUCTURES:
        fields = ("numbers", "positions", "cell", "pbc")
        structure = {name: np.array(getattr(atoms, name)).tolist() for name in fields}
        record["structures"].append({**structure, "info": atoms.info})
    for name, settings in MODELS.items():
        model = build(settings)
        factors = set_weights(model, settings.get("factor", BASE["factor"]))
        if name == "trained frequencies":
            model.radial_embedding.bessel_fn.bessel_weights *= torch.tensor([1.03, 0.98, 1.01, 0.97])
        tree = describe(model, factors)
        record["models"][name] = {"tree": tree, "results": [results(model, atoms) for atoms in STRUCTURES]}
        print(name, [np.abs(r["forces"]).max() for r in record["models"][name]["results"]], flush=True)
    refused = {name: build(settings) for name, settings in REFUSED.items()}
    record["refused"] = {name: describe(model, set_weights(model, 1.0)) for name, model in refused.items()}
    (Path(__file__).parent / "mace_blocks.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
