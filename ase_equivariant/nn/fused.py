"""The equivariant convolution without materialised messages, differentiable twice, for training.

The convolution is the derivative with respect to g of one scalar that is linear in each of its four arguments,

    F(g, h, Y, R) = Σ_e Σ_paths Σ_k R_e,k Σ_m C Y_e,m2 h_s(e),k m1 g_r(e),k m3

so its gradients, and their gradients, are again derivatives of F. Three kernels serve them all: by receiver (∂F/∂g), by
sender (∂F/∂h) and by edge (∂F/∂Y, ∂F/∂R). Their source is generated per convolution, with every coupling unrolled, and
compiled by numba, or for GPUs by Triton (`fused_triton`). Each output row is written by one thread, so results do not
depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numba
import numpy as np
import torch
from torch import Tensor

from ase_equivariant.nn.convolution import Convolution
from ase_equivariant.nn.threads import run_rows


class FusedConvolution(torch.nn.Module):
    """Same arguments and results as the `Convolution` it is made from; edges must be sorted by receiver.

    `kernels` is the class of the kernels, `NumbaKernels` by default.
    """

    def __init__(self, convolution: Convolution, kernels: type | None = None):
        super().__init__()
        self.irreps_out = convolution.irreps_out
        self.kernels = (kernels or NumbaKernels)(convolution)

    def forward(
        self, node_feats: list[Tensor], edge_attrs: Tensor, weights: Tensor, senders: Tensor, receivers: Tensor
    ) -> list[Tensor]:
        n_nodes = node_feats[0].shape[0]
        flat = torch.cat([block.flatten(1) for block in node_feats], 1)
        topology = self.kernels.topology(senders, receivers, n_nodes)
        out = _Convolve.apply(flat, edge_attrs, weights, self.kernels, topology)
        sizes = [mul * ir.dim for mul, ir in self.irreps_out]
        return [b.unflatten(1, (ir.dim, mul)) for b, (mul, ir) in zip(out.split(sizes, 1), self.irreps_out)]


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, y, r, kernels, topology):
        ctx.kernels, ctx.topology = kernels, topology
        ctx.save_for_backward(h, y, r)
        return kernels.by_receiver(topology, [(h, y, r)])

    @staticmethod
    def backward(ctx, g):
        return *_Gradients.apply(g, *ctx.saved_tensors, ctx.kernels, ctx.topology), None, None


class _Gradients(torch.autograd.Function):
    """∂F/∂h, ∂F/∂Y, ∂F/∂R at (g, h, Y, R)."""

    @staticmethod
    def forward(ctx, g, h, y, r, kernels, topology):
        ctx.kernels, ctx.topology = kernels, topology
        ctx.save_for_backward(g, h, y, r)
        ctx.set_materialize_grads(False)
        gh = kernels.by_sender(topology, [(g, y, r)])
        return gh, *kernels.by_edge(topology, [(g, h, y, r, True, True)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, th, ty, tr):
        g, h, y, r = ctx.saved_tensors
        kernels, topology = ctx.kernels, ctx.topology
        nodes, senders, edges = [], [], []
        if th is not None:
            nodes.append((th, y, r))
            edges.append((g, th, y, r, True, True))
        if ty is not None:
            nodes.append((h, ty, r))
            senders.append((g, ty, r))
            edges.append((g, h, ty, r, False, True))
        if tr is not None:
            nodes.append((h, y, tr))
            senders.append((g, y, tr))
            edges.append((g, h, y, tr, True, False))
        dy, dr = kernels.by_edge(topology, edges)
        dh = kernels.by_sender(topology, senders) if senders else None
        return kernels.by_receiver(topology, nodes), dh, dy, dr, None, None


class _Topology:
    """Edges grouped by receiver (as they come) and by sender (through a permutation)."""

    def __init__(self, senders: np.ndarray, receivers: np.ndarray, n_nodes: int):
        self.senders, self.receivers, self.n_nodes = senders, receivers, n_nodes
        self.by_receiver = np.concatenate([[0], np.bincount(receivers, minlength=n_nodes).cumsum()])
        self.by_sender = np.concatenate([[0], np.bincount(senders, minlength=n_nodes).cumsum()])
        self.order = np.argsort(senders, kind="stable")


class NumbaKernels:
    """The compiled kernels of one convolution on a CPU; each call adds the terms it is given."""

    def __init__(self, convolution: Convolution):
        couplings = convolution.couplings.double().numpy()
        self.paths = paths_of(convolution, couplings)
        self.coefficients = np.array([entry[-1] for path in self.paths for entry in path.entries])
        self.shapes = {"in": sum(convolution.blocks_in), "out": convolution.irreps_out.dim}

    @staticmethod
    def topology(senders: Tensor, receivers: Tensor, n_nodes: int) -> _Topology:
        return _Topology(senders.numpy(), receivers.numpy(), n_nodes)

    def by_receiver(self, topology: _Topology, terms: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Σ over terms (h, Y, R) of ∂F/∂g, [n_nodes, width of the result]."""
        out = terms[0][0].new_zeros((topology.n_nodes, self.shapes["out"]))
        for h, y, r in terms:
            rows = (topology.by_receiver, topology.senders, *self._arrays(h, y, r, out))
            self._run("by_receiver", topology.n_nodes, rows)
        return out

    def by_sender(self, topology: _Topology, terms: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Σ over terms (g, Y, R) of ∂F/∂h, [n_nodes, width of the node features]."""
        out = terms[0][0].new_zeros((topology.n_nodes, self.shapes["in"]))
        for g, y, r in terms:
            rows = (topology.by_sender, topology.order, topology.receivers, *self._arrays(g, y, r, out))
            self._run("by_sender", topology.n_nodes, rows)
        return out

    def by_edge(self, topology: _Topology, terms: list[tuple]) -> tuple[Tensor, Tensor]:
        """Σ over terms (g, h, Y, R, want_Y, want_R) of ∂F/∂Y and ∂F/∂R, [n_edges, …]."""
        y, r = terms[0][2:4]
        dy, dr = y.new_zeros(y.shape), r.new_empty(r.shape)
        written = False  # the first term that wants R writes it, later ones add: R is the largest array there is
        for g, h, y, r, want_y, want_r in terms:
            name = "by_edge" + "_y" * want_y + ("_add" if written else "_set") * want_r
            written = written or want_r
            rows = (topology.senders, topology.receivers, *self._arrays(g, h, y, r, dy, dr))
            self._run(name, len(topology.senders), rows)
        return dy, dr if written else dr.zero_()

    def _arrays(self, *tensors: Tensor) -> list[np.ndarray]:
        arrays = [t.detach().contiguous().numpy() for t in tensors]
        return [*arrays, self.coefficients.astype(arrays[0].dtype)]

    def _run(self, name: str, n_rows: int, arguments: tuple) -> None:
        run_rows(_compile(name, self.paths), n_rows, *arguments)


Sums = tuple[tuple[float, int], ...]  # coefficients and harmonics


@dataclass(frozen=True)
class Path:
    """Where one path reads and writes: flat offsets, strides between components, and its coupling's entries."""

    width: int
    start_in: int
    start_out: int
    stride_out: int
    weight: int
    entries: tuple[tuple[int, int, int, float], ...]  # m3, m1, harmonic, coefficient

    @property
    def n_sums(self) -> int:
        """How many components m3 it writes."""
        return len({m3 for m3, *_ in self.entries})

    def couplings(self, sign: float = 1.0) -> dict[tuple[int, int], Sums]:
        """(m3, m1) -> what multiplies h_m1 in the sum m3, times the sign."""
        terms: dict[tuple[int, int], Sums] = {}
        for m3, m1, m2, coefficient in self.entries:
            terms[m3, m1] = (*terms.get((m3, m1), ()), (float(coefficient) * sign, m2))
        return terms


def paths_of(convolution: Convolution, couplings: np.ndarray) -> tuple[Path, ...]:
    starts_in = np.cumsum([0, *convolution.blocks_in])
    starts_out = [s.start for s in convolution.irreps_out.slices()]
    filled = [0] * len(starts_out)
    paths = []
    column = weight = 0
    for source, target, width, (dim_out, dim_in) in zip(
        convolution.sources, convolution.targets, convolution.widths, convolution.dims
    ):
        dense = couplings[:, column : column + dim_out * dim_in].reshape(-1, dim_out, dim_in)
        nonzero = sorted(zip(*np.nonzero(dense)), key=lambda t: t[1:])
        entries = tuple((int(m3), int(m1), int(m2), float(dense[m2, m3, m1])) for m2, m3, m1 in nonzero)
        start_out = starts_out[target] + filled[target]
        paths.append(
            Path(width, int(starts_in[source]), start_out, convolution.irreps_out[target].mul, weight, entries)
        )
        filled[target] += width
        column, weight = column + dim_out * dim_in, weight + width
    return tuple(paths)


_HEADS = {
    "by_receiver": (
        "rows, senders, h, y, r, out, c",
        ["for e in range(rows[n], rows[n + 1]):", "    hj, ye, re, o = h[senders[e]], y[e], r[e], out[n]"],
    ),
    "by_sender": (
        "rows, order, receivers, g, y, r, out, c",
        [
            "for q in range(rows[n], rows[n + 1]):",
            "    e = order[q]",
            "    gi, ye, re, o = g[receivers[e]], y[e], r[e], out[n]",
        ],
    ),
    "by_edge": (
        "senders, receivers, g, h, y, r, dy, dr, c",
        ["if True:", "    gi, hj, ye, re, dye, dre = g[receivers[n]], h[senders[n]], y[n], r[n], dy[n], dr[n]"],
    ),
}


@cache
def _compile(name: str, paths: tuple[Path, ...]) -> Callable:
    """Generate a kernel over the rows [start, end) and compile it; it runs without the interpreter lock."""
    kind = "by_edge" if name.startswith("by_edge") else name
    arguments, opening = _HEADS[kind]
    lines = [f"def {name}(start, end, {arguments}):", "    for n in range(start, end):"]
    lines += [f"        {line}" for line in opening]
    first = 0
    for path in paths:
        lines += [f"            {line}" for line in _body(name, path, first)]
        first += len(path.entries)
    namespace: dict = {}
    exec("\n".join(lines), namespace)
    return numba.njit(nogil=True, fastmath={"contract", "reassoc", "nsz"})(namespace[name])


def _body(name: str, path: Path, first: int) -> list[str]:
    """Source of one path: contract the harmonics with the coupling once, then run over the channels."""
    terms: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for number, (m3, m1, m2, _) in enumerate(path.entries, first):
        terms.setdefault((m3, m1), []).append((f"c[{number}]", m2))
    coupled = [f"a{m3}_{m1} = " + " + ".join(f"{c} * ye[{m2}]" for c, m2 in sums) for (m3, m1), sums in terms.items()]
    ins = {m1: f"hj[{path.start_in + m1 * path.width} + k]" for _, m1 in terms}
    outs = {m3: f"[{path.start_out + m3 * path.stride_out} + k]" for m3, _ in terms}
    loop = [f"for k in range({path.width}):", f"    x = re[{path.weight} + k]"]
    if name == "by_receiver":
        loop += [f"    f{m1} = x * {h}" for m1, h in ins.items()]
        for m3, o in outs.items():
            loop.append(f"    o{o} += " + " + ".join(f"a{m3}_{m1} * f{m1}" for (n3, m1) in terms if n3 == m3))
        return coupled + loop
    loop += [f"    g{m3} = gi{o}" for m3, o in outs.items()]
    if name == "by_sender":
        for m1, h in ins.items():
            sums = " + ".join(f"a{m3}_{m1} * g{m3}" for (m3, n1) in terms if n1 == m1)
            loop.append(f"    {h.replace('hj', 'o')} += x * ({sums})")
        return coupled + loop
    loop += [f"    f{m1} = {h}" for m1, h in ins.items()]
    lines = []
    if name.endswith(("_set", "_add")):
        lines += coupled
        assign = "+=" if name.endswith("_add") else "="
        sums = " + ".join(f"a{m3}_{m1} * g{m3} * f{m1}" for m3, m1 in terms)
        loop.append(f"    dre[{path.weight} + k] {assign} {sums}")
    if "_y" in name:
        lines += [f"b{m3}_{m1} = ye[0] - ye[0]" for m3, m1 in terms]
        loop += [f"    b{m3}_{m1} += g{m3} * (x * f{m1})" for m3, m1 in terms]
        loop += [f"dye[{m2}] += {c} * b{m3}_{m1}" for (m3, m1), sums in terms.items() for c, m2 in sums]
    return lines + loop
