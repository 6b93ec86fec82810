"""Copper and silicon at 300 K and 0 GPa: 10 ps of NPT, float32; are they still crystals?

    python benchmarks/physics/npt.py [--model NAME]

Isotropic Martyna-Tobias-Klein barostat, 2 fs steps, starting from the crystal at its 0 K lattice constant with twice
the kinetic energy of 300 K. Averages leave out the first 2 ps. The crystal is called stable when

- atoms have as many neighbours (up to half-way between first and second shell) as in the lattice, within 0.1 in mean,
- their root mean square distance from their mean sites is below 0.1 of the bond (Lindemann's criterion), and
- no mean site is further than 0.25 of the bond from its place in the lattice, as it would be after a hop.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.io import read

from ase_equivariant.neighbors import neighbor_list
from ase_equivariant.workflows.md import MDSettings, draw_velocities, run_md

sys.path.append(str(Path(__file__).resolve().parents[1]))
from crystals import CUBIC_ATOMS, equation_of_state  # noqa: E402
from report import Watch, calculator, parser, table, write  # noqa: E402

REPEATS = {"Cu": 3, "Si": 3}  # of the cubic cell: 108 and 216 atoms
SHELLS = {"fcc": (12, 1 / 2**0.5, 1.0), "diamond": (4, 3**0.5 / 4, 1 / 2**0.5)}  # coordination, distances / a
TEMPERATURE, TIMESTEP, SETTLED = 300.0, 2.0, 2.0  # K, fs, ps
LINDEMANN, HOP = 0.1, 0.25  # of the nearest-neighbour distance


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--ps", type=float, default=10.0, help="length of each run")
    args = arguments.parse_args()
    runs = {symbol: run_npt(symbol, args.model, args.ps, args.results) for symbol in REPEATS}
    result = {"temperature_K": TEMPERATURE, "pressure_GPa": 0.0, "ps": args.ps, "timestep_fs": TIMESTEP, "runs": runs}
    write(args.results, "npt", result, markdown(runs), args.model)


def run_npt(symbol: str, model: str, length: float, folder: Path) -> dict:
    eos = equation_of_state(symbol, calculator(model))
    structure, cold = eos["structure"], eos["lattice_constant"]
    ideal = bulk(symbol, structure, a=cold, cubic=True).repeat(REPEATS[symbol])
    atoms = ideal.copy()
    atoms.calc = calculator(model, "float32")
    # half of the kinetic energy turns into potential energy of the lattice
    draw_velocities(atoms, 2 * TEMPERATURE, np.random.default_rng(0))
    steps = round(length * 1e3 / TIMESTEP)
    settings = MDSettings("npt", TEMPERATURE, timestep=TIMESTEP, steps=steps, interval=10)
    watch = Watch(f"NPT {symbol}", steps)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        summary = run_md(atoms, settings, Path(scratch) / "npt", watch)
        frames = read(summary.files.trajectory, ":")
        shutil.copy(summary.files.picture, folder / f"npt_{symbol}.png")
    settled = [sample for sample in watch.samples if sample.time > min(SETTLED, length / 5)]
    warm = np.mean([(s.volume / len(atoms) * CUBIC_ATOMS[structure]) ** (1 / 3) for s in settled])
    order = crystalline_order(frames[-len(settled) // settings.interval :], ideal, structure)
    return {
        "atoms": len(atoms),
        "temperature": [float(f([s.temperature for s in settled])) for f in (np.mean, np.std)],
        "pressure": [float(f([s.pressure for s in settled])) for f in (np.mean, np.std)],
        "lattice_constant_0K": cold,
        "lattice_constant": float(warm),
        "expansion_percent": float(100 * (warm / cold - 1)),
        "drift_mev_per_atom_ps": summary.drift,
        "ms_per_step": summary.seconds / steps * 1e3,
        "calls_per_step": atoms.calc.calls / steps,
        **order,
    }


def crystalline_order(frames: list[Atoms], ideal: Atoms, structure: str) -> dict:
    """Coordination, first peak of the pair distribution, and displacements over the nearest-neighbour distance."""
    coordination, first, second = SHELLS[structure]
    scaled = np.array([a.cell.scaled_positions(a.positions) for a in frames])  # not wrapped: atoms are followed
    scaled -= (scaled - ideal.cell.scaled_positions(ideal.positions)).mean(axis=1, keepdims=True)
    edge = np.mean([a.cell.lengths().mean() for a in frames])
    sites = scaled.mean(axis=0)
    nearest = first * edge / round((len(ideal) / CUBIC_ATOMS[structure]) ** (1 / 3))
    vibration = np.sqrt(((scaled - sites) ** 2).sum(axis=2).mean()) * edge / nearest
    wander = np.linalg.norm(sites - ideal.cell.scaled_positions(ideal.positions), axis=1).max() * edge / nearest
    between = (first + second) / 2 / first * nearest
    lengths = np.concatenate([bonds(atoms, between) for atoms in frames])
    neighbours = len(lengths) / len(frames) / len(ideal)
    histogram, edges = np.histogram(lengths, bins=60)
    peak = edges[np.argmax(histogram) : np.argmax(histogram) + 2].mean()
    return {
        "lindemann_ratio": float(vibration),
        "largest_site_shift": float(wander),
        "coordination": neighbours,
        "rdf_first_peak": float(peak),
        "nearest_neighbour_distance": float(nearest),
        "stable": bool(vibration < LINDEMANN and wander < HOP and abs(neighbours - coordination) < 0.1),
    }


def bonds(atoms: Atoms, cutoff: float) -> np.ndarray:
    """Lengths of all directed bonds below a cutoff, Å."""
    cell = np.asarray(atoms.cell)
    senders, receivers, shifts = neighbor_list(atoms.positions, cell, atoms.pbc, cutoff)
    return np.linalg.norm(atoms.positions[receivers] - atoms.positions[senders] + shifts @ cell, axis=1)


def markdown(runs: dict) -> str:
    columns = ["", "atoms", "stable", "rms displacement / bond", "coordination", "first peak / bond (Å)", "T (K)"]
    columns += ["p (GPa)", "a 0 K (Å)", "a 300 K (Å)", "expansion", "drift (meV/atom/ps)", "ms per step"]
    rows = [
        [
            symbol,
            run["atoms"],
            "yes" if run["stable"] else "no",
            f"{run['lindemann_ratio']:.3f}",
            f"{run['coordination']:.2f}",
            f"{run['rdf_first_peak']:.2f} / {run['nearest_neighbour_distance']:.2f}",
            "{:.0f} ± {:.0f}".format(*run["temperature"]),
            "{:.2f} ± {:.2f}".format(*run["pressure"]),
            f"{run['lattice_constant_0K']:.3f}",
            f"{run['lattice_constant']:.3f}",
            f"{run['expansion_percent']:+.2f} %",
            f"{run['drift_mev_per_atom_ps']:+.4f}",
            f"{run['ms_per_step']:.0f}",
        ]
        for symbol, run in runs.items()
    ]
    pictures = "\n".join(f"![NPT of {symbol}](npt_{symbol}.png)" for symbol in runs)
    return table(columns, rows) + "\n" + pictures + "\n"


if __name__ == "__main__":
    main()
