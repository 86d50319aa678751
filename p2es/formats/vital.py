"""VitalDB and Vital Recorder files (`.vital`): a gzip stream of packets, read once from front to end.

The vitaldb package reads the same format and is the oracle of the tests; here it would not do. It takes a length of up
to 4 GiB from a packet and allocates it, prints its errors and goes on, and keeps every wanted track in memory. This
reader takes pieces, puts long tracks on disk (`Spool`), and bounds what a file may unpack to (`Budget`).

Source: the format as the Vital Recorder manual describes it and vitaldb 1.7 writes and reads it.
"""

import gzip
import math
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2es.errors import RecordError
from p2es.formats.naming import kind_of, lead_of, to_millivolt, unit_of
from p2es.formats.spool import Budget, Spool
from p2es.recording import LazySamples, Recording, Signal, SignalKind

# What ends a recording: no track has a sample for longer than this.
GAP_S = 1.0
# Blocks carry the time at which a computer saw them, which jitters while the samples come evenly; only a block that is
# further than this from where its samples belong moves them. ECG and PPG of one device jitter together.
JITTER_S = 0.1
MAX_TRACKS = 64
MAX_STRETCHES = 10_000
_PIECE_BYTES = 1 << 20
_GATHER = 1 << 16
_MAX_INFO_BYTES = 1 << 16
# Type of a sample, and the code that the writer puts where there is none.
_FORMATS = {
    1: ("<f4", None),
    2: ("<f8", None),
    3: ("<i1", -128),
    4: ("<u1", 255),
    5: ("<i2", -32768),
    6: ("<u2", 65535),
    7: ("<i4", -(2**31)),
    8: ("<u4", 2**32 - 1),
}
_DEVICE, _TRACK, _RECORD = 9, 0, 1


@dataclass
class _Track:
    """A wave track: samples one after another, and where stretches of them lie on its grid of times.

    `stretches` holds (place on the grid, place in the spool), `origin_s` is the time of place 0.
    """

    name: str
    unit: str
    kind: SignalKind
    format: int
    fs_hz: float
    gain: float
    offset: float
    origin_s: float = math.nan
    stretches: list[tuple[int, int]] = field(default_factory=list)
    spool: Spool = field(default_factory=Spool)
    waiting: list[NDArray[np.float32]] = field(default_factory=list)
    size: int = 0
    dropped: int = 0

    def append(self, values: NDArray[np.float32]) -> None:
        """Add samples; small records are gathered, since an array of one sample takes the memory of thirty."""
        self.waiting.append(values)
        self.size += values.size
        if self.size - self.spool.size > _GATHER:
            self.finish()

    def finish(self) -> None:
        """Put what waits into the spool."""
        if self.waiting:
            self.spool.append(np.concatenate(self.waiting))
            self.waiting = []

    def spans(self) -> Iterator[tuple[float, float]]:
        """Give begin and end of each stretch, seconds."""
        ends = [*(at for _, at in self.stretches[1:]), self.size]
        for (place, at), end in zip(self.stretches, ends, strict=True):
            yield self.origin_s + place / self.fs_hz, self.origin_s + (place + end - at) / self.fs_hz


def is_mine(head: bytes) -> bool:
    """Tell by the beginning of a file whether it is a gzip stream of VitalDB packets."""
    try:
        return head[:2] == b"\x1f\x8b" and zlib.decompressobj(31).decompress(head, 4) == b"VITA"
    except zlib.error:
        return False


