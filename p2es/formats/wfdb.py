"""WFDB records (PhysioNet): single and multi-segment, several rates in one record, FLAC, MATLAB.

A multi-segment record gives a recording for each run of segments that follow each other with the same leads, in the
same order, with the same gains: a window may cross a cut that means nothing, and none crosses one that does.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2es.demographics import Demographics, Sex, parse_number, parse_sex
from p2es.errors import InputError, RecordError
from p2es.formats.mapping import Layout, layout_of
from p2es.formats.naming import kind_of, lead_of, to_millivolt, unit_of
from p2es.formats.wfdb_annotations import read_beats
from p2es.formats.wfdb_header import (
    UNCALIBRATED_GAIN,
    Header,
    SegmentLine,
    SignalLine,
    outside,
    read_header,
    within,
)
from p2es.formats.wfdb_samples import Cache, SignalFile, Steps
from p2es.recording import LazySamples, Recording, Samples, Signal, SignalKind

_BEATS = (".atr", ".ii")
"""Annotations that are read when they are there, the first of them: all beats; what LUDB marks in lead II."""
_PERSON_FIELDS = {
    "age_years": re.compile(r"\bage>?[ \t]*[:=][ \t]*([^\s<,;]+)", re.IGNORECASE),
    "sex": re.compile(r"\b(?:sex|gender)>?[ \t]*[:=][ \t]*([A-Za-z?]+)", re.IGNORECASE),
    "height_cm": re.compile(r"\bheight[^:=\n]{0,8}[:=][ \t]*([\d.]+)", re.IGNORECASE),
    "weight_kg": re.compile(r"\bweight[^:=\n]{0,8}[:=][ \t]*([\d.]+)", re.IGNORECASE),
}
_IN_MEMORY = 2**18
"""Samples of a signal that are read at once: 9 minutes at 500 Hz, 1 MB."""
_LOOK = 2**14
"""Samples that are looked at at once for one that was recorded: mostly the first are."""
_COMMENT_LETTERS = 100_000
"""What is searched for the person: whole diagnoses fit in."""
# A folder right above the record may be a person's with fewer digits (`Person_01/rec_1`, `S1/rest`).
_PERSON_FOLDER = re.compile(r"(?:person|participant|patient|subject|subj|sub|[ps])[-_]?\d+", re.IGNORECASE)
# A value in other units than years, cm and kg: unknown, rather than six years for six months.
_OTHER_UNIT = re.compile(r"month|week|days?\b|lb|pound|inch|feet|\bft\b", re.IGNORECASE)
_SUBJECT_FOLDER = re.compile(r"(?:patient|subject|[ps])[-_]?\d{3,}", re.IGNORECASE)
_ACTIVITY = re.compile(r"<activity>:[ \t]*(\w+)")
# MIT-BIH writes age, sex and codes without names: `69 M 1085 1629 x1`.
_MIT_BIH = re.compile(r"^[ \t]*(\d{1,3})[ \t]+([MF])[ \t]+\d", re.MULTILINE)
_PERSON_ID = re.compile(r"^[ \t]*person[ \t]*[:=][ \t]*(\S+)[ \t]*$", re.IGNORECASE | re.MULTILINE)
# MIMIC-IV, and in angle brackets MIMIC-IV-ECG, whose deepest folder is the study's (`s40689238`); the folders of both
# write the same number behind a p.
_SUBJECT_ID = re.compile(r"^[ \t]*<?subject_id>?[ \t:=]+(\d{1,12})[ \t]*$", re.MULTILINE)
_SYNTHETIC = re.compile(r"\bSYNTHETIC\b")


def files_of(header: Path, name: str = "", mappings: tuple[Layout, ...] = ()) -> list[Path]:
    """Give header, annotations, signal and segment files of a record: those that exist, in the order of the header.

    Those of the second record follow, where a layout declares one.

    Parameters
    ----------
    header : Path
    name : str
        Of the record in its archive, which says where the archive begins: links that leave it are not followed.
    mappings : tuple of Layout
        The user's own.
    """
    root = _root(header, name)
    found = {header: None}
    for path in _named(header, root):
        if _is_there(path, root):
            found[path] = None
            if path.suffix == ".hea":
                found |= dict.fromkeys(inner for inner in _named(path, root) if _is_there(inner, root))
    second = beside_of(header, mappings)
    if second is not None and _is_there(second[0], root):
        found |= dict.fromkeys([second[0], *(path for path in _named(second[0], root) if _is_there(path, root))])
    return list(found)


def beside_of(header: Path, mappings: tuple[Layout, ...] = ()) -> tuple[Path, Layout] | None:
    """Give the header of the second record, there or not, and the layout that declares it; None without one."""
    layout = layout_of("wfdb", header.name, lambda _: True, mappings)
    if layout is None or layout.beside is None or not header.name.endswith(layout.beside.replace):
        return None
    return header.with_name(header.name.removesuffix(layout.beside.replace) + layout.beside.by), layout


def _named(path: Path, root: Path) -> list[Path]:
    """Give the files that a header needs beside itself, there or not: annotations, then signal files or segments."""
    companions = [path.with_suffix(kind) for kind in _BEATS]
    try:
        header = read_header(path, root)
    except RecordError:  # nothing will be read but the header
        return companions
    segments = [f"{line.name}.hea" for line in header.segments or () if line.name]
    files = [line.file for line in header.signals if line.file]
    return companions + [path.parent / name for name in dict.fromkeys(segments + files)]


def _is_there(path: Path, root: Path) -> bool:
    try:
        return path.is_file() and within(path, root)
    except OSError:  # a name too long for the file system
        return False


def _root(path: Path, name: str) -> Path:
    """Give the archive's folder: the header's path without the record's name."""
    whole, tail = path.absolute(), Path(f"{name}{path.suffix}")
    own = bool(name) and whole.parts[-len(tail.parts) :] == tail.parts and len(whole.parts) > len(tail.parts)
    return whole.parents[len(tail.parts) - 1] if own else whole.parent


