"""BOTNet: linear equivariant layers of a definite body order (Batatia et al. 2022, arXiv 2205.06643).

    h⁰_i = W_{z_i}                                          embedding
    m_i  = 1/N̄ · W Σ_j R(r_ij) Y(r_ij) ⊗ W h_j              convolution
    h'_i = W_{z_i} m_i                                      nonresidual: the first layer, or all
    h'_i = m_i + W_{z_i} h_i                                residual; neither has any nonlinearity
    E_i  = Σ_t readout_t(h^t_i)                             linear, at last an MLP

Nothing between the embedding and the last readout is nonlinear in the features, so h^t is a sum of terms of at most
t + 1 atoms, and with a linear last readout (`readout_mlp` 0) the whole energy has body order num_interactions + 1.

N̄ is the average number of neighbours. Dividing by it, and not by its root as MACE does here for the sake of its
products, lets the energy start at order one for any number of layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from e3nn import o3
from torch import Tensor

from ase_equivariant.architectures.validation import (
    check_choice,
    check_common,
    check_features,
    check_fixed,
    check_layers,
    check_radial_basis,
    require,
    whole,
)
from ase_equivariant.nn.convolution import Convolution
from ase_equivariant.nn.harmonics import SphericalHarmonics
from ase_equivariant.nn.irreps import harmonics_irreps, layer_irreps, parse_irreps
from ase_equivariant.nn.linear import Linear, SpeciesDense, SpeciesLinear, add_blocks, normal_parameter
from ase_equivariant.nn.radial import RadialMLP, radial_basis
from ase_equivariant.nn.readout import LinearReadout, MLPReadout


@dataclass(frozen=True)
class BOTNetConfig:
    num_species: int
    cutoff: float  # Å
    avg_num_neighbors: float  # mean number of neighbours within the cutoff, over all training atoms
    num_bessel: int = 8
    bessel_decay: float = 0.0  # p: the n-th Bessel function has n^-p of the amplitude of the first; larger is smoother
    bessel_norm: str = "paper"  # or "unit": larger ones, for radial functions that are linear in the basis
    radial_basis: str = "bessel"  # or "gaussian"
    trainable_bessel: bool = False  # frequencies learned from nπ/r_c on
    envelope_power: int = 6
    radial: str = "agnostic"  # one MLP for all; "element": linear in the radial basis, by the sender's element
    radial_mlp: tuple[int, ...] = (64, 64, 64)  # hidden widths of the agnostic one
    l_max: int = 3  # of the edges' harmonics
    parity: bool = True  # the only one
    hidden_irreps: str = "32x0e+32x1o+32x1e+32x2e+32x2o+32x3o+32x3e"  # of the features between layers
    num_interactions: int = 5
    correlation: int = 1  # the only one
    update: str = "linear"  # the only one
    interaction_first: str = "nonresidual"
    interaction: str = "residual"  # of the later layers
    skip: str = "species"  # weights of W_{z_i}: one matrix per species, or one "shared" by all
    normalisation: str = "none"  # the only one
    readout_mlp: int = 16  # hidden width of the last readout; 0: linear like the others
    last_readout_only: bool = False  # the only one
    num_heads: int = 1
    tabulable = True  # see `architectures`

    def __post_init__(self):
        check_common(self, highest_l=6)
        check_radial_basis(self)
        check_fixed(self, parity=True, correlation=1, update="linear", normalisation="none", last_readout_only=False)
        check_choice(self, "radial", ("agnostic", "element"))
        check_layers(self)
        require(whole(self.readout_mlp, 0), self, "readout_mlp", "a whole number >= 0")
        check_features(self)

    @property
    def features(self) -> list[o3.Irreps]:
        """Irreps of the features before, between and after the layers."""
        return layer_irreps(parse_irreps(self.hidden_irreps), harmonics_irreps(self.l_max), self.num_interactions)


class BOTNet(torch.nn.Module):
    Config = BOTNetConfig
    SPECIES_WEIGHTS = r"embedding|layers\.\d+\.(skip\.maps\.\d+|radial_weights)\.weight"
    SPECIES_TABLES = ()
    HEAD_WEIGHTS = {r"readouts\.\d+\.(linear|hidden)\.weight": 1, r"readouts\.\d+\.weight": 0}

    def __init__(self, config: BOTNetConfig, seed: int = 0):
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        features = config.features
        channels = features[-1].dim  # even scalars
        self.embedding = normal_parameter((config.num_species, channels), generator)
        self.harmonics = SphericalHarmonics(config.l_max)
        self.radial = radial_basis(config)
        self.layers = torch.nn.ModuleList()
        self.readouts = torch.nn.ModuleList()
        for t in range(config.num_interactions):
            last = t == config.num_interactions - 1
            self.layers.append(Layer(config, features[t], features[t + 1], t == 0, generator))
            self.readouts.append(
                MLPReadout(channels, config.readout_mlp, config.num_heads, generator)
                if last and config.readout_mlp
                else LinearReadout(channels, config.num_heads, generator)
            )

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
    """One interaction: node features in, node features out, linear in them."""

    __constants__ = ["agnostic"]  # TorchScript then compiles the call of the radial functions that are there

    def __init__(
        self,
        config: BOTNetConfig,
        irreps_in: o3.Irreps,
        irreps_out: o3.Irreps,
        first: bool,
        generator: torch.Generator,
    ):
        super().__init__()
        self.residual = (config.interaction_first if first else config.interaction) == "residual"
        self.agnostic = config.radial == "agnostic"
        self.norm = 1.0 / config.avg_num_neighbors
        self.linear_up = Linear(irreps_in, irreps_in, generator)
        self.convolution = Convolution(irreps_in, config.l_max, irreps_out)
        num_weights = self.convolution.num_weights
        self.radial_weights = (
            RadialMLP((config.num_bessel, *config.radial_mlp, num_weights), generator)
            if self.agnostic
            else SpeciesDense(config.num_species, config.num_bessel, num_weights, generator)
        )
        self.linear = Linear(self.convolution.irreps_out, irreps_out, generator)
        skipped = irreps_in if self.residual else irreps_out
        matrices = config.num_species if config.skip == "species" else 1
        self.skip = SpeciesLinear(matrices, skipped, irreps_out, generator)

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
        if self.agnostic:
            weights = self.radial_weights(edge_feats)
        else:
            weights = self.radial_weights(edge_feats, species.index_select(0, senders))
        message = self.linear(self.convolution(sent, edge_attrs, weights, senders, receivers))
        if not self.residual:
            return self.skip(message, species)
        return add_blocks(message, self.skip(node_feats, species), self.skip.targets)
