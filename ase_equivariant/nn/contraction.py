"""The symmetric contraction: products of up to ν factors A, coupled to the wanted irreps, channel by channel.

    m_i,k LM = Σ_ν Σ_η W^ν_z,k,η Σ_monomials 𝒞^ν_ηM,monomial (A_i,k · … · A_i,k)        (MACE eqs. 10 and 11)

The factors are all the same A, so every coupling is a polynomial with few distinct monomials: 94 for L = 0, l_max 3,
ν 3, where the dense coupling tensor has 16³. They are built by successive products and meet 𝒞 in one matrix product.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from e3nn import o3
from torch import Tensor

from ase_equivariant.nn.coupling import symmetric_products
from ase_equivariant.nn.linear import normal_parameter


class SymmetricContraction(torch.nn.Module):
    """Products of A blocks l = 0 … l_max (equal channels) → blocks of irreps_out, per species.

    `num_species` 1 has one set of weights, whatever the species. `parity` is that of `Convolution`: 1 counts all blocks
    as even. Initial weights of order ν are multiplied by `start`^ν, as if the factors were that small; so are the steps
    that training takes with them, their `pace`.
    """

    def __init__(
        self,
        l_max: int,
        irreps_out: o3.Irreps,
        correlation: int,
        num_species: int,
        generator: torch.Generator,
        parity: int = -1,
        start: float = 1.0,
    ):
        super().__init__()
        self.outputs = torch.nn.ModuleList()
        for channels, ir in irreps_out:
            couplings = [symmetric_products(l_max, nu, ir.l, parity) for nu in range(1, correlation + 1)]
            self.outputs.append(_Output(l_max, couplings, channels, num_species, generator, start))

    def forward(self, blocks: list[Tensor], species: Tensor) -> list[Tensor]:
        factors = torch.cat(blocks, 1)  # [n_nodes, (l_max+1)², channels]
        out: list[Tensor] = []
        for output in self.outputs:
            out.append(output(factors, species))
        return out


class Extension(torch.nn.Module):
    """Products with one more factor each: rows `parents` of the shorter products times rows `lasts` of the factors."""

    def __init__(self, shorter: list[tuple[int, ...]], table: list[tuple[int, ...]]):
        super().__init__()
        row = {monomial: i for i, monomial in enumerate(shorter)}
        self.register_buffer("parents", torch.tensor([row[m[:-1]] for m in table]), persistent=False)
        self.register_buffer("lasts", torch.tensor([m[-1] for m in table]), persistent=False)

    def forward(self, products: Tensor, factors: Tensor) -> Tensor:
        return products.index_select(1, self.parents) * factors.index_select(1, self.lasts)


class _Output(torch.nn.Module):
    """All products that couple to one irrep L, summed over the orders 1 … ν."""

    def __init__(
        self,
        l_max: int,
        couplings: list[tuple[list[tuple[int, ...]], np.ndarray]],
        channels: int,
        num_species: int,
        generator: torch.Generator,
        start: float,
    ):
        super().__init__()
        tables = [set(monomials) for monomials, _ in couplings]
        for nu in range(len(couplings) - 1, 0, -1):
            tables[nu - 1] |= {monomial[:-1] for monomial in tables[nu]}  # what a longer product is built from
        components = [(i,) for i in range((l_max + 1) ** 2)]
        ordered = [components] + [sorted(table) for table in tables[1:]]
        self.extensions = torch.nn.ModuleList(Extension(*pair) for pair in pairwise(ordered))
        self.orders = torch.nn.ModuleList(
            _Order(table, *coupling, channels, num_species, generator, start**nu)
            for nu, (table, coupling) in enumerate(zip(ordered, couplings, strict=True), 1)
        )

    def forward(self, factors: Tensor, species: Tensor) -> Tensor:
        products = [factors]
        for extension in self.extensions:
            products.append(extension(products[-1], factors))
        terms: list[Tensor] = []
        for nu, order in enumerate(self.orders):
            terms.append(order(products[nu], species))
        return torch.stack(terms).sum(0)


class _Order(torch.nn.Module):
    """The weighted couplings of the products of one order."""

    def __init__(
        self,
        table: list[tuple[int, ...]],
        monomials: list[tuple[int, ...]],
        coefficients: np.ndarray,
        channels: int,
        num_species: int,
        generator: torch.Generator,
        start: float,
    ):
        super().__init__()
        column = {monomial: i for i, monomial in enumerate(table)}
        self.num_products, self.dim = coefficients.shape[:2]
        dense = torch.zeros(self.num_products, self.dim, len(table), dtype=torch.float64)
        dense[:, :, [column[m] for m in monomials]] = torch.from_numpy(coefficients)
        self.register_buffer("coefficients", dense.flatten(0, 1), persistent=False)
        shape = (num_species, self.num_products, channels)
        # drawn small rather than divided by their number in use: Adam's steps then count for more
        scale = start / max(self.num_products, 1)
        self.pace = start
        self.weight = torch.nn.Parameter(normal_parameter(shape, generator).detach() * scale)

    def forward(self, products: Tensor, species: Tensor) -> Tensor:
        coupled = torch.matmul(self.coefficients, products).unflatten(1, (self.num_products, self.dim))
        weight = self.weight if self.weight.shape[0] == 1 else self.weight.index_select(0, species)
        return (coupled * weight.unsqueeze(2)).sum(1)
