"""Recordings of CSV and Parquet tables of a declared layout (`mapping`), in bounded memory."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2es.demographics import Demographics, Sex, parse_number, parse_sex
from p2es.errors import InputError, RecordError
from p2es.formats.clock import Stretch, stretches
from p2es.formats.mapping import At, Column, Layout, Value, layout_of
from p2es.formats.rows import Header, blocks_of, header_of
from p2es.formats.spool import Budget, Spool
from p2es.recording import LazySamples, Recording, Samples, Signal, SignalKind


def layout_for(path: Path, mappings: tuple[Layout, ...] = ()) -> tuple[Layout, Header]:
    """Find the layout of a table.

    Raises
    ------
    RecordError
        `layout` when it is of no declared one.
    """
    header = header_of(path)
    layout = None if header is None else layout_of("table", path.name, header.fits, mappings)
    if header is None or layout is None:
        raise RecordError(f"{path.name} has no layout that p2es knows: declare one with --ingest.mapping", "layout")
    return layout, header


def beside_of(path: Path, layout: Layout) -> Path | None:
    """Give the second file of a record; None when the layout has none or it is not there."""
    if layout.beside is None or not path.name.endswith(layout.beside.replace):
        return None
    other = path.with_name(path.name.removesuffix(layout.beside.replace) + layout.beside.by)
    return other if other.is_file() and not other.is_symlink() else None


def files_of(path: Path, mappings: tuple[Layout, ...] = ()) -> list[Path]:
    """Give the files of a record."""
    try:
        other = beside_of(path, layout_for(path, mappings)[0])
    except RecordError:
        other = None
    return [path] if other is None else [path, other]


def read(
    path: Path, name: str, source: str, skipped: list[RecordError], mappings: tuple[Layout, ...] = ()
) -> Iterator[Recording]:
    """Read a table of a declared layout, a recording a stretch without a gap in time.

    Parameters
    ----------
    path : Path
    name : str
        Name of the record in the archive.
    source : str
        Institution family.
    skipped : list of RecordError
        Gets an entry for what cannot be read while the rest can.
    mappings : tuple of Layout
        The user's own, tried before the shipped ones.

    Raises
    ------
    RecordError
        `layout`, `rate`, `time_gaps`, `no_signal`, `unreadable`, `too_large`, `missing_file`.
    """
    layout, header = layout_for(path, mappings)
    main = _Table.load(path, header, layout, beside=False)
    parts = main.parts(path.name, layout)
    other = beside_of(path, layout)
    if other is None and layout.beside is not None:
        file = path.name.removesuffix(layout.beside.replace) + layout.beside.by
        skipped.append(RecordError(f"{file} is not there beside {path.name}: fetch it", "missing_file"))
    if other is not None:
        parts = _joined(parts, _other_parts(other, layout, skipped), path.name, skipped)
    if not any(part.signals for part in parts):
        raise RecordError(f"{path.name} has no numbers in the columns of its signals: correct it", "no_signal")
    demographics = main.demographics(layout, path.name, skipped)
    person = main.person or layout.person_of(path.name)
    for k, part in enumerate(parts, 1):
        if part.signals:
            yield Recording(
                record=name if len(parts) == 1 else f"{name}/part-{k}",
                source=source,
                person=person,
                signals=part.signals,
                demographics=demographics,
                provenance={"format": header.kind, "layout": layout.name, **part.notes},
            )


def _other_parts(path: Path, layout: Layout, skipped: list[RecordError]) -> "list[_Part]":
    try:
        header = header_of(path)
        if header is None:
            raise RecordError(f"{path.name} is no table: fetch it again", "layout")
        return _Table.load(path, header, layout, beside=True).parts(path.name, layout)
    except RecordError as error:
        skipped.append(error)
        return []


@dataclass(frozen=True)
class _Part:
    """A stretch: its signals, from when to when on the file's clock, and what is to be told of it."""

    signals: tuple[Signal, ...]
    start_s: float
    stop_s: float
    notes: dict[str, Any]


