"""Radial functions of a program: the network itself, or a spline through it.

The spline is of degree five, with evenly spaced knots from zero to the cutoff: four times continuously differentiable,
so a potential made of it conserves energy as well as the network's. Its coefficients are one row per knot.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

DEGREE = 5
INTERVALS = (128, 256, 512, 1024, 2048)  # the first that reaches the tolerance is taken
TOLERANCE = 1e-6  # of values and slopes, relative to the largest of each
_NEAR = 1e-6  # Å; stands for zero, where Bessel functions are a limit


@dataclass(frozen=True)
class Network:
    """Bessel functions times the envelope, then layers without bias, SiLU between them.

    `kinds` 1 serves all edges; otherwise there is one network per species of the sender.
    """

    cutoff: float
    power: int
    frequencies: np.ndarray  # [num_bessel] 1/Å
    layers: tuple[np.ndarray, ...]  # each [kinds, n_in, n_out], normalisation and gains included

    @property
    def kinds(self) -> int:
        return len(self.layers[0])

    @property
    def num_weights(self) -> int:
        return self.layers[-1].shape[2]

    def evaluate(self, lengths: np.ndarray, kind: int) -> tuple[np.ndarray, np.ndarray]:
        """Values and slopes, [n, num_weights] each."""
        values, slopes = self._basis(np.maximum(lengths, _NEAR)[:, None])
        for i, layer in enumerate(self.layers):
            if i > 0:
                gate = 1.0 / (1.0 + np.exp(-values))
                slopes = slopes * gate * (1.0 + values * (1.0 - gate))
                values = values * gate
            values, slopes = values @ layer[kind], slopes @ layer[kind]
        return values, slopes

    def _basis(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p, x, phase = float(self.power), r / self.cutoff, r * self.frequencies
        a, b, c = (p + 1.0) * (p + 2.0) / 2.0, p * (p + 2.0), p * (p + 1.0) / 2.0
        envelope = (1.0 - x**p * (a - x * (b - x * c))) * (x < 1.0)
        slope = -(x ** (p - 1.0)) * (a * p - x * (b * (p + 1.0) - x * c * (p + 2.0))) / self.cutoff * (x < 1.0)
        gain = np.sqrt(2.0 / 3.0) * self.cutoff
        values = gain * np.sin(phase) * envelope / r
        return values, gain * (self.frequencies * np.cos(phase) * envelope + np.sin(phase) * slope) / r - values / r


@dataclass(frozen=True)
class Table:
    """The spline: at length r = (i + t) spacing it is Σ_a B_a(t) coefficients[kind, i + a]."""

    spacing: float
    coefficients: np.ndarray  # [kinds, n_intervals + DEGREE, num_weights]

    @property
    def kinds(self) -> int:
        return len(self.coefficients)

    @property
    def num_weights(self) -> int:
        return self.coefficients.shape[2]

    def evaluate(self, lengths: np.ndarray, kind: int) -> tuple[np.ndarray, np.ndarray]:
        """Values and slopes, [n, num_weights] each."""
        first, *weights = _weights(lengths / self.spacing, self.coefficients.shape[1] - DEGREE)
        rows = [self.coefficients[kind, first + a] for a in range(DEGREE + 1)]
        values, slopes = (sum(w[:, None] * row for w, row in zip(ws, rows, strict=True)) for ws in weights)
        return values, slopes / self.spacing


def interpolated(network: Network) -> tuple[Table | Network, float]:
    """The smallest table that is good enough, and its error; the network itself and zero where none is."""
    for n_intervals in INTERVALS:
        table = _fit(network, n_intervals)
        error = _error(network, table, n_intervals)
        if error < TOLERANCE:
            return table, error
    return network, 0.0


def _fit(network: Network, n_intervals: int) -> Table:
    knots = np.arange(n_intervals + 1.0)
    # as many conditions as coefficients: two more points at either end
    sites = np.sort(np.concatenate([knots, knots[:2] + 0.5, knots[-2:] - 0.5]))
    spacing = network.cutoff / n_intervals
    first, weights, _ = _weights(sites, n_intervals)
    matrix = np.zeros((len(sites), len(sites)))
    np.put_along_axis(matrix, first[:, None] + np.arange(DEGREE + 1), np.stack(weights, 1), 1)
    values = [network.evaluate(sites * spacing, kind)[0] for kind in range(network.kinds)]
    return Table(spacing, np.stack([np.linalg.solve(matrix, v) for v in values]))


def _error(network: Network, table: Table, n_intervals: int) -> float:
    """Largest error between the knots, of values and slopes, relative to the largest value and slope."""
    lengths = (np.arange(4 * n_intervals) + 0.5) / 4.0 * table.spacing
    worst = 0.0
    for kind in range(network.kinds):
        for found, exact in zip(table.evaluate(lengths, kind), network.evaluate(lengths, kind), strict=True):
            worst = max(worst, float(np.abs(found - exact).max() / np.abs(exact).max()))
    return worst


def _weights(x: np.ndarray, n_intervals: int) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """First coefficient of each x, in units of the spacing, and the DEGREE + 1 weights of values and of slopes."""
    first = np.minimum(x.astype(int), n_intervals - 1)
    t = x - first
    weights = [np.ones_like(t)]
    for d in range(1, DEGREE + 1):
        lower, weights = [np.zeros_like(t), *weights, np.zeros_like(t)], []
        for j in range(d + 1):
            weights.append(((t + d - j) * lower[j] + (j + 1 - t) * lower[j + 1]) / d)
    return first, weights, [a - b for a, b in pairwise(lower)]
