"""Models that nequip-deploy wrote, up to release 0.6: their parts under the names that later releases have.

The differences are where constants stand: the energy of a species is scaled twice, frequencies are multiples of π, the
radial network is e3nn's, two matrices read out the energy, and self-connections see the species itself instead of its
embedding.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ase_equivariant.importers.compiled import activation
from ase_equivariant.importers.nequip import SYMBOLS
from ase_equivariant.importers.nequip_checkpoint import module_tree
from ase_equivariant.importers.records import Content
from ase_equivariant.importers.unpickling import ForeignFileError, Record, record
from ase_equivariant.text import shown

PARTS = {
    "one_hot": "OneHotAtomEncoding",
    "spharm_edges": "SphericalHarmonicEdgeAttrs",
    "radial_basis": "RadialBasisEdgeEncoding",
    "chemical_embedding": "AtomwiseLinear",
    "conv_to_output_hidden": "AtomwiseLinear",
    "output_hidden_to_scalar": "AtomwiseLinear",
    "per_species_rescale": "PerSpeciesScaleShift",
    "total_energy_sum": "AtomwiseReduce",
    "basis": "BesselBasis",
    "cutoff": "PolynomialCutoff",
    "fc": "FullyConnectedNet",
}


def as_packaged(content: Content) -> Content:
    """A deployed model as `import_nequip` takes it; that of any other file as it is."""
    modules = [content.root]
    while inner := [modules[-1].named_children()[name] for name in ("model", "func") if modules[-1].get(name)]:
        modules += inner
    parts = modules[-1].named_children()
    if "one_hot" not in parts:
        return content
    _check(parts, modules)
    layers = {name: part for name, part in parts.items() if part.name.endswith(".ConvNetLayer")}
    cutoff, n_types = float(parts["radial_basis"].get("basis.r_max")), int(parts["one_hot"].get("num_types"))
    names = content.notes.get("type_names", "").split()
    if n_types != len(set(names)) or n_types != len(names) or n_types > len(SYMBOLS):
        raise ForeignFileError(f"it has {n_types} types of atoms, with the names {shown(names)}")
    values: dict[str, Any] = {
        "type_embed.embed_module.weight": _embedding(parts),
        "type_embed.one_hot": torch.eye(n_types, dtype=torch.float64),
        **{f"spharm.{name}": parts["spharm_edges"].get(name) for name in ("irreps_edge_sh", "sh")},
        "edge_norm.r_max": cutoff,
        "edge_norm._rmax_recip": torch.tensor([1.0 / cutoff]),
        "bessel_encode.bessel_weights": _multiples(parts["radial_basis"].get("basis.bessel_weights")),
        "bessel_encode.cutoff.p": parts["radial_basis"].get("cutoff.p"),
        "factor.factor": 2 * math.pi / cutoff**2,
        "per_atom_energy_readout.mlp_module.mlp.0.weight": _readout(parts),
        **{f"total_energy_sum.{name}": parts["total_energy_sum"].get(name) for name in ("reduce", "constant")},
        **_scales(parts, modules),
    }
    for name, layer in layers.items():
        values |= {f"{name}.{key}": value for key, value in _layer(layer, content).items()}
    root = module_tree(values, names)
    return replace(content, root=root, notes={"e3nn_version": "", **content.notes})


def _check(parts: dict[str, Record], modules: list[Record]) -> None:
    """Name every part that stands in the way."""
    radial = parts["radial_basis"].named_children() if "radial_basis" in parts else {}
    known = {**PARTS, **{name: "ConvNetLayer" for name in parts if name.startswith("layer")}}
    unknown = [p.name for name, p in {**parts, **radial}.items() if p.name.rsplit(".", 1)[-1] != known.get(name)]
    unknown += [f"no {name}" for name in PARTS if name not in {**parts, **radial, "per_species_rescale": 0, "fc": 0}]
    unknown += ["a shift of the total energy"] * any(module.get("has_shift") for module in modules)
    if unknown:
        raise ForeignFileError(f"it has parts that this version cannot rebuild: {', '.join(unknown)}")


def _embedding(parts: dict[str, Record]) -> Tensor:
    """Scalars of each species before the first layer, [n_species, features]."""
    n_species = int(parts["one_hot"].get("num_types"))
    return parts["chemical_embedding"].get("linear.weight").double().reshape(n_species, -1) / math.sqrt(n_species)


def _multiples(frequencies: Tensor) -> Tensor:
    """Frequencies over π: whole numbers where they were not trained, which the file's precision hides."""
    multiples = frequencies.double() / math.pi
    whole = multiples.round()
    return whole if torch.allclose(multiples, whole, rtol=1e-6, atol=0.0) else multiples


def _readout(parts: dict[str, Record]) -> Tensor:
    """Two matrices without anything between them are one, [features, 1]."""
    first = parts["conv_to_output_hidden"].get("linear.weight").double()
    last = parts["output_hidden_to_scalar"].get("linear.weight").double()
    hidden = last.numel()
    return first.reshape(-1, hidden) @ last.reshape(hidden, 1) / math.sqrt(hidden)


def _scales(parts: dict[str, Record], modules: list[Record]) -> dict[str, Tensor]:
    """Scales and shifts of the species, times what scales the whole energy; nothing where there is none."""
    factor = math.prod(module.get("scale_by").item() for module in modules if module.get("has_scale"))
    own = parts.get("per_species_rescale", record("none", {}))
    scales, shifts = (own.get(name, torch.empty(0)).double() for name in ("scales", "shifts"))
    scales = scales if scales.numel() else torch.ones(1, dtype=torch.float64)
    tables = {"scales": factor * scales, "shifts": factor * shifts}
    return {f"per_type_energy_scale_shift.{name}": table for name, table in tables.items()}


def _layer(layer: Record, content: Content) -> dict[str, Any]:
    conv = layer.get("conv")
    neighbors = conv.get("avg_num_neighbors") or 1.0
    kept = {name: layer.get(name) for name in ("feature_irreps_hidden", "equivariant_nonlin", "resnet")}
    kept |= {f"conv.{name}": conv.get(name) for name in ("linear_1", "linear_2", "sc") if conv.get(name) is not None}
    return {
        **kept,
        "conv.tp_scatter.tp": conv.get("tp"),
        "conv.avg_num_neighbors_norm.norm_const": torch.tensor([neighbors**-0.5], dtype=torch.float64),
        **{f"conv.edge_mlp.mlp.{key}": value for key, value in _radial_network(conv.get("fc"), content).items()},
    }


def _radial_network(network: Record, content: Content) -> dict[str, Tensor]:
    """Matrices of e3nn's network and the factor of each, which is the gain of the SiLU before it over √n."""
    found: dict[str, Tensor] = {}
    gain = 1.0
    for i, layer in enumerate(network.children()):
        weight = layer.get("weight").double()
        found |= {f"{i}.weight": weight, f"{i}.alpha": torch.tensor(gain / math.sqrt(len(weight)), dtype=torch.float64)}
        if layer.get("act") is not None:
            kind, gain = activation(layer.get("act"), content)
            if kind != "silu":
                raise ForeignFileError(f"its radial network uses {kind} where this version knows silu")
    return found
