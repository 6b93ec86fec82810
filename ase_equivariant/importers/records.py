"""Model files of torch opened as data: the containers around a pickle and the tensors beside it.

torch.save writes a zip file, before 2020 a stream of pickles; torch.package and torch.jit.save write zip files with
source code beside the pickle, which stays text. Everything is bounded by the size of the file itself.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from dataclasses import dataclass, field
from typing import Any

import torch
from e3nn import o3

from ase_equivariant.importers.unpickling import ForeignFileError, Record, check_program, tensors_out, unpickle
from ase_equivariant.text import shown

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number with which torch.save began before zip files
PACKAGED = "model/eager_model.pkl"  # what nequip-package names its model,
METADATA = "model/package_metadata.txt"  # and what it says about it
NOTES = [f"extra/{name}" for name in ("type_names", "nequip_version", "e3nn_version", "torch_version")]
UNREAD = ".debug_pkl"  # what torch notes for debugging: it packs too well to be added up, so nothing may read it
MAX_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Content:
    """The object in a file and, where it is a compiled model, the text of its code by module, and its constants.

    `notes` has releases of packages as "nequip_version", "e3nn_version" and so on, where the file names them.
    """

    root: Any
    code: dict[str, str] = field(default_factory=dict)
    constants: tuple = ()
    notes: dict[str, str] = field(default_factory=dict)  # what else the file says of itself, such as releases


def read_content(data: bytes) -> Content:
    """The object in the content of a file of torch.save, torch.package or torch.jit.save, of records and tensors."""
    try:
        if data[257:262] == b"ustar":
            raise ForeignFileError("it is a tar file, as torch wrote before 2017; no potential that we know is as old")
        return _read_stream(data) if data.startswith(LEGACY) else _read_zip(data)
    except ForeignFileError:
        raise
    except KeyError as error:
        raise ForeignFileError(f"it lacks {shown(error.args[0] if error.args else '')}") from error
    except Exception as error:  # a damaged pickle raises whatever its opcodes run into
        raise ForeignFileError(f"it is damaged ({type(error).__name__}: {str(error)[:200]})") from error


def _read_zip(data: bytes) -> Content:
    archive = zipfile.ZipFile(io.BytesIO(data))
    named = {entry.filename.split("/", 1)[-1]: entry for entry in archive.infolist()}
    entries = {name: entry for name, entry in named.items() if not name.endswith(UNREAD)}
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries.values()):
        raise ForeignFileError("it is compressed in a way that torch does not use")
    if any(name == "archive_format" or "aotinductor" in name or name.endswith(".so") for name in entries):
        raise ForeignFileError(
            "it was compiled to machine code (AOTInductor), which holds no weights that could be read, only a program "
            "that would have to be run; import the .nequip.zip or .ckpt it was made from"
        )
    if sum(entry.file_size for entry in entries.values()) > min(MAX_BYTES, 2 * len(data)):
        raise ForeignFileError("it unpacks to far more than its size")

    def read(name: str) -> bytes:  # never more than the size that was added up above, whatever the stream holds
        return archive.open(entries[name]).read(entries[name].file_size)

    if "byteorder" in entries and read("byteorder") != b"little":
        raise ForeignFileError("it was written on a big-endian machine")
    packaged = ".data/extern_modules" in entries

    def load(program: str, pattern: str) -> Any:
        return unpickle(read(program), lambda key, *form: _tensor(read(pattern.format(key)), *form, key))

    if packaged:
        said = read(METADATA).decode() if METADATA in entries else ""
        return Content(load(PACKAGED, ".data/{}.storage"), notes=_releases(said))
    files = [name for name in entries if name.startswith("code/") and name.endswith(".py")]
    return Content(
        load("data.pkl", "data/{}"),
        {name[len("code/") : -len(".py")].replace("/", "."): read(name).decode() for name in files},
        tuple(map(tensors_out, load("constants.pkl", "constants/{}"))) if files else (),
        {name[len("extra/") :]: read(name).decode() for name in entries if name in NOTES},
    )


def _releases(text: str) -> dict[str, str]:
    """Releases of packages below `versions:` in the YAML that nequip-package writes."""
    section = re.search(r"^versions:\n((?: +.*\n?)*)", text, re.MULTILINE)
    found = re.findall(r"^ +(\w+): '?([\w.+-]+)", section[1], re.MULTILINE) if section else []
    return {f"{package}_version": release for package, release in found}


def irreps_of(value: Record | str | tuple | list | None) -> o3.Irreps:
    """Irreps as text, as plain tuples of a compiled file, or as e3nn's pickled objects; none where there are none."""
    if isinstance(value, Record):
        value = [(mul, irrep.args[0]) for mul, irrep in (entry.args[0] for entry in value.args[0])]
    if isinstance(value, list | tuple) and not all(_is_irrep(*entry) for entry in value):
        raise ForeignFileError(f"it has {shown(value)} where irreps belong")  # e3nn would unfold it in its message
    return o3.Irreps(value)


def _is_irrep(channels: Any, irrep: Any) -> bool:
    return type(channels) is int and isinstance(irrep, list | tuple) and [type(n) for n in irrep[:3]] == [int, int]


def _tensor(raw: bytes, dtype: torch.dtype, count: int, key: str | int) -> torch.Tensor:
    if len(raw) != count * dtype.itemsize:
        raise ForeignFileError(f"storage {key} has {len(raw)} bytes instead of {count * dtype.itemsize}")
    return torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)


def _read_stream(data: bytes) -> Content:
    """Pickles of magic number, version, machine, object and keys, then each storage behind its number of elements."""
    pickles, rest = [], data[len(LEGACY) :]
    for _ in range(4):
        length = check_program(rest)
        pickles.append(rest[:length])
        rest = rest[length:]
    version, machine, program, order = pickles
    held: dict[str | int, torch.Tensor] = {}

    def storage(key: str | int, dtype: torch.dtype, count: int) -> torch.Tensor:
        held[key] = torch.empty(count, dtype=dtype)
        if count < 0 or sum(tensor.nbytes for tensor in held.values()) > len(rest):
            raise ForeignFileError("its tensors are larger than the file")
        return held[key]

    if unpickle(version, storage) != 1001 or unpickle(machine, storage).get("little_endian") is not True:
        raise ForeignFileError("it was written by a torch or on a machine that we do not know")
    root = unpickle(program, storage)
    for key in unpickle(order, storage):
        count = struct.unpack("<q", rest[:8])[0]
        tensor = held.pop(key)
        end = 8 + tensor.nbytes
        if count != tensor.numel():
            raise ForeignFileError(f"storage {key} has {count} elements instead of {tensor.numel()}")
        tensor.copy_(_tensor(rest[8:end], tensor.dtype, count, key))
        rest = rest[end:]
    if held:
        raise ForeignFileError(f"it lacks the storages {', '.join(map(str, held))[:200]}")
    return Content(root)
