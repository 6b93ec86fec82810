"""Model files of other packages: read without running anything from them, rebuilt as our own architectures."""

from __future__ import annotations

from ase_equivariant.importers.mace import import_mace
from ase_equivariant.importers.records import ForeignFileError, read_records
from ase_equivariant.potential import Potential


ZIP = b"PK\x03\x04"  # how the files of torch.save, torch.package and torch.jit.save begin
PICKLE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number that torch.save wrote before zip files


def recognises(data: bytes) -> bool:
    """Whether content begins like a file that `import_model` reads, if only to say why it refuses it."""
    return data.startswith((ZIP, PICKLE)) or data[257:262] == b"ustar"


def import_model(data: bytes) -> Potential:
    """The potential in the content of a file that another package wrote; `ForeignFileError` says why not."""
    root = read_records(data)
    if not root.name.startswith("mace."):
        raise ForeignFileError(f"it holds {root.name}; known are the models of mace-torch")
    try:
        return import_mace(root)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ForeignFileError(f"its layout is not that of a MACE model that this version knows ({error})") from error
