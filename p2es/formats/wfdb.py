"""WFDB records (PhysioNet): single and multi-segment, several rates in one record, FLAC, MATLAB.

wfdb 4.3.1 accepts wrong headers silently (a rate of nan loads as 250 Hz, a gain of 0 loads, a billion signals is a
MemoryError), so the header is checked here first. A multi-segment record is read segment by segment: leads, order and
gains may change between segments, and no window crosses one.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2es.demographics import Demographics, Sex, parse_number, parse_sex
from p2es.errors import InputError, RecordError
from p2es.leads import canonical_lead
from p2es.recording import Recording, Signal, SignalKind

MAX_SIGNALS = 512
MAX_SAMPLES = 10**10
_TO_MILLIVOLT = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "v": 1e3, "nv": 1e-6}
_PPG = re.compile(r"^(pleth|ppg)", re.IGNORECASE)
_OTHER_ECG = re.compile(r"^(v\d?|mcl\d?|ecg.*|mv\d)$", re.IGNORECASE)
_BEATS = frozenset("NLRBAaJSVrFejnE/fQ?")
_PERSON_FIELDS = {
    "age_years": re.compile(r"\bage>?\s*[:=]\s*([^\s<,;]+)", re.IGNORECASE),
    "sex": re.compile(r"\b(?:sex|gender)>?\s*[:=]\s*([A-Za-z?]+)", re.IGNORECASE),
    "height_cm": re.compile(r"\bheight[^:=\n]{0,8}[:=]\s*([\d.]+)", re.IGNORECASE),
    "weight_kg": re.compile(r"\bweight[^:=\n]{0,8}[:=]\s*([\d.]+)", re.IGNORECASE),
}
_SUBJECT_FOLDER = re.compile(r"(?:patient|subject|[ps])[-_]?\d{3,}", re.IGNORECASE)
_ACTIVITY = re.compile(r"<activity>:\s*(\w+)")
# MIT-BIH writes age, sex and codes without names: `69 M 1085 1629 x1`.
_MIT_BIH = re.compile(r"^\s*(\d{1,3})\s+([MF])\s+\d", re.MULTILINE)
_PERSON_ID = re.compile(r"^\s*person\s*[:=]\s*(\S+)\s*$", re.IGNORECASE | re.MULTILINE)
_SYNTHETIC = re.compile(r"\bSYNTHETIC\b")


def inner_headers(headers: Sequence[Path]) -> set[Path]:
    """Give the headers that belong to a multi-segment record, layouts included: they are read through it."""
    inner: set[Path] = set()
    for header in headers:
        lines = _lines(header)
        if lines and "/" in lines[0].split()[0]:
            inner |= {header.parent / f"{line.split()[0]}.hea" for line in lines[1:] if line.split()}
    return inner


def named_files(header: Path) -> list[Path]:
    """Give the files that a header needs beside itself, there or not: annotations, then signal files or segments."""
    lines = _lines(header)
    multiple = bool(lines) and "/" in lines[0].split()[0]
    names = dict.fromkeys(line.split()[0] for line in lines[1:])
    paths = [header.parent / (f"{name}.hea" if multiple else name) for name in names if name != "~"]
    # A name with a folder in it is refused when the header is read.
    beside = [path for path in paths if path.parent == header.parent and path != header]
    return [header.with_suffix(".atr"), *beside]


def files_of(header: Path) -> list[Path]:
    """Give header, annotations, signal and segment files of a record: those that exist, in the order of the header."""
    found = [header]
    for path in named_files(header):
        if path.is_file():
            found += files_of(path) if path.suffix == ".hea" else [path]
    return found


def read(path: Path, name: str, source: str, skipped: list[RecordError]) -> Iterator[Recording]:
    """Read a record, a recording a segment.

    Parameters
    ----------
    path : Path
        The header.
    name : str
        Name of the record in the archive.
    source : str
        Institution family.
    skipped : list of RecordError
        Gets an entry for each segment that could not be read while others could.

    Raises
    ------
    RecordError
        When nothing of the record can be read, with a reason code.
    """
    lines = _checked_lines(path)
    comments = "\n".join(_comments(path))
    person, demographics = _person(path, name, comments), _demographics(comments)
    if "/" not in lines[0].split()[0]:
        yield _recording(path, name, source, person, demographics, comments)
        return
    errors: list[RecordError] = []
    readable = 0
    for segment in _segments(lines):
        try:
            inner = path.parent / f"{segment}.hea"
            if not inner.exists():
                raise RecordError(f"segment {segment} of {path.name} is not there: fetch it", "missing_segment")
            yield _recording(inner, f"{name}/{segment}", source, person, demographics, comments)
            readable += 1
        except RecordError as error:
            errors.append(error)
    if not readable:
        raise errors[0] if errors else RecordError(f"{path.name} has no segment with signals", "no_segments")
    skipped += errors


def _segments(lines: Sequence[str]) -> Iterator[str]:
    """Give the segments of a multi-segment header that hold signals: neither gaps (`~`) nor a layout (length 0)."""
    for line in lines[1:]:
        segment, *rest = line.split()
        # One sample is how MIMIC marks a change of setup.
        if segment != "~" and rest and _integer(rest[0]) > 1:
            yield segment


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _comments(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8", errors="replace")
    return [line.lstrip()[1:] for line in text.splitlines() if line.lstrip().startswith("#")]


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0


def _rate(fields: Sequence[str]) -> float:
    if len(fields) < 3:
        raise RecordError("the header has no sampling rate: add it to the record line", "rate")
    try:
        rate = float(re.split(r"[/(]", fields[2])[0])
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and 1.0 <= rate <= 100_000.0):
        raise RecordError(f"the header gives a rate of {fields[2]} Hz: correct the record line", "rate")
    return rate


def _checked_lines(path: Path) -> list[str]:
    """Read the header and refuse what wfdb would take silently or choke on."""
    lines = _lines(path)
    if not lines:
        raise RecordError(f"{path.name} is empty or missing: fetch it again", "header")
    fields = lines[0].split()
    if len(fields) < 2:
        raise RecordError(f"{path.name} has no number of signals: fetch it again", "header")
    multiple = "/" in fields[0]
    count = _integer(fields[0].split("/")[1]) if multiple else _integer(fields[1])
    if not 1 <= count <= (100_000 if multiple else MAX_SIGNALS):
        raise RecordError(
            f"{path.name} claims {count} {'segments' if multiple else 'signals'}: correct the header",
            "header",
        )
    _rate(fields)
    if len(fields) > 3 and _integer(fields[3]) > MAX_SAMPLES:
        raise RecordError(f"{path.name} claims {fields[3]} samples: correct the header", "header")
    if len(lines) < count + 1:
        raise RecordError(f"{path.name} lists {len(lines) - 1} of {count} lines: fetch it again", "header")
    for line in lines[1 : count + 1]:
        if "/" in line.split()[0] or "\\" in line.split()[0] or "\0" in line:
            raise RecordError(f"{path.name} names a file outside its folder: correct the header", "header")
    return lines[: count + 1]


@dataclass(frozen=True)
class _Channel:
    """A signal line of a header: which column, its name, its gain as written (nan when there is none)."""

    index: int
    name: str
    gain: float


def _channels(lines: Sequence[str]) -> list[_Channel]:
    """Give the ECG and PPG channels of a header: only they are read."""
    found = []
    for index, line in enumerate(lines[1:]):
        fields = line.split(maxsplit=8)
        name = fields[8].strip() if len(fields) > 8 else ""
        if not (_PPG.match(name) or canonical_lead(name) or _OTHER_ECG.match(name)):
            continue
        try:
            gain = float(re.split(r"[(/]", fields[2])[0])
        except ValueError:
            gain = math.nan
        found.append(_Channel(index, name, gain))
    return found


def _recording(path: Path, name: str, source: str, person: str, demographics: Demographics, comments: str) -> Recording:
    lines = _checked_lines(path)
    channels = _channels(lines)
    if not channels:
        raise RecordError(f"{path.name} has neither an ECG nor a PPG (a signal named PLETH or PPG)", "no_signal")
    record = _load(path, channels)
    signals = tuple(_signals(record, channels))
    if not signals:
        raise RecordError(f"{path.name} has no sample of an ECG or a PPG: all are missing", "no_signal")
    return Recording(
        record=name,
        source=source,
        person=person,
        signals=signals,
        demographics=demographics,
        r_peaks_s=_r_peaks(path),
        simulated=bool(_SYNTHETIC.search(comments)),
        provenance={"format": "wfdb"},
    )


def _load(path: Path, channels: Sequence[_Channel]) -> Any:
    """Read the channels by wfdb, each at its own rate; and refuse what is shorter than the header says."""
    import wfdb as library

    try:
        record = library.rdrecord(
            str(path.with_suffix("")), channels=[c.index for c in channels], smooth_frames=False, physical=True
        )
    except FileNotFoundError as error:
        raise RecordError(f"{path.name} names a signal file that is not there: fetch it", "missing_file") from error
    except Exception as error:  # wfdb raises every kind of error on odd input
        raise RecordError(
            f"{path.name} cannot be read ({type(error).__name__}): fetch it again", "unreadable"
        ) from error
    for samples, per_frame in zip(record.e_p_signal, record.samps_per_frame, strict=True):
        if record.sig_len and len(samples) != record.sig_len * (per_frame or 1):
            raise RecordError(f"a signal file of {path.name} is cut short: fetch it again", "truncated")
    return record


def _signals(record: Any, channels: Sequence[_Channel]) -> Iterator[Signal]:
    for place, channel in enumerate(channels):
        samples = np.asarray(record.e_p_signal[place], dtype=np.float32)
        if samples.size < 2 or not np.isfinite(samples).any():
            continue
        fs_hz = float(record.fs) * int(record.samps_per_frame[place] or 1)
        unit = str(record.units[place] or "")
        if _PPG.match(channel.name):
            yield Signal(channel.name, SignalKind.PPG, samples, fs_hz, unit)
            continue
        factor = _TO_MILLIVOLT.get(unit.lower())
        # A gain of 0 or none means "uncalibrated" (WFDB header specification): no millivolt can be made of it.
        if factor is None or not math.isfinite(channel.gain) or channel.gain == 0:
            factor, unit = 1.0, "unknown"
        else:
            unit = "mV"
        scaled = samples * np.float32(factor)
        yield Signal(channel.name, SignalKind.ECG, scaled, fs_hz, unit, 0.0, canonical_lead(channel.name))


def _r_peaks(path: Path) -> NDArray[np.float64] | None:
    """Read the beats of an `.atr` file next to the header."""
    import wfdb as library

    if not path.with_suffix(".atr").exists():
        return None
    try:
        found = library.rdann(str(path.with_suffix("")), "atr")
    except Exception:  # noqa: BLE001 - a broken annotation must not cost the recording
        return None
    beats = [sample for sample, symbol in zip(found.sample, found.symbol, strict=True) if symbol in _BEATS]
    if not beats or not found.fs:
        return None
    return np.asarray(beats, np.float64) / float(found.fs)


def _person(path: Path, name: str, comments: str) -> str:
    """Name the person, so that two records of one person get one name.

    A `person:` comment; else the folder that names a subject (`p10014354`, `patient001`, `s25047`), the deepest; else
    what the record name begins with, a folder's name (MIMIC-III) or what comes before the activity (PTT-PPG);
    else the record name.
    """
    if stated := _PERSON_ID.search(comments):
        return stated.group(1)
    folders = [part for part in name.split("/")[:-1] if _SUBJECT_FOLDER.fullmatch(part)]
    if folders:
        return folders[-1]
    if path.parent.name and path.stem.startswith(path.parent.name):
        return path.parent.name
    if activity := _ACTIVITY.search(comments):
        return path.stem.removesuffix(f"_{activity.group(1)}")
    return path.stem


def _demographics(comments: str) -> Demographics:
    values: dict[str, Any] = {}
    if unnamed := _MIT_BIH.search(comments):
        values = {"age_years": parse_number(unnamed.group(1), "age_years"), "sex": parse_sex(unnamed.group(2))}
    for field, pattern in _PERSON_FIELDS.items():
        if found := pattern.search(comments):
            values[field] = _sex(found.group(1)) if field == "sex" else parse_number(found.group(1), field)
    return Demographics(**values)


def _sex(text: str) -> Sex | None:
    try:
        return parse_sex(text)
    except InputError:
        return None
