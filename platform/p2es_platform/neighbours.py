"""Nearest neighbours and clusters of people: FAISS, searched by Ray tasks.

The index is exact. Up to a million people a KD-tree is faster on a CPU (12 against 633 microseconds a query
at 1e5 people, one thread); FAISS wins beyond that, on GPUs, and in the tens of dimensions of an embedding.
"""

from itertools import pairwise

import faiss
import numpy as np
import ray
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from p2es.errors import DatasetError

# From 128 000 queries a task on, FAISS 1.15 takes |x|^2 + |y|^2 - 2xy: three times as fast (120 against 364
# microseconds a query at 5e4 people), but off by 5e-6 instead of 2e-7, and a distance then depends on how the
# queries were cut into tasks (seen in 0.1 % of them).
_NEVER_BLAS = 1 << 30


def k_nearest(
    index: NDArray[np.float32], queries: NDArray[np.float32], k: int, *, shards: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the k nearest people of each person, without itself; Ray must be running.

    Parameters
    ----------
    index : array (n, d)
        Coordinates of the people (`DemographicScaler.index_coordinates`).
    queries : array (n, d)
        Coordinates of the same people as queries (`DemographicScaler.query_coordinates`).
    k : int
        Neighbours of each; n - 1 where there are fewer people.
    shards : int
        Ray tasks that share the queries. The result does not depend on it.

    Returns
    -------
    neighbours : array (n, k)
        Rows of the nearest people, nearest first.
    squared_distances : array (n, k)
        As the coordinates give them: the query's own variance is not in it.

    Raises
    ------
    DatasetError
        With fewer than two people.
    """
    n = len(index)
    if n < 2:
        raise DatasetError(f"neighbours need at least 2 people, the dataset has {n}: ingest more recordings")
    k = min(k, n - 1)
    flat = faiss.IndexFlatL2(index.shape[1])
    flat.add(np.ascontiguousarray(index, np.float32))
    shared = ray.put(faiss.serialize_index(flat))
    starts = np.linspace(0, n, min(shards, n) + 1).astype(int)
    tasks = [
        _search.remote(shared, np.ascontiguousarray(queries[a:b], np.float32), int(a), k) for a, b in pairwise(starts)
    ]
    parts = ray.get(tasks)
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([squared for _, squared in parts])


@ray.remote(num_cpus=1)
def _search(
    serialised: NDArray[np.uint8], queries: NDArray[np.float32], first: int, k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Search one slice of the queries; `first` is the row of its first person."""
    faiss.omp_set_num_threads(1)
    faiss.cvar.distance_compute_blas_threshold = _NEVER_BLAS
    # A person is not always its own nearest: the variance of its unknown fields counts in the index alone.
    squared, rows = faiss.deserialize_index(serialised).search(queries, k + 1)
    own = rows == np.arange(first, first + len(queries))[:, None]
    own[~own.any(axis=1), k] = True
    return rows[~own].reshape(-1, k), squared[~own].reshape(-1, k)


def check_against_scipy(
    index: NDArray[np.float32],
    queries: NDArray[np.float32],
    neighbours: NDArray[np.int64],
    squared_distances: NDArray[np.float32],
    *,
    sample: int = 200,
    seed: int = 0,
) -> dict[str, float]:
    """Compare neighbours with SciPy's KD-tree on a sample of people.

    Distances are compared, not rows: people at the same distance may stand in any order. That each row lies
    at the distance that is said of it is checked as well.

    Returns
    -------
    dict
        `people` compared, and `largest_difference` of a squared distance.

    Raises
    ------
    RuntimeError
        When they differ: then the search is wrong, not the data.
    """
    n, k = neighbours.shape
    people = np.random.default_rng(seed).choice(n, size=min(sample, n), replace=False)
    wide = index.astype(np.float64)
    distances, rows = map(np.asarray, cKDTree(wide).query(queries[people].astype(np.float64), k=k + 1))
    own = rows == people[:, None]
    own[~own.any(axis=1), k] = True
    expected = np.square(distances[~own].reshape(-1, k))
    found = squared_distances[people].astype(np.float64)
    direct = np.square(wide[neighbours[people]] - queries[people, None].astype(np.float64)).sum(axis=-1)
    if (neighbours[people] == people[:, None]).any():
        raise RuntimeError("FAISS gave a person as its own neighbour")
    difference = float(max(np.abs(found - expected).max(), np.abs(found - direct).max()))
    # float32 keeps 7 digits of the coordinates.
    if not np.allclose(found, expected, rtol=1e-5, atol=1e-5) or not np.allclose(found, direct, rtol=1e-5, atol=1e-5):
        raise RuntimeError(f"FAISS and SciPy differ by {difference:.3g} in a squared distance")
    return {"people": float(len(people)), "largest_difference": difference}


def clusters(coordinates: NDArray[np.float32], k: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cluster people by k-means; the same seed gives the same clusters.

    Parameters
    ----------
    coordinates : array (n, d)
        `DemographicScaler.query_coordinates`: the variance of a person's unknown fields adds the same to its
        distance from every centroid, so it must not be a coordinate.
    k : int
        Clusters; n where there are fewer people.

    Returns
    -------
    centroids : array (k, d)
    labels : array (n,)
    """
    k = min(k, len(coordinates))
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        means = faiss.Kmeans(coordinates.shape[1], k, niter=25, nredo=3, seed=seed, min_points_per_centroid=1)
        means.train(np.ascontiguousarray(coordinates, np.float32))
        labels = means.index.search(np.ascontiguousarray(coordinates, np.float32), 1)[1][:, 0]
    finally:
        faiss.omp_set_num_threads(threads)
    return np.array(means.centroids, np.float32), labels.astype(np.int64)
