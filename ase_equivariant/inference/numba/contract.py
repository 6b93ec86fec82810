"""The symmetric contraction: every polynomial written out, value and gradient, over all channels of an atom at once.

A polynomial is evaluated from the inside out, s_p = c_p + Σ_i a_i s_p,i over the factors i that may follow p, and its
gradient from the outside in. Compilation takes more than linear time, so functions hold at most MOST monomials.
"""

from __future__ import annotations

import numpy as np

from ase_equivariant.inference.nested import Monomial, inside_out, outside_in, tree_of
from ase_equivariant.inference.numba.compile import Compiler
from ase_equivariant.inference.numba.run import Run
from ase_equivariant.inference.program import Contract

MOST = 100


class ContractKernel:
    """Kernel of a `Contract`."""

    def __init__(self, stage: Contract, compiler: Compiler):
        self.reads, self.source, self.target = stage.reads, stage.source, stage.target
        self.shared = len(stage.polynomials[0].coefficients) == 1
        self.parts = []
        for polynomial in stage.polynomials:
            for lot in _lots(polynomial.monomials):
                monomials = tuple(polynomial.monomials[i] for i in lot)
                kernels = compiler(_source(monomials, stage.channels))
                coefficients = polynomial.coefficients[:, lot].reshape(len(polynomial.coefficients), -1)
                self.parts.append((kernels, coefficients.astype(compiler.dtype), polynomial.start_out))

    def forward(self, run: Run, a: int, b: int) -> None:
        kinds = run.zeros if self.shared else run.species
        for kernels, coefficients, start in self.parts:
            kernels["value"](a, b, kinds, run.values[self.source], coefficients, run.values[self.target], start)

    def backward(self, run: Run, a: int, b: int) -> None:
        kinds = run.zeros if self.shared else run.species
        arrays = run.values[self.source], run.gradients[self.target], run.gradients[self.source]
        for kernels, coefficients, start in self.parts:
            kernels["gradient"](a, b, kinds, coefficients, start, *arrays)


def _lots(monomials: tuple[Monomial, ...]) -> list[list[int]]:
    """Numbers of the monomials, in lots of at most MOST."""
    count = -(-len(monomials) // MOST)
    return [list(lot) for lot in np.array_split(np.arange(len(monomials)), count)]


def _source(monomials: tuple[Monomial, ...], channels: int) -> str:
    tree, terms = tree_of(monomials), {m: f"c[{t * channels} + k]" for t, m in enumerate(monomials)}
    factors = sorted({i for monomial in monomials for i in monomial})
    loads = [f"            a{i} = x[{i * channels} + k]" for i in factors]
    sums = [f"            {line}" for line in inside_out((), tree, terms)]
    gradient = [f"            d{i} = real(0.0)" for i in factors]
    gradient += [f"            {line}" for line in outside_in((), tree, terms)]
    gradient += [f"            dx[{i * channels} + k] += d{i}" for i in factors]
    return "\n".join(
        [
            "@exact",
            "def value(a, b, kinds, xs, cs, ys, start):",
            "    for n in range(a, b):",
            f"        x, c, y = xs[n], cs[kinds[n]], ys[n, start : start + {channels}]",
            f"        for k in range({channels}):",
            *loads,
            *sums,
            "            y[k] += s_",
            "@exact",
            "def gradient(a, b, kinds, cs, start, xs, gs, dxs):",
            "    for n in range(a, b):",
            f"        x, c, g, dx = xs[n], cs[kinds[n]], gs[n, start : start + {channels}], dxs[n]",
            f"        for k in range({channels}):",
            *loads,
            *sums,
            "            u_ = g[k]",
            *gradient,
            "",
        ]
    )
