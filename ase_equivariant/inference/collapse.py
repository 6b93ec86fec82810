"""The first layer made smaller: where atoms send what their species alone decides, a convolution sums the functions φ
that the last layer of its radial network mixes, R_c = Σ_b φ_b V_bc, and the linear map behind it mixes these sums:

    Σ_c W_ck Σ_j R_c(r_ij) t_c(z_j) Y(r_ij) = Σ_z,b M_zb,k Σ_{j of species z} φ_b(r_ij) Y(r_ij)
    M_zb,k = Σ_c V_bc t_c(z) W_ck
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ase_equivariant.inference.program import Convolve, Linear, Map, Program, Stage
from ase_equivariant.inference.radial import Layer
from ase_equivariant.nn.fused import Path


def collapsed(program: Program) -> Program:
    """The same function with fewer channels in convolutions of a table, where one linear map reads the result."""
    stages, widths = list(program.stages), dict(program.widths)
    for i, conv in enumerate(program.stages):
        readers = [s for s in stages if conv.target in s.reads]
        if len(readers) == 1 and _is_worth_it(conv, readers[0]):
            stages[i], stages[stages.index(readers[0])] = _mix_late(conv, readers[0])
            widths[conv.target] = sum(path.n_sums * path.width for path in stages[i].paths)
    return replace(program, stages=tuple(stages), widths=widths)


def _is_worth_it(conv: Stage, linear: Stage) -> bool:
    if not isinstance(conv, Convolve) or conv.table is None or not isinstance(linear, Linear):
        return False
    network, narrow = conv.radial, min(path.width for path in conv.paths)
    last = network.layers[-1]
    plain = not (network.counts or network.kinds.any() or last.bias.any()) and last.norm is None
    whole = all(path.stride_out == path.width and path.n_sums == len(path.entries) for path in conv.paths)
    hidden = len(network.layers) > 1 and len(conv.table) * last.weights.shape[1] <= narrow
    return plain and whole and hidden


def _mix_late(conv: Convolve, linear: Linear) -> tuple[Convolve, Linear]:
    *layers, last = conv.radial.layers
    count, n_species = last.weights.shape[1], len(conv.table)
    table = np.eye(n_species).repeat(count, 1)
    paths, maps, start = [], [], 0
    for path in conv.paths:
        width = n_species * count
        sent = conv.table[:, path.start_in : path.start_in + path.width]
        mixing = last.weights[0, :, path.weight : path.weight + path.width] * sent[:, None]  # [n_species, count, width]
        for m in linear.maps:
            if m.start_in == path.start_out:
                maps.append(Map(m.dim, start, m.start_out, mixing.reshape(width, -1) @ m.weights))
        paths += [Path(count, z * count, start + z * count, width, 0, path.entries) for z in range(n_species)]
        start += path.n_sums * width
    network = replace(conv.radial, layers=(*layers, Layer(np.eye(count)[None], np.zeros((1, count)))))
    return (
        Convolve(None, table, conv.target, tuple(paths), network),
        Linear(linear.source, linear.target, tuple(maps)),
    )
