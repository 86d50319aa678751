"""k nearest people: FAISS over Ray against SciPy's KD-tree. `python benchmarks/bench_neighbours.py`."""

import numpy as np
from common import interleaved, table
from scipy.spatial import cKDTree

from p2es.demographics import DemographicScaler
from p2es_platform.cluster import connect
from p2es_platform.neighbours import k_nearest
from p2es_platform.settings import Settings

PEOPLE, K = 20_000, 10


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    people = np.column_stack(
        [
            rng.uniform(18, 90, PEOPLE),
            rng.integers(0, 2, PEOPLE),
            rng.normal(168, 10, PEOPLE),
            rng.normal(75, 15, PEOPLE),
        ]
    ).astype(np.float64)
    people[rng.random(PEOPLE) < 0.2, 2] = np.nan
    scaler = DemographicScaler.fit(people)
    index, queries = scaler.index_coordinates(people), scaler.query_coordinates(people)

    def scipy_tree() -> int:
        cKDTree(index).query(queries, k=K + 1)
        return PEOPLE

    def over_ray(shards: int) -> int:
        k_nearest(index, queries, K, shards=shards)
        return PEOPLE

    with connect(Settings(), local_cpus=2, object_store_mb=256):
        over_ray(2)  # starts the workers
        rates = interleaved(
            {
                "SciPy KD-tree, one process (bare)": scipy_tree,
                "FAISS flat over Ray, 1 shard": lambda: over_ray(1),
                "FAISS flat over Ray, 2 shards": lambda: over_ray(2),
            }
        )
    table(f"{K} nearest of {PEOPLE} people", "queries/s", rates, "SciPy KD-tree, one process (bare)")


if __name__ == "__main__":
    main()
