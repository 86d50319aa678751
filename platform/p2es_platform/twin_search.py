"""Which windows may be twins: the index of runs of beats, and what the fingerprints of two windows have in common."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.fingerprint import BYTES, MAX_BEATS, Beats, unpack
from p2es.likeness import MIN_OVERLAP_S
from p2es.windows import MARGIN_S, WINDOW_S

_RUN = 4  # intervals in a run
_MIN_BEATS = _RUN + 1
_MIN_MATCHED = 0.6
_MOST_FOUND = 64  # entries of the index that a run is compared with, spread over the crowd where there are more
_QUERIES = 64  # windows of a recording that are looked up; all are in the index
_QUERY_ROWS = 1024
ROWS_A_PARTITION = 1_000_000
TRIES = 6
"""Window pairs of two recordings that are compared sample by sample, best first."""


@dataclass(frozen=True)
class Kind:
    """How alike the beats of copies are; from copies at 20 dB of real leads and pulses.

    Intervals are cut into cells of `cell_s` and may differ by `tolerance_s`. Where a run's differ by less than
    `regular_s` among themselves, they tell little: then the shape must agree closely, in its two main components
    (cells of `shape_cell`, `shape_step` across) and as a whole (cosine of `regular_shape`, else `shape`).
    `correlation` and `odds` decide on the signals.
    """

    name: str
    cell_s: float
    tolerance_s: float
    regular_s: float
    shape_cell: float
    shape_step: float
    shape: float
    regular_shape: float
    correlation: float
    odds: float


KINDS = (
    Kind("ecg", 0.012, 0.004, 0.020, 0.10, 0.03, 0.93, 0.99, 0.98, 0.5),
    Kind("ppg", 0.024, 0.008, 0.040, 0.20, 0.06, 0.90, 0.98, 0.998, 0.3),
)


@dataclass(frozen=True)
class Windows:
    """All windows, a row each: codes into `people` and `recordings`, the split of each recording, fingerprints."""

    person: NDArray[np.int32]
    recording: NDArray[np.int32]
    fingerprints: NDArray[np.uint8]
    people: list[str]
    recordings: list[str]
    splits: list[str]

    def describe(self, row: int) -> tuple[str, str, str]:
        """Give person, recording and split of a row."""
        recording = int(self.recording[row])
        return self.people[self.person[row]], self.recordings[recording], self.splits[recording]


@dataclass(frozen=True)
class Pairs:
    """Pairs of windows that agree, first < second, and in how many beats."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    beats: NDArray[np.int64]
    kind: NDArray[np.int64]


def collect(tables: Iterable[pa.Table]) -> Windows:
    """Take person, recording, split and fingerprint from tables as they come."""
    people: dict[str, int] = {}
    recordings: dict[str, int] = {}
    splits: list[str] = []
    columns: list[list[NDArray[Any]]] = [[], [], []]
    for table in tables:
        for name, split in dict(zip(table["recording"].to_pylist(), table["split"].to_pylist(), strict=True)).items():
            if name not in recordings:
                recordings[name] = len(splits)
                splits.append(split)
        columns[0].append(_codes(table["person"].to_pylist(), people))
        columns[1].append(_codes(table["recording"].to_pylist(), recordings))
        columns[2].append(_bytes(table["fingerprint"].to_pylist()))
    person, recording = (np.concatenate(c) if c else np.empty(0, np.int32) for c in columns[:2])
    prints = np.concatenate(columns[2]) if columns[2] else np.empty((0, BYTES), np.uint8)
    return Windows(person, recording, prints, list(people), list(recordings), splits)


def _codes(names: Sequence[str], codes: dict[str, int]) -> NDArray[np.int32]:
    return np.array([codes.setdefault(name, len(codes)) for name in names], np.int32)


def _bytes(values: Sequence[bytes | None]) -> NDArray[np.uint8]:
    none = bytes(BYTES)
    joined = b"".join(value if value is not None and len(value) == BYTES else none for value in values)
    return np.frombuffer(joined, np.uint8).reshape(-1, BYTES)


@dataclass(frozen=True)
class _Runs:
    """Runs of five beats: row of the window, first beat, intervals (n, 4) in seconds, shape (n, 2), regular or not."""

    window: NDArray[np.int64]
    beat: NDArray[np.int64]
    intervals_s: NDArray[np.float64]
    shape: NDArray[np.float32]
    spread_s: NDArray[np.float64]

    def take(self, rows: NDArray[np.int64]) -> "_Runs":
        return _Runs(**{name: values[rows] for name, values in vars(self).items()})


