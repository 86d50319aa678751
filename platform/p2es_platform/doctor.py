"""What is installed, reachable and writable: the first thing to run when something does not work."""

import os
import secrets
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

import fsspec
import requests

from p2es.errors import P2EsError
from p2es_platform.settings import Settings

# The demo leaves less than 1 GB behind.
_FREE_GB = 2.0
_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name : str
    ok : bool
    detail : str
        What was found, one line.
    hint : str
        What to do when it is not ok.
    """

    name: str
    ok: bool
    detail: str
    hint: str = ""


class _NotOkError(Exception):
    """What a check raises when it finds something wrong and knows what to do."""

    def __init__(self, detail: str, hint: str) -> None:
        super().__init__(detail)
        self.hint = hint


def checks(settings: Settings) -> list[Check]:
    """Look at everything. Nothing is raised, nothing is left behind, nothing is started."""
    looks: dict[str, Callable[[Settings], str]] = {
        "python": _python,
        "p2es": _p2es,
        "ray": _ray,
        "torch": _torch,
        "faiss": _faiss,
        "mlflow": _mlflow,
        "storage": _storage,
        "endpoint": _endpoint,
        "readers": _readers,
    }
    return [_look(name, look, settings) for name, look in looks.items()]


def _look(name: str, look: Callable[[Settings], str], settings: Settings) -> Check:
    try:
        return Check(name, True, look(settings))
    except _NotOkError as error:
        return Check(name, False, str(error), error.hint)
    except P2EsError as error:
        return Check(name, False, str(error))
    except Exception as error:  # noqa: BLE001  A broken installation fails in ways nobody can list.
        text = " ".join(str(error).split())[:200]
        return Check(name, False, f"{type(error).__name__}: {text}", "install p2es again, with constraints.txt")


def _python(settings: Settings) -> str:
    return f"{'.'.join(map(str, sys.version_info[:3]))}, {sys.executable}"


def _p2es(settings: Settings) -> str:
    # Inside a job the code is shipped without being installed; then its metadata travels with it.
    return metadata.version("p2es")


def _ray(settings: Settings) -> str:
    version = import_module("ray").__version__
    address = settings.ray_address
    if not address:
        return f"{version}, starts on this machine (RAY_ADDRESS is not set)"
    if address.startswith(("http://", "https://")):
        from p2es_platform.jobs import connect

        theirs = connect(settings).get_version()
        return f"{version}, jobs go to {address} (job API {theirs})"
    from p2es_platform.cluster import require_listener

    require_listener(address, timeout_s=_TIMEOUT_S)
    return f"{version}, joins {address}, which listens"


def _torch(settings: Settings) -> str:
    torch = import_module("torch")
    if not torch.cuda.is_available():
        return f"{torch.__version__}, no GPU: training and drawing run on the CPU"
    names = {torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())}
    return f"{torch.__version__}, {torch.cuda.device_count()} GPU ({', '.join(sorted(names))})"


def _faiss(settings: Settings) -> str:
    faiss = import_module("faiss")
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return f"{faiss.__version__}, " + (f"{gpus} GPU" if gpus else "on the CPU")


def _mlflow(settings: Settings) -> str:
    version = metadata.version("mlflow")
    uri = settings.tracking_uri
    if uri.startswith("sqlite:///"):
        return f"{version}, {_sqlite(Path(uri.removeprefix('sqlite:///')))}"
    from p2es_platform.mlflow_client import connect, without_credentials

    connect(uri)
    return f"{version}, {without_credentials(uri)} answers (writing was not tried)"


def _sqlite(path: Path) -> str:
    if not path.exists():
        _require_writable(_nearest(path.parent))
        return f"{path} is made at first use"
    try:
        with closing(sqlite3.connect(path, timeout=_TIMEOUT_S)) as database:
            # Takes the lock a writer takes, and gives it back.
            database.execute("BEGIN IMMEDIATE")
            tables = database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'runs'").fetchone()[0]
            database.rollback()
    except sqlite3.Error as error:
        raise _NotOkError(f"{path}: {error}", "set MLFLOW_TRACKING_URI to a database that can be written") from None
    if not tables:
        raise _NotOkError(f"{path} is not MLflow's", "set MLFLOW_TRACKING_URI to another file")
    return f"{path} can be written"


def _storage(settings: Settings) -> str:
    if not settings.is_local:
        return _bucket(settings)
    root = Path(settings.root)
    folder = _nearest(root)
    _require_writable(folder)
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < _FREE_GB:
        raise _NotOkError(f"{root} has {free_gb:.1f} GB free", "free some, or set P2ES_STORAGE to another disk")
    made = "can be written" if root.exists() else "is made at first use"
    return f"{root} {made}, {free_gb:.0f} GB free"


def _bucket(settings: Settings) -> str:
    url = settings.path(f".doctor-{secrets.token_hex(8)}")
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        filesystem.pipe_file(path, b"p2es")
        found = filesystem.cat_file(path)
        filesystem.rm(path)
    except (OSError, ValueError, ImportError) as error:
        detail = f"{settings.root}: {' '.join(str(error).split())[:200] or type(error).__name__}"
        raise _NotOkError(detail, "correct P2ES_STORAGE or its credentials") from None
    if found != b"p2es":
        raise _NotOkError(f"{settings.root} gives back other bytes than it was given", "use another bucket")
    return f"{settings.root} can be written and read"


def _endpoint(settings: Settings) -> str:
    """Only said, never wrong: most of the time nothing is meant to be served."""
    try:
        answer = requests.get(f"{settings.endpoint.rstrip('/')}/healthz", timeout=_TIMEOUT_S)
    except requests.RequestException:
        return f"{settings.endpoint} does not answer: nothing is served there (`p2es serve` does)"
    return f"{settings.endpoint} answers {answer.status_code}"


def _readers(settings: Settings) -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("wfdb", "sleepecg", "matplotlib", "pyarrow"))


def _nearest(path: Path) -> Path:
    """Give the folder, or the first above it that exists: there it would be made."""
    found = next(place for place in (path, *path.parents) if place.exists())
    if not found.is_dir():
        raise _NotOkError(f"{found} is a file, not a folder", "set P2ES_STORAGE to a folder")
    return found


def _require_writable(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"p2es")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _NotOkError(
            f"{folder} cannot be written ({error.strerror})", "set P2ES_STORAGE to a folder that can"
        ) from None
