"""EDF, EDF+ and BDF (European Data Format): fixed header, then data records of fixed size.

The fields of the header are checked one by one and the records are read by their place in the file. edfio, which is
the oracle of the tests, maps an EDF into memory (150 MB of a day of four signals) and reads a BDF whole (1.7 GB of the
same day); a stretch read here takes a stretch's memory of either.

Source: Kemp et al. 1992 (EDF) and 2003 (EDF+), as published by edfplus.info.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2es.demographics import Demographics
from p2es.errors import RecordError
from p2es.formats.naming import kind_of, lead_of, to_millivolt, unit_of
from p2es.formats.subject import age_at, person_of, sex_of
from p2es.recording import LazySamples, Recording, Signal, SignalKind

MAX_SIGNALS = 512
# One data record: the specification asks for 61,440 bytes at most; some writers put a whole night into one.
MAX_RECORD_BYTES = 1 << 30
MAX_RECORDS = 10**8
MAX_PARTS = 10_000
_BLOCK_BYTES = 1 << 22
_FIXED = (8, 80, 80, 8, 8, 8, 44, 8, 8, 4)
_PER_SIGNAL = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_ONSET = re.compile(rb"([+-]\d{1,12}(?:\.\d{0,12})?)(?:\x15[^\x14]*)?\x14")
# code, sex, birth date, name: the form that EDF+ gives the patient field. Anything else is free text, often a name.
_PATIENT = re.compile(r"(\S+) ([FMX]) (X|\d\d-[A-Z]{3}-\d{4})(?: .*)?", re.IGNORECASE | re.ASCII)
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


@dataclass(frozen=True)
class _Channel:
    """A signal line of the header; `place` is where its bytes begin in a data record."""

    number: int
    label: str
    unit: str
    limits: tuple[str, str, str, str]
    samples: int
    place: int


@dataclass(frozen=True)
class _Header:
    """What the header says: where the records lie, how long they are, and the channels."""

    path: Path
    width: int
    plus: str
    start: int
    records: int
    duration_s: float
    record_bytes: int
    channels: tuple[_Channel, ...]
    patient: str
    day: date | None

    @property
    def name(self) -> str:
        return self.path.name


def is_mine(head: bytes) -> bool:
    """Tell by the beginning of a file whether it is EDF or BDF."""
    known = head[:8] == b"\xffBIOSEMI" or (head[:1] == b"0" and not head[1:8].strip())
    return known and len(head) >= 256 and head[184:192].strip().isdigit() and head[252:256].strip().isdigit()


def read(path: Path, name: str, source: str, skipped: list[RecordError]) -> Iterator[Recording]:
    """Read a file: one recording, or one for each stretch without a gap of a discontinuous file (EDF+D).

    Parameters
    ----------
    path : Path
    name : str
        Name of the record in the archive; stretches get `name/part-1` and so on.
    source : str
        Institution family.
    skipped : list of RecordError
        Gets an entry for a file that is cut (its whole data records are read), for data records without a time, and
        for each channel that is an ECG or PPG and cannot be read.

    Raises
    ------
    RecordError
        When nothing of it can be read: `header`, `rate`, `truncated`, `no_signal`, `time_gaps`, `missing_file`.
    """
    header = _header(path, skipped)
    channels = _wanted(header, skipped)
    person, demographics = _subject(header)
    runs = _runs(header, skipped) if header.plus.endswith("D") else [(0, header.records)]
    for number, (first, last) in enumerate(runs, 1):
        yield Recording(
            record=name if len(runs) == 1 else f"{name}/part-{number}",
            source=source,
            person=person,
            signals=tuple(_signal(header, channel, first, last) for channel in channels),
            demographics=demographics,
            provenance={"format": "bdf" if header.width == 3 else "edf"},
        )


def _header(path: Path, skipped: list[RecordError]) -> _Header:
    """Read and check the header; what the file's size does not bear out is told."""
    try:
        with path.open("rb") as file:
            fixed = file.read(256)
            if not is_mine(fixed):
                raise RecordError(f"{path.name} has no EDF header: fetch it again", "header")
            fields = _cut(fixed, _FIXED)
            count = _whole(fields[9], "number of signals", path.name, 1, MAX_SIGNALS)
            start = _whole(fields[5], "size of the header", path.name, 256 * (count + 1), 256 * (count + 1))
            lines = file.read(start - 256)
            size = file.seek(0, 2)
    except OSError as error:
        raise RecordError(f"{path.name} cannot be opened ({error.strerror}): fetch it", "missing_file") from error
    if len(lines) < start - 256:
        raise RecordError(f"{path.name} ends within its header: fetch it again", "truncated")
    width = 3 if fixed[:1] == b"\xff" else 2
    channels, record_bytes = _channels(lines, count, width, path.name)
    duration_s = _number(fields[8])
    if not 1e-6 <= duration_s <= 1e9:
        raise RecordError(f"{path.name} has data records of {fields[8]!r} seconds: the rate is unknown", "rate")
    declared = _whole(fields[7], "number of data records", path.name, -1, MAX_RECORDS)
    records = _records(declared, (size - start) / record_bytes, path.name, skipped)
    plus = fields[6][:5] if re.match(r"(EDF|BDF)\+[CD]", fields[6]) else ""
    return _Header(path, width, plus, start, records, duration_s, record_bytes, channels, fields[1], _start_day(fields))


