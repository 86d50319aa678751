"""Submit, follow and stop jobs on a cluster, with this code and nothing installed there but its dependencies."""

import asyncio
import json
import logging
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from p2es.errors import ConfigError, RemoteError
from p2es_platform.cluster import require_listener, worker_environment
from p2es_platform.settings import Settings

log = logging.getLogger(__name__)

_STOPPED = 130
_RECONNECTS = 5
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class JobRow:
    """What is listed of a job.

    Attributes
    ----------
    job_id, status, entrypoint : str
    started_ms : int
        Unix time; 0 before it started.
    """

    job_id: str
    status: str
    entrypoint: str
    started_ms: int


def connect(settings: Settings) -> JobSubmissionClient:
    """Give a client of the job API at RAY_ADDRESS.

    Raises
    ------
    ConfigError
        When RAY_ADDRESS is unset or no job API's address.
    RemoteError
        When nothing answers there, or it refuses the token.
    """
    address = settings.ray_address
    if not address:
        raise ConfigError("set RAY_ADDRESS to the cluster's job API, as in RAY_ADDRESS=http://head:8265")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"RAY_ADDRESS={address} takes no jobs: write http://head:8265 (the dashboard's port)")
    # Ray asks without a time limit: a host that drops packets would hold the user for minutes.
    require_listener(f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}")
    # Ray tells of every upload and closed connection.
    logging.getLogger("ray.dashboard").setLevel(logging.WARNING)
    with _told(address):
        client = JobSubmissionClient(address)
        client.get_version()
        return client


@contextmanager
def _told(address: str, job: str | None = None) -> Iterator[None]:
    """Turn what Ray raises into one line."""
    try:
        yield
    except AuthenticationError as error:
        raise RemoteError(
            f"the cluster at {address} refused the token: set RAY_AUTH_MODE=token and the cluster's RAY_AUTH_TOKEN"
        ) from error
    except (ConnectionError, requests.RequestException, aiohttp.ClientError) as error:
        raise RemoteError(f"no job API answers at RAY_ADDRESS={address}: correct it or start the cluster") from error
    except RuntimeError as error:
        text = str(error)
        if job is not None and ("status code 404" in text or "does not exist" in text):
            raise RemoteError(f"the cluster has no job {job}: `p2es jobs list` names them") from error
        raise RemoteError(f"the cluster at {address} refused: {text.strip().splitlines()[0][:300]}") from error


def pack_code(folder: Path) -> Path:
    """Lay out this code as it is installed: the packages side by side, with the distribution's metadata.

    It is shipped as a job's working directory, which Ray files by its content. A wheel would be filed by its name,
    so that changed code of the same version ran as it was before; and Ray installs a wheel by a `pip install` that
    fetches every dependency anew.

    Raises
    ------
    ConfigError
        When p2es is not installed, or the checkout cannot be built.
    """
    try:
        distribution = metadata.distribution("p2es")
    except metadata.PackageNotFoundError as error:
        raise ConfigError("p2es is not installed here, so it cannot be shipped: pip install -e .") from error
    folder.mkdir(parents=True)
    checkout = _checkout(distribution)
    if checkout is None:
        _copy_installed(distribution, folder)
    else:
        _build(checkout, folder)
    if not (folder / "p2es_platform" / "jobs.py").exists():
        raise ConfigError("the installed p2es is incomplete, so it cannot be shipped: install it again")
    return folder


def _checkout(distribution: metadata.Distribution) -> Path | None:
    """Give the folder of an editable install; None for a plain one."""
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlsplit(origin["url"]).path))


def _build(checkout: Path, folder: Path) -> None:
    """Build the checkout's wheel and unpack it."""
    with tempfile.TemporaryDirectory(prefix="p2es-wheel-") as built:
        done = subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", built],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = list(Path(built).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            why = (done.stderr.strip() or done.stdout.strip() or "hatchling gave no wheel").splitlines()[-1]
            raise ConfigError(f"the checkout cannot be built ({why}): correct it, it is what the cluster would run")
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(folder)


def _copy_installed(distribution: metadata.Distribution, folder: Path) -> None:
    """Copy what the installer recorded, less its scripts and what Python compiled."""
    for file in distribution.files or []:
        if file.suffix == ".pyc" or ".." in file.parts:
            continue
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(str(file.locate())), target)


