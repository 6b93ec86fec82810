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


def harmonics_irreps(l_max: int, channels: int = 1, parity: int = -1) -> o3.Irreps:
    """Irreps of the spherical harmonics up to l_max: parity (-1)^l, or even for all where the inversion is ignored."""
    return o3.Irreps([(channels, (ell, parity**ell)) for ell in range(l_max + 1)])


def layer_irreps(hidden: o3.Irreps, harmonics: o3.Irreps, num_layers: int) -> list[o3.Irreps]:
    """Irreps of the features before the first, between, and after the last of the layers; even scalars first.

    The first and the last are the even scalars of `hidden`. In between stand those of `hidden` that a path of
    convolutions reaches from the first and that one leads on to the last: others could not change the energy.
    """
    kinds = sorted((ir for _, ir in hidden), key=lambda ir: (ir.l, -ir.p))
    layers = [{o3.Irrep("0e")}]
    for _ in range(num_layers - 1):
        layers.append({ir for ir in kinds if any(_couples(ir, source, harmonics) for source in layers[-1])})
    layers.append({o3.Irrep("0e")})
    for t in range(num_layers - 1, 0, -1):
        layers[t] = {ir for ir in layers[t] if any(_couples(target, ir, harmonics) for target in layers[t + 1])}
    return [o3.Irreps([(hidden.count(ir), ir) for ir in kinds if ir in kept]) for kept in layers]


def _couples(target: o3.Irrep, source: o3.Irrep, harmonics: o3.Irreps) -> bool:
    return any(target in source * edge for _, edge in harmonics)


def block_index(irreps: o3.Irreps, ir: o3.Irrep) -> int:
    """Position of an irrep in a list of blocks, -1 where it is absent."""
    kinds = [kind for _, kind in irreps]
    return kinds.index(ir) if ir in kinds else -1
