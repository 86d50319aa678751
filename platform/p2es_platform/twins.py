"""Twins: the same stretch of the same heart under two people, whatever was done to the file in between.

Public sets are resampled, scaled, trimmed and renamed copies of each other, and a copy in another split is a leak.
Candidates are windows whose fingerprints agree in the intervals of neighbouring beats (an index of runs of five beats,
near-linear in windows) and then in all beats of the stretch they share; each pair is confirmed on its signals.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from p2es.likeness import likeness
from p2es.windows import Window, decode
from p2es_platform.parts import Part, windows_of
from p2es_platform.shards import Shard, read_shard
from p2es_platform.spread import spread
from p2es_platform.twin_search import KINDS, ROWS_A_PARTITION, Group, Windows, agreeing, best, by_recordings, collect

COLUMNS = ("window_id", "person", "recording", "split", "fingerprint")
"""What `find_twins` needs of each window."""

ReadWindows = Callable[[Sequence[int]], Mapping[int, Window]]

_BATCH_PAIRS = 64
# Simulated strangers of one rate and shape reach 0.68 at the median by their ECG; under this, no other pair of their
# windows is tried.
_STRANGE = 0.85
# A signal that fits itself about this well at another beat is paced or a generator's: it tells nothing.
_LEAST_MISFIT = 3e-4


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
    windows = collect(tables)
    if known >= len(windows.person):
        return []
    partitions = max(1, round(len(windows.person) / ROWS_A_PARTITION))
    tasks = [(kind, known, part, partitions) for kind in range(len(KINDS)) for part in range(partitions)]
    pairs = best(spread(agreeing, windows, tasks))
    groups = by_recordings(windows, pairs)
    batches = [(groups[k : k + _BATCH_PAIRS],) for k in range(0, len(groups), _BATCH_PAIRS)]
    found = [twin for part in spread(_confirmed, read_windows, batches) for twin in part]
    return sorted((_twin(windows, *entry) for entry in found), key=lambda twin: (twin.recording, twin.other_recording))


def to_leave_out(url: str, parts: Sequence[Part], twins: Iterable[Twin]) -> dict[str, dict[str, str]]:
    """Give what must go so that no heart is in two splits: for each part, windows to the reason (`rewrite_part`).

    Of two people who are twins in different splits, the one in these parts goes, the second one if both are; with all
    windows, since the heart is the same in those that have no copy.
    """
    people = {name for _, t in windows_of(url, parts, ["person"]) for name in t["person"].unique().to_pylist()}
    drop: set[str] = set()
    for twin in twins:
        if twin.leaks and not drop & {twin.person, twin.other_person}:
            drop.add(twin.other_person if twin.other_person in people else twin.person)
    result: dict[str, dict[str, str]] = {}
    for part in parts:
        for _, table in windows_of(url, [part], ["window_id", "person"]):
            rows = zip(table["window_id"].to_pylist(), table["person"].to_pylist(), strict=True)
            names = {window: "near_duplicate" for window, person in rows if person in drop}
            if names:
                result.setdefault(part.key, {}).update(names)
    return result


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


def _confirmed(read_windows: ReadWindows, groups: Sequence[Group]) -> list[tuple[int, int, float, int]]:
    """Compare the signals of each group; give (window, window, likeness, agreeing) of those that are twins."""
    windows = read_windows([row for group in groups for pair in group.pairs for row in pair])
    found = []
    for group in groups:
        for first, second in group.pairs:
            value, same = _same_stretch(windows[first], windows[second])
            if same:
                found.append((first, second, value, group.agreeing))
            if same or value < _STRANGE:
                break
    return found


def _same_stretch(one: Window, other: Window) -> tuple[float, bool]:
    """Give the likeness of two windows and whether they share a stretch; by their ECG, or by the PPG if that is all.

    Two hearts of one rate and shape fit at any beat about equally well; a copy fits at one.
    """
    for kind in KINDS:
        found = likeness(one, other, kind=kind.name)
        if found is not None:
            misfit, usual = 1.0 - found.correlation, 1.0 - found.runner_up
            same = found.correlation >= kind.correlation and misfit + _LEAST_MISFIT <= kind.odds * usual
            return found.correlation, same
    return 0.0, False


def _twin(windows: Windows, first: int, second: int, value: float, agreeing_pairs: int) -> Twin:
    (person, recording, split), other = windows.describe(first), windows.describe(second)
    return Twin(person, recording, split, *other, likeness=value, windows=agreeing_pairs)
