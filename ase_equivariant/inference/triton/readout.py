"""Readouts: hidden layers of a node, written out for their number, and the energy at their end; one program a node."""

from __future__ import annotations

import triton

from ase_equivariant.inference.program import CannotLowerError, Readout
from ase_equivariant.inference.triton.compile import Compiler, Kernel
from ase_equivariant.inference.triton.run import Run

# of v: the value, and the slope
ACTIVATIONS = {
    "silu": ("v / (1.0 + tl.exp(-v))", "s * (1.0 + v * (1.0 - s))"),
    "tanh": ("2.0 / (1.0 + tl.exp(-2.0 * v)) - 1.0", "4.0 * q * (1.0 - q)"),
    "abs": ("tl.abs(v)", "tl.where(v > 0.0, 1.0, tl.where(v < 0.0, -1.0, 0.0))"),
}
LARGEST = 2**15  # elements of a matrix that a program holds


class ReadoutKernel(Kernel):
    """Kernel of a `Readout`."""

    def __init__(self, stage: Readout, compiler: Compiler):
        self.source = stage.source
        arrays = [array for layer in stage.hidden for array in layer]
        self.weights = [compiler.constant(array) for array in (*arrays, stage.weights, stage.bias)]
        sizes = [*(matrix.shape[1] for matrix, _ in stage.hidden), stage.weights.shape[1]]
        largest = max([_block(a) * _block(b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)], default=0)
        if largest > LARGEST:
            raise CannotLowerError(f"readout of {sizes} channels")
        kernels = compiler(_source(sizes, compiler.widths[stage.source], stage.activation))
        self._value, self._gradient = kernels["readout"], kernels["readout_back"]

    def forward(self, run: Run) -> None:
        arrays = run.values[self.source], run.scales, run.origin, run.energies
        self._value[run.n_nodes,](run.heads, *self.weights, *arrays)

    def backward(self, run: Run) -> None:
        arrays = run.values[self.source], run.scales, run.gradients[self.source]
        self._gradient[run.n_nodes,](run.heads, *self.weights, *arrays)


def _block(width: int) -> int:
    return triton.next_power_of_2(max(width, 2))


def _source(sizes: list[int], stride: int, activation: str) -> str:
    """Layer t takes h{t} to v{t + 1}, and its activation that to h{t + 1}; g{t} is the gradient of h{t}."""
    value, slope = ACTIVATIONS[activation]
    last = len(sizes) - 1
    up = ["n = tl.program_id(0)", "head = tl.load(heads + n)"]
    for t, size in enumerate(sizes):
        up += [f"k{t} = tl.arange(0, {_block(size)})", f"wide{t} = k{t} < {size}"]
    up.append(f"h0 = tl.load(xs + n.to(tl.int64) * {stride} + k0, mask=wide0, other=0.0)")
    down = []
    for t in range(last):
        rows, columns = sizes[t], sizes[t + 1]
        up += [
            f"at = m{t} + head * {rows * columns} + k{t}[:, None] * {columns} + k{t + 1}[None, :]",
            f"w{t} = tl.load(at, mask=wide{t}[:, None] & wide{t + 1}[None, :], other=0.0)",
            f"b = tl.load(b{t} + head * {columns} + k{t + 1}, mask=wide{t + 1}, other=0.0)",
            f"v{t + 1} = b + tl.sum(h{t}[:, None] * w{t}, axis=0)",
            f"v = v{t + 1}",
            f"h{t + 1} = {value}",
        ]
    for t in reversed(range(last)):
        down += [
            f"v = v{t + 1}",
            "s = 1.0 / (1.0 + tl.exp(-v))",
            "q = 1.0 / (1.0 + tl.exp(-2.0 * v))",
            f"g{t + 1} = g{t + 1} * ({slope})",
            f"g{t} = tl.sum(w{t} * g{t + 1}[None, :], axis=1)",
        ]
    end = f"w = tl.load(weights + head * {sizes[last]} + k{last}, mask=wide{last}, other=0.0)"
    value_end = [
        end,
        f"total = tl.load(bias + head) + tl.sum(w * h{last}, axis=0)",
        "to = energies + tl.load(origin + n)",
        "tl.store(to, tl.load(to) + tl.load(scales + n) * total)",
    ]
    seed = [end, f"g{last} = tl.load(scales + n).to(REAL) * w"]
    add = [
        f"to = dxs + n.to(tl.int64) * {stride} + k0",
        "tl.store(to, tl.load(to, mask=wide0, other=0.0) + g0, mask=wide0)",
    ]
    head = f"(heads, {''.join(f'm{t}, b{t}, ' for t in range(last))}weights, bias, xs, scales, "
    lines = ["@triton.jit", f"def readout{head}origin, energies):", *(f"    {line}" for line in [*up, *value_end])]
    lines += ["", "", "@triton.jit", f"def readout_back{head}dxs):"]
    lines += [f"    {line}" for line in [*up, *seed, *down, *add]]
    return "\n".join([*lines, ""])
