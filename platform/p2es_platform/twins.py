"""Twins: the same stretch of the same heart under two people, whatever was done to the file in between.

Public sets are resampled, scaled, trimmed and renamed copies of each other, and a copy in another split is a leak.
Candidates are windows whose fingerprints agree in the intervals of neighbouring beats (an index of runs of four beats,
near-linear in windows) and then in all beats of the stretch they share; each pair is confirmed on its signals.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.fingerprint import BYTES, MAX_BEATS, Beats, unpack
from p2es.likeness import MIN_OVERLAP_S, likeness
from p2es.windows import MARGIN_S, WINDOW_S, Window, decode
from p2es_platform.parts import Part, windows_of
from p2es_platform.shards import Shard, read_shard

COLUMNS = ("window_id", "person", "recording", "split", "fingerprint")
"""What `find_twins` needs of each window."""

ReadWindows = Callable[[Sequence[int]], Mapping[int, Window]]

_RUN = 3  # intervals in a run
_MIN_BEATS = _RUN + 1
_MIN_MATCHED = 0.8
_MOST_FOUND = 64  # entries of the index that a run is compared with
_QUERY_ROWS = 4096
_ROWS_A_PARTITION = 1_000_000
_TRIES = 4  # window pairs compared sample by sample for two recordings
_BATCH_PAIRS = 128


@dataclass(frozen=True)
class Twin:
    """Two recordings of different people that share a stretch.

    Attributes
    ----------
    person, recording, split : str
        Of the recording whose first window comes first.
    other_person, other_recording, other_split : str
    likeness : float
        Normalised cross-correlation of the stretch, at most 1.
    windows : int
        Pairs of windows whose fingerprints agree.
    """

    person: str
    recording: str
    split: str
    other_person: str
    other_recording: str
    other_split: str
    likeness: float
    windows: int

    @property
    def leaks(self) -> bool:
        """Whether the two are in different splits."""
        return self.split != self.other_split


@dataclass(frozen=True)
class _Kind:
    """How alike the beats of copies are; from copies at 20 dB of one real lead or pulse (docs/decisions.md).

    `cell_s` and `tolerance_s` are of an interval, `shape_cell` and `shape_step` of a main component of the shape,
    `shape_likeness` is the least cosine, `correlation` and `odds` decide on the signals.
    """

    name: str
    cell_s: float
    tolerance_s: float
    shape_cell: float
    shape_step: float
    shape_likeness: float
    correlation: float
    odds: float


_KINDS = (
    _Kind("ecg", 0.012, 0.004, 0.06, 0.015, 0.99, 0.97, 0.5),
    _Kind("ppg", 0.024, 0.008, 0.09, 0.022, 0.98, 0.998, 0.3),
)


@dataclass(frozen=True)
class _Windows:
    """All windows, a row each: codes into `people` and `recordings`, the split of each recording, fingerprints."""

    person: NDArray[np.int32]
    recording: NDArray[np.int32]
    fingerprints: NDArray[np.uint8]
    people: list[str]
    recordings: list[str]
    splits: list[str]


@dataclass(frozen=True)
class _Pairs:
    """Pairs of windows that agree, first < second, and in how many beats."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    beats: NDArray[np.int64]
    kind: NDArray[np.int64]


def find(url: str, parts_new: Sequence[Part], parts_old: Sequence[Part] = ()) -> list[Twin]:
    """Find the twins that new parts of a dataset bring, among themselves and with the old ones.

    Runs on Ray where it has been started. 128 bytes a window are held in memory (1.3 GB for ten million).

    Parameters
    ----------
    url : str
    parts_new, parts_old : sequence of Part
        Written, committed or not.

    Returns
    -------
    list of Twin
        Sorted by recording.

    Raises
    ------
    DatasetError
        When a shard is missing or damaged.
    """
    shards = [shard for part in (*parts_old, *parts_new) for shard in part.shards]
    tables = (table for _, table in windows_of(url, (*parts_old, *parts_new), COLUMNS))
    known = sum(shard.rows for part in parts_old for shard in part.shards)
    return find_twins(tables, _ShardWindows(url, tuple(shards)), known=known)


