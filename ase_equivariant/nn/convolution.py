"""The equivariant convolution: neighbours' features times spherical harmonics, summed at the receiver.

    A_i,k l3m3 = Σ_j Σ_paths R_k,path(r_ij) Σ_m1m2 √(2l3+1) C^l3m3_l1m1,l2m2 Y_l2m2(r_ij) h_j,k l1m1     (MACE eq. 8)

A path is one (l1, l2, l3) that the selection rules allow. Every path keeps its own channels.
"""

from __future__ import annotations

import math

import torch
from e3nn import o3
from torch import Tensor

from ase_equivariant.nn.coupling import clebsch_gordan
from ase_equivariant.nn.irreps import harmonics_irreps


class Convolution(torch.nn.Module):
    """Couple node features to the harmonics of the edges and sum at the receivers.

    `parity` -1 gives the harmonics their own parity (-1)^l; 1 counts all as even, so that only rotations are kept.

    Attributes
    ----------
    irreps_out : the irreps of `targets` that a path reaches, each with the channels of all its paths
    num_weights : columns of `weights`, one per channel of each path
    """

    def __init__(self, irreps_in: o3.Irreps, l_max: int, targets: o3.Irreps, parity: int = -1):
        super().__init__()
        harmonics = harmonics_irreps(l_max, parity=parity)
        self.sources: list[int] = []  # per path: which block of node features it reads,
        self.widths: list[int] = []  # its channels,
        self.dims: list[tuple[int, int]] = []  # 2 l3 + 1 and 2 l1 + 1,
        self.targets: list[int] = []  # and the output block it belongs to
        couplings: list[Tensor] = []
        kinds = []
        for _, out in targets:
            channels = 0
            for source, (mul, ir) in enumerate(irreps_in):
                for _, edge in harmonics:
                    if out not in ir * edge:
                        continue
                    coupling = torch.from_numpy(clebsch_gordan(ir.l, edge.l, out.l)) * math.sqrt(out.dim)
                    block = torch.zeros(harmonics.dim, out.dim, ir.dim, dtype=torch.float64)
                    block[edge.l**2 : (edge.l + 1) ** 2] = coupling.permute(1, 2, 0)
                    couplings.append(block.flatten(1))
                    self.sources.append(source)
                    self.widths.append(mul)
                    self.dims.append((out.dim, ir.dim))
                    self.targets.append(len(kinds))
                    channels += mul
            if channels:
                kinds.append((channels, out))
        self.blocks_in: list[int] = [mul * ir.dim for mul, ir in irreps_in]
        self.irreps_out = o3.Irreps(kinds)
        self.num_blocks = len(kinds)
        self.num_weights = sum(self.widths)
        self.register_buffer("couplings", torch.cat(couplings, 1), persistent=False)

    def forward(
        self, node_feats: list[Tensor], edge_attrs: Tensor, weights: Tensor, senders: Tensor, receivers: Tensor
    ) -> list[Tensor]:
        """Blocks [n_nodes, 2l+1, channels] from edge_attrs [n_edges, (l_max+1)²] and weights [n_edges, num_weights]."""
        coupled = torch.matmul(edge_attrs, self.couplings)  # the harmonics meet the coupling once, without channels
        gathered = [block.index_select(0, senders) for block in node_feats]
        n_nodes = node_feats[0].shape[0]
        paths: list[list[Tensor]] = [torch.jit.annotate(list[Tensor], []) for _ in range(self.num_blocks)]
        column = weight = 0
        for source, target, width, (dim_out, dim_in) in zip(self.sources, self.targets, self.widths, self.dims):
            matrices = coupled[:, column : column + dim_out * dim_in].view(-1, dim_out, dim_in)
            feats = gathered[source] * weights[:, weight : weight + width].unsqueeze(1)
            messages = matrices * feats if dim_in == 1 else torch.matmul(matrices, feats)
            zeros = torch.zeros((n_nodes, dim_out, width), dtype=messages.dtype, device=messages.device)
            paths[target].append(zeros.index_add(0, receivers, messages))
            column, weight = column + dim_out * dim_in, weight + width
        return [torch.cat(blocks, -1) for blocks in paths]
