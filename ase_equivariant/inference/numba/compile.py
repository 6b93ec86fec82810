"""Generated source to compiled kernels, kept on disk.

Source goes to a file of its own, in a folder named by a hash of the source and of the versions that compile it, and is
imported from there, so that numba's cache finds it again in the next process. A folder that cannot be written or a
broken entry costs the compilation once more and nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

import numba
import numpy as np

from ase_equivariant import __version__
from ase_equivariant.storage import cache_folder

HEADER = """import numba
import numpy as np

real = np.{dtype}
exact = numba.njit(nogil=True, error_model="numpy", fastmath={{"contract"}}, cache={cache})
summing = numba.njit(nogil=True, error_model="numpy", fastmath={{"contract", "reassoc", "nsz"}}, cache={cache})
inlined = numba.njit(error_model="numpy", fastmath={{"contract", "reassoc", "nsz"}}, inline="never")
"""

_log = logging.getLogger("ase_equivariant")


class Compiler:
    """Makes kernels of one precision."""

    def __init__(self, dtype: np.dtype):
        self.dtype = np.dtype(dtype)

    def __call__(self, source: str) -> dict[str, Callable]:
        """The functions of a source, compiled when first called."""
        return _load(source, self.dtype.name)


@lru_cache(maxsize=1000)
def _load(source: str, dtype: str) -> dict[str, Callable]:
    text = HEADER.format(dtype=dtype, cache=True) + source
    versions = (__version__, numba.__version__, np.__version__, platform.python_version(), platform.machine())
    key = hashlib.sha256("\0".join((text, *versions)).encode()).hexdigest()[:24]
    try:
        path = _write(text, key)
        if not any(path.parent.glob("__pycache__/*.nbi")):
            _announce()
        return _import(path, key)
    except (OSError, SyntaxError, AttributeError, RuntimeError) as error:
        _log.warning("kernels are compiled anew in each process, as their cache cannot be used: %s", error)
        namespace: dict = {"__name__": f"ase_equivariant_kernels_{key}"}
        exec(HEADER.format(dtype=dtype, cache=False) + source, namespace)  # our own source, not a file's
        return namespace


@cache
def _announce() -> None:
    """Say once that there is something to wait for."""
    _log.warning("compiling kernels for this model, once on this machine; it takes up to a minute")


def _import(path: Path, key: str) -> dict[str, Callable]:
    spec = importlib.util.spec_from_file_location(f"ase_equivariant_kernels_{key}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where numba's cache looks for it
    spec.loader.exec_module(module)
    return vars(module)


def _write(text: str, key: str) -> Path:
    """The file of a source, written unless it is there and whole."""
    path = cache_folder("kernels") / key / "kernels.py"
    if path.is_file() and path.read_bytes() != text.encode():
        shutil.rmtree(path.parent, ignore_errors=True)  # with whatever was compiled from another source
    if not path.is_file():  # other processes may be writing the same one
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
            file.write(text)
        os.replace(file.name, path)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent} cannot be written")
    return path