def _records(declared: int, there: float, name: str, skipped: list[RecordError]) -> int:
    """Settle how many data records are read: those that are declared and whole. -1 was never filled in: all there."""
    whole = int(there)
    if whole < 1:
        raise RecordError(f"{name} has no whole data record: fetch it again", "truncated")
    if whole > MAX_RECORDS:
        raise RecordError(f"{name} has {whole} data records: cut it", "too_large")
    if declared == 0:
        raise RecordError(f"{name} declares no data record: correct the header", "header")
    if declared > whole:
        skipped.append(
            RecordError(f"{name} is cut: {whole} of {declared} data records are there; fetch it again", "truncated")
        )
    elif declared == -1 and there > whole:
        skipped.append(RecordError(f"{name} ends within a data record, which is left out", "truncated"))
    elif -1 < declared < whole:
        skipped.append(
            RecordError(
                f"{name} declares {declared} data records and holds {whole}: only those are read; correct it", "header"
            )
        )
    return whole if declared == -1 else min(declared, whole)


def _cut(line: bytes, widths: Sequence[int]) -> list[str]:
    ends = np.cumsum(widths).tolist()
    text = line.decode("latin-1")
    return [text[end - width : end].strip(" \0") for width, end in zip(widths, ends, strict=True)]


def _number(text: str) -> float:
    return float(text) if _NUMBER.fullmatch(text) else math.nan


def _whole(text: str, what: str, name: str, low: int, high: int) -> int:
    value = _number(text)
    if not (low <= value <= high and value == int(value)):
        raise RecordError(f"{name} gives {text!r} as {what}: correct the header", "header")
    return int(value)


def _channels(lines: bytes, count: int, width: int, name: str) -> tuple[tuple[_Channel, ...], int]:
    """Read the signal lines, which lie field by field; and the size of a data record."""
    columns, at = [], 0
    for size in _PER_SIGNAL:
        columns.append(_cut(lines[at : at + size * count], [size] * count))
        at += size * count
    channels, place = [], 0
    for index, (label, _, unit, *limits, _, samples, _) in enumerate(zip(*columns, strict=True), 1):
        number = _whole(samples, f"samples of signal {index}", name, 0, MAX_RECORD_BYTES)
        low, high, digital_low, digital_high = limits
        channels.append(_Channel(index, label, unit, (low, high, digital_low, digital_high), number, place))
        place += number * width
    if not 0 < place <= MAX_RECORD_BYTES:
        raise RecordError(f"{name} claims data records of {place} bytes: correct the header", "header")
    return tuple(channels), place


