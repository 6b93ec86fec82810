"""Generated source on disk: a file of its own in a folder named by a hash of the source and of what compiles it."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from ase_equivariant.storage import write_atomically

SOURCE = "kernels.py"


def place(text: str, versions: Sequence[str], folder: Path) -> Path:
    """Where a source is kept."""
    return folder / hashlib.sha256("\0".join((text, *versions)).encode()).hexdigest()[:24] / SOURCE


def load(text: str, path: Path) -> dict[str, Callable]:
    """The functions of a source, which is written first where it is not on disk yet."""
    if not path.is_file():  # other processes may be writing the same one
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(text.encode(), path)
    spec = importlib.util.spec_from_file_location(f"ase_equivariant_kernels_{path.parent.name}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where compilers' caches look for it
    spec.loader.exec_module(module)
    return vars(module)


@cache
def is_writable(folder: str) -> bool:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        warn(error)
        return False
    return True


def warn(error: Exception) -> None:
    warnings.warn(
        f"kernels are compiled anew in each process, as their cache cannot be used: {type(error).__name__}: {error}; "
        "ASE_EQUIVARIANT_CACHE names another folder",
        stacklevel=2,
    )
