"""The convolution without messages in memory: radial functions, product and sum, for each atom by a program of its own.

Every pair stands in the list in both directions, with opposite vectors. So the edges an atom sends are found through
those it receives: for edge (j → i) the reversed one (i → j) has the same length and (-1)^l times its harmonics. The
reverse pass walks the same list as the forward pass; gradients of an edge are kept where its reversed edge stands.

A program has all channels of its atom and E edges at a time. Sums of different paths that do not fit the registers
together are made by kernels one after the other, which also add to the gradients of edges one after the other: results
are repeatable bit for bit.
"""

from __future__ import annotations

import numpy as np
import triton

from ase_equivariant.inference.program import Convolve
from ase_equivariant.inference.triton.compile import Compiler, Kernel, is_interpreted
from ase_equivariant.inference.triton.radial import Exact, Interpolated, radial_functions
from ase_equivariant.inference.triton.run import Run
from ase_equivariant.nn.fused import Path, Sums

WIDEST = 128  # channels of a program
SUMS, TERMS = 40, 500  # of a forward kernel, and of any
FEW = 3000  # atoms, up to which several warps share one


class ConvolveKernel(Kernel):
    """Kernels of a `Convolve`."""

    def __init__(self, stage: Convolve, compiler: Compiler):
        self.source, self.target = stage.source, stage.target
        self.radial = radial_functions(stage.radial, compiler)
        self.table = None if stage.table is None else compiler.constant(stage.table)
        width_in = compiler.widths[stage.source] if stage.table is None else stage.table.shape[1]
        strides = width_in, compiler.widths[stage.target], compiler.num_harmonics
        self._forward, self._backward = (
            [
                (group[0].width, compiler(make(group, self.radial, strides, bool(stage.source)))[make.__name__[1:]])
                for group in _groups(stage.paths, most)
            ]
            for make, most in ((_convolve, SUMS), (_convolve_back, 10**9))
        )

    def prepare(self, run: Run) -> None:
        run.data[self] = self.radial.prepare(run)

    def _arrays(self, run: Run, radial: dict) -> tuple:
        sent = run.values[self.source] if self.table is None else self.table
        names = self.radial.arrays.split(", ")
        return run.first, run.senders, run.species, run.harmonics, *(radial[name] for name in names), sent

    def forward(self, run: Run) -> None:
        kept = run.data[self]
        self.radial.step(run, kept, bool(run.gradients))
        for width, kernel in self._forward:
            tile = _tile(run, width)
            grid = run.n_nodes, triton.cdiv(width, tile["K"])
            kernel[grid](*self._arrays(run, kept[0]), run.values[self.target], **tile)

    def backward(self, run: Run) -> None:
        gradients = run.gradients[self.target], run.gradients[self.source or self.target]
        arrays = *self._arrays(run, run.data[self][-1]), *gradients, run.harmonics_gradient
        for width, kernel in self._backward:
            tile = _tile(run, width)
            for start in range(0, width, tile["K"]):
                kernel[run.n_nodes,](*arrays, START=start, **tile)


