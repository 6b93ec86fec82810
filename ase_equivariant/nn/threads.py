"""Compiled kernels over ranges of rows, on a few threads of our own; and what threads must not do at the same time.

A kernel releases the interpreter lock and writes each row on its own, so neither the number of threads nor their order
changes a bit of the result.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch

# Held while a CUDA graph is recorded: that waits for the whole GPU, which no other recording survives.
RECORDING = threading.Lock()
_SMALL = 64  # rows that are done before another thread has woken up


def _renew_pool() -> None:
    global _POOL
    _POOL = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="ase-equivariant")  # by default at most 32


_renew_pool()
if hasattr(os, "register_at_fork"):  # a forked child has the pool's queue, and none of its threads
    os.register_at_fork(after_in_child=_renew_pool)


def run_rows(kernel: Callable, n_rows: int, *arguments) -> None:
    """Call kernel(start, end, *arguments) over the rows, in as many ranges as torch uses threads.

    The caller's thread takes the first; those of the pool, which has one per CPU, share the others.
    """
    threads = torch.get_num_threads() if n_rows >= _SMALL else 1
    bounds = [n_rows * t // threads for t in range(threads + 1)]
    futures = [_POOL.submit(kernel, a, b, *arguments) for a, b in pairwise(bounds[1:])]
    kernel(0, bounds[1], *arguments)
    for future in futures:
        future.result()


def run_blocks(work: Callable[[int, int], object], blocks: Sequence[tuple[int, int]]) -> None:
    """Call work(start, end) for every block, shared out to as many threads as torch uses, the caller's among them.

    The others are of the pool, which has one per CPU.
    """
    threads = max(min(torch.get_num_threads(), len(blocks)), 1)

    def share(first: int) -> None:
        for a, b in blocks[first::threads]:
            work(a, b)

    futures = [_POOL.submit(share, t) for t in range(1, threads)]
    share(0)
    for future in futures:
        future.result()
