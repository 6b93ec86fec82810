"""The symmetric contraction as sparse polynomials: its weights meet the couplings once, when a model is lowered."""

from __future__ import annotations

import numpy as np
import torch

from ase_equivariant.inference.program import Polynomial


def polynomials(output: torch.nn.Module, start: int, channels: int) -> list[Polynomial]:
    """One polynomial per component of an irrep, from the module of `nn.contraction` that makes it.

    `start` is where the irrep begins in the target.
    """
    terms: dict[tuple[int, ...], np.ndarray] = {}  # monomial -> [n_species, components, channels]
    table = [(i,) for i in range(output.orders[0].coefficients.shape[1])]
    for nu, order in enumerate(output.orders):
        if nu > 0:
            extension = output.extensions[nu - 1]
            pairs = zip(extension.parents.tolist(), extension.lasts.tolist(), strict=True)
            table = [(*table[parent], last) for parent, last in pairs]
        coupling = _array(order.coefficients).reshape(order.num_products, order.dim, len(table))
        weighted = np.einsum("pdm,spk->msdk", coupling, _array(order.weight))
        terms |= {monomial: row for monomial, row in zip(table, weighted, strict=True) if row.any()}
    parts = []
    for component in range(output.orders[0].dim):
        present = sorted(monomial for monomial, row in terms.items() if row[:, component].any())
        coefficients = np.stack([terms[monomial][:, component] for monomial in present], 1)
        parts.append(Polynomial(start + component * channels, tuple(present), coefficients))
    return parts


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
