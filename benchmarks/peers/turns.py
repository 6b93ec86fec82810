"""Processes that take turns on one model file and one structure, after their results were found equal.

All stay alive, so that whatever else the machine does meets them alike: ratios of one turn mean more than milliseconds.
"""

from __future__ import annotations

import json
import os
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
from worker import MEMORY

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TOLERANCE = 3e-4  # of the largest force, and of the energy: ten times what single precision and splines leave
# e3nn 0.4.4 unpickles its constants, which torch >= 2.6 refuses unless told
UNPICKLE = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
PINNED = {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}
PEERS = {  # environment, variables
    "cpu": {
        "mace-torch": ("mace", UNPICKLE),
        "symmetrix-xl": ("symmetrix", {**UNPICKLE, **PINNED}),
        "nequip": ("nequip", {}),
        "nequip, compiled": ("nequip", {}),
        "nequix": ("nequix", {}),
    },
    "cuda": {
        "mace-torch": ("mace", UNPICKLE),
        "mace-torch, cuEquivariance": ("mace-cueq", UNPICKLE),
        "symmetrix-xl": ("symmetrix-cuda", {**UNPICKLE, **PINNED}),
    },
}
WRITERS = {"mace": ("mace", UNPICKLE, ".model"), "nequip": ("nequip", {}, ".ckpt")}


@dataclass(frozen=True)
class Setting:
    """What all sides of a run have in common."""

    peers: Path  # folder of environments
    threads: int
    memory: float  # GiB per process, on a processor
    turns: int
    seconds: float = 1.0  # of a turn
    device: str = "cpu"  # or "cuda"

    def variables(self, more: dict[str, str]) -> dict[str, str]:
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        return {**os.environ, **threads, **more}


class Side:
    """One of the processes; `failed` says why it has no more turns."""

    def __init__(self, name: str, model: Path, structure: Path, setting: Setting):
        self.name, self.facts, self.times, self.failed = name, {}, [], ""
        self.agreement: dict[str, float] = {}
        self.process: subprocess.Popen | None = None
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment, variables = PEERS[setting.device].get(name, ("", {"PYTHONPATH": path}))
        try:
            python = interpreter(environment, setting.peers) if environment else sys.executable
        except NotInstalledError as error:
            self.failed = f"does not install: {error}"
            return
        limits = {name: str(getattr(setting, name)) for name in ("threads", "memory", "device", "seconds")}
        options = [f"--{name}={value}" for name, value in limits.items()]
        self.errors = structure.with_name(f"{name}.txt")
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [python, HERE / "worker.py", name, model, structure, *options],
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
        starved = code == -9 or MEMORY.search("\n".join(lines))
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
    """Largest differences to the first side that another one confirms; beyond `TOLERANCE` a side has failed."""
    running = [side for side in sides if not side.failed]
    confirmed = (one for one in running if any(equal(one, side) for side in running if side is not one))
    first = next(confirmed, running[0])
    energy, largest = first.results["energy"] / len(first.results["forces"]), np.abs(first.results["forces"]).max()
    for side in running:
        d_energy, d_forces = differences(first, side)
        side.agreement = {"energy_eV_per_atom": d_energy, "forces_eV_per_A": d_forces}
        if not equal(first, side):
            scale = f"energies are {energy:.3g} eV/atom, forces up to {largest:.3g} eV/Å"
            side.failed = f"disagrees by {d_energy:.1e} eV/atom and {d_forces:.1e} eV/Å, where {scale}"


def differences(first: Side, side: Side) -> tuple[float, float]:
    """Of the energy, per atom, and of the forces, the largest component."""
    forces = np.array(first.results["forces"])
    d_energy = abs(side.results["energy"] - first.results["energy"]) / len(forces)
    return d_energy, float(np.abs(np.array(side.results["forces"]) - forces).max())


def equal(first: Side, side: Side) -> bool:
    """Within `TOLERANCE`; what is not a number equals nothing."""
    d_energy, d_forces = differences(first, side)
    forces = np.array(first.results["forces"])
    per_atom = abs(first.results["energy"]) / len(forces)
    return bool(d_energy <= TOLERANCE * per_atom and d_forces <= TOLERANCE * np.abs(forces).max())


def measure(names: Sequence[str], model: Path, structure: Atoms, setting: Setting) -> dict[str, dict]:
    """A row of the table per side, by name."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "structure.traj"
        structure.write(file)
        sides = []
        for group in groups(names, setting.device):
            starting = [Side(name, model, file, setting) for name in group]
            for side in starting:
                side.start()
                print(f"  {side.name}: {side.failed or 'ready'}", flush=True)
            sides += starting
        if all(side.failed for side in sides):
            raise SystemExit("\n".join(f"{side.name}: {side.failed}" for side in sides))
        compare(sides)
        for turn in range(setting.turns):
            running = [side for side in sides if not side.failed]
            for side in running:
                side.turn()
            times = ", ".join(f"{side.name} {side.times[-1]:.2f} ms" for side in running)
            print(f"  turn {turn + 1}: {times}", flush=True)
        for side in sides:
            side.end()
        first = next((side for side in sides if not side.failed), sides[0])
        return {side.name: row(side, first) for side in sides}


def groups(names: Sequence[str], device: str) -> list[Sequence[str]]:
    """Those that start together: none on a processor, since starting means compiling; all of them beside a GPU."""
    return [[name] for name in names] if device == "cpu" else [names]


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
