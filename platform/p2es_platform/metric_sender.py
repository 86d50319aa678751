"""Sending what a training logs to its MLflow run: in batches, by a thread, each figure once, also after an outage."""

import logging
import math
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import mlflow
from mlflow.entities import Metric

from p2es.errors import RemoteError
from p2es_platform.metric_spool import Line, Spool
from p2es_platform.mlflow_client import MLFLOW_ERRORS, connect, first_line, is_server, require_answer

log = logging.getLogger(__name__)

OUTAGES = (*MLFLOW_ERRORS, RemoteError)
"""What is raised while MLflow does not answer."""

# MLflow's own limit for one log_batch.
_METRICS_A_BATCH = 1000
# 100 single log_metric calls took 2.3 s, one batch of them a few ms.
_SEND_EVERY_S = 5.0
_RETRY_AFTER_S = 10.0
# MLflow's client tries each request for four minutes; here what fails is kept and sent later.
_TRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}


class Sender:
    """What one process sends to a run.

    `log` and `attach` never wait for MLflow and never raise because of it. What it has not taken is in memory and in
    the spool; what a killed process left there, the next sender of the run takes over.

    A figure is there once, by two rules. MLflow stores a figure of the same metric, step, time and value once, so a
    batch whose answer was lost is sent again as it was. And a metric that MLflow has at this step or a later one is
    left out, so steps that are done again after a restart, at another time, are not logged again.

    Parameters
    ----------
    tracking_uri, run_id : str
    folder : Path, optional
        Of the spool; without one a temporary folder, which goes with this process.
    """

    def __init__(self, tracking_uri: str, run_id: str, folder: Path | None = None) -> None:
        self.run_id, self.temporary = run_id, folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="p2es-spool-")) if folder is None else folder
        if self.temporary:
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        for name, value in _TRIES.items():
            os.environ.setdefault(name, value)
        self._uri = tracking_uri
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")
        # Only the thread touches these: the client, the last step MLflow has of each metric, and what is on its way.
        self._client: mlflow.MlflowClient | None = None
        self._sent: dict[str, int] | None = None
        self._pending: list[Metric] = []
        self._failing = False
        self._lock = threading.Lock()
        # Under the lock:
        self.spool = Spool(self.folder, run_id)
        self._spool_works = True
        self._waiting: list[Line] = []
        self._last: dict[str, int] = {}
        self._next_send = time.monotonic() + _SEND_EVERY_S
        self._sending: Future[bool] | None = None
        self._released = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note the figures of a step; any thread may call it. It costs a line on disk and sends nothing itself."""
        with self._lock:
            new = {
                # MLflow stores an infinity as 1.797e308, which looks like a figure; NaN stays NaN.
                key: float(value) if math.isfinite(value) else math.nan
                for key, value in metrics.items()
                if step > self._last.get(key, -1)
            }
            if new:
                self._last |= dict.fromkeys(new, step)
                line = Line(step, int(time.time() * 1000), new)
                self._waiting.append(line)
                self._try_spool(lambda: self.spool.append(line))
            self._send_when_due()

    def attach(self, name: str, data: bytes) -> None:
        """Keep a small file, which becomes the artifact `name` over an older one."""
        with self._lock:
            self._try_spool(lambda: self.spool.keep_file(name, data))
            self._send_when_due()

    def next_step(self, prefix: str) -> int | None:
        """Give the step after the last of the metrics whose names begin so; None until MLflow has answered once."""
        with self._lock:
            known = [step for key, step in self._last.items() if key.startswith(prefix)]
            return None if self._sent is None else max(known, default=-1) + 1

    def flush(self, timeout_s: float | None = None) -> bool:
        """Send what waits and tell whether all of it arrived, within the time."""
        try:
            return self._thread.submit(self._send).result(timeout_s)
        except TimeoutError:
            return False

    def reach(self, timeout_s: float) -> None:
        """Learn which steps MLflow has, and take over what the dead left; raises when it does not answer in time."""
        self._thread.submit(self._contact).result(timeout_s)

    def deliver(self) -> None:
        """Send everything, also what others left since; raises what went wrong."""
        self._thread.submit(self._contact).result()
        self._thread.submit(self._send_or_raise).result()

    def outage(self, error: BaseException) -> None:
        """Say once that MLflow does not answer, and try less often."""
        self._next_send = time.monotonic() + _RETRY_AFTER_S
        if not self._failing:
            log.warning("MLflow does not take what is logged (%s): kept, sent later", first_line(error))
        self._failing = True

    def keep_end(self, status: str) -> None:
        """Leave in the spool how the run ended."""
        with self._lock:
            self._try_spool(lambda: self.spool.keep_end(status))

    def release(self) -> None:
        """Let go of the spool: what was not sent stays there for the next sender of the run."""
        self._thread.shutdown(wait=False)
        with self._lock:
            self._released = True
            self.spool.close()

    def _try_spool(self, write: Callable[[], None]) -> None:
        """Write to the spool, under the lock; a full disk is told once and costs the safety, not the training."""
        try:
            write()
        except OSError as error:
            if self._spool_works:
                log.warning("the spool %s cannot be written (%s): a kill now would lose metrics", self.folder, error)
            self._spool_works = False
        else:
            self._spool_works = True

    def _send_when_due(self) -> None:
        """Let the thread begin, under the lock, when it is time and it is idle."""
        if self._released or time.monotonic() < self._next_send:
            return
        if self._sending is None or self._sending.done():
            self._next_send = time.monotonic() + _SEND_EVERY_S
            self._sending = self._thread.submit(self._send)

    # What follows runs in the thread only.

    def _contact(self) -> None:
        if self._client is None:
            self._client = connect(self._uri)
        elif is_server(self._uri):
            require_answer(self._uri)
        run = self._client.get_run(self.run_id)
        # The last step of each metric comes with the run; histories would be the whole run.
        sent = {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}
        with self._lock:
            left = self.spool.adopt()
            self._sent = sent
            news = self._news(left)
            for key, step in [*sent.items(), *((metric.key, metric.step) for metric in news)]:
                self._last[key] = max(step, self._last.get(key, -1))
        self._pending += news

    def _news(self, lines: Sequence[Line]) -> list[Metric]:
        """Turn lines into what MLflow neither has nor is about to get; of two lines of one step, the first."""
        assert self._sent is not None
        seen, news = dict(self._sent), []
        for metric in self._pending:
            seen[metric.key] = max(metric.step, seen.get(metric.key, -1))
        for line in lines:
            for key, value in line.metrics.items():
                if line.step > seen.get(key, -1):
                    seen[key] = line.step
                    news.append(Metric(key, value, line.time_ms, line.step))
        return news

    def _send(self) -> bool:
        try:
            self._send_or_raise()
        except OUTAGES as error:
            self.outage(error)
            return False
        if self._failing:
            log.warning("MLflow answers again: it has everything up to now")
        self._failing = False
        return True

    def _send_or_raise(self) -> None:
        """Send what waits, oldest first: what an earlier attempt left, what came since, the files."""
        if self._sent is None:
            self._contact()
        elif self._failing and is_server(self._uri):
            require_answer(self._uri)
        assert self._client is not None
        self._send_pending(self._client)
        with self._lock:
            lines, self._waiting = self._waiting, []
            self.spool.turn()
        self._pending = self._news(lines)
        self._send_pending(self._client)
        with self._lock:
            files = [(name, path, path.stat().st_ino) for name, path in self.spool.files()]
        for name, path, version in files:
            self._client.log_artifact(self.run_id, str(path), str(Path(name).parent) if "/" in name else None)
            with self._lock:
                self.spool.drop_file(path, version)

    def _send_pending(self, client: mlflow.MlflowClient) -> None:
        assert self._sent is not None
        while self._pending:
            count = _whole_steps(self._pending, _METRICS_A_BATCH)
            client.log_batch(self.run_id, metrics=self._pending[:count])
            self._sent |= {metric.key: metric.step for metric in self._pending[:count]}
            del self._pending[:count]
        with self._lock:
            self.spool.forget()


def _whole_steps(metrics: Sequence[Metric], limit: int) -> int:
    """Count the leading metrics that fit a batch without tearing a step: a torn one would not be resumed."""
    if len(metrics) <= limit:
        return len(metrics)
    count = limit
    while count > 0 and metrics[count - 1].step == metrics[count].step:
        count -= 1
    return count or limit
