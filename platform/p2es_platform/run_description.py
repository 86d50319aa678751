"""What an MLflow run says of itself: parameters, tags, commit, and the dataset with its windows and people by split."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import mlflow
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag, Param, Run, RunTag

from p2es.windows import SCHEMA_VERSION, WINDOW_SCHEMA
from p2es_platform.dataset import Dataset

# MLflow's own limits.
_PARAMS_A_BATCH = 100
_TAGS_A_BATCH = 100
_PARAM_LENGTH = 6000
_DIGEST_LENGTH = 36

_SPLIT_OF = {"training": "train", "validation": "validation"}


@dataclass(frozen=True)
class DatasetDetails:
    """What is known of a dataset beyond its name and hash.

    Attributes
    ----------
    source : str
        Its address.
    schema : mapping
        Column to type.
    contexts : mapping
        What parts of it were used for (`training`, `validation`) to a profile of that part: counts by name.
    """

    source: str
    schema: Mapping[str, str] = field(default_factory=dict)
    contexts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """Describe a version of a dataset: the windows, people and shards of the splits a training uses."""
        people = {person: split for part in dataset.parts for person, split in part.people.items()}
        contexts = {
            context: {
                "windows": dataset.rows(split),
                "people": sum(of == split for of in people.values()),
                "shards": len(dataset.shards(split)),
                "dataset_version": dataset.version,
                "window_schema": SCHEMA_VERSION,
            }
            for context, split in _SPLIT_OF.items()
            if dataset.shards(split)
        }
        return cls(dataset.url, {column.name: str(column.type) for column in WINDOW_SCHEMA}, contexts)


def describe(
    client: mlflow.MlflowClient,
    run: Run,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    inputs: list[DatasetInput],
) -> None:
    """Log what the run is; MLflow parameters cannot change, so only those it does not have yet."""
    run_id = run.info.run_id
    missing = [Param(k, v) for k, v in flatten(params).items() if k not in run.data.params]
    for start in range(0, len(missing), _PARAMS_A_BATCH):
        client.log_batch(run_id, params=missing[start : start + _PARAMS_A_BATCH])
    commit = git_commit()
    described = dict(tags) | ({"p2es.git_commit": commit} if commit else {})
    new = [RunTag(k, v) for k, v in described.items() if k not in run.data.tags]
    for start in range(0, len(new), _TAGS_A_BATCH):
        client.log_batch(run_id, tags=new[start : start + _TAGS_A_BATCH])
    if not run.inputs.dataset_inputs:
        client.log_inputs(run_id, inputs)


def dataset_inputs(name: str, digest: str, details: DatasetDetails | None) -> list[DatasetInput]:
    """Give a dataset as the inputs of a run, one for each use.

    MLflow takes two inputs of one name and digest for the same, so validation is `name/validation`.
    """
    if details is None or not details.contexts:
        return [_input(name, digest, "training", name if details is None else details.source, None, None)]
    schema = json.dumps({"columns": dict(details.schema)}) if details.schema else None
    return [
        _input(
            name if context == "training" else f"{name}/{context}",
            digest,
            context,
            details.source,
            schema,
            json.dumps(dict(profile)),
        )
        for context, profile in details.contexts.items()
    ]


def _input(name: str, digest: str, context: str, source: str, schema: str | None, profile: str | None) -> DatasetInput:
    found = MlflowDataset(name, digest[:_DIGEST_LENGTH], "p2es", source, schema, profile)
    return DatasetInput(found, [InputTag("mlflow.data.context", context)])


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
