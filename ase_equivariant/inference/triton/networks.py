"""A radial network for all edges at once with torch, values and slopes, as `inference.radial` has it with numpy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ase_equivariant.inference.radial import LAYER_NORM, Basis, Layer, Network, Transform
from ase_equivariant.inference.triton.compile import Compiler

Pair = tuple[Tensor, Tensor]  # values and slopes


class TorchNetwork:
    def __init__(self, network: Network, compiler: Compiler):
        """The basis in float64, the layers in the precision of the compiler."""
        self.network, self.dtype, self.layers = network, compiler.dtype, []
        for layer in network.layers:
            norm = layer.norm and tuple(map(compiler.constant, layer.norm))
            self.layers.append(Layer(compiler.constant(layer.weights), compiler.constant(layer.bias), norm))
        self.frequencies = torch.as_tensor(network.basis.frequencies, device=compiler.device)
        if network.transform is not None:
            self.sizes = torch.as_tensor(network.transform.sizes, device=compiler.device)

    def __call__(self, lengths: Tensor, kinds: Tensor, needed: Sequence[int]) -> Pair:
        """Values and slopes, [n_edges, num_weights] each; `needed` are the kinds that may be among `kinds`."""
        network, enveloped = self.network, self.network.basis.enveloped
        envelope = _envelope(network.basis, lengths[:, None])
        pair = self._inputs(lengths, kinds)
        if enveloped:
            pair = _product(pair, envelope)
        pair, envelope = ([x.to(self.dtype) for x in p] for p in (pair, envelope))
        for i, layer in enumerate(self.layers):
            if i > 0:
                gate = torch.sigmoid(pair[0])
                pair = pair[0] * gate, pair[1] * gate * (1.0 + pair[0] * (1.0 - gate))
            pair = _layer(layer, *pair, kinds, needed)
        if network.counts:
            values = torch.tanh(pair[0] * pair[0])
            pair = values, 2.0 * pair[0] * pair[1] * (1.0 - values * values)
        return pair if enveloped else _product(pair, envelope)

    def _inputs(self, lengths: Tensor, kinds: Tensor) -> Pair:
        basis, transform = self.network.basis, self.network.transform
        if transform is None:
            return _functions(basis, self.frequencies, lengths[:, None])
        x, stretch = _transformed(transform, self.sizes[kinds], lengths)
        values, slopes = _functions(basis, self.frequencies, x[:, None])
        return values, slopes * stretch[:, None]


def _product(a: Pair, b: Pair) -> Pair:
    return a[0] * b[0], a[1] * b[0] + a[0] * b[1]


def _layer(layer: Layer, values: Tensor, slopes: Tensor, kinds: Tensor, needed: Sequence[int]) -> Pair:
    if len(layer.weights) == 1:
        values, slopes = values @ layer.weights[0], slopes @ layer.weights[0]
    else:
        products = [(kind, values @ layer.weights[kind], slopes @ layer.weights[kind]) for kind in needed]
        _, values, slopes = products[0]
        for kind, *pair in products[1:]:
            mine = (kinds == kind)[:, None]
            values, slopes = torch.where(mine, pair[0], values), torch.where(mine, pair[1], slopes)
    values = values + (layer.bias if len(layer.bias) == 1 else layer.bias[kinds])
    if layer.norm is None:
        return values, slopes
    gains, shifts = layer.norm
    mean = LAYER_NORM + values.square().mean(1, keepdim=True)
    change = (values * slopes).mean(1, keepdim=True) / mean
    factors = gains / mean.sqrt()
    return factors * values + shifts, factors * (slopes - change * values)


def _functions(basis: Basis, frequencies: Tensor, x: Tensor) -> Pair:
    """[n, num_bessel] each, of x [n, 1]."""
    if basis.kind == "bessel":
        gain, phase = (2.0 / 3.0) ** 0.5 * basis.cutoff, x * frequencies
        values = gain * torch.sin(phase) / x
        return values, (gain * frequencies * torch.cos(phase) - values) / x
    if basis.kind == "gaussian":
        z = x / basis.spacing - torch.arange(basis.count, device=x.device)
        values = torch.exp(-0.5 * z * z)
        return values, -z * values / basis.spacing
    values, slopes = [torch.ones_like(x), x], [torch.zeros_like(x), torch.ones_like(x)]
    for _ in range(basis.count - 1):
        slopes.append(2.0 * values[-1] + 2.0 * x * slopes[-1] - slopes[-2])
        values.append(2.0 * x * values[-1] - values[-2])
    return torch.cat(values[1:], 1), torch.cat(slopes[1:], 1)


def _envelope(basis: Basis, r: Tensor) -> Pair:
    """[n, 1] each."""
    p, x = float(basis.power), r / basis.cutoff
    a, b, c = (p + 1.0) * (p + 2.0) / 2.0, p * (p + 2.0), p * (p + 1.0) / 2.0
    values = (1.0 - x**p * (a - x * (b - x * c))) * (x < 1.0)
    slopes = -(x ** (p - 1.0)) * (a * p - x * (b * (p + 1.0) - x * c * (p + 2.0))) / basis.cutoff * (x < 1.0)
    return values, slopes


def _transformed(transform: Transform, size: Tensor, r: Tensor) -> Pair:
    """[n] each."""
    c = transform.constants
    if transform.kind == "agnesi":
        a, q, p = c
        x = r / size
        lower = x ** (p - q) + 1.0
        ratio = a * x**p / lower
        slope = ratio * (p - (p - q) * (lower - 1.0) / lower) / r
        return 1.0 / (1.0 + ratio), -slope / (1.0 + ratio) ** 2
    if transform.kind == "soft":
        near, far = 1.5 * size, 8.0 / 3.0 * size
        steepness = c[0] / (far - near)
        step = torch.tanh(steepness * (r - 0.5 * (near + far)))
        slope = 0.5 * (1.0 + step) + 0.5 * (r - near) * steepness * (1.0 - step * step)
        return near + 0.5 * (r - near) * (1.0 + step), slope
    x = 2.0 * r / size
    step = torch.tanh(x + c[0] * x ** c[1])
    slope = 1.0 - (1.0 - step * step) * (1.0 + c[0] * c[1] * x ** (c[1] - 1.0)) / size
    return r + 0.5 - 0.5 * step, slope
