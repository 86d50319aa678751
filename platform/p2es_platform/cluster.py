"""Start a Ray of our own, or join the one that RAY_ADDRESS names; never one that happens to run here."""

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from p2es.errors import ConfigError, RemoteError
from p2es_platform.settings import Settings

# Set by Ray in the driver of a submitted job. Such a driver has its runtime environment already, and a second
# one makes ray.init raise.
_IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"

# Ray adds about 66 characters to its folder for a socket, and a socket's path ends at 107 (104 on macOS).
_LONGEST_TEMP_DIR = 36


@contextmanager
def connect(
    settings: Settings, *, local_cpus: int = 4, object_store_mb: int = 512, dashboard: bool = False
) -> Iterator[None]:
    """Give a running Ray for the time of the block.

    Without RAY_ADDRESS a local Ray starts, in a temporary folder of its own, and is shut down at the end,
    also after Ctrl-C. With it, the cluster is joined and left running. A Ray that this process already has is
    used as it is.

    Parameters
    ----------
    settings : Settings
    local_cpus : int
        Logical CPUs of the local Ray; may be more than there are cores.
    object_store_mb : int
        Object store of the local Ray, in units of 1e6 bytes.
    dashboard : bool
        Start the dashboard as well (817 instead of 625 MB). Ray Train works without it.

    Raises
    ------
    RemoteError
        When RAY_ADDRESS names no cluster that answers.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about the user's cluster is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if settings.ray_address not in (None, "", "local"):
        with _joined(settings):
            yield
        return
    with _started(settings, local_cpus, object_store_mb, dashboard):
        yield


def worker_environment(settings: Settings) -> dict[str, str]:
    """Give the variables of every worker: where things lie, and one thread for libraries that guess."""
    return {**settings.environment(), "OMP_NUM_THREADS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@contextmanager
def _started(settings: Settings, cpus: int, object_store_mb: int, dashboard: bool) -> Iterator[None]:
    folder = _short_temp_dir()
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            object_store_memory=object_store_mb * 1_000_000,
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            runtime_env={"env_vars": worker_environment(settings)},
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _joined(settings: Settings) -> Iterator[None]:
    address = settings.ray_address or ""
    if address.startswith(("http://", "https://")):
        raise ConfigError(f"RAY_ADDRESS={address} takes jobs only: run this command by `p2es submit -- <command>`")
    require_listener(address)
    extra = {} if _IN_JOB in os.environ else {"runtime_env": {"env_vars": worker_environment(settings)}}
    try:
        ray.init(address=address, logging_level=logging.WARNING, **extra)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise RemoteError(f"no Ray cluster at RAY_ADDRESS={address} ({first}): correct it or unset it") from error
    try:
        yield
    finally:
        ray.shutdown()


def require_listener(address: str, timeout_s: float = 5.0) -> None:
    """Raise unless something listens at `host:port`; Ray takes more than 200 s to say that nothing does.

    Raises
    ------
    ConfigError
        When the address is not of a form that Ray knows.
    RemoteError
        When nothing listens.
    """
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"RAY_ADDRESS={address} is not an address: write host:6379, auto or http://host:8265")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except (OSError, OverflowError) as error:
        raise RemoteError(f"no Ray cluster at RAY_ADDRESS={address} ({error}): correct it or unset it") from error


def _short_temp_dir() -> Path:
    """Make a folder whose path is short enough for Ray's sockets."""
    base = Path(tempfile.gettempdir())
    if len(str(base)) + len("/ray-12345678") > _LONGEST_TEMP_DIR:
        base = Path("/tmp")
    try:
        return Path(tempfile.mkdtemp(prefix="ray-", dir=base))
    except OSError as error:
        raise ConfigError(f"no temporary folder can be made in {base} ({error.strerror}): set TMPDIR") from error
