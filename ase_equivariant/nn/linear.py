"""Linear maps of channels, one matrix per irrep: the only linear maps that commute with rotations (Schur's lemma)."""

from __future__ import annotations

import math

import torch
from e3nn import o3
from torch import Tensor

from ase_equivariant.nn.irreps import block_index


def normal_parameter(shape: tuple[int, ...], generator: torch.Generator) -> torch.nn.Parameter:
    """A weight drawn from the unit normal distribution; the module that uses it divides by √(fan in)."""
    return torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))


def constant_parameter(shape: tuple[int, ...], value: float) -> torch.nn.Parameter:
    """A weight that is the same everywhere before it is learned."""
    return torch.nn.Parameter(torch.full(shape, value, dtype=torch.float64))


class Dense(torch.nn.Module):
    """gain · x W / √n_in on the last axis, plus a bias b that starts at zero where `bias` is set."""

    def __init__(self, n_in: int, n_out: int, generator: torch.Generator, gain: float = 1.0, bias: bool = False):
        super().__init__()
        self.weight = normal_parameter((n_in, n_out), generator)
        self.bias = constant_parameter((n_out,), 0.0) if bias else None
        self.norm = gain / math.sqrt(n_in)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.matmul(x, self.weight * self.norm)
        return x if self.bias is None else x + self.bias


class SpeciesDense(torch.nn.Module):
    """x_i W[z_i] / √n_in on the last axis: one matrix per species, or a single one whatever the species."""

    def __init__(self, num_species: int, n_in: int, n_out: int, generator: torch.Generator):
        super().__init__()
        self.weight = normal_parameter((num_species, n_in, n_out), generator)
        self.norm = 1.0 / math.sqrt(n_in)

    def forward(self, x: Tensor, species: Tensor) -> Tensor:
        weight = self.weight * self.norm
        if weight.shape[0] == 1:
            return torch.matmul(x, weight[0])
        present = torch.unique(species)
        if present.numel() == 1:
            return torch.matmul(x, weight.index_select(0, present)[0])
        out = torch.zeros(x.shape[:-1] + weight.shape[-1:], dtype=x.dtype, device=x.device)
        for i in range(present.numel()):
            nodes = torch.nonzero(species == present[i]).squeeze(1)
            rows = torch.matmul(x.index_select(0, nodes), weight.index_select(0, present[i : i + 1])[0])
            out = out.index_add(0, nodes, rows)
        return out


class Linear(torch.nn.Module):
    """One `Dense` per irrep that irreps_in and irreps_out share; `targets` are the blocks of irreps_out it gives."""

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, generator: torch.Generator):
        super().__init__()
        self.sources, self.targets = shared_blocks(irreps_in, irreps_out)
        self.maps = torch.nn.ModuleList(
            Dense(irreps_in[source].mul, irreps_out[target].mul, generator)
            for source, target in zip(self.sources, self.targets)
        )

    def forward(self, blocks: list[Tensor]) -> list[Tensor]:
        out: list[Tensor] = []
        for i, dense in enumerate(self.maps):
            out.append(dense(blocks[self.sources[i]]))
        return out


class SpeciesLinear(torch.nn.Module):
    """One `SpeciesDense` per irrep that irreps_in and irreps_out share; `targets` are the blocks that it gives."""

    def __init__(self, num_species: int, irreps_in: o3.Irreps, irreps_out: o3.Irreps, generator: torch.Generator):
        super().__init__()
        self.sources, self.targets = shared_blocks(irreps_in, irreps_out)
        self.maps = torch.nn.ModuleList(
            SpeciesDense(num_species, irreps_in[source].mul, irreps_out[target].mul, generator)
            for source, target in zip(self.sources, self.targets)
        )

    def forward(self, blocks: list[Tensor], species: Tensor) -> list[Tensor]:
        out: list[Tensor] = []
        for i, dense in enumerate(self.maps):
            out.append(dense(blocks[self.sources[i]], species))
        return out


def shared_blocks(irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> tuple[list[int], list[int]]:
    """Where the irreps stand that both lists have: in irreps_in, and in irreps_out in whose order they come."""
    pairs = [(block_index(irreps_in, ir), target) for target, (_, ir) in enumerate(irreps_out)]
    pairs = [pair for pair in pairs if pair[0] >= 0]
    return [source for source, _ in pairs], [target for _, target in pairs]


def add_blocks(blocks: list[Tensor], added: list[Tensor], targets: list[int]) -> list[Tensor]:
    """The blocks with those of `added` on top, which belong to the positions `targets`."""
    out = list(blocks)
    for i in range(len(added)):
        out[targets[i]] = out[targets[i]] + added[i]
    return out
