"""From a `Potential` to a `Program`: the same function, every module written as stages, its constants multiplied in.

What no stage stands for is refused by name, and so is every setting this file has not heard of: a program never leaves
out a part of a model in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from e3nn import o3

from ase_equivariant.architectures.botnet import BOTNet
from ase_equivariant.architectures.mace import MACE
from ase_equivariant.architectures.nequip import NequIP
from ase_equivariant.inference.polynomials import polynomials
from ase_equivariant.inference.program import (
    CannotLowerError,
    Contract,
    Convolve,
    Embed,
    Gate,
    Linear,
    Map,
    Norm,
    Program,
    Readout,
    Stage,
    folded,
)
from ase_equivariant.inference.radial import Network, Table, interpolated
from ase_equivariant.nn import contraction, convolution, gate, harmonics, linear, norm, radial, readout
from ase_equivariant.nn.fused import paths_of
from ase_equivariant.nn.irreps import harmonics_irreps, layer_irreps, parse_irreps
from ase_equivariant.potential import Potential

# settings that the modules tell by themselves, and for the others the values that have a lowering
COMMON = {
    **dict.fromkeys(("num_species", "cutoff", "avg_num_neighbors", "num_bessel", "envelope_power", "radial_mlp")),
    **dict.fromkeys(("l_max", "hidden_irreps", "num_interactions", "readout_mlp", "num_heads", "trainable_bessel")),
    "interaction_first": ("nonresidual", "residual"),
}
KNOWN = {
    MACE: {
        **COMMON,
        **dict.fromkeys(("correlation", "agnostic_product", "parity")),
        "interaction": ("residual", "nonresidual"),
    },
    NequIP: {**COMMON, **dict.fromkeys(("parity", "skip", "resnet", "normalisation", "embedding_channels"))},
    BOTNet: {**COMMON, "radial": ("agnostic", "element")},
}


def lower(potential: Potential, exact: bool) -> Program:
    """The program of a potential; `exact` keeps the radial networks, otherwise splines take their place.

    Raises
    ------
    CannotLowerError
        The potential has a part that this file does not know.
    """
    model = potential.architecture
    _check(potential)
    lowering = _Lowering(model, exact)
    with torch.no_grad():
        {MACE: _mace, NequIP: _nequip, BOTNet: _botnet}[type(model)](model, lowering)
    harmonics_of = tuple(_array(degree.coefficients) for degree in model.harmonics.degrees)
    return folded(Program(tuple(lowering.stages), lowering.widths, harmonics_of, lowering.radial_error))


def _check(potential: Potential) -> None:
    """Refuse what this file has not heard of: an architecture, a setting, or a repulsion beside the network."""
    model = potential.architecture
    if type(model) not in KNOWN:
        raise CannotLowerError(f"architecture {type(model).__name__}")
    for field in fields(model.config):
        value, known = getattr(model.config, field.name), KNOWN[type(model)]
        allowed = known.get(field.name, (field.default,))
        if allowed is not None and value not in allowed:
            raise CannotLowerError(f"{field.name} = {value!r}")
    parts = {type(module).__name__ for module in potential.children() if module is not model}
    if parts:
        raise CannotLowerError(f"part {', '.join(sorted(parts))} of the potential")


def _mace(model: MACE, to: _Lowering) -> None:
    hidden = parse_irreps(model.config.hidden_irreps)
    scalars = o3.Irreps([hidden[0]])
    feats, irreps = to.embed(model.embedding), scalars
    for t, (layer, head) in enumerate(zip(model.layers, model.readouts, strict=True)):
        irreps_out = scalars if t == len(model.layers) - 1 else hidden
        _refuse_others(layer, ("linear_up", "convolution", "radial_mlp", "linear", "skip", "contraction", "linear_out"))
        density = harmonics_irreps(model.config.l_max, scalars.dim)
        summed = to.convolve(layer, layer.radial_mlp, feats, irreps)
        gathered = to.linear(layer.linear, summed, layer.convolution.irreps_out, density)
        if not layer.residual:
            gathered = to.linear(layer.skip, gathered, density, density)
        product = to.contract(layer.contraction, gathered, scalars.dim, irreps_out)
        out = to.linear(layer.linear_out, product, irreps_out, irreps_out)
        if layer.residual:
            to.linear(layer.skip, feats, irreps, irreps_out, out)
        feats, irreps = out, irreps_out
        to.readout(head, feats)


def _nequip(model: NequIP, to: _Lowering) -> None:
    config = model.config
    edges = harmonics_irreps(config.l_max, parity=-1 if config.parity else 1)
    features = layer_irreps(parse_irreps(config.hidden_irreps), edges, config.num_interactions)
    features[0] = o3.Irreps([(model.embedding.shape[1], "0e")])
    feats = to.embed(model.embedding)
    for layer, irreps, irreps_out in zip(model.layers, features[:-1], features[1:], strict=True):
        _refuse_others(layer, ("linear_up", "convolution", "radial_mlp", "linear", "skip", "norms", "gate"))
        gated = layer.gate.irreps_in
        summed = to.convolve(layer, layer.radial_mlp, feats, irreps)
        out = to.linear(layer.linear, summed, layer.convolution.irreps_out, gated)
        if layer.residual:
            to.linear(layer.skip, feats, irreps, gated, out)
        else:
            out = to.linear(layer.skip, out, gated, gated)
        for module in layer.norms:
            out = to.norm(module, out, gated)
        out = to.gate(layer.gate, out, irreps_out)
        to.identity(layer.identity, feats, irreps, irreps_out, out)
        feats = out
    if isinstance(model.hidden, linear.Dense):
        feats = to.dense(model.hidden, feats)
    to.readout(model.readout, feats)


def _botnet(model: BOTNet, to: _Lowering) -> None:
    config = model.config
    features = layer_irreps(parse_irreps(config.hidden_irreps), harmonics_irreps(config.l_max), config.num_interactions)
    feats = to.embed(model.embedding)
    for layer, head, irreps, irreps_out in zip(model.layers, model.readouts, features[:-1], features[1:], strict=True):
        _refuse_others(layer, ("linear_up", "convolution", "radial_weights", "linear", "skip"))
        summed = to.convolve(layer, layer.radial_weights, feats, irreps)
        out = to.linear(layer.linear, summed, layer.convolution.irreps_out, irreps_out)
        if layer.residual:
            to.linear(layer.skip, feats, irreps, irreps_out, out)
        else:
            out = to.linear(layer.skip, out, irreps_out, irreps_out)
        feats = out
        to.readout(head, feats)


def _refuse_others(layer: torch.nn.Module, known: Sequence[str]) -> None:
    others = [f"{name} ({type(module).__name__})" for name, module in layer.named_children() if name not in known]
    if others:
        raise CannotLowerError(f"part {', '.join(others)} of a layer")


class _Lowering:
    """Writes stages down; values are named by a running number."""

    def __init__(self, model: torch.nn.Module, exact: bool):
        self.basis, self.exact = model.radial, exact
        if type(self.basis) is not radial.RadialBasis or type(model.harmonics) is not harmonics.SphericalHarmonics:
            raise CannotLowerError(
                f"radial basis {type(self.basis).__name__}, harmonics {type(model.harmonics).__name__}"
            )
        self.stages: list[Stage] = []
        self.widths: dict[str, int] = {}
        self.radial_error = 0.0

    def value(self, width: int) -> str:
        name = f"x{len(self.widths)}"
        self.widths[name] = width
        return name

    def embed(self, table: torch.Tensor) -> str:
        target = self.value(table.shape[1])
        self.stages.append(Embed(target, _array(table)))
        return target

    def convolve(self, layer: torch.nn.Module, network: torch.nn.Module, source: str, irreps: o3.Irreps) -> str:
        """The layer's map of what is sent, and its convolution."""
        conv = layer.convolution
        if type(conv) is not convolution.Convolution:
            raise CannotLowerError(f"convolution {type(conv).__name__}")
        muls = [block // ir.dim for block, (_, ir) in zip(conv.blocks_in, irreps, strict=True)]
        sent_irreps = o3.Irreps([(mul, ir) for mul, (_, ir) in zip(muls, irreps)])
        sent = self.linear(layer.linear_up, source, irreps, sent_irreps, factor=layer.norm)
        target = self.value(conv.irreps_out.dim)
        paths = paths_of(conv, _array(conv.couplings))
        self.stages.append(Convolve(sent, None, target, paths, self.radial(network)))
        return target

    def radial(self, module: torch.nn.Module) -> Network | Table:
        if type(module) is radial.RadialMLP:
            layers = tuple(_weights(dense) for dense in module.layers)
        elif type(module) is linear.SpeciesDense:
            layers = (_weights(module),)
        else:
            raise CannotLowerError(f"radial functions {type(module).__name__}")
        basis = self.basis
        network = Network(basis.cutoff, basis.power, _array(basis.frequencies), layers)
        if self.exact:
            return network
        table, error = interpolated(network)
        self.radial_error = max(self.radial_error, error)
        return table

    def linear(
        self,
        module: torch.nn.Module,
        source: str,
        irreps_in: o3.Irreps,
        irreps_out: o3.Irreps,
        target: str | None = None,
        factor: float = 1.0,
    ) -> str:
        if type(module) not in (linear.Linear, linear.SpeciesLinear):
            raise CannotLowerError(f"linear map {type(module).__name__}")
        weights = [_weights(dense) * factor for dense in module.maps]
        return self.maps(
            zip(module.sources, module.targets, weights, strict=True), source, irreps_in, irreps_out, target
        )

    def maps(self, blocks, source: str, irreps_in: o3.Irreps, irreps_out: o3.Irreps, target: str | None = None) -> str:
        """A linear stage of (block in, block out, weights)."""
        target = target or self.value(irreps_out.dim)
        starts_in, starts_out = ([s.start for s in irreps.slices()] for irreps in (irreps_in, irreps_out))
        maps = tuple(Map(irreps_in[i].ir.dim, starts_in[i], starts_out[o], w) for i, o, w in blocks)
        self.stages.append(Linear(source, target, maps))
        return target

    def dense(self, module: linear.Dense, source: str) -> str:
        weights = _weights(module)
        target = self.value(weights.shape[2])
        self.stages.append(Linear(source, target, (Map(1, 0, 0, weights),)))
        return target

    def identity(
        self, pairs: Sequence[int], source: str, irreps: o3.Irreps, irreps_out: o3.Irreps, target: str
    ) -> None:
        blocks = [(i, o, np.eye(irreps[i].mul)[None]) for o, i in enumerate(pairs) if i >= 0]
        if blocks:
            self.maps(blocks, source, irreps, irreps_out, target)

    def contract(self, module: torch.nn.Module, source: str, channels: int, irreps_out: o3.Irreps) -> str:
        if type(module) is not contraction.SymmetricContraction:
            raise CannotLowerError(f"product {type(module).__name__}")
        target = self.value(irreps_out.dim)
        parts = [
            polynomial
            for output, start in zip(module.outputs, irreps_out.slices(), strict=True)
            for polynomial in polynomials(output, start.start, channels)
        ]
        self.stages.append(Contract(source, target, channels, tuple(parts)))
        return target

    def gate(self, module: torch.nn.Module, source: str, irreps_out: o3.Irreps) -> str:
        if type(module) is not gate.Gate or getattr(module, "sigmoid", False):
            raise CannotLowerError(f"gate {type(module).__name__} of a kind of its own")
        target = self.value(irreps_out.dim)
        starts_in, starts_out = ([s.start for s in irreps.slices()] for irreps in (module.irreps_in, irreps_out))
        odd, gated, used = [], [], irreps_out[0].mul
        for i, (mul, ir) in enumerate(irreps_out[1:], 1):
            if ir.l == 0:
                odd.append((starts_in[i], starts_out[i], mul))
            else:
                gated.append((used, starts_in[i], starts_out[i], ir.dim, mul))
                used += mul
        gains = module.even_gain, module.odd_gain
        self.stages.append(Gate(source, target, irreps_out[0].mul, tuple(odd), tuple(gated), *gains))
        return target

    def norm(self, module: torch.nn.Module, source: str, irreps: o3.Irreps) -> str:
        if type(module) is not norm.RMSNorm:
            raise CannotLowerError(f"norm {type(module).__name__}")
        target = self.value(irreps.dim)
        shares = np.concatenate(
            [
                np.full(mul * ir.dim, share / (mul * ir.dim * len(irreps)))
                for share, (mul, ir) in zip(module.shares, irreps, strict=True)
            ]
        )
        weights = np.concatenate(
            [np.tile(_array(w), ir.dim) for w, (_, ir) in zip(module.weights, irreps, strict=True)]
        )
        self.stages.append(Norm(source, target, shares, weights, module.epsilon))
        return target

    def readout(self, module: torch.nn.Module, source: str) -> None:
        if type(module) is readout.LinearReadout:
            stage = Readout(source, _weights(module.linear)[0].T.copy(), None)
        elif type(module) is readout.MLPReadout:
            hidden = _weights(module.hidden)[0]
            heads, width = module.weight.shape
            hidden = hidden.reshape(len(hidden), heads, width).transpose(1, 0, 2).copy()
            stage = Readout(source, _array(module.weight) * module.norm, hidden)
        else:
            raise CannotLowerError(f"readout {type(module).__name__}")
        self.stages.append(stage)


def _weights(module: torch.nn.Module) -> np.ndarray:
    """Matrices of a dense layer, [n_species or 1, n_in, n_out], with its constant factor."""
    if type(module) not in (linear.Dense, linear.SpeciesDense):
        raise CannotLowerError(f"dense layer {type(module).__name__}")
    if getattr(module, "bias", None) is not None:
        raise CannotLowerError("bias of a dense layer")
    weight = _array(module.weight) * module.norm
    return weight if weight.ndim == 3 else weight[None]


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
