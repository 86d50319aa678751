"""MATLAB files of a declared layout (`mapping`), of version 5 (`matlab5`) and, lazily, of version 7.3 (`matlab73`).

A WFDB `.mat` (version 4) is the signal file of its header and read through it, never on its own.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from p2es.errors import RecordError
from p2es.formats.clock import Stretch, stretches
from p2es.formats.mapping import Column, Layout, layout_of
from p2es.formats.matlab5 import MatlabFile, Version5
from p2es.formats.matlab73 import Version73
from p2es.formats.table import converted, demographics_from, signal_of
from p2es.recording import LazySamples, Recording, Samples

_PATH = re.compile(r"([A-Za-z]\w*(?:\.[A-Za-z]\w*)*)(?:\[(?:(:),)?(\d+)\])?")
_HDF5 = b"\x89HDF\r\n\x1a\n"


def version_of(head: bytes) -> str:
    """Tell the version of a MATLAB file by its beginning: "4" (WFDB), "5", "7.3", or "" for none."""
    if head.startswith(b"MATLAB 5.0 MAT-file") and len(head) >= 128 and head[126:128] in (b"IM", b"MI"):
        return "5"
    if head[512:520] == _HDF5 and head.startswith(b"MATLAB 7.3 MAT-file"):
        return "7.3"
    if len(head) >= 24:
        kind, rows, columns, imaginary, length = struct.unpack("<5i", head[:20])
        if 0 <= kind <= 52 and rows > 0 and columns > 0 and imaginary == 0 and head[20 : 20 + length] == b"val\0":
            return "4"
    return ""


def read(
    path: Path, name: str, source: str, skipped: list[RecordError], mappings: tuple[Layout, ...] = ()
) -> Iterator[Recording]:
    """Read a MATLAB file of a declared layout, a recording an element and a stretch without a gap in time.

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
    file = _opened(path)
    layout = layout_of("mat", path.name, lambda layout: all(map(file.has, layout.match.variables)), mappings)
    if layout is None:
        raise RecordError(f"{path.name} has no layout that p2es knows: declare one with --ingest.mapping", "layout")
    elements = range(file.elements(layout.each)) if layout.each else [None]
    found = 0
    errors: list[RecordError] = []
    for element in elements:
        try:
            for recording in _element(file, layout, path.name, element, errors):
                part = "" if element is None else f"/{element + 1}"
                found += 1
                yield replace(recording, record=f"{name}{part}{recording.record}", source=source)
        except RecordError as error:
            errors.append(error)
    if not found:
        raise errors[0] if errors else RecordError(f"{path.name} is empty: fetch it again", "no_signal")
    skipped += errors


def _element(
    file: MatlabFile, layout: Layout, name: str, element: int | None, errors: list[RecordError]
) -> Iterator[Recording]:
    """Read the recordings of a file, or of one element of its structure array; their `record` is what is added."""
    _check_labels(file, layout, name)
    columns = [(c, _samples(file, str(c.at), element), c.fs_at) for c in layout.signals if file.has(_base(str(c.at)))]
    if not columns:
        raise RecordError(f"{name} has none of the signals of its layout: correct it", "no_signal")
    values = {
        key: file.text(str(value.at), element)
        for key, value in layout.demographics.items()
        if file.has(_base(str(value.at)))
    }
    demographics = demographics_from(layout.demographics, values, name, errors)
    person = file.text(str(layout.person_at), element).strip() if layout.person_at is not None else ""
    cuts = _stretches(file, layout, name, element, columns[0][1].size)
    left = len(cuts)
    for k, cut in enumerate(cuts, 1):
        signals = [_cut(c, s, cut, _own_rate(file, fs_at, name) if fs_at else cut.fs_hz) for c, s, fs_at in columns]
        signals = [signal for signal in signals if _any(signal.samples)]
        if not signals:
            left -= 1
            continue
        yield Recording(
            record="" if len(cuts) == 1 else f"/part-{k}",
            source="",
            person=person or layout.person_of(name),
            signals=tuple(signals),
            demographics=demographics,
            provenance={"format": "matlab", "layout": layout.name},
        )
    if not left:
        raise RecordError(f"{name} has no sample of an ECG or a PPG: all are missing", "no_signal")


