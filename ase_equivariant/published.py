"""Models that others have published: by name, downloaded once into the user's cache, checked whenever they are used.

The table is `published.json`. A file is looked for in the cache, then in the folder that `ASE_EQUIVARIANT_MIRROR`
names, where a machine without a network finds it under its published file name, and then fetched from its address.
Wherever it comes from, it has the sha256 of the table. A licence that is not open has to be accepted once: `accept`, or
its name in `ASE_EQUIVARIANT_ACCEPT`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ase.calculators.calculator import InputError

from ase_equivariant.download import Progress, download, file_sha256
from ase_equivariant.storage import cache_folder, write_atomically

FACTS = ("level_of_theory", "training_data", "license", "citation")


@cache
def _table() -> dict[str, Any]:
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def published_models() -> list[str]:
    """Names of the published models, sorted."""
    return sorted(_table()["models"])


def entry(name: str) -> dict[str, Any]:
    """What the table says of a model: url, size (bytes), sha256, elements (symbols, or how many), and its facts."""
    return _table()["models"][name]


def facts(name: str | os.PathLike) -> dict[str, str]:
    """Name, level of theory, training data, licence and citation of a published model; nothing for any other name."""
    known = _table()["models"].get(name) if isinstance(name, str) else None
    return {} if known is None else {"name": name, **{key: known[key] for key in FACTS}}


def accept(name: str) -> str:
    """Accept the licence called `name`, or that of the model called `name`, for this user; the licence's name."""
    licence = entry(name)["license"] if name in _table()["models"] else name
    if licence not in _table()["licenses"]:
        raise InputError(f"{name!r} is neither a published model nor a licence; licences are {', '.join(_closed())}")
    if licence in _closed():
        folder = cache_folder("accepted")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot write {folder}: {error.strerror}; set ASE_EQUIVARIANT_CACHE to a folder"
            ) from error
        write_atomically(f"{_table()['licenses'][licence]['url']}\n".encode(), folder / licence)
    return licence


def is_accepted(licence: str) -> bool:
    """Whether models under a licence may be used: it is open, or the user has accepted it."""
    named = os.environ.get("ASE_EQUIVARIANT_ACCEPT", "").split(",")
    return licence not in _closed() or licence in named or (cache_folder("accepted") / licence).is_file()


def _closed() -> list[str]:
    return [name for name, licence in _table()["licenses"].items() if not licence["open"]]


def cached_file(name: str) -> Path:
    """Where the cache has a published model, or will have it."""
    return cache_folder("models") / f"{name}{Path(entry(name)['url']).suffix}"


def obtain(name: str) -> Path:
    """The file of a published model, from the cache, the mirror or the web."""
    model, file = entry(name), cached_file(name)
    _require_licence(name, model["license"])
    if file.is_file():
        if file_sha256(file) == model["sha256"]:
            return file
        try:
            file.unlink(missing_ok=True)  # it was damaged here: what came was checked
        except OSError as error:
            raise InputError(f"{file} is damaged and cannot be replaced: {error.strerror}") from error
    mirrored = _mirrored(model["url"], model["sha256"])
    if mirrored is not None:
        return mirrored
    with _shown(name, model) as progress:
        download(model["url"], file, model["sha256"], progress)
    return file


def _require_licence(name: str, licence: str) -> None:
    if not is_accepted(licence):
        about = _table()["licenses"][licence]
        raise InputError(
            f"{name} is under the {about['name']} ({about['url']}), which is not open; if you agree, say so once: "
            f"ase-equivariant models --accept {licence}, or ASE_EQUIVARIANT_ACCEPT={licence} in the environment"
        )


def _mirrored(url: str, sha256: str) -> Path | None:
    folder = os.environ.get("ASE_EQUIVARIANT_MIRROR")
    file = Path(folder or ".").expanduser() / url.rsplit("/", 1)[-1]
    if not folder or not file.is_file():
        return None
    found = file_sha256(file)
    if found != sha256:
        raise InputError(f"{file} has the sha256 {found} instead of {sha256}; it is not the file that was published")
    return file


@contextmanager
def _shown(name: str, model: dict[str, Any]) -> Iterator[Progress | None]:
    """A bar on a terminal, a line elsewhere; on stderr, since results go to stdout."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        print(f"downloading {name} from {model['url']}", file=sys.stderr)
        yield None
        return
    columns = (TextColumn(name), BarColumn(24), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=model["size"])
        yield lambda done, total: bar.update(task, completed=done, total=total or model["size"])
