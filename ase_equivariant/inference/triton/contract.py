"""The symmetric contraction: polynomials written out, value and gradient, for one channel of an atom by each thread.

A polynomial is evaluated from the inside out, s_p = c_p + Σ_i a_i s_p,i over the factors i that may follow p, and its
gradient from the outside in. Compilation takes more than linear time, so functions hold at most MOST monomials.
"""

from __future__ import annotations

import numpy as np
import triton

from ase_equivariant.inference.nested import Monomial, inside_out, outside_in, tree_of
from ase_equivariant.inference.program import Contract
from ase_equivariant.inference.triton.compile import Compiler, Kernel
from ase_equivariant.inference.triton.run import Run

MOST = 120
THREADS = 128

Part = tuple[int, tuple[Monomial, ...]]  # start of the output, and its monomials


class ContractKernel(Kernel):
    """Kernels of a `Contract`."""

    def __init__(self, stage: Contract, compiler: Compiler):
        self.source, self.target, self.channels = stage.source, stage.target, stage.channels
        self.shared = len(stage.polynomials[0].coefficients) == 1
        strides, self._lots = (compiler.widths[stage.source], compiler.widths[stage.target]), []
        for parts, coefficients in _lots(stage):
            kernels = compiler(_source(parts, stage.channels, strides, self.shared))
            self._lots.append((kernels["contract"], kernels["contract_back"], compiler.constant(coefficients)))

    def forward(self, run: Run) -> None:
        grid = (triton.cdiv(run.n_nodes * self.channels, THREADS),)
        for value, _, coefficients in self._lots:
            arrays = run.values[self.source], run.values[self.target]
            value[grid](run.species, coefficients, *arrays, run.n_nodes, B=THREADS)

    def backward(self, run: Run) -> None:
        grid = (triton.cdiv(run.n_nodes * self.channels, THREADS),)
        for _, gradient, coefficients in self._lots:
            arrays = run.values[self.source], run.gradients[self.target], run.gradients[self.source]
            gradient[grid](run.species, coefficients, *arrays, run.n_nodes, B=THREADS)


def _lots(stage: Contract) -> list[tuple[list[Part], np.ndarray]]:
    """Outputs, or parts of one, that a kernel makes, and their coefficients [n_species, n_monomials, channels]."""
    lots, free = [], 0
    for polynomial in stage.polynomials:
        numbers = np.arange(len(polynomial.monomials))
        for some in np.array_split(numbers, -(-len(numbers) // MOST)):
            if len(some) > free:
                lots.append(([], []))
                free = MOST
            free -= len(some)
            lots[-1][0].append((polynomial.start_out, tuple(polynomial.monomials[i] for i in some)))
            lots[-1][1].append(polynomial.coefficients[:, some])
    return [(parts, np.concatenate(coefficients, 1)) for parts, coefficients in lots]


def _source(parts: list[Part], channels: int, strides: tuple[int, int], shared: bool) -> str:
    stride_in, stride_out = strides
    count = sum(len(monomials) for _, monomials in parts)
    factors = sorted({i for _, monomials in parts for monomial in monomials for i in monomial})
    opening = [
        "i = tl.program_id(0) * B + tl.arange(0, B)",
        f"n, k = i // {channels}, i % {channels}",
        "inside = n < n_nodes",
        f"z = {'0' if shared else 'tl.load(kinds + n, mask=inside, other=0)'}",
        f"n, c = n.to(tl.int64), cs + z * {count * channels} + k",
        f"x = xs + n * {stride_in} + k",
        *(f"a{i} = tl.load(x + {i * channels}, mask=inside, other=0.0)" for i in factors),
    ]
    value, gradient = [*opening, f"y = ys + n * {stride_out} + k"], [*opening, f"g = gs + n * {stride_out} + k"]
    gradient += [f"d{i} = tl.zeros([B], REAL)" for i in factors]
    first = 0
    for start, monomials in parts:
        tree, loads, terms = tree_of(monomials), [], {}
        for t, monomial in enumerate(monomials, first):
            terms[monomial] = f"c{t}"
            loads.append(f"c{t} = tl.load(c + {t * channels}, mask=inside, other=0.0)")
        sums = [*loads, *inside_out((), tree, terms)]
        value += [*sums, f"tl.store(y + {start}, tl.load(y + {start}, mask=inside, other=0.0) + s_, mask=inside)"]
        gradient += [*sums, f"u_ = tl.load(g + {start}, mask=inside, other=0.0)", *outside_in((), tree, terms)]
        first += len(monomials)
    gradient.append(f"x = dxs + n * {stride_in} + k")
    for i in factors:
        at = f"x + {i * channels}"
        gradient.append(f"tl.store({at}, tl.load({at}, mask=inside, other=0.0) + d{i}, mask=inside)")
    return "\n".join(
        [
            "@sized",
            "def contract(kinds, cs, xs, ys, n_nodes, B: tl.constexpr):",
            *(f"    {line}" for line in value),
            "",
            "",
            "@sized",
            "def contract_back(kinds, cs, xs, gs, dxs, n_nodes, B: tl.constexpr):",
            *(f"    {line}" for line in gradient),
            "",
        ]
    )