def read(
    path: Path, name: str, source: str, skipped: list[RecordError], mappings: tuple[Layout, ...] = ()
) -> Iterator[Recording]:
    """Read a record, a recording a run of segments; the samples stay in their files.

    Where a layout declares a second record, the two are one recording.

    Parameters
    ----------
    path : Path
        The header.
    name : str
        Name of the record in the archive.
    source : str
        Institution family.
    skipped : list of RecordError
        Gets an entry for each segment or signal that could not be read while others could; and, once a recording was
        read whole, one for each segment that misses its checksums (`checksum`), which costs no recording.
    mappings : tuple of Layout
        The user's own.

    Raises
    ------
    RecordError
        When nothing of the record can be read, with a reason code.
    """
    second = beside_of(path, mappings)
    if second is None:
        return _read(path, name, source, skipped)
    return _read_pair(path, name, source, skipped, *second)


def _read_pair(
    path: Path, name: str, source: str, skipped: list[RecordError], other: Path, layout: Layout
) -> Iterator[Recording]:
    """Read two records that are declared to be one recording, on one clock; what cannot be joined is told."""
    root = _root(path, name)
    parts = [_read(path, name, source, skipped)]
    if not _is_there(other, root):
        skipped.append(RecordError(f"{other.name} is not there beside {path.name}: fetch it", "missing_file"))
    elif _has_segments(path, root) or _has_segments(other, root):
        skipped.append(RecordError(f"{other.name} is not read with {path.name}: one of them has segments", "header"))
    else:
        parts.append(_read(other, name.removesuffix(path.stem) + other.stem, source, skipped))
    joined = len(parts) == 2
    found = iter([_together(_first_of(parts, skipped), path, other, skipped)]) if joined else parts[0]
    for recording in found:
        person = layout.person_of(path.stem) if layout.person else recording.person
        yield replace(recording, person=person, provenance={"format": "wfdb", "layout": layout.name})
    for part in parts:
        next(part, None)  # which compares the checksums


