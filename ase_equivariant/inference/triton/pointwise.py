"""Gate, norm and division: what acts on each node by itself, one program each."""

from __future__ import annotations

import triton

from ase_equivariant.inference.program import Divide, Gate, Norm
from ase_equivariant.inference.triton.compile import Compiler, Kernel
from ase_equivariant.inference.triton.run import Run

# of v: the value, and the slope, of s = 1 / (1 + exp(-v))
ACTIVATIONS = {
    "silu": ("v * s", "s * (1.0 + v * (1.0 - s))"),
    "sigmoid": ("s", "s * (1.0 - s)"),
    "tanh": ("(2.0 / (1.0 + tl.exp(-2.0 * v)) - 1.0)", "(4.0 * q * (1.0 - q))"),
}
NORM = """
@triton.jit
def forward(xs, ys, shares, weights, B: tl.constexpr):
    n, k = tl.program_id(0).to(tl.int64), tl.arange(0, B)
    inside = k < WIDTH
    x = tl.load(xs + n * WIDTH + k, mask=inside, other=0.0)
    share = tl.load(shares + k, mask=inside, other=0.0)
    factor = 1.0 / tl.sqrt(EPSILON + tl.sum(share * x * x, axis=0))
    y = tl.load(ys + n * WIDTH + k, mask=inside, other=0.0)
    tl.store(ys + n * WIDTH + k, y + factor * tl.load(weights + k, mask=inside, other=0.0) * x, mask=inside)


@triton.jit
def backward(xs, gs, dxs, shares, weights, B: tl.constexpr):
    n, k = tl.program_id(0).to(tl.int64), tl.arange(0, B)
    inside = k < WIDTH
    x = tl.load(xs + n * WIDTH + k, mask=inside, other=0.0)
    share = tl.load(shares + k, mask=inside, other=0.0)
    g = tl.load(gs + n * WIDTH + k, mask=inside, other=0.0) * tl.load(weights + k, mask=inside, other=0.0)
    factor = 1.0 / tl.sqrt(EPSILON + tl.sum(share * x * x, axis=0))
    total = factor * factor * factor * tl.sum(g * x, axis=0)
    dx = tl.load(dxs + n * WIDTH + k, mask=inside, other=0.0)
    tl.store(dxs + n * WIDTH + k, dx + factor * g - total * share * x, mask=inside)
"""
DIVIDE = """
@triton.jit
def forward(xs, counts, ys, B: tl.constexpr):
    n, k = tl.program_id(0).to(tl.int64), tl.arange(0, B)
    inside = k < WIDTH
    factor = 1.0 / (ALPHA + BETA * tl.load(counts + n))
    y = tl.load(ys + n * WIDTH + k, mask=inside, other=0.0)
    x = tl.load(xs + n * WIDTH + k, mask=inside, other=0.0)
    tl.store(ys + n * WIDTH + k, y + factor * x, mask=inside)


@triton.jit
def backward(xs, counts, gs, dxs, dcounts, B: tl.constexpr):
    n, k = tl.program_id(0).to(tl.int64), tl.arange(0, B)
    inside = k < WIDTH
    factor = 1.0 / (ALPHA + BETA * tl.load(counts + n))
    g = tl.load(gs + n * WIDTH + k, mask=inside, other=0.0)
    x = tl.load(xs + n * WIDTH + k, mask=inside, other=0.0)
    dx = tl.load(dxs + n * WIDTH + k, mask=inside, other=0.0)
    tl.store(dxs + n * WIDTH + k, dx + factor * g, mask=inside)
    tl.store(dcounts + n, tl.load(dcounts + n) - BETA * factor * factor * tl.sum(g * x, axis=0))
"""


class _NodeKernel(Kernel):
    """A program for each node."""

    def __init__(self, stage: Gate | Norm | Divide, source: str, block: int, constants: tuple, compiler: Compiler):
        self.reads, self.target, self.block, self.constants = stage.reads, stage.target, block, constants
        kernels = compiler(source)
        self._forward, self._backward = kernels["forward"], kernels["backward"]

    def forward(self, run: Run) -> None:
        values = (run.values[name] for name in self.reads)
        self._forward[run.n_nodes,](*values, run.values[self.target], *self.constants, B=self.block)

    def backward(self, run: Run) -> None:
        values, gradients = ([arrays[name] for name in self.reads] for arrays in (run.values, run.gradients))
        arrays = *values, run.gradients[self.target], *gradients
        self._backward[run.n_nodes,](*arrays, *self.constants, B=self.block)


