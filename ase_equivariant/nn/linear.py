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


class Dense(torch.nn.Module):
    """gain · x W / √n_in on the last axis."""

    def __init__(self, n_in: int, n_out: int, generator: torch.Generator, gain: float = 1.0):
        super().__init__()
        self.weight = normal_parameter((n_in, n_out), generator)
        self.norm = gain / math.sqrt(n_in)

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.weight * self.norm)


class SpeciesDense(torch.nn.Module):
    """x_i W[z_i] / √n_in on the last axis: one matrix per species."""

    def __init__(self, num_species: int, n_in: int, n_out: int, generator: torch.Generator):
        super().__init__()
        self.weight = normal_parameter((num_species, n_in, n_out), generator)
        self.norm = 1.0 / math.sqrt(n_in)

    def forward(self, x: Tensor, species: Tensor) -> Tensor:
        weight = self.weight * self.norm
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
    """One `Dense` per irrep of irreps_out, each fed by the block of the same irrep in irreps_in."""

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, generator: torch.Generator):
        super().__init__()
        self.sources: list[int] = [block_index(irreps_in, ir) for _, ir in irreps_out]
        self.maps = torch.nn.ModuleList(
            Dense(irreps_in[source].mul, mul, generator) for source, (mul, _) in zip(self.sources, irreps_out)
        )

    def forward(self, blocks: list[Tensor]) -> list[Tensor]:
        out: list[Tensor] = []
        for i, dense in enumerate(self.maps):
            out.append(dense(blocks[self.sources[i]]))
        return out


class SpeciesLinear(torch.nn.Module):
    """One `SpeciesDense` per irrep that irreps_in and irreps_out share, added onto the blocks of irreps_out."""

    def __init__(self, num_species: int, irreps_in: o3.Irreps, irreps_out: o3.Irreps, generator: torch.Generator):
        super().__init__()
        self.sources: list[int] = []
        self.targets: list[int] = []
        maps = []
        for target, (mul, ir) in enumerate(irreps_out):
            source = block_index(irreps_in, ir)
            if source >= 0:
                self.sources.append(source)
                self.targets.append(target)
                maps.append(SpeciesDense(num_species, irreps_in[source].mul, mul, generator))
        self.maps = torch.nn.ModuleList(maps)

    def forward(self, blocks: list[Tensor], species: Tensor) -> list[Tensor]:
        out: list[Tensor] = []
        for i, dense in enumerate(self.maps):
            out.append(dense(blocks[self.sources[i]], species))
        return out
