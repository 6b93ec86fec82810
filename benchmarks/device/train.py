"""Train several models of the accuracy benchmarks on one GPU at the same time.

    python benchmarks/device/train.py [--minutes M] SET:MODEL [...]

Small molecules leave most of a GPU idle, so each training runs in a thread with a stream of its own. Configurations,
outputs and resumption are those of `accuracy/run.py`, which evaluates what was trained here, also on another machine
that has the output folder. What a training prints is in console.txt of that folder.
"""

from __future__ import annotations

import argparse
import sys
import threading
import traceback
from pathlib import Path

import torch
from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parents[1] / "accuracy"))
from run import CONFIGS, DATA, configuration  # noqa: E402
from sets import SETS  # noqa: E402

from ase_equivariant.training.config import TrainConfig  # noqa: E402
from ase_equivariant.training.parsing import parse  # noqa: E402
from ase_equivariant.training.train import train_as  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("training", nargs="+", help="SET:MODEL, or SET:MODEL:FRAMES")
    parser.add_argument("--minutes", type=float, help="in place of the configurations' max_minutes")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the sets")
    args = parser.parse_args()
    configurations = {name: gpu_configuration(name, args) for name in args.training}
    failed: list[str] = []
    threads = [threading.Thread(target=run, args=(name, raw, failed)) for name, raw in configurations.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def gpu_configuration(name: str, args: argparse.Namespace) -> dict:
    """Of SET:MODEL or SET:MODEL:FRAMES."""
    part, model, *frames = name.split(":")
    if part not in SETS:
        raise SystemExit(f"there is no set {part!r}; sets are {', '.join(SETS)}")
    raw = configuration(part, model, args.data, int(frames[0]) if frames else None)
    raw["run"] |= {"accelerator": "gpu"} | ({"max_minutes": args.minutes} if args.minutes else {})
    raw["data"].pop("test", None)  # `run.py` evaluates
    return raw


def run(name: str, raw: dict, failed: list[str]) -> None:
    """One training, and its last line on the console."""
    folder = CONFIGS / raw["output"]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "console.txt", "a", buffering=1) as file, torch.cuda.stream(torch.cuda.Stream()):
        try:
            train_as(parse(TrainConfig, raw, ""), raw, CONFIGS, Console(file=file, width=120))
        except Exception:
            file.write(traceback.format_exc())
            failed.append(name)
    print(f"{name}: {(folder / 'console.txt').read_text().splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
