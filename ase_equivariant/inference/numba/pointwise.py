"""Gate, norm and division: what acts on each node by itself."""

from __future__ import annotations

import numpy as np

from ase_equivariant.inference.numba.compile import Compiler
from ase_equivariant.inference.numba.run import Run
from ase_equivariant.inference.program import Divide, Gate, Norm

GATE = """
@exact
def silu(x):
    return x / (real(1.0) + np.exp(-x))

@exact
def silu_slope(x):
    s = real(1.0) / (real(1.0) + np.exp(-x))
    return s * (real(1.0) + x * (real(1.0) - s))

@exact
def sigmoid(x):
    return real(1.0) / (real(1.0) + np.exp(-x))

@exact
def sigmoid_slope(x):
    s = real(1.0) / (real(1.0) + np.exp(-x))
    return s * (real(1.0) - s)

@exact
def forward(a, b, even, odd, gated, gain, odd_gain, gate_gain, xs, ys):
    for n in range(a, b):
        x, y = xs[n], ys[n]
        for k in range(even):
            y[k] += gain * silu(x[k])
        for i in range(len(odd)):
            for k in range(odd[i, 2]):
                y[odd[i, 1] + k] += odd_gain * np.tanh(x[odd[i, 0] + k])
        for i in range(len(gated)):
            gate, start, out, dim, width = gated[i]
            for k in range(width):
                g = gate_gain * OPENING(x[gate + k])
                for m in range(dim):
                    y[out + m * width + k] += g * x[start + m * width + k]

@exact
def backward(a, b, even, odd, gated, gain, odd_gain, gate_gain, xs, gs, dxs):
    for n in range(a, b):
        x, g, dx = xs[n], gs[n], dxs[n]
        for k in range(even):
            dx[k] += gain * silu_slope(x[k]) * g[k]
        for i in range(len(odd)):
            for k in range(odd[i, 2]):
                t = np.tanh(x[odd[i, 0] + k])
                dx[odd[i, 0] + k] += odd_gain * (real(1.0) - t * t) * g[odd[i, 1] + k]
        for i in range(len(gated)):
            gate, start, out, dim, width = gated[i]
            for k in range(width):
                factor, total = gate_gain * OPENING(x[gate + k]), real(0.0)
                for m in range(dim):
                    total += g[out + m * width + k] * x[start + m * width + k]
                    dx[start + m * width + k] += factor * g[out + m * width + k]
                dx[gate + k] += gate_gain * OPENING_slope(x[gate + k]) * total
"""
NORM = """
@summing
def forward(a, b, shares, weights, epsilon, xs, ys):
    for n in range(a, b):
        x, y, mean = xs[n], ys[n], epsilon
        for k in range(x.size):
            mean += shares[k] * x[k] * x[k]
        factor = real(1.0) / np.sqrt(mean)
        for k in range(x.size):
            y[k] += factor * weights[k] * x[k]

@summing
def backward(a, b, shares, weights, epsilon, xs, gs, dxs):
    for n in range(a, b):
        x, g, dx, mean, total = xs[n], gs[n], dxs[n], epsilon, real(0.0)
        for k in range(x.size):
            mean += shares[k] * x[k] * x[k]
            total += g[k] * weights[k] * x[k]
        factor = real(1.0) / np.sqrt(mean)
        total *= factor * factor * factor
        for k in range(x.size):
            dx[k] += factor * weights[k] * g[k] - total * shares[k] * x[k]
"""
DIVIDE = """
@summing
def forward(a, b, alpha, beta, xs, counts, ys):
    for n in range(a, b):
        x, y, factor = xs[n], ys[n], real(1.0) / (alpha + beta * counts[n, 0])
        for k in range(x.size):
            y[k] += factor * x[k]

@summing
def backward(a, b, alpha, beta, xs, counts, gs, dxs, dcounts):
    for n in range(a, b):
        x, g, dx, total = xs[n], gs[n], dxs[n], real(0.0)
        factor = real(1.0) / (alpha + beta * counts[n, 0])
        for k in range(x.size):
            dx[k] += factor * g[k]
            total += g[k] * x[k]
        dcounts[n, 0] -= beta * factor * factor * total
"""


class GateKernel:
    """Kernel of a `Gate`."""

    def __init__(self, stage: Gate, compiler: Compiler):
        self.reads, self.source, self.target = stage.reads, stage.source, stage.target
        real = compiler.dtype.type
        odd = np.array(stage.odd, np.int64).reshape(-1, 3)
        gated = np.array(stage.gated, np.int64).reshape(-1, 5)
        self.layout = stage.even, odd, gated, *map(real, (stage.even_gain, stage.odd_gain, stage.gate_gain))
        kernels = compiler(GATE.replace("OPENING", stage.opening))
        self._forward, self._backward = kernels["forward"], kernels["backward"]

    def forward(self, run: Run, a: int, b: int) -> None:
        self._forward(a, b, *self.layout, run.values[self.source], run.values[self.target])

    def backward(self, run: Run, a: int, b: int) -> None:
        gradients = run.gradients[self.target], run.gradients[self.source]
        self._backward(a, b, *self.layout, run.values[self.source], *gradients)


class NormKernel:
    """Kernel of a `Norm`."""

    def __init__(self, stage: Norm, compiler: Compiler):
        self.reads, self.source, self.target = stage.reads, stage.source, stage.target
        shares, weights = stage.shares.astype(compiler.dtype), stage.weights.astype(compiler.dtype)
        self.constants = shares, weights, compiler.dtype.type(stage.epsilon)
        kernels = compiler(NORM)
        self._forward, self._backward = kernels["forward"], kernels["backward"]

    def forward(self, run: Run, a: int, b: int) -> None:
        self._forward(a, b, *self.constants, run.values[self.source], run.values[self.target])

    def backward(self, run: Run, a: int, b: int) -> None:
        gradients = run.gradients[self.target], run.gradients[self.source]
        self._backward(a, b, *self.constants, run.values[self.source], *gradients)


class DivideKernel:
    """Kernel of a `Divide`."""

    def __init__(self, stage: Divide, compiler: Compiler):
        self.reads, self.target = stage.reads, stage.target
        self.constants = compiler.dtype.type(stage.alpha), compiler.dtype.type(stage.beta)
        kernels = compiler(DIVIDE)
        self._forward, self._backward = kernels["forward"], kernels["backward"]

    def forward(self, run: Run, a: int, b: int) -> None:
        self._forward(a, b, *self.constants, *(run.values[name] for name in self.reads), run.values[self.target])

    def backward(self, run: Run, a: int, b: int) -> None:
        values, gradients = ([arrays[name] for name in self.reads] for arrays in (run.values, run.gradients))
        self._backward(a, b, *self.constants, *values, run.gradients[self.target], *gradients)