def read(path: Path, name: str, source: str, skipped: list[RecordError]) -> Iterator[Recording]:
    """Read a file: a recording for each stretch of time in which ECG or PPG waves come without a gap of over 1 s.

    Shorter gaps, and those of one track while another goes on, are missing samples.

    Parameters
    ----------
    path : Path
        Its name without ending is the case, and so the person; demographics are in a table of their own.
    name : str
        Name of the record in the archive; where there are several stretches, `name/part-1` and so on.
    source : str
        Institution family.
    skipped : list of RecordError
        Gets an entry when the file is cut (what is whole is read), for each track that cannot be read, and for
        samples that lie before others already there.

    Raises
    ------
    RecordError
        When nothing of it can be read: `header`, `unreadable`, `truncated`, `no_signal`, `rate`, `time_gaps`,
        `too_large`, `missing_file`.
    """
    errors: list[RecordError] = []
    tracks = [track for track in _tracks(path, errors) if track.size > 1]
    if not tracks:
        raise errors[0] if errors else RecordError(f"{path.name} has neither an ECG nor a PPG wave", "no_signal")
    if dropped := sum(track.dropped for track in tracks):
        errors.append(RecordError(f"{path.name} has {dropped} samples that lie before others: left out", "time_gaps"))
    skipped += errors
    spans = _spans(tracks)
    for number, span in enumerate(spans, 1):
        signals = tuple(signal for track in tracks if (signal := _signal(track, *span)) is not None)
        label = name if len(spans) == 1 else f"{name}/part-{number}"
        yield Recording(label, source, path.stem, signals, provenance={"format": "vital"})


def _tracks(path: Path, errors: list[RecordError]) -> list[_Track]:
    """Read all wave tracks that are an ECG or a PPG; a cut file gives what is before the cut."""
    try:
        with path.open("rb") as raw:
            budget = Budget(raw.seek(0, 2), path.name)
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) as unpacked:
                parser = _Parser(_Stream(unpacked, budget), path.name, errors)
                try:
                    parser.run()
                except EOFError:
                    text = f"{path.name} is cut: what is before the cut is read; fetch it again"
                    errors.append(RecordError(text, "truncated"))
    except (gzip.BadGzipFile, zlib.error) as error:
        raise RecordError(f"{path.name} is no whole gzip stream: fetch it again", "unreadable") from error
    except OSError as error:
        raise RecordError(f"{path.name} cannot be opened ({error.strerror}): fetch it", "missing_file") from error
    tracks = list(parser.tracks.values())
    for track in tracks:
        track.finish()
    return tracks


class _Stream:
    """Unpacked bytes, a bounded piece at a time.

    A case has a hundred tracks of numbers beside its waves, each value a packet of 21 bytes: they are cut from a
    buffer, since asking the unpacker for each piece doubled the time of a case.
    """

    def __init__(self, file: gzip.GzipFile, budget: Budget) -> None:
        self._file = file
        self._buffer = b""
        self._at = 0
        self.budget = budget

    def take(self, size: int, *, last: bool = False) -> bytes:
        """Read exactly so many bytes; EOFError at the end, or nothing when the file may end here."""
        end = self._at + size
        if end > len(self._buffer):
            self._fill(size)
            end = size
            if len(self._buffer) < size:
                if last and not self._buffer:
                    return b""
                raise EOFError
        data = self._buffer[self._at : end]
        self._at = end
        return data

    def _fill(self, size: int) -> None:
        """Drop what was taken, and unpack until so many bytes are there or the file ends."""
        parts = [self._buffer[self._at :]]
        count = len(parts[0])
        # One step of the unpacker at a time: of a cut file, what comes before the cut is given.
        while count < size and (part := self._file.read1(_PIECE_BYTES)):
            self.budget.spend(len(part))
            parts.append(part)
            count += len(part)
        self._buffer, self._at = b"".join(parts), 0

    def skip(self, size: int) -> None:
        """Pass over bytes."""
        for at in range(0, size, _PIECE_BYTES):
            self.take(min(_PIECE_BYTES, size - at))


