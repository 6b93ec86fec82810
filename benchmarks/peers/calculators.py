"""An ASE calculator per program, from a model file; each imports what only its environment has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ase.calculators.calculator import Calculator

Made = tuple[Calculator, list[str], dict]  # with the packages whose versions matter, and more facts


def tool(name: str, *arguments: str | Path) -> None:
    """Run a program of this environment; what it said last is the error when it fails."""
    done = subprocess.run([Path(sys.executable).with_name(name), *arguments], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")


def ours(backend: str, model: str, threads: int, device: str) -> Made:
    import torch

    from ase_equivariant import EquivariantCalculator

    torch.set_num_threads(threads)
    calc = EquivariantCalculator(model, device=device, backend=backend)
    return calc, ["torch", {"cpu": "numba", "cuda": "triton"}[device]], {"backend": calc.parameters["backend"]}


def mace_torch(model: str, threads: int, device: str) -> Made:
    import torch
    from mace.calculators import MACECalculator

    torch.set_num_threads(threads)
    calc = MACECalculator(model_paths=model, device=device, default_dtype="float32")
    return calc, ["torch", "e3nn", "mace-torch"], {}


def mace_cuequivariance(model: str, threads: int, device: str) -> Made:
    """With NVIDIA's kernels in place of e3nn's modules."""
    import torch
    from mace.calculators import MACECalculator

    torch.set_num_threads(threads)
    calc = MACECalculator(model_paths=model, device=device, default_dtype="float32", enable_cueq=True)
    return calc, ["torch", "mace-torch", "cuequivariance-torch", "cuequivariance-ops-torch-cu13"], {}


def symmetrix(model: str, threads: int, device: str) -> Made:
    """In its compiled mode; threads come from OMP_NUM_THREADS."""
    from symmetrix import available_backends, load_backend

    if device == "cuda":  # the one that is installed, or an error; left to itself it could run on the processor
        load_backend(next(backend["selector"] for backend in available_backends() if backend["backend"] == "cuda"))
    from symmetrix import Symmetrix  # with which a backend is chosen

    converted = Path(model).with_suffix(".json")
    if not converted.exists():
        tool("symmetrix_extract_mace", "--model", model, "--output", converted)
    return Symmetrix(str(converted), dtype="float32"), ["symmetrix-xl"], {}


def nequip(model: str, threads: int, device: str) -> Made:
    import torch
    from nequip.integrations.ase import NequIPCalculator

    torch.set_num_threads(threads)
    calc = NequIPCalculator._from_saved_model(model, device=device)
    return calc, ["torch", "e3nn", "nequip"], {}


def nequip_compiled(model: str, threads: int, device: str) -> Made:
    """AOTInductor, made by nequip-compile for this machine."""
    import torch
    from nequip.integrations.ase import NequIPCalculator

    torch.set_num_threads(threads)
    compiled = Path(model).with_suffix(".nequip.pt2")
    if not compiled.exists():
        tool("nequip-compile", model, compiled, "--mode", "aotinductor", "--target", "ase", "--device", device)
    return NequIPCalculator.from_compiled_model(compiled, device=device), ["torch", "e3nn", "nequip"], {}


def nequix(model: str, threads: int, device: str) -> Made:
    if hasattr(os, "sched_setaffinity"):  # XLA takes all cores it sees, whatever the variables say
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    from nequix.calculator import NequixCalculator

    return NequixCalculator(model_path=model, use_kernel=False), ["jax", "nequix"], {}


CALCULATORS: dict[str, Callable[[str, int, str], Made]] = {  # of a file, processor threads and "cpu" or "cuda"
    **{f"ours, {backend}": partial(ours, backend) for backend in ("numba", "triton", "torchscript", "eager")},
    "mace-torch": mace_torch,
    "mace-torch, cuEquivariance": mace_cuequivariance,
    "symmetrix-xl": symmetrix,
    "nequip": nequip,
    "nequip, compiled": nequip_compiled,
    "nequix": nequix,
}