def _has_segments(path: Path, root: Path) -> bool:
    try:
        return read_header(path, root).segments is not None
    except RecordError:  # which reading will tell
        return False


def _first_of(parts: Sequence[Iterator[Recording]], errors: list[RecordError]) -> list[Recording]:
    """Give the recording of each record; one that cannot be read is told, unless none can."""
    found, wrong = [], []
    for part in parts:
        try:
            found.append(next(part))
        except RecordError as error:
            wrong.append(error)
    if not found:
        raise wrong[0]
    errors += wrong
    return found


def _together(found: Sequence[Recording], path: Path, other: Path, errors: list[RecordError]) -> Recording:
    """Join two recordings into the first; those of two lengths need not have begun together."""
    if len(found) == 1:
        return found[0]
    first, second = found
    step_s = 1.0 / min(signal.fs_hz for signal in first.signals + second.signals)
    if abs(first.duration_s - second.duration_s) > step_s:
        errors.append(RecordError(f"{other.name} is not read: it is not as long as {path.name}", "header"))
        return first
    return replace(
        first,
        signals=first.signals + second.signals,
        demographics=first.demographics if first.demographics != Demographics() else second.demographics,
        r_peaks_s=first.r_peaks_s if first.r_peaks_s is not None else second.r_peaks_s,
        simulated=first.simulated or second.simulated,
    )


def _read(path: Path, name: str, source: str, skipped: list[RecordError]) -> Iterator[Recording]:
    """Read one record."""
    root = _root(path, name)
    header = read_header(path, root)
    comments = header.comments[:_COMMENT_LETTERS]
    record = Recording(
        record=name,
        source=source,
        person=_person(path, name, comments),
        signals=(),
        demographics=_demographics(comments),
        simulated=bool(_SYNTHETIC.search(comments)),
        provenance={"format": "wfdb"},
    )
    if header.segments is None:
        whole = _opened(path, header, root, Cache(), skipped)
        yield replace(record, signals=_joined([whole]), r_peaks_s=_beats(path, header.frame_hz, root, skipped))
        _compare_sums([whole], skipped)
        return
    noted: list[RecordError] = []
    left_out: list[RecordError] = []
    beats = _beats(path, header.frame_hz, root, noted)
    readable = 0
    for run in _runs(path, header, header.segments, root, left_out):
        try:
            signals = _joined(run)
        except RecordError as error:
            left_out.append(error)
            continue
        peaks = _of_run(run, beats, root, noted)
        yield replace(record, record=f"{name}/{run[0].path.stem}", signals=signals, r_peaks_s=peaks)
        _compare_sums(run, noted)
        readable += 1
    if not readable:
        raise left_out[0] if left_out else RecordError(f"{path.name} has no segment with signals", "no_segments")
    skipped += left_out + noted


@dataclass(frozen=True)
class _Segment:
    """A record with one segment, or a segment: its header, where it starts in the whole record, what it holds.

    `setup` is what must be the same for the next one to follow on.
    """

    path: Path
    start: int
    frames: int
    frame_hz: float
    signals: tuple[Signal, ...]
    setup: tuple[Any, ...]
    files: tuple[SignalFile, ...]
    places: frozenset[tuple[Path, int]]


def _runs(
    path: Path, header: Header, lines: Sequence[SegmentLine], root: Path, left_out: list[RecordError]
) -> Iterator[list[_Segment]]:
    """Give the runs of segments that belong together; what cannot be read goes to `left_out`."""
    cache, start = Cache(), 0
    run: list[_Segment] = []
    seen: set[object] = set()  # names of segments, places of samples
    for line in lines:
        segment = None
        try:
            if line.name in seen:
                raise RecordError(f"{path.name} names the segment {line.name} twice", "duplicate")
            seen |= {line.name} - {None}
            segment = _segment(path, header, line, start, root, cache, left_out)
            if segment and segment.places in seen:
                segment = None
                raise RecordError(f"{line.name}.hea holds the samples of an earlier segment", "duplicate")
        except RecordError as error:
            left_out.append(error)
        if run and not (segment and segment.setup == run[-1].setup and start == run[-1].start + run[-1].frames):
            yield run
            run = []
        if segment:
            run.append(segment)
            seen.add(segment.places)
        start += line.frames
    if run:
        yield run