def _runs(beats: Beats, axes: NDArray[np.float32], rows: NDArray[np.int64]) -> _Runs:
    at, beat = np.nonzero(np.arange(MAX_BEATS) + _RUN < beats.count[:, None])
    intervals_s = np.diff(beats.times_s[at[:, None], beat[:, None] + np.arange(_RUN + 1)].astype(np.float64), axis=1)
    return _Runs(rows[at], beat, intervals_s, (beats.shape @ axes.T)[at], np.ptp(intervals_s, axis=1))


def _regular(runs: _Runs, below_s: float, cell_s: float) -> _Runs:
    """Give the regular runs, one a window and length of interval: the others say the same."""
    rows = np.flatnonzero(runs.spread_s < below_s)
    same = np.column_stack([runs.window[rows], np.floor(runs.intervals_s[rows, 0] / cell_s)])
    return runs.take(rows[np.unique(same, axis=0, return_index=True)[1]])


def _irregular(runs: _Runs, from_s: float) -> _Runs:
    return runs.take(np.flatnonzero(runs.spread_s >= from_s))


def _axes(beats: Beats) -> NDArray[np.float32]:
    """Give the two directions (2, 16) in which shapes differ most, from a sample spread over all windows."""
    rows = np.flatnonzero(beats.count > 0)
    if rows.size == 0:
        return np.zeros((2, beats.shape.shape[1]), np.float32)
    sample = beats.shape[rows].astype(np.float64)
    axes = np.linalg.svd(sample - sample.mean(axis=0), full_matrices=False)[2][:2]
    return np.resize(axes, (2, sample.shape[1])).astype(np.float32)


