"""What is in a dataset: counts and histograms of its windows and people, read once, column by column."""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.leads import N_LEADS
from p2es_platform.dataset import Dataset
from p2es_platform.shards import Shard, read_shards

MAX_WINDOWS = 200_000
"""Windows that are looked at; of a larger dataset, shards spread evenly over it."""
LEAD_FIGURES = ("quality", "flat", "clipped", "wrapped", "missing", "noise")
PPG_FIGURES = ("ppg_quality", "ppg_flat", "ppg_clipped", "ppg_wrapped", "ppg_missing", "ppg_noise")
SURE_DELAY = 0.5
"""Confidence from which a delay is believed."""

_PEOPLE = ("age_years", "sex", "height_cm", "weight_kg")
_COLUMNS = [
    *("window_id", "person", "recording", "source", "split", "simulated", "ecg_leads", "content", "flags"),
    *_PEOPLE,
    *("delay_s", "delay_confidence", "heart_rate_bpm"),
    *PPG_FIGURES,
    *(f"lead_{name}" for name in LEAD_FIGURES),
]
_EDGES = {
    "heart_rate_bpm": np.arange(20.0, 221.0, 10.0),
    "delay": np.arange(0.0, 0.81, 0.04),
    "ppg_quality": np.linspace(0.0, 1.0, 21),
    "lead_quality": np.linspace(0.0, 1.0, 21),
    "age_years": np.array([0.0, *range(18, 91, 6), 96.0]),
    "height_cm": np.arange(100.0, 221.0, 10.0),
    "weight_kg": np.arange(20.0, 201.0, 15.0),
}
# Quality of the worst signal of a window. What is kept starts at 0.2.
_GOOD, _BORDERLINE = 0.9, 0.4
_EXAMPLES = {"good": 3, "borderline": 3, "flagged": 3}


@dataclass
class Histogram:
    """Counts between edges; what lies beyond is in the first and last bin. `missing` had no value."""

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    missing: int = 0

    @classmethod
    def named(cls, name: str) -> "Histogram":
        """Start an empty one with the edges of a figure."""
        return cls(_EDGES[name], np.zeros(len(_EDGES[name]) - 1, np.int64))

    def add(self, values: NDArray[np.floating]) -> None:
        """Count values; NaN is missing."""
        known = values[np.isfinite(values)]
        self.missing += values.size - known.size
        inside = np.clip(known, self.edges[0], np.nextafter(self.edges[-1], 0))
        self.counts += np.histogram(inside, self.edges)[0]

    @property
    def total(self) -> int:
        """Number of values that are known."""
        return int(self.counts.sum())


@dataclass(frozen=True)
class Example:
    """A window to show: where it lies and what it is an example of."""

    kind: str
    window_id: str
    shard: Shard
    row: int


@dataclass
class Contents:
    """What was counted.

    Attributes
    ----------
    windows, shards : int
        Looked at, of `all_windows` and `all_shards`.
    groups : Counter
        (source, split) to windows.
    people, recordings : dict
        (source, split) to their number.
    leads_recorded, leads_completed : array (12,)
        Windows with the lead as recorded, or by the lead laws from others.
    lead_means : dict
        `LEAD_FIGURES` to (12,) means over the windows with the lead recorded; NaN without one.
    ppg_means : dict
        `PPG_FIGURES` to the mean over the windows with PPG.
    kinds : Counter
        `both`, `ecg`, `ppg`: what windows hold.
    flags : Counter
        Flag to windows.
    histograms : dict
        By name; of windows, of people for age, height and weight, of recordings for the delay (`delay_sure`,
        `delay_unsure`).
    sex : Counter
        `female`, `male`, `unknown` to people.
    examples : list of Example
    """

    all_windows: int
    all_shards: int
    windows: int = 0
    shards: int = 0
    simulated: int = 0
    groups: Counter[tuple[str, str]] = field(default_factory=Counter)
    people: dict[tuple[str, str], int] = field(default_factory=dict)
    recordings: dict[tuple[str, str], int] = field(default_factory=dict)
    leads_recorded: NDArray[np.int64] = field(default_factory=lambda: np.zeros(N_LEADS, np.int64))
    leads_completed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(N_LEADS, np.int64))
    lead_means: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    ppg_means: dict[str, float] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    sex: Counter[str] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)

    @property
    def sampled(self) -> bool:
        """Whether only a part of the dataset was looked at."""
        return self.windows < self.all_windows