def _segment(
    path: Path, header: Header, line: SegmentLine, start: int, root: Path, cache: Cache, left_out: list[RecordError]
) -> _Segment | None:
    """Open a segment of a multi-segment record; None for a gap (`~`) and a layout (length 0), which hold nothing."""
    if line.name is None or line.frames == 0:
        return None
    if line.frames == 1:
        # One sample is how MIMIC marks a change of setup.
        raise RecordError(f"segment {line.name} of {path.name} is one sample long", "shorter_than_a_window")
    inner = path.parent / f"{line.name}.hea"
    if not inner.is_file():
        raise RecordError(f"segment {line.name} of {path.name} is not there: fetch it", "missing_segment")
    found = read_header(inner, root)
    if found.segments is not None:
        raise RecordError(f"{path.name} names {inner.name}, which has segments itself: correct it", "header")
    if abs(found.frame_hz - header.frame_hz) > 1e-6 * header.frame_hz:
        raise RecordError(f"{inner.name} has another rate than {path.name}: correct one of them", "rate")
    opened = _opened(inner, replace(found, frames=found.frames or line.frames), root, cache, left_out)
    return replace(opened, start=start)


def _opened(path: Path, header: Header, root: Path, cache: Cache, left_out: list[RecordError]) -> _Segment:
    """Open the files of a record with one segment that hold an ECG or a PPG, and check them."""
    kept = [line for line in header.signals if _kind(line) and line.file]
    if not kept:
        raise RecordError(f"{path.name} has neither an ECG nor a PPG (a signal named PLETH or PPG)", "no_signal")
    sharing = {line.file or "": [other for other in header.signals if other.file == line.file] for line in kept}
    files = {name: _file(path, name, lines, header.frames, root, cache) for name, lines in sharing.items()}
    frames = header.frames or min(file.frames for file in files.values())
    if frames < 2:
        raise RecordError(f"{path.name} has no samples", "no_signal")
    signals, setup, errors = [], [], []
    for line in kept:
        file, lines = files[line.file or ""], sharing[line.file or ""]
        index = next(k for k, other in enumerate(lines) if other is line)
        try:
            signals.append(_signal(path, line, header.frame_hz, frames, file, index))
            setup.append((line.name, line.gain, line.baseline, line.unit, line.per_frame))
        except RecordError as error:
            errors.append(error)
    if not signals:
        raise errors[0]
    left_out += errors
    places = frozenset((file.path, max(line.offset for line in sharing[name])) for name, file in files.items())
    return _Segment(path, 0, frames, header.frame_hz, tuple(signals), tuple(setup), tuple(files.values()), places)


def _compare_sums(run: Sequence[_Segment], errors: list[RecordError]) -> None:
    """Tell of segments that were read whole and miss their checksums."""
    for segment in run:
        try:
            wrong = sum(file.wrong_sums() for file in segment.files)
        except RecordError as error:  # the file went while it was read
            errors.append(error)
            continue
        if wrong:
            what = f"{wrong} signals of {segment.path.name} miss the checksums of its header"
            errors.append(RecordError(f"{what}: fetch it again, and see whether the header was edited", "checksum"))


def _file(path: Path, name: str, lines: Sequence[SignalLine], frames: int, root: Path, cache: Cache) -> SignalFile:
    if not within(path.parent / name, root):
        raise RecordError(outside(name), "link")
    return SignalFile(path.parent / name, lines, path.name, frames, cache)