def _tile(run: Run, width: int) -> dict[str, int]:
    channels = min(max(triton.next_power_of_2(width), 16), WIDEST)
    if is_interpreted():
        return {"E": 16, "K": channels}
    warps = 4 if run.n_nodes <= FEW else 1
    return {"E": warps * WIDEST // channels, "K": channels, "num_warps": warps}


def _groups(paths: tuple[Path, ...], most: int) -> list[list[Path]]:
    """Paths of one width with at most so many sums, and not too many terms."""
    groups, sums, terms = [], 0, 0
    for path in sorted(paths, key=lambda path: -path.width):
        needed, written = path.n_sums, len(path.entries)
        if not groups or sums + needed > most or terms + written > TERMS or path.width != groups[-1][-1].width:
            groups.append([])
            sums = terms = 0
        groups[-1].append(path)
        sums, terms = sums + needed, terms + written
    return groups


class _Names:
    """Lines that make what is asked for once, and its name."""

    def __init__(self):
        self.lines, self.known = [], {}

    def __call__(self, letter: str, value: str) -> str:
        if value not in self.known:
            self.known[value] = f"{letter}{len(self.known)}"
            self.lines.append(f"{self.known[value]} = {value}")
        return self.known[value]


def _coupled(names: _Names, sums: Sums) -> str:
    """Σ c Y [edges, 1]"""
    return names("c", " + ".join(f"{c!r} * y{m2}" for c, m2 in sums))


def _opening(group: list[Path], radial: Exact | Interpolated, stride_y: int) -> list[str]:
    """Lines of the edges at hand."""
    used = sorted({m2 for path in group for *_, m2, _ in path.entries})
    return [
        "e = at + tl.arange(0, E)",
        "inside = e < end",
        "j = tl.load(senders + e, mask=inside, other=0)",
        *(f"y{m2} = tl.load(y + e * {stride_y} + {m2}, mask=inside, other=0.0)[:, None]" for m2 in used),
        *radial.opened(),
    ]


def _mask(width: int) -> str:
    return "" if width % WIDEST == 0 or width in (16, 32, 64) else ", mask=wide, other=0.0"


def _kernel(name: str, arguments: str, radial: Exact | Interpolated, lines: list[str]) -> str:
    head = f"first, senders, species, y, {radial.arrays}, h, {arguments}, E: tl.constexpr, K: tl.constexpr"
    return "\n".join(["@triton.jit", f"def {name}({head}):", *(f"    {line}" for line in lines), ""])


def _convolve(group: list[Path], radial: Exact | Interpolated, strides: tuple[int, int, int], sends: bool) -> str:
    stride_in, stride_out, stride_y = strides
    width, mask, places, loop, names = group[0].width, _mask(group[0].width), {}, [], _Names()
    for p, path in enumerate(group):
        terms = path.couplings()
        loop += radial.vectors(path.weight, mask)
        for m1 in sorted({m1 for _, m1 in terms}):
            loop.append(f"f{m1} = x * tl.load(sent + {path.start_in + m1 * path.width}{mask})")
        for (m3, m1), sums in terms.items():
            places[f"s{p}_{m3}"] = path.start_out + m3 * path.stride_out
            loop.append(f"s{p}_{m3} += {_coupled(names, sums)} * f{m1}")
    row = "j" if sends else "tl.load(species + j)"
    lines = [
        "n = tl.program_id(0)",
        "end = tl.load(first + n + 1)",
        "channel = tl.program_id(1) * K + tl.arange(0, K)",
        "k = channel[None, :]",
        f"wide = k < {width}",
        "zero = tl.zeros([E, K], REAL)",
        *(f"{name} = zero" for name in places),
        "for at in range(tl.load(first + n), end, E):",
        *(f"    {line}" for line in _opening(group, radial, stride_y)),
        f"    sent = h + {row}.to(tl.int64)[:, None] * {stride_in} + k",
        *(f"    {line}" for line in [*names.lines, *loop]),
        f"to = out + n.to(tl.int64) * {stride_out} + channel",
        f"wide = channel < {width}",
    ]
    for name, at in places.items():
        lines.append(f"tl.store(to + {at}, tl.load(to + {at}{mask}) + tl.sum({name}, axis=0), mask=wide)")
    return _kernel("convolve", "out", radial, lines)


def _convolve_back(group: list[Path], radial: Exact | Interpolated, strides: tuple[int, int, int], sends: bool) -> str:
    stride_in, stride_out, stride_y = strides
    width, mask, loop, names, here = group[0].width, _mask(group[0].width), [], _Names(), set()
    adjoint: set[int] = set()
    for path in group:
        sign = (-1.0) ** int(np.sqrt(path.entries[0][2]))  # all harmonics of a path have one l
        terms = path.couplings(sign)
        loop += radial.vectors(path.weight, mask)
        for m3 in sorted({m3 for m3, _ in terms}):
            loop.append(f"g{m3} = tl.load(there + {path.start_out + m3 * path.stride_out}{mask})")
        for m1 in sorted({m1 for _, m1 in terms}):
            place = path.start_in + m1 * path.width
            here.add(place)
            mine = {m3: sums for (m3, n1), sums in terms.items() if n1 == m1}
            loop.append(f"f = x * h{place}")
            for i, (m3, sums) in enumerate(mine.items()):
                loop.append(f"u {'+' if i else ''}= {_coupled(names, sums)} * g{m3}")
                if sums[0][1] > 0:  # Y_0 is constant
                    loop.append(f"b = f * g{m3}")
                    loop += [f"d{m2} += {c * sign!r} * b" for c, m2 in sums]
                    adjoint.update(m2 for _, m2 in sums)
            loop.append(f"slope += dx * (u * h{place})")
            if sends:
                loop.append(f"s{place} += x * u")
    places = sorted(here) if sends else []
    lines = [
        "n = tl.program_id(0)",
        "end = tl.load(first + n + 1)",
        "channel = START + tl.arange(0, K)",
        "k = channel[None, :]",
        f"wide = k < {width}",
        f"mine = h + {'n' if sends else 'tl.load(species + n)'}.to(tl.int64) * {stride_in} + k",
        *(f"h{place} = tl.load(mine + {place}{mask})" for place in sorted(here)),
        f"column = tl.arange(0, {triton.next_power_of_2(stride_y)})[None, :]",
        "zero = tl.zeros([E, K], REAL)",
        *(f"s{place} = zero" for place in places),
        "for at in range(tl.load(first + n), end, E):",
        *(f"    {line}" for line in _opening(group, radial, stride_y)),
        f"    there = g + j.to(tl.int64)[:, None] * {stride_out} + k",
        "    slope = zero",
        *(f"    d{m2} = zero" for m2 in sorted(adjoint)),
        *(f"    {line}" for line in [*names.lines, *loop]),
    ]
    # all of an edge in one row: Y_0 is constant, its place is that of ∂E/∂r
    lines.append("    total = tl.where(column == 0, tl.sum(slope, axis=1)[:, None], 0.0)")
    lines += [f"    total = tl.where(column == {m2}, tl.sum(d{m2}, axis=1)[:, None], total)" for m2 in sorted(adjoint)]
    lines += [
        f"    to, valid = dy + e[:, None] * {stride_y} + column, inside[:, None] & (column < {stride_y})",
        "    tl.store(to, tl.load(to, mask=valid, other=0.0) + total, mask=valid)",
        f"wide = channel < {width}",
    ]
    for place in places:
        to = f"dh + n.to(tl.int64) * {stride_in} + channel + {place}"
        lines.append(f"tl.store({to}, tl.load({to}{mask}) + tl.sum(s{place}, axis=0), mask=wide)")
    return _kernel("convolve_back", "g, dh, dy, START: tl.constexpr", radial, lines)