def gather(dataset: Dataset, *, max_windows: int = MAX_WINDOWS) -> Contents:
    """Count what is in a dataset; memory grows with its people and recordings, not its windows.

    Parameters
    ----------
    dataset : Dataset
    max_windows : int
        A larger dataset is sampled by whole shards, spread evenly.

    Raises
    ------
    DatasetError
        When a shard is missing or damaged.
    """
    every = dataset.shards()
    shards = _sample(every, max_windows)
    counter = _Counter(Contents(sum(shard.rows for shard in every), len(every), shards=len(shards)))
    for shard, table in zip(shards, read_shards(dataset.url, shards, _COLUMNS), strict=True):
        counter.add(shard, table)
    return counter.finish()


def _sample(shards: Sequence[Shard], max_windows: int) -> list[Shard]:
    total = sum(shard.rows for shard in shards)
    if total <= max_windows:
        return list(shards)
    kept = max(1, int(len(shards) * max_windows / total))
    return [shards[k] for k in np.linspace(0, len(shards) - 1, kept).astype(int)]


class _Counter:
    """The sums on the way to `Contents`."""

    def __init__(self, result: Contents) -> None:
        self.result = result
        self._people: dict[str, tuple[float, ...]] = {}
        self._delays: dict[str, tuple[float, float]] = {}
        self._groups: dict[str, dict[str, set[str]]] = {"person": {}, "recording": {}}
        self._lead_sums = {name: np.zeros((2, N_LEADS)) for name in LEAD_FIGURES}
        self._ppg_sums = {name: np.zeros(2) for name in PPG_FIGURES}
        self._examples = _Chosen()
        names = ("heart_rate_bpm", "ppg_quality", "lead_quality")
        result.histograms = {name: Histogram.named(name) for name in names}

    def add(self, shard: Shard, table: pa.Table) -> None:
        """Count the windows of a shard."""
        result = self.result
        result.windows += table.num_rows
        result.simulated += int(np.count_nonzero(table["simulated"].to_numpy()))
        group = (shard.source, shard.split)
        result.groups[group] += table.num_rows
        for name, found in self._groups.items():
            found.setdefault("\x1f".join(group), set()).update(table[name].unique().to_pylist())
        self._add_people(table)
        leads = self._add_leads(table)
        ppg = self._add_ppg(table)
        has_ecg = table["ecg_leads"].to_numpy() > 0
        for name, chosen in (("both", has_ecg & ppg), ("ecg", has_ecg & ~ppg), ("ppg", ~has_ecg & ppg)):
            result.kinds[name] += int(chosen.sum())
        result.histograms["heart_rate_bpm"].add(_floats(table, "heart_rate_bpm"))
        flags = table["flags"].to_pylist()
        result.flags.update(flag for row in flags for flag in row)
        self._examples.add(shard, table, leads, flags)

    def _add_people(self, table: pa.Table) -> None:
        values = np.column_stack([_floats(table, name) for name in _PEOPLE]).tolist()
        for person, row in zip(table["person"].to_pylist(), values, strict=True):
            self._people.setdefault(person, tuple(row))
        delays = zip(_floats(table, "delay_s").tolist(), _floats(table, "delay_confidence").tolist(), strict=True)
        self._delays.update(zip(table["recording"].to_pylist(), delays, strict=True))

    def _add_leads(self, table: pa.Table) -> NDArray[np.float64]:
        """Count leads; give the quality (window, 12), NaN where a lead was not recorded."""
        result = self.result
        present = (table["ecg_leads"].to_numpy()[:, None] >> np.arange(N_LEADS) & 1).astype(bool)
        figures = {name: _lists(table, f"lead_{name}") for name in LEAD_FIGURES}
        quality = np.where(present, figures["quality"], np.nan)
        recorded = np.isfinite(quality)
        result.leads_recorded += recorded.sum(axis=0)
        result.leads_completed += (present & ~recorded).sum(axis=0)
        for name, values in figures.items():
            counted = recorded & np.isfinite(values)
            self._lead_sums[name] += [np.where(counted, values, 0.0).sum(axis=0), counted.sum(axis=0)]
        result.histograms["lead_quality"].add(quality[recorded])
        return quality

    def _add_ppg(self, table: pa.Table) -> NDArray[np.bool_]:
        """Count PPG figures; give which windows have a PPG."""
        quality = _floats(table, "ppg_quality")
        for name in PPG_FIGURES:
            values = _floats(table, name)
            values = values[np.isfinite(values)]
            self._ppg_sums[name] += [values.sum(), values.size]
        self.result.histograms["ppg_quality"].add(quality[np.isfinite(quality)])
        return np.isfinite(quality)

    def finish(self) -> Contents:
        """Turn sums into means, and people and recordings into histograms."""
        result = self.result
        for name, found in self._groups.items():
            counts = {(key.split("\x1f")[0], key.split("\x1f")[1]): len(names) for key, names in found.items()}
            setattr(result, "people" if name == "person" else "recordings", counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            result.lead_means = {name: sums[0] / sums[1] for name, sums in self._lead_sums.items()}
            result.ppg_means = {name: float(sums[0] / sums[1]) for name, sums in self._ppg_sums.items()}
        people = np.array(list(self._people.values()), float).reshape(-1, len(_PEOPLE))
        for column, name in enumerate(_PEOPLE):
            if name != "sex":
                result.histograms[name] = Histogram.named(name)
                result.histograms[name].add(people[:, column])
        result.sex = _sexes(people[:, _PEOPLE.index("sex")])
        delays = np.array(list(self._delays.values()), float).reshape(-1, 2)
        sure = delays[:, 1] >= SURE_DELAY
        for name, chosen in (("delay_sure", sure), ("delay_unsure", ~sure)):
            result.histograms[name] = Histogram.named("delay")
            result.histograms[name].add(delays[chosen, 0])
        result.examples = self._examples.best()
        return result


def _sexes(sex: NDArray[np.floating]) -> Counter[str]:
    known = np.isfinite(sex)
    female = int((sex[known] >= 0.5).sum())
    return Counter(female=female, male=int(known.sum()) - female, unknown=int((~known).sum()))


def _floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    return np.asarray(table[name].to_numpy(zero_copy_only=False), np.float64)


def _lists(table: pa.Table, name: str) -> NDArray[np.float64]:
    """Give a list column as (window, 12); NaN where there is none."""
    none = [np.nan] * N_LEADS
    rows = [none if row is None else row for row in table[name].to_pylist()]
    return np.array(rows, np.float64).reshape(-1, N_LEADS)


class _Chosen:
    """Examples by the digest of their samples, the smallest first: the same dataset shows the same windows."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, tuple[bytes, Example]]] = {kind: {} for kind in _EXAMPLES}

    def add(self, shard: Shard, table: pa.Table, leads: NDArray[np.float64], flags: Sequence[Sequence[str]]) -> None:
        """Consider the windows of a shard; one a person, or a set of flags."""
        worst = _worst(leads, _floats(table, "ppg_quality"))
        people, digests = table["person"].to_pylist(), table["content"].to_pylist()
        names = table["window_id"].to_pylist()
        for row, kind in _kinds(worst, flags):
            who = "".join(flags[row]) if kind == "flagged" else people[row]
            kept, entry = self._kept[kind], (digests[row], Example(kind, names[row], shard, row))
            if who not in kept or entry[0] < kept[who][0]:
                kept[who] = entry
        for kind, count in _EXAMPLES.items():
            few = heapq.nsmallest(count, self._kept[kind].items(), key=lambda item: item[1][0])
            self._kept[kind] = dict(few)

    def best(self) -> list[Example]:
        """Give the chosen ones, kind by kind."""
        return [example for kept in self._kept.values() for _, example in sorted(kept.values(), key=lambda e: e[0])]


def _worst(leads: NDArray[np.float64], ppg: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the quality of each window's worst signal; NaN without any."""
    both = np.column_stack([leads, ppg])
    lowest = np.where(np.isfinite(both), both, np.inf).min(axis=1)
    return np.where(np.isfinite(lowest), lowest, np.nan)


def _kinds(worst: NDArray[np.float64], flags: Sequence[Sequence[str]]) -> Iterator[tuple[int, str]]:
    for row, flagged in enumerate(flags):
        if flagged:
            yield row, "flagged"
        elif worst[row] >= _GOOD:
            yield row, "good"
        elif worst[row] <= _BORDERLINE:
            yield row, "borderline"
