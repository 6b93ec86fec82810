"""Processes that take turns on one model file and one structure, after their results were found equal.

All stay alive, so that whatever else the machine does meets them alike: ratios of one turn mean more than milliseconds.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from ase import Atoms
from environments import NotInstalledError, interpreter

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TOLERANCE = 3e-4  # of the largest force, and of the energy: ten times what single precision and splines leave
# e3nn 0.4.4 unpickles its constants, which torch >= 2.6 refuses unless told
UNPICKLE = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
PEERS = {  # environment, variables
    "mace-torch": ("mace", UNPICKLE),
    "symmetrix-xl": ("symmetrix", {**UNPICKLE, "OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}),
    "nequip": ("nequip", {}),
    "nequip, compiled": ("nequip", {}),
    "nequix": ("nequix", {}),
}
WRITERS = {"mace": ("mace", UNPICKLE, ".model"), "nequip": ("nequip", {}, ".ckpt")}


@dataclass(frozen=True)
class Setting:
    """What all sides of a run have in common."""

    peers: Path  # folder of environments
    threads: int
    memory: float  # GiB per process
    turns: int

    def variables(self, more: dict[str, str]) -> dict[str, str]:
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        return {**os.environ, **threads, **more}


class Side:
    """One of the processes; `failed` says why it has no more turns."""

    def __init__(self, name: str, model: Path, structure: Path, setting: Setting):
        self.name, self.facts, self.times, self.failed = name, {}, [], ""
        self.agreement: dict[str, float] = {}
        self.process: subprocess.Popen | None = None
        environment, variables = PEERS.get(name, ("", {"PYTHONPATH": str(ROOT)}))
        try:
            python = interpreter(environment, setting.peers) if environment else sys.executable
        except NotInstalledError as error:
            self.failed = f"does not install: {error}"
            return
        limits = ["--threads", str(setting.threads), "--memory", str(setting.memory)]
        self.errors = structure.with_name(f"{name}.txt")
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [python, HERE / "worker.py", name, model, structure, *limits],
                env=setting.variables(variables),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def answer(self) -> dict:
        """The process's next line; empty when it failed."""
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"failed": self._last_words()}
        self.failed = answer.pop("failed", self.failed)
        return answer

    def _last_words(self) -> str:
        """Why a process ended without a word: the system or a library ends those without memory."""
        code = self.process.wait()
        lines = self.errors.read_text(errors="replace").strip().splitlines()[-20:]
        starved = code == -9 or re.search("memory|bad_alloc", "\n".join(lines), re.IGNORECASE)
        return "out of memory" if starved else (lines or [f"it ended with code {code}"])[-1]

    def start(self) -> None:
        answer = self.answer() if not self.failed else {}
        self.facts = answer.pop("facts", {})
        self.results = answer

    def turn(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.times.append(self.answer().get("ms", float("nan")))

    def end(self) -> None:
        if self.process:
            self.process.stdin.close()
            self.facts |= self.answer() if not self.failed else {}
            self.process.wait()


def compare(sides: Sequence[Side]) -> None:
    """Largest differences to the first side, per atom and per component; beyond `TOLERANCE` a side has failed."""
    first = sides[0]
    forces, energy = np.array(first.results["forces"]), first.results["energy"]
    for side in sides:
        if side.failed:
            continue
        d_energy = abs(side.results["energy"] - energy) / len(forces)
        d_forces = np.abs(np.array(side.results["forces"]) - forces).max()
        side.agreement = {"energy_eV_per_atom": d_energy, "forces_eV_per_A": float(d_forces)}
        equal = d_energy <= TOLERANCE * abs(energy) / len(forces) and d_forces <= TOLERANCE * np.abs(forces).max()
        if not equal:
            scale = f"energies are {energy / len(forces):.3g} eV/atom, forces up to {np.abs(forces).max():.3g} eV/Å"
            side.failed = f"disagrees by {d_energy:.1e} eV/atom and {d_forces:.1e} eV/Å, where {scale}"


def measure(names: Sequence[str], model: Path, structure: Atoms, setting: Setting) -> dict[str, dict]:
    """A row of the table per side, by name."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "structure.traj"
        structure.write(file)
        sides = []
        for name in names:  # one after the other: starting means compiling
            sides.append(Side(name, model, file, setting))
            sides[-1].start()
            print(f"  {name}: {sides[-1].failed or 'ready'}", flush=True)
        if sides[0].failed:
            raise SystemExit(f"{names[0]}, with which the others are compared, failed: {sides[0].failed}")
        compare(sides)
        for turn in range(setting.turns):
            running = [side for side in sides if not side.failed]
            for side in running:
                side.turn()
            times = ", ".join(f"{side.name} {side.times[-1]:.2f} ms" for side in running)
            print(f"  turn {turn + 1}: {times}", flush=True)
        for side in sides:
            side.end()
        return {side.name: row(side, sides[0]) for side in sides}


def row(side: Side, first: Side) -> dict:
    if side.failed:
        return {"failed": side.failed, **side.facts, "agreement": side.agreement}
    ratios = [theirs / ours for theirs, ours in zip(side.times, first.times, strict=True)]
    return {
        "ms": round(median(side.times), 3),
        "ratio": {"median": median(ratios), "min": min(ratios), "max": max(ratios)},
        "agreement": side.agreement,
        **side.facts,
        "turns_ms": [round(time, 3) for time in side.times],
    }
