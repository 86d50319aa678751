"""What the benchmarks share: a table with ratios, and the best of several interleaved rounds."""

import time
from collections.abc import Callable, Mapping


def interleaved(ways: Mapping[str, Callable[[], int]], rounds: int = 3) -> dict[str, float]:
    """Run each way once a round, in turn, and give its best rate: items a second.

    On a shared machine only the best round says something of the code, and only rounds side by side can be compared.
    """
    best = dict.fromkeys(ways, 0.0)
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            items = way()
            best[name] = max(best[name], items / (time.perf_counter() - started))
    return best


def table(title: str, unit: str, rates: Mapping[str, float], bare: str) -> None:
    """Print the rates with their ratio to the bare alternative."""
    print(f"\n{title}")
    print(f"{'':40s} {unit:>16s} {'ratio to bare':>14s}")
    for name, rate in rates.items():
        print(f"{name:40s} {rate:16.1f} {rate / rates[bare]:14.2f}")
