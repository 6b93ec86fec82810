"""A force call as a long-lived process: it announces itself, then makes one timed ASE step for each line it reads.

All sides run this loop on one structure; they differ only in the calculator.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch
from ase.build import bulk
from ase.calculators.calculator import Calculator

MODEL = {
    "hidden_irreps": "128x0e",
    "l_max": 3,
    "correlation": 3,
    "num_interactions": 2,
    "num_bessel": 8,
    "envelope_power": 5,
    "radial_mlp": [64, 64, 64],
    "readout_mlp": 16,
    "cutoff": 6.0,
    "avg_num_neighbors": 44.5,
}
WARM_UP = 3  # steps


def serve(make: Callable[[argparse.Namespace], tuple[Calculator, dict]], packages: list[str]) -> None:
    """Serve steps of the calculator; a line on stdin is one step, a line out its milliseconds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--atoms", type=int, required=True, help="8 n³")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--backend", default="auto")
    args = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries greet on stdout
    torch.set_num_threads(args.threads)
    atoms = bulk("Si", cubic=True) * round((args.atoms / 8) ** (1 / 3))
    atoms.rattle(0.05, seed=1)
    atoms.calc, facts = make(args)
    random = np.random.default_rng(0)

    def step() -> None:
        atoms.positions += random.normal(scale=1e-3, size=(len(atoms), 3))  # Å, as in dynamics
        atoms.get_potential_energy()
        atoms.get_forces()

    for _ in range(WARM_UP):
        step()
    facts |= {"atoms": len(atoms), "versions": {name: version(name) for name in packages}}
    print(json.dumps(facts), file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(1e3 * (time.perf_counter() - start), file=answers, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB on Linux
    print(json.dumps({"peak_memory_MiB": round(peak)}), file=answers, flush=True)
