"""Radial networks of a model, or splines through them."""

from __future__ import annotations

import numpy as np
import torch

from ase_equivariant.inference.lower.weights import array, dense_weights
from ase_equivariant.inference.program import CannotLowerError
from ase_equivariant.inference.radial import Basis, Network, Transform
from ase_equivariant.inference.splines import Splines, interpolated
from ase_equivariant.nn import linear, radial, transforms


class RadialWriter:
    """What a model's radial networks have in common; `error` is the largest of the splines made so far."""

    def __init__(self, model: torch.nn.Module, exact: bool):
        module, transform = model.radial, getattr(model, "transform", None)
        if type(module) is not radial.RadialBasis or type(transform) not in (type(None), transforms.DistanceTransform):
            raise CannotLowerError(f"radial basis {type(module).__name__}, transform {type(transform).__name__}")
        self.basis = Basis(module.kind, module.cutoff, module.power, array(module.frequencies), module.enveloped)
        self.num_species, self.exact, self.error = len(model.embedding), exact, 0.0
        self.transform, self.kinds = None, np.zeros((self.num_species, self.num_species), np.int64)
        if transform is not None:
            radii = array(transform.radii)
            sizes, kinds = np.unique(0.5 * (radii[:, None] + radii), return_inverse=True)
            self.kinds = kinds.reshape(self.kinds.shape)
            self.transform = Transform(transform.kind, tuple(transform.constants), sizes)

    def __call__(self, module: torch.nn.Module, counts: bool = False) -> Network | Splines:
        kinds = self.kinds
        if type(module) is radial.RadialMLP:
            layers = tuple(dense_weights(dense) for dense in module.layers)
        elif type(module) is linear.Dense:
            layers = (dense_weights(module),)
        elif type(module) is linear.SpeciesDense and self.transform is None:
            layers, kinds = (dense_weights(module),), kinds + np.arange(self.num_species)  # by the sender
        else:
            raise CannotLowerError(f"radial functions {type(module).__name__}")
        network = Network(self.basis, self.transform, layers, kinds, counts)
        if self.exact:
            return network
        table, error = interpolated(network)
        self.error = max(self.error, error)
        return table
