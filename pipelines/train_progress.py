"""How far a training is: rank 0 tells, the driver's terminal and Ray's metrics show."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """What rank 0 tells.

    Attributes
    ----------
    share : float
        0 to 1, of the schedule.
    windows : int
    windows_per_s : float
    loss : float
    seconds_left : float
        NaN while unknown.
    world : int
        Workers at the moment.
    """

    share: float = 0.0
    windows: int = 0
    windows_per_s: float = 0.0
    loss: float = float("nan")
    seconds_left: float = float("nan")
    world: int = 0


@ray.remote(num_cpus=0)
class Board:
    """Where rank 0 leaves word, and the driver reads it."""

    def __init__(self) -> None:
        self.latest = Progress()
        self.failure: str | None = None

    def update(self, progress: Progress) -> None:
        """Take the figures."""
        self.latest = progress

    def fail(self, reason: str) -> None:
        """Note why the workers stopped: after an exception Ray would start them again, to diverge again."""
        self.failure = reason

    def read(self) -> tuple[Progress, str | None]:
        """Give the figures, and why the workers stopped, if they did."""
        return self.latest, self.failure


class Gauges:
    """The same figures as Ray metrics, `ray_p2es_train_...` where Ray's are scraped and in its dashboard."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Gauge

        names = {
            "windows": "Windows seen by all workers",
            "windows_per_s": "Windows a second of all workers",
            "loss": "Mean loss over all workers",
            "share": "Share of the schedule that is done",
            "world": "Workers",
        }
        self._gauges = {k: Gauge(f"p2es_train_{k}", description=v, tag_keys=("run",)) for k, v in names.items()}
        self._tags = {"run": run}

    def set(self, progress: Progress) -> None:
        """Show the figures."""
        for name, gauge in self._gauges.items():
            gauge.set(float(getattr(progress, name)), tags=self._tags)


@contextmanager
def progress_bar() -> Iterator[Any]:
    """Draw what rank 0 tells on the driver's terminal; gives the `Board` to tell it to."""
    # On the driver's own node: on another it would be lost with that node, which training survives.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    done = threading.Event()
    bar = tqdm(
        total=100,
        desc="train",
        unit="%",
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}",
    )

    def show(progress: Progress) -> None:
        bar.n = int(100 * progress.share)
        left = tqdm.format_interval(progress.seconds_left) if progress.seconds_left >= 0 else "?"
        rate = f"{progress.windows_per_s:.0f} windows/s, " if progress.windows_per_s else ""
        bar.set_postfix_str(f"{left} left, {progress.windows} windows, {rate}loss {progress.loss:.3f}")

    def follow() -> None:
        while not done.wait(1.0):
            try:
                progress, _ = ray.get(board.read.remote(), timeout=5)
            except (ray.exceptions.RayError, RuntimeError):
                continue
            if progress.windows:
                show(progress)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield board
        bar.n = 100
    finally:
        done.set()
        thread.join(timeout=10)
        bar.refresh()
        bar.close()
        ray.kill(board)
