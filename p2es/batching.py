"""Batches drawn from the neighbour graph: each window once an epoch, demographic neighbours side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.spatial import cKDTree

from p2es.demographics import DemographicScaler


@dataclass(frozen=True)
class NeighbourGraph:
    """Who is demographically near whom.

    Attributes
    ----------
    people : tuple of str
        Hashed ids; rows of the arrays below.
    neighbours : array (person, k)
        Rows of the k nearest people.
    cluster : array (person,)
        K-means cluster.
    """

    people: tuple[str, ...]
    neighbours: NDArray[np.int64]
    cluster: NDArray[np.int64]

    @classmethod
    def exact(
        cls, people: Sequence[str], demographics: NDArray[np.float64], k: int, clusters: int, seed: int = 0
    ) -> "NeighbourGraph":
        """Build the graph on this machine with SciPy: for a notebook; the platform builds it with FAISS over Ray.

        Parameters
        ----------
        people : sequence of str
            One id a person.
        demographics : array (person, 4)
            `Demographics.to_array`.
        """
        scaler = DemographicScaler.fit(demographics)
        index, query = scaler.index_coordinates(demographics), scaler.query_coordinates(demographics)
        found = cKDTree(index).query(query, k=min(k + 1, len(people)))[1].reshape(len(people), -1)
        rows = [[j for j in row if j != i][: found.shape[1] - 1] for i, row in enumerate(found)]
        cluster = kmeans2(query.astype(np.float64), min(clusters, len(people)), minit="++", rng=seed)[1]
        return cls(tuple(people), np.array(rows, np.int64).reshape(len(people), -1), cluster.astype(np.int64))

    def rows_of(self, people: NDArray[np.str_]) -> NDArray[np.int64]:
        """Give the row of each person, -1 for one that is not in the graph."""
        row = {person: k for k, person in enumerate(self.people)}
        return np.array([row.get(str(person), -1) for person in people], np.int64)

    def relations(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Tell which windows of a batch are neighbours and which are of one person.

        Parameters
        ----------
        rows : array (batch,)
            Row of each window's person; -1 is nobody's neighbour.

        Returns
        -------
        positive, same : array (batch, batch)
        """
        same = (rows[:, None] == rows[None]) & (rows >= 0)[:, None] | np.eye(len(rows), dtype=bool)
        near = np.zeros((len(rows), len(rows)), bool)
        for i, row in enumerate(rows):
            if row >= 0:
                near[i] = np.isin(rows, self.neighbours[row])
        return (near | near.T) & ~same, same


@dataclass(frozen=True)
class EpochPlan:
    """The order of the windows, epoch after epoch without end, the same on every rank and for any number of ranks.

    An epoch is a shuffle of packs; a pack is a window and windows of up to `pack - 1` of its person's neighbours.
    Each window is in exactly one pack, so each is seen once an epoch. Global batches are cut one after the other from
    the endless row of epochs, so each has the same size and the windows seen so far tell the place: nothing depends on
    how many ranks share a batch, and none can end before another. The ranks share each global batch in contiguous
    parts, so that they see different windows and a pack is rarely torn.
    """

    rows: NDArray[np.int64]
    graph: NeighbourGraph
    batch: int
    pack: int = 4
    seed: int = 0

    def batches(self, seen: int = 0, rank: int = 0, world: int = 1) -> Iterator[NDArray[np.int64]]:
        """Give this rank's windows of each global batch, without end, after `seen` windows of all ranks."""
        epoch, offset = divmod(seen, len(self.rows))
        waiting = self._order(epoch)[offset:]
        while True:
            while len(waiting) < self.batch:
                epoch += 1
                waiting = np.concatenate([waiting, self._order(epoch)])
            yield np.array_split(waiting[: self.batch], world)[rank]
            waiting = waiting[self.batch :]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self.seed, epoch])
        shuffled = rng.permutation(len(self.rows))
        waiting: dict[int, list[int]] = {}
        for window in shuffled:
            waiting.setdefault(int(self.rows[window]), []).append(int(window))
        used = np.zeros(len(self.rows), bool)
        order: list[int] = []
        for window in shuffled:
            if not used[window]:
                pack = [int(window), *self._companions(int(window), waiting, used, rng)]
                used[pack] = True
                order += pack
        return np.array(order, np.int64)

    def _companions(
        self, window: int, waiting: dict[int, list[int]], used: NDArray[np.bool_], rng: np.random.Generator
    ) -> Iterator[int]:
        """Give an unused window of each of up to `pack - 1` neighbours, in random order."""
        row = int(self.rows[window])
        left = self.pack - 1
        for person in rng.permutation(self.graph.neighbours[row]) if row >= 0 else ():
            queue = waiting.get(int(person), [])
            while queue and used[queue[-1]]:
                queue.pop()
            if left and queue:
                left -= 1
                yield queue.pop()
