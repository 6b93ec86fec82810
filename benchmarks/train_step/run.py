"""Time a training step against mace-torch on the same model and batch, side by side.

    python benchmarks/train_step/run.py [train_300K.xyz]

The peer lives in an environment of its own (made on first use: it needs an older e3nn). Both processes stay alive and
take turns, so that whatever else the machine does meets both alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import venv
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULT = HERE.parent / "results" / "train_step.json"
PEER = ["torch==2.13.0", "mace-torch==0.3.16"]
STEPS = 3  # per turn; a turn counts by its median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", nargs="?", default="../shared/data/3bpa/train_300K.xyz", help="3BPA training set, extxyz"
    )
    parser.add_argument("--peer", type=Path, default=ROOT / ".peers" / "mace", help="environment of the peer")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if not Path(args.data).is_file():
        parser.error(f"no data at {args.data}: give the path of 3BPA's train_300K.xyz")
    make_peer(args.peer)
    batch = [str(Path(args.data).resolve()), "--molecules", "5", "--threads", str(args.threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    sides = {
        "ours": Side([sys.executable, HERE / "ours.py", *batch], {**environment, "PYTHONPATH": str(ROOT)}),
        # e3nn 0.4.4 unpickles its constants, which torch >= 2.6 refuses unless told
        "peer": Side(
            [args.peer / "bin" / "python", HERE / "peer.py", *batch],
            {**environment, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
        ),
    }
    for turn in range(args.turns):
        print(
            f"turn {turn + 1}: " + ", ".join(f"{name} {side.turn():.0f} ms" for name, side in sides.items()), flush=True
        )
    report(sides, args.threads)


def make_peer(path: Path) -> None:
    """Install the peer unless it is there; a broken installation leaves no mark and is made anew."""
    ready = path / ".ready"
    if ready.exists():
        return
    print(f"installing {' '.join(PEER)} into {path}")
    venv.create(path, with_pip=True)
    subprocess.run([path / "bin" / "pip", "install", *PEER], check=True)
    ready.touch()


class Side:
    """One of the two processes."""

    def __init__(self, command: list, environment: dict):
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.facts = json.loads(self.process.stdout.readline() or self.fail(command))
        self.turns: list[float] = []

    def fail(self, command: list) -> str:
        raise SystemExit(f"it stopped before its first step; run it by hand to see why: {' '.join(map(str, command))}")

    def turn(self) -> float:
        times = []
        for _ in range(STEPS):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            times.append(float(self.process.stdout.readline()))
        self.turns.append(median(times))
        return self.turns[-1]


def report(sides: dict[str, Side], threads: int) -> None:
    """Print medians and their ratio and write them down with versions and machine."""
    result = {
        "what": "one training step: 5 molecules of 3BPA, MACE 64x0e+64x1o, l_max 3, correlation 3, float32",
        "machine": {"processor": processor(), "threads": threads, "python": platform.python_version()},
    }
    for name, side in sides.items():
        side.process.stdin.close()
        side.process.wait()
        times = [round(t, 1) for t in side.turns]
        result[name] = {**side.facts, "median_ms": median(times), "turns_ms": times}
    ratios = [theirs / ours for theirs, ours in zip(sides["peer"].turns, sides["ours"].turns, strict=True)]
    result["peer_over_ours"] = {
        "median": round(median(ratios), 2),
        "min": round(min(ratios), 2),
        "max": round(max(ratios), 2),
    }
    print(json.dumps(result, indent=2))
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


def processor() -> str:
    """The processor's name where Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
