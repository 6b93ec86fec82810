"""Source of the radial functions: R and R' of one edge, into a row of scratch."""

from __future__ import annotations

import numpy as np

from ase_equivariant.inference.radial import DEGREE, Network, Table


def source_and_parameters(radial: Network | Table, dtype: np.dtype) -> tuple[str, tuple[np.ndarray, ...]]:
    """Source of `radial(length, kind, parameters…, values, slopes, at)`, and its arrays.

    It writes values and slopes [at, at + num_weights); `values_only` writes no slopes.
    """
    if isinstance(radial, Table):
        return _table(radial), (radial.coefficients.astype(dtype), np.zeros(1, dtype))
    flat = np.concatenate([layer.reshape(radial.kinds, -1) for layer in radial.layers], 1)
    return _network(radial), (flat[:, None].astype(dtype).copy(), radial.frequencies.astype(np.float64))


def _table(radial: Table) -> str:
    lines = ["    x = length * INVERSE", "    i = min(int(x), LAST)", "    t = x - i", "    b0_0 = 1.0"]
    for d in range(1, DEGREE + 1):
        for j in range(d + 1):
            left = [f"(t + {d - j}.0) * b{d - 1}_{j - 1}"] if j > 0 else []
            right = [f"({j + 1}.0 - t) * b{d - 1}_{j}"] if j < d else []
            lines.append(f"    b{d}_{j} = ({' + '.join(left + right)}) / {d}.0")
    for j in range(DEGREE + 1):
        left, right = (f"b{DEGREE - 1}_{j - 1}" if j > 0 else "0.0"), (f"b{DEGREE - 1}_{j}" if j < DEGREE else "0.0")
        lines += [f"    v{j} = real(b{DEGREE}_{j})", f"    s{j} = real(({left} - {right}) * INVERSE)"]
        lines.append(f"    r{j} = table[kind, i + {j}]")
    value = " + ".join(f"v{j} * r{j}[k]" for j in range(DEGREE + 1))
    slope = " + ".join(f"s{j} * r{j}[k]" for j in range(DEGREE + 1))
    loop = [f"    for k in range({radial.num_weights}):", f"        values[at + k] = {value}"]
    both = [*loop, f"        slopes[at + k] = {slope}"]
    constants = f"INVERSE = {1.0 / radial.spacing!r}\nLAST = {radial.coefficients.shape[1] - DEGREE - 1}\n"
    return constants + _functions(lines, loop, both, "table")


def _functions(lines: list[str], loop: list[str], both: list[str], name: str) -> str:
    head = f"(length, kind, {name}, frequencies, values, slopes, at):"
    return "\n".join(
        ["@inlined", f"def values_only{head}", *lines, *loop, "@inlined", f"def radial{head}", *lines, *both, ""]
    )


def _network(radial: Network) -> str:
    p, a = float(radial.power), [(len(layer[0]), layer.shape[2]) for layer in radial.layers]
    width = max(max(shape) for shape in a)
    lines = [
        f"    x, r = length / {radial.cutoff!r}, length",
        f"    a, b, c = {(p + 1) * (p + 2) / 2!r}, {p * (p + 2)!r}, {p * (p + 1) / 2!r}",
        f"    envelope = 1.0 - x ** {radial.power} * (a - x * (b - x * c))",
        f"    slope = -(x ** {radial.power - 1}) * (a * {p!r} - x * (b * {p + 1!r} - x * c * {p + 2!r}))",
        f"    slope /= {radial.cutoff!r}",
        "    if x >= 1.0:",
        "        envelope = slope = 0.0",
        f"    gain = {float(np.sqrt(2.0 / 3.0) * radial.cutoff)!r}",
        f"    v, s = np.empty({width}, real), np.empty({width}, real)",
        f"    w, q = np.empty({width}, real), np.empty({width}, real)",
        f"    for n in range({a[0][0]}):",
        "        f = frequencies[n]",
        "        value = gain * np.sin(f * r) * envelope / r",
        "        v[n] = value",
        "        s[n] = gain * (f * np.cos(f * r) * envelope + np.sin(f * r) * slope) / r - value / r",
    ]
    start = 0
    for i, (n_in, n_out) in enumerate(a):
        if i > 0:
            lines += [
                f"    for n in range({n_in}):",
                "        g = real(1.0) / (real(1.0) + np.exp(-w[n]))",
                "        s[n] = q[n] * g * (real(1.0) + w[n] * (real(1.0) - g))",
                "        v[n] = w[n] * g",
            ]
        last = i == len(a) - 1
        w, q = ("values[at + k]", "slopes[at + k]") if last else ("w[k]", "q[k]")
        lines += [
            f"    for k in range({n_out}):",
            f"        {w} = real(0.0)",
            f"        {q} = real(0.0)",
            f"    for n in range({n_in}):",
            f"        vn, sn, row = v[n], s[n], weights[kind, 0, {start} + n * {n_out} : {start} + (n + 1) * {n_out}]",
            f"        for k in range({n_out}):",
            f"            {w} += vn * row[k]",
            f"            {q} += sn * row[k]",
        ]
        start += n_in * n_out
    return _functions(lines, [], [], "weights")
