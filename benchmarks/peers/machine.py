"""What this machine can do at most, as a process: single-precision matrix products and copies in memory.

`python machine.py THREADS DEVICE` prints one line of JSON; DEVICE is cpu or cuda, whose GPU it names.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import torch


def fastest(work: Callable[[], object], device: str, repeats: int = 7) -> float:
    """Seconds."""
    finish = {"cpu": lambda: None, "cuda": torch.cuda.synchronize}[device]
    times = []
    for _ in range(repeats):
        finish()
        start = time.perf_counter()
        work()
        finish()
        times.append(time.perf_counter() - start)
    return min(times)


def gpu(device: str) -> dict[str, str]:
    """Name and driver; nothing of a processor."""
    if device == "cpu":
        return {}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[0]
    return {"gpu": torch.cuda.get_device_name(), "driver": driver}


if __name__ == "__main__":
    threads, device = sys.argv[1:]
    torch.set_num_threads(int(threads))
    n = {"cpu": 2048, "cuda": 8192}[device]
    a, b = torch.rand(2, n, n, device=device)
    source = torch.rand(2**26, device=device)  # 256 MiB: no cache holds it
    target = torch.empty_like(source)
    product, copy = fastest(lambda: a @ b, device), fastest(lambda: target.copy_(source), device)
    gigabytes = 2 * source.numel() * source.element_size() / 1e9  # read and written
    peaks = {"sgemm_GFLOP_per_s": round(2e-9 * n**3 / product), "copy_GB_per_s": round(gigabytes / copy, 1)}
    print(json.dumps({**peaks, **gpu(device)}))
