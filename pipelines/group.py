"""Find the demographic neighbours and clusters of the training people."""

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from p2es.batching import NeighbourGraph
from p2es.demographics import FIELDS, DemographicScaler
from p2es.errors import DatasetError
from p2es_platform import neighbours as search
from p2es_platform import storage
from p2es_platform.dataset import Dataset
from p2es_platform.settings import Settings
from p2es_platform.shards import open_parquet, read_columns
from pipelines.recipes import Recipe, fingerprint

_FORMAT = "p2es-groups"


@dataclass(frozen=True)
class GroupResult:
    """What was found.

    Attributes
    ----------
    url : str
        Of the groups; `load` reads it.
    people, neighbours, clusters : int
        Training people, neighbours of each, clusters.
    reused : bool
    """

    url: str
    people: int
    neighbours: int
    clusters: int
    reused: bool


@dataclass(frozen=True)
class Groups:
    """Neighbours and clusters of the training people.

    Attributes
    ----------
    people : tuple of str
        Hashed ids; rows of the arrays below.
    neighbours : array (person, k)
        Rows of the nearest people, nearest first.
    squared_distances : array (person, k)
        Expected squared distances, in standard deviations, less the person's own variance.
    cluster : array (person,)
    scaler : DemographicScaler
        Fitted to these people.
    centroids : array (cluster, 5)
    checked : dict
        How the neighbours compared with SciPy's.
    """

    people: tuple[str, ...]
    neighbours: NDArray[np.int64]
    squared_distances: NDArray[np.float32]
    cluster: NDArray[np.int64]
    scaler: DemographicScaler
    centroids: NDArray[np.float32]
    checked: dict[str, float]

    def graph(self) -> NeighbourGraph:
        """Give what training draws its batches from."""
        return NeighbourGraph(self.people, self.neighbours, self.cluster)


def run(recipe: Recipe, settings: Settings, dataset_url: str) -> GroupResult:
    """Group the training people of a dataset, or reuse what was found for it; Ray must be running.

    Nobody else is looked at: the scaler, the neighbours and the clusters are of the training people alone.

    Raises
    ------
    DatasetError
        When the dataset is missing or has fewer than two training people.
    """
    dataset, config = Dataset.open(dataset_url), recipe.group
    key = fingerprint(_FORMAT, config.neighbours, config.clusters, config.seed, dataset.hash)
    url = storage.join(dataset_url, "groups", f"{key}.json")
    if storage.exists(url):
        return _result(url, load(url), reused=True)
    table = dataset.people("train")
    demographics = np.stack([table[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in FIELDS], axis=1)
    groups = find(table["person"].to_pylist(), demographics, recipe)
    _save(url, groups, {"group": asdict(config), "dataset_hash": dataset.hash})
    return _result(url, groups, reused=False)


def find(people: list[str], demographics: NDArray[np.float64], recipe: Recipe) -> Groups:
    """Find neighbours and clusters of people (n, 4), and check the neighbours against SciPy."""
    config = recipe.group
    scaler = DemographicScaler.fit(demographics)
    index, queries = scaler.index_coordinates(demographics), scaler.query_coordinates(demographics)
    rows, squared = search.k_nearest(index, queries, config.neighbours, shards=config.query_shards)
    checked = search.check_against_scipy(index, queries, rows, squared, seed=config.seed)
    centroids, cluster = search.clusters(queries, config.clusters, config.seed)
    return Groups(tuple(people), rows, squared, cluster, scaler, centroids, checked)


def load(url: str) -> Groups:
    """Read groups.

    Raises
    ------
    DatasetError
        When they are missing or corrupt.
    """
    try:
        head = json.loads(storage.read_bytes(url))
        if head.get("format") != _FORMAT or head.get("version") != 1:
            raise DatasetError(f"{_shown(url)} holds no groups of version 1: remove it and run `p2es group`")
        data = storage.read_bytes(_table_url(url))
    except FileNotFoundError as error:
        raise DatasetError(f"the groups {_shown(url)} are missing: run `p2es group`") from error
    except (ValueError, AttributeError) as error:
        raise DatasetError(f"{_shown(url)} is corrupt: remove it and run `p2es group`") from error
    if hashlib.sha256(data).hexdigest() != head["sha256"]:
        raise DatasetError(f"{_shown(_table_url(url))} is corrupt: remove {_shown(url)} and run `p2es group`")
    table = read_columns(open_parquet(pa.BufferReader(data)))
    people = table["person"].to_pylist()
    row = {person: k for k, person in enumerate(people)}
    return Groups(
        people=tuple(people),
        neighbours=np.array([[row[p] for p in near] for near in table["neighbours"].to_pylist()], np.int64),
        squared_distances=np.array(table["squared_distances"].to_pylist(), np.float32),
        cluster=table["cluster"].to_numpy(),
        scaler=DemographicScaler(
            tuple(head["scaler"]["mean"]), tuple(tuple(line) for line in head["scaler"]["covariance"])
        ),
        centroids=np.array(head["centroids"], np.float32),
        checked=head["checked_against_scipy"],
    )


def _save(url: str, groups: Groups, made_of: dict[str, Any]) -> None:
    """Write the table, then the JSON: where the JSON is, the groups are whole."""
    table = pa.table(
        {
            "person": pa.array(groups.people, pa.string()),
            "cluster": pa.array(groups.cluster, pa.int64()),
            "neighbours": pa.array(
                [[groups.people[k] for k in near] for near in groups.neighbours], pa.list_(pa.string())
            ),
            "squared_distances": pa.array(list(groups.squared_distances), pa.list_(pa.float32())),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    head = {
        "format": _FORMAT,
        "version": 1,
        **made_of,
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "people": len(groups.people),
        "scaler": asdict(groups.scaler),
        "centroids": groups.centroids.tolist(),
        "checked_against_scipy": groups.checked,
    }
    storage.write_atomic(_table_url(url), buffer.getvalue())
    storage.write_atomic(url, json.dumps(head, indent=1).encode())


def _result(url: str, groups: Groups, *, reused: bool) -> GroupResult:
    n, k = groups.neighbours.shape
    return GroupResult(url, n, k, len(groups.centroids), reused)


def _table_url(url: str) -> str:
    return url.removesuffix(".json") + ".parquet"


def _shown(url: str) -> str:
    return url.rsplit("/", 1)[-1]
