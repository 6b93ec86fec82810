"""A fast backend that proves itself on the user's own structure before it answers for the first time.

The golden structures of a model file may be far from what a user computes. So the first structure is evaluated by the
reference backend too, or a piece of it where it is large; what differs too much, or fails, steps aside for good.
Atoms alone, or nearly at one place, prove nothing: there the reference answers, and the next structure decides.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ase_equivariant.derivatives import Prediction
from ase_equivariant.graph import Graph

SAMPLE = 100  # nodes; larger structures are compared on a piece, since the reference keeps much for each edge
TOLERANCES = {torch.float32: (2e-5, 2e-4), torch.float64: (1e-9, 1e-8)}  # eV/atom, eV/Å; relative where these are > 1
ABSURD = 1e2  # eV/Å; such forces hide the errors of all others
ROUNDING = 4.0  # times the reference's own error, where that is beyond the tolerances

LACKING = ("out of memory", "allocate memory", "alloc_failed", "bad_alloc")  # memory, in a RuntimeError

Backend = Callable[[Graph, bool], Prediction]


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that memory does not suffice, in one of the ways of Python, torch, CUDA and Triton."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in LACKING)


class Checked:
    """The backend `fast` once it agrees with `reference` on a structure, else `reference`.

    `make_exact` makes the reference in float64, which decides between the two where they differ.
    """

    def __init__(
        self, name: str, fast: Backend, reference: Backend, make_exact: Callable[[], Backend], dtype: torch.dtype
    ):
        self._name, self.fast, self.reference, self.make_exact = name, fast, reference, make_exact
        self.tolerances = TOLERANCES[dtype]
        # Calculators that are copies of one another share a backend, and threads may choose at the same time: the first
        # choice stands. There is no lock, which a process forked meanwhile would have for ever.
        self._choices: list[Backend] = []

    @property
    def name(self) -> str:
        """Of the backend that answers, or shall answer."""
        return "eager" if self._chosen is self.reference else self._name

    @property
    def _chosen(self) -> Backend | None:
        return self._choices[0] if self._choices else None

    @property
    def keeps_edges(self) -> bool:
        """Whether edges beyond the cutoff may be in a graph now: the reference takes none."""
        return self._chosen is self.fast and getattr(self.fast, "keeps_edges", False)

    def forget(self) -> None:
        """Let the backend free the arrays that it keeps, if it keeps any."""
        getattr(self.fast, "forget", lambda: None)()

    def __call__(self, graph: Graph, forces: bool) -> Prediction:
        if self._chosen is None and graph.n_edges > 0:
            self._choices += self._choose(piece(graph, SAMPLE))
        return (self._chosen or self.reference)(graph, forces)

    def _choose(self, graph: Graph) -> list[Backend]:
        """Who shall answer from now on; nobody where the structure proves nothing."""
        expected = self.reference(graph, True)
        if not expected.forces.abs().max() < ABSURD:  # NaN too
            return []
        # constants of the atoms may be a thousand times what binds them, and would hide its errors
        bonds = expected.node_energies - self.reference(_apart(graph), False).node_energies
        sizes = [float(values.abs().max().clamp(min=1.0)) for values in (bonds, expected.forces)]
        try:
            found = self.fast(graph, True)
            errors, allowed = _errors(found, expected, sizes), self.tolerances
            if not _within(errors, allowed):
                exact = self.make_exact()(graph, True)
                own = _errors(expected, exact, sizes)
                errors, allowed = _errors(found, exact, sizes), [max(a, ROUNDING * o) for a, o in zip(allowed, own)]
            if _within(errors, allowed):
                return [self.fast]
            why = "differs from the reference by {:.1e} eV/atom and {:.1e} eV/Å".format(*errors)
        except Exception as error:  # whatever a compiler may fail with, the reference still answers
            if lacks_memory(error):
                raise
            why = f"fails with {type(error).__name__}: {error}"
        if self._chosen is not self.fast:
            warnings.warn(f"backend {self._name!r} {why}; the reference backend is used instead", stacklevel=6)
        return [self.reference]


def _errors(found: Prediction, expected: Prediction, sizes: Sequence[float]) -> list[float]:
    """Largest errors of node energies and forces, each over its size."""
    pairs = (found.node_energies, expected.node_energies), (found.forces, expected.forces)
    return [float((a.cpu() - b.cpu()).abs().max()) / size for (a, b), size in zip(pairs, sizes, strict=True)]


def _within(errors: Sequence[float], allowed: Sequence[float]) -> bool:
    return all(error <= limit for error, limit in zip(errors, allowed, strict=True))


def _apart(graph: Graph) -> Graph:
    """The same atoms, each alone."""
    return replace(graph, **{name: getattr(graph, name)[:0] for name in ("senders", "receivers", "shifts")})


def piece(graph: Graph, size: int) -> Graph:
    """The graph itself, or its part around the first edge, cut out as it stands.

    That has `size` nodes, of other molecules where the first one is smaller, or all that have edges.
    """
    if graph.n_nodes <= size:
        return graph
    inside = torch.zeros(graph.n_nodes, dtype=torch.bool)
    inside[_around(graph, size)] = True
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
        attributes=graph.attributes[inside],
    )


def _around(graph: Graph, size: int) -> list[int]:
    """The first node that has edges, the neighbours of it, their neighbours, and so on; then the next such node."""
    first = torch.searchsorted(graph.receivers, torch.arange(graph.n_nodes + 1))  # edges are sorted by receiver
    nodes: dict[int, None] = {}  # in order
    for start in torch.unique_consecutive(graph.receivers).tolist():
        if len(nodes) == size:
            break
        reached = [] if start in nodes else [start]
        nodes.update(dict.fromkeys(reached))
        for node in reached:
            senders = dict.fromkeys(graph.senders[first[node] : first[node + 1]].tolist())
            fresh = [sender for sender in senders if sender not in nodes]
            # of too many some everywhere: files are often sorted by element
            count = min(len(fresh), size - len(nodes))
            fresh = [fresh[i * len(fresh) // count] for i in range(count)]
            nodes.update(dict.fromkeys(fresh))
            reached += fresh
    return list(nodes)
