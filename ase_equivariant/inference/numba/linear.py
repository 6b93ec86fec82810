"""Linear maps, ROWS rows at a time, so that each load of a matrix serves as many products; and embeddings."""

from __future__ import annotations

import numpy as np

from ase_equivariant.inference.numba.compile import Compiler
from ase_equivariant.inference.numba.lanes import COUNT, REGISTERS, aligned
from ase_equivariant.inference.numba.run import Run
from ase_equivariant.inference.program import Embed, EmbedAttributes, Linear, Map
from ase_equivariant.nn.attributes import require_attributes

ROWS = 8 if REGISTERS == 32 else 4  # of sums that are in registers together, each two registers wide


def _source(lanes: int) -> str:
    """Rows are the components of the nodes, those of one species together."""
    rows = range(ROWS)
    lines = [
        "@exact",
        "def dense(a, b, order, kinds, xs, width_in, x_start, n_in, ys, width_out, y_start, n_out, dim, ws):",
        f"    x, y, w, sums = xs.ravel(), ys.ravel(), ws.ravel(), np.empty({2 * ROWS * lanes}, real)",
        f"    r = np.empty({ROWS}, np.int64)",
        "    for t in range(ws.shape[1]):",
        "        p = a * dim",
        "        while p < b * dim:",
        "            kind, count = kinds[order[p // dim]], 0",
        f"            for q in range({ROWS}):  # beyond the last row of a species, the last again",
        "                if p + q < b * dim and kinds[order[(p + q) // dim]] == kind:",
        "                    count = q + 1",
        "                r[q] = p + count - 1",
        f"            at = (kind * ws.shape[1] + t) * n_in * {2 * lanes}",
    ]
    for q in rows:
        lines.append(f"            x{q} = order[r[{q}] // dim] * width_in + x_start + r[{q}] % dim * n_in")
        lines.append(f"            s{q} = z{q} = fill(real(0.0), {lanes})")
    lines += [
        "            for i in range(n_in):",
        f"                here = at + i * {2 * lanes}",
        f"                u, v = load(w, here, {lanes}), load(w, here + {lanes}, {lanes})",
    ]
    for q in rows:
        lines.append(f"                f = spread(x, x{q} + i, {lanes})")
        lines.append(f"                s{q}, z{q} = fma(f, u, s{q}), fma(f, v, z{q})")
    for q in rows:
        lines.append(f"            store(sums, {2 * q * lanes}, s{q})")
        lines.append(f"            store(sums, {(2 * q + 1) * lanes}, z{q})")
    lines += [
        "            for q in range(count):",
        f"                o = order[r[q] // dim] * width_out + y_start + r[q] % dim * n_out + t * {2 * lanes}",
        f"                for k in range(min({2 * lanes}, n_out - t * {2 * lanes})):",
        f"                    y[o + k] += sums[q * {2 * lanes} + k]",
        "            p += count",
    ]
    return "\n".join([*lines, ""])


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
        lanes = COUNT[compiler.dtype.name]
        self._dense = compiler(_source(lanes))["dense"]
        transposed = [Map(m.dim, m.start_out, m.start_in, m.weights.transpose(0, 2, 1)) for m in stage.maps]
        self._maps, self._transposed = (
            [(m, _tiles(m.weights, compiler.dtype, 2 * lanes)) for m in maps] for maps in (stage.maps, transposed)
        )

    def forward(self, run: Run, a: int, b: int) -> None:
        self._add(run, a, b, self._maps, run.values[self.source], run.values[self.target])

    def backward(self, run: Run, a: int, b: int) -> None:
        self._add(run, a, b, self._transposed, run.gradients[self.target], run.gradients[self.source])

    def _add(self, run: Run, a: int, b: int, maps: list[tuple[Map, np.ndarray]], x: np.ndarray, y: np.ndarray) -> None:
        for m, tiles in maps:
            kinds, (_, n_in, n_out) = run.zeros if len(tiles) == 1 else run.species, m.weights.shape
            read, written = (x, x.shape[1], m.start_in, n_in), (y, y.shape[1], m.start_out, n_out)
            self._dense(a, b, run.order, kinds, *read, *written, m.dim, tiles)


def _tiles(weights: np.ndarray, dtype: np.dtype, tile: int) -> np.ndarray:
    """[n, n_in, n_out] as [n, tiles, n_in, tile], with zeros up to whole tiles."""
    n, n_in, n_out = weights.shape
    padded = np.zeros((n, n_in, -(-n_out // tile) * tile), dtype)
    padded[:, :, :n_out] = weights
    return aligned(padded.reshape(n, n_in, -1, tile).transpose(0, 2, 1, 3), dtype)


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
