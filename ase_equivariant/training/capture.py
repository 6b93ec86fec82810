"""A function of batches as CUDA graphs: recorded once for each size of batch, then replayed in one call.

A step of a small batch is some thousand kernels of a few microseconds, which Python cannot start as fast as a GPU ends
them. A graph needs arrays of fixed sizes, so batches are padded with one more structure, whose labels have no weight
and whose edges are longer than the cutoff. All arrays lie in one piece of memory, so that one copy brings a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ase_equivariant.graph import Graph
from ase_equivariant.nn.threads import RECORDING
from ase_equivariant.training.data import Batch

ALIGNED = 32  # numbers, 256 bytes, as kernels are compiled for aligned arrays
MOST = 100  # sizes that are recorded; of others, batches are computed directly
SPARE_NODES = 16  # one more node for so many, as padding edges are shared out among the padding nodes
ROWS = {  # of which there is one for each node, edge or structure
    "nodes": ("positions", "species", "batch", "attributes", "forces", "forces_weights"),
    "edges": ("senders", "receivers", "shifts"),
}
KINDS = {name: kind for kind, names in ROWS.items() for name in names}

Shapes = tuple[tuple[int, ...], ...]


@dataclass
class Recording:
    """Arrays of one size and the graph that reads them; `graph` is None until the size comes a second time."""

    memory: Tensor  # int64, the whole batch
    batch: Batch  # views of `memory`
    graph: torch.cuda.CUDAGraph | None = None
    outputs: Any = None


class Captured:
    """`function(batch)` for batches on the CPU of up to `n_graphs` structures.

    The first batch of a size is computed directly, which sets up whatever is set up once, the second is recorded. So
    the function is called for each batch exactly once, and may change weights. Its outputs are overwritten by the next
    call; those of nodes, edges and structures have rows of the padding at the end.

    `stream` is where it is recorded. Matrix products recorded on one stream share their workspace, so graphs that are
    replayed at the same time, by different threads, must have been recorded on different ones.
    """

    def __init__(self, function: Callable[[Batch], Any], n_graphs: int, cutoff: float, stream: torch.cuda.Stream):
        self.function, self.n_graphs, self.cutoff, self.stream = function, n_graphs, cutoff, stream
        self.recordings: dict[Shapes, Recording] = {}
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: Batch) -> Any:
        content, shapes = packed(batch, self.n_graphs, self.cutoff, pin_memory=True)
        known = self.recordings.get(shapes)
        if known is None:
            memory = content.to(self.stream.device)
            known = Recording(memory, viewed(memory, shapes, batch))
            if len(self.recordings) < MOST:
                self.recordings[shapes] = known
            return self.function(known.batch)
        known.memory.copy_(content, non_blocking=True)
        if known.graph is None:
            known.graph = torch.cuda.CUDAGraph()
            where = {"pool": self.pool, "stream": self.stream, "capture_error_mode": "thread_local"}
            with RECORDING, torch.cuda.graph(known.graph, **where):
                known.outputs = self.function(known.batch)
        known.graph.replay()
        return known.outputs


def packed(batch: Batch, n_graphs: int, cutoff: float, pin_memory: bool = False) -> tuple[Tensor, Shapes]:
    """The bits of all arrays of a padded batch, int64 on the CPU, and the arrays' shapes.

    It has `n_graphs` + 1 structures, the last one, or all that are missing, without labels. Numbers of nodes and edges
    are rounded up to a few sizes.
    """
    graph = batch.graph
    nodes = rounded(graph.n_nodes + 1 + graph.n_nodes // SPARE_NODES)
    counts = {"nodes": nodes, "edges": rounded(graph.n_edges), "graphs": n_graphs + 1}
    edges, spare = counts["edges"] - graph.n_edges, nodes - graph.n_nodes
    ends = graph.n_nodes + np.arange(edges) * spare // max(edges, 1)  # sorted, as receivers are
    filling = {"senders": ends, "receivers": ends, "shifts": [1.0, 0.0, 0.0], "cell": 2.0 * cutoff * np.eye(3)}
    filling |= {"batch": n_graphs, "n_atoms": 1.0, "volume": 1.0}  # elsewhere zero
    arrays = arrays_of(batch)
    shapes = tuple((counts[KINDS.get(name, "graphs")], *array.shape[1:]) for name, array in arrays.items())
    memory = torch.empty(sum(map(_room, shapes)), dtype=torch.int64, pin_memory=pin_memory)
    content, start = memory.numpy(), 0
    for (name, array), shape in zip(arrays.items(), shapes, strict=True):
        values = array.numpy()
        place = content[start : start + math.prod(shape)].view(values.dtype).reshape(shape)
        place[: len(values)] = values
        place[len(values) :] = filling.get(name, 0)
        start += _room(shape)
    return memory, shapes


def viewed(memory: Tensor, shapes: Shapes, like: Batch) -> Batch:
    """What `packed` gives as a batch, whose arrays are views of `memory`."""
    parts = memory.split([_room(shape) for shape in shapes])
    views = {
        name: part[: math.prod(shape)].view(array.dtype).view(shape)
        for (name, array), part, shape in zip(arrays_of(like).items(), parts, shapes, strict=True)
    }
    graph = Graph(**{f.name: views.pop(f.name) for f in fields(Graph)})
    return Batch(graph=graph, **views)


def arrays_of(batch: Batch) -> dict[str, Tensor]:
    """All arrays of a batch in a fixed order; their numbers are float64 or int64."""
    labels = {f.name: getattr(batch, f.name) for f in fields(Batch) if f.name != "graph"}
    return {**{f.name: getattr(batch.graph, f.name) for f in fields(Graph)}, **labels}


def rounded(n: int) -> int:
    """n, or up to an eighth more: few sizes, with little that is computed in vain."""
    step = 2 ** max(n.bit_length() - 4, 3)
    return -(-n // step) * step


def _room(shape: tuple[int, ...]) -> int:
    return -(-math.prod(shape) // ALIGNED) * ALIGNED
