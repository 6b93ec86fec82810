"""Radial functions of a program: networks of the distance, with their slopes.

    R(r) = MLP(e_1(x) f(r) … e_N(x) f(r))        or  f(r) MLP(e_1(x) … e_N(x))

with e the basis, f the envelope and x the transformed distance, r itself where there is no transform; as in `nn.radial`
and `nn.transforms`, but that amplitudes of the basis are part of the first layer. Edges whose radial functions are the
same, and a table of them as well, are of one kind. Lengths go up to the cutoff: a network with biases does not vanish
beyond it.

Formulas take arrays of numpy or of torch, and a `kind` that is one for all edges or an array; so a network whose own
arrays are torch's runs on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from scipy.special import expit

LAYER_NORM = 1e-5  # ε
_NEAR = 1e-12  # Å; stands for zero, where Bessel functions are a limit

Array = np.ndarray | torch.Tensor
Pair = tuple[Array, Array]  # values and slopes


def _library(x: Array) -> ModuleType:
    return np if isinstance(x, np.ndarray) else torch


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

    def functions(self, x: Array) -> Pair:
        """[n, num_bessel] each."""
        library, x = _library(x), x[:, None]
        if self.kind == "bessel":
            gain, phase = (2.0 / self.cutoff) ** 0.5, x * self.frequencies
            values = gain * library.sin(phase) / x
            return values, (gain * self.frequencies * library.cos(phase) - values) / x
        if self.kind == "gaussian":
            z = x / self.spacing - library.ones_like(self.frequencies).cumsum(0) + 1.0  # 0, 1, 2, … spacings
            values = library.exp(-0.5 * z * z)
            return values, -z * values / self.spacing
        values, slopes = [library.ones_like(x), x], [library.zeros_like(x), library.ones_like(x)]
        for _ in range(self.count - 1):
            slopes.append(2.0 * values[-1] + 2.0 * x * slopes[-1] - slopes[-2])
            values.append(2.0 * x * values[-1] - values[-2])
        return library.hstack(values[1:]), library.hstack(slopes[1:])

    def envelope(self, r: Array) -> Pair:
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
    sizes: Array  # [kinds] Å

    def __call__(self, r: Array, kind: int | Array) -> Pair:
        """[n] each."""
        size, c, tanh = self.sizes[kind], self.constants, _library(r).tanh
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
            step = tanh(steepness * (r - 0.5 * (near + far)))
            return near + 0.5 * (r - near) * (1.0 + step), (
                0.5 * (1.0 + step) + 0.5 * (r - near) * steepness * (1.0 - step * step)
            )
        x = 2.0 * r / size
        step = tanh(x + c[0] * x ** c[1])
        return r + 0.5 - 0.5 * step, 1.0 - (1.0 - step * step) * (1.0 + c[0] * c[1] * x ** (c[1] - 1.0)) / size


@dataclass(frozen=True)
class Layer:
    """v = x W + b, and with `norm` (g, c) then g v / √(ε + ⟨v²⟩) + c.

    That is LayerNorm where the mean of v is zero, as W and b can see to.
    """

    weights: Array  # [1 or kinds, n_in, n_out]; normalisation, gains and the basis' amplitudes included
    bias: Array  # [1 or kinds, n_out]
    norm: tuple[Array, Array] | None = None  # [1, n_out] each

    def __call__(self, values: Array, slopes: Array, kind: int | Array) -> Pair:
        values, slopes = self.multiplied(values, slopes, kind)
        values = values + (self.bias[0] if len(self.bias) == 1 else self.bias[kind])
        if self.norm is None:
            return values, slopes
        gains, shifts = self.norm
        mean = LAYER_NORM + (values * values).mean(1)[:, None]
        change = (values * slopes).mean(1)[:, None] / mean
        factors = gains / mean**0.5
        return factors * values + shifts, factors * (slopes - change * values)

    def multiplied(self, values: Array, slopes: Array, kind: int | Array) -> Pair:
        """Both times the matrix of the one kind."""
        weights = self.weights[kind % len(self.weights)]
        return values @ weights, slopes @ weights


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

    def evaluate(self, lengths: Array, kind: int | Array) -> Pair:
        """Values and slopes, [n, num_weights] each."""
        lengths = lengths.clip(min=_NEAR)
        envelope = self.basis.envelope(lengths)
        values, slopes = self._inputs(lengths, kind)
        if self.basis.enveloped:
            values, slopes = _product((values, slopes), envelope)
        for i, layer in enumerate(self.layers):
            if i > 0:
                gate = torch.sigmoid(values) if isinstance(values, torch.Tensor) else expit(values)
                slopes = slopes * gate * (1.0 + values * (1.0 - gate))
                values = values * gate
            values, slopes = layer(values, slopes, kind)
        if self.counts:
            slopes, values = 2.0 * values * slopes, _library(values).tanh(values * values)
            slopes = slopes * (1.0 - values * values)
        return (values, slopes) if self.basis.enveloped else _product((values, slopes), envelope)

    def _inputs(self, lengths: Array, kind: int | Array) -> Pair:
        if self.transform is None:
            return self.basis.functions(lengths)
        x, stretch = self.transform(lengths, kind)
        values, slopes = self.basis.functions(x)
        return values, slopes * stretch[:, None]


def _product(a: Pair, b: Pair) -> Pair:
    return a[0] * b[0], a[1] * b[0] + a[0] * b[1]
