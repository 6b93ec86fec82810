"""Real spherical harmonics as homogeneous polynomials of the unit vector.

    Y_lm(u) = Σ_abc c_lm,abc x^a y^b z^c      with a + b + c = l

in e3nn's order and 'component' normalisation, Σ_m Y_lm² = 2l + 1. A table of products and one matrix product per l
replace a long chain of scalar formulas: fewer operations forward, backward and backward again.
"""

from __future__ import annotations

from itertools import combinations_with_replacement

import torch
from e3nn import o3
from torch import Tensor


class SphericalHarmonics(torch.nn.Module):
    """Spherical harmonics of the direction of vectors, `[n, 3] → [n, (l_max+1)²]`; no vector may be zero."""

    def __init__(self, l_max: int):
        super().__init__()
        self.degrees = torch.nn.ModuleList(_Degree(ell) for ell in range(1, l_max + 1))

    def forward(self, vectors: Tensor) -> Tensor:
        unit = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        unit = unit.t()  # [3, n]: long rows make the gathers below cheap
        monomials = torch.ones_like(unit[:1])
        harmonics = [monomials]
        for degree in self.degrees:
            monomials = degree.raise_monomials(monomials, unit)
            harmonics.append(degree(monomials))
        return torch.cat(harmonics).t().contiguous()


class _Degree(torch.nn.Module):
    """The step from the monomials of degree l-1 to those of degree l, and the harmonics made of them."""

    def __init__(self, ell: int):
        super().__init__()
        lower = {m: i for i, m in enumerate(combinations_with_replacement(range(3), ell - 1))}
        monomials = list(combinations_with_replacement(range(3), ell))
        self.register_buffer("parents", torch.tensor([lower[m[:-1]] for m in monomials]), persistent=False)
        self.register_buffer("factors", torch.tensor([m[-1] for m in monomials]), persistent=False)
        self.register_buffer("coefficients", _fit(ell, monomials), persistent=False)

    @torch.jit.export
    def raise_monomials(self, lower: Tensor, unit: Tensor) -> Tensor:
        return lower.index_select(0, self.parents) * unit.index_select(0, self.factors)

    def forward(self, monomials: Tensor) -> Tensor:
        return torch.matmul(self.coefficients, monomials)


def _fit(ell: int, monomials: list[tuple[int, ...]]) -> Tensor:
    """Coefficients [2l+1, n_monomials] of e3nn's harmonics, read off at as many directions as pin them down."""
    steps = torch.arange(4 * len(monomials), dtype=torch.float64) + 0.5
    height, angle = 1 - 2 * steps / len(steps), steps * 2.399963229728653  # a Fibonacci spiral on the sphere
    radius = (1 - height**2).sqrt()
    points = torch.stack([radius * angle.cos(), radius * angle.sin(), height], 1)
    values = o3.spherical_harmonics(ell, points, normalize=True, normalization="component")
    products = torch.stack([points[:, list(m)].prod(1) for m in monomials], 1)
    coefficients = torch.linalg.lstsq(products, values).solution.t()
    return coefficients.mul(2.0**44).round().div(2.0**44).contiguous()  # the same in every process to the last bit
