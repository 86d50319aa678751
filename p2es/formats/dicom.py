"""DICOM waveforms: the ECG and PPG channels of 12-lead, general, ambulatory, hemodynamic and pulse objects.

pydicom reads the elements that are needed and nothing else of the person. What it hands on is checked here: it gives a
waveform whatever its numbers say, and applies them channel by channel in order, while a lead is what its code says.

Source: DICOM PS3.3 C.10.9 (waveform module), PS3.16 CID 3001 (ECG leads).
"""

import io
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from p2es.demographics import Demographics, parse_number
from p2es.errors import RecordError
from p2es.formats.naming import kind_of, lead_of, to_millivolt
from p2es.formats.subject import age_at, day_of, person_of, sex_of
from p2es.recording import LazySamples, Recording, Signal, SignalKind

if TYPE_CHECKING:
    from pydicom import Dataset

# pydicom holds a waveform twice while it reads it: 253 MB for a day of three channels at 250 Hz, a file of 130 MB.
# From then on it is there once, as it is stored.
MAX_BYTES = 256 << 20
MAX_GROUPS = 1000
MAX_CHANNELS = 512
# Derived groups are median beats, unless nothing else is there and they are as long as a rhythm strip.
_SHORTEST_RHYTHM_S = 5.0
_TAGS = (
    "AcquisitionDateTime ContentDate PatientAge PatientBirthDate PatientID PatientSex PatientSize PatientWeight "
    "StudyDate WaveformSequence"
)
_SYNTAXES = {"1.2.840.10008.1.2": "<", "1.2.840.10008.1.2.1": "<", "1.2.840.10008.1.2.2": ">"}
_TYPES = {(8, "SB"): "i1", (8, "UB"): "u1", (16, "SS"): "i2", (16, "US"): "u2", (32, "SL"): "i4", (32, "UL"): "u4"}
# The numbers are the same in SCP-ECG (5.6.3-9-1) and MDC (2:1).
_LEADS = {1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF", **{k + 2: f"V{k}" for k in range(1, 7)}}
_CODE = re.compile(r"(?:5\.6\.3-9-|2:)(\d{1,3})", re.ASCII)
_PULSE_CODES = frozenset({"150452", "2:19380"})


@dataclass(frozen=True)
class _Channel:
    """A channel: what it measures, and what one step of it is worth."""

    name: str
    kind: SignalKind
    lead: str | None
    unit: str
    step: float
    baseline: float
    column: int
    start_s: float


@dataclass(frozen=True)
class _Group:
    """A multiplex group: samples (time, channel) as they are stored, and its channels that are an ECG or a PPG."""

    offset_ms: float | None
    original: bool
    fs_hz: float
    data: NDArray[np.integer]
    padding: int | None
    channels: tuple[_Channel, ...]

    @property
    def duration_s(self) -> float:
        return len(self.data) / self.fs_hz


class _Clamped(io.BufferedReader):
    """A file that is never asked for more than it has: a length of 4 GiB in a header would be allocated first."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read so many bytes, or what is left."""
        if size is not None and size > 1 << 20:
            size = max(min(size, os.fstat(self.fileno()).st_size - self.tell()), 0)
        return super().read(size)


def is_mine(head: bytes) -> bool:
    """Tell by the beginning of a file whether it is DICOM, which has its name behind a preamble of 128 bytes."""
    return head[128:132] == b"DICM"


def read(path: Path, name: str, source: str, skipped: list[RecordError]) -> Iterator[Recording]:
    """Read a file: a recording a multiplex group; groups that begin together with different signals are one.

    Parameters
    ----------
    path : Path
    name : str
        Name of the record in the archive; where there are several recordings, `name/part-1` and so on.
    source : str
        Institution family.
    skipped : list of RecordError
        Gets an entry for each group and each channel that cannot be read while others can.

    Raises
    ------
    RecordError
        When nothing of it can be read: `header`, `unreadable`, `truncated`, `compressed`, `no_signal`, `rate`,
        `too_large`, `missing_file`.
    """
    errors: list[RecordError] = []
    dataset, order = _dataset(path)
    with _quietly(path.name):
        groups = _groups(dataset, order, path.name, errors)
        person = person_of(str(dataset.get("PatientID") or ""), path.stem)
        demographics = _demographics(dataset)
    if not groups:
        raise errors[0] if errors else RecordError(f"{path.name} has neither an ECG nor a PPG", "no_signal")
    skipped += errors
    together = _together(groups)
    for number, parts in enumerate(together, 1):
        first_s = min(channel.start_s for group in parts for channel in group.channels)
        signals = tuple(_signal(group, channel, first_s) for group in parts for channel in group.channels)
        label = name if len(together) == 1 else f"{name}/part-{number}"
        yield Recording(label, source, person, signals, demographics, provenance={"format": "dicom"})


class _quietly:  # noqa: N801 - a context manager, named as one reads it
    """Turn whatever pydicom raises into a typed error; its warnings would print values, names among them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> None:
        self._warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *rest: object) -> None:
        self._warnings.__exit__(None, None, None)
        if isinstance(error, Exception) and not isinstance(error, RecordError):
            raise RecordError(
                f"{self._name} is cut, or no true DICOM ({type(error).__name__}): fetch it again", "unreadable"
            ) from error


def _dataset(path: Path) -> tuple["Dataset", str]:
    """Read the elements that are needed; also give the byte order."""
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info

    try:
        with path.open("rb", buffering=0) as raw, _Clamped(raw) as file:
            if file.seek(0, 2) > MAX_BYTES:
                raise RecordError(f"{path.name} is over {MAX_BYTES >> 20} MiB: cut it", "too_large")
            file.seek(0)
            if not is_mine(file.read(132)):
                raise RecordError(f"{path.name} has no DICOM header: fetch it again", "header")
            with _quietly(path.name):
                syntax = str(read_file_meta_info(path).get("TransferSyntaxUID") or "")
                if not syntax:
                    raise RecordError(f"{path.name} does not state its transfer syntax: fetch it again", "header")
                if syntax not in _SYNTAXES:
                    # Deflated data sets unpack without a bound, and nothing else compresses a waveform.
                    raise RecordError(f"{path.name} has a transfer syntax that is not plain: convert it", "compressed")
                file.seek(0)
                tags: list[Any] = _TAGS.split()
                return dcmread(file, stop_before_pixels=True, specific_tags=tags), _SYNTAXES[syntax]
    except OSError as error:
        raise RecordError(f"{path.name} cannot be opened ({error.strerror}): fetch it", "missing_file") from error


def _groups(dataset: "Dataset", order: str, name: str, errors: list[RecordError]) -> list[_Group]:
    """Read the groups with an ECG or a PPG; those that are derived only when nothing else is there."""
    items = dataset.get("WaveformSequence")
    if not items:
        raise RecordError(f"{name} holds no waveform, or ends before it", "no_signal")
    if len(items) > MAX_GROUPS:
        raise RecordError(f"{name} has {len(items)} multiplex groups: it is no recording", "header")
    groups = []
    for item in items:
        try:
            if (group := _group(item, order, name, errors)) is not None:
                groups.append(group)
        except RecordError as error:
            errors.append(error)
    original = [group for group in groups if group.original]
    return original or [group for group in groups if group.duration_s >= _SHORTEST_RHYTHM_S]


def _group(item: "Dataset", order: str, name: str, errors: list[RecordError]) -> _Group | None:
    """Read a group; None when it has nothing to keep."""
    fs_hz = _number(item, "SamplingFrequency")
    if not 1.0 <= fs_hz <= 100_000.0:
        raise RecordError(f"{name} has a waveform without a true rate", "rate")
    definitions = item.get("ChannelDefinitionSequence") or []
    count, length = (int(_number(item, f"NumberOfWaveform{what}", 0)) for what in ("Channels", "Samples"))
    if not 0 < count <= MAX_CHANNELS or count != len(definitions):
        raise RecordError(f"{name} defines {len(definitions)} of {count} channels: correct it", "header")
    channels = [_channel(definition, column, fs_hz, name, errors) for column, definition in enumerate(definitions)]
    kept = tuple(channel for channel in channels if channel is not None)
    if not kept:
        return None
    bits, form = int(_number(item, "WaveformBitsAllocated", 0)), str(item.get("WaveformSampleInterpretation"))
    if (bits, form) not in _TYPES:
        raise RecordError(f"{name} has samples in a form that is no plain integer: convert it", "header")
    kind = np.dtype(order + _TYPES[bits, form])
    raw = item.get("WaveformData") or b""
    whole = min(len(raw) // (count * kind.itemsize), length)
    if whole < length:
        errors.append(RecordError(f"{name} is cut: {whole} of {length} samples are there; fetch it again", "truncated"))
    elif len(raw) > length * count * kind.itemsize + 1:
        errors.append(RecordError(f"{name} has more samples than it says: only those are read; correct it", "header"))
    if whole < 2:
        return None
    data = np.frombuffer(raw, kind, whole * count).reshape(whole, count)
    offset = _number(item, "MultiplexGroupTimeOffset")
    original = str(item.get("WaveformOriginality") or "ORIGINAL") == "ORIGINAL"
    return _Group(None if math.isnan(offset) else offset, original, fs_hz, data, _padding(item, kind), kept)


def _padding(item: "Dataset", kind: np.dtype[Any]) -> int | None:
    """Give the value that stands for no sample."""
    value = item.get("WaveformPaddingValue")
    if isinstance(value, bytes):
        return int(np.frombuffer(value, kind, 1)[0]) if len(value) >= kind.itemsize else None
    return value if isinstance(value, int) else None


def _channel(definition: "Dataset", column: int, fs_hz: float, name: str, errors: list[RecordError]) -> _Channel | None:
    """Read what a channel is; None when it is neither an ECG nor a PPG, or has no scale, which is told."""
    sources = definition.get("ChannelSourceSequence") or []
    code, meaning = _coded(sources[0]) if sources else ("", "")
    units = definition.get("ChannelSensitivityUnitsSequence") or []
    unit = _coded(units[0])[0] if units else ""
    label = str(definition.get("ChannelLabel") or "")[:64]
    kind, lead = _meaning(code, meaning or label, unit)
    if kind is None:
        return None
    said = lead_of(meaning)
    if lead is not None and said is not None and said != lead:
        errors.append(RecordError(f"{name} calls channel {column + 1} both {lead} and {said}: no lead", "header"))
        lead = None
    unit, step, baseline = _scale(definition, kind, unit)
    skew_s = _number(definition, "ChannelTimeSkew", 0.0) + _number(definition, "ChannelSampleSkew", 0.0) / fs_hz
    start_s = skew_s + _number(definition, "ChannelOffset", 0.0)
    if not (1e-12 <= abs(step) <= 1e12 and abs(baseline) <= 1e12 and abs(start_s) <= 1e6):
        errors.append(RecordError(f"{name} has no true scale or time for channel {column + 1}: correct it", "header"))
        return None
    return _Channel(meaning or label or code, kind, lead, unit, step, baseline, column, start_s)


def _scale(definition: "Dataset", kind: SignalKind, unit: str) -> tuple[str, float, float]:
    """Give the unit of a channel, and what a step and the baseline are in it."""
    sensitivity = _number(definition, "ChannelSensitivity")
    correction = _number(definition, "ChannelSensitivityCorrectionFactor", 1.0)
    if math.isnan(sensitivity):
        # Without a sensitivity the samples are in no unit.
        return ("unknown" if kind is SignalKind.ECG else unit), 1.0, 0.0
    factor = to_millivolt(unit) if kind is SignalKind.ECG else None
    if kind is SignalKind.ECG:
        unit = "unknown" if factor is None else "mV"
    scale = factor or 1.0
    return unit, sensitivity * correction * scale, _number(definition, "ChannelBaseline", 0.0) * scale


def _meaning(code: str, meaning: str, unit: str) -> tuple[SignalKind | None, str | None]:
    """Tell what a channel is: by its code where that is one of a lead, else by its name."""
    if found := _CODE.fullmatch(code):
        return SignalKind.ECG, _LEADS.get(int(found.group(1)))
    if code in _PULSE_CODES:
        return SignalKind.PPG, None
    kind = kind_of(meaning, unit)
    return kind, lead_of(meaning) if kind is SignalKind.ECG else None


def _coded(item: "Dataset") -> tuple[str, str]:
    """Give value and meaning of a code."""
    return str(item.get("CodeValue") or "").strip()[:64], str(item.get("CodeMeaning") or "").strip()[:64]


def _number(item: "Dataset", keyword: str, otherwise: float = math.nan) -> float:
    value = item.get(keyword)
    return otherwise if value is None or value == "" else float(value)


def _together(groups: Sequence[_Group]) -> list[list[_Group]]:
    """Put groups that begin together and have different signals into one recording."""
    result: list[list[_Group]] = []
    for group in groups:
        names = {channel.name for channel in group.channels}
        for parts in result:
            there = {channel.name for part in parts for channel in part.channels}
            if group.offset_ms is not None and group.offset_ms == parts[0].offset_ms and not names & there:
                parts.append(group)
                break
        else:
            result.append([group])
    return result


def _signal(group: _Group, channel: _Channel, first_s: float) -> Signal:
    stored = group.data[:, channel.column]

    def load(start: int, stop: int) -> NDArray[np.floating]:
        steps = stored[start:stop]
        values = (steps * np.float64(channel.step) + channel.baseline).astype(np.float32)
        if group.padding is not None:
            values[steps == group.padding] = np.nan
        return values

    samples, start_s = LazySamples(len(stored), load), channel.start_s - first_s
    return Signal(
        channel.name, channel.kind, samples, group.fs_hz, channel.unit, start_s, channel.lead, 1 / channel.step
    )


def _demographics(dataset: "Dataset") -> Demographics:
    """Give sex, age, height and weight; the dates behind the age are dropped."""
    stated = re.fullmatch(r"(\d{3})([DWMY])", str(dataset.get("PatientAge") or "").strip(), re.ASCII)
    age = None
    if stated:
        years = int(stated.group(1)) / {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}[stated.group(2)]
        age = parse_number(f"{years:g}", "age_years")
    for day in ("AcquisitionDateTime", "ContentDate", "StudyDate"):
        if age is None:
            age = age_at(day_of(str(dataset.get("PatientBirthDate") or "")), day_of(str(dataset.get(day) or "")))
    size = _number(dataset, "PatientSize")
    # Metres by the standard; some devices write centimetres.
    height = parse_number(f"{size * 100 if size < 3 else size:g}", "height_cm")
    weight = parse_number(f"{_number(dataset, 'PatientWeight'):g}", "weight_kg")
    return Demographics(age, sex_of(str(dataset.get("PatientSex") or "")), height, weight)
