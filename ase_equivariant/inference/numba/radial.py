"""Radial functions of one edge: the source that computes R and R', and the arrays it reads."""

from __future__ import annotations

import numpy as np

from ase_equivariant.inference.numba.networks import network_source
from ase_equivariant.inference.radial import Network
from ase_equivariant.inference.splines import DEGREE, Table

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def radial_functions(radial: Network | Table, dtype: np.dtype) -> Exact | Interpolated:
    """Source of `radial(length, kind, table, constants, values, slopes, at)`, and its arrays.

    It writes values and slopes [at, at + num_weights); `values_only` writes no slopes.
    """
    return Interpolated(radial, dtype) if isinstance(radial, Table) else Exact(radial, dtype)


class Exact:
    """A network; its arrays are the kinds, the layers one after the other, and constants by kind."""

    def __init__(self, network: Network, dtype: np.dtype):
        body = network_source(network)
        self.source = _function("values_only", body) + _function("radial", body)
        count = max(len(layer) for layer in network.layers)
        layers = [layer.reshape(len(layer), -1).repeat(count // len(layer), 0) for layer in network.layers]
        constants = network.basis.frequencies[None]
        if network.transform is not None:
            sizes = network.transform.sizes[:, None]
            constants = np.hstack([constants.repeat(len(sizes), 0), sizes])
        self._arrays = network.kinds, np.concatenate(layers, 1).astype(dtype), constants

    def arrays(self, species: np.ndarray) -> Arrays:
        return self._arrays


class Interpolated:
    """Splines; a table joins the others when a structure first has its kind of edges.

    Threads that meet new kinds at once may lose each other's tables, and make them again.
    """

    def __init__(self, table: Table, dtype: np.dtype):
        self.source, self.table = _table_source(table), table
        shapes = [(0, table.n_intervals + degree, table.num_weights) for degree in (DEGREE, DEGREE - 1)]
        places = np.full(int(table.kinds.max()) + 1, -1)  # of the kinds in the tables
        self._known = b"", places, [np.empty(shape, dtype) for shape in shapes]  # of values and of slopes

    def arrays(self, species: np.ndarray) -> Arrays:
        """`species` [n] are those that a structure has, each once."""
        key, places, tables = self._known
        if key != species.tobytes():
            needed = np.unique(self.table.kinds[np.ix_(species, species)])
            missing = needed[places[needed] < 0]
            if len(missing):
                added = zip(*(self.table.coefficients(kind) for kind in missing.tolist()), strict=True)
                places = places.copy()
                places[missing] = np.arange(len(tables[0]), len(tables[0]) + len(missing))
                tables = [np.concatenate([old, np.stack(new).astype(old.dtype)]) for old, new in zip(tables, added)]
            self._known = species.tobytes(), places, tables
        return places[self.table.kinds], *tables


def _function(name: str, body: list[str]) -> str:
    head = ["@inlined", f"def {name}(length, kind, table, constants, values, slopes, at):"]
    return "\n".join([*head, *(f"    {line}" for line in body), ""])


def _table_source(table: Table) -> str:
    lines = ["x = length * INVERSE", "i = min(int(x), LAST)", "t = x - i", "b0_0 = 1.0"]
    for d in range(1, DEGREE + 1):
        for j in range(d + 1):
            left = [f"(t + {d - j}.0) * b{d - 1}_{j - 1}"] if j > 0 else []
            right = [f"({j + 1}.0 - t) * b{d - 1}_{j}"] if j < d else []
            lines.append(f"b{d}_{j} = ({' + '.join(left + right)}) / {d}.0")
    values = [f"v{j}, r{j} = real(b{DEGREE}_{j}), table[kind, i + {j}]" for j in range(DEGREE + 1)]
    slopes = [f"s{j}, q{j} = real(b{DEGREE - 1}_{j}), constants[kind, i + {j}]" for j in range(DEGREE)]
    value = " + ".join(f"v{j} * r{j}[k]" for j in range(DEGREE + 1))
    slope = " + ".join(f"s{j} * q{j}[k]" for j in range(DEGREE))
    loop = [f"for k in range({table.num_weights}):", f"    values[at + k] = {value}"]
    constants = f"INVERSE = {1.0 / table.spacing!r}\nLAST = {table.n_intervals - 1}\n"
    both = [*lines, *values, *slopes, *loop, f"    slopes[at + k] = {slope}"]
    return constants + _function("values_only", [*lines, *values, *loop]) + _function("radial", both)