def _joined(parts: list[_Part], others: list[_Part], name: str, skipped: list[RecordError]) -> list[_Part]:
    """Put two files of one clock together: a part for each time that both, or one alone, has."""
    if not others:
        return parts
    if len(parts) == len(others) == 1:
        start_s = min(parts[0].start_s, others[0].start_s)
        signals = tuple(_at(part, start_s, signal) for part in (parts[0], others[0]) for signal in part.signals)
        return [_Part(signals, start_s, max(parts[0].stop_s, others[0].stop_s), parts[0].notes | others[0].notes)]
    found = []
    for one in parts:
        for two in others:
            start_s, stop_s = max(one.start_s, two.start_s), min(one.stop_s, two.stop_s)
            if stop_s - start_s > 1.0:
                signals = tuple(
                    _at(part, start_s, signal).between(0.0, stop_s - start_s)
                    for part in (one, two)
                    for signal in part.signals
                )
                found.append(_Part(signals, start_s, stop_s, one.notes | two.notes))
    lost = sum(part.stop_s - part.start_s for part in parts) - sum(part.stop_s - part.start_s for part in found)
    if lost > 1.0:
        skipped.append(RecordError(f"{lost:.0f} s of {name} have no PPG beside them", "time_gaps"))
    return found


def _at(part: _Part, start_s: float, signal: Signal) -> Signal:
    return replace(signal, start_s=part.start_s - start_s)


@dataclass(frozen=True)
class _Table:
    """What was read of a table: the time, if any, the columns, and what the first row says of the person."""

    time_s: Samples | None
    columns: list[tuple[Column, Samples]]
    rows: int
    person: str
    values: dict[str, str]

    @classmethod
    def load(cls, path: Path, header: Header, layout: Layout, *, beside: bool) -> "_Table":
        wanted = _places(header, layout, beside=beside)
        time_at = header.places(layout.time.at)[:1] if layout.time else []
        if layout.time and not time_at:
            raise RecordError(f"{path.name} has no column {layout.time.at!r} for the time: correct it", "layout")
        numbers = list(dict.fromkeys([*time_at, *(k for _, k in wanted)]))
        texts = {name: header.places(at)[:1] for name, at in _texts(layout).items()} if not beside else {}
        spools = {k: Spool(np.float64 if k in time_at else np.float32) for k in numbers}
        first: dict[int, str] = {}
        budget = Budget(path.stat().st_size, path.name)
        for block in blocks_of(path, header, layout, numbers, [k for places in texts.values() for k in places], first):
            budget.spend(sum(8 * block[k].size for k in numbers))
            for k in numbers:
                spools[k].append(block[k])
        rows = spools[numbers[0]].size if numbers else 0
        columns: list[tuple[Column, Samples]] = [(column, spools[k].samples()) for column, k in wanted]
        rows, columns = _unpadded(rows, columns, layout.padding)
        said = {name: first.get(places[0], "") for name, places in texts.items() if places}
        time_s = _scaled(spools[time_at[0]].samples(), rows, layout.time.unit_s) if layout.time else None
        return cls(time_s, columns, rows, said.pop("person", "").strip(), said)

    def demographics(self, layout: Layout, name: str, skipped: list[RecordError]) -> Demographics:
        return demographics_from(layout.demographics, self.values, name, skipped)

    def parts(self, name: str, layout: Layout) -> list[_Part]:
        """Cut at the gaps of the time, make signals."""
        declared = layout.rate.fs_hz if layout.rate else None
        if self.time_s is None:
            assert declared is not None
            found = [Stretch(0, self.rows, 0.0, declared, uneven=False)]
        else:
            found = stretches(self.time_s, name)
        if declared and any(abs(stretch.fs_hz / declared - 1) > 0.01 for stretch in found):
            measured = found[0].fs_hz
            raise RecordError(f"{name} runs at {measured:.4g} Hz, its layout says {declared:.4g}: correct it", "rate")
        return [self._part(stretch, layout) for stretch in found]

    def _part(self, stretch: Stretch, layout: Layout) -> _Part:
        signals = []
        for column, samples in self.columns:
            made = _Cut(samples, stretch, column, self.time_s)
            if made.any():
                signals.append(signal_of(column, made.samples(), stretch.fs_hz))
        stop_s = stretch.start_s + (stretch.stop - stretch.start) / stretch.fs_hz
        notes = {"time": "interpolated"} if stretch.uneven else {}
        return _Part(tuple(signals), stretch.start_s, stop_s, notes)


def _places(header: Header, layout: Layout, *, beside: bool) -> list[tuple[Column, int]]:
    """Give the columns that are there; a second one of a name gets a number, and no lead twice."""
    found = []
    for column in layout.signals:
        for count, place in enumerate(header.places(column.at) if column.beside == beside else [], 1):
            name = column.name if count == 1 else f"{column.name} ({count})"
            found.append((replace(column, name=name, lead=column.lead if count == 1 else None), place))
    return found


