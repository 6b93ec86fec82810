"""A force call as a long-lived process: it says what it computes, then takes a turn of ASE steps per line it reads.

All sides run this loop on one model file and one structure; they differ only in the calculator.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
import traceback
from importlib.metadata import version

import numpy as np
from ase import Atoms
from ase.io import read
from calculators import CALCULATORS

WARM_UP = 3  # steps
AMPLITUDE = 0.1  # Å, of each coordinate: crystals at room temperature
FREQUENCY = 0.105  # radians per step: 60 steps are a period, and no position comes back
MEMORY = re.compile("(?<!illegal )memory|bad_alloc|map segment|RESOURCE_EXHAUSTED", re.IGNORECASE)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("calculator", choices=CALCULATORS)
    parser.add_argument("model")
    parser.add_argument("structure", help="a file with full precision, as .traj")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--memory", type=float, required=True, help="GiB this process may allocate on a processor")
    parser.add_argument("--device", required=True, choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, required=True, help="of a turn, at least")
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries greet on stdout
    limit = int(args.memory * 2**30)
    if args.device == "cpu":  # CUDA maps far more than it uses
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        for answer in serve(args):
            print(json.dumps(answer), file=answers, flush=True)
    except Exception as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}"
        failure = "out of memory" if MEMORY.search(text) else text.splitlines()[0]
        print(json.dumps({"failed": failure}), file=answers, flush=True)


def serve(args: argparse.Namespace):
    """Yield what it is and computes; then, per line on stdin, the milliseconds of a step; at last the peak memory."""
    atoms: Atoms = read(args.structure)
    start, random = atoms.positions.copy(), np.random.default_rng(0)
    direction = AMPLITUDE * random.normal(size=start.shape)
    atoms.calc, packages, facts = CALCULATORS[args.calculator](args.model, args.threads, args.device)
    computed = {"forces": atoms.get_forces().tolist(), "energy": atoms.get_potential_energy()}
    n = 0

    def step() -> None:  # as dynamics asks: forces, then the energy of the same call
        nonlocal n
        n += 1
        atoms.positions = start + np.sin(FREQUENCY * n) * direction
        atoms.get_forces()
        atoms.get_potential_energy()

    for _ in range(WARM_UP):
        step()
    yield {**computed, "facts": {**facts, "versions": {name: version(name) for name in packages}}}
    for _ in sys.stdin:
        # a turn counts by its mean, which has the neighbour lists of a real run in it
        steps, begin = 0, time.perf_counter()
        while time.perf_counter() < begin + args.seconds or not steps:
            step()
            steps += 1
        yield {"ms": 1e3 * (time.perf_counter() - begin) / steps}
    yield {"peak_memory_MiB": peak_memory(args.device)}


def peak_memory(device: str) -> int | None:
    """MiB: resident on a processor; on a GPU what the process holds at last, which its libraries do not give back."""
    if device == "cpu":
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)  # kB on Linux
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    held = dict(line.partition(", ")[::2] for line in lines).get(str(os.getpid()), "")
    return int(held) if held.isdigit() else None  # some systems do not tell


if __name__ == "__main__":
    main()