def _wanted(header: _Header, skipped: list[RecordError]) -> list[_Channel]:
    """Give the ECG and PPG channels that can be scaled; the others of them are told."""
    found, errors = [], []
    for channel in header.channels:
        if channel.samples == 0 or kind_of(channel.label, channel.unit) is None:
            continue
        try:
            checked = _checked(header, channel)
        except RecordError as error:
            errors.append(error)
            continue
        if header.records * channel.samples > 1:
            found.append(checked)
    if not found:
        raise errors[0] if errors else RecordError(f"{header.name} has neither an ECG nor a PPG", "no_signal")
    skipped += errors
    return found


def _checked(header: _Header, channel: _Channel) -> _Channel:
    """Give a channel whose scale and rate are possible, an ECG with the unit of its name where the header has none."""
    low, high, digital_low, digital_high = map(_number, channel.limits)
    fs_hz = channel.samples / header.duration_s
    # Nothing that a converter or a body gives is near these; beyond them single precision overflows.
    possible = all(abs(_number(limit)) <= 1e12 for limit in channel.limits)
    if not possible or low == high or not digital_low < digital_high:
        raise RecordError(f"{header.name} has no scale for signal {channel.number}: correct the header", "header")
    if not 1.0 <= fs_hz <= 100_000.0:
        raise RecordError(f"{header.name} gives signal {channel.number} a rate of {fs_hz:g} Hz", "rate")
    if kind_of(channel.label, channel.unit) is SignalKind.PPG:
        return channel
    return replace(channel, unit=unit_of(channel.label, channel.unit))


def _signal(header: _Header, channel: _Channel, first: int, last: int) -> Signal:
    """Make a signal of data records first to last, read when it is asked for."""
    kind = kind_of(channel.label, channel.unit)
    assert kind is not None
    low, high, digital_low, digital_high = map(_number, channel.limits)
    factor = to_millivolt(channel.unit) if kind is SignalKind.ECG else 1.0
    unit = channel.unit if kind is SignalKind.PPG else "unknown" if factor is None else "mV"
    step = (high - low) / (digital_high - digital_low) * (factor or 1.0)
    # The lowest code is what recorders write for a lost electrode; it is a value only where the header says so.
    code = -(1 << (8 * header.width - 1))
    lost = code if code < digital_low else None

    def load(start: int, stop: int) -> NDArray[np.floating]:
        offset = first * channel.samples
        steps = _steps(header, channel, start + offset, stop + offset)
        values = ((steps - digital_low) * step + low * (factor or 1.0)).astype(np.float32)
        if lost is not None:
            values[steps == lost] = np.nan
        return values

    samples = LazySamples((last - first) * channel.samples, load)
    fs_hz = channel.samples / header.duration_s
    return Signal(channel.label, kind, samples, fs_hz, unit, 0.0, lead_of(channel.label), 1.0 / step)


