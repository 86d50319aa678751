"""One MLflow run for one training, across restarts and outages of MLflow."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import mlflow
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException

from p2es.errors import ConfigError, RemoteError
from p2es_platform.metric_sender import OUTAGES, Sender
from p2es_platform.metric_spool import runs_in
from p2es_platform.mlflow_client import MLFLOW_ERRORS, connect, first_line, is_server
from p2es_platform.run_description import DatasetDetails, dataset_inputs, describe

log = logging.getLogger(__name__)

FINGERPRINT_TAG = "p2es.fingerprint"

_JOIN_S = 30.0
_PATIENCE_S = 60.0
# Who pressed Ctrl-C wants the prompt back.
_PATIENCE_KILLED_S = 5.0


class Tracker:
    """Writes one MLflow run. The driver makes it by `start`, rank 0 of the workers by `join`.

    `log` and `attach` never wait for MLflow and never raise because of it (`metric_sender.Sender`): batches are sent
    by a thread, and what MLflow does not take stays in memory and in the spool, a folder. A process that is killed
    leaves its part of the spool to the next one that starts or joins the run. Each metric has a step once, whoever logs
    it again.

    Attributes
    ----------
    run_id : str
    """

    def __init__(self, tracking_uri: str, run_id: str, spool: Path | None = None) -> None:
        self.run_id = run_id
        self._uri = tracking_uri
        self._sender = Sender(tracking_uri, run_id, spool)

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
        dataset_details: DatasetDetails | None = None,
        artifact_root: str | None = None,
        spool: Path | None = None,
    ) -> Self:
        """Create the run of a training, or find the one that has its fingerprint.

        A finished run is given as it is; one that was killed or failed is set running again. What the spool holds of an
        earlier attempt is sent.

        Parameters
        ----------
        params : mapping
            Nested configuration; logged flattened, and whole as the artifact `recipe.json`.
        tags : mapping
            Lineage and whatever else the run shall be found by.
        dataset_digest : str
            At most 36 characters (MLflow's limit).
        dataset_details : DatasetDetails, optional
            Source, schema and profiles of its uses, for MLflow's page of the dataset.
        artifact_root : str, optional
            Where the artifacts go when there is no MLflow server, which has a place of its own.
        spool : Path, optional
            A folder that keeps what MLflow has not taken, the same for each attempt and for the workers. Without one,
            what MLflow has not taken is lost with the process.

        Raises
        ------
        RemoteError
            When MLflow does not answer.
        """
        client = connect(tracking_uri)
        try:
            root = None if is_server(tracking_uri) else artifact_root
            experiment_id = _experiment(client, experiment, root)
            run = _find(client, experiment_id, fingerprint)
            if run is None:
                run = client.create_run(experiment_id, run_name=name, tags={FINGERPRINT_TAG: fingerprint})
            elif run.info.status != "FINISHED":
                client.update_run(run.info.run_id, status="RUNNING")
            describe(client, run, params, tags, dataset_inputs(dataset_name, dataset_digest, dataset_details))
        except MLFLOW_ERRORS as error:
            raise RemoteError(f"MLflow refused the run ({first_line(error)}): see `p2es doctor`") from error
        tracker = cls(tracking_uri, run.info.run_id, spool)
        if run.info.status != "FINISHED":
            tracker._sender.spool.drop_end()
            tracker.attach("recipe.json", json.dumps(params, indent=1, default=str).encode())
        tracker.flush()
        return tracker

    @classmethod
    def join(cls, tracking_uri: str, run_id: str, *, spool: Path | None = None) -> Self:
        """Write to a run that the driver has started, also while MLflow does not answer.

        Raises
        ------
        RemoteError
            When MLflow answers that it has no such run.
        ConfigError
            When the address is not one that MLflow can use.
        """
        tracker = cls(tracking_uri, run_id, spool)
        try:
            tracker._sender.reach(_JOIN_S)
        except ConfigError:
            tracker._sender.release()
            raise
        except (*OUTAGES, TimeoutError) as error:
            if isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST":
                tracker._sender.release()
                raise RemoteError(f"MLflow has no run {run_id} ({first_line(error)})") from error
            tracker._sender.outage(error)
        return tracker

    @property
    def finished(self) -> bool:
        """Whether MLflow has the run as finished; RemoteError when it does not answer."""
        try:
            return str(connect(self._uri).get_run(self.run_id).info.status) == "FINISHED"
        except MLFLOW_ERRORS as error:
            raise RemoteError(f"MLflow does not say how the run ended ({first_line(error)})") from error

    def next_step(self, prefix: str) -> int | None:
        """Give the step after the last of the metrics whose names begin so; None until MLflow has answered once."""
        return self._sender.next_step(prefix)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note the figures of a step; a metric that has this step or a later one, from before a restart, is left out.

        Any thread may call it. It costs a line on disk, and sends nothing itself.
        """
        self._sender.log(step, metrics)

    def attach(self, name: str, data: bytes) -> None:
        """Keep a small file, which becomes the artifact `name` (`samples/step-0001200.png`) over an older one."""
        self._sender.attach(name, data)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Send what waits and tell whether all of it arrived, within the time."""
        return self._sender.flush(timeout_s)

    def histories(self, wanted: Callable[[str], bool]) -> dict[str, list[Metric]]:
        """Read all values of the wanted metrics, in the order of steps; raises MLflow's errors when it does not answer.

        Long: 25,000 values a request.
        """
        client = connect(self._uri)
        names = sorted(filter(wanted, client.get_run(self.run_id).data.metrics))
        found = {name: client.get_metric_history(self.run_id, name) for name in names}
        return {name: sorted(history, key=lambda metric: metric.step) for name, history in found.items()}

    def upload(self, folder: Path, name: str, *, patience_s: float = _PATIENCE_S) -> None:
        """Copy a folder to the run's artifacts, trying for a minute when MLflow does not answer.

        Raises
        ------
        RemoteError
            When it could not be stored.
        """

        def store() -> None:
            connect(self._uri).log_artifacts(self.run_id, str(folder), name)

        problem = _patiently(store, f"the folder {name}", patience_s)
        if problem is not None:
            raise RemoteError(f"MLflow did not take {folder.name} ({first_line(problem)}): run again") from problem

    def finish(self, status: str, *, patience_s: float | None = None) -> bool:
        """End the run as FINISHED, FAILED or KILLED, after everything that waits, also what the workers left.

        When MLflow does not answer for a minute (a killed run: 5 s), all of it stays in the spool, and one line says
        so. The next `start` of this training sends it, or `send_spool`.

        Returns
        -------
        bool
            Whether MLflow has everything.
        """

        def end() -> None:
            self._sender.deliver()
            connect(self._uri).set_terminated(self.run_id, status)
            self._sender.spool.drop_end()

        usual_s = _PATIENCE_KILLED_S if status == "KILLED" else _PATIENCE_S
        problem = _patiently(end, "the end of the run", usual_s if patience_s is None else patience_s)
        if problem is not None:
            self._sender.keep_end(status)
            where = f"it waits in {self._sender.folder}" if not self._sender.temporary else "it goes with this process"
            log.warning(
                "MLflow did not take the end of the run (%s): %s. Run the same command again when MLflow answers",
                first_line(problem),
                where,
            )
        self._sender.release()
        return problem is None

    def close(self, *, timeout_s: float = 30.0) -> bool:
        """Send what waits, once, and let go of the run without ending it: what a worker does; `finish` sends the rest.

        Returns
        -------
        bool
            Whether all of it arrived.
        """
        arrived = self.flush(timeout_s)
        self._sender.release()
        return arrived


def send_spool(tracking_uri: str, folder: Path) -> list[str]:
    """Send what trainings left in a spool because MLflow did not answer, and end their runs.

    Parameters
    ----------
    tracking_uri : str
    folder : Path
        What a living process is about to send stays its own.

    Returns
    -------
    list of str
        The runs of which something waited.

    Raises
    ------
    RemoteError
        When MLflow still does not answer, or has no such run; the rest stays.
    """
    runs = runs_in(folder)
    client = connect(tracking_uri) if runs else None
    for run_id in runs:
        sender = Sender(tracking_uri, run_id, folder)
        try:
            sender.deliver()
            end = sender.spool.end()
            if end is not None and client is not None:
                client.set_terminated(run_id, *end)
                sender.spool.drop_end()
        except MLFLOW_ERRORS as error:
            raise RemoteError(f"MLflow did not take what waits in {folder} ({first_line(error)})") from error
        finally:
            sender.release()
    return runs


def _patiently(attempt: Callable[[], None], what: str, patience_s: float) -> BaseException | None:
    """Try until it works or the time is over; give the last problem, None when it worked."""
    deadline, told = time.monotonic() + patience_s, False
    while True:
        try:
            attempt()
        except OUTAGES as error:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return error
            if not told:
                log.warning("MLflow does not take %s (%s): trying for %.0f s", what, first_line(error), patience_s)
            told = True
            time.sleep(min(2.0, left_s))
        else:
            return None


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
