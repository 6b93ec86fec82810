"""Clebsch-Gordan coefficients of the real spherical harmonics and the symmetric products built from them.

The sign of a coupling is a convention that differs between releases of e3nn. Here the first entry that is not zero is
positive, so that saved weights mean the same with every release.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations_with_replacement

import numpy as np
import torch
from e3nn import o3

_ZERO = 1e-10


@cache
def clebsch_gordan(l1: int, l2: int, l3: int) -> np.ndarray:
    """Real coupling coefficients C[m1, m2, m3], float64, with Σ C² = 1."""
    coefficients = o3.wigner_3j(l1, l2, l3, dtype=torch.float64, device="cpu").numpy()
    coefficients /= np.linalg.norm(coefficients)
    coefficients[abs(coefficients) < _ZERO] = 0.0
    first = coefficients.flat[np.flatnonzero(coefficients)[0]]
    return coefficients * np.sign(first)


def symmetric_products(
    l_max: int, correlation: int, l_out: int, parity: int = -1
) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """Every independent way to couple `correlation` equal factors A to the irrep l_out.

    `parity` -1 gives all of them their natural one, (-1)^l; 1 counts them as even, so that more couplings are allowed.

    MACE eq. (10): because all factors are the same A, only the symmetric part of a generalised Clebsch-Gordan coupling
    contributes. It is a polynomial in the (l_max+1)² components of A.

    Returns
    -------
    monomials : sorted tuples of component indices (l² + l + m)
    coefficients : [n_products, 2 l_out + 1, n_monomials], orthonormal as symmetric tensors times √(2 l_out + 1)
    """
    products = [
        product
        for degrees in combinations_with_replacement(range(l_max + 1), correlation)
        if parity == 1 or sum(degrees) % 2 == l_out % 2
        for product in _independent(_couple(degrees, l_out), degrees)
    ]
    monomials = sorted({monomial for product in products for monomial in product})
    column = {monomial: i for i, monomial in enumerate(monomials)}
    coefficients = np.zeros((len(products), 2 * l_out + 1, len(monomials)))
    for row, product in enumerate(products):
        for monomial, values in product.items():
            coefficients[row, :, column[monomial]] = values
    return monomials, coefficients


def _couple(degrees: tuple[int, ...], l_out: int) -> list[np.ndarray]:
    """All left-to-right couplings of the given l to l_out, each [2 l_1 + 1, ..., 2 l_out + 1]."""
    trees = {degrees[0]: [np.eye(2 * degrees[0] + 1)]}
    for ell in degrees[1:]:
        grown: dict[int, list[np.ndarray]] = {}
        for inner, tensors in trees.items():
            for outer in range(abs(inner - ell), inner + ell + 1):
                coupling = clebsch_gordan(inner, ell, outer)
                grown.setdefault(outer, []).extend(np.tensordot(t, coupling, axes=(-1, 0)) for t in tensors)
        trees = grown
    return trees.get(l_out, [])


def _independent(tensors: list[np.ndarray], degrees: tuple[int, ...]) -> list[dict[tuple[int, ...], np.ndarray]]:
    """Symmetrise tensors to polynomials and keep an independent, normalised set (Gram-Schmidt in fixed order)."""
    polynomials = [_polynomial(tensor, degrees) for tensor in tensors]
    monomials = sorted({monomial for p in polynomials for monomial in p})
    # a monomial's tensor entry is repeated for each distinct order of its factors
    weights = np.array([1.0 / _orderings(monomial) for monomial in monomials])
    kept: list[np.ndarray] = []
    for polynomial in polynomials:
        vector = np.array([polynomial[m] for m in monomials])  # [n_monomials, 2 l_out + 1]
        for other in kept:
            vector = vector - other * np.einsum("im,im,i->", vector, other, weights) / vector.shape[1]
        norm = np.sqrt(np.einsum("im,im,i->", vector, vector, weights) / vector.shape[1])
        if norm > 1e-6:
            vector = vector / norm
            vector[abs(vector) < _ZERO] = 0.0
            first = vector.flat[np.flatnonzero(vector)[0]]
            kept.append(vector * np.sign(first))
    return [{m: v for m, v in zip(monomials, vector) if v.any()} for vector in kept]


def _polynomial(tensor: np.ndarray, degrees: tuple[int, ...]) -> dict[tuple[int, ...], np.ndarray]:
    """Sum the entries of a coupling tensor that multiply the same monomial."""
    polynomial: dict[tuple[int, ...], np.ndarray] = {}
    for index in np.ndindex(*tensor.shape[:-1]):
        monomial = tuple(sorted(ell * ell + m for ell, m in zip(degrees, index)))
        polynomial[monomial] = polynomial.get(monomial, 0.0) + tensor[index]
    return polynomial


def _orderings(monomial: tuple[int, ...]) -> int:
    """Number of distinct orders of a monomial's factors."""
    counts = np.unique(monomial, return_counts=True)[1]
    factorial = np.cumprod(np.arange(1, len(monomial) + 1))
    return int(factorial[-1] // np.prod([factorial[c - 1] for c in counts]))
