"""The layers of MACE: each gathers the density A_i of an atom's neighbours and returns products of it.

They differ in how the sum over neighbours is normalised, in what enters the radial network, and in the skip connection;
the docstring of `mace` gives their equations. All take the same arguments, so that the loop of MACE is one line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from e3nn import o3
from torch import Tensor

from ase_equivariant.nn.contraction import SymmetricContraction
from ase_equivariant.nn.convolution import Convolution
from ase_equivariant.nn.gate import Gate
from ase_equivariant.nn.irreps import harmonics_irreps
from ase_equivariant.nn.linear import Dense, Linear, SpeciesLinear, add_blocks, constant_parameter
from ase_equivariant.nn.radial import PairMLP, RadialMLP

if TYPE_CHECKING:
    from ase_equivariant.architectures.mace import MACEConfig

DENSITY_WIDTH = 64  # hidden width of the network that counts neighbours in a nonlinear layer
ATTENTION_WIDTHS = (256, 256, 256)  # hidden widths of the radial network that also sees features of both atoms,
ATTENTION_CHANNELS = 64  # and how many features of each


class Layer(torch.nn.Module):
    """Interactions "residual" and "nonresidual", and those of a density or attention: all linear in the neighbours."""

    def __init__(
        self,
        config: MACEConfig,
        kind: str,
        irreps_in: o3.Irreps,
        irreps_edge: o3.Irreps,
        irreps_out: o3.Irreps,
        correlation: int,
        generator: torch.Generator,
    ):
        super().__init__()
        self.residual = kind not in ("nonresidual", "density")
        counted = kind.startswith("density")
        self.norm = 1.0 if counted else config.avg_num_neighbors**-0.5
        parity = -1 if config.parity else 1
        density = harmonics_irreps(config.l_max, irreps_out[0].mul, parity)
        self.linear_up = Linear(irreps_in, irreps_edge, generator)
        self.convolution = Convolution(irreps_edge, config.l_max, density, parity)
        attentive = kind == "attention_residual"
        inputs = config.num_bessel + 2 * ATTENTION_CHANNELS * attentive
        hidden = ATTENTION_WIDTHS if attentive else config.radial_mlp
        self.radial_mlp = RadialMLP((inputs, *hidden, self.convolution.num_weights), generator)
        self.linear = Linear(self.convolution.irreps_out, density, generator)
        skipped = (irreps_in, irreps_out) if self.residual else (density, density)
        matrices = config.num_species if config.skip == "species" and not attentive else 1
        self.skip = SpeciesLinear(matrices, *skipped, generator)
        self.contraction = SymmetricContraction(
            config.l_max, irreps_out, correlation, config.product_species, generator, parity, self.norm
        )
        self.linear_out = Linear(irreps_out, irreps_out, generator)
        self.count = Dense(config.num_bessel, 1, generator) if counted else None
        self.attention = Dense(irreps_in[0].mul, ATTENTION_CHANNELS, generator) if attentive else None

    def forward(
        self,
        node_feats: list[Tensor],
        species: Tensor,
        edge_attrs: Tensor,
        edge_feats: Tensor,
        envelope: Tensor | None,
        senders: Tensor,
        receivers: Tensor,
    ) -> list[Tensor]:
        sent = [block * self.norm for block in self.linear_up(node_feats)]
        inputs = edge_feats
        if self.attention is not None:
            seen = self.attention(node_feats[0].squeeze(1))
            inputs = torch.cat([edge_feats, seen.index_select(0, senders), seen.index_select(0, receivers)], 1)
        weights = self.radial_mlp(inputs)
        if envelope is not None:
            weights = weights * envelope
        density = self.linear(self.convolution(sent, edge_attrs, weights, senders, receivers))
        if self.count is not None:
            counts = count_neighbors(self.count(edge_feats), envelope, receivers, species.shape[0])
            density = [block / (1.0 + counts) for block in density]
        if not self.residual:
            density = self.skip(density, species)
        out = self.linear_out(self.contraction(density, species))
        return add_blocks(out, self.skip(node_feats, species), self.skip.targets) if self.residual else out


class NonlinearLayer(torch.nn.Module):
    """Interaction "nonlinear": the radial network knows both species, and a gate acts on the density."""

    def __init__(
        self,
        config: MACEConfig,
        irreps_in: o3.Irreps,
        irreps_edge: o3.Irreps,
        irreps_out: o3.Irreps,
        correlation: int,
        generator: torch.Generator,
    ):
        super().__init__()
        parity = -1 if config.parity else 1
        density = harmonics_irreps(config.l_max, irreps_out[0].mul, parity)
        self.gate = Gate(density, sigmoid=True)
        self.linear_up = Linear(irreps_in, irreps_edge, generator)
        self.convolution = Convolution(irreps_edge, config.l_max, density, parity)
        widths = (config.num_bessel, *config.radial_mlp, self.convolution.num_weights)
        self.radial_mlp = PairMLP(config.num_species, widths, generator)
        self.count = PairMLP(config.num_species, (config.num_bessel, DENSITY_WIDTH, 1), generator)
        self.alpha = constant_parameter((1,), float(config.avg_num_neighbors))
        self.beta = constant_parameter((1,), 0.0)
        self.linear = Linear(self.convolution.irreps_out, self.gate.irreps_in, generator)
        self.linear_node = Linear(irreps_edge, self.gate.irreps_in, generator)
        self.linear_gated = Linear(density, density, generator)
        self.skip = Linear(irreps_in, irreps_out, generator)
        self.contraction = SymmetricContraction(
            config.l_max, irreps_out, correlation, config.product_species, generator, parity
        )
        self.linear_out = Linear(irreps_out, irreps_out, generator)

    def forward(
        self,
        node_feats: list[Tensor],
        species: Tensor,
        edge_attrs: Tensor,
        edge_feats: Tensor,
        envelope: Tensor | None,
        senders: Tensor,
        receivers: Tensor,
    ) -> list[Tensor]:
        ends = species.index_select(0, senders), species.index_select(0, receivers)
        sent = self.linear_up(node_feats)
        weights = self.radial_mlp(edge_feats, ends[0], ends[1])
        if envelope is not None:
            weights = weights * envelope
        counts = count_neighbors(self.count(edge_feats, ends[0], ends[1]), envelope, receivers, species.shape[0])
        divisor = counts * self.beta + self.alpha
        gathered = self.linear(self.convolution(sent, edge_attrs, weights, senders, receivers))
        density = add_blocks([block / divisor for block in gathered], self.linear_node(sent), self.linear_node.targets)
        density = self.linear_gated(self.gate(density))
        out = self.linear_out(self.contraction(density, species))
        return add_blocks(out, self.skip(node_feats), self.skip.targets)


def count_neighbors(shares: Tensor, envelope: Tensor | None, receivers: Tensor, n_nodes: int) -> Tensor:
    """A smooth number of neighbours, Σ_j tanh(s_ij²) with shares s [n_edges, 1], as [n_nodes, 1, 1]."""
    shares = torch.tanh(shares.square())
    if envelope is not None:
        shares = shares * envelope
    zeros = torch.zeros((n_nodes, 1), dtype=shares.dtype, device=shares.device)
    return zeros.index_add(0, receivers, shares).unsqueeze(-1)
