"""Splines through the radial networks of a program.

They are of degree five: four times continuously differentiable, so a potential made of them conserves energy as well
as the network's. Knots are evenly spaced in

    x(r) = N s r / (r_c + (s - 1) r),

s times denser at zero than they are on average and s times sparser at the cutoff r_c: networks vary fastest where atoms
nearly touch and hardly any edge is, and what the others read should fit a processor's cache. Each kind of edges has its
own spline, with as many intervals N as it needs, made when a structure first has such edges: of 89 elements it has few.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import solve_banded

from ase_equivariant.inference.radial import Network, Pair

DEGREE = 5
STRETCH = 5.0  # s
INTERVALS = (128, 256, 384, 512, 768, 1024, 1536, 2048)  # the first that reaches the tolerance is taken
TOLERANCE = 1e-6  # of values and slopes, relative to the largest of each
BLOCK = 128  # lengths at a time: what is computed of them stays in the processor's cache
SAMPLES = 3  # kinds of edges at most that tell beforehand whether splines will do


@dataclass(frozen=True)
class Spline:
    """At x(r) = i + t it is Σ_a B_a(t) coefficients[i + a].

    Its slope in x is a spline of one degree less, with coefficients of its own: differences of rounded coefficients
    would have their rounding errors, divided by the small spacing.
    """

    cutoff: float  # Å
    coefficients: np.ndarray  # [n_intervals + DEGREE, num_weights]
    slopes: np.ndarray  # [n_intervals + DEGREE - 1, num_weights]

    @property
    def n_intervals(self) -> int:
        return len(self.coefficients) - DEGREE

    def evaluate(self, lengths: np.ndarray) -> Pair:
        """Values and slopes, [n, num_weights] each."""
        near = 1.0 / (self.cutoff + (STRETCH - 1.0) * lengths)
        first, *weights = _weights(STRETCH * self.n_intervals * lengths * near, self.n_intervals)
        values, slopes = (
            sum(w[:, None] * rows[first + a] for a, w in enumerate(ws))
            for ws, rows in zip(weights, (self.coefficients, self.slopes), strict=True)
        )
        return values, slopes * (STRETCH * self.n_intervals * self.cutoff * near * near)[:, None]


@dataclass(frozen=True)
class Splines:
    """One spline for each kind of edges of a network; `samples` are those that exist, by kind."""

    network: Network
    samples: dict[int, tuple[Spline, float]] = field(default_factory=dict)

    @property
    def kinds(self) -> np.ndarray:
        return self.network.kinds

    @property
    def num_weights(self) -> int:
        return self.network.num_weights

    def fit(self, kind: int) -> tuple[Spline, float]:
        """The smallest spline that is good enough, or else the largest, and its error."""
        if kind in self.samples:
            return self.samples[kind]
        for n_intervals in INTERVALS:
            spline = _fit(self.network, kind, n_intervals)
            error = _error(self.network, kind, spline)
            if error < TOLERANCE:
                break
        return spline, error

    def served(self, kind: int) -> Spline:
        """The spline of a kind; one that is not good enough comes with a warning."""
        spline, error = self.fit(kind)
        if not error < TOLERANCE:
            warnings.warn(
                f"a radial function of this model is interpolated with a relative error of {error:.0e} for two of the "
                "elements; backend='eager' computes it itself",
                stacklevel=2,
            )
        return spline


def interpolated(network: Network) -> tuple[Splines | Network, float]:
    """Splines and their error where these are good enough for a sample of kinds, else the network itself and zero."""
    splines, worst = Splines(network), 0.0
    for kind in np.unique(np.linspace(0, network.kinds.max(), SAMPLES).astype(int)).tolist():
        splines.samples[kind] = splines.fit(kind)
        worst = max(splines.samples[kind][1], worst)  # in this order NaN stays
        if not worst < TOLERANCE:
            return network, 0.0
    return splines, worst


def _fit(network: Network, kind: int, n_intervals: int) -> Spline:
    """From values at the knots, and at two more points near either end."""
    knots = np.arange(n_intervals + 1.0)
    sites = np.sort(np.concatenate([knots, knots[:2] + 0.5, knots[-2:] - 0.5]))
    first, weights, _ = _weights(sites, n_intervals)
    bands, columns = np.zeros((2 * DEGREE + 1, len(sites))), first[:, None] + np.arange(DEGREE + 1)
    bands[DEGREE + np.arange(len(sites))[:, None] - columns, columns] = np.stack(weights, 1)
    values = network.evaluate(_lengths(sites, network, n_intervals), kind)[0]
    coefficients = solve_banded((DEGREE, DEGREE), bands, values, check_finite=False)  # not numbers stay so
    return Spline(network.basis.cutoff, coefficients, np.diff(coefficients, axis=0))


def _error(network: Network, kind: int, spline: Spline) -> float:
    """Largest error between the knots, of values and slopes, relative to the largest value and slope."""
    lengths = _lengths((np.arange(4 * spline.n_intervals) + 0.5) / 4.0, network, spline.n_intervals)
    largest = []  # of each block, errors and sizes of both
    for part in np.split(lengths, len(lengths) // BLOCK):
        pairs = zip(spline.evaluate(part), network.evaluate(part, kind), strict=True)
        largest.append([(np.abs(found - exact).max(), np.abs(exact).max()) for found, exact in pairs])
    errors, sizes = np.max(largest, 0).T
    return float(np.max(errors / np.where(sizes == 0.0, 1.0, sizes)))  # NaN stays


def _lengths(x: np.ndarray, network: Network, n_intervals: int) -> np.ndarray:
    return network.basis.cutoff * x / (STRETCH * n_intervals - (STRETCH - 1.0) * x)


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