def _cells(runs: _Runs, kind: Kind, *, regular: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the cells (n, 3) of a run, and the next best: the neighbour if that is within the tolerance, else itself.

    A regular run is placed by one interval and its shape, any other by three intervals.
    """
    interval = (kind.cell_s, kind.tolerance_s)
    shape = (kind.shape_cell, kind.shape_step)
    size, reach = np.array([interval, shape, shape] if regular else [interval] * 3).T
    features = np.column_stack([runs.intervals_s[:, 0], runs.shape]) if regular else runs.intervals_s[:, :3]
    cell = np.floor(features / size).astype(np.int64)
    below = np.floor((features - reach) / size).astype(np.int64)
    above = np.floor((features + reach) / size).astype(np.int64)
    return cell, np.where(below != cell, below, above)


def _keys(cells: NDArray[np.int64], *, regular: bool) -> NDArray[np.uint64]:
    """Pack three cells and whether the run is regular into 37 bits."""
    a, b, c = (cells.T & 0xFFF).astype(np.uint64)
    key = a << np.uint64(24) | b << np.uint64(12) | c
    return key | np.uint64(regular) << np.uint64(36)


def _in_partition(keys: NDArray[np.uint64], part: int, partitions: int) -> NDArray[np.bool_]:
    # Multiplication by an odd constant (Knuth) spreads neighbouring cells.
    return (keys * np.uint64(11400714819323198485) >> np.uint64(40)) % np.uint64(partitions) == np.uint64(part)


_TICKS_A_S = 4000.0


def _with_sum(keys: NDArray[np.uint64], sum_s: NDArray[np.float64]) -> NDArray[np.uint64]:
    ticks = np.clip(np.round(sum_s * _TICKS_A_S), 0, 0xFFFF).astype(np.uint64)
    return keys << np.uint64(16) | ticks


@dataclass(frozen=True)
class _Index:
    """Runs sorted by cell and, inside a cell, by the sum of their intervals."""

    keys: NDArray[np.uint64]
    window: NDArray[np.int32]
    beat: NDArray[np.uint8]
    intervals_s: NDArray[np.float32]


def _chunks(windows: Windows, rows: NDArray[np.int64], k: int, axes: NDArray[np.float32]) -> Iterator[_Runs]:
    for start in range(0, len(rows), _QUERY_ROWS):
        mine = rows[start : start + _QUERY_ROWS]
        yield _runs(unpack(windows.fingerprints[mine])[k], axes, mine)


def _build(windows: Windows, k: int, axes: NDArray[np.float32], part: int, partitions: int) -> _Index:
    kind, found = KINDS[k], []
    for runs in _chunks(windows, np.arange(len(windows.person)), k, axes):
        for regular, chosen in (
            (False, _irregular(runs, kind.regular_s)),
            (True, _regular(runs, kind.regular_s, kind.cell_s)),
        ):
            cells = _keys(_cells(chosen, kind, regular=regular)[0], regular=regular)
            mine = chosen.take(np.flatnonzero(_in_partition(cells, part, partitions)))
            keys = _with_sum(cells[_in_partition(cells, part, partitions)], mine.intervals_s.sum(axis=1))
            columns = (mine.window.astype(np.int32), mine.beat.astype(np.uint8), mine.intervals_s.astype(np.float32))
            found.append((keys, *columns))
    keys, window, beat, intervals_s = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(keys, kind="stable")
    return _Index(keys[order], window[order], beat[order], intervals_s[order])


def _queries(windows: Windows, known: int) -> NDArray[np.int64]:
    """Choose the new windows to look up: all of a short recording, of a long one some spread over it."""
    rows = np.arange(known, len(windows.person))
    order = rows[np.argsort(windows.recording[rows], kind="stable")]
    _, start, inverse, count = np.unique(
        windows.recording[order], return_index=True, return_inverse=True, return_counts=True
    )
    stride = np.ceil(count / _QUERIES).astype(np.int64)
    return np.sort(order[(np.arange(order.size) - start[inverse]) % stride[inverse] == 0])


def agreeing(windows: Windows, k: int, known: int, part: int, partitions: int) -> Pairs:
    """Find the pairs of windows of different people whose beats agree, by the runs of one partition."""
    kind = KINDS[k]
    sample = windows.fingerprints[np.linspace(0, len(windows.person) - 1, min(len(windows.person), 20_000)).astype(int)]
    axes = _axes(unpack(sample)[k])
    index = _build(windows, k, axes, part, partitions)
    found: list[NDArray[np.int64]] = [np.empty((0, 3), np.int64)]
    for runs in _chunks(windows, _queries(windows, known), k, axes):
        # A copy's run may fall on the other side of what counts as regular.
        both = (
            _irregular(runs, kind.regular_s - kind.tolerance_s),
            _regular(runs, kind.regular_s + kind.tolerance_s, kind.cell_s),
        )
        for regular, chosen in enumerate(both):
            query, entry = _look_up(index, chosen, kind, part, partitions, regular=bool(regular))
            strange = windows.person[chosen.window[query]] != windows.person[index.window[entry]]
            near = np.abs(chosen.intervals_s[query] - index.intervals_s[entry]).max(axis=1, initial=0.0)
            kept = strange & (near <= kind.tolerance_s)
            query, entry = query[kept], entry[kept]
            places = (chosen.window[query], index.window[entry].astype(np.int64), chosen.beat[query], index.beat[entry])
            least = kind.regular_shape if regular else kind.shape
            found.append(_compare(windows.fingerprints, k, np.column_stack(places), least))
    rows = np.concatenate(found)
    return Pairs(rows[:, 0], rows[:, 1], rows[:, 2], np.full(len(rows), k))


def _look_up(
    index: _Index, runs: _Runs, kind: Kind, part: int, partitions: int, *, regular: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give (run, entry) of the index's runs in the same or a near cell and of nearly the same sum."""
    cell, other = _cells(runs, kind, regular=regular)
    sum_s = runs.intervals_s.sum(axis=1)
    queries, entries = [], []
    for choice in product((False, True), repeat=3):
        chosen = np.array(choice)
        rows = np.flatnonzero((other != cell)[:, chosen].all(axis=1))
        keys = _keys(np.where(chosen, other[rows], cell[rows]), regular=regular)
        mine = _in_partition(keys, part, partitions)
        rows, keys = rows[mine], keys[mine]
        low = np.searchsorted(index.keys, _with_sum(keys, sum_s[rows] - kind.tolerance_s))
        high = np.searchsorted(index.keys, _with_sum(keys, sum_s[rows] + kind.tolerance_s), side="right")
        count = np.minimum(high - low, _MOST_FOUND)
        at = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        stride = np.repeat((high - low) / np.maximum(count, 1), count)
        entries.append(np.repeat(low, count) + (at * stride).astype(np.int64))
        queries.append(np.repeat(rows, count))
    return np.concatenate(queries), np.concatenate(entries)


def _compare(prints: NDArray[np.uint8], k: int, places: NDArray[np.int64], least_shape: float) -> NDArray[np.int64]:
    """Keep the pairs whose shapes and whose beats in the stretch they share agree.

    Takes rows (window, window, beat, beat), gives rows (first, second, beats).
    """
    kept = [np.empty((0, 3), np.int64)]
    for start in range(0, len(places), 1 << 15):
        a, b, a_beat, b_beat = places[start : start + (1 << 15)].T
        x, y = unpack(prints[a])[k], unpack(prints[b])[k]
        rows = np.arange(a.size)
        lag_s = x.times_s[rows, a_beat] - y.times_s[rows, b_beat]
        alike = np.einsum("nd,nd->n", x.shape, y.shape) >= least_shape
        chosen = np.flatnonzero(alike & (np.abs(lag_s) <= WINDOW_S - MIN_OVERLAP_S))
        # Runs of one pair that say the same lag need one look.
        same = np.column_stack([a[chosen], b[chosen], np.round(lag_s[chosen] * 50).astype(np.int64)])
        chosen = chosen[np.unique(same, axis=0, return_index=True)[1]]
        beats = _matched(x, y, lag_s, chosen, KINDS[k])
        agree = chosen[beats >= _MIN_BEATS]
        both = np.sort(np.column_stack([a[agree], b[agree]]), axis=1)
        kept.append(np.column_stack([both, beats[beats >= _MIN_BEATS]]))
    return np.concatenate(kept)


def _matched(x: Beats, y: Beats, lag_s: NDArray[np.float32], rows: NDArray[np.int64], kind: Kind) -> NDArray[np.int64]:
    """Count the beats that two windows share once one is shifted; 0 where too few have a partner."""
    one, other = x.times_s[rows], y.times_s[rows] + lag_s[rows, None]
    with np.errstate(invalid="ignore"):
        near = np.abs(one[:, :, None] - other[:, None, :]) <= kind.tolerance_s
        low, high = _extent(x, rows, 0.0 * lag_s[rows]), _extent(y, rows, lag_s[rows])
        start = np.maximum(low[0], high[0])[:, None] + 0.1
        stop = np.minimum(low[1], high[1])[:, None] - 0.1
        here, there = ((t >= start) & (t <= stop) for t in (one, other))
    matched = (near.any(axis=2) & here).sum(axis=1)
    whole = np.maximum(here.sum(axis=1), there.sum(axis=1))
    return np.where(matched >= _MIN_MATCHED * whole, matched, 0)


def _extent(beats: Beats, rows: NDArray[np.int64], lag_s: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give from when to when beats would have been stored, in the other window's seconds."""
    last = beats.times_s[rows, MAX_BEATS - 1] + 0.2
    full = beats.count[rows] == MAX_BEATS
    return lag_s - MARGIN_S, lag_s + np.where(full, last, WINDOW_S + MARGIN_S)


def best(parts: Sequence[Pairs]) -> Pairs:
    """Join partitions and kinds; of a pair found several times, keep the one with the most beats, ECG first."""
    first, second, beats, kind = (np.concatenate([getattr(p, n) for p in parts]) for n in vars(parts[0]))
    order = np.lexsort([kind, -beats, second, first])
    first, second, beats, kind = first[order], second[order], beats[order], kind[order]
    new = np.ones(first.size, bool)
    new[1:] = (np.diff(first) != 0) | (np.diff(second) != 0)
    return Pairs(first[new], second[new], beats[new], kind[new])


@dataclass(frozen=True)
class Group:
    """Two recordings: the pairs of windows to compare, best first, and how many agree."""

    pairs: tuple[tuple[int, int], ...]
    agreeing: int


def by_recordings(windows: Windows, pairs: Pairs) -> list[Group]:
    """Gather pairs of windows by the two recordings they are of."""
    one, other = windows.recording[pairs.first].astype(np.int64), windows.recording[pairs.second].astype(np.int64)
    both = np.minimum(one, other) * len(windows.recordings) + np.maximum(one, other)
    order = np.lexsort([pairs.second, pairs.first, -pairs.beats, both])
    starts = np.flatnonzero(np.diff(both[order], prepend=-1))
    groups = []
    for rows in np.split(order, starts[1:]) if order.size else []:
        chosen = [(int(pairs.first[row]), int(pairs.second[row])) for row in rows[:TRIES]]
        groups.append(Group(tuple(chosen), rows.size))
    return groups
