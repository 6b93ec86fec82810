"""Each peer in an environment of its own, made on first use: they need versions that exclude one another."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

TORCH, MACE, SYMMETRIX = "torch==2.13.0", "mace-torch==0.3.16", "symmetrix-xl==0.1.1"
CUEQ = [f"{name}==0.13.0" for name in ("cuequivariance", "cuequivariance-torch", "cuequivariance-ops-torch-cu13")]
SYMMETRIX_CUDA = [SYMMETRIX, "symmetrix-xl-cuda13-sm90==0.1.1"]  # one package per generation of GPUs: this is Hopper's
JAX = ["jax==0.10.2", "e3nn-jax==0.21.0", "equinox==0.13.8", "jraph==0.0.6.dev0", "ase-db-backends"]
PACKAGES = {
    "mace": [[TORCH, MACE]],
    "mace-cueq": [[TORCH, MACE, *CUEQ]],
    "symmetrix": [[TORCH, MACE, SYMMETRIX]],  # it converts files with mace-torch
    "symmetrix-cuda": [[TORCH, MACE, *SYMMETRIX_CUDA]],
    "nequip": [[TORCH, "nequip==0.19.1"]],
    "nequix": [["--no-deps", "nequix==0.4.5"], [*JAX, "matscipy", "pyyaml", "tqdm"]],  # which asks for CUDA's gigabytes
}


class NotInstalledError(Exception):
    """With pip's last words."""


def interpreter(name: str, folder: Path) -> Path:
    """The environment's Python; a broken installation leaves no mark and is made anew."""
    path = folder.resolve() / name
    if not (path / ".ready").exists():
        venv.create(path, with_pip=True, clear=True)
        for packages in PACKAGES[name]:
            print(f"installing {' '.join(packages)} into {path}", flush=True)
            pip = [path / "bin" / "pip", "install", "--quiet", *packages]
            done = subprocess.run(pip, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise NotInstalledError((done.stderr.strip().splitlines() or ["pip failed"])[-1])
        (path / ".ready").touch()
    return path / "bin" / "python"
