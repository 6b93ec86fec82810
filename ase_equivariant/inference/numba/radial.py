"""Radial functions of EDGES edges at a time: the source that computes R and R', and the arrays it reads."""

from __future__ import annotations

import numpy as np

from ase_equivariant.inference.bsplines import SLOPES, VALUES, horner
from ase_equivariant.inference.numba.lanes import aligned
from ase_equivariant.inference.numba.networks import network_source
from ase_equivariant.inference.radial import Network
from ase_equivariant.inference.splines import DEGREE, STRETCH, Spline, Splines

EDGES = 16

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def radial_functions(radial: Network | Splines, dtype: np.dtype) -> Exact | Interpolated:
    """Arrays of radial functions, and lines of a kernel that has them in vectors, for EDGES edges at a time.

    source     functions that the lines call
    scratch    once in the kernel
    find       for edge q: a line of its length and kind
    weigh      for all of them
    opened     for edge q again
    vectors    x and dx, columns [column, column + lanes) of its R and R'; the compiler drops a vector that is not used
    """
    return Interpolated(radial, dtype) if isinstance(radial, Splines) else Exact(radial, dtype)


class Exact:
    """A network; its arrays are the kinds, the layers in two tables, and constants by kind."""

    def __init__(self, network: Network, dtype: np.dtype):
        body, tables = network_source(network)
        head = ["@inlined", "def radial(length, kind, table, other, constants, values, slopes, at):"]
        self.source = "\n".join([*head, *(f"    {line}" for line in body), ""])
        self.num_weights = network.num_weights
        constants = network.basis.frequencies[None]
        if network.transform is not None:
            sizes = network.transform.sizes[:, None]
            constants = np.hstack([constants.repeat(len(sizes), 0), sizes])
        self._arrays = network.kinds, *(table.astype(dtype) for table in tables), constants

    def scratch(self) -> list[str]:
        return [f"R, D = np.empty({EDGES * self.num_weights}, real), np.empty({EDGES * self.num_weights}, real)"]

    def find(self, length: str, kind: str) -> str:
        return f"radial({length}, {kind}, table, other, constants, R, D, q * {self.num_weights})"

    def weigh(self) -> list[str]:
        return []

    def opened(self, lanes: int) -> list[str]:
        return [f"row = q * {self.num_weights}"]

    def vectors(self, column: str, lanes: int) -> list[str]:
        return [f"x, dx = load(R, row + {column}, {lanes}), load(D, row + {column}, {lanes})"]

    def arrays(self, species: np.ndarray) -> Arrays:
        return self._arrays


class Interpolated:
    """Splines, coefficients and slopes; one joins the others, row after row, when a structure first has its kind.

    Constants of each are its cutoff, number of intervals and first row. Threads that meet new kinds at once may lose
    each other's splines, and make them again.
    """

    def __init__(self, splines: Splines, dtype: np.dtype):
        self.source, self.splines, self.num_weights = LOCATE, splines, splines.num_weights
        places = np.full(int(splines.kinds.max()) + 1, -1)  # of the kinds among the constants
        rows = np.empty((0, splines.num_weights), dtype)
        self._known = b"", places, (rows, rows, np.empty((0, 3)))

    def arrays(self, species: np.ndarray) -> Arrays:
        """`species` [n] are those that a structure has, each once."""
        key, places, arrays = self._known
        if key != species.tobytes():
            needed = np.unique(self.splines.kinds[np.ix_(species, species)])
            missing = needed[places[needed] < 0]
            if len(missing) > 0:
                places = places.copy()
                places[missing] = np.arange(len(missing)) + len(arrays[2])
                arrays = _joined(arrays, [self.splines.served(kind) for kind in missing.tolist()])
            self._known = species.tobytes(), places, arrays
        return places[self.splines.kinds], *arrays

    def scratch(self) -> list[str]:
        return [
            f"t, stretch, row_of = np.zeros({EDGES}), np.zeros({EDGES}), np.empty({EDGES}, np.int64)",
            f"V, S = np.empty({DEGREE * EDGES}, real), np.empty({DEGREE * EDGES}, real)",
            "table, other = table.ravel(), other.ravel()",
        ]

    def find(self, length: str, kind: str) -> str:
        return f"row_of[q], t[q], stretch[q] = locate({length}, {kind}, constants)"

    def weigh(self) -> list[str]:
        """In one loop that the compiler makes vectors of; edges beyond the last one do no harm."""
        lines = [f"for q in range({EDGES}):"]
        for j, (value, slope) in enumerate(zip(VALUES, SLOPES, strict=True)):
            lines.append(f"    V[{j * EDGES} + q] = real({horner(value, 't[q]')})")
            lines.append(f"    S[{j * EDGES} + q] = real(stretch[q] * ({horner(slope, 't[q]')}))")
        return lines

    def opened(self, lanes: int) -> list[str]:
        pairs = [
            f"v{j}, s{j} = ({', '.join(f'spread({x}, {j * EDGES} + q, {lanes})' for x in 'VS')})" for j in range(DEGREE)
        ]
        return [f"row = row_of[q] * {self.num_weights}", *pairs]

    def vectors(self, column: str, lanes: int) -> list[str]:
        lines = [f"x = load(table, row + {column}, {lanes})"]
        for j in range(DEGREE):
            lines.append(f"d = load(other, row + {j * self.num_weights} + {column}, {lanes})")
            lines.append(f"x, dx = fma(v{j}, d, x), {f'fma(s{j}, d, dx)' if j else 'mul(s0, d)'}")
        return lines


def _joined(arrays: tuple[np.ndarray, np.ndarray, np.ndarray], splines: list[Spline]) -> tuple[np.ndarray, ...]:
    parts, row = [[old] for old in arrays], len(arrays[0])
    for spline in splines:
        constants = spline.cutoff, spline.n_intervals, row
        padded = np.pad(spline.slopes, ((0, 1), (0, 0)))
        for part, new in zip(parts, (spline.coefficients, padded, np.array([constants])), strict=True):
            part.append(new)
        row += len(spline.coefficients)
    return tuple(aligned(np.concatenate(part), part[0].dtype) for part in parts)


# of an edge: its first row in the table, its place behind that knot, and the slope of this
LOCATE = f"""
@inlined
def locate(length, kind, constants):
    dense, near = {STRETCH} * constants[kind, 1], 1.0 / (constants[kind, 0] + {STRETCH - 1.0} * length)
    x = dense * length * near
    i = min(int(x), int(constants[kind, 1]) - 1)
    return i + int(constants[kind, 2]), x - i, dense * near * near * constants[kind, 0]
"""
