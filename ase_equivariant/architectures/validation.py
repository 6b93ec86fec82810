"""What the configs of all architectures check alike: a wrong field is named, with its value and what is allowed."""

from __future__ import annotations

import math
from dataclasses import fields

from e3nn import o3

from ase_equivariant.nn.irreps import parse_irreps
from ase_equivariant.nn.pair_repulsion import ZBLConfig
from ase_equivariant.nn.radial import BESSEL_NORMS
from ase_equivariant.text import shown

# "residual" adds a map of the layer's input, the skip connection; "nonresidual" maps the message instead
INTERACTIONS = ("nonresidual", "residual")
SKIPS = ("species", "shared")  # weights of either map: one matrix per species, or one for all
RADIAL_BASES = ("bessel", "gaussian")
MAX_CHANNELS = 10_000
MAX_CUTOFF = 100.0  # Å; beyond, neighbour lists are of everything with everything


def require(condition: bool, config: object, name: str, allowed: str) -> None:
    """Raise the ValueError of a field with an impossible value."""
    if not condition:
        architecture = type(config).__name__.removesuffix("Config").lower()
        given = shown(getattr(config, name))
        raise ValueError(f"{name} = {given} in the {architecture} config: it must be {allowed}")


def whole(value: object, low: int, high: float = math.inf) -> bool:
    return type(value) is int and low <= value <= high


def check_common(config: object, highest_l: int = 11) -> None:
    """The fields that every architecture has; `radial_mlp` becomes a tuple."""
    for name in ("num_species", "num_heads"):
        require(whole(getattr(config, name), 1), config, name, "a whole number >= 1")
    for name, high in {"num_bessel": 1000, "envelope_power": 100, "num_interactions": 10}.items():
        require(whole(getattr(config, name), 1, high), config, name, f"a whole number from 1 to {high}")
    require(_positive(config.cutoff, MAX_CUTOFF), config, "cutoff", f"a positive number of at most {MAX_CUTOFF:g} Å")
    require(_positive(config.avg_num_neighbors), config, "avg_num_neighbors", "a positive number")
    widths = config.radial_mlp
    proper = isinstance(widths, list | tuple) and len(widths) <= 10 and all(whole(width, 1) for width in widths)
    require(proper, config, "radial_mlp", "a list of at most 10 whole numbers >= 1")
    object.__setattr__(config, "radial_mlp", tuple(widths))
    require(whole(config.l_max, 0, highest_l), config, "l_max", f"a whole number from 0 to {highest_l}")


def check_layers(config: object) -> None:
    for name in ("interaction_first", "interaction"):
        check_choice(config, name, INTERACTIONS)
    check_choice(config, "skip", SKIPS)


def check_radial_basis(config: object, bases: tuple[str, ...] = RADIAL_BASES) -> None:
    proper = _number(config.bessel_decay) and 0 <= config.bessel_decay <= 10
    require(proper, config, "bessel_decay", "a number from 0 to 10")
    check_choice(config, "bessel_norm", BESSEL_NORMS)
    check_choice(config, "radial_basis", bases)
    check_flag(config, "trainable_bessel")
    for name, usual in (("bessel_decay", 0), ("bessel_norm", "paper"), ("trainable_bessel", False)):
        suits = config.radial_basis == "bessel" or getattr(config, name) == usual
        require(suits, config, name, f"{usual!r} with radial_basis = {config.radial_basis!r}")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive(value: object, high: float = math.inf) -> bool:
    return _number(value) and 0 < value <= high and value < math.inf


def check_choice(config: object, name: str, choices: tuple[str, ...]) -> None:
    require(getattr(config, name) in choices, config, name, " or ".join(choices))


def check_fixed(config: object, **values: object) -> None:
    """The axes of the design space on which an architecture has one value."""
    for name, value in values.items():
        given = getattr(config, name)
        require(type(given) is type(value) and given == value, config, name, f"{value!r}, this architecture's only one")


def check_flag(config: object, name: str) -> None:
    require(isinstance(getattr(config, name), bool), config, name, "true or false")


def check_repulsion(config: object) -> None:
    """`pair_repulsion` becomes a `ZBLConfig`, of which it may be the fields."""
    given = config.pair_repulsion
    names = [f.name for f in fields(ZBLConfig)]
    if isinstance(given, dict) and "radii" in given and set(given) <= set(names):
        given = ZBLConfig(**given)
    proper = given is None or (isinstance(given, ZBLConfig) and len(given.radii) == config.num_species)
    rule = f"null, or radii in Å, one per species, and any of {', '.join(names[1:])}"
    require(proper, config, "pair_repulsion", rule)
    object.__setattr__(config, "pair_repulsion", given)


def check_attributes(config: object) -> None:
    """`attributes` becomes a tuple of (key in Atoms.info, lowest, highest and usual value)."""
    given = config.attributes if isinstance(config.attributes, list | tuple) else [None]
    rows = [tuple(row) if isinstance(row, list | tuple) else () for row in given]
    proper = all(len(row) == 4 and isinstance(row[0], str) and all(type(n) is int for n in row[1:]) for row in rows)
    proper = proper and all(low <= usual <= high < low + MAX_CHANNELS for _, low, high, usual in rows)
    rule = f"a list of [key, lowest, highest, usual value], with at most {MAX_CHANNELS} values of each key"
    require(proper and len({row[0] for row in rows}) == len(rows), config, "attributes", rule)
    object.__setattr__(config, "attributes", tuple(rows))


def check_features(config: object, parity: bool = True) -> None:
    """`hidden_irreps` whose multiplicities may differ: even scalars, and any others up to l_max."""
    hidden = parsed(config.hidden_irreps)
    fits = all(ir.l <= config.l_max and (parity or ir.p == 1) and mul <= MAX_CHANNELS for mul, ir in hidden)
    example, kinds = ("32x0e+32x1o+16x1e", "0e among them") if parity else ("32x0e+16x1e", "all even, 0e among them")
    rule = f"a list such as {example!r}: each irrep once, {kinds}, l up to l_max, at most {MAX_CHANNELS} channels each"
    require(hidden.count("0e") > 0 and fits, config, "hidden_irreps", rule)


def parsed(text: object) -> o3.Irreps:
    """The irreps that a field lists, none where it is no such list."""
    try:
        return parse_irreps(text) if isinstance(text, str) else o3.Irreps()
    except ValueError:
        return o3.Irreps()
