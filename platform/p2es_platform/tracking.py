"""One MLflow run for one training, across restarts."""

import logging
import math
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import mlflow
import requests
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from p2es.errors import ConfigError, RemoteError

log = logging.getLogger(__name__)

FINGERPRINT_TAG = "p2es.fingerprint"

# MLflow's own limits for one log_batch.
_METRICS_A_BATCH = 1000
_PARAMS_A_BATCH = 100
_PARAM_LENGTH = 6000

# 100 single log_metric calls took 2.3 s, one batch of them a few ms.
_SEND_EVERY_S = 5.0
_RETRY_AFTER_S = 30.0

# What MLflow raises when its server, database or files fail.
MLFLOW_ERRORS = (MlflowException, SQLAlchemyError, requests.RequestException, OSError)


def connect(tracking_uri: str) -> mlflow.MlflowClient:
    """Give a client of an MLflow that answers.

    Raises
    ------
    ConfigError
        When the address is not one that MLflow can use.
    RemoteError
        When the server does not answer within 5 s, or the database cannot be opened.
    """
    shown = without_credentials(tracking_uri)
    if tracking_uri.startswith(("http://", "https://")):
        _require_answer(tracking_uri)
    elif tracking_uri.startswith("sqlite:///"):
        Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    elif "://" not in tracking_uri:
        raise ConfigError(f"MLFLOW_TRACKING_URI={shown} is not an address: write http://host:5000 or sqlite:///file")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.store.model_registry"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        client = mlflow.MlflowClient(tracking_uri=tracking_uri)
        client.search_experiments(max_results=1)
    except MLFLOW_ERRORS as error:
        raise RemoteError(f"MLflow at {shown} cannot be used ({first_line(error)}): check the address") from error
    return client


def without_credentials(uri: str) -> str:
    """Give the address as it may be shown: without user and password."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


def first_line(error: BaseException) -> str:
    """Give the first line of an error, or its type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _require_answer(tracking_uri: str) -> None:
    # MLflow's own client retries a dead address for minutes before it gives up.
    shown = without_credentials(tracking_uri)
    try:
        status = requests.get(f"{tracking_uri.rstrip('/')}/health", timeout=5).status_code
    except requests.RequestException as error:
        reason = type(error).__name__
        raise RemoteError(f"MLflow at {shown} does not answer ({reason}): start it or correct the address") from error
    if status >= 500:
        raise RemoteError(f"MLflow at {shown} answers {status}: look at its log")


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Turn a nested configuration into MLflow parameters: `train.batch` -> `64`."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)[:_PARAM_LENGTH]
    return flat


