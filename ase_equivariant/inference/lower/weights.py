"""Weights of modules as arrays."""

from __future__ import annotations

import numpy as np
import torch

from ase_equivariant.inference.program import CannotLowerError
from ase_equivariant.nn import linear


def dense_weights(module: torch.nn.Module) -> np.ndarray:
    """Matrices of a dense layer, [n_species or 1, n_in, n_out], with its constant factor."""
    if getattr(module, "bias", None) is not None:
        raise CannotLowerError("bias of a dense layer")
    return biased_weights(module)[0]


def biased_weights(module: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """The matrices, and the bias [1, n_out], zero where there is none."""
    if type(module) not in (linear.Dense, linear.SpeciesDense):
        raise CannotLowerError(f"dense layer {type(module).__name__}")
    weight, bias = array(module.weight) * module.norm, getattr(module, "bias", None)
    bias = np.zeros(weight.shape[-1]) if bias is None else array(bias)
    return weight if weight.ndim == 3 else weight[None], bias[None]


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
