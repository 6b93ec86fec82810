"""A fast backend that proves itself on the user's own structure before it answers for the first time.

The golden structures of a model file may be far from what a user computes. So the first structure is evaluated by the
reference backend too, or a piece of it where it is large; what differs too much, or fails, steps aside for good.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ase_equivariant.derivatives import Prediction
from ase_equivariant.graph import Graph

SAMPLE = 200  # nodes; larger structures are compared on a piece of about this size
TOLERANCES = {torch.float32: (2e-5, 2e-4), torch.float64: (1e-9, 1e-8)}  # eV/atom, eV/Å; relative where these are > 1

Backend = Callable[[Graph, bool], Prediction]


class Checked:
    """The backend `fast` once it agrees with `reference` on the first structure, else `reference`."""

    def __init__(self, name: str, fast: Backend, reference: Backend, dtype: torch.dtype):
        self.name, self.fast, self.reference, self.tolerances = name, fast, reference, TOLERANCES[dtype]
        self._chosen: Backend | None = None

    def __call__(self, graph: Graph, forces: bool) -> Prediction:
        if self._chosen is None and graph.n_edges == 0:
            return self.reference(graph, forces)  # atoms alone prove nothing
        if self._chosen is None:
            self._chosen = self._choose(piece(graph, SAMPLE))
        return self._chosen(graph, forces)

    def _choose(self, graph: Graph) -> Backend:
        expected = self.reference(graph, True)
        try:
            found = self.fast(graph, True)
            errors = [
                float((a - b).abs().max() / b.abs().max().clamp(min=1.0)) if b.numel() else 0.0
                for a, b in ((found.node_energies, expected.node_energies), (found.forces, expected.forces))
            ]
            if all(error <= allowed for error, allowed in zip(errors, self.tolerances, strict=True)):
                return self.fast
            why = "differs from the reference by {:.1e} eV/atom and {:.1e} eV/Å".format(*errors)
        except MemoryError:
            raise
        except Exception as error:  # whatever a compiler may fail with, the reference still answers
            why = f"fails with {type(error).__name__}: {error}"
        warnings.warn(f"backend {self.name!r} {why}; the reference backend is used instead", stacklevel=6)
        self.name = "eager"
        return self.reference


def piece(graph: Graph, size: int) -> Graph:
    """The graph itself, or its part around the first edge with at least `size` nodes, cut out as it stands."""
    if graph.n_nodes <= size:
        return graph
    inside = torch.zeros(graph.n_nodes, dtype=torch.bool)
    inside[graph.receivers[0]], count = True, 0
    while count < int(inside.sum()) < size:
        count = int(inside.sum())
        inside[graph.senders[inside[graph.receivers]]] = True
    kept = inside[graph.senders] & inside[graph.receivers]
    number: Tensor = inside.long().cumsum(0) - 1
    return Graph(
        positions=graph.positions[inside],
        cell=graph.cell,
        species=graph.species[inside],
        senders=number[graph.senders[kept]],
        receivers=number[graph.receivers[kept]],
        shifts=graph.shifts[kept],
        batch=graph.batch[inside],
        heads=graph.heads,
    )
