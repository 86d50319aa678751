"""What tracking costs a training: a call of log(), the sender's share of a core, a restart, the pictures.

Run `python benchmarks/bench_tracking.py`; sqlite and the spool in a temporary folder.
"""

import resource
import tempfile
import time
from pathlib import Path

import mlflow
import numpy as np
from mlflow.entities import Metric

from p2es.plot import png
from p2es.training_plots import learning_curves
from p2es_platform.run_pictures import read_curves
from p2es_platform.tracking import Tracker

LINES = 2_000
BARE = 100
LONG = 50_000
KEYS = ("total", "wave", "slope", "contrast", "prototype")


def figures(step: int) -> dict[str, float]:
    """Give what a training logs at a step."""
    more = {"learning_rate": 1e-3, "grad_norm": 1.0, "windows": 32.0 * step, "windows_per_s": 120.0, "workers": 2.0}
    return {f"loss_{key}": 1.0 / (step + 1) for key in KEYS} | more


def start(folder: Path, uri: str) -> Tracker:
    """Start a run with a spool."""
    return Tracker.start(
        uri,
        experiment="bench",
        name="bench",
        fingerprint="bench",
        params={"batch": 32},
        tags={},
        dataset_name="none",
        dataset_digest="none",
        artifact_root=str(folder / "artifacts"),
        spool=folder / "spool",
    )


def cost_of_logging(tracker: Tracker) -> None:
    """Time log() in the thread that trains, as fast as it can be called, then what sending took."""
    spent_s = np.zeros(LINES)
    thread_s, process = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF)
    for step in range(LINES):
        began = time.perf_counter()
        tracker.log(step, figures(step))
        spent_s[step] = time.perf_counter() - began
    thread_s = time.thread_time() - thread_s
    assert tracker.flush()
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = used.ru_utime + used.ru_stime - process.ru_utime - process.ru_stime
    median_us, most_us = np.median(spent_s) * 1e6, np.quantile(spent_s, 0.99) * 1e6
    print(
        f"log(), 10 figures: {thread_s / LINES * 1e6:.0f} us of the thread a call; wall: median {median_us:.0f} us, "
        f"99 % below {most_us:.0f} us"
    )
    print(f"sending to sqlite: {(cpu_s - thread_s) / LINES * 1e6:.0f} us of a core a line")


def cost_of_the_bare_client(uri: str, run_id: str) -> None:
    """Time what a training would wait for MLflow's own client, a batch a line."""
    client = mlflow.MlflowClient(tracking_uri=uri)
    began = time.perf_counter()
    for step in range(BARE):
        client.log_batch(run_id, [Metric(f"bare_{key}", value, 0, step) for key, value in figures(step).items()])
    print(f"the bare client: {(time.perf_counter() - began) / BARE * 1e6:.0f} us a line, in the thread that trains")


def cost_of_restarting(uri: str, run_id: str) -> None:
    """Time the start of a worker on a run with long histories, against reading those."""
    client = mlflow.MlflowClient(tracking_uri=uri)
    for first in range(LINES, LONG, 1000):
        client.log_batch(run_id, [Metric("loss_total", 1.0, step, step) for step in range(first, first + 1000)])
    began = time.perf_counter()
    Tracker.join(uri, run_id).close()
    joined_s, began = time.perf_counter() - began, time.perf_counter()
    client.get_metric_history(run_id, "loss_total")
    print(
        f"join() of a run with {LONG} lines: {joined_s * 1e3:.0f} ms; the history of one of its metrics: "
        f"{(time.perf_counter() - began) * 1e3:.0f} ms"
    )


def cost_of_curves(tracker: Tracker) -> None:
    """Time reading and drawing the curves."""
    began = time.perf_counter()
    curves = read_curves(tracker)
    read_s, began = time.perf_counter() - began, time.perf_counter()
    png(learning_curves(curves))
    print(f"curves.png: read in {read_s:.1f} s, drawn in {time.perf_counter() - began:.1f} s")


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uri = f"sqlite:///{folder}/mlflow.db"
        tracker = start(folder, uri)
        cost_of_logging(tracker)
        cost_of_the_bare_client(uri, tracker.run_id)
        cost_of_restarting(uri, tracker.run_id)
        cost_of_curves(tracker)
        tracker.finish("FINISHED")


if __name__ == "__main__":
    main()
