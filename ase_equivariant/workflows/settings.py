"""What a dynamics run is asked to do, every value checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.calculators.calculator import InputError

from ase_equivariant.workflows.checks import require_positive

ENSEMBLES = {
    "nve": "NVE",
    "nvt-langevin": "NVT (Langevin)",
    "nvt-nhc": "NVT (Nosé–Hoover chain)",
    "npt": "NPT (Martyna–Tobias–Klein)",
}


@dataclass(frozen=True)
class MDSettings:
    """What to run; every value is checked here."""

    ensemble: str = "nvt-langevin"  # one of ENSEMBLES
    temperature: float = 300.0  # K; of the thermostat, and of the velocities drawn at the start
    pressure: float = 0.0  # GPa, npt only
    timestep: float = 1.0  # fs
    steps: int = 1000
    friction: float = 0.01  # 1/fs, nvt-langevin only
    thermostat_time: float = 100.0  # fs, nvt-nhc and npt
    barostat_time: float = 1000.0  # fs, npt
    interval: int = 10  # steps between frames of the trajectory and rows of the log
    seed: int = 0

    @property
    def conserves(self) -> bool:
        """Whether the ensemble has a conserved energy; Langevin exchanges heat that nobody counts."""
        return self.ensemble != "nvt-langevin"

    def __post_init__(self):
        if self.ensemble not in ENSEMBLES:
            raise InputError(f"unknown ensemble {self.ensemble!r}; choose one of {', '.join(ENSEMBLES)}")
        positive = ("temperature", "timestep", "steps", "friction", "thermostat_time", "barostat_time", "interval")
        require_positive(**{name: getattr(self, name) for name in positive})
        if self.seed < 0:
            raise InputError(f"seed must be 0 or more; got {self.seed}")
        if not np.isfinite(self.pressure):
            raise InputError(f"pressure must be a number, in GPa; got {self.pressure}")
        if self.pressure and self.ensemble != "npt":
            raise InputError(f"a pressure of {self.pressure} GPa needs ensemble npt; {self.ensemble} keeps the cell")
