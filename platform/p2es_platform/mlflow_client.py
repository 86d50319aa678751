"""Reaching an MLflow: a server over HTTP, or its sqlite file."""

import logging
import os
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from p2es.errors import ConfigError, RemoteError

MLFLOW_ERRORS = (MlflowException, SQLAlchemyError, requests.RequestException, OSError)
"""What MLflow raises when its server, database or files fail."""

_ANSWER_S = 5.0
# Its own warnings repeat each of its tries, with tracebacks for a locked sqlite; what matters of them we say once.
_LOUD = {
    "alembic": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,
    "mlflow.store.model_registry": logging.WARNING,
    "urllib3.connectionpool": logging.ERROR,
}


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
    if is_server(tracking_uri):
        require_answer(tracking_uri)
    elif tracking_uri.startswith("sqlite:///"):
        Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    elif "://" not in tracking_uri:
        raise ConfigError(f"MLFLOW_TRACKING_URI={shown} is not an address: write http://host:5000 or sqlite:///file")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name, level in _LOUD.items():
        logging.getLogger(name).setLevel(level)
    try:
        client = mlflow.MlflowClient(tracking_uri=tracking_uri)
        client.search_experiments(max_results=1)
    except MLFLOW_ERRORS as error:
        raise RemoteError(f"MLflow at {shown} cannot be used ({first_line(error)}): check the address") from error
    return client


def is_server(tracking_uri: str) -> bool:
    """Tell whether the address is an MLflow server's; otherwise this process writes to the database itself."""
    return tracking_uri.startswith(("http://", "https://"))


def without_credentials(uri: str) -> str:
    """Give the address as it may be shown: without user and password."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


def first_line(error: BaseException) -> str:
    """Give the first line of an error, or its type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def require_answer(tracking_uri: str) -> None:
    """Raise RemoteError unless the server answers within 5 s: MLflow's own client tries a dead address for minutes."""
    shown = without_credentials(tracking_uri)
    try:
        status = requests.get(f"{tracking_uri.rstrip('/')}/health", timeout=_ANSWER_S).status_code
    except requests.RequestException as error:
        reason = type(error).__name__
        raise RemoteError(f"MLflow at {shown} does not answer ({reason}): start it or correct the address") from error
    if status >= 500:
        raise RemoteError(f"MLflow at {shown} answers {status}: look at its log")
