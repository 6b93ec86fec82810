"""The symmetric contraction: every polynomial written out, value and gradient, over all channels of an atom at once.

A polynomial is evaluated from the inside out, s_p = c_p + Σ_i a_i s_p,i over the factors i that may follow p, and its
gradient from the outside in. Compilation takes more than linear time, so functions hold at most MOST monomials.
"""

from __future__ import annotations

import numpy as np

from ase_equivariant.inference.numba.compile import Compiler
from ase_equivariant.inference.numba.run import Run
from ase_equivariant.inference.program import Contract

MOST = 100

Monomial = tuple[int, ...]


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
    tree, terms = {(): []}, {m: f"c[{t * channels} + k]" for t, m in enumerate(monomials)}
    for monomial in monomials:
        for n in range(len(monomial)):
            prefix, longer = monomial[:n], monomial[: n + 1]
            tree.setdefault(prefix, [])
            tree.setdefault(longer, [])
            if longer not in tree[prefix]:
                tree[prefix].append(longer)
    factors = sorted({i for monomial in monomials for i in monomial})
    loads = [f"            a{i} = x[{i * channels} + k]" for i in factors]
    sums = [f"            {line}" for line in _inside_out((), tree, terms)]
    gradient = [f"            d{i} = real(0.0)" for i in factors]
    gradient += [f"            {line}" for line in _outside_in((), tree, terms)]
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


def _name(letter: str, prefix: Monomial) -> str:
    return letter + "_" + "_".join(map(str, prefix))


def _sum(prefix: Monomial, tree: dict, terms: dict) -> str:
    """What multiplies the factors of a prefix: a variable, or for the longest their coefficient."""
    return _name("s", prefix) if tree[prefix] else terms[prefix]


def _inside_out(prefix: Monomial, tree: dict, terms: dict) -> list[str]:
    lines = [line for longer in tree[prefix] if tree[longer] for line in _inside_out(longer, tree, terms)]
    parts = [terms[prefix]] if prefix in terms else []
    parts += [f"a{longer[-1]} * {_sum(longer, tree, terms)}" for longer in tree[prefix]]
    return [*lines, f"{_name('s', prefix)} = {' + '.join(parts)}"]


def _outside_in(prefix: Monomial, tree: dict, terms: dict) -> list[str]:
    lines = []
    for longer in tree[prefix]:
        i = longer[-1]
        lines.append(f"d{i} += {_name('u', prefix)} * {_sum(longer, tree, terms)}")
        if tree[longer]:
            lines.append(f"{_name('u', longer)} = {_name('u', prefix)} * a{i}")
            lines += _outside_in(longer, tree, terms)
    return lines
