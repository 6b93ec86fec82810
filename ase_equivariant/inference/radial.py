"""Radial functions of a program: networks of the distance, with their slopes.

    R(r) = MLP(e_1(x) f(r) … e_N(x) f(r))        or  f(r) MLP(e_1(x) … e_N(x))

with e the basis, f the envelope and x the transformed distance, r itself where there is no transform; as in `nn.radial`
and `nn.transforms`. Edges whose radial functions are the same, and a table of them as well, are of one kind. Lengths go
up to the cutoff: a network with biases does not vanish beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

LAYER_NORM = 1e-5  # ε
_NEAR = 1e-12  # Å; stands for zero, where Bessel functions are a limit

Pair = tuple[np.ndarray, np.ndarray]  # values and slopes


@dataclass(frozen=True)
class Basis:
    """The functions e_n(x) and the envelope f(r)."""

    kind: str  # "bessel", "gaussian" or "chebyshev"
    cutoff: float  # Å
    power: int
    frequencies: np.ndarray  # [num_bessel] 1/Å, of Bessel functions
    enveloped: bool  # whether the envelope multiplies the basis, or the network's result

    @property
    def count(self) -> int:
        return len(self.frequencies)

    @property
    def spacing(self) -> float:
        """Of the Gaussians, Å."""
        return self.cutoff / max(self.count - 1, 1)

    def functions(self, x: np.ndarray) -> Pair:
        """[n, num_bessel] each."""
        x = x[:, None]
        if self.kind == "bessel":
            gain, phase = np.sqrt(2.0 / 3.0) * self.cutoff, x * self.frequencies
            values = gain * np.sin(phase) / x
            return values, (gain * self.frequencies * np.cos(phase) - values) / x
        if self.kind == "gaussian":
            z = x / self.spacing - np.arange(self.count)
            values = np.exp(-0.5 * z * z)
            return values, -z * values / self.spacing
        values, slopes = [np.ones_like(x), x], [np.zeros_like(x), np.ones_like(x)]
        for _ in range(self.count - 1):
            slopes.append(2.0 * values[-1] + 2.0 * x * slopes[-1] - slopes[-2])
            values.append(2.0 * x * values[-1] - values[-2])
        return np.hstack(values[1:]), np.hstack(slopes[1:])

    def envelope(self, r: np.ndarray) -> Pair:
        """[n, 1] each."""
        p, x = float(self.power), r[:, None] / self.cutoff
        a, b, c = (p + 1.0) * (p + 2.0) / 2.0, p * (p + 2.0), p * (p + 1.0) / 2.0
        values = (1.0 - x**p * (a - x * (b - x * c))) * (x < 1.0)
        return values, -(x ** (p - 1.0)) * (a * p - x * (b * (p + 1.0) - x * c * (p + 2.0))) / self.cutoff * (x < 1.0)


@dataclass(frozen=True)
class Transform:
    """x(r), by the sizes of the two atoms."""

    kind: str  # "agnesi", "soft" or "soft_shift"
    constants: tuple[float, ...]
    sizes: np.ndarray  # [kinds] Å

    def __call__(self, r: np.ndarray, kind: int) -> Pair:
        """[n] each."""
        size, c = self.sizes[kind], self.constants
        if self.kind == "agnesi":
            a, q, p = c
            x = r / size
            lower = x ** (p - q) + 1.0
            ratio = a * x**p / lower
            slope = ratio * (p - (p - q) * (lower - 1.0) / lower) / r
            return 1.0 / (1.0 + ratio), -slope / (1.0 + ratio) ** 2
        if self.kind == "soft":
            near, far = 1.5 * size, 8.0 / 3.0 * size
            steepness = c[0] / (far - near)
            step = np.tanh(steepness * (r - 0.5 * (near + far)))
            return near + 0.5 * (r - near) * (1.0 + step), (
                0.5 * (1.0 + step) + 0.5 * (r - near) * steepness * (1.0 - step * step)
            )
        x = 2.0 * r / size
        step = np.tanh(x + c[0] * x ** c[1])
        return r + 0.5 - 0.5 * step, 1.0 - (1.0 - step * step) * (1.0 + c[0] * c[1] * x ** (c[1] - 1.0)) / size


@dataclass(frozen=True)
class Layer:
    """v = x W + b, and with `norm` (g, c) then g v / √(ε + ⟨v²⟩) + c.

    That is LayerNorm where the mean of v is zero, as W and b can see to.
    """

    weights: np.ndarray  # [1 or kinds, n_in, n_out], normalisation and gains included
    bias: np.ndarray  # [1 or kinds, n_out]
    norm: tuple[np.ndarray, np.ndarray] | None = None  # [1, n_out] each

    def __call__(self, values: np.ndarray, slopes: np.ndarray, kind: int) -> Pair:
        weights = self.weights[kind % len(self.weights)]
        values, slopes = values @ weights + self.bias[kind % len(self.bias)], slopes @ weights
        if self.norm is None:
            return values, slopes
        gains, shifts = self.norm
        mean = LAYER_NORM + np.square(values).mean(1, keepdims=True)
        change = (values * slopes).mean(1, keepdims=True) / mean
        factors = gains / np.sqrt(mean)
        return factors * values + shifts, factors * (slopes - change * values)


@dataclass(frozen=True)
class Network:
    """Layers with SiLU between them; with `counts`, tanh(v²) of the result v."""

    basis: Basis
    transform: Transform | None
    layers: tuple[Layer, ...]
    kinds: np.ndarray  # [n_species, n_species] kind of an edge, by the species of its receiver and of its sender
    counts: bool = False

    @property
    def num_weights(self) -> int:
        return self.layers[-1].weights.shape[2]

    def evaluate(self, lengths: np.ndarray, kind: int) -> Pair:
        """Values and slopes, [n, num_weights] each."""
        lengths = np.maximum(lengths, _NEAR)
        envelope = self.basis.envelope(lengths)
        values, slopes = self._inputs(lengths, kind)
        if self.basis.enveloped:
            values, slopes = _product((values, slopes), envelope)
        for i, layer in enumerate(self.layers):
            if i > 0:
                gate = expit(values)
                slopes = slopes * gate * (1.0 + values * (1.0 - gate))
                values = values * gate
            values, slopes = layer(values, slopes, kind)
        if self.counts:
            slopes, values = 2.0 * values * slopes, np.tanh(values * values)
            slopes = slopes * (1.0 - values * values)
        return (values, slopes) if self.basis.enveloped else _product((values, slopes), envelope)

    def _inputs(self, lengths: np.ndarray, kind: int) -> Pair:
        if self.transform is None:
            return self.basis.functions(lengths)
        x, stretch = self.transform(lengths, kind)
        values, slopes = self.basis.functions(x)
        return values, slopes * stretch[:, None]


def _product(a: Pair, b: Pair) -> Pair:
    return a[0] * b[0], a[1] * b[0] + a[0] * b[1]
