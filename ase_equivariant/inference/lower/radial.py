"""Radial networks of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ase_equivariant.inference.lower.weights import array, biased_weights
from ase_equivariant.inference.program import CannotLowerError
from ase_equivariant.inference.radial import Basis, Layer, Network, Transform
from ase_equivariant.nn import linear, norm, radial, transforms


class RadialWriter:
    """What a model's radial networks have in common."""

    def __init__(self, model: torch.nn.Module):
        module, transform = model.radial, getattr(model, "transform", None)
        if type(module) is not radial.RadialBasis or type(transform) not in (type(None), transforms.DistanceTransform):
            raise CannotLowerError(f"radial basis {type(module).__name__}, transform {type(transform).__name__}")
        self.basis = Basis(module.kind, module.cutoff, module.power, array(module.frequencies), module.enveloped)
        self.amplitudes = array(module.amplitudes)
        self.num_species = len(model.embedding)
        self.transform, self.kinds = None, np.zeros((self.num_species, self.num_species), np.int64)
        if transform is not None:
            radii = array(transform.radii)
            sizes, kinds = np.unique(0.5 * (radii[:, None] + radii), return_inverse=True)
            self.kinds = kinds.reshape(self.kinds.shape)
            self.transform = Transform(transform.kind, tuple(transform.constants), sizes)

    def __call__(self, module: torch.nn.Module, counts: bool = False) -> Network:
        if type(module) is radial.PairMLP:
            return self._of_pairs(module, counts)
        kinds = self.kinds
        if type(module) is radial.RadialMLP:
            layers = tuple(Layer(*biased_weights(dense)) for dense in module.layers)
        elif type(module) is linear.Dense:
            layers = (Layer(*biased_weights(module)),)
        elif type(module) is linear.SpeciesDense and self.transform is None:
            layers, kinds = (Layer(*biased_weights(module)),), kinds + np.arange(self.num_species)  # by the sender
        else:
            raise CannotLowerError(f"radial functions {type(module).__name__}")
        return self._network(self.transform, layers, kinds, counts)

    def _of_pairs(self, module: radial.PairMLP, counts: bool) -> Network:
        """Each pair of receiver and sender is a kind: its species are a bias of the first layer."""
        transform = self.transform and replace(self.transform, sizes=self.transform.sizes[self.kinds].ravel())
        kinds = np.arange(self.num_species**2).reshape(self.kinds.shape)
        weights, bias = zip(*map(biased_weights, (module.first, *module.layers)), strict=True)
        ends = (array(module.received)[:, None] + array(module.sent)).reshape(kinds.size, -1)
        layers = [Layer(w, b) for w, b in zip(weights, (bias[0] + ends, *bias[1:]), strict=True)]
        for i, scaling in enumerate(module.norms):
            layers[i] = _normalised(layers[i], scaling)
        return self._network(transform, layers, kinds, counts)

    def _network(
        self, transform: Transform | None, layers: Sequence[Layer], kinds: np.ndarray, counts: bool
    ) -> Network:
        """Amplitudes of the basis become a factor of the first layer's weights."""
        first = replace(layers[0], weights=self.amplitudes[:, None] * layers[0].weights)
        return Network(self.basis, transform, (first, *layers[1:]), kinds, counts)


def _normalised(layer: Layer, module: torch.nn.Module) -> Layer:
    if type(module) is not norm.LayerNorm:
        raise CannotLowerError(f"norm {type(module).__name__} of a radial network")
    weights, bias = (x - x.mean(-1, keepdims=True) for x in (layer.weights, layer.bias))
    return Layer(weights, bias, (array(module.weight)[None], array(module.bias)[None]))