def git_commit() -> str | None:
    """Give the commit of the checkout this package is in, `-dirty` when changed; None when it is in none."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here.parent), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie inside somebody else's checkout; only one that tracks this file counts.
    if git("ls-files", "--error-unmatch", here.name) is None:
        return None
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


class Tracker:
    """Writes one MLflow run. The driver makes it by `start`, rank 0 of the workers by `join`.

    `log` never waits for MLflow and never raises because of it: lines are sent in batches by a thread, and
    kept while MLflow does not answer.

    Attributes
    ----------
    run_id : str
    """

    def __init__(self, client: mlflow.MlflowClient, run_id: str, last_step: int) -> None:
        self.run_id = run_id
        self._client = client
        self._last_step = last_step
        self._waiting: list[Metric] = []
        self._lock = threading.Lock()
        self._sender = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")
        self._sending: Future[bool] | None = None
        self._next_send = time.monotonic() + _SEND_EVERY_S
        self._warned = False

    @classmethod
    def start(
        cls,
        tracking_uri: str,
        *,
        experiment: str,
        name: str,
        fingerprint: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        dataset_name: str,
        dataset_digest: str,
        artifact_root: str | None = None,
    ) -> Self:
        """Create the run of a training, or find the one that has its fingerprint.

        A finished run is given as it is; one that was killed or failed is set running again.

        Parameters
        ----------
        params : mapping
            Nested configuration; logged flattened.
        dataset_digest : str
            At most 36 characters (MLflow's limit).
        artifact_root : str, optional
            Where the artifacts go when there is no MLflow server, which has a place of its own.

        Raises
        ------
        RemoteError
            When MLflow does not answer.
        """
        client = connect(tracking_uri)
        try:
            root = None if tracking_uri.startswith(("http://", "https://")) else artifact_root
            experiment_id = _experiment(client, experiment, root)
            run = _find(client, experiment_id, fingerprint)
            if run is None:
                run = client.create_run(experiment_id, run_name=name, tags={FINGERPRINT_TAG: fingerprint})
            elif run.info.status != "FINISHED":
                client.update_run(run.info.run_id, status="RUNNING")
            _describe(client, run, params, tags, dataset_name, dataset_digest)
            return cls(client, run.info.run_id, _last_step(client, run))
        except MLFLOW_ERRORS as error:
            raise RemoteError(f"MLflow refused the run ({first_line(error)}): see `p2es doctor`") from error

    @classmethod
    def join(cls, tracking_uri: str, run_id: str) -> Self:
        """Write to a run that the driver has started.

        Raises
        ------
        RemoteError
            When MLflow does not answer or has no such run.
        """
        client = connect(tracking_uri)
        try:
            return cls(client, run_id, _last_step(client, client.get_run(run_id)))
        except MLFLOW_ERRORS as error:
            raise RemoteError(f"MLflow has no run {run_id} ({first_line(error)})") from error

    @property
    def finished(self) -> bool:
        """Whether MLflow has the run as finished."""
        return str(self._client.get_run(self.run_id).info.status) == "FINISHED"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note the figures of a step; a step that MLflow has already, from before a restart, is left out."""
        if step <= self._last_step:
            return
        self._last_step = step
        now_ms = int(time.time() * 1000)
        # MLflow stores an infinity as 1.797e308, which looks like a figure; NaN stays NaN.
        lines = [
            Metric(key, float(value) if math.isfinite(value) else math.nan, now_ms, step)
            for key, value in metrics.items()
        ]
        with self._lock:
            self._waiting += lines
        if time.monotonic() >= self._next_send and (self._sending is None or self._sending.done()):
            self._next_send = time.monotonic() + _SEND_EVERY_S
            self._sending = self._sender.submit(self._send)

    def flush(self) -> bool:
        """Send what waits and tell whether all of it arrived."""
        return self._sender.submit(self._send).result()

    def _send(self) -> bool:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        while waiting:
            count = _whole_steps(waiting, _METRICS_A_BATCH)
            try:
                self._client.log_batch(self.run_id, metrics=waiting[:count])
            except MLFLOW_ERRORS as error:
                with self._lock:
                    self._waiting = waiting + self._waiting
                self._next_send = time.monotonic() + _RETRY_AFTER_S
                if not self._warned:
                    log.warning("MLflow does not take the metrics (%s): kept, sent later", first_line(error))
                self._warned = True
                return False
            waiting = waiting[count:]
        self._warned = False
        return True

    def upload(self, folder: Path, name: str) -> None:
        """Copy a folder to the run's artifacts.

        Raises
        ------
        RemoteError
            When it could not be stored.
        """
        try:
            self._client.log_artifacts(self.run_id, str(folder), name)
        except MLFLOW_ERRORS as error:
            raise RemoteError(f"MLflow did not take {folder.name} ({first_line(error)}): run again") from error

    def finish(self, status: str) -> None:
        """Send what waits and end the run as FINISHED, FAILED or KILLED; warn when that fails."""
        arrived = self.flush()
        try:
            self._client.set_terminated(self.run_id, status)
        except MLFLOW_ERRORS as error:
            log.warning("MLflow did not take the end of the run (%s)", first_line(error))
        if not arrived:
            log.warning("%d metric values did not reach MLflow", len(self._waiting))
        self._sender.shutdown(wait=False)


def _whole_steps(metrics: Sequence[Metric], limit: int) -> int:
    """Count the leading metrics that fit a batch without tearing a step: a torn one would not be resumed."""
    if len(metrics) <= limit:
        return len(metrics)
    count = limit
    while count > 0 and metrics[count - 1].step == metrics[count].step:
        count -= 1
    return count or limit


def _experiment(client: mlflow.MlflowClient, name: str, artifact_root: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    if artifact_root is not None and "://" not in artifact_root:
        artifact_root = Path(artifact_root).absolute().as_uri()
    return client.create_experiment(name, artifact_location=artifact_root)


def _find(client: mlflow.MlflowClient, experiment_id: str, fingerprint: str) -> Run | None:
    """Give the oldest run of a fingerprint, so that two drivers that raced agree from then on."""
    runs = client.search_runs(
        [experiment_id],
        f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'",
        order_by=["start_time ASC"],
        max_results=1,
    )
    return runs[0] if runs else None


def _describe(
    client: mlflow.MlflowClient,
    run: Run,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    name: str,
    digest: str,
) -> None:
    """Log what the run is; MLflow parameters cannot change, so only those it does not have yet."""
    run_id = run.info.run_id
    missing = [Param(k, v) for k, v in flatten(params).items() if k not in run.data.params]
    for start in range(0, len(missing), _PARAMS_A_BATCH):
        client.log_batch(run_id, params=missing[start : start + _PARAMS_A_BATCH])
    commit = git_commit()
    described = dict(tags) | ({"p2es.git_commit": commit} if commit else {})
    client.log_batch(run_id, tags=[RunTag(k, v) for k, v in described.items() if k not in run.data.tags])
    if not run.inputs.dataset_inputs:
        dataset = Dataset(name=name, digest=digest[:36], source_type="p2es", source=name)
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _last_step(client: mlflow.MlflowClient, run: Run) -> int:
    """Give the last step that was logged; -1 for a run without metrics."""
    histories = [client.get_metric_history(run.info.run_id, key) for key in run.data.metrics]
    return max((metric.step for history in histories for metric in history), default=-1)
