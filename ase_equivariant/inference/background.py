"""Compiles the kernels of a model in a process of its own, so that the next calculator finds them on disk."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import warnings

import torch

from ase_equivariant.checkpoint import from_bytes, to_bytes
from ase_equivariant.potential import Potential

_COMPILE = "import sys; sys.path[:] = sys.argv[1:]; from ase_equivariant.inference.background import main; main()"
_started: dict[str, subprocess.Popen] = {}  # by the sha256 of the model


def start(potential: Potential) -> None:
    """Start the process, unless this one has done so for the same model."""
    model = to_bytes(potential)
    key = hashlib.sha256(model).hexdigest()
    if key in _started:
        return
    with tempfile.TemporaryFile() as file:
        file.write(model)
        file.seek(0)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        # a session of its own: it outlives this process, and an interrupt from the keyboard;
        # the modules of this process: by itself python would look into the working folder first
        command = [sys.executable, "-c", _COMPILE, *map(str, sys.path)]
        _started[key] = subprocess.Popen(command, stdin=file, start_new_session=True, **quiet)


def wait() -> None:
    """Until what was started has ended; a failure is a warning, as others can still answer."""
    while _started:
        _, process = _started.popitem()
        if process.wait() != 0:
            warnings.warn(
                f"compiling kernels in the background failed with exit code {process.returncode}; a calculator without "
                "background_compile tells why",
                stacklevel=3,
            )


def main() -> None:
    """Compile the model on the standard input."""
    from ase_equivariant import inference

    inference.start("numba", from_bytes(sys.stdin.buffer.read()).eval().requires_grad_(False), torch.device("cpu"))
