"""What the benchmarks share: rates of interleaved rounds, CPU seconds of the process tree, a table with ratios."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import psutil


def interleaved(ways: Mapping[str, Callable[[], int]], rounds: int = 3) -> dict[str, float]:
    """Run each way once a round, in turn, and give its best rate: items a second.

    On a shared machine only the best round says something of the code, and only rounds side by side can be compared.
    """
    return {name: max(cost.rates) for name, cost in measured(ways, rounds).items()}


@dataclass
class Cost:
    """What the rounds of one way took: items a second of wall time, CPU seconds an item of the whole process tree."""

    rates: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def measured(ways: Mapping[str, Callable[[], int]], rounds: int = 3) -> dict[str, Cost]:
    """As `interleaved`, with every round's wall and CPU; each is told on stderr as it ends, so a cut costs one."""
    costs = {name: Cost() for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            cpu, started = tree_cpu_s(), time.perf_counter()
            items = way()
            costs[name].rates.append(items / (time.perf_counter() - started))
            costs[name].cpu_s.append((tree_cpu_s() - cpu) / items)
            rate, spent_ms = costs[name].rates[-1], 1e3 * costs[name].cpu_s[-1]
            print(f"{name}: {rate:.2f}/s, {spent_ms:.2f} ms of CPU each", file=sys.stderr, flush=True)
    return costs


def tree_cpu_s() -> float:
    """Give the CPU seconds of this process and all below it, those that have ended included.

    A worker that ended in between takes its time with it unless its parent waited for it, so rounds keep theirs.
    """
    total = 0.0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


@contextmanager
def peak_memory_mb(found: list[float]) -> Iterator[None]:
    """Append the peak of the process tree's unique memory during the block, sampled every 50 ms."""
    import threading

    stop = threading.Event()
    peak = [0.0]

    def watch() -> None:
        me = psutil.Process()
        while not stop.is_set():
            total = 0.0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().uss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            peak[0] = max(peak[0], total / 1e6)
            stop.wait(0.05)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        found.append(peak[0])


def table(title: str, unit: str, rates: Mapping[str, float], bare: str) -> None:
    """Print the rates with their ratio to the bare alternative."""
    print(f"\n{title}")
    print(f"{'':44s} {unit:>16s} {'ratio to bare':>14s}")
    for name, rate in rates.items():
        print(f"{name:44s} {rate:16.1f} {rate / rates[bare]:14.2f}")


def cost_table(title: str, unit: str, costs: Mapping[str, Cost], bare: str) -> None:
    """Print best rate and least CPU an item of each way, with the ratio to the bare alternative.

    The ratio of the walls is the median of the ratios within a round; the CPU ratio compares the least of each.
    """
    print(f"\n{title}")
    print(f"{'':44s} {unit + '/s':>12s} {'ratio':>7s} {'CPU ms/' + unit:>16s} {'ratio':>7s}")
    for name, cost in costs.items():
        wall = median(mine / theirs for mine, theirs in zip(cost.rates, costs[bare].rates, strict=True))
        cpu = min(cost.cpu_s) / min(costs[bare].cpu_s)
        print(f"{name:44s} {max(cost.rates):12.1f} {wall:7.2f} {1e3 * min(cost.cpu_s):16.2f} {cpu:7.2f}")
