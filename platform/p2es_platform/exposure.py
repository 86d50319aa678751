"""Which models saw a dataset: asked when a person is deleted from it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from p2es.errors import RemoteError
from p2es_platform.mlflow_client import MLFLOW_ERRORS, connect, first_line
from p2es_platform.registry import Registry
from p2es_platform.settings import Settings

_HASH_TAG = "p2es.dataset_hash"


@dataclass(frozen=True)
class Exposed:
    """A model that was made from, or measured on, a dataset.

    Attributes
    ----------
    kind : str
        `run` (of MLflow), `version` (registered), `folder` (in the storage).
    name : str
    dataset_hash : str
    champion : bool
        Whether it is what is served.
    """

    kind: str
    name: str
    dataset_hash: str
    champion: bool = False


def models_that_saw(hashes: Iterable[str], settings: Settings) -> list[Exposed]:
    """List the MLflow runs, registered versions and model folders whose lineage has one of these dataset hashes.

    A registered version counts when its run was trained on such a dataset, and also when only its report was made on
    one: the person may have been in the test split.

    Raises
    ------
    RemoteError
        When MLflow does not answer.
    """
    wanted = sorted(set(hashes))
    if not wanted:
        return []
    found, runs = [], {}
    try:
        client = connect(settings.tracking_uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        for digest in wanted:
            for run in client.search_runs(experiments, f"tags.`{_HASH_TAG}` = '{digest}'", max_results=10_000):
                runs[run.info.run_id] = digest
                found.append(Exposed("run", f"{run.info.run_name} ({run.info.run_id})", digest))
        for version in Registry(settings).list_versions():
            seen = runs.get(version.run_id) or (version.dataset_hash if version.dataset_hash in wanted else None)
            if seen is not None:
                found.append(Exposed("version", version.version, seen, version.champion))
    except MLFLOW_ERRORS as error:
        raise RemoteError(f"MLflow does not list its models ({first_line(error)}): start it and run again") from error
    return [*found, *_folders(settings, set(wanted))]


def _folders(settings: Settings, wanted: set[str]) -> list[Exposed]:
    if not settings.is_local:
        return []
    found = []
    for path in sorted(Path(settings.path("models")).glob("*/lineage.json")):
        try:
            digest = json.loads(path.read_text()).get("dataset_hash")
        except (ValueError, AttributeError, OSError):
            continue
        if digest in wanted:
            found.append(Exposed("folder", f"models/{path.parent.name}", digest))
    return found
