"""Source of a radial network: the basis of one edge, its layers, and the slopes of both."""

from __future__ import annotations

import numpy as np

from ase_equivariant.inference.radial import LAYER_NORM, Basis, Network, Transform


class Tables:
    """Arrays of a network side by side: those of all kinds in `table`, those that each kind has in `other`."""

    def __init__(self):
        self.parts: dict[str, list[np.ndarray]] = {"table": [], "other": []}

    def add(self, array: np.ndarray) -> str:
        """The kernel's name for an array [1 or kinds, …], whose numbers follow each other there."""
        name, row = ("table", "0") if len(array) == 1 else ("other", "kind_w")
        start, size = sum(part.shape[1] for part in self.parts[name]), array[0].size
        self.parts[name].append(array.reshape(len(array), size))
        return f"{name}[{row}, {start} : {start + size}]"

    def joined(self) -> list[np.ndarray]:
        return [np.hstack(parts) if parts else np.empty((1, 0)) for parts in self.parts.values()]


def network_source(network: Network) -> tuple[list[str], list[np.ndarray]]:
    """Lines that take `length` and `kind` to `values` and `slopes`, and the two tables that they read.

    Arithmetic of the length is in float64.
    """
    basis, tables = network.basis, Tables()
    width = max(max(layer.weights.shape[1:]) for layer in network.layers)
    lines = [
        f"v, s = np.empty({width}, real), np.empty({width}, real)",
        f"w, q = np.empty({width}, real), np.empty({width}, real)",
        "kind_x, kind_w = min(kind, len(constants) - 1), min(kind, len(other) - 1)",
        *_envelope(basis),
        *_transformed(network.transform, basis.count),
        *_basis(basis),
    ]
    for i, layer in enumerate(network.layers):
        _, n_in, n_out = layer.weights.shape
        if i > 0:
            lines += [
                f"for n in range({n_in}):",
                "    g = real(1.0) / (real(1.0) + np.exp(-w[n]))",
                "    s[n] = q[n] * g * (real(1.0) + w[n] * (real(1.0) - g))",
                "    v[n] = w[n] * g",
            ]
        last = i == len(network.layers) - 1
        w, q = ("values[at + k]", "slopes[at + k]") if last else ("w[k]", "q[k]")
        lines += [
            f"matrix, bias = {tables.add(layer.weights)}, {tables.add(layer.bias)}",
            f"for k in range({n_out}):",
            f"    {w} = bias[k]",
            f"    {q} = real(0.0)",
            f"for n in range({n_in}):",
            f"    vn, sn, row = v[n], s[n], matrix[n * {n_out} : (n + 1) * {n_out}]",
            f"    for k in range({n_out}):",
            f"        {w} += vn * row[k]",
            f"        {q} += sn * row[k]",
        ]
        if layer.norm is not None:
            lines += _normalised(n_out, *map(tables.add, layer.norm))
    return lines + _last(network), tables.joined()


def _normalised(width: int, gains: str, shifts: str) -> list[str]:
    """The norm of a hidden layer w with slopes q."""
    return [
        f"gains, shifts, mean, change = {gains}, {shifts}, real({LAYER_NORM}), real(0.0)",
        f"for k in range({width}):",
        f"    mean += real({1.0 / width!r}) * w[k] * w[k]",
        f"    change += real({1.0 / width!r}) * w[k] * q[k]",
        "change, factor = change / mean, real(1.0) / np.sqrt(mean)",
        f"for k in range({width}):",
        "    q[k] = factor * gains[k] * (q[k] - change * w[k])",
        "    w[k] = factor * gains[k] * w[k] + shifts[k]",
    ]


def _envelope(basis: Basis) -> list[str]:
    p = float(basis.power)
    return [
        f"x = length / {basis.cutoff!r}",
        f"a, b, c = {(p + 1) * (p + 2) / 2!r}, {p * (p + 2)!r}, {p * (p + 1) / 2!r}",
        f"envelope = 1.0 - x ** {basis.power} * (a - x * (b - x * c))",
        f"slope = -(x ** {basis.power - 1}) * (a * {p!r} - x * (b * {p + 1!r} - x * c * {p + 2!r}))",
        f"slope /= {basis.cutoff!r}",
        "if x >= 1.0:",
        "    envelope = slope = 0.0",
    ]


def _transformed(transform: Transform | None, column: int) -> list[str]:
    """The transformed distance x and its slope."""
    if transform is None:
        return ["x, stretch = length, 1.0"]
    size, c = f"size = constants[kind_x, {column}]", transform.constants
    if transform.kind == "agnesi":
        a, q, p = c
        return [
            size,
            "x = length / size",
            f"lower = x ** {p - q!r} + 1.0",
            f"ratio = {a!r} * x ** {p!r} / lower",
            f"slope_x = ratio * ({p!r} - {p - q!r} * (lower - 1.0) / lower) / length",
            "x, stretch = 1.0 / (1.0 + ratio), -slope_x / (1.0 + ratio) ** 2",
        ]
    if transform.kind == "soft":
        return [
            size,
            "near, far = 1.5 * size, 8.0 / 3.0 * size",
            f"steepness = {c[0]!r} / (far - near)",
            "step = np.tanh(steepness * (length - 0.5 * (near + far)))",
            "x = near + 0.5 * (length - near) * (1.0 + step)",
            "stretch = 0.5 * (1.0 + step) + 0.5 * (length - near) * steepness * (1.0 - step * step)",
        ]
    return [
        size,
        "x = 2.0 * length / size",
        f"step = np.tanh(x + {c[0]!r} * x ** {c[1]!r})",
        f"stretch = 1.0 - (1.0 - step * step) * (1.0 + {c[0] * c[1]!r} * x ** {c[1] - 1.0!r}) / size",
        "x = length + 0.5 - 0.5 * step",
    ]


def _basis(basis: Basis) -> list[str]:
    """Functions f and their slopes df of x, one after the other."""
    before, after = [], []
    if basis.kind == "bessel":
        gain = float(np.sqrt(2.0 / basis.cutoff))
        each = [
            "frequency = constants[kind_x, n]",
            f"f = {gain!r} * np.sin(frequency * x) / x",
            f"df = ({gain!r} * frequency * np.cos(frequency * x) - f) / x",
        ]
    elif basis.kind == "gaussian":
        each = [f"z = x / {basis.spacing!r} - n", "f = np.exp(-0.5 * z * z)", f"df = -z * f / {basis.spacing!r}"]
    else:
        before, each = ["f0, f, df0, df = 1.0, x, 0.0, 1.0"], []
        after = ["f0, f, df0, df = f, 2.0 * x * f - f0, df, 2.0 * f + 2.0 * x * df - df0"]
    if basis.enveloped:
        store = ["v[n], s[n] = f * envelope, df * stretch * envelope + f * slope"]
    else:
        store = ["v[n], s[n] = f, df * stretch"]
    return [*before, f"for n in range({basis.count}):", *(f"    {line}" for line in [*each, *store, *after])]


def _last(network: Network) -> list[str]:
    """What happens to the result of the last layer."""
    lines = []
    if network.counts:
        lines += [
            "counted = np.tanh(values[at + k] * values[at + k])",
            "slopes[at + k] *= real(2.0) * values[at + k] * (real(1.0) - counted * counted)",
            "values[at + k] = counted",
        ]
    if not network.basis.enveloped:
        lines += [
            "slopes[at + k] = slopes[at + k] * envelope + values[at + k] * slope",
            "values[at + k] *= envelope",
        ]
    return [f"for k in range({network.num_weights}):", *(f"    {line}" for line in lines)] if lines else []
