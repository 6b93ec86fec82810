"""A faster twin of a potential for training steps on a CPU: same weights, fused kernels, tabulated radial networks.

Tables are for float32 only, and for networks of a basis without weights: what a table starts from must not change, so
trained frequencies and radial functions that are no network are evaluated as they are. Validation and the written model
use the radial networks themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from ase_equivariant.nn.contraction import Extension
from ase_equivariant.nn.convolution import Convolution
from ase_equivariant.nn.fused import FusedConvolution
from ase_equivariant.nn.fused_products import FusedExtension
from ase_equivariant.nn.radial import RadialMLP
from ase_equivariant.nn.tabulated import Knots, TabulatedMLP
from ase_equivariant.potential import Potential


def accelerated(potential: Potential) -> Potential:
    """A copy that shares every parameter tensor, so that a step on the twin is a step on the potential."""
    shared = {id(parameter): parameter for parameter in potential.parameters()}
    twin = fuse(copy.deepcopy(potential, shared))
    basis = twin.architecture.radial
    networks = any(isinstance(module, RadialMLP) for module in twin.modules())
    networks = networks and getattr(twin.architecture.config, "tabulable", True)
    if potential.dtype == torch.float32 and networks and not list(basis.parameters()):
        twin.architecture.radial = Knots(basis)
        _replace(twin, {RadialMLP: lambda mlp: TabulatedMLP(mlp, basis)})
    return twin


def fuse(module: torch.nn.Module) -> torch.nn.Module:
    """Replace bricks without weights by their fused equivalents, in place; results stay the same to rounding."""
    _replace(module, {Convolution: FusedConvolution, Extension: FusedExtension})
    return module


def _replace(module: torch.nn.Module, replacements: dict[type, Callable]) -> None:
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in replacements:
                setattr(parent, name, replacements[type(child)](child))
