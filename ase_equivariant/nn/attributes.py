"""What a model knows of a structure besides its atoms: whole numbers such as the total charge and the spin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ase_equivariant.nn.linear import normal_parameter


class AttributeEmbedding(torch.nn.Module):
    """SiLU(1/√n · Σ_a T_a[q_a]) for an atom's n numbers q_a; `[n_nodes, n] → [n_nodes, channels]`.

    `attributes` has name, lowest, highest and usual value of each; the tables T_a stand below each other in `table`.
    """

    def __init__(self, attributes: Sequence[tuple[str, int, int, int]], channels: int, generator: torch.Generator):
        super().__init__()
        starts, rows = [], 0
        for _, lowest, highest, _ in attributes:
            starts.append(rows - lowest)
            rows += highest - lowest + 1
        self.register_buffer("starts", torch.tensor(starts), persistent=False)
        self.table = normal_parameter((rows, channels), generator)
        self.norm = len(starts) ** -0.5

    def forward(self, values: Tensor) -> Tensor:
        require_attributes(values.shape[1], self.starts.shape[0])
        entries = self.table.index_select(0, (values + self.starts).flatten())
        entries = entries.reshape(values.shape + self.table.shape[1:])  # of no atoms, too
        return torch.nn.functional.silu(self.norm * entries.sum(1))


def require_attributes(found: int, needed: int) -> None:
    """Refuse a graph that was made without the numbers of its structures."""
    if found != needed:
        raise ValueError(
            "this model needs the attributes of its structures: from_atoms(..., attributes=potential.attributes)"
        )
