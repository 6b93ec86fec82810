"""Backends that reproduce the golden structures of their model, and the fastest of them."""

from __future__ import annotations

import warnings

import torch
from ase.calculators.calculator import CalculatorSetupError

from ase_equivariant import inference
from ase_equivariant.golden import verify_golden
from ase_equivariant.inference.checked import Backend, Checked, lacks_memory
from ase_equivariant.potential import Potential

TOLERANCES = {  # of the golden structures: eV/atom, eV/Å, eV/Å³
    "float32": {"energy": 1e-4, "forces": 1e-3, "stress": 1e-4},
    "float64": {"energy": 1e-8, "forces": 1e-6, "stress": 1e-7},
}
GENERATED = ("numba", "triton")  # kernels of generated source, which also prove themselves on the user's structure


def start_fastest(potential: Potential, device: torch.device, background_compile: bool = False) -> tuple[str, Backend]:
    """Name and callable of the fastest backend that reproduces the golden structures.

    With `background_compile`, one that would have to be compiled first is compiled for later calculators.
    """
    *faster, last = inference.FASTEST_FIRST[device.type]
    for name in faster:
        options = {"wait": False} if name == "numba" and background_compile else {}
        try:
            return name, start_verified(name, potential, device, **options)
        except CalculatorSetupError as error:
            warnings.warn(f"{error}; another backend is used instead", stacklevel=4)
    return last, start_verified(last, potential, device)


def start_verified(name: str, potential: Potential, device: torch.device, **options) -> Backend:
    """A backend that reproduces the golden structures, or a `CalculatorSetupError` with its errors."""
    dtype = str(potential.dtype).removeprefix("torch.")
    try:
        backend = inference.start(name, potential, device, **options)
        errors, allowed = verify_golden(potential, backend), TOLERANCES[dtype]
    except CalculatorSetupError:
        raise
    except Exception as error:  # compilers fail in any way, when a backend is made and when its kernels first run
        if lacks_memory(error):
            raise
        raise CalculatorSetupError(f"backend {name!r} on {device} fails: {type(error).__name__}: {error}") from error
    wrong = [key for key, error in errors.items() if not error <= allowed[key]]
    if wrong:
        found = ", ".join(f"{key} {errors[key]:.2e} (allowed {allowed[key]:.0e})" for key in wrong)
        raise CalculatorSetupError(
            f"backend {name!r} on {device} in {dtype} does not reproduce the model's golden results: errors in {found}"
        )
    if name not in GENERATED:
        return backend

    def exact() -> Backend:
        return inference.start("eager", potential.astype(torch.float64), device)

    return Checked(name, backend, inference.start("eager", potential, device), exact, potential.dtype)
