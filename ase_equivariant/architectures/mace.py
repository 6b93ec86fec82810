"""MACE: many-body messages from products of an equivariant density (Batatia et al. 2022, arXiv 2206.07697).

    h⁰_i = W_{z_i}                                           embedding
    A_i  = 1/√N̄ · W Σ_j R(r_ij) Y(r_ij) ⊗ W h_j               convolution             eq. (8)
    m_i  = Σ_ν Σ_η W_{z_i,η} 𝒞_η (A_i ⊗ … ⊗ A_i)             symmetric contraction   eqs. (10), (11)
    h'_i = W m_i (+ W_{z_i} h_i)                             update                  eq. (12)
    E_i  = Σ_t readout_t(h^t_i)                              linear, at last an MLP  eq. (13)

Two kinds of interaction: "residual" adds the species-dependent linear map of h_i as above; "nonresidual" applies a
species-dependent linear map to A_i instead, so that an atom without neighbours has no energy of interaction at all.
The sum is divided by √N̄, N̄ the average number of neighbours, where the paper divides by N̄: the same functions, but
products of A_i start at order one and are learned from the first step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from e3nn import o3
from torch import Tensor

from ase_equivariant.architectures.validation import INTERACTIONS, check_choice, check_common, parsed, require, whole
from ase_equivariant.nn.contraction import SymmetricContraction
from ase_equivariant.nn.convolution import Convolution
from ase_equivariant.nn.harmonics import SphericalHarmonics
from ase_equivariant.nn.irreps import harmonics_irreps, parse_irreps
from ase_equivariant.nn.linear import Linear, SpeciesLinear, normal_parameter
from ase_equivariant.nn.radial import RadialBasis, RadialMLP
from ase_equivariant.nn.readout import LinearReadout, MLPReadout

MAX_COUPLING = 4_000_000  # entries of a dense coupling tensor; more takes minutes and gigabytes to set up


@dataclass(frozen=True)
class MACEConfig:
    num_species: int
    cutoff: float  # Å
    avg_num_neighbors: float  # mean number of neighbours within the cutoff, over all training atoms
    num_bessel: int = 8
    envelope_power: int = 5
    radial_mlp: tuple[int, ...] = (64, 64, 64)  # hidden widths
    l_max: int = 3  # of the edges' harmonics
    hidden_irreps: str = "64x0e+64x1o"  # of the messages between layers; equal channels
    num_interactions: int = 2
    correlation: int = 3  # order of the product ν; body order ν + 1
    interaction_first: str = "nonresidual"
    interaction: str = "residual"  # of the later layers
    readout_mlp: int = 16  # hidden width of the last readout
    num_heads: int = 1

    def __post_init__(self):
        check_common(self)
        require(whole(self.readout_mlp, 1), self, "readout_mlp", "a whole number >= 1")
        require(whole(self.correlation, 1, 4), self, "correlation", "a whole number from 1 to 4")
        for name in ("interaction_first", "interaction"):
            check_choice(self, name, INTERACTIONS)
        rule = "'Kx0e+Kx1o+Kx2e+…' with one K, scalars first, parity (-1)^l and l up to l_max"
        require(_suits_messages(self.hidden_irreps, self.l_max), self, "hidden_irreps", rule)
        entries = (self.l_max + 1) ** (2 * self.correlation) * sum(ir.dim for _, ir in parse_irreps(self.hidden_irreps))
        rule = f"less with l_max = {self.l_max} and hidden_irreps = {self.hidden_irreps!r}, or these smaller"
        require(entries <= MAX_COUPLING, self, "correlation", rule)


def _suits_messages(text: object, l_max: int) -> bool:
    """Scalars first, since readouts take block 0; equal channels and natural parity, since products do."""
    hidden = parsed(text)
    allowed = [ir for _, ir in harmonics_irreps(l_max)]
    kinds = [ir for _, ir in hidden]
    return kinds[:1] == allowed[:1] and len({mul for mul, _ in hidden}) == 1 and all(ir in allowed for ir in kinds)


class MACE(torch.nn.Module):
    Config = MACEConfig

    def __init__(self, config: MACEConfig, seed: int = 0):
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        hidden = parse_irreps(config.hidden_irreps)
        scalars = o3.Irreps([(hidden.count("0e"), "0e")])
        self.embedding = normal_parameter((config.num_species, hidden.count("0e")), generator)
        self.harmonics = SphericalHarmonics(config.l_max)
        self.radial = RadialBasis(config.cutoff, config.num_bessel, config.envelope_power)
        self.layers = torch.nn.ModuleList()
        self.readouts = torch.nn.ModuleList()
        irreps_in = scalars
        for t in range(config.num_interactions):
            last = t == config.num_interactions - 1
            irreps_out = scalars if last else hidden
            kind = config.interaction_first if t == 0 else config.interaction
            self.layers.append(Layer(config, irreps_in, irreps_out, kind, generator))
            channels = scalars.dim
            self.readouts.append(
                MLPReadout(channels, config.readout_mlp, config.num_heads, generator)
                if last
                else LinearReadout(channels, config.num_heads, generator)
            )
            irreps_in = irreps_out

    def forward(self, vectors: Tensor, species: Tensor, senders: Tensor, receivers: Tensor) -> Tensor:
        return self.contributions(vectors, species, senders, receivers).sum(1)

    @torch.jit.export
    def contributions(self, vectors: Tensor, species: Tensor, senders: Tensor, receivers: Tensor) -> Tensor:
        """Each layer's share of the node energies, [n_nodes, num_interactions, num_heads]."""
        vectors = vectors.to(self.embedding.dtype)
        edge_attrs = self.harmonics(vectors)
        edge_feats = self.radial(torch.linalg.vector_norm(vectors, dim=1))
        node_feats = [self.embedding.index_select(0, species).unsqueeze(1)]
        energies: list[Tensor] = []
        for layer, readout in zip(self.layers, self.readouts):
            node_feats = layer(node_feats, species, edge_attrs, edge_feats, senders, receivers)
            energies.append(readout(node_feats[0].squeeze(1)))
        return torch.stack(energies, 1)


