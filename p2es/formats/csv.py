"""CSV files, by a declared mapping of columns; the layouts of BIDMC and NCKU are built in.

Nothing in a CSV says unit or lead, so a file is read only when its layout is one that was declared.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2es.errors import RecordError
from p2es.leads import canonical_lead
from p2es.recording import Recording, Signal, SignalKind


@dataclass(frozen=True)
class Column:
    """One column: its number, what it is, its unit."""

    index: int
    name: str
    kind: SignalKind
    unit: str


@dataclass(frozen=True)
class CsvMapping:
    """A layout.

    Attributes
    ----------
    name : str
    header : tuple of str or None
        Column names, without blanks, that must be in the first line; None for a file without a header.
    width : int
        Number of columns.
    time_column : int
    time_unit_s : float
        Seconds of one unit of the time column: the rate is measured, never assumed.
    columns : tuple of Column
    person_from_name : bool
        Whether the file name begins with the person, up to the first underscore.
    """

    name: str
    header: tuple[str, ...] | None
    width: int
    time_column: int
    time_unit_s: float
    columns: tuple[Column, ...]
    person_from_name: bool = False


MAPPINGS = (
    # BIDMC (PhysioNet): rate only in the time column; `V` is an unknown precordial lead.
    CsvMapping(
        "bidmc", ("Time [s]", "PLETH", "II"), 6, 0, 1.0,
        (
            Column(2, "PLETH", SignalKind.PPG, "NU"),
            Column(3, "V", SignalKind.ECG, "mV"),
            Column(4, "AVR", SignalKind.ECG, "mV"),
            Column(5, "II", SignalKind.ECG, "mV"),
        ),
    ),
    # NCKU: frame, ticks of 125 us, PPG (12 bit), three ECG channels in ADC counts of unknown gain: PPG only.
    CsvMapping(
        "ncku", None, 6, 1, 125e-6,
        (
            Column(2, "PPG", SignalKind.PPG, "ADC"),
            Column(3, "ECG 1", SignalKind.ECG, "unknown"),
            Column(4, "ECG 2", SignalKind.ECG, "unknown"),
            Column(5, "ECG 3", SignalKind.ECG, "unknown"),
        ),
        person_from_name=True,
    ),
)  # fmt: skip


def mapping_of(path: Path) -> CsvMapping | None:
    """Find the layout of a file by its first two lines; None when it is not a declared one."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            first, second = file.readline(1000), file.readline(1000)
    except OSError:
        return None
    names = [field.strip() for field in first.split(",")]
    for mapping in MAPPINGS:
        if len(names) != mapping.width:
            continue
        if mapping.header is not None and set(mapping.header) <= set(names):
            return mapping
        if mapping.header is None and _numbers(names) and _numbers(second.split(",")):
            return mapping
    return None


def _numbers(fields: list[str]) -> bool:
    try:
        return all(np.isfinite(float(field)) for field in fields)
    except ValueError:
        return False


def read(path: Path, name: str, source: str) -> Iterator[Recording]:
    """Read a CSV of a declared layout; RecordError when it does not hold what the layout says."""
    mapping = mapping_of(path)
    if mapping is None:
        raise RecordError(f"{path.name} has no layout that p2es knows: declare one in p2es/formats/csv.py", "layout")
    table = _table(path, mapping)
    fs_hz = _rate(table[:, mapping.time_column] * mapping.time_unit_s, path.name)
    signals = tuple(
        Signal(c.name, c.kind, table[:, c.index].astype(np.float32), fs_hz, c.unit, 0.0, canonical_lead(c.name))
        for c in mapping.columns
        if np.isfinite(table[:, c.index]).any()
    )
    if not signals:
        raise RecordError(f"{path.name} has no samples: fetch it again", "no_signal")
    person = path.stem.split("_")[0] if mapping.person_from_name else path.stem
    yield Recording(name, source, person, signals, provenance={"format": "csv", "layout": mapping.name})


def _table(path: Path, mapping: CsvMapping) -> NDArray[np.float64]:
    import pandas as pd

    try:
        frame = pd.read_csv(path, header=None if mapping.header is None else 0, skipinitialspace=True)
        return frame.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    except (ValueError, OSError) as error:
        raise RecordError(
            f"{path.name} cannot be read ({type(error).__name__}): fetch it again", "unreadable"
        ) from error


def _rate(time_s: NDArray[np.float64], name: str) -> float:
    """Measure the rate by a line through the times.

    Printed times are rounded (BIDMC's after 10 s to 0.01 s, 1.25 samples), so steps are uneven and some are 0; a gap
    is a stretch that leaves the line by more than two samples.
    """
    if time_s.size < 3 or not np.isfinite(time_s).all():
        raise RecordError(f"the time column of {name} has holes: the rate is unknown", "rate")
    index = np.arange(time_s.size)
    step, first = np.polyfit(index, time_s, 1)
    if step <= 0:
        raise RecordError(f"the time column of {name} does not run: the rate is unknown", "rate")
    if np.max(np.abs(first + step * index - time_s)) > 2 * step:
        raise RecordError(f"the time column of {name} has gaps: cut the file at them", "time_gaps")
    return float(1 / step)
