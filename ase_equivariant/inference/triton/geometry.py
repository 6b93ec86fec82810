"""Positions to edge vectors, lengths and spherical harmonics, and gradients of those back to forces; in float64.

First the edges within the cutoff are picked from those that the graph lists, in their order: so results do not depend,
by a single bit, on how many more are listed.
"""

from __future__ import annotations

import numpy as np
import torch
import triton

from ase_equivariant.inference.harmonics import gradients, products, values
from ase_equivariant.inference.triton.compile import Compiler, Kernel
from ase_equivariant.inference.triton.run import Run

HIGHEST = 6  # l
EDGES, SOME = 128, 32  # edges of a program, and of a node at a time

EDGE = """
    i = tl.load(receivers + e, mask=inside, other=0)
    j = tl.load(senders + e, mask=inside, other=0)
    cell = cells + 9 * tl.load(batch + i, mask=inside, other=0)
    a = positions + 3 * tl.load(origin + i, mask=inside, other=0)
    b = positions + 3 * tl.load(origin + j, mask=inside, other=0)
    s0 = tl.load(shifts + 3 * e, mask=inside, other=0.0).to(tl.float64)
    s1 = tl.load(shifts + 3 * e + 1, mask=inside, other=0.0).to(tl.float64)
    s2 = tl.load(shifts + 3 * e + 2, mask=inside, other=0.0).to(tl.float64)
    o = s0 * tl.load(cell) + s1 * tl.load(cell + 3) + s2 * tl.load(cell + 6)
    v0 = tl.load(a) - tl.load(b) + o
    o = s0 * tl.load(cell + 1) + s1 * tl.load(cell + 4) + s2 * tl.load(cell + 7)
    v1 = tl.load(a + 1) - tl.load(b + 1) + o
    o = s0 * tl.load(cell + 2) + s1 * tl.load(cell + 5) + s2 * tl.load(cell + 8)
    v2 = tl.load(a + 2) - tl.load(b + 2) + o
    r = tl.sqrt(tl.where(inside, v0 * v0 + v1 * v1 + v2 * v2, 1.0))
"""

# `counts` is what `near` sums up to: the place of an edge within the cutoff among those, plus one
PICK = f"""
@sized
def measure(first, n_nodes, senders, receivers, origin, batch, shifts, positions, cells, near, cutoff, B: tl.constexpr):
    e = tl.program_id(0) * B + tl.arange(0, B)
    inside = e < tl.load(first + n_nodes)
{EDGE}
    tl.store(near + e, (inside & (r < tl.load(cutoff))).to(tl.int32))


@sized
def pick(
    first, n_nodes, senders, receivers, opposite, shifts, near, counts,
    to_first, to_senders, to_receivers, to_opposite, to_shifts, B: tl.constexpr
):
    e = tl.program_id(0) * B + tl.arange(0, B)
    picked = tl.load(near + e) > 0
    to = tl.load(counts + e) - 1
    tl.store(to_senders + to, tl.load(senders + e), mask=picked)
    tl.store(to_receivers + to, tl.load(receivers + e), mask=picked)
    reversed = tl.load(opposite + e, mask=picked, other=0)
    tl.store(to_opposite + to, tl.load(counts + reversed, mask=picked, other=1) - 1, mask=picked)
    tl.store(to_shifts + 3 * to, tl.load(shifts + 3 * e), mask=picked)
    tl.store(to_shifts + 3 * to + 1, tl.load(shifts + 3 * e + 1), mask=picked)
    tl.store(to_shifts + 3 * to + 2, tl.load(shifts + 3 * e + 2), mask=picked)
    before = tl.load(first + e, mask=e <= n_nodes, other=0)
    tl.store(to_first + e, tl.load(counts + before - 1, mask=before > 0, other=0), mask=e <= n_nodes)


"""

