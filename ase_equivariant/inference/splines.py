"""Splines through the radial networks of a program.

They are of degree five, with evenly spaced knots from zero to the cutoff: four times continuously differentiable, so a
potential made of them conserves energy as well as the network's. Their coefficients are one row per knot. One table
belongs to each kind of edges; it is made when it is first asked for, since of 89 elements a structure has few.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ase_equivariant.inference.radial import Network, Pair

DEGREE = 5
INTERVALS = (128, 256, 512, 1024, 2048)  # the first that reaches the tolerance is taken
TOLERANCE = 1e-6  # of values and slopes, relative to the largest of each
SAMPLES = 8  # kinds of edges at most that the tolerance is measured on


@dataclass(frozen=True)
class Table:
    """Splines through a network: at length r = (i + t) spacing they are Σ_a B_a(t) coefficients[i + a].

    Their slopes are splines of one degree less, with coefficients of their own: differences of rounded coefficients
    would have their rounding errors, divided by the small spacing.
    """

    network: Network
    n_intervals: int

    @property
    def spacing(self) -> float:
        return self.network.basis.cutoff / self.n_intervals

    @property
    def kinds(self) -> np.ndarray:
        return self.network.kinds

    @property
    def num_weights(self) -> int:
        return self.network.num_weights

    def coefficients(self, kind: int) -> tuple[np.ndarray, np.ndarray]:
        """Of values, [n_intervals + DEGREE, num_weights], and of slopes, one row less.

        Values at as many points determine them: at the knots, and at two more near either end.
        """
        knots = np.arange(self.n_intervals + 1.0)
        sites = np.sort(np.concatenate([knots, knots[:2] + 0.5, knots[-2:] - 0.5]))
        first, weights, _ = _weights(sites, self.n_intervals)
        matrix = np.zeros((len(sites), len(sites)))
        np.put_along_axis(matrix, first[:, None] + np.arange(DEGREE + 1), np.stack(weights, 1), 1)
        values = np.linalg.solve(matrix, self.network.evaluate(sites * self.spacing, kind)[0])
        return values, np.diff(values, axis=0) / self.spacing

    def evaluate(self, lengths: np.ndarray, kind: int) -> Pair:
        """Values and slopes, [n, num_weights] each."""
        first, *weights = _weights(lengths / self.spacing, self.n_intervals)
        values, slopes = (
            sum(w[:, None] * rows[first + a] for a, w in enumerate(ws))
            for ws, rows in zip(weights, self.coefficients(kind), strict=True)
        )
        return values, slopes


def interpolated(network: Network) -> tuple[Table | Network, float]:
    """The smallest table that is good enough, and its error; the network itself and zero where none is."""
    for n_intervals in INTERVALS:
        table = Table(network, n_intervals)
        error = _error(table)
        if error < TOLERANCE:
            return table, error
    return network, 0.0


def _error(table: Table) -> float:
    """Largest error between the knots, of values and slopes, relative to the largest value and slope."""
    lengths = (np.arange(4 * table.n_intervals) + 0.5) / 4.0 * table.spacing
    last, worst = int(table.kinds.max()), 0.0
    for kind in np.unique(np.linspace(0, last, SAMPLES).astype(int)).tolist():
        for found, exact in zip(table.evaluate(lengths, kind), table.network.evaluate(lengths, kind), strict=True):
            worst = max(worst, float(np.abs(found - exact).max() / np.abs(exact).max()))
    return worst


def _weights(x: np.ndarray, n_intervals: int) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """First coefficient of each x, in units of the spacing, the DEGREE + 1 weights of values and DEGREE of slopes."""
    first = np.minimum(x.astype(int), n_intervals - 1)
    t = x - first
    weights = [np.ones_like(t)]
    for d in range(1, DEGREE + 1):
        lower, padded, weights = weights, [np.zeros_like(t), *weights, np.zeros_like(t)], []
        for j in range(d + 1):
            weights.append(((t + d - j) * padded[j] + (j + 1 - t) * padded[j + 1]) / d)
    return first, weights, lower
