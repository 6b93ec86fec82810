"""The convolution without messages in memory: radial functions, product and sum, a few edges at a time.

Every pair stands in the list in both directions, with opposite vectors. So the edges an atom sends are found through
those it receives: for edge (j → i) the reversed one (i → j) has the same length and (-1)^l times its harmonics. The
reverse pass walks the same list as the forward pass; gradients of an edge are kept where its reversed edge stands.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from ase_equivariant.inference.numba.compile import Compiler
from ase_equivariant.inference.numba.lanes import REGISTERS, lanes_of
from ase_equivariant.inference.numba.radial import EDGES, Exact, Interpolated, radial_functions
from ase_equivariant.inference.numba.run import Run
from ase_equivariant.inference.program import Convolve
from ase_equivariant.nn.fused import Path, Sums

RADIAL = "table, other, constants"  # arrays of the radial functions


class ConvolveKernel:
    """Kernel of a `Convolve`."""

    def __init__(self, stage: Convolve, compiler: Compiler):
        self.reads, self.source, self.target = stage.reads, stage.source, stage.target
        self.radial = radial_functions(stage.radial, compiler.dtype)
        self.table = None if stage.table is None else stage.table.astype(compiler.dtype)
        lanes = lanes_of(compiler.dtype, *(path.width for path in stage.paths))
        kernels = compiler(
            self.radial.source
            + _forward(stage.paths, self.radial, lanes)
            + _backward(stage.paths, self.radial, lanes, bool(stage.source))
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


def _coupled(sums: Sums) -> str:
    return " + ".join(f"real({c!r}) * ye[{m2}]" for c, m2 in sums)


def _groups(paths: tuple[Path, ...]) -> list[list[Path]]:
    """Consecutive paths of one width whose sums fit the registers together."""
    groups, free = [], 0
    for path in paths:
        needed = path.n_sums
        if needed > free or path.width != groups[-1][-1].width:
            groups.append([])
            free = 3 * REGISTERS // 4
        groups[-1].append(path)
        free -= needed
    return groups


def _forward(paths: tuple[Path, ...], radial: Exact | Interpolated, lanes: int) -> str:
    couplings = list(dict.fromkeys(sums for path in paths for sums in path.couplings().values()))
    lines = [
        "@summing",
        f"def forward(a, b, first, senders, species, lengths, y, h, rows, kinds, {RADIAL}, out):",
        f"    C, sent = np.empty({EDGES * len(couplings)}, real), np.empty({EDGES}, np.int64)",
        "    h, o, width, width_in = h.ravel(), out.ravel(), out.shape[1], h.shape[1]",
        *(f"    {line}" for line in radial.scratch()),
        "    for n in range(a, b):",
        "        end, kind = first[n + 1], kinds[species[n]]",
        f"        for start in range(first[n], end, {EDGES}):",
        f"            count = min({EDGES}, end - start)",
        "            for q in range(count):",
        "                j, ye = senders[start + q], y[start + q]",
        "                sent[q] = rows[j] * width_in",
        f"                {radial.find('lengths[start + q]', 'kind[species[j]]')}",
    ]
    lines += [f"                C[q * {len(couplings)} + {i}] = {_coupled(sums)}" for i, sums in enumerate(couplings)]
    lines += [f"            {line}" for line in radial.weigh()]
    for group in _groups(paths):
        places, loop = {}, radial.opened(lanes)
        for p, path in enumerate(group):
            terms = path.couplings()
            loop += radial.vectors(f"{path.weight} + k", lanes)
            for m1 in sorted({m1 for _, m1 in terms}):
                loop.append(f"f{m1} = mul(x, load(h, sent[q] + {path.start_in + m1 * path.width} + k, {lanes}))")
            for (m3, m1), sums in terms.items():
                places[f"s{p}_{m3}"] = f"n * width + {path.start_out + m3 * path.stride_out} + k"
                coupled = f"spread(C, q * {len(couplings)} + {couplings.index(sums)}, {lanes})"
                loop.append(f"s{p}_{m3} = fma({coupled}, f{m1}, s{p}_{m3})")
        lines += [
            f"            for k in range(0, {group[0].width}, {lanes}):",
            *(f"                {name} = load(o, {place}, {lanes})" for name, place in places.items()),
            "                for q in range(count):",
            *(f"                    {line}" for line in loop),
            *(f"                store(o, {place}, {name})" for name, place in places.items()),
        ]
    return "\n".join(lines) + "\n"


def _backward(paths: tuple[Path, ...], radial: Exact | Interpolated, lanes: int, sends: bool) -> str:
    readers = Counter(path.weight for path in paths for _ in _components(path))
    lines = [
        "@summing",
        f"def backward(a, b, first, senders, species, lengths, y, h, rows, kinds, {RADIAL}, g, dh, dy, dr):",
        f"    X, DX = np.empty({radial.num_weights}, real), np.empty({radial.num_weights}, real)",
        "    h, g, dh, width, width_in = h.ravel(), g.ravel(), dh.ravel(), g.shape[1], h.shape[1]",
        *(f"    {line}" for line in radial.scratch()),
        "    for n in range(a, b):",
        "        here, sent, end = n * width_in, rows[n] * width_in, first[n + 1]",
        f"        for start in range(first[n], end, {EDGES}):",
        f"            count = min({EDGES}, end - start)",
        "            for q in range(count):",
        f"                {radial.find('lengths[start + q]', 'kinds[species[senders[start + q]], species[n]]')}",
        *(f"            {line}" for line in radial.weigh()),
        "            for q in range(count):",
        "                e = start + q",
        f"                ye, dye, there, slope = y[e], dy[e], senders[e] * width, fill(real(0.0), {lanes})",
        *(f"                {line}" for line in radial.opened(lanes)),
    ]
    made: set[int] = set()  # radial functions that wait in X and DX for their other readers
    for path in paths:
        for m1 in _components(path):  # one at a time, as all sums of a path may not fit the registers
            vectors = radial.vectors(f"{path.weight} + k", lanes)
            if path.weight in made:
                vectors = [f"x, dx = load(X, {path.weight} + k, {lanes}), load(DX, {path.weight} + k, {lanes})"]
            elif readers[path.weight] > 1:
                vectors += [f"store(X, {path.weight} + k, x)", f"store(DX, {path.weight} + k, dx)"]
                made.add(path.weight)
            lines += [f"                {line}" for line in _backward_component(path, m1, vectors, lanes, sends)]
    return "\n".join([*lines, "                dr[e] += total(slope)"]) + "\n"


def _components(path: Path) -> list[int]:
    """m1 of what is sent."""
    return sorted({m1 for _, m1, *_ in path.entries})


def _backward_component(path: Path, m1: int, vectors: list[str], lanes: int, sends: bool) -> list[str]:
    # all harmonics of a path have one l, and those of the reversed edge differ by (-1)^l
    ell = int(np.sqrt(path.entries[0][2]))
    sign = (-1.0) ** ell
    terms = {m3: sums for (m3, n1), sums in path.couplings(sign).items() if n1 == m1}
    place = f"{path.start_in + m1 * path.width} + k"
    lines = [f"c{m3}, b{m3} = fill({_coupled(sums)}, {lanes}), fill(real(0.0), {lanes})" for m3, sums in terms.items()]
    loop = [*vectors, f"hk = load(h, sent + {place}, {lanes})", "f = mul(x, hk)"]
    for i, m3 in enumerate(terms):
        loop += [
            f"g3 = load(g, there + {path.start_out + m3 * path.stride_out} + k, {lanes})",
            f"u = fma(c{m3}, g3, u)" if i else f"u = mul(c{m3}, g3)",
            f"b{m3} = fma(f, g3, b{m3})",
        ]
    loop.append("slope = fma(dx, mul(u, hk), slope)")
    if sends:
        loop.append(f"store(dh, here + {place}, fma(x, u, load(dh, here + {place}, {lanes})))")
    lines += [f"for k in range(0, {path.width}, {lanes}):", *(f"    {line}" for line in loop)]
    adjoint: dict[int, list[str]] = {}
    for m3, sums in terms.items() if ell > 0 else ():  # Y_0 is constant
        lines.append(f"a{m3} = total(b{m3})")
        for c, m2 in sums:
            adjoint.setdefault(m2, []).append(f"real({c * sign!r}) * a{m3}")
    return lines + [f"dye[{m2}] += {' + '.join(sums)}" for m2, sums in adjoint.items()]
