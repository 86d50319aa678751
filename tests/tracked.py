"""A run to log to, and what MLflow has of it."""

from collections import Counter
from pathlib import Path

import mlflow

from p2es_platform.tracking import Tracker

DIGEST = "0123456789abcdef" * 2


def start(uri: str, root: Path, fingerprint: str = "aa", **changes) -> Tracker:
    arguments = {
        "experiment": "p2es",
        "name": "demo-aa",
        "fingerprint": fingerprint,
        "params": {"train": {"batch": 64, "rates": {"first": 0.1}}},
        "tags": {"p2es.recipe": "demo"},
        "dataset_name": "demo",
        "dataset_digest": DIGEST,
        "artifact_root": str(root / "artifacts"),
    }
    return Tracker.start(uri, **arguments | changes)


def history(uri: str, run_id: str, key: str = "loss") -> list:
    return mlflow.MlflowClient(tracking_uri=uri).get_metric_history(run_id, key)


def steps(uri: str, run_id: str, key: str = "loss") -> list[int]:
    """The steps of a metric in their order, each as often as it is there."""
    return sorted(metric.step for metric in history(uri, run_id, key))


def twice(uri: str, run_id: str) -> list[tuple[str, int]]:
    """The metrics and steps of a run that are there more than once."""
    run = mlflow.MlflowClient(tracking_uri=uri).get_run(run_id)
    count = Counter((key, step) for key in run.data.metrics for step in steps(uri, run_id, key))
    return [entry for entry, times in count.items() if times > 1]


def status(uri: str, run_id: str) -> str:
    return mlflow.MlflowClient(tracking_uri=uri).get_run(run_id).info.status


def waiting(folder: Path) -> list[str]:
    """What lies in a spool."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