def _base(path: str) -> str:
    found = _PATH.fullmatch(path)
    return found.group(1) if found else path


def _samples(file: MatlabFile, path: str, element: int | None) -> Samples:
    """Give what a path names: a row, a column, or a vector lying either way."""
    found = _PATH.fullmatch(path)
    if found is None:
        raise RecordError(f"the layout's {path} is no path: write it as ECG.data[0] or signal[:,0]", "layout")
    matrix = file.matrix(found.group(1), element)
    if found.group(3) is None:
        if min(matrix.shape) != 1:
            raise RecordError(f"{path} has {matrix.shape[0]} x {matrix.shape[1]} numbers: say which row", "layout")
        return matrix.along(0 if matrix.shape[0] == 1 else 1, 0, path)
    return matrix.along(1 if found.group(2) else 0, int(found.group(3)), path)


def _check_labels(file: MatlabFile, layout: Layout, name: str) -> None:
    """Compare the columns' names, where the file carries them, with the layout's."""
    if not layout.labels_at or not file.has(layout.labels_at):
        return
    labels = file.texts(layout.labels_at)
    for column in layout.signals:
        found = _PATH.fullmatch(str(column.at))
        if (
            found
            and found.group(3)
            and (int(found.group(3)) >= len(labels) or labels[int(found.group(3))] != column.name)
        ):
            raise RecordError(f"{name} names its columns otherwise than its layout: declare one for it", "layout")


def _stretches(file: MatlabFile, layout: Layout, name: str, element: int | None, size: int) -> list[Stretch]:
    if layout.time is not None:
        samples, unit_s = _samples(file, str(layout.time.at), element), layout.time.unit_s
        if samples.size != size:
            raise RecordError(f"{name} has {samples.size} times for {size} samples: fetch it again", "layout")
        time_s = LazySamples(samples.size, lambda start, stop: np.asarray(samples[start:stop], np.float64) * unit_s)
        found = stretches(time_s, name)
        if any(cut.uneven for cut in found):
            raise RecordError(f"the times of {name} are uneven: the rate is unknown", "rate")
        return found
    if layout.rate is None:
        return [Stretch(0, size, 0.0, 1.0, uneven=False)]
    fs_hz = layout.rate.fs_hz or _own_rate(file, layout.rate.at, name)
    return [Stretch(0, size, 0.0, fs_hz, uneven=False)]


def _own_rate(file: MatlabFile, path: str, name: str) -> float:
    try:
        fs_hz = float(file.text(path, None)) if file.has(path) else float("nan")
    except ValueError:
        fs_hz = float("nan")
    if not 1.0 <= fs_hz <= 100_000.0:
        raise RecordError(f"{name} gives no rate at {path}: correct it", "rate")
    return fs_hz


def _cut(column: Column, samples: Samples, cut: Stretch, fs_hz: float) -> Any:
    start, stop = (0, samples.size) if column.fs_at else (cut.start, cut.stop)
    lazy = LazySamples(stop - start, lambda a, b: converted(np.array(samples[start + a : start + b]), column))
    return signal_of(column, lazy if lazy.size > 4_000_000 else lazy[:], fs_hz)


def _any(samples: Samples) -> bool:
    blocks = range(0, samples.size, 1_000_000)
    return any(bool(np.isfinite(samples[at : min(at + 1_000_000, samples.size)]).any()) for at in blocks)


def _opened(path: Path) -> MatlabFile:
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise RecordError(f"{path.name} cannot be opened ({type(error).__name__})", "unreadable") from error
    match version_of(head):
        case "5":
            return Version5(path)
        case "7.3":
            return Version73(path)
        case "4":
            text = f"{path.name} is the signal file of a WFDB record: fetch {path.stem}.hea, which names it"
            raise RecordError(text, "missing_file")
    raise RecordError(f"{path.name} is no MATLAB file of version 5 or 7.3: fetch it again", "unreadable")
