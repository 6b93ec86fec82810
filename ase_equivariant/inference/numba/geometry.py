"""Positions to edge vectors, lengths and spherical harmonics, and gradients of those back to forces; in float64."""

from __future__ import annotations

import numpy as np

from ase_equivariant.inference.harmonics import gradients, products, values
from ase_equivariant.inference.numba.compile import Compiler
from ase_equivariant.inference.numba.run import Run

HIGHEST = 6  # l; beyond it compilation takes minutes

FORCES = """
@exact
def forces(first, senders, gradients, out):
    for n in range(len(out)):
        for e in range(first[n], first[n + 1]):
            for x in range(3):  # the gradient of the reversed edge, which n sends and senders[e] receives
                out[n, x] += gradients[e, x]
                out[senders[e], x] -= gradients[e, x]

@exact
def strain(a, b, first, vectors, gradients, out):
    for n in range(a, b):
        for e in range(first[n], first[n + 1]):
            for x in range(3):
                for y in range(3):
                    out[n, x, y] -= vectors[e, x] * gradients[e, y]
"""


class GeometryKernel:
    """Edge vectors, lengths and harmonics of positions, and the gradients of edge vectors."""

    reads, target = (), None

    def __init__(self, harmonics: tuple[np.ndarray, ...], compiler: Compiler):
        kernels = compiler(_forward(harmonics) + _backward(harmonics) + FORCES)
        self._forward, self._backward = kernels["geometry"], kernels["gradient"]
        self.forces, self.strain = kernels["forces"], kernels["strain"]

    def forward(self, run: Run, a: int, b: int) -> None:
        arrays = run.positions, run.offsets, run.vectors, run.lengths, run.harmonics
        self._forward(a, b, run.first, run.senders, *arrays)

    def backward(self, run: Run, a: int, b: int) -> None:
        arrays = run.vectors, run.lengths, run.harmonics_gradient, run.lengths_gradient, run.vectors_gradient
        self._backward(a, b, run.first, *arrays)


def _forward(harmonics: tuple[np.ndarray, ...]) -> str:
    lines = [
        "@exact",
        "def geometry(a, b, first, senders, positions, offsets, vectors, lengths, ys):",
        "    for n in range(a, b):",
        "        for e in range(first[n], first[n + 1]):",
        "            for x in range(3):",
        "                vectors[e, x] = positions[n, x] - positions[senders[e], x] + offsets[e, x]",
        "    for e in range(first[a], first[b]):",
        "        v, y = vectors[e], ys[e]",
        "        r = np.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])",
        "        lengths[e] = r",
        "        px, py, pz = v[0] / r, v[1] / r, v[2] / r",
        "        y[0] = real(1.0)",
    ]
    lines += [f"        {line}" for line in products(len(harmonics))]
    lines += [f"        y[{place}] = {value}" for place, value in values(harmonics)]
    return "\n".join(lines) + "\n"


def _backward(harmonics: tuple[np.ndarray, ...]) -> str:
    """∂E/∂r of the reversed edge, whose unit vector is the opposite one."""
    lines = [
        "@exact",
        "def gradient(a, b, first, vectors, lengths, dys, drs, out):",
        "    for e in range(first[a], first[b]):",
        "        v, r, dy, o = vectors[e], lengths[e], dys[e], out[e]",
        "        px, py, pz = -v[0] / r, -v[1] / r, -v[2] / r",
        "        gx = gy = gz = 0.0",
    ]
    lines += [f"        {line}" for line in products(len(harmonics) - 1)]
    for ell, matrix in enumerate(harmonics, 1):
        lines += [f"        {line}" for line in gradients(ell, matrix, lambda m, ell=ell: f"dy[{ell * ell + m}]")]
    lines += [
        "        along = gx * px + gy * py + gz * pz",
        *(f"        o[{i}] = (g{x} - along * p{x}) / r + drs[e] * p{x}" for i, x in enumerate("xyz")),
    ]
    return "\n".join(lines) + "\n"
