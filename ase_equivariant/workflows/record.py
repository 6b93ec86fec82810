"""What a dynamics run leaves behind: samples, trajectory, log, the last good state, and the summary.

There is one `MDSample` per step; those at every `interval`-th step, and the last, go to the files.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import InputError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import Trajectory

from ase_equivariant.workflows.settings import MDSettings

COLUMNS = "step,time_ps,potential_energy_eV,kinetic_energy_eV,temperature_K,conserved_energy_eV,volume_A3,pressure_GPa"
SAVED = ("energy", "free_energy", "forces", "stress")


@dataclass(frozen=True)
class MDSample:
    """The state after one step."""

    step: int
    time: float  # ps
    potential_energy: float  # eV
    kinetic_energy: float  # eV
    temperature: float  # K
    conserved_energy: float  # eV; the total energy where the ensemble conserves nothing
    volume: float | None  # Å^3; None without a 3-D periodic cell
    pressure: float | None  # GPa, with the ideal-gas share; None where it is not defined


@dataclass(frozen=True)
class MDFiles:
    """What a run writes: `PREFIX.traj`, `PREFIX.csv`, `PREFIX-final.xyz` and `PREFIX.png`."""

    trajectory: Path
    log: Path
    final: Path
    picture: Path

    @classmethod
    def at(cls, prefix: str | Path) -> MDFiles:
        base = Path(prefix)
        if base.is_dir():
            raise InputError(f"{base} is a directory; give the beginning of the files' names, such as {base / 'md'}")
        if base.parent.exists() and not base.parent.is_dir():
            raise InputError(f"cannot write {base}: {base.parent} is not a directory")
        return cls(Path(f"{base}.traj"), Path(f"{base}.csv"), Path(f"{base}-final.xyz"), Path(f"{base}.png"))


class Recorder:
    """Files of a run, open while it lasts, and the atoms as they were after the last good step."""

    def __init__(self, atoms: Atoms, files: MDFiles, interval: int):
        self.atoms = atoms
        self.files = files
        self.interval = interval
        self.samples: list[MDSample] = []  # those in the files
        self.last: Atoms | None = None  # after the last good step, with its results
        self._unwritten: MDSample | None = None

    def __enter__(self) -> Recorder:
        self.files.log.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._trajectory = stack.enter_context(Trajectory(str(self.files.trajectory), "w"))
            self._log = stack.enter_context(open(self.files.log, "w", buffering=1))
            self._log.write(COLUMNS + "\n")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        with self._stack:
            if self._unwritten:
                self._write()

    def record(self, sample: MDSample) -> None:
        """Keep the state after a good step."""
        self.last, self._unwritten = self._snapshot(), sample
        if sample.step % self.interval == 0:
            self._write()

    def _write(self) -> None:
        sample, self._unwritten = self._unwritten, None
        self.samples.append(sample)
        self._trajectory.write(self.last)
        self._log.write(",".join("" if value is None else f"{value:.10g}" for value in astuple(sample)) + "\n")

    def _snapshot(self) -> Atoms:
        results = self.atoms.calc.results
        atoms = self.atoms.copy()
        atoms.calc = SinglePointCalculator(atoms, **{key: results[key] for key in SAVED if key in results})
        return atoms


@dataclass(frozen=True)
class MDSummary:
    """What was done; averages leave out the first half of the run, as equilibration."""

    settings: MDSettings
    formula: str
    n_atoms: int
    steps: int  # finished
    interrupted: bool
    seconds: float
    ns_per_day: float
    temperature: tuple[float, float]  # mean and standard deviation, K
    pressure: tuple[float, float] | None  # GPa
    volume: tuple[float, float] | None  # Å^3
    drift: float | None  # of the conserved energy, meV per atom and ps; None for Langevin, which conserves nothing
    files: MDFiles


def summarize(settings: MDSettings, recorder: Recorder, seconds: float, interrupted: bool) -> MDSummary:
    """Averages, drift and speed of a run."""
    samples, n_atoms = recorder.samples, len(recorder.last)
    settled = samples[len(samples) // 2 :]
    drift = None
    if settings.conserves and len(samples) > 1:
        conserved = [sample.conserved_energy for sample in samples]
        drift = float(np.polyfit([sample.time for sample in samples], conserved, 1)[0]) / n_atoms * 1e3
    return MDSummary(
        settings=settings,
        formula=recorder.last.get_chemical_formula(),
        n_atoms=n_atoms,
        steps=samples[-1].step,
        interrupted=interrupted,
        seconds=seconds,
        ns_per_day=samples[-1].time * 1e-3 / seconds * 86400,
        temperature=_mean_and_deviation([sample.temperature for sample in settled]),
        pressure=_mean_and_deviation([sample.pressure for sample in settled]),
        volume=_mean_and_deviation([sample.volume for sample in settled]),
        drift=drift,
        files=recorder.files,
    )


def _mean_and_deviation(values: list[float | None]) -> tuple[float, float] | None:
    return None if None in values else (float(np.mean(values)), float(np.std(values)))
