"""A file from the web: whole, checked and in its place, or not there; what was interrupted is continued later.

While it comes, it is called `NAME.part`, and a lock keeps other processes waiting instead of fetching it, too.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ase.calculators.calculator import InputError
from filelock import FileLock

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 3  # connections in a row that bring nothing
CHUNK = 1 << 18  # bytes

Progress = Callable[[int, int], None]  # bytes so far, bytes in all (0: unknown)


def download(url: str, target: Path, sha256: str, progress: Progress | None = None) -> None:
    """Fetch `url` into `target`, unless it is there; the content must have this sha256.

    Raises `InputError` with the reason; what has come of a file that is not complete is continued the next time.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_file():  # another process may have brought it while this one waited
                _fetch(url, target, sha256, progress or (lambda done, total: None))
    except OSError as error:
        raise InputError(
            f"cannot keep {target.name} in {target.parent}: {error.strerror or error}; "
            "make room there, or set ASE_EQUIVARIANT_CACHE to another folder"
        ) from error


def file_sha256(path: Path) -> str:
    """Of a file of any size, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _fetch(url: str, target: Path, sha256: str, progress: Progress) -> None:
    part = target.with_name(f"{target.name}.part")
    try:
        resumed = part.exists()
        if not resumed or file_sha256(part) != sha256:  # it may be complete: its process was stopped before the rename
            _receive_all(url, part, progress)
        found = file_sha256(part)
        if found != sha256:
            part.unlink()
            if resumed:  # the beginning may have been of another file, or damaged
                return _fetch(url, target, sha256, progress)
            raise InputError(f"{url} gave a file whose sha256 is {found} instead of {sha256}; it was not kept")
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # leave no gigabytes on a disk that is full
            with suppress(OSError):
                part.unlink()
        raise


def _receive_all(url: str, part: Path, progress: Progress) -> None:
    """Connect again and again, as long as it helps, until the file is complete."""
    failures = 0
    while True:
        before = _size(part)
        try:
            if _receive(url, part, before, progress):
                return
            reason = "the connection was cut"
        except HTTPError as error:
            if error.code != 416:  # of a rest that does not exist: the part is not of this file
                raise InputError(f"cannot download {url}: the server says {error.code} {error.reason}") from error
            part.unlink()
            reason = "what is there does not fit the file"
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 0 if _size(part) > before else failures + 1
        if failures == ATTEMPTS:
            raise InputError(
                f"cannot download {url}: {reason}; "
                + (
                    f"{_size(part)} bytes are kept, ask again to continue"
                    if part.exists()
                    else "is there a network? Without one, ASE_EQUIVARIANT_MIRROR names a folder that has the file"
                )
            )


def _receive(url: str, part: Path, start: int, progress: Progress) -> bool:
    """One connection: appends to the part what comes; whether the file is complete."""
    headers = {"User-Agent": "ase-equivariant", **({"Range": f"bytes={start}-"} if start else {})}
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as response:
        if response.headers.get_content_type() == "text/html":
            raise InputError(f"cannot download {url}: it is a web page, not a model; is the network behind a login?")
        if response.status != 206:  # a server that cannot continue gives all
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else 0
        done = start
        with open(part, "ab" if start else "wb") as file:
            while chunk := _read(response):
                file.write(chunk)
                done += len(chunk)
                progress(done, total)
    return done == total or not total


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except OSError as error:  # of the network, not of the disk
        raise URLError(error) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
