"""A neighbour list that is searched and stays on a device, for backends that keep it there: see `DeviceList`.

Searched on a CPU and copied, a list of many atoms would take longer than the steps of a GPU between two searches.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ase_equivariant.graph import edge_vectors
from ase_equivariant.neighbors import COINCIDENT, ROUNDING, VerletList, neighbor_list, periodic_box

CANDIDATES = 2**21  # pairs that are looked at at once, some 100 bytes each
MOST_CELLS = 2**20


class DeviceList(VerletList):
    """A `VerletList` whose updates return all pairs that were searched, as tensors on a device.

    They are the very same tensors until the next search, in canonical order, and hold each pair in both directions. Who
    takes them leaves out those beyond the cutoff.

    Parameters
    ----------
    cutoff, skin : Å
    device : where the pairs are searched and stay
    """

    def __init__(self, cutoff: float, device: torch.device, skin: float = 0.5):
        super().__init__(cutoff, skin)
        self.device = device

    def _search(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
        self._candidates: list[Tensor] = []  # the old ones make room
        reach = self.cutoff + self.skin + ROUNDING
        bins = _Bins(positions, periodic_box(positions, cell, pbc, reach), reach, self.device)
        flat = torch.tensor(~pbc, device=self.device)
        parts = [bins.edges(first, last, flat) for first, last in bins.chunks()]
        *self._candidates, squared = (torch.cat(column) for column in zip(*parts, strict=True))
        shortest = float(squared.min()) ** 0.5 if len(squared) else np.inf
        if shortest < COINCIDENT:
            neighbor_list(positions, cell, pbc, self.cutoff)  # names the atoms
        self._limits = [(self.cutoff + self.skin, self.cutoff), (shortest, COINCIDENT)]

    def _edges(self, positions: np.ndarray, cell: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(self._candidates)


def lists_for(cutoff: float, device: torch.device) -> dict[bool, VerletList]:
    """A list for a backend on `device`, by whether it keeps edges now."""
    return {False: VerletList(cutoff), True: DeviceList(cutoff, device)}


def sorted_by(rows: Tensor, *keys: Tensor) -> Tensor:
    """The rows by their keys, the last one the primary, as in `np.lexsort`; those with equal ones keep their order."""
    for key in keys:
        rows = rows[torch.argsort(key[rows], stable=True)]
    return rows


class _Bins:
    """Atoms sorted into search cells of a box that is periodic everywhere, and the steps to all cells within reach."""

    def __init__(self, positions: np.ndarray, box: np.ndarray, reach: float, device: torch.device):
        self.reach = reach
        inverse = np.linalg.inv(box)
        heights = 1.0 / np.linalg.norm(inverse, axis=0)
        counts = np.maximum(heights // reach, 1.0)
        while counts.prod() > MOST_CELLS:
            counts[counts.argmax()] = np.ceil(counts.max() / 2.0)
        spans = np.ceil(reach * counts / heights).astype(int)
        steps = np.stack(np.meshgrid(*(np.arange(-s, s + 1) for s in spans), indexing="ij"), axis=-1).reshape(-1, 3)
        self.positions, self.box, inverse, self.counts, self.steps = (
            torch.tensor(array, device=device) for array in (positions, box, inverse, counts.astype(int), steps)
        )
        fractions = self.positions @ inverse
        self.wraps = fractions.floor()
        inside = ((fractions - self.wraps) * self.counts).long()
        self.places = torch.minimum(inside, self.counts - 1)  # a fraction may round up to 1
        numbers = self._number(self.places)
        self.order = torch.argsort(numbers, stable=True)
        self.sizes = torch.bincount(numbers, minlength=int(counts.prod()))
        self.begins = self.sizes.cumsum(0) - self.sizes

    def chunks(self) -> list[tuple[int, int]]:
        """Ranges of receivers that have not too many candidates."""
        around = self.sizes.view(self.counts.tolist())  # of a search cell: the atoms in all cells within reach
        for axis, span in enumerate(self.steps.amax(0).tolist()):
            around = torch.stack([around.roll(step, axis) for step in range(-span, span + 1)]).sum(0)
        totals = around.flatten()[self._number(self.places)] + len(self.steps)
        parts = (totals.cumsum(0) - totals) // CANDIDATES
        ends = torch.unique_consecutive(parts, return_counts=True)[1].cumsum(0).tolist()
        return list(zip([0, *ends], ends or [0], strict=False))

    def edges(self, first: int, last: int, flat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Senders, receivers, shifts and squared lengths of the edges to these receivers, in canonical order.

        Edges through images in the directions of `flat` are left out.
        """
        places = self.places[first:last, None] + self.steps
        images = places.div(self.counts, rounding_mode="floor")
        numbers = self._number(places - images * self.counts).flatten()
        sizes = self.sizes[numbers]
        row = torch.repeat_interleave(sizes)  # of a candidate: its receiver and search cell
        within = torch.arange(len(row), device=row.device) - (sizes.cumsum(0) - sizes)[row]
        senders = self.order[self.begins[numbers][row] + within]
        receivers = first + row // len(self.steps)
        shifts = self.wraps[senders] - self.wraps[receivers] - images.view(-1, 3)[row]
        # Elementwise, so that both directions of a pair have the same length to the last bit.
        x, y, z = edge_vectors(self.positions, self.box, senders, receivers, shifts).unbind(1)
        squared = x * x + y * y + z * z
        itself = (senders == receivers) & ~shifts.any(dim=1)
        real = (squared < self.reach**2) & ~itself & ~(shifts.bool() & flat).any(dim=1)
        kept = sorted_by(real.nonzero().flatten(), *shifts.T.flip(0), senders, receivers)
        return senders[kept], receivers[kept], shifts[kept], squared[kept]

    def _number(self, places: Tensor) -> Tensor:
        x, y, z = places.unbind(-1)
        return (x * self.counts[1] + y) * self.counts[2] + z
