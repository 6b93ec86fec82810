"""Potential: an architecture with its reference energies, its scale and shift, and a pair repulsion if it has one.

    E_i = E0[h, z_i] + scale[h, z_i] · (ε_i[h] + V_i) + shift[h, z_i]

with ε_i the architecture's node energy, z_i the atom's species and h the head. The pair repulsion V_i, which the
architecture's config describes, may also stand outside the scale. The sum is float64 whatever the
network's precision: E0 is thousands of eV, forces live in the last digits of ε.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ase_equivariant.nn.pair_repulsion import ZBL

TABLES = ("atomic_energies", "scale", "shift")  # of a potential, each [n_heads, n_species]


class Potential(torch.nn.Module):
    """An interatomic potential: edge vectors in, energy of each atom out.

    Parameters
    ----------
    architecture : an instance of a class in `ARCHITECTURES`
    atomic_numbers : sorted Z of the species the model knows; `species` indexes this tuple
    atomic_energies, scale, shift : [n_heads, n_species] eV, dimensionless, eV
    heads : names of the heads
    metadata : what a model file says about itself (see `checkpoint`)
    """

    __jit_unused_properties__ = ["metadata", "cutoff", "dtype", "attributes"]
    __constants__ = ["attributed"]  # TorchScript then compiles the call that the architecture has

    def __init__(
        self,
        architecture: torch.nn.Module,
        *,
        atomic_numbers: Sequence[int],
        atomic_energies: Sequence[Sequence[float]],
        scale: Sequence[Sequence[float]],
        shift: Sequence[Sequence[float]],
        heads: Sequence[str] = ("default",),
        metadata: dict | None = None,
    ):
        super().__init__()
        self.architecture = architecture
        self.atomic_numbers = [int(z) for z in atomic_numbers]
        self.heads = list(heads)
        self._metadata = metadata or {}
        shape = (len(self.heads), len(self.atomic_numbers))
        for name, values in zip(TABLES, (atomic_energies, scale, shift), strict=True):
            table = torch.as_tensor(values, dtype=torch.float64).clone()
            if table.shape != shape:
                raise ValueError(f"{name} has shape {tuple(table.shape)}; it must be (heads, species) = {shape}")
            self.register_buffer(name, table)
        repulsion = getattr(architecture.config, "pair_repulsion", None)
        self.attributed = len(self.attributes) > 0
        self.pair_repulsion = None if repulsion is None else ZBL(repulsion, self.atomic_numbers, self.cutoff)

    @property
    def metadata(self) -> dict:
        return self._metadata

    @property
    def cutoff(self) -> float:
        return self.architecture.config.cutoff

    @property
    def attributes(self) -> tuple[tuple[str, int, int, int], ...]:
        """What the model wants to know of a structure, by (key in Atoms.info, lowest, highest and usual value)."""
        return getattr(self.architecture.config, "attributes", ())

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network; geometry and energy sums are always float64."""
        return next(self.architecture.parameters()).dtype

    @torch.jit.unused
    def astype(self, dtype: torch.dtype) -> Potential:
        """A copy whose network has this precision, its constants derived anew; reference energies stay float64."""
        architecture = type(self.architecture)(self.architecture.config)
        architecture.load_state_dict(self.architecture.state_dict())
        return Potential(
            architecture.to(dtype),
            atomic_numbers=self.atomic_numbers,
            atomic_energies=self.atomic_energies,
            scale=self.scale,
            shift=self.shift,
            heads=self.heads,
            metadata=dict(self.metadata),
        ).to(self.scale.device)

    def forward(
        self,
        vectors: Tensor,
        species: Tensor,
        senders: Tensor,
        receivers: Tensor,
        heads: Tensor,
        attributes: Tensor | None = None,
    ) -> Tensor:
        """Energy of each atom, float64 [n_nodes] eV.

        `vectors` [n_edges, 3] Å float64, `species` [n_nodes], `senders` and `receivers` [n_edges], `heads` [n_nodes],
        `attributes` [n_nodes, n_attributes] where the model has any.
        """
        if self.attributed:
            outputs = self.architecture(vectors, species, senders, receivers, attributes)  # [n_nodes, n_heads]
        else:
            outputs = self.architecture(vectors, species, senders, receivers)
        node_energies = outputs.gather(1, heads.unsqueeze(1)).squeeze(1).to(torch.float64)
        scale = self.scale[heads, species]
        constant = self.atomic_energies[heads, species] + self.shift[heads, species]
        if self.pair_repulsion is not None:
            repulsion = self.pair_repulsion(vectors, species, senders, receivers)
            if self.pair_repulsion.scaled:
                node_energies = node_energies + repulsion
            else:
                constant = constant + repulsion
        return constant + scale * node_energies
