"""The modules of a model, one after the other, as stages with their weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from e3nn import o3

from ase_equivariant.inference.lower.radial import RadialWriter
from ase_equivariant.inference.lower.weights import array, dense_weights
from ase_equivariant.inference.polynomials import polynomials
from ase_equivariant.inference.program import (
    CannotLowerError,
    Contract,
    Convolve,
    Divide,
    Embed,
    EmbedAttributes,
    Gate,
    Linear,
    Map,
    Norm,
    Readout,
    Stage,
)
from ase_equivariant.nn import attributes, contraction, convolution, gate, harmonics, linear, norm, readout
from ase_equivariant.nn.fused import Path, paths_of


def refuse_others(layer: torch.nn.Module, kind: type, known: Sequence[str]) -> None:
    """Refuse a layer of another kind, or with parts that are not known."""
    if type(layer) is not kind:
        raise CannotLowerError(f"layer {type(layer).__name__}")
    others = [f"{name} ({type(module).__name__})" for name, module in layer.named_children() if name not in known]
    if others:
        raise CannotLowerError(f"part {', '.join(others)} of a layer")


class Writer:
    """Writes stages down; values are named by a running number."""

    def __init__(self, model: torch.nn.Module):
        if type(model.harmonics) is not harmonics.SphericalHarmonics:
            raise CannotLowerError(f"harmonics {type(model.harmonics).__name__}")
        self.num_species = len(model.embedding)
        self.radial = RadialWriter(model)
        self.stages: list[Stage] = []
        self.widths: dict[str, int] = {}

    def value(self, width: int) -> str:
        name = f"x{len(self.widths)}"
        self.widths[name] = width
        return name

    def embed(self, table: torch.Tensor) -> str:
        target = self.value(table.shape[1])
        self.stages.append(Embed(target, array(table)))
        return target

    def attributes(self, module: torch.nn.Module, target: str) -> None:
        """What a structure is known by besides its atoms, on top of the embedding of species."""
        if type(module) is not attributes.AttributeEmbedding:
            raise CannotLowerError(f"attributes {type(module).__name__}")
        self.stages.append(EmbedAttributes(target, array(module.table) * module.norm, module.starts.numpy()))

    def gather(
        self,
        layer: torch.nn.Module,
        network: torch.nn.Module,
        feats: str,
        irreps: tuple[o3.Irreps, o3.Irreps, o3.Irreps],
        factor: float | np.ndarray,
    ) -> str:
        """What a layer gathers of neighbours; `irreps` are of the features, of what is sent, and of the result."""
        irreps_in, irreps_edge, irreps_out = irreps
        sent = self.linear(layer.linear_up, feats, irreps_in, irreps_edge, factor=factor)
        summed = self.convolve(layer.convolution, network, sent)
        return self.linear(layer.linear, summed, layer.convolution.irreps_out, irreps_out)

    def skip(self, layer: torch.nn.Module, feats: str, irreps: o3.Irreps, gathered: str, irreps_out: o3.Irreps) -> str:
        """The layer's skip connection: added to what was gathered, or a map of it where the layer is not residual."""
        if not layer.residual:
            return self.linear(layer.skip, gathered, irreps_out, irreps_out)
        return self.linear(layer.skip, feats, irreps, irreps_out, gathered)

    def convolve(self, conv: torch.nn.Module, network: torch.nn.Module, source: str) -> str:
        if type(conv) is not convolution.Convolution:
            raise CannotLowerError(f"convolution {type(conv).__name__}")
        target = self.value(conv.irreps_out.dim)
        self.stages.append(Convolve(source, None, target, paths_of(conv, array(conv.couplings)), self.radial(network)))
        return target

    def count(self, network: torch.nn.Module) -> str:
        """A smooth number of neighbours: a convolution in which every atom sends one."""
        target = self.value(1)
        path = Path(width=1, start_in=0, start_out=0, stride_out=1, weight=0, entries=((0, 0, 0, 1.0),))
        ones = np.ones((self.num_species, 1))
        self.stages.append(Convolve(None, ones, target, (path,), self.radial(network, counts=True)))
        return target

    def divide(self, source: str, divisor: str, alpha: float, beta: float) -> str:
        target = self.value(self.widths[source])
        self.stages.append(Divide(source, divisor, target, alpha, beta))
        return target

    def linear(
        self,
        module: torch.nn.Module,
        source: str,
        irreps_in: o3.Irreps,
        irreps_out: o3.Irreps,
        target: str | None = None,
        factor: float | np.ndarray = 1.0,
    ) -> str:
        """`factor` is one number, or one per species [n_species, 1, 1]."""
        if type(module) not in (linear.Linear, linear.SpeciesLinear):
            raise CannotLowerError(f"linear map {type(module).__name__}")
        weights = [dense_weights(dense) * factor for dense in module.maps]
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
        weights = dense_weights(module)
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
        if type(module) is not gate.Gate:
            raise CannotLowerError(f"gate {type(module).__name__}")
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
        opening = ("sigmoid", module.sigmoid_gain) if module.sigmoid else ("silu", module.even_gain)
        self.stages.append(Gate(source, target, irreps_out[0].mul, tuple(odd), tuple(gated), *gains, *opening))
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
        weights = np.concatenate([np.tile(array(w), ir.dim) for w, (_, ir) in zip(module.weights, irreps, strict=True)])
        self.stages.append(Norm(source, target, shares, weights, module.epsilon))
        return target

    def readout(self, module: torch.nn.Module, source: str) -> None:
        if type(module) is readout.LinearReadout:
            weights = dense_weights(module.linear)[0].T.copy()
            self.stages.append(Readout(source, (), weights, np.zeros(len(weights)), "silu"))
            return
        if type(module) not in (readout.MLPReadout, readout.BiasReadout):
            raise CannotLowerError(f"readout {type(module).__name__}")
        weights = array(module.weight) * module.norm
        heads, width = weights.shape
        biased = type(module) is readout.BiasReadout
        first = dense_weights(module.first if biased else module.hidden)[0]
        hidden = [(first.reshape(len(first), heads, width).transpose(1, 0, 2).copy(), np.zeros((heads, width)))]
        if biased:
            hidden.append((array(module.second) * module.norm, array(module.second_bias)))
        bias = array(module.bias) if biased else np.zeros(heads)
        self.stages.append(Readout(source, tuple(hidden), weights, bias, module.activation))