def find_twins(tables: Iterable[pa.Table], read_windows: ReadWindows, *, known: int = 0) -> list[Twin]:
    """Find recordings of different people that share a stretch.

    Parameters
    ----------
    tables : iterable of pyarrow.Table
        With `COLUMNS`; read once.
    read_windows : callable
        Gives windows by their row, counted over all tables. Must survive pickling when Ray runs.
    known : int
        Pairs among this many first rows are not looked for: they were when those were new.

    Returns
    -------
    list of Twin
        Sorted by recording.
    """
    windows = _collect(tables)
    if known >= len(windows.person):
        return []
    partitions = max(1, round(len(windows.person) / _ROWS_A_PARTITION))
    tasks = [(kind, known, part, partitions) for kind in range(len(_KINDS)) for part in range(partitions)]
    pairs = _best(_run_all(_agreeing, windows, tasks))
    groups = _by_recordings(windows, pairs)
    batches = [(groups[k : k + _BATCH_PAIRS],) for k in range(0, len(groups), _BATCH_PAIRS)]
    found = [twin for part in _run_all(_confirmed, read_windows, batches) for twin in part]
    return sorted((_twin(windows, *entry) for entry in found), key=lambda twin: (twin.recording, twin.other_recording))


def to_leave_out(url: str, parts: Sequence[Part], twins: Iterable[Twin]) -> dict[str, dict[str, str]]:
    """Give what must go so that no heart is in two splits: for each part, windows to the reason (`rewrite_part`).

    Of two twins in different splits, the recording that lies in these parts goes, the other one if both do.
    """
    recordings = _recordings(url, parts)
    drop = set()
    for twin in twins:
        if twin.leaks and not drop & {twin.recording, twin.other_recording}:
            drop.add(twin.other_recording if twin.other_recording in recordings else twin.recording)
    result: dict[str, dict[str, str]] = {}
    for part in parts:
        for _, table in windows_of(url, [part], ["window_id", "recording"]):
            rows = zip(table["window_id"].to_pylist(), table["recording"].to_pylist(), strict=True)
            names = {window: "near_duplicate" for window, recording in rows if recording in drop}
            if names:
                result.setdefault(part.key, {}).update(names)
    return result


def _recordings(url: str, parts: Sequence[Part]) -> set[str]:
    return {name for _, t in windows_of(url, parts, ["recording"]) for name in t["recording"].unique().to_pylist()}


@dataclass(frozen=True)
class _ShardWindows:
    """Windows by row over shards; each shard is read once a call."""

    url: str
    shards: tuple[Shard, ...]

    def __call__(self, rows: Sequence[int]) -> dict[int, Window]:
        ends = np.cumsum([shard.rows for shard in self.shards])
        wanted = np.unique(np.asarray(rows, np.int64))
        found: dict[int, Window] = {}
        for k in np.unique(np.searchsorted(ends, wanted, side="right")):
            start = int(ends[k]) - self.shards[k].rows
            mine = wanted[(wanted >= start) & (wanted < ends[k])]
            table = read_shard(self.url, self.shards[k]).take(mine - start)
            found |= dict(zip(mine.tolist(), decode(table), strict=True))
        return found