class NormKernel(_NodeKernel):
    """Kernel of a `Norm`."""

    def __init__(self, stage: Norm, compiler: Compiler):
        width = compiler.widths[stage.source]
        source = NORM.replace("WIDTH", str(width)).replace("EPSILON", repr(float(stage.epsilon)))
        constants = compiler.constant(stage.shares), compiler.constant(stage.weights)
        super().__init__(stage, source, triton.next_power_of_2(width), constants, compiler)


class DivideKernel(_NodeKernel):
    """Kernel of a `Divide`."""

    def __init__(self, stage: Divide, compiler: Compiler):
        width = compiler.widths[stage.source]
        source = DIVIDE.replace("WIDTH", str(width))
        source = source.replace("ALPHA", repr(float(stage.alpha))).replace("BETA", repr(float(stage.beta)))
        super().__init__(stage, source, triton.next_power_of_2(width), (), compiler)


class GateKernel(_NodeKernel):
    """Kernel of a `Gate`."""

    def __init__(self, stage: Gate, compiler: Compiler):
        widest = max(stage.even, *(c for *_, c in stage.odd), *(c for *_, c in stage.gated), 1)
        source = _gate(stage, compiler.widths[stage.source], compiler.widths[stage.target])
        super().__init__(stage, source, triton.next_power_of_2(widest), (), compiler)


def _gate(stage: Gate, stride_in: int, stride_out: int) -> str:
    rows = ["n, k = tl.program_id(0).to(tl.int64), tl.arange(0, B)", f"x = xs + n * {stride_in} + k"]
    forward, backward = [*rows, f"y = ys + n * {stride_out} + k"], [*rows, f"g = gs + n * {stride_out} + k"]
    backward.append(f"dx = dxs + n * {stride_in} + k")
    plain = [(0, 0, stage.even, "silu", stage.even_gain)]
    plain += [(start, out, width, "tanh", stage.odd_gain) for start, out, width in stage.odd]
    for start, out, width, kind, gain in plain:
        value, slope = ACTIVATIONS[kind]
        opening = _opened(start, width, kind)
        forward += [*opening, _add("y", out, f"{gain!r} * ({value})")]
        backward += [*opening, f"h = tl.load(g + {out}, mask=wide, other=0.0)"]
        backward.append(_add("dx", start, f"{gain!r} * ({slope}) * h"))
    value, slope = ACTIVATIONS[stage.opening]
    for gate, start, out, dim, width in stage.gated:
        opening = [*_opened(gate, width, stage.opening), f"factor = {stage.gate_gain!r} * ({value})"]
        forward += opening
        backward += [*opening, "total = v - v"]
        for m in range(dim):
            at, to = start + m * width, out + m * width
            forward.append(_add("y", to, f"factor * tl.load(x + {at}, mask=wide, other=0.0)"))
            backward += [
                f"h = tl.load(g + {to}, mask=wide, other=0.0)",
                f"total += h * tl.load(x + {at}, mask=wide, other=0.0)",
                _add("dx", at, "factor * h"),
            ]
        backward.append(_add("dx", gate, f"{stage.gate_gain!r} * ({slope}) * total"))
    lines = ["@triton.jit", "def forward(xs, ys, B: tl.constexpr):", *(f"    {line}" for line in forward), "", ""]
    lines += ["@triton.jit", "def backward(xs, gs, dxs, B: tl.constexpr):", *(f"    {line}" for line in backward), ""]
    return "\n".join(lines)


def _opened(start: int, width: int, kind: str) -> list[str]:
    """v, and s of it; of tanh(v) = 2 q - 1 the q instead."""
    sigmoid = "q = 1.0 / (1.0 + tl.exp(-2.0 * v))" if kind == "tanh" else "s = 1.0 / (1.0 + tl.exp(-v))"
    return [f"wide = k < {width}", f"v = tl.load(x + {start}, mask=wide, other=0.0)", sigmoid]


def _add(to: str, at: int, value: str) -> str:
    return f"tl.store({to} + {at}, tl.load({to} + {at}, mask=wide, other=0.0) + {value}, mask=wide)"
