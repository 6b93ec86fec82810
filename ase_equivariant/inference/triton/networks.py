"""A radial network whose arrays are torch's, on a device: `inference.radial` evaluates it for all edges at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ase_equivariant.inference.radial import Layer, Network, Pair
from ase_equivariant.inference.triton.compile import Compiler


@dataclass(frozen=True)
class MixedLayer(Layer):
    """A layer for edges of several kinds; `needed` are those that there may be."""

    needed: Sequence[int] = (0,)

    def multiplied(self, values: Tensor, slopes: Tensor, kind: Tensor) -> Pair:
        values, slopes = (x.to(self.weights.dtype) for x in (values, slopes))  # the basis is in float64
        first, *others = self.needed if len(self.weights) > 1 else (0,)
        found = values @ self.weights[first], slopes @ self.weights[first]
        for one in others:
            mine, weights = (kind == one)[:, None], self.weights[one]
            found = torch.where(mine, values @ weights, found[0]), torch.where(mine, slopes @ weights, found[1])
        return found


def on_device(network: Network, compiler: Compiler) -> Network:
    """Its basis in float64, its layers in the precision of the compiler."""

    def exact(array) -> Tensor:
        return torch.as_tensor(array, device=compiler.device)

    layers = []
    for layer in network.layers:
        norm = layer.norm and tuple(map(compiler.constant, layer.norm))
        layers.append(MixedLayer(compiler.constant(layer.weights), compiler.constant(layer.bias), norm))
    transform = network.transform and replace(network.transform, sizes=exact(network.transform.sizes))
    basis = replace(network.basis, frequencies=exact(network.basis.frequencies))
    return replace(network, basis=basis, transform=transform, layers=tuple(layers))


def of_kinds(network: Network, needed: Sequence[int]) -> Network:
    """The same for structures whose edges are of these kinds."""
    return replace(network, layers=tuple(replace(layer, needed=needed) for layer in network.layers))
