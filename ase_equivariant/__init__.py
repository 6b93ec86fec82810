"""Pretrained E(3)-equivariant interatomic potentials in ASE.

    atoms.calc = EquivariantCalculator("mace-mlearn")

The public names are loaded when first used, so that importing the package costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "EquivariantCalculator": "calculator",
    "load_potential": "checkpoint",
    "save_potential": "checkpoint",
    "available_models": "zoo",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
