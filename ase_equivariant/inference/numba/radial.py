"""Radial functions of one edge: the source that computes R and R', and the arrays it reads."""

from __future__ import annotations

import warnings

import numpy as np

from ase_equivariant.inference.numba.lanes import aligned, lanes_of
from ase_equivariant.inference.numba.networks import network_source
from ase_equivariant.inference.radial import Network
from ase_equivariant.inference.splines import DEGREE, STRETCH, TOLERANCE, Spline, Splines

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def radial_functions(radial: Network | Splines, dtype: np.dtype) -> Exact | Interpolated:
    """Source of `radial(length, kind, table, other, constants, values, slopes, at)`, and its arrays.

    It writes values and slopes [at, at + num_weights); `values_only` writes no slopes.
    """
    return Interpolated(radial, dtype) if isinstance(radial, Splines) else Exact(radial, dtype)


class Exact:
    """A network; its arrays are the kinds, the layers in two tables, and constants by kind."""

    def __init__(self, network: Network, dtype: np.dtype):
        body, tables = network_source(network)
        self.source = _function("values_only", body) + _function("radial", body)
        constants = network.basis.frequencies[None]
        if network.transform is not None:
            sizes = network.transform.sizes[:, None]
            constants = np.hstack([constants.repeat(len(sizes), 0), sizes])
        self._arrays = network.kinds, *(table.astype(dtype) for table in tables), constants

    def arrays(self, species: np.ndarray) -> Arrays:
        return self._arrays


class Interpolated:
    """Splines, coefficients and slopes; one joins the others, row after row, when a structure first has its kind.

    Constants of each are its cutoff, number of intervals and first row. Threads that meet new kinds at once may lose
    each other's splines, and make them again.
    """

    def __init__(self, splines: Splines, dtype: np.dtype):
        self.source, self.splines = _spline_source(splines.num_weights, lanes_of(dtype, splines.num_weights)), splines
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
                arrays = _joined(arrays, [self._fit(kind) for kind in missing.tolist()])
            self._known = species.tobytes(), places, arrays
        return places[self.splines.kinds], *arrays

    def _fit(self, kind: int) -> Spline:
        spline, error = self.splines.fit(kind)
        if not error < TOLERANCE:
            warnings.warn(
                f"a radial function of this model is interpolated with a relative error of {error:.0e} for two of the "
                "elements; backend='eager' computes it itself",
                stacklevel=2,
            )
        return spline


def _joined(arrays: tuple[np.ndarray, np.ndarray, np.ndarray], splines: list[Spline]) -> tuple[np.ndarray, ...]:
    parts, row = [[old] for old in arrays], len(arrays[0])
    for spline in splines:
        constants = spline.cutoff, spline.n_intervals, row
        padded = np.pad(spline.slopes, ((0, 1), (0, 0)))
        for part, new in zip(parts, (spline.coefficients, padded, np.array([constants])), strict=True):
            part.append(new)
        row += len(spline.coefficients)
    return tuple(aligned(np.concatenate(part), part[0].dtype) for part in parts)


def _function(name: str, body: list[str]) -> str:
    head = ["@inlined", f"def {name}(length, kind, table, other, constants, values, slopes, at):"]
    return "\n".join([*head, *(f"    {line}" for line in body), ""])


def _spline_source(num_weights: int, lanes: int) -> str:
    """Values from one coefficient and the differences d to the next ones, of which slopes are made as well."""
    lines = [
        f"dense, near = {STRETCH} * constants[kind, 1], 1.0 / (constants[kind, 0] + {STRETCH - 1.0} * length)",
        "x = dense * length * near",
        "i = min(int(x), int(constants[kind, 1]) - 1)",
        f"t, row, b0_0 = x - i, (i + int(constants[kind, 2])) * {num_weights}, 1.0",
        "table, other = table.ravel(), other.ravel()",
    ]
    for d in range(1, DEGREE + 1):
        for j in range(d + 1):
            left = [f"(t + {d - j}.0) * b{d - 1}_{j - 1}"] if j > 0 else []
            right = [f"({j + 1}.0 - t) * b{d - 1}_{j}"] if j < d else []
            lines.append(f"b{d}_{j} = ({' + '.join(left + right)}) * {1.0 / d!r}")
    for j in reversed(range(DEGREE)):
        lines.append(f"w{j} = b{DEGREE}_{j + 1}" + (f" + w{j + 1}" if j + 1 < DEGREE else ""))
    lines += [f"v{j} = fill(real(w{j}), {lanes})" for j in range(DEGREE)]
    stretch = ["stretch = dense * near * near * constants[kind, 0]"]
    stretch += [f"s{j} = fill(real(stretch * b{DEGREE - 1}_{j}), {lanes})" for j in range(DEGREE)]
    loop = [f"for k in range(0, {num_weights}, {lanes}):", f"    value = load(table, row + k, {lanes})"]
    slope = []
    for j in range(DEGREE):
        loop += [f"    d = load(other, row + {j * num_weights} + k, {lanes})", f"    value = fma(v{j}, d, value)"]
        slope += loop[-2:] + [f"    slope = {f'fma(s{j}, d, slope)' if j else f'mul(s{j}, d)'}"]
    stores = ["    store(values, at + k, value)", "    store(slopes, at + k, slope)"]
    both = [*lines, *stretch, *loop[:2], *slope, *stores]
    return _function("values_only", [*lines, *loop, stores[0]]) + _function("radial", both)
