"""Energy drift of 216 silicon atoms at 300 K: 5 ps of NVE with 1 fs steps, in float64 and in float32.

    python benchmarks/physics/nve.py [--model NAME]

The crystal at the model's lattice constant is brought to 300 K (Langevin, 1 ps, and velocities scaled at the end); both
precisions start from this state. Drift is the slope of a straight line through the total energies of all steps. Target:
below 0.02 meV/atom/ps.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.md.velocitydistribution import Stationary, force_temperature

from ase_equivariant.workflows.md import MDSettings, run_md

sys.path.append(str(Path(__file__).resolve().parents[1]))
from crystals import equation_of_state  # noqa: E402
from report import Watch, calculator, parser, table, write  # noqa: E402

TARGET = 0.02  # meV/atom/ps
REPEAT = 3
TEMPERATURE, TIMESTEP = 300.0, 1.0  # K, fs


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--ps", type=float, default=5.0, help="length of each run")
    args = arguments.parse_args()
    steps = round(args.ps * 1e3 / TIMESTEP)
    atoms = equilibrated(args.model)
    runs = {dtype: run_nve(atoms.copy(), calculator(args.model, dtype), steps) for dtype in ("float64", "float32")}
    columns = ["", "drift (meV/atom/ps)", f"below {TARGET}", "deviation from the line (meV/atom)"]
    columns += ["temperature (K)", "model calls per step", "ms per step"]
    rows = [
        [
            dtype,
            f"{run['drift']:+.5f}",
            "yes" if run["good"] else "no",
            f"{run['deviation']:.4f}",
            f"{run['temperature']:.0f}",
            f"{run['calls_per_step']:.3f}",
            f"{run['ms_per_step']:.0f}",
        ]
        for dtype, run in runs.items()
    ]
    result = {"atoms": len(atoms), "steps": steps, "timestep_fs": TIMESTEP, "target": TARGET, "runs": runs}
    write(args.results, "nve", result, table(columns, rows), args.model)


def equilibrated(model: str) -> Atoms:
    calc = calculator(model, "float32")
    atoms = bulk("Si", a=equation_of_state("Si", calculator(model))["lattice_constant"], cubic=True).repeat(REPEAT)
    atoms.calc = calc
    settings = MDSettings("nvt-langevin", TEMPERATURE, timestep=2.0, steps=500, friction=0.02, interval=100)
    with TemporaryDirectory() as folder:
        run_md(atoms, settings, Path(folder) / "nvt", Watch("equilibration", settings.steps))
    Stationary(atoms)
    force_temperature(atoms, TEMPERATURE)
    return atoms


def run_nve(atoms: Atoms, model: Calculator, steps: int) -> dict[str, float]:
    """Drift and what belongs to it; see the module's docstring for units."""
    atoms.calc = model
    settings = MDSettings("nve", TEMPERATURE, timestep=TIMESTEP, steps=steps, interval=max(steps // 10, 1))
    watch = Watch(f"NVE {model.parameters['dtype']}", steps)
    with TemporaryDirectory() as folder:
        summary = run_md(atoms, settings, Path(folder) / "nve", watch)
    times = [sample.time for sample in watch.samples]
    energies = np.array([sample.conserved_energy for sample in watch.samples]) / len(atoms) * 1e3
    line = np.polyfit(times, energies, 1)
    return {
        "drift": float(line[0]),
        "good": bool(abs(line[0]) < TARGET),
        "deviation": float(np.std(energies - np.polyval(line, times))),
        "temperature": float(np.mean([sample.temperature for sample in watch.samples])),
        "calls_per_step": model.calls / summary.steps,
        "ms_per_step": summary.seconds / summary.steps * 1e3,
    }


if __name__ == "__main__":
    main()
