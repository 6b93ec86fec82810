"""The arrays of structures of one shape on the device: they stay where they are, so that kernels can be replayed.

Atoms of one species stand together, in the order `origin` of the graph's, so that maps by species are products of
whole matrices; edges go by receiver in this order. There is room for more edges than there are: a new neighbour list
of the same atoms is copied into the same arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ase_equivariant.device_list import sorted_by
from ase_equivariant.graph import Graph

EDGES, HEADROOM = 1024, 1.05  # room for edges is a multiple of the one, and the other times their number
ALIGNMENT = 64  # elements


@dataclass(frozen=True)
class Listed:
    """The edges of a graph, by receiver; those beyond the cutoff may be among them."""

    first: Tensor  # [n_nodes + 1] where each receiver's edges begin
    senders: Tensor
    receivers: Tensor
    opposite: Tensor  # where the reversed edge stands
    shifts: Tensor


class Run:
    def __init__(self, graph: Graph, potential, widths: dict[str, int], size: int, device: torch.device):
        """`widths` of the values, `size` (l_max+1)² of the harmonics; constants of `potential` are on the CPU."""
        n, real = graph.n_nodes, potential.dtype
        self.device, self.dtype, self.n_nodes, self.n_graphs = device, real, n, graph.n_graphs
        self.capacity = -(-int(HEADROOM * graph.n_edges + 1) // EDGES) * EDGES
        if self.capacity * size >= 2**31:
            raise MemoryError(f"{graph.n_edges} edges are more than the kernels of backend 'triton' can number")
        self.key = [t.clone() for t in (graph.species, graph.batch, graph.heads, graph.attributes)]
        order = torch.argsort(graph.species, stable=True)
        heads = graph.heads[graph.batch]
        self.constants = (potential.atomic_energies + potential.shift)[heads, graph.species]  # on the CPU
        species = graph.species[order]
        present, counts = torch.unique_consecutive(species, return_counts=True)
        ends = counts.cumsum(0).tolist()
        self.ranges = list(zip(present.tolist(), [0, *ends[:-1]], ends, strict=True))  # of nodes, by species
        self.species, self.heads = (self._whole(x) for x in (species, heads[order]))
        self.batch, self.origin = (self._whole(x) for x in (graph.batch[order], order))
        self.attributes = graph.attributes[order].to(device)
        self.scales = potential.scale[heads, graph.species][order].to(device)
        self._rank = None if len(self.ranges) < 2 else torch.argsort(order).to(device)
        by_graph = torch.argsort(graph.batch[order], stable=True)
        self.by_graph = self._whole(by_graph)
        self.graph_first = self._whole(torch.bincount(graph.batch, minlength=graph.n_graphs).cumsum(0))
        # what is copied to the device in each step, and back
        self.inputs = torch.zeros(3 * n + 9 * graph.n_graphs, dtype=torch.float64, device=device)
        self.positions, self.cells = self.inputs[: 3 * n], self.inputs[3 * n :]
        self.outputs = torch.zeros(4 * n + 9 * graph.n_graphs, dtype=torch.float64, device=device)
        self.energies, self.forces, self.strain = self.outputs.split([n, 3 * n, 9 * graph.n_graphs])
        # edges
        self.listed = Listed(*self._room())
        self.near, self.counts = (self._whole(torch.zeros(max(self.capacity, n + EDGES))) for _ in range(2))
        self.cutoff = torch.tensor([potential.cutoff], dtype=torch.float64, device=device)
        self.first, self.senders, self.receivers, self.opposite, self.shifts = self._room()  # within the cutoff
        self.lengths = torch.full((self.capacity,), potential.cutoff, dtype=torch.float64, device=device)
        self.vectors = torch.zeros((self.capacity, 3), dtype=torch.float64, device=device)
        self.harmonics = torch.zeros((self.capacity, size), dtype=real, device=device)
        self.widths = widths
        self.values, self._flat_values = self._rows()
        self.gradients: dict[str, Tensor] = {}
        self.data: dict[object, tuple[Tensor, ...]] = {}  # what a stage keeps for this shape
        self.edges: tuple[Tensor, ...] = ()  # of the graph whose list this is

    def fits(self, graph: Graph) -> bool:
        """Whether a graph is of the same atoms, and there is room for its edges."""
        return graph.n_edges <= self.capacity and self.is_of(graph)

    def is_of(self, graph: Graph) -> bool:
        """Whether a graph differs in its positions, cell and edges alone."""
        if graph.n_nodes != self.n_nodes:
            return False
        new = graph.species, graph.batch, graph.heads, graph.attributes
        return all(a is b or torch.equal(a, b) for a, b in zip(self.key, new, strict=True))

    def has_edges_of(self, graph: Graph) -> bool:
        """Whether its list is the last one: the same memory, which is not freed as long as it is kept here."""
        new = graph.senders, graph.receivers, graph.shifts
        return bool(self.edges) and all(
            a.data_ptr() == b.data_ptr() and a.shape == b.shape for a, b in zip(self.edges, new, strict=True)
        )

    def set_edges(self, graph: Graph) -> None:
        """Copy the list of edges."""
        senders, receivers, shifts = (x.to(self.device) for x in (graph.senders, graph.receivers, graph.shifts))
        if self._rank is not None:
            senders, receivers = self._rank[senders], self._rank[receivers]
            order = sorted_by(torch.argsort(senders, stable=True), receivers)
            senders, receivers, shifts = senders[order], receivers[order], shifts[order]
        to, count = self.listed, graph.n_edges
        to.first.copy_(torch.searchsorted(receivers, torch.arange(self.n_nodes + 1, device=self.device)))
        to.senders[:count], to.receivers[:count], to.shifts[:count] = senders, receivers, shifts
        # Every pair stands in the list in both directions. Edges are sorted by receiver, sender and shift, so sorted by
        # sender, receiver and falling shift they have the order of the reversed ones.
        falling = torch.arange(count, device=self.device).flip(0)
        to.opposite[:count] = sorted_by(falling, receivers, senders)

    def with_gradients(self) -> None:
        """Make room for the reverse pass."""
        if not self.gradients:
            self.gradients, self._flat_gradients = self._rows()
            self.harmonics_gradient = torch.zeros_like(self.harmonics)
            self.lengths_gradient = torch.zeros_like(self.lengths)
            self.vectors_gradient = torch.zeros_like(self.vectors)
            self.node_strain = torch.zeros((self.n_nodes, 9), dtype=torch.float64, device=self.device)

    def clear(self) -> None:
        """Every stage adds to its target."""
        self._flat_values.zero_()
        self.energies.zero_()

    def clear_gradients(self) -> None:
        for array in (self._flat_gradients, self.harmonics_gradient, self.lengths_gradient):
            array.zero_()

    def _room(self) -> tuple[Tensor, ...]:
        """Arrays for edges: where those of each node begin, three whole numbers of each, and its shift."""
        ends = (self._whole(torch.zeros(self.capacity)) for _ in range(3))
        shifts = torch.zeros((self.capacity, 3), dtype=torch.float32, device=self.device)
        return self._whole(torch.zeros(self.n_nodes + 1)), *ends, shifts

    def _whole(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, torch.int32)

    def _rows(self) -> tuple[dict[str, Tensor], Tensor]:
        """An array [n_nodes, width] for each value, and the memory of all."""
        sizes = {name: -(-self.n_nodes * width // ALIGNMENT) * ALIGNMENT for name, width in self.widths.items()}
        flat = torch.zeros(sum(sizes.values()), dtype=self.dtype, device=self.device)
        parts = zip(self.widths.items(), flat.split(list(sizes.values())), strict=True)
        return {n: part[: self.n_nodes * w].view(self.n_nodes, w) for (n, w), part in parts}, flat
