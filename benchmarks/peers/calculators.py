"""An ASE calculator per program, from a model file; each imports what only its environment has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ase.calculators.calculator import Calculator

Made = tuple[Calculator, list[str], dict]  # with the packages whose versions matter, and more facts


def tool(name: str, *arguments: str | Path) -> None:
    """Run a program of this environment; what it said last is the error when it fails."""
    done = subprocess.run([Path(sys.executable).with_name(name), *arguments], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")


def ours(model: str, threads: int, backend: str) -> Made:
    import torch

    from ase_equivariant import EquivariantCalculator

    torch.set_num_threads(threads)
    calc = EquivariantCalculator(model, device="cpu", backend=backend)
    return calc, ["torch", "numba"], {"backend": calc.parameters["backend"]}


def mace_torch(model: str, threads: int) -> Made:
    import torch
    from mace.calculators import MACECalculator

    torch.set_num_threads(threads)
    calc = MACECalculator(model_paths=model, device="cpu", default_dtype="float32")
    return calc, ["torch", "e3nn", "mace-torch"], {}


def symmetrix(model: str, threads: int) -> Made:
    """In its compiled mode; threads come from OMP_NUM_THREADS."""
    from symmetrix import Symmetrix

    converted = Path(model).with_suffix(".json")
    if not converted.exists():
        tool("symmetrix_extract_mace", "--model", model, "--output", converted)
    return Symmetrix(str(converted), dtype="float32"), ["symmetrix-xl"], {}


def nequip(model: str, threads: int) -> Made:
    import torch
    from nequip.integrations.ase import NequIPCalculator

    torch.set_num_threads(threads)
    calc = NequIPCalculator._from_saved_model(model, device="cpu")
    return calc, ["torch", "e3nn", "nequip"], {}


def nequip_compiled(model: str, threads: int) -> Made:
    """AOTInductor, made by nequip-compile for this processor."""
    import torch
    from nequip.integrations.ase import NequIPCalculator

    torch.set_num_threads(threads)
    compiled = Path(model).with_suffix(".nequip.pt2")
    if not compiled.exists():
        tool("nequip-compile", model, compiled, "--mode", "aotinductor", "--target", "ase", "--device", "cpu")
    return NequIPCalculator.from_compiled_model(compiled, device="cpu"), ["torch", "e3nn", "nequip"], {}


def nequix(model: str, threads: int) -> Made:
    if hasattr(os, "sched_setaffinity"):  # XLA takes all cores it sees, whatever the variables say
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    from nequix.calculator import NequixCalculator

    return NequixCalculator(model_path=model, use_kernel=False), ["jax", "nequix"], {}


CALCULATORS: dict[str, Callable[[str, int], Made]] = {
    "ours, numba": lambda model, threads: ours(model, threads, "numba"),
    "ours, eager": lambda model, threads: ours(model, threads, "eager"),
    "mace-torch": mace_torch,
    "symmetrix-xl": symmetrix,
    "nequip": nequip,
    "nequip, compiled": nequip_compiled,
    "nequix": nequix,
}
