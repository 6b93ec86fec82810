"""The repulsion of nuclei, of each edge by itself, in float64."""

from __future__ import annotations

import torch

from ase_equivariant.inference.program import Repel
from ase_equivariant.inference.triton.compile import Compiler, Kernel
from ase_equivariant.inference.triton.run import Run

BLOCK = 32  # edges of an atom at a time

OPENING = """    n = tl.program_id(0)
    end = tl.load(first + n + 1)
    z = tl.load(species + n)
    total = tl.zeros([B], tl.float64)
    for at in range(tl.load(first + n), end, B):
        e = at + tl.arange(0, B)
        inside = e < end
        j = tl.load(senders + e, mask=inside, other=0)
        r = tl.load(lengths + e, mask=inside, other=1.0)
        pair = PAIR
        strength = tl.load(strengths + pair)
        width, reach = tl.load(widths + pair), tl.load(ends + pair)
        near = inside & (r < reach)
        x = tl.where(near, r / reach, 0.5)
        screening, slope = r - r, r - r
"""


class RepelKernel(Kernel):
    """Kernel of a `Repel`."""

    def __init__(self, stage: Repel, compiler: Compiler):
        tables = stage.strengths, stage.widths, stage.ends
        self.tables = [torch.as_tensor(t, device=compiler.device).double().contiguous() for t in tables]
        kernels = compiler(_source(stage))
        self._forward, self._backward = kernels["forward"], kernels["backward"]

    def _arrays(self, run: Run) -> tuple:
        return run.first, run.senders, run.species, run.lengths, *self.tables, run.scales

    def forward(self, run: Run) -> None:
        self._forward[run.n_nodes,](*self._arrays(run), run.origin, run.energies, B=BLOCK, num_warps=1)

    def backward(self, run: Run) -> None:
        self._backward[run.n_nodes,](*self._arrays(run), run.lengths_gradient, B=BLOCK, num_warps=1)


def _source(stage: Repel) -> str:
    count, p = len(stage.strengths), float(stage.power)
    a, b, c = (p + 1.0) * (p + 2.0) / 2.0, p * (p + 2.0), p * (p + 1.0) / 2.0
    lines = []
    for factor, decay in stage.terms:
        lines += [
            f"term = {factor!r} * tl.exp({-decay!r} * r / width)",
            "screening += term",
            f"slope -= {decay!r} / width * term",
        ]
    powers = " * ".join(["x"] * stage.power), " * ".join(["x"] * (stage.power - 1)) or "1.0"
    lines += [
        f"envelope = 1.0 - {powers[0]} * ({a!r} - x * ({b!r} - x * {c!r}))",
        f"change = -({powers[1]}) * ({a * p!r} - x * ({b * (p + 1.0)!r} - x * {c * (p + 2.0)!r})) / reach",
        "value = strength / r * screening",
    ]
    scale = "tl.load(scales + {})" if stage.scaled else "1.0"
    forward = [*lines, "total += tl.where(near, value * envelope, 0.0)"]
    # the gradient of the reversed edge, which the sender receives
    backward = [
        *lines,
        "change = (strength / r * slope - value / r) * envelope + value * change",
        f"change = tl.where(near, {scale.format('j')} * change, 0.0)",
        "tl.store(dr + e, tl.load(dr + e, mask=inside, other=0.0) + change, mask=inside)",
    ]
    end = ["to = energies + tl.load(origin + n)"]
    end.append(f"tl.store(to, tl.load(to) + {scale.format('n')} * tl.sum(total, axis=0))")
    arguments = "first, senders, species, lengths, strengths, widths, ends, scales"
    return "\n".join(
        [
            "@triton.jit",
            f"def forward({arguments}, origin, energies, B: tl.constexpr):",
            OPENING.replace("PAIR", f"z * {count} + tl.load(species + j)") + _indented(forward, 8),
            _indented(end, 4),
            "",
            "",
            "@triton.jit",
            f"def backward({arguments}, dr, B: tl.constexpr):",
            OPENING.replace("PAIR", f"tl.load(species + j) * {count} + z") + _indented(backward, 8),
            "",
        ]
    )


def _indented(lines: list[str], by: int) -> str:
    return "\n".join(" " * by + line for line in lines)
