"""A fourth architecture in one file: SchNet-like, invariant continuous-filter convolutions, on the bricks of `nn`.

    h⁰_i = W_{z_i}                                          embedding
    m_i  = 1/N̄ · Σ_j R(r_ij) ∘ W h_j                        continuous-filter convolution
    h'_i = h_i + W SiLU(W m_i)                              update
    E_i  = readout(h^T_i)                                   an MLP

Below the model are its registry line and its tiny config. `python examples/fourth_architecture.py` then runs every
physics test that the registered architectures inherit on it, from the source tree.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ase_equivariant.architectures import ARCHITECTURES
from ase_equivariant.architectures.validation import check_choice, check_common, check_features, require, whole
from ase_equivariant.nn.irreps import parse_irreps
from ase_equivariant.nn.linear import Dense, normal_parameter
from ase_equivariant.nn.radial import SILU_GAIN, RadialBasis, RadialMLP
from ase_equivariant.nn.readout import MLPReadout


@dataclass(frozen=True)
class SchNetConfig:
    num_species: int
    cutoff: float  # Å
    avg_num_neighbors: float
    num_bessel: int = 8
    envelope_power: int = 6
    radial_mlp: tuple[int, ...] = (64, 64)
    l_max: int = 0  # distances alone
    hidden_irreps: str = "64x0e"
    num_interactions: int = 3
    interaction_first: str = "residual"
    readout_mlp: int = 32
    num_heads: int = 1

    def __post_init__(self):
        check_common(self, highest_l=0)
        check_choice(self, "interaction_first", ("residual",))
        require(whole(self.readout_mlp, 1), self, "readout_mlp", "a whole number >= 1")
        check_features(self)


class SchNet(torch.nn.Module):
    Config = SchNetConfig
    SPECIES_WEIGHTS = "embedding"
    SPECIES_TABLES = ()
    HEAD_WEIGHTS = {r"readout\.hidden\.weight": 1, r"readout\.weight": 0}

    def __init__(self, config: SchNetConfig, seed: int = 0):
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        channels = parse_irreps(config.hidden_irreps).dim
        self.embedding = normal_parameter((config.num_species, channels), generator)
        self.radial = RadialBasis(config.cutoff, config.num_bessel, config.envelope_power)
        self.layers = torch.nn.ModuleList(Layer(config, channels, generator) for _ in range(config.num_interactions))
        self.readout = MLPReadout(channels, config.readout_mlp, config.num_heads, generator)

    def forward(self, vectors: Tensor, species: Tensor, senders: Tensor, receivers: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(vectors.to(self.embedding.dtype), dim=1)
        edge_feats = self.radial(lengths)
        node_feats = self.embedding.index_select(0, species)
        for layer in self.layers:
            node_feats = layer(node_feats, edge_feats, senders, receivers)
        return self.readout(node_feats)


class Layer(torch.nn.Module):
    """One interaction: the filter of the distance times the neighbour's features, summed, and an update."""

    def __init__(self, config: SchNetConfig, channels: int, generator: torch.Generator):
        super().__init__()
        self.norm = 1.0 / config.avg_num_neighbors
        self.linear_up = Dense(channels, channels, generator)
        self.radial_mlp = RadialMLP((config.num_bessel, *config.radial_mlp, channels), generator)
        self.linear = Dense(channels, channels, generator)
        self.linear_out = Dense(channels, channels, generator, SILU_GAIN)

    def forward(self, node_feats: Tensor, edge_feats: Tensor, senders: Tensor, receivers: Tensor) -> Tensor:
        sent = (self.linear_up(node_feats) * self.norm).index_select(0, senders)
        messages = torch.zeros_like(node_feats).index_add(0, receivers, sent * self.radial_mlp(edge_feats))
        return node_feats + self.linear_out(torch.nn.functional.silu(self.linear(messages)))


ARCHITECTURES["schnet"] = SchNet
TINY = {"cutoff": 4.0, "avg_num_neighbors": 4.0, "num_bessel": 6, "radial_mlp": (8,), "hidden_irreps": "8x0e"}


if __name__ == "__main__":
    import pytest

    tests = Path(__file__).resolve().parents[1] / "tests"
    sys.path.insert(0, str(tests))
    import tiny

    tiny.TINY["schnet"] = TINY  # what the `architecture` fixture of the tests goes through
    names = ("symmetry", "locality", "derivatives", "architectures", "restrict", "acceleration")
    files = [str(tests / f"test_{name}.py") for name in names]
    sys.exit(pytest.main([*files, "-k", "schnet", "-p", "no:cacheprovider", *sys.argv[1:]]))
