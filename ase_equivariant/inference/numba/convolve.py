"""The convolution without messages in memory: radial functions, product and sum, a few edges at a time.

Every pair stands in the list in both directions, with opposite vectors. So the edges an atom sends are found through
those it receives: for edge (j → i) the reversed one (i → j) has the same length and (-1)^l times its harmonics. The
reverse pass walks the same list as the forward pass; gradients of an edge are kept where its reversed edge stands.
"""

from __future__ import annotations

import numpy as np

from ase_equivariant.inference.numba.compile import Compiler
from ase_equivariant.inference.numba.radial import radial_functions
from ase_equivariant.inference.numba.run import Run
from ase_equivariant.inference.program import Convolve
from ase_equivariant.nn.fused import Path

EDGES = 4  # at a time, so that each load of a sum serves four products
RADIAL = "table, other, constants"  # arrays of the radial functions


class ConvolveKernel:
    """Kernel of a `Convolve`."""

    def __init__(self, stage: Convolve, compiler: Compiler):
        self.reads, self.source, self.target = stage.reads, stage.source, stage.target
        self.radial = radial_functions(stage.radial, compiler.dtype)
        self.table = None if stage.table is None else stage.table.astype(compiler.dtype)
        weights = stage.radial.num_weights
        kernels = compiler(
            self.radial.source + _forward(stage.paths, weights) + _backward(stage.paths, weights, bool(stage.source))
        )
        self._forward, self._backward = kernels["forward"], kernels["backward"]

    def _arrays(self, run: Run) -> tuple[np.ndarray, ...]:
        """Edges, what atoms send and the row of each atom in it, radial functions."""
        sent = (run.values[self.source], run.rows) if self.table is None else (self.table, run.species)
        return run.first, run.senders, run.species, run.lengths, run.harmonics, *sent, *run.radial[self]

    def forward(self, run: Run, a: int, b: int) -> None:
        self._forward(a, b, *self._arrays(run), run.values[self.target])

    def backward(self, run: Run, a: int, b: int) -> None:
        gradients = run.gradients[self.target], run.gradients[self.source or self.target]
        self._backward(a, b, *self._arrays(run), *gradients, run.harmonics_gradient, run.lengths_gradient)


def _couplings(path: Path, sign: float) -> dict[tuple[int, int], list[tuple[float, int]]]:
    """(m3, m1) -> coefficients and harmonics."""
    terms: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for m3, m1, m2, coefficient in path.entries:
        terms.setdefault((m3, m1), []).append((float(coefficient) * sign, m2))
    return terms


def _forward(paths: tuple[Path, ...], weights: int) -> str:
    edges = range(EDGES)
    lines = [
        "@summing",
        f"def forward(a, b, first, senders, species, lengths, y, h, rows, kinds, {RADIAL}, out):",
        f"    R, D = np.empty(({EDGES}, {weights}), real), np.empty({weights}, real)",
        f"    {', '.join(f'r{q}' for q in edges)} = {', '.join(f'R[{q}]' for q in edges)}",
        "    for n in range(a, b):",
        "        o, end, kind = out[n], first[n + 1], kinds[species[n]]",
        f"        for start in range(first[n], end, {EDGES}):",
        f"            stop = min(start + {EDGES}, end)",
        "            R[stop - start :] = real(0.0)",
        "            for e in range(start, stop):",
        f"                values_only(lengths[e], kind[species[senders[e]]], {RADIAL}, R[e - start], D, 0)",
    ]
    for q in edges:  # beyond the last edge, the last with weights of zero
        lines.append(f"            e{q} = min(start + {q}, end - 1)")
        lines.append(f"            h{q}, y{q} = h[rows[senders[e{q}]]], y[e{q}]")
    together = [path for path in paths if {m1 for _, m1, _, _ in path.entries} == {0}]
    for path in together:
        lines += [f"            {line}" for line in _forward_path(path, [f"{q}" for q in edges])]
    lines += [
        "            for e in range(start, stop):",
        "                r, hj, ye = R[e - start], h[rows[senders[e]]], y[e]",
    ]
    for path in paths:
        if path not in together:  # many couplings of several edges do not fit the registers
            lines += [f"                {line}" for line in _forward_path(path, [""])]
    return "\n".join(lines) + "\n"


