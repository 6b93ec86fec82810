"""Time a force call of ASE against mace-torch on equal models, side by side.

    python benchmarks/peers/run.py --peer ENVIRONMENT

MACE 128x0e, l_max 3, correlation 3, 6 Å, random weights, float32, on bulk silicon: energy and forces of structures that
move a little from step to step. The peer's environment is made by `python -m venv ENVIRONMENT` and `ENVIRONMENT/bin/pip
install torch==2.13.0 mace-torch==0.3.16`; without it ours are compared with each other. All processes stay alive and
take turns, so that whatever else the machine does meets them alike: ratios of one turn mean more than milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE.parent / "results"
STEPS = 3  # per turn; a turn counts by the fastest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="environment of mace-torch")
    parser.add_argument("--atoms", type=int, default=216, help="8 n³")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    args = parser.parse_args()
    sides = {
        f"ours, {backend}": Side([sys.executable, HERE / "ours.py", "--backend", backend], args, PYTHONPATH=str(ROOT))
        for backend in ("numba", "eager")
    }
    if args.peer:
        # e3nn 0.4.4 unpickles its constants, which torch >= 2.6 refuses unless told
        switch = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
        sides["mace-torch"] = Side([args.peer / "bin" / "python", HERE / "mace_torch.py"], args, **switch)
    for turn in range(args.turns):
        times = ", ".join(f"{name} {side.turn():.1f} ms" for name, side in sides.items())
        print(f"turn {turn + 1}: {times}", flush=True)
    report(sides, args)


class Side:
    """One of the processes."""

    def __init__(self, command: list, args: argparse.Namespace, **environment: str):
        threads = str(args.threads)
        self.process = subprocess.Popen(
            [*command, "--atoms", str(args.atoms), "--threads", threads],
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"it stopped before its first step: {' '.join(map(str, command))}")
        self.facts = json.loads(line)
        self.turns: list[float] = []

    def turn(self) -> float:
        times = []
        for _ in range(STEPS):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            times.append(float(self.process.stdout.readline()))
        self.turns.append(min(times))
        return self.turns[-1]

    def end(self) -> None:
        self.process.stdin.close()
        self.facts |= json.loads(self.process.stdout.readline())
        self.process.wait()


def report(sides: dict[str, Side], args: argparse.Namespace) -> None:
    """Print medians and ratios to the first side, and write them down with versions and machine."""
    first = next(iter(sides.values()))
    result = {
        "what": "ASE step, energy and forces: MACE 128x0e, l_max 3, correlation 3, 6 Å, bulk Si, float32",
        "machine": {"processor": processor(), "threads": args.threads, "python": platform.python_version()},
    }
    lines = [
        "| code | ms per step | µs per atom | times slower, median (range) | peak memory, MiB |",
        "|---|---|---|---|---|",
    ]
    for name, side in sides.items():
        side.end()
        ratios = [theirs / ours for theirs, ours in zip(side.turns, first.turns, strict=True)]
        time = median(side.turns)
        result[name] = {
            **side.facts,
            "median_ms": round(time, 2),
            "turns_ms": [round(t, 2) for t in side.turns],
            "over_first": {"median": median(ratios), "min": min(ratios), "max": max(ratios)},
        }
        spread = f"{median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f})"
        per_atom = 1e3 * time / side.facts["atoms"]
        lines.append(f"| {name} | {time:.1f} | {per_atom:.0f} | {spread} | {side.facts['peak_memory_MiB']} |")
    table = "\n".join(lines) + "\n"
    print(table)
    origin = f"`python benchmarks/peers/run.py`, {first.facts['atoms']} atoms, {args.threads} threads"
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "peers.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    (args.results / "peers.md").write_text(f"{table}\n{origin}, {processor()}\n")


def processor() -> str:
    """The processor's name where Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