def _texts(layout: Layout) -> dict[str, At]:
    texts = {name: value.at for name, value in layout.demographics.items()}
    return texts if layout.person_at is None else {**texts, "person": layout.person_at}


@dataclass(frozen=True)
class _Cut:
    """A column in a stretch: missing values are NaN, an ECG of known unit millivolt, uneven times made even."""

    column_samples: Samples
    stretch: Stretch
    column: Column
    time_s: Samples | None

    def load(self, start: int, stop: int) -> NDArray[np.floating]:
        stretch = self.stretch
        if not stretch.uneven or self.time_s is None:
            return converted(np.array(self.column_samples[stretch.start + start : stretch.start + stop]), self.column)
        values = converted(np.array(self.column_samples[stretch.start : stretch.stop]), self.column)
        times = np.asarray(self.time_s[stretch.start : stretch.stop], np.float64)
        grid = stretch.start_s + np.arange(start, stop) / stretch.fs_hz
        return np.interp(grid, times, values).astype(np.float32)

    def any(self) -> bool:
        """Tell whether any sample is a number."""
        size = self.stretch.stop - self.stretch.start
        return any(np.isfinite(self.load(at, min(at + 1_000_000, size))).any() for at in range(0, size, 1_000_000))

    def samples(self) -> Samples:
        size = self.stretch.stop - self.stretch.start
        if isinstance(self.column_samples, LazySamples) and not self.stretch.uneven:
            return LazySamples(size, self.load)
        return self.load(0, size)


def converted(values: NDArray[np.floating], column: Column) -> NDArray[np.floating]:
    """Make missing values NaN and an ECG of known unit millivolt, as float32; infinite ones are missing too."""
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    missing = column.missing_value
    if missing is not None:
        tolerance = 1e-6 * abs(missing)
        values[np.abs(values - np.float32(missing)) <= tolerance] = np.nan
    values[~np.isfinite(values)] = np.nan
    factor = column.millivolt
    return values if factor is None or factor == 1.0 else values * np.float32(factor)


def signal_of(column: Column, samples: Samples, fs_hz: float) -> Signal:
    """Make the signal of a column."""
    gain = column.gain
    if gain is not None and column.millivolt is not None:
        gain = gain / column.millivolt
    lead = column.lead if column.kind is SignalKind.ECG else None
    return Signal(column.name, column.kind, samples, fs_hz, column.stored_unit, 0.0, lead, gain)


def demographics_from(
    declared: Mapping[str, Value], values: dict[str, str], name: str, skipped: list[RecordError]
) -> Demographics:
    """Read declared fields; a sex that is a code nobody explained is told in `skipped` and stays unknown."""
    known: dict[str, Any] = {}
    for field, value in declared.items():
        text = values.get(field, "").strip()
        if field != "sex":
            known[field] = parse_number(text, field)
            continue
        try:
            known[field] = sex_of(text, value)
        except InputError:
            skipped.append(RecordError(f"the sex in {name} is a code that its layout does not explain", "demographics"))
    return Demographics(**known)


def sex_of(text: str, value: Value) -> Sex | None:
    """Read a sex by its declared codes, else as `parse_sex` does; 1, 1.0 and `1` are one code."""
    if value.codes is None:
        return parse_sex(text)
    text = text.strip()
    code = re.sub(r"\.0+$", "", text)
    if code in value.codes:
        return value.codes[code]
    if text.lower() in {"", "nan", "none", "na", "n/a", "?"}:
        return None
    raise InputError("a sex that is none of the declared codes: declare it")


def _scaled(samples: NDArray[np.floating] | LazySamples, rows: int, unit_s: float) -> Samples:
    if isinstance(samples, LazySamples):
        return LazySamples(rows, lambda start, stop: samples[start:stop] * unit_s)
    return samples[:rows] * unit_s


def _unpadded(
    rows: int, columns: list[tuple[Column, Samples]], padding: float | None
) -> tuple[int, list[tuple[Column, Samples]]]:
    """Leave out rows at the end whose signals are all `padding`."""
    if padding is None or not columns:
        return rows, columns
    end = rows
    while end > 0:
        start = max(0, end - 100_000)
        block = np.stack([np.asarray(samples[start:end]) for _, samples in columns])
        real = np.flatnonzero((block != padding).any(axis=0))
        if real.size:
            end = start + int(real[-1]) + 1
            break
        end = start
    return end, columns
