"""A function of batches as CUDA graphs: recorded once for each size of batch, then replayed in one call.

A step of a small batch is some thousand kernels of a few microseconds, which Python cannot start as fast as a GPU ends
them. A graph needs arrays of fixed sizes, so batches are padded with one more structure, whose labels have no weight
and whose edges are longer than the cutoff. All arrays lie in one piece of memory, so that one copy brings a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ase_equivariant.graph import Graph
from ase_equivariant.training.data import Batch

ALIGNED = 32  # numbers, 256 bytes, as kernels are compiled for aligned arrays
SPARE_NODES = 16  # one more node for so many, as padding edges are shared out among the padding nodes


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
    """

    def __init__(self, function: Callable[[Batch], Any], n_graphs: int, cutoff: float, device: torch.device):
        self.function, self.n_graphs, self.cutoff, self.device = function, n_graphs, cutoff, device
        self.recordings: dict[tuple, Recording] = {}
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: Batch) -> Any:
        batch = padded(batch, self.n_graphs, self.cutoff)
        size = tuple(tensor.shape for tensor in tensors_of(batch))
        content = flattened(batch).pin_memory()
        known = self.recordings.get(size)
        if known is None:
            memory = content.to(self.device)
            self.recordings[size] = known = Recording(memory, viewed(memory, batch))
            return self.function(known.batch)
        known.memory.copy_(content, non_blocking=True)
        if known.graph is None:
            known.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(known.graph, pool=self.pool, capture_error_mode="thread_local"):
                known.outputs = self.function(known.batch)
        known.graph.replay()
        return known.outputs


def padded(batch: Batch, n_graphs: int, cutoff: float) -> Batch:
    """The batch with `n_graphs` + 1 structures, the last one, or all that are missing, without labels.

    Numbers of nodes and edges are rounded up to a few sizes.
    """
    graph = batch.graph
    nodes = rounded(graph.n_nodes + 1 + graph.n_nodes // SPARE_NODES) - graph.n_nodes
    edges = rounded(graph.n_edges) - graph.n_edges
    graphs = n_graphs + 1 - graph.n_graphs
    ends = graph.n_nodes + torch.arange(edges) * nodes // max(edges, 1)  # sorted, as receivers are
    ghosts = Graph(
        positions=torch.zeros((nodes, 3), dtype=torch.float64),
        cell=(2.0 * cutoff * torch.eye(3, dtype=torch.float64)).expand(graphs, 3, 3),
        species=torch.zeros(nodes, dtype=torch.int64),
        senders=ends,
        receivers=ends,
        shifts=torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).expand(edges, 3),
        batch=torch.full((nodes,), n_graphs),
        heads=torch.zeros(graphs, dtype=torch.int64),
        attributes=torch.zeros((nodes, graph.attributes.shape[1]), dtype=torch.int64),
    )
    joined = Graph(**{f.name: torch.cat([getattr(graph, f.name), getattr(ghosts, f.name)]) for f in fields(Graph)})
    labels = {}
    for f in fields(Batch):
        if f.name != "graph":
            value = getattr(batch, f.name)
            count = nodes if len(value) == graph.n_nodes and f.name.startswith("forces") else graphs
            # divisors must not be zero
            extra = torch.full((count, *value.shape[1:]), float(f.name in ("n_atoms", "volume")), dtype=value.dtype)
            labels[f.name] = torch.cat([value, extra])
    return Batch(graph=joined, **labels)


def rounded(n: int) -> int:
    """n, or up to an eighth more: few sizes, with little that is computed in vain."""
    step = 2 ** max(n.bit_length() - 4, 3)
    return -(-n // step) * step


def tensors_of(batch: Batch) -> list[Tensor]:
    """All arrays of a batch, in a fixed order."""
    labels = [getattr(batch, f.name) for f in fields(Batch) if f.name != "graph"]
    return [*(getattr(batch.graph, f.name) for f in fields(Graph)), *labels]


def flattened(batch: Batch) -> Tensor:
    """The bits of all arrays, whose numbers are float64 or int64, one behind the other at multiples of ALIGNED."""
    flat = [tensor.contiguous().view(torch.int64).flatten() for tensor in tensors_of(batch)]
    return torch.cat([torch.nn.functional.pad(part, (0, -len(part) % ALIGNED)) for part in flat])


def viewed(memory: Tensor, like: Batch) -> Batch:
    """`memory`, which `flattened` has filled, as a batch."""
    tensors = tensors_of(like)
    parts = memory.split([tensor.numel() + -tensor.numel() % ALIGNED for tensor in tensors])
    pairs = zip(parts, tensors, strict=True)
    views = iter([part[: tensor.numel()].view(tensor.dtype).view(tensor.shape) for part, tensor in pairs])
    graph = Graph(**{f.name: next(views) for f in fields(Graph)})
    return replace(like, graph=graph, **{f.name: next(views) for f in fields(Batch) if f.name != "graph"})
