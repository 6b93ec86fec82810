"""MACE: many-body messages from products of an equivariant density (Batatia et al. 2022, arXiv 2206.07697).

    h⁰_i = W_{z_i}                                           embedding
    A_i  = 1/√N̄ · W Σ_j R(r_ij) Y(r_ij) ⊗ W h_j               convolution             eq. (8)
    m_i  = Σ_ν Σ_η W_{z_i,η} 𝒞_η (A_i ⊗ … ⊗ A_i)             symmetric contraction   eqs. (10), (11)
    h'_i = W m_i (+ W_{z_i} h_i)                             update                  eq. (12)
    E_i  = Σ_t readout_t(h^t_i)                              linear, at last an MLP  eq. (13)

Kinds of interaction, in the first layer and in the later ones:

    "nonresidual"         W_{z_i} A_i in the place of A_i, and no W_{z_i} h_i: an atom without neighbours has no energy
                          of interaction at all
    "residual"            as above
    "density"             "nonresidual" and "density_residual" "residual", with A_i = W Σ_j … / (1 + ρ_i) for a smooth
    "density_residual"    number of neighbours ρ_i = Σ_j tanh((w · e(r_ij))²)
    "attention_residual"  R sees scalars of h_i and h_j too; the skip is the same for all species
    "nonlinear"           R and ρ see both species; A_i = W' gate(W Σ_j … / (α + β ρ_i) + W" h_i); the skip as above

A model may also know the total charge, the spin and other whole numbers q_a of the structure that an atom belongs to:
then h⁰_i = W_{z_i} + SiLU(Σ_a T_a[q_a]), and with `embedding_readout` E_i has a share that is linear in h⁰_i as well.

Elsewhere the sum is divided by √N̄, N̄ the average number of neighbours, where the paper divides by N̄. The functions are
the same, and so is where they start and how fast they learn: the weights of a product of ν factors are drawn N̄^(ν/2)
smaller, and so are their steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from e3nn import o3
from torch import Tensor

from ase_equivariant.architectures.mace_layers import Layer, NonlinearLayer
from ase_equivariant.architectures.validation import (
    MAX_CHANNELS,
    RADIAL_BASES,
    SKIPS,
    check_attributes,
    check_choice,
    check_common,
    check_fixed,
    check_flag,
    check_radial_basis,
    check_repulsion,
    parsed,
    require,
    whole,
)
from ase_equivariant.nn.attributes import AttributeEmbedding
from ase_equivariant.nn.harmonics import SphericalHarmonics
from ase_equivariant.nn.irreps import harmonics_irreps, parse_irreps
from ase_equivariant.nn.linear import normal_parameter
from ase_equivariant.nn.pair_repulsion import ZBLConfig
from ase_equivariant.nn.radial import radial_basis
from ase_equivariant.nn.readout import GAINS, BiasReadout, LinearReadout, MLPReadout, NoReadout
from ase_equivariant.nn.transforms import CONSTANTS, DistanceTransform

FLAGS = ("apply_cutoff", "agnostic_product", "parity", "last_readout_only", "embedding_readout")
MAX_COUPLING = 4_000_000  # entries of a dense coupling tensor; more takes minutes and gigabytes to set up
CHOICES = {
    **dict.fromkeys(
        ("interaction_first", "interaction"),
        ("nonresidual", "residual", "density", "density_residual", "attention_residual", "nonlinear"),
    ),
    "skip": SKIPS,
    "distance_transform": ("none", *CONSTANTS),
    "readout_activation": tuple(GAINS),
}


@dataclass(frozen=True)
class MACEConfig:
    num_species: int
    cutoff: float  # Å
    avg_num_neighbors: float  # mean number of neighbours within the cutoff, over all training atoms
    num_bessel: int = 8
    bessel_decay: float = 0.0  # p: the n-th Bessel function has n^-p of the amplitude of the first; larger is smoother
    bessel_norm: str = "paper"  # or "unit": larger ones, for radial functions that are linear in the basis
    radial_basis: str = "bessel"  # or "gaussian" or "chebyshev"
    trainable_bessel: bool = False  # frequencies learned from nπ/r_c on
    envelope_power: int = 5
    radial: str = "agnostic"  # the only one
    radial_mlp: tuple[int, ...] = (64, 64, 64)  # hidden widths; none: radial functions linear in the basis
    l_max: int = 3  # of the edges' harmonics
    parity: bool = True  # False ignores the inversion: all features are even
    hidden_irreps: str = "64x0e+64x1o"  # of the messages between layers; equal channels
    num_interactions: int = 2
    correlation: int | tuple[int, ...] = 3  # order of the product ν, or one per layer; body order ν + 1
    update: str = "linear"  # the only one
    interaction_first: str = "nonresidual"
    interaction: str = "residual"  # of the later layers
    skip: str = "species"  # W_{z_i}: a matrix per species, or one "shared" by all, as the last two kinds have it
    normalisation: str = "none"  # the only one
    readout_mlp: int = 16  # hidden width of the last readout; 0: linear like the others
    readout: str = "mlp"  # of the last layer
    readout_activation: str = "silu"
    last_readout_only: bool = False
    num_heads: int = 1
    distance_transform: str = "none"  # of the distance that the radial basis sees
    transform_constants: tuple[float, ...] = ()  # of the transform, none for the usual ones
    covalent_radii: tuple[float, ...] = ()  # Å, one per species, for the transform
    apply_cutoff: bool = True  # envelope on the radial basis; False puts it on the radial network's output
    edge_irreps_first: str = ""  # of what is sent along edges in the first layer, and
    edge_irreps: str = ""  # in the later ones; all the node has where empty
    agnostic_product: bool = False  # weights of the products are the same for all species
    pair_repulsion: ZBLConfig | None = None  # which the potential adds
    attributes: tuple[tuple[str, int, int, int], ...] = ()  # key in Atoms.info, lowest, highest and usual value of each
    embedding_readout: bool = False  # of the features before the first layer

    def __post_init__(self):
        check_common(self)
        for name, choices in CHOICES.items():
            check_choice(self, name, choices)
        check_fixed(self, radial="agnostic", update="linear", normalisation="none")
        self._check_readout()
        for name in FLAGS:
            check_flag(self, name)
        rule = f"'Kx0e+Kx1o+Kx2e+…' with one K ≤ {MAX_CHANNELS}, scalars first, parity (-1)^l and l up to l_max"
        require(_suits_messages(self.hidden_irreps, self), self, "hidden_irreps", rule)
        check_radial_basis(self, (*RADIAL_BASES, "chebyshev"))  # of published models
        check_repulsion(self)
        check_attributes(self)
        self._check_edges()
        self._check_transform()
        orders = self.correlation if isinstance(self.correlation, list | tuple) else (self.correlation,)
        proper = len(orders) in (1, self.num_interactions) and all(whole(order, 1, 4) for order in orders)
        require(proper, self, "correlation", "a whole number from 1 to 4, or a list of one per layer")
        if isinstance(self.correlation, list):
            object.__setattr__(self, "correlation", tuple(self.correlation))
        entries = (self.l_max + 1) ** (2 * max(orders)) * sum(ir.dim for _, ir in parse_irreps(self.hidden_irreps))
        rule = f"less with l_max = {self.l_max} and hidden_irreps = {self.hidden_irreps!r}, or these smaller"
        require(entries <= MAX_COUPLING, self, "correlation", rule)

    def _check_readout(self) -> None:
        known = self.readout in ("mlp", "bias_mlp")
        require(known, self, "readout", "mlp or bias_mlp; readout_mlp = 0 makes it linear")
        lowest = 1 if self.readout == "bias_mlp" else 0
        rule = f"a whole number >= {lowest} with readout = {self.readout!r}"
        require(whole(self.readout_mlp, lowest), self, "readout_mlp", rule)
        used = self.readout_mlp > 0 or self.readout_activation == "silu"
        require(used, self, "readout_activation", "silu with readout_mlp = 0")

    def _check_edges(self) -> None:
        kinds = {"edge_irreps_first": ["0e"], "edge_irreps": [str(ir) for _, ir in parsed(self.hidden_irreps)]}
        for name, allowed in kinds.items():
            edge = parsed(getattr(self, name))
            sent = [str(ir) for _, ir in edge]
            rule = f"empty, or a list of irreps from {' '.join(allowed)}, 0e first, at most {MAX_CHANNELS} of each"
            proper = sent[:1] == ["0e"] and set(sent) <= set(allowed) and all(mul <= MAX_CHANNELS for mul, _ in edge)
            require(getattr(self, name) == "" or proper, self, name, rule)

    def _check_transform(self) -> None:
        counts = {
            "transform_constants": (0, len(CONSTANTS.get(self.distance_transform, ()))),
            "covalent_radii": (0 if self.distance_transform == "none" else self.num_species,),
        }
        for name, lengths in counts.items():
            numbers = getattr(self, name)
            proper = isinstance(numbers, list | tuple) and len(numbers) in lengths
            proper = proper and all(isinstance(x, int | float) and 0 < x < 1000 for x in numbers)
            rule = f"a list of {' or '.join(map(str, lengths))} positive numbers"
            require(proper, self, name, f"{rule} with distance_transform = {self.distance_transform!r}")
            object.__setattr__(self, name, tuple(numbers))

    @property
    def correlations(self) -> tuple[int, ...]:
        """The order of the product in each layer."""
        orders = self.correlation if isinstance(self.correlation, tuple) else (self.correlation,)
        return orders if len(orders) == self.num_interactions else orders * self.num_interactions

    @property
    def features(self) -> list[o3.Irreps]:
        """Irreps of the features before, between and after the layers."""
        hidden = parse_irreps(self.hidden_irreps)
        return [hidden[:1], *[hidden] * (self.num_interactions - 1), hidden[:1]]

    @property
    def product_species(self) -> int:
        """How many species the weights of the products tell apart."""
        return 1 if self.agnostic_product else self.num_species

    @property
    def tabulable(self) -> bool:
        """Whether what enters the radial networks is a function of the distance alone, and enters nothing else."""
        kinds = {self.interaction_first, self.interaction}
        return self.distance_transform == "none" and self.apply_cutoff and kinds <= {"residual", "nonresidual"}


def _suits_messages(text: object, config: MACEConfig) -> bool:
    """Scalars first, since readouts take block 0; equal channels and natural parity, since products do."""
    hidden = parsed(text)
    allowed = [ir for _, ir in harmonics_irreps(config.l_max, parity=-1 if config.parity else 1)]
    kinds = [ir for _, ir in hidden]
    equal = len({mul for mul, _ in hidden}) == 1 and hidden[0].mul <= MAX_CHANNELS
    return kinds[:1] == allowed[:1] and equal and all(ir in allowed for ir in kinds)


class MACE(torch.nn.Module):
    Config = MACEConfig
    SPECIES_WEIGHTS = (
        r"embedding|layers\.\d+\.(skip\.maps\.\d+\.weight|contraction\.[\w.]+\.weight|\w+\.(sent|received))"
    )
    SPECIES_TABLES = ("covalent_radii",)
    HEAD_WEIGHTS = {
        r"(readouts\.\d+|embedding_readout)\.(linear|hidden|first)\.weight": 1,
        r"readouts\.\d+\.(weight|second|second_bias|bias)": 0,
    }

    def __init__(self, config: MACEConfig, seed: int = 0):
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        features = config.features
        channels = features[0].dim
        self.embedding = normal_parameter((config.num_species, channels), generator)
        self.attributes = AttributeEmbedding(config.attributes, channels, generator) if config.attributes else None
        self.harmonics = SphericalHarmonics(config.l_max)
        self.radial = radial_basis(config, config.apply_cutoff)
        self.transform = None
        if config.distance_transform != "none":
            constants = config.transform_constants, config.covalent_radii
            self.transform = DistanceTransform(config.distance_transform, *constants)
        self.late_envelope = not config.apply_cutoff
        kinds = {config.interaction_first, config.interaction}
        self.stepped = config.apply_cutoff and not kinds.isdisjoint(("attention_residual", "nonlinear"))
        self.layers = torch.nn.ModuleList()
        self.readouts = torch.nn.ModuleList()
        self.embedding_readout = None
        if config.embedding_readout:
            self.embedding_readout = LinearReadout(channels, config.num_heads, generator)
        for t, correlation in enumerate(config.correlations):
            last = t == config.num_interactions - 1
            kind = config.interaction_first if t == 0 else config.interaction
            irreps_edge = parsed(config.edge_irreps_first if t == 0 else config.edge_irreps) or features[t]
            parts = (features[t], irreps_edge, features[t + 1], correlation, generator)
            self.layers.append(NonlinearLayer(config, *parts) if kind == "nonlinear" else Layer(config, kind, *parts))
            self.readouts.append(_readout(config, channels, last, generator))

    def forward(
        self, vectors: Tensor, species: Tensor, senders: Tensor, receivers: Tensor, attributes: Tensor | None = None
    ) -> Tensor:
        return self.contributions(vectors, species, senders, receivers, attributes).sum(1)

    @torch.jit.export
    def contributions(
        self, vectors: Tensor, species: Tensor, senders: Tensor, receivers: Tensor, attributes: Tensor | None = None
    ) -> Tensor:
        """Each layer's share of the node energies, [n_nodes, num_interactions, num_heads]; that of an embedding comes
        before them."""
        vectors = vectors.to(self.embedding.dtype)
        edge_attrs = self.harmonics(vectors)
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        if self.transform is None:
            edge_feats = self.radial(lengths)
        else:
            transformed = self.transform(lengths, species.index_select(0, senders), species.index_select(0, receivers))
            edge_feats = self.radial(lengths, transformed)
        envelope: Tensor | None = None
        if self.late_envelope:
            envelope = self.radial.envelope(lengths).unsqueeze(-1)
        elif self.stepped:  # these radial networks do not vanish where the radial basis does
            envelope = (lengths < self.radial.cutoff).to(lengths.dtype).unsqueeze(-1)
        scalars = self.embedding.index_select(0, species)
        if self.attributes is not None:
            assert attributes is not None
            scalars = scalars + self.attributes(attributes)
        node_feats = [scalars.unsqueeze(1)]
        energies: list[Tensor] = []
        if self.embedding_readout is not None:
            energies.append(self.embedding_readout(scalars))
        for layer, readout in zip(self.layers, self.readouts):
            node_feats = layer(node_feats, species, edge_attrs, edge_feats, envelope, senders, receivers)
            energies.append(readout(node_feats[0].squeeze(1)))
        return torch.stack(energies, 1)


def _readout(config: MACEConfig, channels: int, last: bool, generator: torch.Generator) -> torch.nn.Module:
    """The last layer's readout is the one that the config names; those before are linear, or absent."""
    if not last and config.last_readout_only:
        return NoReadout(config.num_heads)
    if not last or config.readout_mlp == 0:
        return LinearReadout(channels, config.num_heads, generator)
    kind = MLPReadout if config.readout == "mlp" else BiasReadout
    return kind(channels, config.readout_mlp, config.num_heads, generator, config.readout_activation)
