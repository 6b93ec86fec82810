"""The JSON header of a model file: found in the bytes, and refused unless it can be one of ours."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

from ase.calculators.calculator import InputError

from ase_equivariant.architectures import ARCHITECTURES
from ase_equivariant.potential import TABLES
from ase_equivariant.text import shown

FORMAT_VERSION = 1
KEY = "ase_equivariant"  # the one entry of the safetensors metadata
STRUCTURE = ("format_version", "architecture", "config", "atomic_numbers", "heads", *TABLES, "checksum")
ZIP = b"PK\x03\x04"  # how the files of torch.save begin
MAX_DEPTH = 20  # lists and dicts within each other
MAX_SIZE = 100_000_000  # bytes, the limit of the safetensors format


def parse_header(file: BinaryIO, size: int, source: str) -> dict[str, Any]:
    """The header of a model file of `size` bytes; `source` names it in errors. Raises `InputError`."""
    start = file.read(9)  # length of the outer header, and its first character
    if start[8:] != b"{":
        raise InputError(f"{source} {_foreign(start)}")
    length = int.from_bytes(start[:8], "little")
    if length > min(size - 8, MAX_SIZE):
        raise InputError(f"{source} is truncated or damaged: its header is not complete")
    try:
        outer = json.loads(start[8:] + file.read(length - 1))
        text = outer.pop("__metadata__", {}).get(KEY)
        header = None if text is None else json.loads(text, parse_constant=_refuse_constant)
        end = 8 + length + max((entry["data_offsets"][1] for entry in outer.values()), default=0)
        complete = size == end
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(f"{source} is damaged: its header cannot be read") from error
    if not isinstance(header, dict):
        raise InputError(f"{source} is a safetensors file, but not of ase-equivariant: it has no {KEY!r} header")
    if not complete:
        raise InputError(f"{source} is truncated or damaged: it has {size} bytes instead of {end}")
    if _is_deep(header, MAX_DEPTH):
        raise InputError(f"{source} is damaged: its header is nested more than {MAX_DEPTH} levels deep")
    _check(header, source)
    return header


def _is_deep(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deep(entry, levels - 1) for entry in inner)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _foreign(start: bytes) -> str:
    """What a file is that does not begin as a safetensors file does."""
    if not start:
        return "is empty"
    if start.startswith(ZIP):
        return (
            "is a zip archive as PyTorch writes it, without a header: "
            "load_potential() reads a model in it, save_potential() makes a file with a header"
        )
    if start.startswith(b"\x80"):
        return "is a Python pickle; opening such a file can run code, so this package does not unpickle it"
    return f"is not a safetensors file, or it is damaged: it begins with {start!r}"


def _check(header: dict[str, Any], source: str) -> None:
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(f"{source} has format_version {shown(version)}; this version reads {FORMAT_VERSION}")
    missing = [key for key in STRUCTURE if key not in header]
    if missing:
        raise InputError(f"{source} is damaged: its header lacks {', '.join(missing)}")
    if not isinstance(header.get("golden", []), list):
        raise InputError(f"{source} is damaged: the golden structures of this model are malformed, they are not a list")
    if header["architecture"] not in list(ARCHITECTURES):
        raise InputError(
            f"{source} has architecture {shown(header['architecture'])}; known are {', '.join(ARCHITECTURES)}"
        )
