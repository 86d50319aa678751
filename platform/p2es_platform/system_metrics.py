"""What a node does while it trains: CPU, memory, disk, network and GPUs, as MLflow's own `system/` metrics."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

from p2es_platform.mlflow_client import first_line
from p2es_platform.tracking import Tracker

log = logging.getLogger(__name__)

PREFIX = "system/"


@contextmanager
def system_metrics(tracker: Tracker, interval_s: float = 10.0) -> Iterator[None]:
    """Log this machine's system metrics while the block runs, by MLflow's own monitors under MLflow's own names.

    MLflow's SystemMetricsMonitor needs its fluent API's run, writes beside the tracker and stops for good at the first
    outage. Here the figures go through the tracker: one writer, kept during an outage. Steps count samples and go on
    after a restart. What goes wrong with it is told once and never reaches the block.

    Parameters
    ----------
    tracker : Tracker
    interval_s : float
        Seconds between samples.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_guarded, args=(tracker, interval_s, stop), name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5.0)


def _guarded(tracker: Tracker, interval_s: float, stop: threading.Event) -> None:
    try:
        _sample(tracker, interval_s, stop)
    except Exception as error:  # noqa: BLE001 - drivers and /proc fail in ways nobody can list; the training goes on
        log.warning("system metrics are not logged any more (%s)", first_line(error))


def _sample(tracker: Tracker, interval_s: float, stop: threading.Event) -> None:
    monitors = _monitors()
    step: int | None = None
    while not stop.wait(interval_s):
        step = tracker.next_step(PREFIX) if step is None else step + 1
        if step is None:
            continue
        figures: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            figures |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        tracker.log(step, {f"{PREFIX}{name}": value for name, value in figures.items()})


def _monitors() -> list[BaseMetricsMonitor]:
    import psutil
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    # The first answer counts from here; without this call it would be a meaningless 0 %.
    psutil.cpu_percent()
    gpus: tuple[Callable[[], BaseMetricsMonitor], ...] = (GPUMonitor, ROCMMonitor)
    found: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    for make in gpus:
        try:
            found.append(make())
        except (ImportError, RuntimeError) as error:
            log.debug("no GPU metrics: %s", error)
        else:
            break
    return found
