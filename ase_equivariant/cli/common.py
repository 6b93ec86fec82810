"""What the commands share: options, reading and writing structures, making the calculator."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ase import Atoms

    from ase_equivariant.calculator import EquivariantCalculator

INTERRUPTED = 130  # exit code, as after SIGINT in a shell

ModelArgument = Annotated[str, typer.Argument(help="Name of a model, see `models`, or path of a model file.")]
Model = Annotated[str, typer.Option("--model", "-m", help="Name of a model, see `models`, or path of a model file.")]
Structure = Annotated[str, typer.Argument(help="Structure in any format of ASE; FILE@INDEX picks a frame.")]
Head = Annotated[str | None, typer.Option(help="Head of a model that has several.")]
Dtype = Annotated[str, typer.Option(help="Precision of the network: float32 or float64.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Backend = Annotated[str, typer.Option(help="How the model is executed; auto takes the fastest that passes its check.")]


def make_calculator(model: str, head: str | None, dtype: str, device: str, backend: str) -> EquivariantCalculator:
    from ase_equivariant.calculator import EquivariantCalculator

    return EquivariantCalculator(model, device=device, dtype=dtype, backend=backend, head=head)


def read_structure(file: str) -> Atoms:
    """The structure in a file; the last one where there are several."""
    return read_structures(file, index=-1)[0]


def read_structures(file: str, index: int | slice = slice(None)) -> list[Atoms]:
    """The structures in a file of any format that ASE reads; `FILE@INDEX` overrides `index`."""
    from ase.calculators.calculator import InputError
    from ase.io import read

    path, chosen = _path_and_index(file)
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        frames = read(path, index=index if chosen is None else chosen, do_not_split_by_at_sign=True)
    except Exception as error:  # ASE's readers raise whatever they stumble over
        raise InputError(f"cannot read structures from {path}: {_reason(error, path, chosen)}") from error
    frames = frames if isinstance(frames, list) else [frames]
    if not frames or not all(len(atoms) for atoms in frames):
        raise InputError(f"{path} holds no atoms" if frames else f"{path} holds no structures")
    return frames


def _path_and_index(file: str) -> tuple[str, int | slice | None]:
    from ase.io.formats import parse_filename

    return (file, None) if Path(file).exists() else parse_filename(file)


def _reason(error: Exception, path: str, chosen: int | slice | None) -> str:
    from ase.io.formats import UnknownFileTypeError

    if Path(path).is_dir():
        return "it is a directory"
    if isinstance(chosen, int) and not str(error):  # how ASE's readers say that a file is shorter
        return f"it has no frame {chosen}"
    if Path(path).is_file() and Path(path).stat().st_size == 0:
        return "it is empty"
    if isinstance(error, UnknownFileTypeError):
        return "ASE recognises its format neither by its name nor by its content"
    return str(error) or type(error).__name__


def keep_structure(file: str, *outputs: Path) -> None:
    """`keep` for the file of `FILE@INDEX`."""
    keep(_path_and_index(file)[0], *outputs)


def keep(file: str | Path, *outputs: Path) -> None:
    """Raise InputError if one of the outputs is the very file that is read."""
    from ase.calculators.calculator import InputError

    for output in outputs:
        if output.exists() and Path(file).exists() and output.samefile(file):
            raise InputError(f"{output} is the file that is read; give another name to write to")


def check_output(path: Path) -> str:
    """ASE's name for the format of a file to be written; raises before any long work if there is none."""
    from ase.calculators.calculator import InputError
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no directory {path.parent} to write {path.name} to")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the directory {path.parent} is not writable")
    if path.exists() and not path.is_file():
        raise InputError(f"cannot write {path}: it is not a regular file; give the name of a file")
    try:
        name = filetype(str(path), read=False)
        writable = ioformats[name].can_write
    except (UnknownFileTypeError, KeyError):
        writable = False
    if not writable:
        raise InputError(f"ASE cannot write a file called {path.name}; try the ending .xyz, .traj, .cif or .vasp")
    return name


def write_structures(path: Path, frames: list[Atoms]) -> None:
    """Write structures in the format that the file's name asks for; a failure leaves nothing half-written."""
    from ase.calculators.calculator import InputError
    from ase.io import write

    from ase_equivariant.storage import replaced

    form = check_output(path)
    with replaced(path) as temporary:
        try:
            write(temporary, frames, format=form)
        except OSError:
            raise
        except Exception as error:  # ASE's writers raise whatever they stumble over
            raise InputError(f"cannot write {path} in the format {form}: {error}") from error
