"""The repulsion of nuclei, of each edge by itself, in float64."""

from __future__ import annotations

import numpy as np

from ase_equivariant.inference.numba.compile import Compiler
from ase_equivariant.inference.numba.run import Run
from ase_equivariant.inference.program import Repel

SOURCE = """
@exact
def pair(r, strength, width, end, terms, power):
    screening = slope = 0.0
    for c, d in terms:
        term = c * np.exp(-d * r / width)
        screening += term
        slope -= d / width * term
    p, x = float(power), r / end
    if x >= 1.0:
        return 0.0, 0.0
    a, b, c = (p + 1.0) * (p + 2.0) / 2.0, p * (p + 2.0), p * (p + 1.0) / 2.0
    envelope = 1.0 - x ** power * (a - x * (b - x * c))
    change = -(x ** (power - 1)) * (a * p - x * (b * (p + 1.0) - x * c * (p + 2.0))) / end
    value = strength / r * screening
    return value * envelope, (strength / r * slope - value / r) * envelope + value * change

@exact
def forward(a, b, first, senders, species, lengths, strengths, widths, ends, terms, power, scaled, scales, energies):
    for n in range(a, b):
        for e in range(first[n], first[n + 1]):
            ij, scale = (species[n], species[senders[e]]), scales[n] if scaled else 1.0
            energies[n] += scale * pair(lengths[e], strengths[ij], widths[ij], ends[ij], terms, power)[0]

@exact
def backward(a, b, first, senders, species, lengths, strengths, widths, ends, terms, power, scaled, scales, dr):
    for n in range(a, b):
        for e in range(first[n], first[n + 1]):  # the gradient of the reversed edge, which senders[e] receives
            i = senders[e]
            ij, scale = (species[i], species[n]), scales[i] if scaled else 1.0
            dr[e] += scale * pair(lengths[e], strengths[ij], widths[ij], ends[ij], terms, power)[1]
"""


class RepelKernel:
    """Kernel of a `Repel`."""

    reads, target = (), None

    def __init__(self, stage: Repel, compiler: Compiler):
        self.constants = stage.strengths, stage.widths, stage.ends, np.array(stage.terms), stage.power, stage.scaled
        kernels = compiler(SOURCE)
        self._forward, self._backward = kernels["forward"], kernels["backward"]

    def _arrays(self, run: Run) -> tuple:
        return run.first, run.senders, run.species, run.lengths, *self.constants, run.scales

    def forward(self, run: Run, a: int, b: int) -> None:
        self._forward(a, b, *self._arrays(run), run.energies)

    def backward(self, run: Run, a: int, b: int) -> None:
        self._backward(a, b, *self._arrays(run), run.lengths_gradient)