def _steps(header: _Header, channel: _Channel, start: int, stop: int) -> NDArray[np.int32]:
    """Read samples start to stop of a channel as converter steps."""
    size = channel.samples * header.width
    raw = np.concatenate(
        [np.empty(0, np.uint8)]
        + [part.reshape(-1) for part in _bytes(header, channel.place, size, start * header.width, stop * header.width)]
    )
    if raw.size != (stop - start) * header.width:
        raise RecordError(f"{header.name} became shorter while it was read: fetch it again", "truncated")
    if header.width == 2:
        return raw.view("<i2").astype(np.int32)
    wide = np.zeros((raw.size // 3, 4), np.uint8)
    wide[:, 1:] = raw.reshape(-1, 3)
    return wide.view("<i4")[:, 0] >> 8


def _bytes(header: _Header, place: int, size: int, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
    """Read bytes start to stop of what one channel has in all data records, in blocks.

    Small records are read whole, many at a time, and the channel cut out; of large ones only its own bytes.
    """
    together = max(1, _BLOCK_BYTES // header.record_bytes)
    record = start // size
    try:
        with header.path.open("rb", buffering=0) as file:
            while record * size < stop:
                count = min(together, -(-stop // size) - record)
                low, high = max(start - record * size, 0), min(stop - record * size, count * size)
                if together == 1:
                    file.seek(header.start + record * header.record_bytes + place + low)
                    yield _exactly(file.read(high - low), high - low, header.name)
                else:
                    file.seek(header.start + record * header.record_bytes)
                    block = _exactly(file.read(count * header.record_bytes), count * header.record_bytes, header.name)
                    block = block.reshape(count, header.record_bytes)[:, place : place + size]
                    yield block.reshape(-1)[low:high]
                record += count
    except OSError as error:
        raise RecordError(f"{header.name} cannot be read ({error.strerror}): fetch it again", "unreadable") from error


def _exactly(raw: bytes | None, size: int, name: str) -> NDArray[np.uint8]:
    if raw is None or len(raw) != size:
        raise RecordError(f"{name} became shorter while it was read: fetch it again", "truncated")
    return np.frombuffer(raw, np.uint8)


def _runs(header: _Header, skipped: list[RecordError]) -> list[tuple[int, int]]:
    """Find the stretches of data records that follow each other without a gap, by the times they carry."""
    onsets = _onsets(header)
    lost = int(np.isnan(onsets).sum())
    if lost == onsets.size:
        raise RecordError(f"{header.name} is discontinuous and its data records have no times", "time_gaps")
    if lost:
        skipped.append(
            RecordError(f"{header.name} has {lost} data records without a time, which are left out", "time_gaps")
        )
    # Times are written with a few digits: a millisecond is no gap at any rate here.
    steps = np.abs(np.diff(onsets) - header.duration_s)
    breaks = np.flatnonzero(~(steps <= 2e-3)) + 1
    edges = [0, *breaks.tolist(), header.records]
    found = [(a, b) for a, b in pairwise(edges) if not np.isnan(onsets[a])]
    if len(found) > MAX_PARTS:
        raise RecordError(f"{header.name} has {len(found)} stretches: no recording of use", "time_gaps")
    return found


def _onsets(header: _Header) -> NDArray[np.float64]:
    """Read the time of each data record, seconds; NaN where it has none."""
    marks = [c for c in header.channels if c.label in {"EDF Annotations", "BDF Annotations"} and c.samples]
    onsets = np.full(header.records, np.nan)
    if not marks:
        return onsets
    # The time comes first in the first annotation signal; 64 bytes hold it, at any length of a name behind it.
    size = min(marks[0].samples * header.width, 64)
    with_all = marks[0].samples * header.width
    record = 0
    for block in _bytes(header, marks[0].place, with_all, 0, header.records * with_all):
        for line in block.reshape(-1, with_all)[:, :size]:
            found = _ONSET.match(line.tobytes())
            if found:
                onsets[record] = float(found.group(1))
            record += 1
    return onsets


def _subject(header: _Header) -> tuple[str, Demographics]:
    """Give the person's id, sex and age; the name, the dates and the rest of the field are dropped."""
    found = _PATIENT.fullmatch(header.patient)
    if not found:
        return header.path.stem, Demographics()
    code, sex, birth = found.groups()
    return person_of(code, header.path.stem), Demographics(age_at(_day(birth), header.day), sex_of(sex))


def _day(text: str) -> date | None:
    """Read a day as EDF+ writes it, 02-MAY-1951."""
    parts = text.upper().split("-")
    try:
        return date(int(parts[2]), _MONTHS.index(parts[1]) + 1, int(parts[0])) if len(parts) == 3 else None
    except ValueError:
        return None


def _start_day(fields: Sequence[str]) -> date | None:
    """Give the day of the recording: of EDF+ the one with a whole year, else dd.mm.yy of 1985 to 2084."""
    stated = re.match(r"Startdate (\d\d-[A-Z]{3}-\d{4})", fields[2], re.IGNORECASE | re.ASCII)
    if stated:
        return _day(stated.group(1))
    if fields[2].lower().startswith("startdate x"):
        return None  # Unknown, says EDF+; the short date is then a filler, 01.01.85.
    short = re.fullmatch(r"(\d\d)\.(\d\d)\.(\d\d)", fields[3], re.ASCII)
    if not short:
        return None
    day, month, year = map(int, short.groups())
    try:
        return date(year + (1900 if year >= 85 else 2000), month, day)
    except ValueError:
        return None