FORCES = """
@triton.jit
def forces(first, opposite, origin, vectors, gradients, out, strain, B: tl.constexpr):
    n = tl.program_id(0)
    end = tl.load(first + n + 1)
    fx = tl.zeros([B], tl.float64)
    fy, fz, xx, yy, zz, yz, xz, xy = fx, fx, fx, fx, fx, fx, fx, fx
    for at in range(tl.load(first + n), end, B):
        e = at + tl.arange(0, B)
        inside = e < end
        o = tl.load(opposite + e, mask=inside, other=0)
        gx = tl.load(gradients + 3 * e, mask=inside, other=0.0)
        gy = tl.load(gradients + 3 * e + 1, mask=inside, other=0.0)
        gz = tl.load(gradients + 3 * e + 2, mask=inside, other=0.0)
        # the gradient of the reversed edge, which n sends; and of those that others send it
        fx += gx - tl.load(gradients + 3 * o, mask=inside, other=0.0)
        fy += gy - tl.load(gradients + 3 * o + 1, mask=inside, other=0.0)
        fz += gz - tl.load(gradients + 3 * o + 2, mask=inside, other=0.0)
        vx = tl.load(vectors + 3 * e, mask=inside, other=0.0)
        vy = tl.load(vectors + 3 * e + 1, mask=inside, other=0.0)
        vz = tl.load(vectors + 3 * e + 2, mask=inside, other=0.0)
        xx -= vx * gx
        yy -= vy * gy
        zz -= vz * gz
        yz -= 0.5 * (vy * gz + vz * gy)
        xz -= 0.5 * (vx * gz + vz * gx)
        xy -= 0.5 * (vx * gy + vy * gx)
    to = out + 3 * tl.load(origin + n)
    tl.store(to, tl.sum(fx, axis=0))
    tl.store(to + 1, tl.sum(fy, axis=0))
    tl.store(to + 2, tl.sum(fz, axis=0))
    to = strain + 9 * n
    tl.store(to, tl.sum(xx, axis=0))
    tl.store(to + 4, tl.sum(yy, axis=0))
    tl.store(to + 8, tl.sum(zz, axis=0))
    s = tl.sum(yz, axis=0)
    tl.store(to + 5, s)
    tl.store(to + 7, s)
    s = tl.sum(xz, axis=0)
    tl.store(to + 2, s)
    tl.store(to + 6, s)
    s = tl.sum(xy, axis=0)
    tl.store(to + 1, s)
    tl.store(to + 3, s)


@triton.jit
def by_graph(order, ends, strain, out, B: tl.constexpr):
    graph = tl.program_id(0)
    end = tl.load(ends + graph)
    start = tl.load(ends + graph - 1, mask=graph > 0, other=0)
    total = tl.zeros([B, 16], tl.float64)
    x = tl.arange(0, 16)[None, :]
    for at in range(start, end, B):
        i = at + tl.arange(0, B)
        n = tl.load(order + i, mask=i < end, other=0)[:, None]
        total += tl.load(strain + 9 * n + x, mask=(i < end)[:, None] & (x < 9), other=0.0)
    x = tl.arange(0, 16)
    tl.store(out + 9 * graph + x, tl.sum(total, axis=0), mask=x < 9)
"""


