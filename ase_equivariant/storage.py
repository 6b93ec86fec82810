"""Files on disk: written whole or not at all, and the user's cache folder, which may be missing, full or read-only."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ase.calculators.calculator import InputError


def write_atomically(data: bytes, path: str | os.PathLike) -> None:
    """Write a whole file or nothing: on a full disk or a kill, what was there before stays."""
    path = Path(path).resolve()
    if path.exists() and not path.is_file():  # a rename would put a file in the place of a device
        raise InputError(f"cannot write {path}: it is not a regular file; give the name of a file")
    with replaced(path) as temporary, open(temporary, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path beside this one, of the same ending, to write to: it takes its place, or is gone after an error."""
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; nothing was changed") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def read_file(path: Path) -> bytes:
    """The content of a file, or the reason in an `InputError`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except MemoryError:
        raise InputError(f"cannot read {path}: its {path.stat().st_size} bytes do not fit into memory") from None


def cache_folder(kind: str) -> Path:
    """Where copies of one kind are kept: below `ASE_EQUIVARIANT_CACHE`, else the user's cache folder (XDG)."""
    chosen = os.environ.get("ASE_EQUIVARIANT_CACHE")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ase-equivariant")
    return Path(os.path.expanduser(base)).absolute() / kind


def keep(data: bytes, path: Path) -> None:
    """Put a copy into the cache; where that is not possible, there is none."""
    with suppress(InputError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(data, path)
