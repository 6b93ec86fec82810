"""What a step will take before it is made: memory and time, measured on a piece of the structure.

Both grow with the number of atoms and the number of edges. So two pieces with the same atoms, one of them stretched
until it has fewer edges, tell the share of each, and the whole follows from its numbers of both.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms

SAMPLE = 200  # atoms; smaller structures are measured as they are
STRETCH = 1.25
REPEATS = 3
EAGER_PEAK = 1.3  # times what autograd keeps: gradients are alive beside it


@dataclass(frozen=True)
class Estimate:
    """A step with forces: `memory` bytes on top of what the process holds already (of a GPU: its own), `seconds`.

    The time is that of this machine, as busy as it is, without the search for neighbours that some steps need.
    """

    backend: str
    atoms: int
    edges: int
    memory: int
    seconds: float

    def __str__(self) -> str:
        size = f"{self.memory / 2**30:.2f} GiB" if self.memory >= 2**29 else f"{self.memory / 2**20:.1f} MiB"
        duration = f"{self.seconds:,.1f} s" if self.seconds >= 1 else f"{1e3 * self.seconds:.2f} ms"
        return f"{self.atoms:,} atoms, {self.edges:,} edges: {size} and {duration} per step (backend {self.backend})"


def estimate(
    make_step: Callable[[Atoms], Callable[[], int]],
    atoms: Atoms,
    edges: int,
    kept: Callable[[], int],
    backend: Callable[[], str],
    device: torch.device,
) -> Estimate:
    """The cost of a step of `atoms`, which have so many edges.

    `make_step(atoms)` gives a function that makes a step, with a new neighbour list when first called, and returns the
    number of edges in it; `kept()` is that of all atoms, with those beyond the cutoff that a backend keeps. `backend()`
    names who made the last step.
    """
    sample = _piece(atoms)
    stretched = sample.copy()
    stretched.positions *= STRETCH
    stretched.cell *= STRETCH
    if len(sample) > 1:
        del stretched[-1]  # a backend that keeps its arrays for the next call of the same size allocates them anew
    make_step(sample[:-2] if len(sample) > 2 else sample)()  # whatever happens once only
    costs = [(len(piece), *_measure(make_step(piece), device)) for piece in (stretched, sample)]
    searched = kept()
    memory = _linear(len(atoms), searched, *((n, e, size) for n, e, size, _ in costs))
    seconds = _linear(len(atoms), searched, *((n, e, time_) for n, e, _, time_ in costs))
    return Estimate(backend(), len(atoms), edges, round(memory), seconds)


def _piece(atoms: Atoms) -> Atoms:
    """The atoms themselves, or those nearest to the first one, as a cluster."""
    if len(atoms) <= SAMPLE:
        return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info=atoms.info)
    distances = np.linalg.norm(atoms.positions - atoms.positions[0], axis=1)
    nearest = np.sort(np.argpartition(distances, SAMPLE)[:SAMPLE])
    return Atoms(atoms.numbers[nearest], atoms.positions[nearest], info=atoms.info)


def _linear(atoms: int, edges: int, small: tuple[int, int, float], large: tuple[int, int, float]) -> float:
    """A sum of shares per atom and per edge, neither negative, from (atoms, edges, sum) of two pieces."""
    (few, each), (many, all_of_it) = ((e / max(n, 1), total / max(n, 1)) for n, e, total in (small, large))
    per_edge = (all_of_it - each) / (many - few) if many > few else 0.0
    per_edge = min(max(per_edge, 0.0), all_of_it / max(many, 1e-9))
    return atoms * (all_of_it - per_edge * many) + edges * per_edge


def _measure(step: Callable[[], int], device: torch.device) -> tuple[int, float, float]:
    """Edges, bytes and seconds of a step."""
    memory = memory_on_gpu(step, device) if device.type == "cuda" else memory_on_cpu(step)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        edges = step()
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        seconds.append(time.perf_counter() - start)
    return edges, memory, min(seconds)


def memory_on_gpu(step: Callable[[], int], device: torch.device) -> float:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def memory_on_cpu(step: Callable[[], object]) -> float:
    """The peak of numpy's arrays, and what autograd keeps of torch's, of which no peak is known."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    traced = tracemalloc.is_tracing()
    if not traced:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            step()
        return tracemalloc.get_traced_memory()[1] - before + EAGER_PEAK * sum(kept.values())
    finally:
        if not traced:
            tracemalloc.stop()