def _run_all(work: Callable[..., Any], shared: Any, tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Call `work(shared, *task)` for each task, on Ray where it was started; results in their order."""
    import ray

    if not ray.is_initialized() or len(tasks) < 2:
        return [work(shared, *task) for task in tasks]
    place = ray.put(shared)
    remote = ray.remote(num_cpus=1)(work)
    return ray.get([remote.remote(place, *task) for task in tasks])


def _collect(tables: Iterable[pa.Table]) -> _Windows:
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
    return _Windows(person, recording, prints, list(people), list(recordings), splits)


def _codes(names: Sequence[str], codes: dict[str, int]) -> NDArray[np.int32]:
    return np.array([codes.setdefault(name, len(codes)) for name in names], np.int32)


def _bytes(values: Sequence[bytes | None]) -> NDArray[np.uint8]:
    none = bytes(BYTES)
    joined = b"".join(value if value is not None and len(value) == BYTES else none for value in values)
    return np.frombuffer(joined, np.uint8).reshape(-1, BYTES)


@dataclass(frozen=True)
class _Runs:
    """Runs of four beats: window, first beat, and features (n, 4): two intervals, two components of the shape; sum."""

    window: NDArray[np.int64]
    beat: NDArray[np.int64]
    features: NDArray[np.float64]
    sum_s: NDArray[np.float64]


def _runs(beats: Beats, axes: NDArray[np.float32], first_row: int) -> _Runs:
    window, beat = np.nonzero(np.arange(MAX_BEATS) + _RUN < beats.count[:, None])
    times = beats.times_s.astype(np.float64)
    t0, t1, t2, t3 = (times[window, beat + k] for k in range(4))
    shape = (beats.shape @ axes.T)[window]
    return _Runs(window + first_row, beat, np.column_stack([t1 - t0, t2 - t1, shape]), t3 - t0)


def _axes(beats: Beats) -> NDArray[np.float32]:
    """Give the two directions (2, 16) in which shapes differ most, from a sample spread over all windows."""
    rows = np.flatnonzero(beats.count > 0)
    if rows.size == 0:
        return np.zeros((2, beats.shape.shape[1]), np.float32)
    sample = beats.shape[rows].astype(np.float64)
    axes = np.linalg.svd(sample - sample.mean(axis=0), full_matrices=False)[2][:2]
    return np.resize(axes, (2, sample.shape[1])).astype(np.float32)


def _cells(runs: _Runs, kind: _Kind) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give each feature's cell (n, 4), and the next best: the neighbour if that is within the tolerance."""
    size = np.array([kind.cell_s, kind.cell_s, kind.shape_cell, kind.shape_cell])
    reach = np.array([kind.tolerance_s, kind.tolerance_s, kind.shape_step, kind.shape_step])
    cell = np.floor(runs.features / size).astype(np.int64)
    below = np.floor((runs.features - reach) / size).astype(np.int64)
    above = np.floor((runs.features + reach) / size).astype(np.int64)
    return cell, np.where(below != cell, below, above)


def _keys(cells: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Pack four cells into 48 bits."""
    a, b, c, d = cells.T.astype(np.uint64)
    mask = np.uint64(0xFF)
    key = (a & np.uint64(0xFFFF)) << np.uint64(32) | (b & np.uint64(0xFFFF)) << np.uint64(16)
    return key | (c & mask) << np.uint64(8) | (d & mask)


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


def _chunks(windows: _Windows, start: int) -> Iterator[tuple[int, Beats, Beats]]:
    for row in range(start, len(windows.person), _QUERY_ROWS):
        yield (row, *unpack(windows.fingerprints[row : row + _QUERY_ROWS]))


def _build(windows: _Windows, k: int, axes: NDArray[np.float32], part: int, partitions: int) -> _Index:
    keys, rows, beats = [], [], []
    for row, *both in _chunks(windows, 0):
        runs = _runs(both[k], axes, row)
        cells = _keys(_cells(runs, _KINDS[k])[0])
        mine = _in_partition(cells, part, partitions)
        keys.append(_with_sum(cells[mine], runs.sum_s[mine]))
        rows.append(runs.window[mine].astype(np.int32))
        beats.append(runs.beat[mine].astype(np.uint8))
    joined = np.concatenate(keys)
    order = np.argsort(joined, kind="stable")
    return _Index(joined[order], np.concatenate(rows)[order], np.concatenate(beats)[order])


def _agreeing(windows: _Windows, k: int, known: int, part: int, partitions: int) -> _Pairs:
    """Find the pairs of windows of different people whose beats agree, by the runs of one partition."""
    kind = _KINDS[k]
    sample = windows.fingerprints[np.linspace(0, len(windows.person) - 1, min(len(windows.person), 20_000)).astype(int)]
    axes = _axes(unpack(sample)[k])
    index = _build(windows, k, axes, part, partitions)
    found: list[NDArray[np.int64]] = [np.empty((0, 3), np.int64)]
    for row, *both in _chunks(windows, known):
        runs = _runs(both[k], axes, row)
        query, entry = _look_up(index, runs, kind, part, partitions)
        a, b = runs.window[query], index.window[entry].astype(np.int64)
        strange = windows.person[a] != windows.person[b]
        a, b, first, second = a[strange], b[strange], runs.beat[query][strange], index.beat[entry][strange]
        found.append(_compare(windows.fingerprints, k, a, b, first, second))
    rows = np.concatenate(found)
    return _Pairs(rows[:, 0], rows[:, 1], rows[:, 2], np.full(len(rows), k))


def _look_up(index: _Index, runs: _Runs, kind: _Kind, part: int, partitions: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give (run, entry) of the index's runs in the same or a near cell and of nearly the same sum."""
    cell, other = _cells(runs, kind)
    queries, entries = [], []
    for choice in product((False, True), repeat=4):
        chosen = np.array(choice)
        rows = np.flatnonzero((other != cell)[:, chosen].all(axis=1))
        keys = _keys(np.where(chosen, other[rows], cell[rows]))
        mine = _in_partition(keys, part, partitions)
        rows, keys = rows[mine], keys[mine]
        low = np.searchsorted(index.keys, _with_sum(keys, runs.sum_s[rows] - kind.tolerance_s))
        high = np.searchsorted(index.keys, _with_sum(keys, runs.sum_s[rows] + kind.tolerance_s), side="right")
        count = np.minimum(high - low, _MOST_FOUND)
        at = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        # Of a crowd, entries spread over all of it.
        stride = np.repeat((high - low) / np.maximum(count, 1), count)
        entries.append(np.repeat(low, count) + (at * stride).astype(np.int64))
        queries.append(np.repeat(rows, count))
    return np.concatenate(queries), np.concatenate(entries)


def _compare(
    prints: NDArray[np.uint8],
    k: int,
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    a_beat: NDArray[Any],
    b_beat: NDArray[Any],
) -> NDArray[np.int64]:
    """Keep the pairs whose shapes and whose beats in the stretch they share agree: rows (first, second, beats)."""
    kind, kept = _KINDS[k], []
    for start in range(0, a.size, 1 << 16):
        part = slice(start, start + (1 << 16))
        x, y = unpack(prints[a[part]])[k], unpack(prints[b[part]])[k]
        shapes = np.einsum("nd,nd->n", x.shape, y.shape) >= kind.shape_likeness
        n = np.arange(len(x.count))
        lag_s = x.times_s[n, a_beat[part].astype(int)] - y.times_s[n, b_beat[part].astype(int)]
        chosen = np.flatnonzero(shapes & (np.abs(lag_s) <= WINDOW_S - MIN_OVERLAP_S))
        beats = _matched(x, y, lag_s, chosen, kind)
        agree = chosen[beats >= _MIN_BEATS]
        first, second = a[part][agree], b[part][agree]
        rows = [np.minimum(first, second), np.maximum(first, second), beats[beats >= _MIN_BEATS]]
        kept.append(np.column_stack(rows))
    return np.concatenate(kept) if kept else np.empty((0, 3), np.int64)


def _matched(
    x: Beats, y: Beats, lag_s: NDArray[np.float32], rows: NDArray[np.int64], kind: _Kind
) -> NDArray[np.int64]:
    """Count the beats that two windows share once one is shifted; 0 where a fifth of them has no partner."""
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


def _best(parts: Sequence[_Pairs]) -> _Pairs:
    """Join partitions and kinds; of a pair found several times, keep the one with the most beats, ECG first."""
    first, second, beats, kind = (np.concatenate([getattr(p, n) for p in parts]) for n in vars(parts[0]))
    order = np.lexsort([kind, -beats, second, first])
    first, second, beats, kind = first[order], second[order], beats[order], kind[order]
    new = np.ones(first.size, bool)
    new[1:] = (np.diff(first) != 0) | (np.diff(second) != 0)
    return _Pairs(first[new], second[new], beats[new], kind[new])


@dataclass(frozen=True)
class _Group:
    """Two recordings: the pairs of windows to compare, best first, and how many agree."""

    pairs: tuple[tuple[int, int], ...]
    agreeing: int


def _by_recordings(windows: _Windows, pairs: _Pairs) -> list[_Group]:
    one, other = windows.recording[pairs.first].astype(np.int64), windows.recording[pairs.second].astype(np.int64)
    both = np.minimum(one, other) * len(windows.recordings) + np.maximum(one, other)
    order = np.lexsort([pairs.second, pairs.first, -pairs.beats, both])
    starts = np.flatnonzero(np.diff(both[order], prepend=-1))
    groups = []
    for rows in np.split(order, starts[1:]) if order.size else []:
        chosen = [(int(pairs.first[row]), int(pairs.second[row])) for row in rows[:_TRIES]]
        groups.append(_Group(tuple(chosen), rows.size))
    return groups


def _confirmed(read_windows: ReadWindows, groups: Sequence[_Group]) -> list[tuple[int, int, float, int]]:
    """Compare the signals of each group; give (window, window, likeness, agreeing) of those that are twins."""
    windows = read_windows([row for group in groups for pair in group.pairs for row in pair])
    found = []
    for group in groups:
        for first, second in group.pairs:
            value = _same_stretch(windows[first], windows[second])
            if value is not None:
                found.append((first, second, value, group.agreeing))
                break
    return found


def _same_stretch(one: Window, other: Window) -> float | None:
    """Give the likeness of two windows that share a stretch; by their ECG, and by the PPG where that is all.

    Two hearts of one rate and shape fit at any beat about equally well; a copy fits at one.
    """
    for kind in _KINDS:
        found = likeness(one, other, kind=kind.name)
        if found is not None:
            misfit, usual = 1.0 - found.correlation, 1.0 - found.runner_up
            same = found.correlation >= kind.correlation and misfit <= kind.odds * usual
            return found.correlation if same else None
    return None


def _twin(windows: _Windows, first: int, second: int, value: float, agreeing: int) -> Twin:
    sides = []
    for row in (first, second):
        recording = int(windows.recording[row])
        sides += [windows.people[windows.person[row]], windows.recordings[recording], windows.splits[recording]]
    return Twin(*sides, likeness=value, windows=agreeing)
