"""MACE as stages."""

from __future__ import annotations

import torch
from e3nn import o3

from ase_equivariant.architectures.mace import MACE
from ase_equivariant.architectures.mace_layers import Layer, NonlinearLayer
from ase_equivariant.inference.lower.writer import Writer, refuse_others
from ase_equivariant.nn.irreps import harmonics_irreps, parse_irreps
from ase_equivariant.nn.readout import NoReadout

PLAIN = {"correlation", "agnostic_product", "distance_transform", "transform_constants"}
PLAIN |= {"covalent_radii", "apply_cutoff", "edge_irreps_first", "edge_irreps", "readout", "readout_activation"}
PLAIN |= {"last_readout_only", "attributes", "embedding_readout"}
CHOICES = dict.fromkeys(
    ("interaction_first", "interaction"), ("nonresidual", "residual", "density", "density_residual", "nonlinear")
)
PARTS = ("linear_up", "convolution", "radial_mlp", "linear", "skip", "contraction", "linear_out", "count")
NONLINEAR_PARTS = (*PARTS, "gate", "linear_node", "linear_gated")


def write(model: MACE, to: Writer) -> None:
    config = model.config
    features = config.features
    density = harmonics_irreps(config.l_max, features[0].dim, -1 if config.parity else 1)
    feats = to.embed(model.embedding)
    if model.attributes is not None:
        to.attributes(model.attributes, feats)
    if model.embedding_readout is not None:
        to.readout(model.embedding_readout, feats)
    for t, (layer, head) in enumerate(zip(model.layers, model.readouts, strict=True)):
        edge = parse_irreps((config.edge_irreps_first if t == 0 else config.edge_irreps) or features[t])
        write_layer = _nonlinear if type(layer) is NonlinearLayer else _layer
        feats = write_layer(layer, to, feats, (features[t], edge, density, features[t + 1]))
        if type(head) is not NoReadout:
            to.readout(head, feats)


def _layer(layer: torch.nn.Module, to: Writer, feats: str, shapes: tuple[o3.Irreps, ...]) -> str:
    irreps, edge, density, irreps_out = shapes
    refuse_others(layer, Layer, PARTS)
    gathered = to.gather(layer, layer.radial_mlp, feats, (irreps, edge, density), layer.norm)
    if not layer.residual:
        gathered = to.linear(layer.skip, gathered, density, density)
    if layer.count is not None:  # a number of each atom, which linear maps of channels leave alone
        gathered = to.divide(gathered, to.count(layer.count), 1.0, 1.0)
    out = _products(layer, to, gathered, density, irreps_out)
    if layer.residual:
        to.linear(layer.skip, feats, irreps, irreps_out, out)
    return out


def _nonlinear(layer: torch.nn.Module, to: Writer, feats: str, shapes: tuple[o3.Irreps, ...]) -> str:
    irreps, edge, density, irreps_out = shapes
    refuse_others(layer, NonlinearLayer, NONLINEAR_PARTS)
    sent = to.linear(layer.linear_up, feats, irreps, edge)
    summed = to.convolve(layer.convolution, layer.radial_mlp, sent)
    gated = layer.gate.irreps_in
    gathered = to.linear(layer.linear, summed, layer.convolution.irreps_out, gated)
    gathered = to.divide(gathered, to.count(layer.count), float(layer.alpha), float(layer.beta))
    to.linear(layer.linear_node, sent, edge, gated, gathered)
    gathered = to.linear(layer.linear_gated, to.gate(layer.gate, gathered, density), density, density)
    out = _products(layer, to, gathered, density, irreps_out)
    to.linear(layer.skip, feats, irreps, irreps_out, out)
    return out


def _products(layer: torch.nn.Module, to: Writer, gathered: str, density: o3.Irreps, irreps_out: o3.Irreps) -> str:
    product = to.contract(layer.contraction, gathered, density[0].mul, irreps_out)
    return to.linear(layer.linear_out, product, irreps_out, irreps_out)