def submit(settings: Settings, argv: Sequence[str], *, entrypoint: str | None = None) -> str:
    """Send this code to the cluster and start a `p2es` command there.

    Parameters
    ----------
    argv : sequence of str
        The command and its arguments, as in `["train", "--recipe", "small"]`.
    entrypoint : str, optional
        A shell command to run instead.

    Returns
    -------
    str
        Id of the job.
    """
    client = connect(settings)
    _warn_of_local_places(settings)
    address = str(settings.ray_address)
    command = entrypoint or shlex.join(["python", "-m", "pipelines.cli", *argv])
    job = f"p2es-{argv[0] if argv else 'run'}-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory(prefix="p2es-submit-") as folder, _told(address):
        code = pack_code(Path(folder) / "code")
        environment = {"working_dir": str(code), "env_vars": worker_environment(settings)}
        client.submit_job(entrypoint=command, submission_id=job, runtime_env=environment)
    return job


def _warn_of_local_places(settings: Settings) -> None:
    if urlsplit(str(settings.ray_address)).hostname in _LOOPBACK:
        return
    if settings.is_local or settings.tracking_uri.startswith("sqlite:"):
        log.warning(
            "P2ES_STORAGE or MLFLOW_TRACKING_URI is a place of this machine: "
            "the cluster must see it under the same path"
        )


def follow(settings: Settings, job: str, write: Callable[[str], None] | None = None) -> int:
    """Print a job's log as it comes and give its exit status.

    Parameters
    ----------
    write : callable, optional
        Takes pieces of the log; without one they go to standard output.

    Returns
    -------
    int
        The command's own; 130 when the job was stopped.

    Raises
    ------
    RemoteError
        When there is no such job, it could not be started, or the cluster is gone.
    """
    client, address = connect(settings), str(settings.ray_address)
    with _told(address, job):
        client.get_job_info(job)
    asyncio.run(_tail(client, job, write or _print))
    with _told(address, job):
        return _exit_status(_ended(client, job), job)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


async def _tail(client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> None:
    """Write the log to its end; after a broken connection, go on where it broke."""
    written = 0
    for attempt in range(_RECONNECTS + 1):
        seen = 0
        try:
            async for text in client.tail_job_logs(job):
                write(text[max(written - seen, 0) :])
                seen += len(text)
                written = max(written, seen)
            return
        except (RuntimeError, aiohttp.ClientError, OSError) as error:
            if attempt == _RECONNECTS:
                raise RemoteError(
                    f"the log of {job} broke off, the job may still run: `p2es jobs logs {job}` shows it"
                ) from error
            await asyncio.sleep(2.0)


def _ended(client: JobSubmissionClient, job: str, timeout_s: float = 60.0) -> JobDetails:
    """Give the job once it has ended: its log ends a moment before its status is known."""
    until = time.monotonic() + timeout_s
    while not (info := client.get_job_info(job)).status.is_terminal() and time.monotonic() < until:
        time.sleep(0.3)
    return info


def _exit_status(info: JobDetails, job: str) -> int:
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        return _STOPPED
    if not info.status.is_terminal():
        raise RemoteError(f"the log of {job} ended but the job goes on: `p2es jobs list` shows its status")
    if info.driver_exit_code is None:
        why = " ".join((info.message or "no reason given").split())[:300]
        raise RemoteError(f"{job} could not be run: {why}")
    return int(info.driver_exit_code)


def listing(settings: Settings) -> list[JobRow]:
    """List the submitted jobs, oldest first."""
    client = connect(settings)
    with _told(str(settings.ray_address)):
        jobs = [job for job in client.list_jobs() if job.type == JobType.SUBMISSION]
    rows = [JobRow(str(job.submission_id), job.status.value, job.entrypoint, job.start_time or 0) for job in jobs]
    return sorted(rows, key=lambda row: row.started_ms)


def logs(settings: Settings, job: str) -> str:
    """Give a job's log so far; RemoteError when there is no such job."""
    client = connect(settings)
    with _told(str(settings.ray_address), job):
        return client.get_job_logs(job)


def stop(settings: Settings, job: str) -> bool:
    """Ask a job to end and tell whether it was running; RemoteError when there is no such job."""
    client = connect(settings)
    with _told(str(settings.ray_address), job):
        return client.stop_job(job)
