"""Generated source to Triton's kernels, on disk so that tracebacks show it and the user's cache has all of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

import torch

try:
    import triton
except ImportError as error:
    raise ImportError(f"{error}; `pip install triton` on Linux, for CUDA, installs it") from error

from ase_equivariant import __version__
from ase_equivariant.inference.program import Program
from ase_equivariant.inference.sources import is_writable, load, place
from ase_equivariant.inference.triton.run import Run
from ase_equivariant.storage import cache_folder

HEADER = """import triton
import triton.language as tl

sized = triton.jit(do_not_specialize=["n_nodes"])  # one kernel for any number of atoms


"""
REAL = {torch.float32: "tl.float32", torch.float64: "tl.float64"}


class Compiler:
    """Makes kernels of a program in one precision, which is called REAL in their source, for one device."""

    def __init__(self, program: Program, dtype: torch.dtype, device: torch.device):
        self.widths, self.num_harmonics = program.widths, (len(program.harmonics) + 1) ** 2
        self.dtype, self.device = dtype, device
        self.is_new = False  # whether a source had not been on disk

    def __call__(self, source: str) -> dict[str, Callable]:
        """The functions of a source, compiled when first called."""
        text = HEADER + source.replace("REAL", REAL[self.dtype])
        path = place(text, (__version__, triton.__version__), _folder(cache_folder("kernels")))
        self.is_new |= not path.is_file()
        return _load(text, path)

    def constant(self, array) -> torch.Tensor:
        """An array of a program in this precision, on the device."""
        return torch.as_tensor(array).to(self.device, self.dtype).contiguous()


class Kernel:
    """What launches the kernels of a stage: `forward(run)` and `backward(run)`."""

    def prepare(self, run: Run) -> None:
        """Keep in `run.data` what the shape alone decides."""


def is_interpreted() -> bool:
    """Whether Triton's interpreter stands for a GPU: TRITON_INTERPRET=1 before Triton is imported."""
    return bool(triton.knobs.runtime.interpret)


@lru_cache(maxsize=1000)
def _load(text: str, path: Path) -> dict[str, Callable]:
    return load(text, path)


@cache
def _folder(wanted: Path) -> Path:
    """The user's cache, or where it cannot be used a folder that goes with the process."""
    return wanted if is_writable(str(wanted)) else Path(_temporary().name)


@cache
def _temporary() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()
