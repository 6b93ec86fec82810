"""The Ziegler-Biersack-Littmark repulsion of two nuclei behind their electrons, for atoms that come too close.

    E_i = ½ Σ_j  k Z_i Z_j / r · φ(r/a_ij) · f(r/r_ij)        φ(x) = Σ_n c_n exp(-d_n x)      a_ij = ℓ / (Z_i^p + Z_j^p)

with the polynomial envelope f of the radial functions, which ends it at the sum r_ij of the two species' radii. Models
that were trained with it rely on it, and no data tell a model what atoms do at half their distance.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ase_equivariant.nn.radial import polynomial_envelope
from ase_equivariant.text import shown


@dataclass(frozen=True)
class ZBLConfig:
    radii: tuple[float, ...]  # Å, one per species
    envelope_power: int = 6
    scaled: bool = False  # multiplied by the potential's scale, like the energies of the network
    coulomb: float = 14.3996  # k, eV Å
    length: float = 0.46853  # ℓ, Å, 0.8854 Bohr radii
    exponent: float = 0.23  # p
    coefficients: tuple[float, ...] = (0.1818, 0.5099, 0.2802, 0.02817)  # c
    decays: tuple[float, ...] = (3.2, 0.9423, 0.4028, 0.2016)  # d

    def __post_init__(self):
        for name in ("radii", "coefficients", "decays"):
            given = getattr(self, name)
            if not isinstance(given, list | tuple):
                raise ValueError(f"{name} of the pair repulsion is {shown(given)}; allowed: a list of positive numbers")
            object.__setattr__(self, name, tuple(given))
        numbers = (*self.radii, *self.coefficients, *self.decays, self.coulomb, self.length, self.exponent)
        proper = all(isinstance(x, int | float) and 0 < x <= sys.float_info.max for x in numbers)
        if not proper or len(self.coefficients) != len(self.decays):
            raise ValueError(f"the pair repulsion has the constants {asdict(self)}; all must be positive numbers")
        if not isinstance(self.scaled, bool):
            raise ValueError(f"scaled of the pair repulsion is {self.scaled!r}; allowed: true or false")
        if type(self.envelope_power) is not int or not 1 <= self.envelope_power <= 100:
            raise ValueError(f"envelope_power of the pair repulsion is {self.envelope_power!r}; allowed: 1 to 100")


class ZBL(torch.nn.Module):
    """Edge vectors to the repulsion that each atom takes part in, [n_nodes] eV; edges beyond `cutoff` play no role."""

    def __init__(self, config: ZBLConfig, atomic_numbers: list[int], cutoff: float):
        super().__init__()
        if len(config.radii) != len(atomic_numbers):
            raise ValueError(f"the pair repulsion has {len(config.radii)} radii for {len(atomic_numbers)} species")
        self.cutoff, self.power, self.scaled = cutoff, config.envelope_power, config.scaled
        self.terms: list[tuple[float, float]] = list(zip(config.coefficients, config.decays))
        charges = torch.tensor(atomic_numbers, dtype=torch.float64)
        powers, radii = charges**config.exponent, torch.tensor(config.radii, dtype=torch.float64)
        strengths = 0.5 * config.coulomb * torch.outer(charges, charges)
        self.register_buffer("strengths", strengths, persistent=False)
        self.register_buffer("widths", config.length / (powers.unsqueeze(1) + powers), persistent=False)
        self.register_buffer("ends", radii.unsqueeze(1) + radii, persistent=False)

    def forward(self, vectors: Tensor, species: Tensor, senders: Tensor, receivers: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        sent, received = species.index_select(0, senders), species.index_select(0, receivers)
        x = lengths / self.widths[sent, received]
        screening = torch.zeros_like(x)
        for coefficient, decay in self.terms:
            screening = screening + coefficient * torch.exp(-decay * x)
        envelope = polynomial_envelope(lengths / self.ends[sent, received], self.power) * (lengths < self.cutoff)
        energies = self.strengths[sent, received] / lengths * screening * envelope
        zeros = torch.zeros(species.shape[0], dtype=energies.dtype, device=energies.device)
        return zeros.index_add(0, receivers, energies)
