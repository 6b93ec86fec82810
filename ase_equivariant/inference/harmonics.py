"""Spherical harmonics as source: polynomials of the unit vector px, py, pz, and their gradients gx, gy, gz."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement

import numpy as np


def products(l_max: int) -> list[str]:
    """Lines that make every monomial of degrees 2 … l_max, from the one with a factor less."""
    return [
        f"{_product(m)} = {_product(m[:-1])} * {_product(m[-1:])}"
        for ell in range(2, l_max + 1)
        for m in _monomials(ell)
    ]


def values(harmonics: tuple[np.ndarray, ...]) -> Iterator[tuple[int, str]]:
    """Place l² + l + m and expression of each harmonic from l = 1 on; `harmonics` are those of a `Program`."""
    for ell, matrix in enumerate(harmonics, 1):
        for m, row in enumerate(matrix):
            yield ell * ell + m, _sum(row.tolist(), map(_product, _monomials(ell)))


def gradients(ell: int, matrix: np.ndarray, name: Callable[[int], str]) -> list[str]:
    """Lines that add Σ_m d_m ∂Y_lm/∂p to gx, gy and gz; `name(m)` is the name of d_m, m from 0 to 2l."""
    lines = []
    for column, monomial in enumerate(_monomials(ell)):
        coefficients = matrix[:, column].tolist()
        if not any(coefficients):
            continue
        lines.append(f"q = {_sum(coefficients, map(name, range(2 * ell + 1)))}")
        for axis in sorted(set(monomial)):
            rest = list(monomial)
            rest.remove(axis)
            lines.append(f"g{'xyz'[axis]} += {float(monomial.count(axis))} * q * {_product(tuple(rest))}")
    return lines


def _monomials(ell: int) -> list[tuple[int, ...]]:
    return list(combinations_with_replacement(range(3), ell))


def _product(monomial: tuple[int, ...]) -> str:
    return "p" + "".join("xyz"[i] for i in monomial) if monomial else "1.0"


def _sum(coefficients: list[float], names: Iterator[str]) -> str:
    return " + ".join(f"{c!r} * {name}" for c, name in zip(coefficients, names, strict=True) if c)
