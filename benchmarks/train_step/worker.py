"""A training step as a long-lived process: it announces itself, then takes one timed step for each line it reads.

Both sides of the comparison run this loop; they differ only in how they make the step.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import ase
import torch
from ase.io import read

MODEL = {
    "hidden_irreps": "64x0e+64x1o",
    "l_max": 3,
    "correlation": 3,
    "num_interactions": 2,
    "num_bessel": 8,
    "envelope_power": 5,
    "radial_mlp": [64, 64, 64],
    "readout_mlp": 16,
    "cutoff": 5.0,
}
ATOMIC_NUMBERS = [1, 6, 7, 8]
ATOMIC_ENERGIES = [-13.587, -1029.489, -1484.981, -2041.982]  # eV, isolated atoms of 3BPA
WARM_UP = 5  # steps, also those in which just-in-time compilers specialise


def loss_function(energy_error: torch.Tensor, forces_error: torch.Tensor) -> torch.Tensor:
    """⟨(ΔE / n)²⟩ + 100 ⟨ΔF²⟩, eV/atom and eV/Å."""
    return energy_error.square().mean() + 100 * forces_error.square().mean()


def serve(make: Callable[[list[ase.Atoms]], tuple[Callable[[], None], dict]], packages: list[str]) -> None:
    """Make the step from the batch on the command line; a line on stdin is one step, a line out its milliseconds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--molecules", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries greet on stdout
    torch.set_num_threads(args.threads)
    step, facts = make(read(args.data, f":{args.molecules}"))
    for _ in range(WARM_UP):
        step()
    facts["versions"] = {name: version(name) for name in packages}
    print(json.dumps(facts), file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(1e3 * (time.perf_counter() - start), file=answers, flush=True)