def _forward_path(path: Path, edges: list[str]) -> list[str]:
    """The sum of one path over edges whose names end in the strings given."""
    terms = _couplings(path, 1.0)
    lines, loop = [], []
    for q in edges:
        r, h, y = (f"r{q}", f"h{q}", f"y{q}") if q else ("r", "hj", "ye")
        lines += [
            f"c{m3}_{m1}_{q} = " + " + ".join(f"real({c!r}) * {y}[{m2}]" for c, m2 in sums)
            for (m3, m1), sums in terms.items()
        ]
        loop += [
            f"    f{m1}_{q} = {r}[{path.weight} + k] * {h}[{path.start_in + m1 * path.width} + k]"
            for m1 in sorted({m1 for _, m1 in terms})
        ]
    for m3 in sorted({m3 for m3, _ in terms}):
        sums = " + ".join(f"c{m3}_{m1}_{q} * f{m1}_{q}" for q in edges for n3, m1 in terms if n3 == m3)
        loop.append(f"    o[{path.start_out + m3 * path.stride_out} + k] += {sums}")
    return [*lines, f"for k in range({path.width}):", *loop]


def _backward(paths: tuple[Path, ...], weights: int, sends: bool) -> str:
    lines = [
        "@summing",
        f"def backward(a, b, first, senders, species, lengths, y, h, rows, kinds, {RADIAL}, g, dh, dy, dr):",
        f"    R, D = np.empty({weights}, real), np.empty({weights}, real)",
        "    for n in range(a, b):",
        "        hj, o = h[rows[n]], dh[n]",
        "        for e in range(first[n], first[n + 1]):",
        "            gi, ye, dye, slope = g[senders[e]], y[e], dy[e], real(0.0)",
        f"            radial(lengths[e], kinds[species[senders[e]], species[n]], {RADIAL}, R, D, 0)",
    ]
    for path in paths:
        lines += [f"            {line}" for line in _backward_path(path, sends)]
    return "\n".join([*lines, "            dr[e] += slope"]) + "\n"


def _backward_path(path: Path, sends: bool) -> list[str]:
    # all harmonics of a path have one l, and those of the reversed edge differ by (-1)^l
    sign = (-1.0) ** int(np.sqrt(path.entries[0][2]))
    terms = _couplings(path, sign)
    ones, threes = sorted({m1 for _, m1 in terms}), sorted({m3 for m3, _ in terms})
    lines = [
        f"c{m3}_{m1} = " + " + ".join(f"real({c!r}) * ye[{m2}]" for c, m2 in sums) for (m3, m1), sums in terms.items()
    ]
    lines += [f"b{m3}_{m1} = real(0.0)" for m3, m1 in terms]
    lines += [f"for k in range({path.width}):", f"    x = R[{path.weight} + k]"]
    lines += [f"    g{m3} = gi[{path.start_out + m3 * path.stride_out} + k]" for m3 in threes]
    for m1 in ones:
        place = f"[{path.start_in + m1 * path.width} + k]"
        lines.append(f"    u{m1} = " + " + ".join(f"c{m3}_{m1} * g{m3}" for m3, n1 in terms if n1 == m1))
        lines.append(f"    h{m1} = hj{place}")
        lines.append(f"    f{m1} = x * h{m1}")
        if sends:
            lines.append(f"    o{place} += x * u{m1}")
    lines.append(f"    slope += D[{path.weight} + k] * ({' + '.join(f'u{m1} * h{m1}' for m1 in ones)})")
    lines += [f"    b{m3}_{m1} += g{m3} * f{m1}" for m3, m1 in terms]
    adjoint: dict[int, list[str]] = {}
    for (m3, m1), sums in terms.items():
        for c, m2 in sums:
            adjoint.setdefault(m2, []).append(f"real({c * sign!r}) * b{m3}_{m1}")
    return lines + [f"dye[{m2}] += {' + '.join(sums)}" for m2, sums in adjoint.items()]
