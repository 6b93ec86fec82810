"""The floating-point operations that a force call of MACE cannot do without, as far as is known.

Per atom, for two layers, l_max 3, correlation 3 and one element; K channels, N neighbours, hidden irreps up to degree
L, each term with its gradient:

    N (10 K (4 + P)                    splines of the radial functions of both layers
       + 108 K                         first convolution, whose senders are scalars
       + K (6 A + 6 h + 2 P) + 6 z     second convolution
       + 400)                          geometry and harmonics
    + 4 K² (16 + (L + 1)² + 1 + C + 2) linear maps
    + 10 K (94 + T)                    symmetric contractions: 94 monomials in the last layer, which gives scalars only

P paths of the second convolution with C components; A pairs of components, out of h that are read, couple with z
coefficients; T monomials of the contraction.
"""

from __future__ import annotations

from ase import Atoms
from ase.neighborlist import neighbor_list
from cases import Case

COUNTS = {0: (4, 16, 16, 4, 16, 94), 1: (10, 40, 76, 22, 86, 422)}  # degree L -> P, C, A, h, z, T


def flop_per_atom(case: Case, atoms: Atoms) -> float | None:
    """Of a case of MACE with one element, for energy and forces of this structure; None for other cases."""
    if case.writer != "mace" or len(case.model["atomic_numbers"]) > 1:
        return None
    irreps = case.model["hidden_irreps"].split("+")
    neighbors = len(neighbor_list("i", atoms, case.model["cutoff"])) / len(atoms)
    return mace_flop(int(irreps[0].split("x")[0]), len(irreps) - 1, neighbors)


def mace_flop(channels: int, degree: int, neighbors: float) -> float:
    """The formula above; `degree`, of the hidden irreps, is 0 or 1."""
    k, (p, c, a, h, z, t) = channels, COUNTS[degree]
    edges = 10 * k * (4 + p) + 108 * k + k * (6 * a + 6 * h + 2 * p) + 6 * z + 400
    atoms = 4 * k**2 * (16 + (degree + 1) ** 2 + 1 + c + 2) + 10 * k * (94 + t)
    return neighbors * edges + atoms
