"""Atomic structures as graphs: who neighbours whom, through which lattice vectors.

A `Graph` is a batch of one or more structures. Its edges carry the one direction convention of the package:

    vectors[e] = positions[receivers[e]] - positions[senders[e]] + shifts[e] @ cell[batch[senders[e]]]

Vectors point from sender to receiver and messages are summed at receivers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Graph:
    """A batch of structures with their neighbour lists; all geometry in float64.

    Edges are ordered by (receiver, sender, shift), so that sums over them are repeatable bit for bit.
    """

    positions: Tensor  # [n_nodes, 3] Å
    cell: Tensor  # [n_graphs, 3, 3] Å, rows are lattice vectors, zero rows where there is none
    species: Tensor  # [n_nodes] index into the model's atomic_numbers
    senders: Tensor  # [n_edges]
    receivers: Tensor  # [n_edges]
    shifts: Tensor  # [n_edges, 3] float64 whole numbers of lattice vectors
    batch: Tensor  # [n_nodes] which graph a node belongs to
    heads: Tensor  # [n_graphs] which head of the model answers for a graph

    @property
    def n_nodes(self) -> int:
        return self.positions.shape[0]

    @property
    def n_edges(self) -> int:
        return self.senders.shape[0]

    @property
    def n_graphs(self) -> int:
        return self.cell.shape[0]

    def to(self, device: torch.device | str) -> Graph:
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def vectors(self) -> Tensor:
        """Edge vectors from sender to receiver, [n_edges, 3] Å."""
        return edge_vectors(self.positions, self.cell[self.batch[self.senders]], self.senders, self.receivers, self.shifts)


def edge_vectors(positions: Tensor, cell: Tensor, senders: Tensor, receivers: Tensor, shifts: Tensor) -> Tensor:
    """Vectors from sender to receiver, [n_edges, 3] Å; `cell` is [3, 3] or one per edge [n_edges, 3, 3]."""
    offsets = torch.matmul(shifts.unsqueeze(-2), cell).squeeze(-2)
    return positions.index_select(0, receivers) - positions.index_select(0, senders) + offsets


def concatenate(graphs: list[Graph]) -> Graph:
    """Join graphs into one batch; node and graph indices are shifted, nothing else changes."""
    nodes = torch.tensor([0] + [g.n_nodes for g in graphs]).cumsum(0)
    counts = torch.tensor([0] + [g.n_graphs for g in graphs]).cumsum(0)
    offsets = {"senders": nodes, "receivers": nodes, "batch": counts}
    joined = {}
    for f in fields(Graph):
        parts = [getattr(g, f.name) for g in graphs]
        if f.name in offsets:
            parts = [part + offset for part, offset in zip(parts, offsets[f.name].tolist())]
        joined[f.name] = torch.cat(parts)
    return Graph(**joined)
