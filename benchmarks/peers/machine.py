"""What this machine can do at most, as a process: single-precision matrix products and copies in memory.

`python machine.py THREADS` prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch


def fastest(work: Callable[[], object], repeats: int = 7) -> float:
    """Seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    n = 2048
    a, b = torch.rand(2, n, n)
    source = torch.rand(2**26)  # 256 MiB: no cache holds it
    target = torch.empty_like(source)
    product, copy = fastest(lambda: a @ b), fastest(lambda: target.copy_(source))
    gigabytes = 2 * source.numel() * source.element_size() / 1e9  # read and written
    print(json.dumps({"sgemm_GFLOP_per_s": round(2e-9 * n**3 / product), "copy_GB_per_s": round(gigabytes / copy, 1)}))
