"""Carry the peers of `peers/run.py --device cuda` to a machine that reaches no package index.

    python benchmarks/device/peers.py pack ARCHIVE          # where there is an index
    python benchmarks/device/peers.py unpack ARCHIVE PEERS  # there, with a Python that has torch for CUDA and its needs

The archive, a .tar.xz, holds the packages that a common installation of PyTorch lacks, for Python 3.12, and the cases'
models, which a peer writes. PEERS is then a folder for `run.py --peers`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "peers"))
from environments import CUEQ, MACE, SYMMETRIX_CUDA, interpreter  # noqa: E402

NEEDS = ["ase==3.29.0", "e3nn==0.4.4", "lmdb==3.0.0", "matscipy==1.3.1", "orjson==3.13.0", "torch-ema==0.3"]
CUEQ_NEEDS = ["cuequivariance-ops-cu13==0.13.0", "platformdirs==4.14.8"]
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)] + ["manylinux2014_x86_64"]
CPU_ONLY = ("symmetrix_xl.libs", "symmetrix/_native_cpu*.so")  # half of that package, and CUDA does not load it
ENVIRONMENTS = ("mace", "mace-cueq", "symmetrix-cuda")
WRAPPER = """#!/bin/sh
export PYTHONPATH="{site}" LD_LIBRARY_PATH="{libraries}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
exec "{python}" "$@"
"""


def pack(archive: Path) -> None:
    """Download and compress; models that are missing are written first."""
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        binary = ["--no-deps", "--no-compile", "--only-binary=:all:", "--python-version", "3.12"]
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        packages = [MACE, *NEEDS, *CUEQ, *CUEQ_NEEDS, *SYMMETRIX_CUDA]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", site, *binary, *platforms, *packages]
        subprocess.run(pip, check=True)
        for pattern in CPU_ONLY:
            for path in site.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        models = Path(folder) / "models"
        models.mkdir()
        for file in write_models(HERE.parents[1] / ".peers"):
            shutil.copy(file, models)
        with tarfile.open(archive, "w:xz", preset=9) as tar:
            tar.add(site, "site")
            tar.add(models, "models")
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")


def write_models(peers: Path) -> list[Path]:
    """The files of all cases on CUDA, each with the one that symmetrix-xl reads."""
    from cases import CASES
    from run import model_file
    from turns import UNPICKLE, Setting

    setting, files = Setting(peers, threads=1, memory=16.0, turns=1), []
    for name, case in CASES["cuda"].items():
        model = model_file(name, case, setting)
        converted = model.with_suffix(".json")
        if not converted.exists():
            program = interpreter("symmetrix", peers).with_name("symmetrix_extract_mace")
            command = [program, "--model", model, "--output", converted]
            subprocess.run(command, env=setting.variables(UNPICKLE), check=True)
        files += [model, converted]
    return list(dict.fromkeys(files))


def unpack(archive: Path, peers: Path) -> None:
    """Make what `environments.interpreter` takes for environments: this Python, with the archive's packages first."""
    with tarfile.open(archive) as tar:
        tar.extractall(peers, filter="data")
    beside_torch = (Path(entry) / "nvidia" / "cu13" / "lib" for entry in sys.path)
    libraries = next((folder for folder in beside_torch if folder.is_dir()), "")  # symmetrix-xl looks elsewhere
    for name in ENVIRONMENTS:
        python = peers / name / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(WRAPPER.format(site=peers.resolve() / "site", libraries=libraries, python=sys.executable))
        python.chmod(0o755)
        (peers / name / ".ready").touch()


if __name__ == "__main__":
    {"pack": pack, "unpack": unpack}[sys.argv[1]](*map(Path, sys.argv[2:]))
