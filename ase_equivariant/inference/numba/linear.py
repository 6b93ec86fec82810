"""Linear maps, four nodes at a time, so that each load of a matrix serves four products; and embeddings."""

from __future__ import annotations

import numpy as np

from ase_equivariant.inference.numba.compile import Compiler
from ase_equivariant.inference.numba.run import Run
from ase_equivariant.inference.program import Embed, EmbedAttributes, Linear
from ase_equivariant.nn.attributes import require_attributes

TILE = 32  # columns of a matrix that are summed together
SOURCE = """
@exact
def dense(a, b, order, kinds, xs, x_start, n_in, ys, y_start, n_out, dim, ws):
    sums, r = np.empty(4 * TILE, real), np.empty(4, np.int64)
    p = a
    while p < b:
        kind, count = kinds[order[p]], 1
        while count < 4 and p + count < b and kinds[order[p + count]] == kind:
            count += 1
        for q in range(4):
            r[q] = order[p + min(q, count - 1)]
        x0, x1, x2, x3 = xs[r[0]], xs[r[1]], xs[r[2]], xs[r[3]]
        for m in range(dim):
            s = x_start + m * n_in
            for t in range(ws.shape[1]):
                w = ws[kind, t]
                sums[:] = real(0.0)
                for i in range(0, n_in, 4):
                    w0, w1, w2, w3 = w[i], w[i + 1], w[i + 2], w[i + 3]
                    j1, j2, j3 = s + min(i + 1, n_in - 1), s + min(i + 2, n_in - 1), s + min(i + 3, n_in - 1)
                    a0, a1, a2, a3 = x0[s + i], x0[j1], x0[j2], x0[j3]
                    b0, b1, b2, b3 = x1[s + i], x1[j1], x1[j2], x1[j3]
                    c0, c1, c2, c3 = x2[s + i], x2[j1], x2[j2], x2[j3]
                    d0, d1, d2, d3 = x3[s + i], x3[j1], x3[j2], x3[j3]
                    for k in range(TILE):
                        sums[k] += a0 * w0[k] + a1 * w1[k] + a2 * w2[k] + a3 * w3[k]
                        sums[TILE + k] += b0 * w0[k] + b1 * w1[k] + b2 * w2[k] + b3 * w3[k]
                        sums[2 * TILE + k] += c0 * w0[k] + c1 * w1[k] + c2 * w2[k] + c3 * w3[k]
                        sums[3 * TILE + k] += d0 * w0[k] + d1 * w1[k] + d2 * w2[k] + d3 * w3[k]
                for q in range(count):
                    y, o = ys[r[q]], y_start + m * n_out + t * TILE
                    for k in range(min(TILE, n_out - t * TILE)):
                        y[o + k] += sums[q * TILE + k]
        p += count
""".replace("TILE", str(TILE))
EMBED = """
@exact
def embed(a, b, species, table, ys):
    for n in range(a, b):
        row, y = table[species[n]], ys[n]
        for k in range(row.size):
            y[k] += row[k]
"""
EMBED_ATTRIBUTES = """
@exact
def embed(a, b, attributes, starts, table, ys):
    for n in range(a, b):
        y = ys[n]
        for k in range(y.size):
            x = real(0.0)
            for i in range(starts.size):
                x += table[starts[i] + attributes[n, i], k]
            y[k] += x / (real(1.0) + np.exp(-x))
"""


class LinearKernel:
    """Kernel of a `Linear`."""

    def __init__(self, stage: Linear, compiler: Compiler):
        self.reads, self.source, self.target = stage.reads, stage.source, stage.target
        self._dense = compiler(SOURCE)["dense"]
        self.maps = [
            (m, _tiles(m.weights, compiler.dtype), _tiles(m.weights.transpose(0, 2, 1), compiler.dtype))
            for m in stage.maps
        ]

    def forward(self, run: Run, a: int, b: int) -> None:
        x, y = run.values[self.source], run.values[self.target]
        for m, weights, _ in self.maps:
            kinds, (_, n_in, n_out) = run.zeros if len(weights) == 1 else run.species, m.weights.shape
            self._dense(a, b, run.order, kinds, x, m.start_in, n_in, y, m.start_out, n_out, m.dim, weights)

    def backward(self, run: Run, a: int, b: int) -> None:
        dy, dx = run.gradients[self.target], run.gradients[self.source]
        for m, _, weights in self.maps:
            kinds, (_, n_in, n_out) = run.zeros if len(weights) == 1 else run.species, m.weights.shape
            self._dense(a, b, run.order, kinds, dy, m.start_out, n_out, dx, m.start_in, n_in, m.dim, weights)


def _tiles(weights: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """[n, n_in, n_out] as [n, tiles, n_in, TILE], with zeros up to whole tiles and to multiples of four rows."""
    n, n_in, n_out = weights.shape
    padded = np.zeros((n, -(-n_in // 4) * 4, -(-n_out // TILE) * TILE), dtype)
    padded[:, :n_in, :n_out] = weights
    return np.ascontiguousarray(padded.reshape(n, padded.shape[1], -1, TILE).transpose(0, 2, 1, 3))


class EmbedKernel:
    """Kernel of an `Embed`."""

    reads = ()

    def __init__(self, stage: Embed, compiler: Compiler):
        self.target, self.table = stage.target, stage.table.astype(compiler.dtype)
        self._embed = compiler(EMBED)["embed"]

    def forward(self, run: Run, a: int, b: int) -> None:
        self._embed(a, b, run.species, self.table, run.values[self.target])

    def backward(self, run: Run, a: int, b: int) -> None:
        """Nothing depends on positions here."""


class EmbedAttributesKernel:
    """Kernel of an `EmbedAttributes`."""

    reads = ()

    def __init__(self, stage: EmbedAttributes, compiler: Compiler):
        self.target, self.starts, self.table = stage.target, stage.starts, stage.table.astype(compiler.dtype)
        self._embed = compiler(EMBED_ATTRIBUTES)["embed"]

    def forward(self, run: Run, a: int, b: int) -> None:
        require_attributes(run.attributes.shape[1], len(self.starts))
        self._embed(a, b, run.attributes, self.starts, self.table, run.values[self.target])

    def backward(self, run: Run, a: int, b: int) -> None:
        """Nothing depends on positions here."""
