"""The kernels of `fused` on a GPU, in Triton, for training: a program per node or edge, nothing left to atomics.

Messages are never in memory, and a convolution is one kernel forward, two for its gradient and some nine for the
gradient of that, where the module of torch operations starts hundreds.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import torch
import triton
import triton.language as tl
from torch import Tensor

from ase_equivariant.nn.convolution import Convolution
from ase_equivariant.nn.fused import Path, paths_of

REGISTERS = 64  # sums that a program holds per channel
WARP = 64  # channels that a warp takes


@dataclass(frozen=True)
class DeviceTopology:
    """Edges grouped by receiver (as they come) and by sender (through `order`); made without waiting for the GPU."""

    senders: Tensor
    receivers: Tensor
    by_receiver: Tensor  # [n_nodes + 1] where each node's edges begin
    by_sender: Tensor
    order: Tensor


class TritonKernels:
    """The kernels of one convolution, as `fused.NumbaKernels`."""

    def __init__(self, convolution: Convolution):
        self.paths = paths_of(convolution, convolution.couplings.double().cpu().numpy())
        self.width_in, self.width_out = sum(convolution.blocks_in), convolution.irreps_out.dim
        self.sizes = self.width_in, self.width_out, convolution.couplings.shape[0], convolution.num_weights

    @staticmethod
    def topology(senders: Tensor, receivers: Tensor, n_nodes: int) -> DeviceTopology:
        nodes = torch.arange(n_nodes + 1, device=senders.device)
        sorted_senders, order = torch.sort(senders, stable=True)
        first = torch.searchsorted(receivers, nodes), torch.searchsorted(sorted_senders, nodes)
        return DeviceTopology(senders, receivers, *first, order)

    def by_receiver(self, topology: DeviceTopology, terms: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Σ over terms (h, Y, R) of ∂F/∂g, [n_nodes, width of the result]."""
        return self._by_node("by_receiver", topology.by_receiver, topology.order, topology.senders, terms)

    def by_sender(self, topology: DeviceTopology, terms: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Σ over terms (g, Y, R) of ∂F/∂h, [n_nodes, width of the node features]."""
        return self._by_node("by_sender", topology.by_sender, topology.order, topology.receivers, terms)

    def _by_node(self, name: str, first: Tensor, order: Tensor, others: Tensor, terms: list[tuple]) -> Tensor:
        n_nodes, width = len(first) - 1, self.width_out if name == "by_receiver" else self.width_in
        out = terms[0][0].new_zeros((n_nodes, width))
        for arrays in terms:
            self._run(name, n_nodes, first, order, others, *_contiguous(arrays), out)
        return out

    def by_edge(self, topology: DeviceTopology, terms: list[tuple]) -> tuple[Tensor, Tensor]:
        """Σ over terms (g, h, Y, R, want_Y, want_R) of ∂F/∂Y and ∂F/∂R, [n_edges, …]."""
        y, r = terms[0][2:4]
        dy, dr = torch.zeros_like(y, memory_format=torch.contiguous_format), r.new_zeros(r.shape)
        ends = topology.receivers, topology.senders
        for *arrays, want_y, want_r in terms:
            self._run("by_edge", len(y), *ends, *_contiguous(arrays), dy, dr, int(want_y), int(want_r))
        return dy, dr

    def _run(self, name: str, n_rows: int, *arguments) -> None:
        if n_rows == 0:
            return
        for group in _groups(self.paths, name):
            block = triton.next_power_of_2(group[0].width)
            kernel = _compile(name, group, self.sizes, block)
            kernel[(n_rows,)](*arguments, num_warps=max(min(block // WARP, 8), 1))


def _contiguous(arrays: tuple | list) -> list[Tensor]:
    return [array.detach().contiguous() for array in arrays]


def _groups(paths: tuple[Path, ...], name: str) -> list[tuple[Path, ...]]:
    """Paths that one kernel takes: of one width, and by what is written where that is not theirs alone."""
    lots: list[tuple[Path, ...]] = []
    key = (lambda path: (path.width, path.start_in)) if name == "by_sender" else (lambda path: path.width)
    for _, same in groupby(sorted(paths, key=key), key):
        lot, held = [], 0
        for path in same:
            sums = path.n_sums if name == "by_receiver" else 0
            if held + sums > REGISTERS:
                lots.append(tuple(lot))
                lot, held = [], 0
            lot.append(path)
            held += sums
        lots.append(tuple(lot))
    return lots


@cache
def _compile(name: str, paths: tuple[Path, ...], sizes: tuple[int, ...], block: int) -> Callable:
    """The kernel, compiled when first called; Triton keeps the machine code on disk."""
    source = _source(name, paths, sizes, block)
    filename = f"<ase_equivariant.nn.fused_triton {name} {hash((paths, sizes, block))}>"
    linecache.cache[filename] = len(source), None, source.splitlines(keepends=True), filename  # Triton reads it there
    namespace = {"tl": tl, "__name__": __name__}
    exec(compile(source, filename, "exec"), namespace)
    return triton.jit(namespace[name], do_not_specialize=("want_y", "want_r") if name == "by_edge" else ())


def _source(name: str, paths: tuple[Path, ...], sizes: tuple[int, ...], block: int) -> str:
    body = {"by_receiver": _by_receiver, "by_sender": _by_sender, "by_edge": _by_edge}[name]
    arguments, lines = body(paths, sizes)
    channels = [f"k = tl.arange(0, {block})", f"mask = k < {paths[0].width}"]
    return "\n".join([f"def {name}({arguments}):", *(f"    {line}" for line in [*channels, *lines])]) + "\n"


def _by_receiver(paths: tuple[Path, ...], sizes: tuple[int, ...]) -> tuple[str, list[str]]:
    width_in, width_out, *_ = sizes
    sums = {}
    loop = ["j = tl.load(senders + e)", *_harmonics(paths, sizes), *_sent(paths, f"j * {width_in}")]
    for p, path in enumerate(paths):
        loop.append(f"x = {_load('r', f'e * {sizes[3]} + {path.weight}')}")
        for m3, terms in _by(path, 0).items():
            sums[f"s{p}_{m3}"] = path.start_out + m3 * path.stride_out
            loop.append(f"s{p}_{m3} += x * ({_dot(terms, lambda m1, path=path: f'h{path.start_in}_{m1}')})")
    return "first, order, senders, h, y, r, out", _over_edges(sums, width_out, loop, "e = q")


def _by_sender(paths: tuple[Path, ...], sizes: tuple[int, ...]) -> tuple[str, list[str]]:
    width_in, width_out, *_ = sizes
    sums = {}
    loop = ["e = tl.load(order + q)", "i = tl.load(receivers + e)", *_harmonics(paths, sizes)]
    for path in paths:
        loop.append(f"x = {_load('r', f'e * {sizes[3]} + {path.weight}')}")
        loop += _received(path, f"i * {width_out}")
        for m1, terms in _by(path, 1).items():
            sums[f"s{m1}"] = path.start_in + m1 * path.width
            loop.append(f"s{m1} += x * ({_dot(terms, lambda m3: f'g{m3}')})")
    return "first, order, receivers, g, y, r, out", _over_edges(sums, width_in, loop, "e = tl.load(order + q)")


def _by_edge(paths: tuple[Path, ...], sizes: tuple[int, ...]) -> tuple[str, list[str]]:
    width_in, width_out, n_harmonics, n_weights = sizes
    used = sorted({m2 for path in paths for _, _, m2, _ in path.entries})
    lines = ["e = tl.program_id(0).to(tl.int64)", "i, j = tl.load(receivers + e), tl.load(senders + e)"]
    lines += [*_harmonics(paths, sizes), *_sent(paths, f"j * {width_in}")]
    lines += [f"b{m2} = tl.zeros_like(h{paths[0].start_in}_0)" for m2 in used]
    for path in paths:
        place = f"e * {n_weights} + {path.weight}"
        lines += [*_received(path, f"i * {width_out}"), f"x = {_load('r', place)}"]
        pairs: dict[int, list[str]] = {}
        for m3, m1, m2, c in path.entries:
            pairs.setdefault(m2, []).append(f"{c!r} * (g{m3} * h{path.start_in}_{m1})")
        lines += [f"u{m2} = {' + '.join(terms)}" for m2, terms in pairs.items()]
        total = " + ".join(f"y{m2} * u{m2}" for m2 in pairs)
        lines += ["if want_r:", f"    d = {_load('dr', place)}", f"    {_store('dr', place, f'd + {total}')}"]
        lines += [f"b{m2} += x * u{m2}" for m2 in pairs]
    lines.append("if want_y:")
    for m2 in used:
        place = f"dy + e * {n_harmonics} + {m2}"
        lines.append(f"    tl.store({place}, tl.load({place}) + tl.sum(b{m2}, 0))")
    return "receivers, senders, g, h, y, r, dy, dr, want_y, want_r", lines


def _over_edges(sums: dict[str, int], width: int, loop: list[str], edge: str) -> list[str]:
    """Sums over a node's edges, on top of what the row of `out` holds."""
    places = {name: f"n * {width} + {start}" for name, start in sums.items()}
    loop = loop if loop[0] == edge else [edge, *loop]
    return [
        "n = tl.program_id(0).to(tl.int64)",
        *(f"{name} = {_load('out', place)}" for name, place in places.items()),
        "q, end = tl.load(first + n), tl.load(first + n + 1)",
        "while q < end:",
        *(f"    {line}" for line in [*loop, "q += 1"]),
        *(_store("out", place, name) for name, place in places.items()),
    ]


def _by(path: Path, side: int) -> dict[int, dict[int, list[str]]]:
    """Of each component on one side (0: m3, 1: m1) the other side's components with their coupled harmonics."""
    table: dict[int, dict[int, list[str]]] = {}
    for entry in path.entries:
        own, other, m2, c = entry[side], entry[1 - side], entry[2], entry[3]
        table.setdefault(own, {}).setdefault(other, []).append(f"{c!r} * y{m2}")
    return table


def _dot(terms: dict[int, list[str]], name: Callable[[int], str]) -> str:
    return " + ".join(f"({' + '.join(coupled)}) * {name(m)}" for m, coupled in terms.items())


def _harmonics(paths: tuple[Path, ...], sizes: tuple[int, ...]) -> list[str]:
    used = sorted({m2 for path in paths for _, _, m2, _ in path.entries})
    return [f"y{m2} = tl.load(y + e * {sizes[2]} + {m2})" for m2 in used]


def _sent(paths: tuple[Path, ...], row: str) -> list[str]:
    """Each component that the paths read of the sender."""
    places = {(path.start_in, m1): path.start_in + m1 * path.width for path in paths for _, m1, *_ in path.entries}
    return [f"h{start}_{m1} = {_load('h', f'{row} + {place}')}" for (start, m1), place in places.items()]


def _received(path: Path, row: str) -> list[str]:
    components = dict.fromkeys(m3 for m3, *_ in path.entries)
    return [f"g{m3} = {_load('g', f'{row} + {path.start_out + m3 * path.stride_out}')}" for m3 in components]


def _load(array: str, place: str) -> str:
    return f"tl.load({array} + {place} + k, mask=mask, other=0.0)"


def _store(array: str, place: str, value: str) -> str:
    return f"tl.store({array} + {place} + k, {value}, mask=mask)"
