"""Distances as the radial basis sees them: stretched by the sizes of the two atoms, so that all bonds look alike.

With s = (ρ_z + ρ_z')/2 the mean covalent radius of the pair:

    agnesi       x = 1 / (1 + a (r/s)^q / (1 + (r/s)^(q-p)))         from 1 at contact towards 0 (Witt et al. 2023)
    soft         x = r₋ + (r - r₋) ½ (1 + tanh(α (r - r̄) / (r₊ - r₋)))       r± = 8/3 s and 3/2 s, r̄ their mean
    soft_shift   x = r + ½ - ½ tanh(2r/s + a (2r/s)^b)                the form that soft had before

The envelope keeps the distance itself, so that nothing is felt beyond the cutoff.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CONSTANTS = {"agnesi": (1.0805, 0.9183, 4.5791), "soft": (4.0,), "soft_shift": (0.2, 3.0)}  # (a, q, p), (α,), (a, b)


class DistanceTransform(torch.nn.Module):
    """`lengths [n_edges]` Å and the species at both ends to transformed lengths, [n_edges].

    Parameters
    ----------
    kind : a key of `CONSTANTS`, which holds the usual constants
    constants : other constants, or none
    covalent_radii : Å, one per species
    """

    def __init__(self, kind: str, constants: Sequence[float], covalent_radii: Sequence[float]):
        super().__init__()
        self.kind = kind
        self.constants: list[float] = [float(c) for c in constants or CONSTANTS[kind]]
        self.register_buffer("radii", torch.tensor(list(covalent_radii), dtype=torch.float64), persistent=False)

    def forward(self, lengths: Tensor, sent: Tensor, received: Tensor) -> Tensor:
        size = 0.5 * (self.radii.index_select(0, sent) + self.radii.index_select(0, received))
        c = self.constants
        if self.kind == "agnesi":
            x = lengths / size
            return 1.0 / (1.0 + c[0] * x.pow(c[2]) / (x.pow(c[2] - c[1]) + 1.0))
        if self.kind == "soft":
            near, far = 1.5 * size, 8.0 / 3.0 * size
            step = torch.tanh(c[0] / (far - near) * (lengths - 0.5 * (near + far)))
            return near + (lengths - near) * (0.5 * (1.0 + step))
        x = 2.0 * lengths / size
        return lengths + 0.5 - 0.5 * torch.tanh(x + c[0] * x.pow(c[1]))
