"""B-splines of evenly spaced knots, as polynomials of the place t between two of them."""

from __future__ import annotations

from numpy.polynomial import Polynomial

from ase_equivariant.inference.splines import DEGREE


def _basis(degree: int) -> list[Polynomial]:
    """Those that are not zero between two knots, as in `splines`, the first one first."""
    if degree == 0:
        return [Polynomial([1.0])]
    lower = [Polynomial([0.0]), *_basis(degree - 1), Polynomial([0.0])]
    rising, falling = ([Polynomial([c, sign]) for c in range(degree + 2)] for sign in (1.0, -1.0))
    return [(rising[degree - j] * lower[j] + falling[j + 1] * lower[j + 1]) / degree for j in range(degree + 1)]


# of the first coefficient and the differences to the next ones a value is made, of the differences its slope
SLOPES = _basis(DEGREE - 1)
VALUES = [sum(_basis(DEGREE)[j + 1 :], Polynomial([0.0])) for j in range(DEGREE)]


def horner(p: Polynomial, t: str) -> str:
    """Source of p(t), by Horner's rule."""
    *rest, text = (repr(c) for c in p.coef.tolist())
    for c in reversed(rest):
        text = f"({text}) * {t} + {c}"
    return text
