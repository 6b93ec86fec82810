"""The triton backend on a GPU: its errors against eager in float64, and its times beside the other backends.

python benchmarks/device/triton_check.py            models in processes of their own, then times
python benchmarks/device/triton_check.py NAME       one model: its errors
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch  # noqa: E402
from ase.build import bulk  # noqa: E402
from graphs import batch  # noqa: E402
from tiny import TINY, tiny_potential  # noqa: E402

from ase_equivariant import available_models, inference, load_potential  # noqa: E402
from ase_equivariant.graph import Graph, from_atoms  # noqa: E402

GPU = torch.device("cuda")
MEDIUM = {
    "cutoff": 6.0,
    "avg_num_neighbors": 46.0,
    "num_bessel": 8,
    "radial_mlp": (64, 64, 64),
    "l_max": 3,
    "hidden_irreps": "128x0e+128x1o",
    "correlation": 3,
}
FIELDS = ("node_energies", "forces", "strain_gradient")
TIMEOUT = 200  # s


def potential_of(name: str):
    if name in TINY:
        return tiny_potential(name, heads=("first", "second"))
    if name == "medium":
        return tiny_potential("mace", (14,), **MEDIUM)
    return load_potential(ROOT / "models" / f"{name}.safetensors").astype(torch.float64)


def graph_of(name: str, potential) -> Graph:
    if name in TINY:
        return batch(potential)
    if name == "medium":
        return silicon(potential, 2)
    numbers = list(potential.atomic_numbers)
    atoms = bulk("Cu", cubic=True) * (3, 3, 2)
    atoms.rattle(0.1, seed=1)
    atoms.numbers[:] = [numbers[i % len(numbers)] for i in range(len(atoms))]
    return from_atoms(atoms, potential.atomic_numbers, potential.cutoff)


def silicon(potential, repeats: int) -> Graph:
    atoms = bulk("Si", cubic=True) * ((repeats,) * 3)
    atoms.rattle(0.05, seed=1)
    return from_atoms(atoms, potential.atomic_numbers, potential.cutoff)


def check(name: str) -> None:
    """Errors of one model in both precisions, one line each."""
    potential = potential_of(name)
    potential = potential.eval().requires_grad_(False)
    graph = graph_of(name, potential)
    exact = inference.start("eager", potential.to(GPU), GPU)(graph, True)
    single = potential.astype(torch.float32).requires_grad_(False)
    lines = [(single, "eager", "f32"), (single, "triton", "f32")]
    if name != "medium":
        lines.append((potential, "triton", "f64"))
    for model, backend, dtype in lines:
        try:
            start = time.perf_counter()
            made = inference.start(backend, model.to(GPU), GPU)
            first = made(graph, True)
            took = time.perf_counter() - start
            again = made(graph, True)
            alone = made(graph, False)
            same = all(torch.equal(getattr(first, f), getattr(again, f)) for f in FIELDS)
            same = same and torch.equal(alone.node_energies, first.node_energies)
            errors = [float((getattr(first, f).cpu() - getattr(exact, f).cpu()).abs().max()) for f in FIELDS]
            sizes = [float(getattr(exact, f).abs().max()) for f in FIELDS]
            text = " ".join(f"{e:.1e}/{s:.0e}" for e, s in zip(errors, sizes, strict=True))
            print(f"{name:22s} {backend:6s} {dtype} {text} repeats {same} first call {took:.1f} s", flush=True)
        except Exception as error:
            traceback.print_exc(limit=-3)
            print(f"{name:22s} {backend:6s} {dtype} FAILS: {type(error).__name__}: {str(error)[:300]}", flush=True)


def check_all() -> list[str]:
    """All models, in processes of their own at the same time."""
    names = [*TINY, "medium", *available_models()]
    running = {}
    for name in names:
        command = [sys.executable, __file__, name]
        running[name] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines, end = [], time.time() + TIMEOUT
    for name, process in running.items():
        try:
            out, _ = process.communicate(timeout=max(end - time.time(), 1))
        except subprocess.TimeoutExpired:
            process.kill()
            out = f"{name} TIMEOUT"
        lines += [line for line in out.splitlines()[-14:] if "Warning" not in line]
    return lines


def times(name: str, potential, repeats: int, rounds: int) -> tuple[float, float]:
    """Milliseconds of a call and, where it is recorded, of its kernels."""
    graph = silicon(potential, repeats)
    backend = inference.start(name, potential.to(GPU), GPU)
    start = time.perf_counter()
    backend(graph, True)
    first = time.perf_counter() - start
    durations = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        backend(graph, True)
        torch.cuda.synchronize()
        durations.append(time.perf_counter() - start)
    on_gpu = float("nan")
    if name == "triton":
        recorded = backend._recorded[0]._graphs[True]
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        recorded.replay()
        events[0].record()
        for _ in range(rounds):
            recorded.replay()
        events[1].record()
        torch.cuda.synchronize()
        on_gpu = events[0].elapsed_time(events[1]) / rounds
        if repeats in (2, 5, 11):
            profile(recorded, graph)
    print(f"  {name} {graph.n_nodes} atoms, {graph.n_edges} edges: first call {first:.1f} s", flush=True)
    return 1e3 * statistics.median(durations), on_gpu


def profile(recorded, graph: Graph) -> None:
    """Times of the kernels of one replay, the longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        recorded.replay()
        torch.cuda.synchronize()
    print(f"  kernels, {graph.n_nodes} atoms: count, µs in all, name")
    rows = sorted(profiler.key_averages(), key=lambda e: -e.device_time_total)
    for row in rows[:14]:
        print(f"    {row.count:4d} {row.device_time_total:9.1f} {row.key[:90]}")
    print(f"    {sum(r.count for r in rows):4d} {sum(r.device_time_total for r in rows):9.1f} all", flush=True)


def main() -> None:
    warnings.simplefilter("ignore")
    if len(sys.argv) > 1:
        check(sys.argv[1])
        return
    print(torch.cuda.get_device_name(), torch.__version__, flush=True)
    lines = check_all()
    table = []
    potential = potential_of("medium").astype(torch.float32).eval().requires_grad_(False)
    for name, sizes in (("triton", (2, 3, 5, 11)), ("torchscript", (2, 3, 5)), ("eager", (2, 5))):
        for repeats in sizes:
            try:
                call, on_gpu = times(name, potential, repeats, 30 if name == "triton" else 5)
                atoms = 8 * repeats**3
                share = f"{1e3 * call / atoms:8.2f} µs/atom"
                table.append(f"{name:12s} {atoms:6d} atoms: call {call:8.3f} ms, kernels {on_gpu:8.3f} ms, {share}")
            except Exception as error:
                traceback.print_exc(limit=-3)
                table.append(f"{name:12s} {8 * repeats**3:6d} atoms: {type(error).__name__}: {str(error)[:200]}")
    print("errors of node energies, forces, strain gradient / their sizes", *lines, sep="\n")
    print("MACE 128x0e+128x1o, l_max 3, float32, silicon", *table, sep="\n", flush=True)


if __name__ == "__main__":
    main()
