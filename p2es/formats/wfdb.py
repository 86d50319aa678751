"""WFDB records (PhysioNet): single and multi-segment, several rates in one record, FLAC, MATLAB.

wfdb 4.3.1 accepts wrong headers silently (a rate of nan loads as 250 Hz, a gain of 0 loads, a billion signals is a
MemoryError), so the header is checked here first. A multi-segment record is read segment by segment: leads, order and
gains may change between segments, and no window crosses one.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2es.demographics import Demographics, parse_number, parse_sex
from p2es.errors import InputError, RecordError
from p2es.leads import canonical_lead
from p2es.recording import Recording, Signal, SignalKind

MAX_SIGNALS = 512
MAX_SAMPLES = 10**10
_TO_MILLIVOLT = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "v": 1e3, "nv": 1e-6}
_PPG = re.compile(r"^(pleth|ppg)", re.IGNORECASE)
_OTHER_ECG = re.compile(r"^(v\d?|mcl\d?|ecg.*|mv\d)$", re.IGNORECASE)
_BEATS = frozenset("NLRBAaJSVrFejnE/fQ?")
_PERSON_FIELDS = {
    "age_years": re.compile(r"\bage>?\s*[:=]\s*([^\s<,;]+)", re.IGNORECASE),
    "sex": re.compile(r"\b(?:sex|gender)>?\s*[:=]\s*([A-Za-z?]+)", re.IGNORECASE),
    "height_cm": re.compile(r"\bheight[^:=\n]{0,8}[:=]\s*([\d.]+)", re.IGNORECASE),
    "weight_kg": re.compile(r"\bweight[^:=\n]{0,8}[:=]\s*([\d.]+)", re.IGNORECASE),
}
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


def files_of(header: Path) -> list[Path]:
    """Give header, signal and segment files of a record, those that exist, in the order of the header."""
    found = [header]
    lines = _lines(header)
    multiple = bool(lines) and "/" in lines[0].split()[0]
    for line in lines[1:]:
        name = line.split()[0] if line.split() else "~"
        path = header.parent / (f"{name}.hea" if multiple else name)
        if name != "~" and path.is_file() and path not in found:
            found += files_of(path) if multiple else [path]
    return found


def read(path: Path, name: str, source: str) -> Iterator[Recording]:
    """Read a record, a recording a segment.

    Parameters
    ----------
    path : Path
        The header.
    name : str
        Name of the record in the archive.
    source : str
        Institution family.

    Raises
    ------
    RecordError
        When header or signals cannot be read, with a reason code.
    """
    lines = _checked_lines(path)
    fs_hz = _rate(lines[0].split())
    comments = "\n".join(_comments(path))
    person, demographics = _person(path, comments), _demographics(comments)
    if "/" not in lines[0].split()[0]:
        yield _recording(path, name, source, person, demographics, comments)
        return
    start, readable, errors = 0, 0, []
    for line in lines[1:]:
        segment, length = line.split()[0], _integer(line.split()[1] if len(line.split()) > 1 else "")
        inner = path.parent / f"{segment}.hea"
        if segment != "~" and length > 1 and inner.exists():
            try:
                yield _recording(inner, f"{name}/{segment}", source, person, demographics, comments)
                readable += 1
            except RecordError as error:
                errors.append(error)
        start += length
    if errors and not readable:
        raise errors[0]
    if not readable:
        raise RecordError(
            f"{path.name} has no segment with signals at {fs_hz:g} Hz: fetch its segment files", "no_segments"
        )


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


def _gains(lines: Sequence[str]) -> list[float]:
    """Give each signal's gain as written; nan when the header has none."""
    gains = []
    for line in lines[1:]:
        fields = line.split()
        text = re.split(r"[(/]", fields[2])[0] if len(fields) > 2 else ""
        try:
            gains.append(float(text))
        except ValueError:
            gains.append(math.nan)
    return gains


def _recording(path: Path, name: str, source: str, person: str, demographics: Demographics, comments: str) -> Recording:
    import wfdb as library

    lines = _checked_lines(path)
    for file in files_of(path):
        if file.stat().st_size == 0:
            raise RecordError(f"{file.name} is empty: fetch it again", "truncated")
    try:
        record = library.rdrecord(str(path.with_suffix("")), smooth_frames=False, physical=True)
    except FileNotFoundError as error:
        raise RecordError(f"{path.name} names a signal file that is not there: fetch it", "missing_file") from error
    except Exception as error:  # wfdb raises every kind of error on odd input
        raise RecordError(
            f"{path.name} cannot be read ({type(error).__name__}): fetch it again", "unreadable"
        ) from error
    signals = tuple(_signals(record, _gains(lines)))
    if not signals:
        raise RecordError(f"{path.name} has neither an ECG nor a PPG (a signal named PLETH or PPG)", "no_signal")
    return Recording(
        record=name,
        source=source,
        person=person,
        signals=signals,
        demographics=demographics,
        r_peaks_s=_r_peaks(path, library),
        simulated=bool(_SYNTHETIC.search(comments)),
        provenance={"format": "wfdb"},
    )


def _signals(record: Any, gains: Sequence[float]) -> Iterator[Signal]:
    names = record.sig_name or []
    for index, name in enumerate(names):
        name = str(name or "")
        lead = canonical_lead(name)
        is_ppg = bool(_PPG.match(name.strip()))
        if not (is_ppg or lead or _OTHER_ECG.match(name.strip())):
            continue
        samples = np.asarray(record.e_p_signal[index], dtype=np.float32)
        if samples.size < 2 or not np.isfinite(samples).any():
            continue
        fs_hz = float(record.fs) * int(record.samps_per_frame[index] or 1)
        unit = str((record.units or [""])[index] or "")
        kind = SignalKind.PPG if is_ppg else SignalKind.ECG
        # A gain of 0 or none means "uncalibrated" (WFDB header specification): no millivolt can be made of it.
        known = not is_ppg and unit.lower() in _TO_MILLIVOLT and math.isfinite(gains[index]) and gains[index] != 0
        if known:
            samples, unit = samples * np.float32(_TO_MILLIVOLT[unit.lower()]), "mV"
        elif not is_ppg:
            unit = "unknown"
        yield Signal(name, kind, samples, fs_hz, unit, 0.0, lead)


def _r_peaks(path: Path, library: Any) -> NDArray[np.float64] | None:
    """Read the beats of an `.atr` file next to the header."""
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


def _person(path: Path, comments: str) -> str:
    """Name the person: a `person:` comment, the folder when the record is named after it (MIMIC), or the record."""
    stated = _PERSON_ID.search(comments)
    if stated:
        return stated.group(1)
    return path.parent.name if path.stem.startswith(path.parent.name) and path.parent.name else path.stem


def _demographics(comments: str) -> Demographics:
    values: dict[str, Any] = {}
    for field, pattern in _PERSON_FIELDS.items():
        found = pattern.search(comments)
        if found is None:
            continue
        if field == "sex":
            try:
                values[field] = parse_sex(found.group(1))
            except InputError:
                values[field] = None
        else:
            values[field] = parse_number(found.group(1), field)
    return Demographics(**values)
