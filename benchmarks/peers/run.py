"""Time a force call of ASE against other programs on equal models, side by side.

    python benchmarks/peers/run.py [CASE ...] [--device cuda]

A peer writes the model, with random weights, in its own format; all sides open that file, and are timed only when they
agree on energy and forces of the case's structure. Environments and models are made on first use. A case is added to
the results of earlier runs; running out of memory, or a peer that does not install, is an entry like any other.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from cases import CASES, Case
from environments import NotInstalledError, interpreter
from floor import flop_per_atom
from summary import brief, draw, tables
from turns import HERE, ROOT, WRITERS, Setting, measure

STEMS = {"cpu": "peers", "cuda": "peers_cuda"}  # of the files with results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = "; ".join(f"{', '.join(cases)} with --device {device}" for device, cases in CASES.items())
    parser.add_argument("case", nargs="*", help=f"all of them by default: {known}")
    parser.add_argument("--device", choices=CASES, default="cpu", help="cuda writes to peers_cuda.* (default: cpu)")
    parser.add_argument("--atoms", type=int, nargs="+", help="other sizes than the case's own")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn, at least")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", type=float, default=16.0, help="GiB that each process may allocate on a CPU")
    parser.add_argument("--peers", type=Path, default=ROOT / ".peers", help="folder of environments and models")
    parser.add_argument("--results", type=Path, default=HERE.parent / "results", help="folder to write to")
    args = parser.parse_args()
    cases = CASES[args.device]
    unknown = [name for name in args.case if name not in cases]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(cases)}")
    if args.device == "cuda" and not shutil.which("nvidia-smi"):
        parser.error("--device cuda needs an NVIDIA GPU and its driver, but there is no nvidia-smi here")
    setting = Setting(args.peers.resolve(), args.threads, args.memory, args.turns, args.seconds, args.device)
    table = args.results / f"{STEMS[args.device]}.md"
    wrong = []
    for name in args.case or cases:
        model = model_file(name, cases[name], setting)
        for n_atoms in args.atoms or cases[name].sizes:
            print(f"{name}, {n_atoms} atoms", flush=True)
            entry = run(cases[name], n_atoms, model, setting)
            store(table, cases, name, entry)
            wrong += [
                f"{name}, {n_atoms} atoms, {side}: {row['failed']}"
                for side, row in entry["sides"].items()
                if row.get("failed", "").startswith("disagrees") or ("failed" in row and side.startswith("ours"))
            ]
    print(table.read_text())
    if wrong:
        raise SystemExit("\n".join(wrong))


def model_file(name: str, case: Case, setting: Setting) -> Path:
    """The case's file; one with random weights is written once, named by its arguments."""
    if isinstance(case.model, Path):
        if not case.model.exists():
            raise SystemExit(f"case {name} needs {case.model}; leave it out, or put the file there")
        return case.model
    environment, variables, suffix = WRITERS[case.writer]
    arguments = json.dumps(case.model)
    stem = f"{case.writer}-{hashlib.sha256(arguments.encode()).hexdigest()[:8]}"
    file = setting.peers / "models" / (stem + suffix)
    if not file.exists():
        print(f"writing {file}", flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            python = interpreter(environment, setting.peers)
        except NotInstalledError as error:
            raise SystemExit(f"{environment}, which writes the model of {name}, does not install: {error}") from error
        command = [python, HERE / "writers.py", case.writer, arguments, file]
        done = subprocess.run(command, env=setting.variables(variables), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{environment} could not write the model of {name}:\n{done.stderr}")
    return file


def run(case: Case, n_atoms: int, model: Path, setting: Setting) -> dict:
    """Everything about one case and size."""
    command = [sys.executable, HERE / "machine.py", str(setting.threads), setting.device]
    peaks = json.loads(subprocess.run(command, env=setting.variables({}), check=True, stdout=subprocess.PIPE).stdout)
    machine = {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version(), **peaks}
    atoms = case.structure(n_atoms)
    sides = measure(case.sides, model, atoms, setting)
    return {
        "what": case.what,
        "atoms": n_atoms,
        "flop_per_atom": flop_per_atom(case, atoms),
        "threads": setting.threads,
        "memory_limit_GiB": setting.memory if setting.device == "cpu" else None,
        "turns": setting.turns,
        "seconds": setting.seconds,
        "machine": machine,
        "sides": sides,
    }


def store(table: Path, cases: dict[str, Case], name: str, entry: dict) -> None:
    """Add the entry to the JSON file beside the table, and make table and plot from the whole of it."""
    table.parent.mkdir(parents=True, exist_ok=True)
    file = table.with_suffix(".json")
    results = json.loads(file.read_text()) if file.exists() else {}
    sizes = {**results.get(name, {}), str(entry["atoms"]): entry}
    results[name] = dict(sorted(sizes.items(), key=lambda item: int(item[0])))
    file.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    table.write_text(tables(results))
    table.with_name(f"{table.stem}_brief.md").write_text(brief(headlines(results, cases)))
    draw(results, table.with_name(f"{table.stem}_scaling.png"))


def headlines(results: dict, cases: dict[str, Case]) -> list[dict]:
    """The entries of cases that are about one size."""
    single = {name: str(*case.sizes) for name, case in cases.items() if len(case.sizes) == 1}
    return [results[name][size] for name, size in single.items() if size in results.get(name, {})]


def processor() -> str:
    """The processor's name where Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