class Layer(torch.nn.Module):
    """One interaction and its product: node features in, node features out."""

    def __init__(
        self, config: MACEConfig, irreps_in: o3.Irreps, irreps_out: o3.Irreps, kind: str, generator: torch.Generator
    ):
        super().__init__()
        self.residual = kind == "residual"
        self.norm = config.avg_num_neighbors**-0.5
        density = harmonics_irreps(config.l_max, irreps_out[0].mul)
        self.linear_up = Linear(irreps_in, irreps_in, generator)
        self.convolution = Convolution(irreps_in, config.l_max, density)
        widths = (config.num_bessel, *config.radial_mlp, self.convolution.num_weights)
        self.radial_mlp = RadialMLP(widths, generator)
        self.linear = Linear(self.convolution.irreps_out, density, generator)
        skipped = (irreps_in, irreps_out) if self.residual else (density, density)
        self.skip = SpeciesLinear(config.num_species, *skipped, generator)
        self.contraction = SymmetricContraction(
            config.l_max, irreps_out, config.correlation, config.num_species, generator
        )
        self.linear_out = Linear(irreps_out, irreps_out, generator)

    def forward(
        self,
        node_feats: list[Tensor],
        species: Tensor,
        edge_attrs: Tensor,
        edge_feats: Tensor,
        senders: Tensor,
        receivers: Tensor,
    ) -> list[Tensor]:
        sent = [block * self.norm for block in self.linear_up(node_feats)]
        weights = self.radial_mlp(edge_feats)
        density = self.linear(self.convolution(sent, edge_attrs, weights, senders, receivers))
        if not self.residual:
            density = self.skip(density, species)
        out = self.linear_out(self.contraction(density, species))
        if self.residual:
            for target, block in zip(self.skip.targets, self.skip(node_feats, species)):
                out[target] = out[target] + block
        return out
