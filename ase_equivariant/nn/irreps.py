"""Which irreps a list of feature blocks holds: e3nn's `Irreps`, each (l, parity) at most once."""

from __future__ import annotations

from e3nn import o3


def parse_irreps(text: str | o3.Irreps) -> o3.Irreps:
    """Irreps with one entry per (l, parity), in the order given; ValueError for repeats or nonsense."""
    try:
        irreps = o3.Irreps(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a list of irreps such as '64x0e+64x1o'") from error
    kinds = [ir for _, ir in irreps]
    if len(set(kinds)) != len(kinds) or any(mul < 1 for mul, _ in irreps):
        raise ValueError(f"{text!r} must name each irrep once, with at least one channel, such as '64x0e+64x1o'")
    return irreps


def harmonics_irreps(l_max: int, channels: int = 1) -> o3.Irreps:
    """Irreps of the spherical harmonics up to l_max: parity (-1)^l."""
    return o3.Irreps([(channels, (ell, (-1) ** ell)) for ell in range(l_max + 1)])


def block_index(irreps: o3.Irreps, ir: o3.Irrep) -> int:
    """Position of an irrep in a list of blocks, -1 where it is absent."""
    kinds = [kind for _, kind in irreps]
    return kinds.index(ir) if ir in kinds else -1
