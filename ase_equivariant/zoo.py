"""Models by name, shipped with this package or published elsewhere: from a name to the file that holds it."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from ase.calculators.calculator import InputError

from ase_equivariant.published import obtain, published_models
from ase_equivariant.text import shown

PACKAGE = Path(__file__).parent
# inside the package in a wheel, beside it in the source tree and in an editable install
MODELS = next((p for p in (PACKAGE / "models", PACKAGE.parent / "models") if p.is_dir()), PACKAGE / "models")
SUFFIX = ".safetensors"


def available_models(published: bool = False) -> list[str]:
    """Names of the models shipped with this package, sorted; all of them work offline.

    With `published`, also of those that are downloaded when they are first asked for.
    """
    shipped = sorted(path.stem for path in MODELS.glob(f"*{SUFFIX}"))
    return shipped + published_models() if published else shipped


def resolve(name_or_path: str | os.PathLike) -> Path:
    """The file that belongs to the name of a shipped or published model, or to a path; it is downloaded if need be.

    A name wins over a file of the same name; write "./name", a string, for the file: `Path` drops the dot.
    """
    if not isinstance(name_or_path, (str, os.PathLike)) or not os.fspath(name_or_path):
        raise InputError(f"a model is given by its name or by the path of its file, not by {shown(name_or_path)}")
    names, name = available_models(), os.fspath(name_or_path)
    if name in names:
        return MODELS / f"{name}{SUFFIX}"
    if name in published_models():
        return obtain(name)
    path = Path(name).expanduser()
    if os.path.isfile(path):  # false, not an error, for names that no file can have
        return path
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory; give a model file or one of the shipped models: {_listed(names)}")
    if path.suffix or name != path.name:  # it is no name, but meant as a path
        raise InputError(f"there is no model file {path}{_closest_file(path, names)}")
    close = _closest_names(path.name)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise InputError(
        f"unknown model {str(path)!r}{hint} (shipped: {_listed(names)}; or give the path of a file; "
        "`ase-equivariant models` lists the published ones)"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _closest_names(name: str) -> list[str]:
    """Those that contain it, as a family of models contains its sizes, or those that are spelt alike."""
    name, names = name.lower().replace("_", "-"), available_models(published=True)
    return [known for known in names if name in known][:3] or get_close_matches(name, names, n=3, cutoff=0.5)


def _closest_file(path: Path, names: list[str]) -> str:
    if not path.parent.is_dir():
        return f": {path.parent} is not a directory"
    if path.stem in names:
        return f"; did you mean the shipped model {path.stem}?"
    files = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    close = get_close_matches(path.name, files, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""