def _kind(line: SignalLine) -> SignalKind | None:
    """Tell by its name what a signal is; None for what is neither ECG nor PPG."""
    # In per cent a wave is of an unknown unit; a saturation has its name. `II+` is a lead of some monitors' own.
    return kind_of(line.name.rstrip("+"), "" if line.unit == "%" else line.unit)


def _signal(path: Path, line: SignalLine, frame_hz: float, frames: int, file: SignalFile, index: int) -> Signal:
    """Make a signal of a line: ECG in millivolt where the header allows it."""
    fs_hz = frame_hz * line.per_frame
    if not 1.0 <= fs_hz <= 100_000.0:
        raise RecordError(f"{path.name} gives {line.name} a rate of {fs_hz:g} Hz: correct the record line", "rate")
    if line.gain is not None and math.isnan(line.gain):
        raise RecordError(f"{path.name} gives {line.name} an unusable gain or baseline: correct the header", "header")
    kind, unit, factor, gain = _kind(line), line.unit, 1.0, line.gain
    assert kind is not None
    if kind is SignalKind.ECG:
        # Without a gain it is not calibrated (header(5)): no millivolt can be made of it.
        known = to_millivolt(unit_of(line.name, unit)) if gain is not None else None
        factor, unit = (1.0, "unknown") if known is None else (known, "mV")
    load = _Physical(file, index, line, factor)
    return Signal(
        name=line.name,
        kind=kind,
        samples=LazySamples(frames * line.per_frame, load),
        fs_hz=fs_hz,
        unit=unit,
        lead=lead_of(line.name) if kind is SignalKind.ECG else None,
        gain=None if gain is None else gain / factor,
    )


