"""Generated source to compiled kernels, kept on disk.

Source goes to a file of its own, in a folder named by a hash of the source, of the processor and of the versions that
compile it, and is imported from there, so that numba's cache finds it again in the next process. Once all kernels of a
program have run, their folders are sealed with the checksums of what was compiled; a seal that does not fit costs the
compilation once more and nothing else.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numba
import numpy as np
from filelock import FileLock
from llvmlite.binding import get_host_cpu_name

from ase_equivariant import __version__
from ase_equivariant.inference.numba import lanes
from ase_equivariant.inference.sources import SOURCE, is_writable, load, place
from ase_equivariant.storage import cache_folder, keep

HEADER = """import numba
import numpy as np

from ase_equivariant.inference.numba.lanes import fill, fma, load, mul, spread, store, total

real = np.{dtype}
exact = numba.njit(nogil=True, error_model="numpy", fastmath={{"contract"}}, cache={cache})
summing = numba.njit(nogil=True, error_model="numpy", fastmath={{"contract", "reassoc", "nsz"}}, cache={cache})
inlined = numba.njit(error_model="numpy", fastmath={{"contract", "reassoc", "nsz"}}, inline="never")
"""
SEAL = "sealed.json"

_log = logging.getLogger("ase_equivariant")


class Compiler:
    """Makes kernels of one precision, on disk where that is possible; in memory they last as long as the process."""

    def __init__(self, dtype: np.dtype, on_disk: bool = True):
        self.dtype = np.dtype(dtype)
        self.on_disk = on_disk and is_writable(str(cache_folder("kernels")))
        self.folders: list[Path] = []

    def __call__(self, source: str) -> dict[str, Callable]:
        """The functions of a source, compiled when first called."""
        if not self.on_disk:
            return _in_memory(source, self.dtype.name)
        folder, functions = _load(source, self.dtype.name, cache_folder("kernels"))
        self.folders.append(folder)
        return functions

    def is_sealed(self) -> bool:
        """Whether everything that was asked for so far is on disk."""
        return self.on_disk and all((folder / SEAL).is_file() for folder in self.folders)

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Around the first run of the kernels; other processes that want the same wait, and find it on disk."""
        if self.is_sealed():
            yield
            return
        once = ", once on this machine" if self.on_disk else ""
        _log.warning("compiling kernels for this model%s; it takes up to a minute", once)
        if not self.on_disk:
            yield
            return
        with FileLock(cache_folder("kernels") / "compiling.lock"):
            yield
        for folder in self.folders:
            if (folder / SOURCE).is_file() and not (folder / SEAL).is_file():
                keep(json.dumps(_checksums(folder)).encode(), folder / SEAL)

    def discard(self) -> None:
        """Remove what is on disk: it cannot be used."""
        _load.cache_clear()
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)


@lru_cache(maxsize=1000)
def _in_memory(source: str, dtype: str) -> dict[str, Callable]:
    namespace: dict = {"__name__": "ase_equivariant_kernels"}
    exec(HEADER.format(dtype=dtype, cache=False) + source, namespace)  # our own source, not a file's
    return namespace


@lru_cache(maxsize=1000)
def _load(source: str, dtype: str, folder: Path) -> tuple[Path, dict[str, Callable]]:
    text = HEADER.format(dtype=dtype, cache=True) + source
    cpu = numba.config.CPU_NAME or get_host_cpu_name()
    versions = (__version__, numba.__version__, np.__version__, platform.python_version(), platform.machine(), cpu)
    versions += (inspect.getsource(lanes),)  # which becomes part of what is compiled
    path = place(text, versions, folder)
    if not _is_whole(path, text):
        _log.warning("kernels in %s are not what was written there and are compiled anew", path.parent)
        shutil.rmtree(path.parent, ignore_errors=True)
    return path.parent, load(text, path)


def _is_whole(path: Path, text: str) -> bool:
    """Whether a folder, where it exists, holds this source, and where it is sealed, what was compiled from it."""
    if not path.is_file():
        return True
    try:
        seal = path.parent / SEAL
        expected = json.loads(seal.read_bytes()) if seal.is_file() else {}
        return path.read_bytes() == text.encode() and expected.items() <= _checksums(path.parent).items()
    except (OSError, ValueError, AttributeError):
        return False


def _checksums(folder: Path) -> dict[str, str]:
    """Of compiled code; the index beside it may grow."""
    files = folder.glob("__pycache__/*.nbc")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
