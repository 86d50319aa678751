"""Threads of torch: one in a task, so that the same numbers come out everywhere; all when the driver computes alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def all_cores() -> Iterator[None]:
    """Let torch use every core of this process for the time of the block."""
    with _threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1):
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread for the time of the block: sums in another order have other last bits."""
    with _threads(1):
        yield


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