@dataclass(frozen=True)
class _Physical:
    """Reads a signal: from steps to its unit, NaN for what was not recorded, skew taken out."""

    file: SignalFile
    index: int
    line: SignalLine
    factor: float

    def __call__(self, start: int, stop: int) -> NDArray[np.floating]:
        per_frame, skew = self.line.per_frame, self.line.skew
        samples = np.full(stop - start, np.nan, np.float32)
        first = start // per_frame
        last = min(-(-stop // per_frame) + skew, self.file.frames)
        at = first * per_frame - start
        for steps in self.file.stretches(self.index, first + skew, last):
            low, high = max(at, 0), min(at + steps.size, samples.size)
            samples[low:high] = self._values(steps[low - at : high - at])
            at += steps.size
        return samples

    def _values(self, steps: Steps) -> NDArray[np.floating]:
        baseline, missing = self.line.baseline, self.file.missing
        # Single precision holds whole numbers to 2**24: all differences of 16 bits, at half the time of double.
        single = missing is not None and abs(missing) <= 2**15 and abs(baseline) <= 2**23 and baseline.is_integer()
        values = np.subtract(steps, baseline, dtype=np.float32 if single else np.float64)
        values /= self.line.gain or UNCALIBRATED_GAIN
        if self.factor != 1.0:
            values *= self.factor
        if missing is not None:
            values[steps == missing] = np.nan
        return values


@dataclass(frozen=True)
class _Chain:
    """Reads a signal that goes on from segment to segment."""

    parts: tuple[Samples, ...]
    starts: tuple[int, ...]

    def __call__(self, start: int, stop: int) -> NDArray[np.floating]:
        pieces = [np.empty(0, np.float32)]
        for k in range(bisect_right(self.starts, start) - 1, len(self.parts)):
            if self.starts[k] >= stop:
                break
            pieces.append(self.parts[k][max(start - self.starts[k], 0) : stop - self.starts[k]])
        return np.concatenate(pieces)


def _joined(run: Sequence[_Segment]) -> tuple[Signal, ...]:
    """Give the signals of a run of segments; short ones in memory, without those that nothing was recorded of."""
    signals = []
    for members in zip(*(segment.signals for segment in run), strict=True):
        parts = tuple(signal.samples for signal in members)
        starts = tuple(accumulate((part.size for part in parts), initial=0))
        chained = parts[0] if len(parts) == 1 else LazySamples(starts[-1], _Chain(parts, starts[:-1]))
        samples = chained[0 : chained.size] if chained.size <= _IN_MEMORY else chained
        pieces = (samples[k : k + _LOOK] for k in range(0, samples.size, _LOOK))
        if any(np.isfinite(piece).any() for piece in pieces):
            signals.append(replace(members[0], samples=samples))
    if not signals:
        raise RecordError(f"{run[0].path.name} has no sample of an ECG or a PPG: all are missing", "no_signal")
    return tuple(signals)


def _beats(path: Path, frame_hz: float, root: Path, errors: list[RecordError]) -> NDArray[np.float64] | None:
    """Read the annotated R peaks beside a header, seconds from its start; what is broken costs no recording."""
    for companion in (path.with_suffix(kind) for kind in _BEATS):
        if not _is_there(companion, root):
            continue
        try:
            ticks, rate_hz = read_beats(companion)
        except RecordError as error:
            errors.append(error)
            continue
        if ticks.size:
            return ticks / (rate_hz or frame_hz)
    return None


def _of_run(
    run: Sequence[_Segment], beats: NDArray[np.float64] | None, root: Path, errors: list[RecordError]
) -> NDArray[np.float64] | None:
    """Give the R peaks of a run, from its start: the whole record's, else those of its segments."""
    start_s, end_s = run[0].start / run[0].frame_hz, (run[-1].start + run[-1].frames) / run[0].frame_hz
    if beats is None:
        own = [(s.start / s.frame_hz, _beats(s.path, s.frame_hz, root, errors)) for s in run]
        found = [offset_s + times for offset_s, times in own if times is not None]
        beats = np.concatenate(found) if found else None
    if beats is None:
        return None
    peaks = beats[(beats >= start_s) & (beats < end_s)] - start_s
    return peaks if peaks.size else None


def _person(path: Path, name: str, comments: str) -> str:
    """Name the person, so that two records of one person get one name.

    A `person:` comment or MIMIC-IV's `subject_id`; else the folder that names a subject (`p10014354`, `patient001`,
    `s25047`), the deepest, or the one above the record (`S1`); else what the record name begins with, a folder's name
    (MIMIC-III) or what comes before the activity (PTT-PPG); else the record name, with its folder where it is a word
    that any folder may have (`rest`, `rec_1`). Only folders of the archive count, not where it lies.
    """
    if stated := _PERSON_ID.search(comments):
        return stated.group(1)
    if subject := _SUBJECT_ID.search(comments):
        return f"p{subject.group(1)}"
    *folders, stem = name.split("/")
    subjects = [part for part in folders if _SUBJECT_FOLDER.fullmatch(part)]
    if subjects:
        return subjects[-1]
    above = folders[-1] if folders else ""
    begins = re.fullmatch(re.escape(above) + r"(?:[-_].*)?", stem) and re.search(r"\d{3,}", above)
    if above and (_PERSON_FOLDER.fullmatch(above) or stem == above or begins):
        return above
    if activity := _ACTIVITY.search(comments):
        return stem.removesuffix(f"_{activity.group(1)}")
    return f"{above}/{stem}" if above and not stem.isdigit() and not re.search(r"\d{2,}", stem) else stem


def _demographics(comments: str) -> Demographics:
    values: dict[str, Any] = {}
    if unnamed := _MIT_BIH.search(comments):
        values = {"age_years": parse_number(unnamed.group(1), "age_years"), "sex": parse_sex(unnamed.group(2))}
    for field, pattern in _PERSON_FIELDS.items():
        if found := pattern.search(comments):
            if _OTHER_UNIT.search(comments[found.start() : found.end() + 8].split("\n")[0]):
                continue
            values[field] = _sex(found.group(1)) if field == "sex" else parse_number(found.group(1), field)
    return Demographics(**values)


def _sex(text: str) -> Sex | None:
    try:
        return parse_sex(text)
    except InputError:
        return None
