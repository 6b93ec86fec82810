"""Source of a radial network: the basis of one edge, its layers, and the slopes of both."""

from __future__ import annotations

import numpy as np

from ase_equivariant.inference.radial import Basis, Network, Transform


def network_source(network: Network) -> list[str]:
    """Lines that take `length` and `kind` to `values` and `slopes`; arithmetic of the length is in float64."""
    basis, shapes = network.basis, [layer.shape[1:] for layer in network.layers]
    width = max(max(shape) for shape in shapes)
    lines = [
        f"v, s = np.empty({width}, real), np.empty({width}, real)",
        f"w, q = np.empty({width}, real), np.empty({width}, real)",
        "kind_x, kind_w = min(kind, len(constants) - 1), min(kind, len(table) - 1)",
        *_envelope(basis),
        *_transformed(network.transform, basis.count),
        *_basis(basis),
    ]
    start = 0
    for i, (n_in, n_out) in enumerate(shapes):
        if i > 0:
            lines += [
                f"for n in range({n_in}):",
                "    g = real(1.0) / (real(1.0) + np.exp(-w[n]))",
                "    s[n] = q[n] * g * (real(1.0) + w[n] * (real(1.0) - g))",
                "    v[n] = w[n] * g",
            ]
        last = i == len(shapes) - 1
        w, q = ("values[at + k]", "slopes[at + k]") if last else ("w[k]", "q[k]")
        lines += [
            f"for k in range({n_out}):",
            f"    {w} = real(0.0)",
            f"    {q} = real(0.0)",
            f"for n in range({n_in}):",
            f"    vn, sn, row = v[n], s[n], table[kind_w, {start} + n * {n_out} : {start} + (n + 1) * {n_out}]",
            f"    for k in range({n_out}):",
            f"        {w} += vn * row[k]",
            f"        {q} += sn * row[k]",
        ]
        start += n_in * n_out
    return lines + _last(network)


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
        gain = float(np.sqrt(2.0 / 3.0) * basis.cutoff)
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
