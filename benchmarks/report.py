"""What the accuracy and physics benchmarks share: arguments, progress, and result files in one form."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from ase_equivariant import EquivariantCalculator, __version__
from ase_equivariant.workflows.record import MDSample
from ase_equivariant.zoo import resolve

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT.parent / "shared" / "data" / "mlearn"
PACKAGES = ("torch", "e3nn", "ase", "vesin", "numpy")


def parser(doc: str, model: bool = True, data: bool = False) -> argparse.ArgumentParser:
    """Arguments that the scripts have in common; `doc` is the script's docstring."""
    arguments = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if model:
        arguments.add_argument("--model", default="mace-mlearn", help="a shipped model or a model file")
    if data:
        arguments.add_argument("--data", type=Path, default=DATA, help="folder of the mlearn set")
    arguments.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    return arguments


def calculator(model: str | Path, dtype: str = "float64") -> EquivariantCalculator:
    """The model on the CPU."""
    return EquivariantCalculator(model, device="cpu", dtype=dtype)


def table(columns: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A Markdown table; floats are given as strings, already rounded."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def write(folder: Path, name: str, result: dict, markdown: str, model: str | None = None) -> None:
    """Write `name.json` and `name.md`, with the command, versions and the model's fingerprint, and print the table."""
    about = record(folder, name, result, model)
    origin = f"`{about['command']}`"
    if model:
        origin += f", model `{about['model']['name']}` {about['model']['sha256'][:12]}"
    (folder / f"{name}.md").write_text(f"{markdown}\n{origin}\n")
    print(markdown)


def record(folder: Path, name: str, result: dict, model: str | Path | None = None) -> dict:
    """Write `name.json`, and return what it says about how it was made."""
    script = Path(sys.argv[0]).resolve().relative_to(ROOT)
    about = {"command": " ".join(["python", str(script), *sys.argv[1:]]), "versions": _versions()}
    about["machine"] = platform.machine()
    if model:
        about["model"] = {"name": Path(model).stem, "sha256": hashlib.sha256(resolve(model).read_bytes()).hexdigest()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**about, **result}, indent=2, ensure_ascii=False) + "\n")
    return about


def _versions() -> dict[str, str]:
    packages = {package: version(package) for package in PACKAGES}
    return {"ase-equivariant": __version__, "python": platform.python_version(), **packages}


class Watch:
    """Observer of a dynamics run: keeps every sample and prints a line now and then."""

    def __init__(self, name: str, steps: int):
        self.name, self.steps = name, steps
        self.samples: list[MDSample] = []

    def __call__(self, sample: MDSample) -> None:
        self.samples.append(sample)
        if sample.step % max(self.steps // 10, 1) == 0:
            print(f"{self.name}: step {sample.step} of {self.steps}, {sample.temperature:.0f} K", flush=True)