class GeometryKernel(Kernel):
    """Edge vectors, lengths and harmonics of positions; forces and strain gradient of their gradients."""

    def __init__(self, harmonics: tuple[np.ndarray, ...], compiler: Compiler):
        kernels = compiler(PICK + _forward(harmonics) + _backward(harmonics) + FORCES)
        self._measure, self._pick = kernels["measure"], kernels["pick"]
        self._forward, self._backward = kernels["geometry"], kernels["geometry_back"]
        self._forces, self._by_graph = kernels["forces"], kernels["by_graph"]

    def forward(self, run: Run) -> None:
        grid, listed = (triton.cdiv(run.capacity, EDGES),), run.listed
        atoms = run.origin, run.batch
        ends = listed.first, run.n_nodes, listed.senders, listed.receivers
        self._measure[grid](*ends, *atoms, listed.shifts, run.positions, run.cells, run.near, run.cutoff, B=EDGES)
        torch.cumsum(run.near, 0, dtype=torch.int32, out=run.counts)
        picked = run.first, run.senders, run.receivers, run.opposite, run.shifts
        grid_or_nodes = (triton.cdiv(max(run.capacity, run.n_nodes + 1), EDGES),)
        self._pick[grid_or_nodes](*ends, listed.opposite, listed.shifts, run.near, run.counts, *picked, B=EDGES)
        ends = run.first, run.n_nodes, run.senders, run.receivers
        arrays = run.shifts, run.positions, run.cells, run.vectors, run.lengths, run.harmonics
        self._forward[grid](*ends, *atoms, *arrays, B=EDGES)

    def backward(self, run: Run) -> None:
        arrays = run.vectors, run.lengths, run.harmonics_gradient, run.lengths_gradient, run.vectors_gradient
        self._backward[triton.cdiv(run.capacity, EDGES),](run.first, run.n_nodes, *arrays, B=EDGES)
        topology = run.first, run.opposite, run.origin
        self._forces[run.n_nodes,](
            *topology, run.vectors, run.vectors_gradient, run.forces, run.node_strain, B=SOME, num_warps=1
        )
        if run.n_graphs == 1:
            torch.sum(run.node_strain, 0, out=run.strain)
        else:
            self._by_graph[run.n_graphs,](run.by_graph, run.graph_first, run.node_strain, run.strain, B=SOME)


INSIDE = ["e = tl.program_id(0) * B + tl.arange(0, B)", "inside = e < tl.load(first + n_nodes)"]


def _kernel(name: str, arguments: str, lines: list[str]) -> str:
    body = "\n".join(f"    {line}" for line in lines)
    return f"@sized\ndef {name}({arguments}, B: tl.constexpr):\n{body}\n\n\n"


def _forward(harmonics: tuple[np.ndarray, ...]) -> str:
    lines = [
        *INSIDE,
        *(line.strip() for line in EDGE.strip().splitlines()),
        *(f"tl.store(vectors + 3 * e + {x}, v{x}, mask=inside)" for x in range(3)),
        "tl.store(lengths + e, r, mask=inside)",
        "px, py, pz = v0 / r, v1 / r, v2 / r",
        f"y = ys + e * {(len(harmonics) + 1) ** 2}",
        "tl.store(y, inside.to(REAL), mask=inside)",
        *products(len(harmonics)),
        *(f"tl.store(y + {place}, {value}, mask=inside)" for place, value in values(harmonics)),
    ]
    arguments = "first, n_nodes, senders, receivers, origin, batch, shifts, positions, cells, vectors, lengths, ys"
    return _kernel("geometry", arguments, lines)


def _backward(harmonics: tuple[np.ndarray, ...]) -> str:
    """∂E/∂r of the reversed edge, whose unit vector is the opposite one; the place of Y_0 holds some of ∂E/∂|r|."""
    lines = [
        *INSIDE,
        "r = tl.load(lengths + e, mask=inside, other=1.0)",
        *(f"p{x} = -tl.load(vectors + 3 * e + {i}, mask=inside, other=0.0) / r" for i, x in enumerate("xyz")),
        f"y = dys + e * {(len(harmonics) + 1) ** 2}",
        "gx = tl.zeros([B], tl.float64)",
        "gy, gz = gx, gx",
        *products(len(harmonics) - 1),
    ]
    for ell, matrix in enumerate(harmonics, 1):
        for m in range(2 * ell + 1):
            lines.append(f"d{m} = tl.load(y + {ell * ell + m}, mask=inside, other=0.0).to(tl.float64)")
        lines += gradients(ell, matrix, "d{}".format)
    lines += [
        "along = gx * px + gy * py + gz * pz",
        "dr = tl.load(drs + e, mask=inside, other=0.0) + tl.load(y, mask=inside, other=0.0)",
    ]
    for i, x in enumerate("xyz"):
        lines.append(f"tl.store(out + 3 * e + {i}, (g{x} - along * p{x}) / r + dr * p{x}, mask=inside)")
    return _kernel("geometry_back", "first, n_nodes, vectors, lengths, dys, drs, out", lines)
