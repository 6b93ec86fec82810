"""A faster twin of a potential for training: same weights, other bricks.

On a CPU: fused kernels and tabulated radial networks. Tables are for float32 only, for architectures that say so in
their config's `tabulable`, and for networks of a basis without weights: what a table starts from must not change, so
trained frequencies and radial functions that are no network are evaluated as they are. Validation and the written model
use the radial networks themselves.

On a GPU: bricks that never wait for the CPU, so that CUDA graphs can hold them, and fused kernels if Triton is there.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from ase_equivariant.nn.contraction import Extension
from ase_equivariant.nn.convolution import Convolution
from ase_equivariant.nn.fused import FusedConvolution
from ase_equivariant.nn.fused_products import FusedExtension
from ase_equivariant.nn.linear import SpeciesDense
from ase_equivariant.nn.radial import RadialMLP
from ase_equivariant.nn.tabulated import Knots, TabulatedMLP
from ase_equivariant.potential import Potential


def accelerated(potential: Potential) -> Potential:
    """A copy that shares every parameter tensor, so that a step on the twin is a step on the potential."""
    shared = {id(parameter): parameter for parameter in potential.parameters()}
    twin = fuse(copy.deepcopy(potential, shared))
    networks = any(isinstance(module, RadialMLP) for module in twin.modules())
    networks = networks and getattr(twin.architecture.config, "tabulable", False)
    if potential.dtype == torch.float32 and networks and not list(twin.architecture.radial.parameters()):
        basis = twin.architecture.radial
        twin.architecture.radial = Knots(basis)
        _replace(twin, {RadialMLP: lambda mlp: TabulatedMLP(mlp, basis)})
    return twin


def capturable(potential: Potential) -> Potential:
    """A copy that shares every parameter tensor, for CUDA graphs."""
    return make_capturable(copy.deepcopy(potential, {id(parameter): parameter for parameter in potential.parameters()}))


def make_capturable(module: torch.nn.Module) -> torch.nn.Module:
    """Replace bricks whose arrays depend on the values of others, and convolutions where Triton is, in place."""
    replacements = {SpeciesDense: WholeSpeciesDense}
    if next(module.parameters()).is_cuda and _has_triton():
        from ase_equivariant.nn.fused_triton import TritonKernels  # asks for a GPU

        replacements[Convolution] = lambda convolution: FusedConvolution(convolution, TritonKernels)
    _replace(module, replacements)
    return module


def _has_triton() -> bool:
    """Whether Triton is installed, and a C compiler, which it calls."""
    compilers = os.environ.get("CC"), *map(shutil.which, ("clang", "gcc", "cc"))
    return importlib.util.find_spec("triton") is not None and any(compilers)


class WholeSpeciesDense(torch.nn.Module):
    """The `SpeciesDense` it is made from as one matrix product: of x_i in its species' columns and zero in others."""

    def __init__(self, dense: SpeciesDense):
        super().__init__()
        self.weight, self.norm = dense.weight, dense.norm

    def forward(self, x: Tensor, species: Tensor) -> Tensor:
        weight = self.weight * self.norm
        if len(weight) == 1:
            return torch.matmul(x, weight[0])
        own = (species.unsqueeze(1) == torch.arange(len(weight), device=species.device)).to(x.dtype)
        own = own.view(len(species), *[1] * (x.ndim - 2), len(weight), 1)
        return torch.matmul((x.unsqueeze(-2) * own).flatten(-2), weight.flatten(0, 1))


def fuse(module: torch.nn.Module) -> torch.nn.Module:
    """Replace bricks without weights by their fused equivalents, in place; results stay the same to rounding."""
    _replace(module, {Convolution: FusedConvolution, Extension: FusedExtension})
    return module


def _replace(module: torch.nn.Module, replacements: dict[type, Callable]) -> None:
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in replacements:
                setattr(parent, name, replacements[type(child)](child))
