"""Radial functions: lines of a kernel that has them for some edges and channels, and the arrays that it reads.

arrays     names of the kernel's arguments for them
prepare    tensors of a shape, which stay where they are
step       what is computed for all edges before the kernels run
opened     lines for the edges of a kernel
vectors    x and dx [edges, channels]; what is not used costs nothing

Edges that the reverse pass stands for are the reversed ones: where kinds are not symmetric, they have tensors of their
own.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import triton
from torch import Tensor

from ase_equivariant.inference.bsplines import SLOPES, VALUES, horner
from ase_equivariant.inference.radial import Network
from ase_equivariant.inference.splines import DEGREE, STRETCH, Splines
from ase_equivariant.inference.triton.compile import Compiler
from ase_equivariant.inference.triton.networks import of_kinds, on_device
from ase_equivariant.inference.triton.run import Run

EDGES = 128


def radial_functions(radial: Network | Splines, compiler: Compiler) -> Exact | Interpolated:
    return Interpolated(radial, compiler) if isinstance(radial, Splines) else Exact(radial, compiler)


class _Radial:
    def __init__(self, radial: Network | Splines, compiler: Compiler):
        self.num_weights, self.compiler = radial.num_weights, compiler
        kinds = radial.kinds
        self.tables = [kinds] if (kinds == kinds.T).all() else [kinds, kinds.T]  # forward, reversed

    def needed(self, run: Run) -> list[int]:
        """Kinds that the species of a structure can have."""
        species = [z for z, *_ in run.ranges]
        return np.unique(self.tables[0][np.ix_(species, species)]).tolist()


class Exact(_Radial):
    """A network, evaluated for all edges before the kernel runs."""

    arrays = "values, slopes"

    def __init__(self, network: Network, compiler: Compiler):
        super().__init__(network, compiler)
        self.network = on_device(network, compiler)

    def prepare(self, run: Run) -> list[dict[str, Tensor]]:
        shape = run.capacity, self.num_weights
        kept = []
        for table in self.tables:
            pair = {x: torch.zeros(shape, dtype=run.dtype, device=run.device) for x in ("values", "slopes")}
            kept.append({**pair, "table": torch.as_tensor(table, device=run.device)})
        return kept

    def step(self, run: Run, kept: list[dict[str, Tensor]], forces: bool) -> None:
        network = of_kinds(self.network, self.needed(run))
        for one in kept[: None if forces else 1]:
            kinds = one["table"][run.species[run.receivers].long(), run.species[run.senders].long()]
            values, slopes = network.evaluate(run.lengths, kinds)
            one["values"].copy_(values)
            one["slopes"].copy_(slopes)

    def opened(self) -> list[str]:
        row = f"tl.where(inside, e, 0).to(tl.int64)[:, None] * {self.num_weights} + k"
        return [f"row = {row}", "value, change = values + row, slopes + row"]

    def vectors(self, column: int, mask: str) -> list[str]:
        return [f"{x} = tl.load({array} + {column}{mask})" for x, array in (("x", "value"), ("dx", "change"))]


LOCATE = f"""
@sized
def locate(
    first, n_nodes, senders, receivers, species, lengths, places, n_species, constants, rows, ts, stretches,
    B: tl.constexpr
):
    e = tl.program_id(0) * B + tl.arange(0, B)
    inside = e < tl.load(first + n_nodes)
    r = tl.load(lengths + e, mask=inside, other=1.0)
    mine = tl.load(species + tl.load(receivers + e, mask=inside, other=0))
    other = tl.load(species + tl.load(senders + e, mask=inside, other=0))
    at = constants + 3 * tl.load(places + mine * n_species + other)
    cutoff, count = tl.load(at), tl.load(at + 1)
    dense, near = {STRETCH} * count, 1.0 / (cutoff + {STRETCH - 1.0} * r)
    x = dense * r * near
    i = tl.minimum(x, count - 1.0).to(tl.int32)
    tl.store(rows + e, i + tl.load(at + 2).to(tl.int32), mask=inside)
    tl.store(ts + e, x - i, mask=inside)
    tl.store(stretches + e, dense * near * near * cutoff, mask=inside)
"""


class Interpolated(_Radial):
    """Splines; the interval of an edge and its place there are found before the kernel runs."""

    arrays = "rows, ts, stretches, table, other"

    def __init__(self, splines: Splines, compiler: Compiler):
        super().__init__(splines, compiler)
        self._locate = compiler(LOCATE)["locate"]
        self._served, self._of_kinds = lru_cache(maxsize=None)(splines.served), lru_cache(maxsize=4)(self._of_kinds)

    def prepare(self, run: Run) -> list[dict[str, Tensor]]:
        needed = tuple(self.needed(run))
        places = np.zeros(int(self.tables[0].max()) + 1, np.int32)  # of the kinds among the constants
        places[list(needed)] = np.arange(len(needed))
        shared = dict(zip(("table", "other", "constants"), self._of_kinds(needed), strict=True))
        kept = []
        for table in self.tables:
            one = {x: torch.zeros(run.capacity, dtype=run.dtype, device=run.device) for x in ("ts", "stretches")}
            one["rows"] = torch.zeros(run.capacity, dtype=torch.int32, device=run.device)
            kept.append({**one, **shared, "places": torch.as_tensor(places[table], device=run.device)})
        return kept

    def step(self, run: Run, kept: list[dict[str, Tensor]], forces: bool) -> None:
        edges = run.first, run.n_nodes, run.senders, run.receivers, run.species, run.lengths
        for one in kept[: None if forces else 1]:
            places, *arrays = (one[x] for x in ("places", "constants", "rows", "ts", "stretches"))
            self._locate[triton.cdiv(run.capacity, EDGES),](*edges, places, len(places), *arrays, B=EDGES)

    def opened(self) -> list[str]:
        lines = [
            f"row = tl.load(rows + e, mask=inside, other=0).to(tl.int64)[:, None] * {self.num_weights} + k",
            "near, further = table + row, other + row",
            "t = tl.load(ts + e, mask=inside, other=0.0)[:, None]",
            "stretch = tl.load(stretches + e, mask=inside, other=0.0)[:, None]",
        ]
        for j, (value, slope) in enumerate(zip(VALUES, SLOPES, strict=True)):
            lines += [f"v{j} = {horner(value, 't')}", f"w{j} = stretch * ({horner(slope, 't')})"]
        return lines

    def vectors(self, column: int, mask: str) -> list[str]:
        lines = [f"x = tl.load(near + {column}{mask})"]
        for j in range(DEGREE):
            lines.append(f"d = tl.load(further + {j * self.num_weights + column}{mask})")
            lines += [f"x += v{j} * d", f"dx {'+' if j else ''}= w{j} * d"]
        return lines

    def _of_kinds(self, kinds: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients, slopes and constants: cutoff, number of intervals and first row of each kind."""
        table, other, constants, row = [], [], [], 0
        for spline in map(self._served, kinds):
            table.append(spline.coefficients)
            other.append(np.pad(spline.slopes, ((0, 1), (0, 0))))
            constants.append((spline.cutoff, spline.n_intervals, row))
            row += len(spline.coefficients)
        arrays = (self.compiler.constant(np.concatenate(part)) for part in (table, other))
        return *arrays, torch.tensor(constants, dtype=torch.float64, device=self.compiler.device)
