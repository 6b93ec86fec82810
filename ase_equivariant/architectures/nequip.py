"""NequIP: gated equivariant convolutions, read out at the end (Batzner et al. 2022, arXiv 2101.03164).

    h⁰_i = W_{z_i}                                          embedding
    m_i  = 1/N̄ · W Σ_j R(r_ij) Y(r_ij) ⊗ W h_j              convolution
    h'_i = Gate(m_i + W_{z_i} h_i) (+ h_i)                  residual: self-connection, gate, with `resnet` the identity
    h'_i = Gate(W_{z_i} m_i) (+ h_i)                        nonresidual
    E_i  = w · W h^T_i                                      two linear layers

The paper's layers are residual, which gives an isolated atom a learned energy. The default here is a nonresidual first
layer: an atom without neighbours then has no energy of interaction at all. The identity of `resnet` is left out of the
first layer for the same reason.

The sum is divided by N̄, the average number of neighbours, where the paper divides by √N̄: the same functions, but
messages of neighbours of one element add up in step, and gates multiply what has grown. With N̄ energies start at order
one for any number of layers.

With parity, features are of O(3): odd scalars change sign under the inversion, the energy does not. Without, harmonics
and features all count as even and paths are those of SO(3), so that mirror images may differ in energy.

Layers carry those of the hidden irreps alone that can change the energy, see `layer_irreps`. Irreps of parity
-(-1)^l need four layers to be made, used and turned back into even scalars, odd scalars need six.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from e3nn import o3
from torch import Tensor

from ase_equivariant.architectures.validation import (
    MAX_CHANNELS,
    check_choice,
    check_common,
    check_features,
    check_fixed,
    check_flag,
    check_layers,
    check_radial_basis,
    check_repulsion,
    require,
    whole,
)
from ase_equivariant.nn.convolution import Convolution
from ase_equivariant.nn.gate import Gate
from ase_equivariant.nn.harmonics import SphericalHarmonics
from ase_equivariant.nn.irreps import block_index, harmonics_irreps, layer_irreps, parse_irreps
from ase_equivariant.nn.linear import Dense, Linear, SpeciesLinear, add_blocks, normal_parameter
from ase_equivariant.nn.norm import NORMS, RMSNorm
from ase_equivariant.nn.pair_repulsion import ZBLConfig
from ase_equivariant.nn.radial import RadialMLP, radial_basis
from ase_equivariant.nn.readout import LinearReadout


@dataclass(frozen=True)
class NequIPConfig:
    num_species: int
    cutoff: float  # Å
    avg_num_neighbors: float  # mean number of neighbours within the cutoff, over all training atoms
    num_bessel: int = 8
    bessel_decay: float = 0.0  # p: the n-th Bessel function has n^-p of the amplitude of the first; larger is smoother
    bessel_norm: str = "paper"  # or "unit": larger ones, for radial functions that are linear in the basis
    radial_basis: str = "bessel"  # or "gaussian"
    trainable_bessel: bool = False  # frequencies learned from nπ/r_c on
    envelope_power: int = 6
    radial: str = "agnostic"  # the only one
    radial_mlp: tuple[int, ...] = (64, 64)  # hidden widths
    l_max: int = 2  # of the edges' harmonics
    parity: bool = True  # O(3); else SO(3), with even irreps only
    hidden_irreps: str = "32x0e+32x1o+32x1e+32x2e+32x2o"  # of the features between layers
    embedding_channels: int = 0  # of an atom before the first layer; 0: as many as there are even scalars
    num_interactions: int = 4
    correlation: int = 1  # the only one
    update: str = "gate"  # the only one
    interaction_first: str = "nonresidual"
    interaction: str = "residual"  # of the later layers
    skip: str = "species"  # weights of W_{z_i}: one matrix per species, or one "shared" by all
    resnet: bool = False  # later layers add their input to those blocks of their output that have its channels
    normalisation: str = "none"  # "rms", or "nequix" for its weights of the irreps: before each gate
    readout_mlp: int = 16  # width between the two linear layers of the readout; 0: one layer
    last_readout_only: bool = True  # the only one
    num_heads: int = 1
    species_neighbors: tuple[float, ...] = ()  # avg_num_neighbors by the species that sends; empty: one for all
    pair_repulsion: ZBLConfig | None = None  # which the potential adds
    tabulable = True  # see `architectures`

    def __post_init__(self):
        check_common(self, highest_l=6)
        check_radial_basis(self)
        check_repulsion(self)
        numbers = self.species_neighbors
        proper = isinstance(numbers, list | tuple) and len(numbers) in (0, self.num_species)
        proper = proper and all(isinstance(n, int | float) and 0 < n < float("inf") for n in numbers)
        require(proper, self, "species_neighbors", "a list of one positive number per species, or empty")
        object.__setattr__(self, "species_neighbors", tuple(numbers))
        check_fixed(self, radial="agnostic", correlation=1, update="gate", last_readout_only=True)
        check_layers(self)
        check_choice(self, "normalisation", ("none", *NORMS))
        for name in ("parity", "resnet"):
            check_flag(self, name)
        allowed = f"a whole number from 0 to {MAX_CHANNELS}"
        require(whole(self.embedding_channels, 0, MAX_CHANNELS), self, "embedding_channels", allowed)
        require(whole(self.readout_mlp, 0), self, "readout_mlp", "a whole number >= 0")
        check_features(self, self.parity)

    @property
    def features(self) -> list[o3.Irreps]:
        """Irreps of the features before, between and after the layers."""
        harmonics = harmonics_irreps(self.l_max, parity=-1 if self.parity else 1)
        features = layer_irreps(parse_irreps(self.hidden_irreps), harmonics, self.num_interactions)
        if self.embedding_channels:
            features[0] = o3.Irreps([(self.embedding_channels, "0e")])
        return features


class NequIP(torch.nn.Module):
    Config = NequIPConfig
    SPECIES_WEIGHTS = r"embedding|layers\.\d+\.skip\.maps\.\d+\.weight"
    SPECIES_TABLES = ("species_neighbors",)
    HEAD_WEIGHTS = {r"readout\.linear\.weight": 1}

    def __init__(self, config: NequIPConfig, seed: int = 0):
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        features = config.features
        channels = features[-1].dim  # even scalars
        self.embedding = normal_parameter((config.num_species, features[0].dim), generator)
        self.harmonics = SphericalHarmonics(config.l_max)
        self.radial = radial_basis(config)
        self.layers = torch.nn.ModuleList(
            Layer(config, features[t], features[t + 1], t == 0, generator) for t in range(config.num_interactions)
        )
        width = config.readout_mlp or channels
        self.hidden = Dense(channels, width, generator) if config.readout_mlp else torch.nn.Identity()
        self.readout = LinearReadout(width, config.num_heads, generator)

    def forward(self, vectors: Tensor, species: Tensor, senders: Tensor, receivers: Tensor) -> Tensor:
        vectors = vectors.to(self.embedding.dtype)
        edge_attrs = self.harmonics(vectors)
        edge_feats = self.radial(torch.linalg.vector_norm(vectors, dim=1))
        node_feats = [self.embedding.index_select(0, species).unsqueeze(1)]
        for layer in self.layers:
            node_feats = layer(node_feats, species, edge_attrs, edge_feats, senders, receivers)
        return self.readout(self.hidden(node_feats[0].squeeze(1)))


class Layer(torch.nn.Module):
    """One interaction: node features in, node features out."""

    def __init__(
        self,
        config: NequIPConfig,
        irreps_in: o3.Irreps,
        irreps_out: o3.Irreps,
        first: bool,
        generator: torch.Generator,
    ):
        super().__init__()
        self.residual = (config.interaction_first if first else config.interaction) == "residual"
        self.norm = 1.0 / config.avg_num_neighbors
        ratios = config.avg_num_neighbors / torch.tensor(config.species_neighbors, dtype=torch.float64)
        self.register_buffer("sender_norms", ratios.reshape(-1, 1, 1), persistent=False)
        self.gate = Gate(irreps_out)
        gated = self.gate.irreps_in
        self.linear_up = Linear(irreps_in, irreps_in, generator)
        self.convolution = Convolution(irreps_in, config.l_max, gated, -1 if config.parity else 1)
        widths = (config.num_bessel, *config.radial_mlp, self.convolution.num_weights)
        self.radial_mlp = RadialMLP(widths, generator)
        self.linear = Linear(self.convolution.irreps_out, gated, generator)
        matrices = config.num_species if config.skip == "species" else 1
        self.skip = SpeciesLinear(matrices, irreps_in if self.residual else gated, gated, generator)
        kinds = [] if config.normalisation == "none" else [config.normalisation]
        self.norms = torch.nn.ModuleList(RMSNorm(gated, kind) for kind in kinds)
        self.identity: list[int] = [  # per output block the input block added to it, or -1
            block_index(irreps_in, ir) if config.resnet and not first and irreps_in.count(ir) == mul else -1
            for mul, ir in irreps_out
        ]

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
        if self.sender_norms.numel():
            factors = self.sender_norms.index_select(0, species)
            sent = [block * factors for block in sent]
        weights = self.radial_mlp(edge_feats)
        out = self.linear(self.convolution(sent, edge_attrs, weights, senders, receivers))
        if self.residual:
            out = add_blocks(out, self.skip(node_feats, species), self.skip.targets)
        else:
            out = self.skip(out, species)
        for norm in self.norms:
            out = norm(out)
        out = self.gate(out)
        for target, source in enumerate(self.identity):
            if source >= 0:
                out[target] = out[target] + node_feats[source]
        return out
