"""Readouts: hidden layers of a node, written out for their number, and the energy at their end."""

from __future__ import annotations

from ase_equivariant.inference.numba.compile import Compiler
from ase_equivariant.inference.numba.run import Run
from ase_equivariant.inference.program import Readout

# of v: the value, and the slope
ACTIVATIONS = {
    "silu": ("v / (real(1.0) + np.exp(-v))", "s * (real(1.0) + v * (real(1.0) - s))"),
    "tanh": ("np.tanh(v)", "real(1.0) - np.tanh(v) * np.tanh(v)"),
    "abs": ("abs(v)", "np.sign(v)"),
}


class ReadoutKernel:
    """Kernel of a `Readout`."""

    target = None

    def __init__(self, stage: Readout, compiler: Compiler):
        self.reads, self.source = stage.reads, stage.source
        arrays = [array for layer in stage.hidden for array in layer]
        self.weights = [array.astype(compiler.dtype) for array in (*arrays, stage.weights, stage.bias)]
        widths = [*(matrix.shape[1] for matrix, _ in stage.hidden), stage.weights.shape[1]]
        kernels = compiler(_source(widths, stage.activation))
        self._value, self._gradient = kernels["value"], kernels["gradient"]

    def forward(self, run: Run, a: int, b: int) -> None:
        self._value(a, b, run.heads, *self.weights, run.values[self.source], run.scales, run.energies)

    def backward(self, run: Run, a: int, b: int) -> None:
        arrays = run.values[self.source], run.scales, run.gradients[self.source]
        self._gradient(a, b, run.heads, *self.weights, *arrays)


def _source(widths: list[int], activation: str) -> str:
    """Layer t takes h{t} to v{t + 1}, and its activation that to h{t + 1}; g{t} is the gradient of h{t}."""
    value, slope = ACTIVATIONS[activation]
    last = len(widths) - 1
    scratch = [f"    {x}{t} = np.empty({width}, real)" for t, width in enumerate(widths) for x in ("vhg" if t else "g")]
    up, down = ["        w, h0 = weights[heads[n]], xs[n]"], []
    for t in range(last):
        up += [
            f"        m, v{t + 1}[:] = m{t}[heads[n]], b{t}[heads[n]]",
            f"        for i in range({widths[t]}):",
            f"            for k in range({widths[t + 1]}):",
            f"                v{t + 1}[k] += h{t}[i] * m[i, k]",
            f"        for k in range({widths[t + 1]}):",
            f"            v = v{t + 1}[k]",
            f"            h{t + 1}[k] = {value}",
        ]
    for t in reversed(range(last)):
        down += [
            f"        for k in range({widths[t + 1]}):",
            f"            v = v{t + 1}[k]",
            "            s = real(1.0) / (real(1.0) + np.exp(-v))",
            f"            g{t + 1}[k] *= {slope}",
            f"        m = m{t}[heads[n]]",
            f"        for i in range({widths[t]}):",
            "            total = real(0.0)",
            f"            for k in range({widths[t + 1]}):",
            f"                total += m[i, k] * g{t + 1}[k]",
            f"            g{t}[i] = total",
        ]
    end = [
        "        total = bias[heads[n]]",
        f"        for k in range({widths[last]}):",
        f"            total += w[k] * h{last}[k]",
        "        energies[n] += scales[n] * total",
    ]
    seed = [
        f"        for k in range({widths[last]}):",
        f"            g{last}[k] = real(scales[n]) * w[k]",
    ]
    add = [f"        for i in range({widths[0]}):", "            dxs[n, i] += g0[i]"]
    head = f"(a, b, heads, {''.join(f'm{t}, b{t}, ' for t in range(last))}weights, bias, xs, scales, "
    nodes = "    for n in range(a, b):"
    lines = ["@summing", f"def value{head}energies):", *scratch, nodes, *up, *end]
    lines += ["@summing", f"def gradient{head}dxs):", *scratch, nodes, *up, *seed, *down, *add]
    return "\n".join([*lines, ""])