class _Fields:
    """The fields of a packet one after another; those that are not there are 0 or empty: older writers end early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, code: str) -> float:
        """Read a number of a `struct` code."""
        size = struct.calcsize(code)
        if self._at + size > len(self._data):
            self._at = len(self._data)
            return 0
        (value,) = struct.unpack_from(code, self._data, self._at)
        self._at += size
        return value

    def text(self) -> str:
        """Read a text, its length in front."""
        size = int(self.number("<L"))
        value = self._data[self._at : self._at + size]
        self._at += len(value)
        return value.decode("utf-8", "replace")


class _Parser:
    """Reads the packets of a stream into tracks."""

    def __init__(self, stream: _Stream, name: str, errors: list[RecordError]) -> None:
        self.tracks: dict[int, _Track] = {}
        self._stream = stream
        self._name = name
        self._errors = errors
        self._devices: dict[int, str] = {}
        self._packed = False

    def run(self) -> None:
        """Read to the end; EOFError when the stream ends within a packet."""
        if self._stream.take(4) != b"VITA":
            raise RecordError(f"{self._name} is no VitalDB file", "header")
        self._stream.skip(4)
        (size,) = struct.unpack("<H", self._stream.take(2))
        header = self._stream.take(size)
        # A packed file has all samples of a track in one record, and codes for "none" in the gaps.
        self._packed = size >= 27 and header[26] == 1
        while head := self._stream.take(5, last=True):
            kind, size = struct.unpack("<BL", head)
            if kind in {_DEVICE, _TRACK}:
                self._describe(kind, size)
            elif kind == _RECORD and size >= 12:
                self._record(size)
            else:
                self._stream.skip(size)

    def _describe(self, kind: int, size: int) -> None:
        if size > _MAX_INFO_BYTES:
            raise RecordError(f"{self._name} describes a track in {size} bytes: fetch it again", "header")
        fields = _Fields(self._stream.take(size))
        if kind == _DEVICE:
            number, label, called = fields.number("<L"), fields.text(), fields.text()
            self._devices[int(number)] = called or label
        else:
            self._track(fields)

    def _track(self, fields: _Fields) -> None:
        """Read what describes a track, and keep it when it is a wave that is an ECG or a PPG."""
        number, shape, form = (int(fields.number(code)) for code in ("<H", "<B", "<B"))
        label, unit = fields.text(), fields.text()
        for code in ("<f", "<f", "<L"):  # limits and colour of the display
            fields.number(code)
        fs_hz, gain, offset = (float(fields.number(code)) for code in ("<f", "<d", "<d"))
        fields.number("<B")
        device = self._devices.get(int(fields.number("<L")), "")
        kind = kind_of(label, unit)
        if shape != 1 or kind is None or number in self.tracks:
            return
        if len(self.tracks) >= MAX_TRACKS:
            raise RecordError(f"{self._name} has over {MAX_TRACKS} ECG and PPG tracks: it is no recording", "header")
        if not 1.0 <= fs_hz <= 100_000.0:
            self._errors.append(RecordError(f"{self._name} gives a track a rate of {fs_hz:g} Hz", "rate"))
        elif form not in _FORMATS or (form > 2 and not (1e-12 <= abs(gain) <= 1e12 and abs(offset) <= 1e12)):
            self._errors.append(RecordError(f"{self._name} has no scale for a track", "header"))
        else:
            called = f"{device}/{label}" if device else label
            try:
                unit = unit_of(label, unit) if kind is SignalKind.ECG else unit
            except RecordError as error:
                self._errors.append(error)
                return
            self.tracks[number] = _Track(called, unit, kind, form, round(fs_hz, 4), gain, offset)

    def _record(self, size: int) -> None:
        """Read the samples of a record into its track, at the place that the record's time gives them."""
        (info,) = struct.unpack("<H", self._stream.take(2))
        left = size - 2 - info
        if info < 10 or left < 0:
            raise RecordError(f"{self._name} has a record without a time: fetch it again", "unreadable")
        time_s, number = struct.unpack("<dH", self._stream.take(info)[:10])
        track = self.tracks.get(number)
        if track is None or left < 4:
            self._stream.skip(left)
            return
        code, missing = _FORMATS[track.format]
        width = np.dtype(code).itemsize
        (count,) = struct.unpack("<L", self._stream.take(4))
        if count * width > left - 4:
            raise RecordError(f"{self._name} has a record of fewer samples than it says: fetch it again", "unreadable")
        skip = self._place(track, time_s, count)
        self._stream.skip(skip * width)
        for at in range(skip, count, _PIECE_BYTES // width):
            steps = np.frombuffer(self._stream.take(min(_PIECE_BYTES, (count - at) * width)), code)
            # One byte is too narrow to spare a code where nothing says that it is one.
            track.append(_physical(steps, track, missing if self._packed or width > 1 else None))
        self._stream.skip(left - 4 - count * width)

    def _place(self, track: _Track, time_s: float, count: int) -> int:
        """Make room up to where a record belongs; give how many of its samples are there already."""
        if not 0 <= time_s < 1e11:
            raise RecordError(f"{self._name} has a record at an impossible time: fetch it again", "time_gaps")
        if not track.stretches:
            track.origin_s = time_s
            track.stretches.append((0, 0))
        place, at = track.stretches[-1]
        end = place + track.size - at
        ahead = round((time_s - track.origin_s) * track.fs_hz) - end
        if ahead > GAP_S * track.fs_hz:
            if len(track.stretches) >= MAX_STRETCHES:
                raise RecordError(f"{self._name} has over {MAX_STRETCHES} gaps: no recording of use", "time_gaps")
            track.stretches.append((end + ahead, track.size))
        elif ahead > JITTER_S * track.fs_hz:
            self._stream.budget.spend(4 * ahead)
            track.append(np.full(ahead, np.nan, np.float32))
        elif -ahead > JITTER_S * track.fs_hz:
            skip = min(-ahead, count)
            track.dropped += skip
            return skip
        return 0


def _physical(steps: NDArray[np.number], track: _Track, missing: int | None) -> NDArray[np.float32]:
    """Turn what is stored into the unit of the signal, missing samples into NaN."""
    # A float that is a signalling NaN warns as it is widened.
    with np.errstate(invalid="ignore"):
        values = steps.astype(np.float64)
    if track.format > 2:
        values = values * track.gain + track.offset
        if missing is not None:
            values[steps == missing] = np.nan
    # The writer's mark of a sample that is none is near the largest float.
    values[~(np.abs(values) <= 4e9)] = np.nan
    return (values * _factor(track)).astype(np.float32)


def _factor(track: _Track) -> float:
    return (to_millivolt(track.unit) or 1.0) if track.kind is SignalKind.ECG else 1.0


def _spans(tracks: Sequence[_Track]) -> list[tuple[float, float]]:
    """Join the stretches of all tracks into spans with a gap of over 1 s between them."""
    spans: list[tuple[float, float]] = []
    for begin, end in sorted(span for track in tracks for span in track.spans()):
        if spans and begin <= spans[-1][1] + GAP_S:
            spans[-1] = (spans[-1][0], max(spans[-1][1], end))
        else:
            spans.append((begin, end))
    return spans


def _signal(track: _Track, begin_s: float, end_s: float) -> Signal | None:
    """Give what a track has in a span, gaps inside as NaN; None when it has nothing there."""
    edges = [*(at for _, at in track.stretches), track.size]
    inside = [
        (place, at, end)
        for (place, _), (at, end), (begin, stop) in zip(track.stretches, pairwise(edges), track.spans(), strict=True)
        if begin >= begin_s and stop <= end_s and end > at
    ]
    if not inside:
        return None
    first = inside[0][0]
    pieces = [(place - first, at, end - at) for place, at, end in inside]
    starts, stored = [place for place, _, _ in pieces], track.spool.samples()

    def load(start: int, stop: int) -> NDArray[np.floating]:
        values = np.full(stop - start, np.nan, np.float32)
        for place, at, count in pieces[max(bisect_right(starts, start) - 1, 0) : bisect_right(starts, stop)]:
            low, high = max(start, place), min(stop, place + count)
            if low < high:
                values[low - start : high - start] = stored[at + low - place : at + high - place]
        return values

    unit = track.unit
    if track.kind is SignalKind.ECG:
        unit = "unknown" if to_millivolt(track.unit) is None else "mV"
    gain = 1.0 / (track.gain * _factor(track)) if track.format > 2 else None
    samples = LazySamples(pieces[-1][0] + pieces[-1][2], load)
    start_s = track.origin_s + first / track.fs_hz - begin_s
    return Signal(track.name, track.kind, samples, track.fs_hz, unit, start_s, lead_of(track.name), gain)
