"""Model files of other packages: read without running anything from them, rebuilt as our own architectures."""

from __future__ import annotations

from ase_equivariant.importers.compiled import as_modules
from ase_equivariant.importers.mace import import_mace
from ase_equivariant.importers.nequip import import_nequip
from ase_equivariant.importers.nequip_checkpoint import checkpoint_records, checkpoint_releases
from ase_equivariant.importers.nequip_deployed import as_packaged
from ase_equivariant.importers.nequix import START as NEQUIX
from ase_equivariant.importers.nequix import import_nequix
from ase_equivariant.importers.records import LEGACY, Content, read_content
from ase_equivariant.importers.unpickling import ForeignFileError, Record
from ase_equivariant.potential import Potential
from ase_equivariant.text import shown

ZIP = b"PK\x03\x04"  # how the files of torch.save, torch.package and torch.jit.save begin
MAX_MODULES = 100_000  # a hundred times what a large model has


def recognises(data: bytes) -> bool:
    """Whether content begins like a file that `import_model` reads, if only to say why it refuses it."""
    return data.startswith((ZIP, LEGACY, NEQUIX)) or data[257:262] == b"ustar"


def import_model(data: bytes) -> Potential:
    """The potential in the content of a file that another package wrote; `ForeignFileError` says why not."""
    try:
        return import_nequix(data) if data.startswith(NEQUIX) else _rebuild(read_content(data))
    except ForeignFileError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        about = shown(error.args[0]) if isinstance(error, KeyError) else str(error)[:200]
        reason = f"{type(error).__name__}: {about}"
        raise ForeignFileError(f"its layout is not that of a model that this version knows ({reason})") from error


def _rebuild(content: Content) -> Potential:
    root = content.root
    if isinstance(root, dict):
        return import_nequip(Content(checkpoint_records(root), notes=checkpoint_releases(root)))
    if not isinstance(root, Record):
        raise ForeignFileError(f"it holds a {type(root).__name__} instead of a model")
    if content.code and "training" not in root.state:  # which is how torch tells, too
        raise ForeignFileError(
            "it was frozen (torch.jit.freeze), which turned its weights into constants without names; import the file "
            "that it was made from"
        )
    _check_tree(root)
    if root.name.startswith("mace."):
        return import_mace(as_modules(root, content) if content.code else root)
    if "sole_model" in root.named_children() or root.name.startswith("nequip."):
        return import_nequip(as_packaged(content))
    raise ForeignFileError(f"it holds {root.name}; known are the models of mace-torch and nequip")


def _check_tree(root: Record) -> None:
    """Refuse modules within themselves, and shared ones that a small file multiplies to millions."""
    waiting, count = [root], 0
    while waiting:
        waiting += waiting.pop().children()
        count += 1
        if count + len(waiting) > MAX_MODULES:
            raise ForeignFileError(f"its modules hold each other, or are more than {MAX_MODULES}")
