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
    """A column that is a signal.

    Attributes
    ----------
    at : str or int
        Its name in the header, without blanks around it, or its number in a file without a header.
    name : str
        Name of the signal; a standard lead's name makes it that lead.
    kind : SignalKind
    unit : str
        "mV" only where the archive's description says so; "unknown" keeps an ECG out of the targets.
    """

    at: str | int
    name: str
    kind: SignalKind
    unit: str


@dataclass(frozen=True)
class CsvMapping:
    """A layout.

    Attributes
    ----------
    name : str
    time : str or int
        Column of the time: the rate is measured there, never assumed.
    time_unit_s : float
        Seconds of one unit of it.
    required : tuple of str
        Names that a header must have to be of this layout; empty for a file without a header.
    width : int or None
        Number of columns of a file without a header.
    columns : tuple of Column
        Those that a file does not have are passed over: BIDMC's leads differ from person to person.
    person_ends : str
        What ends the person in the file name; empty when the whole name is the person's.
    """

    name: str
    time: str | int
    time_unit_s: float
    columns: tuple[Column, ...]
    required: tuple[str, ...] = ()
    width: int | None = None
    person_ends: str = ""


MAPPINGS = (
    # BIDMC (PhysioNet): millivolt by its WFDB twin; `V` is an unknown precordial lead.
    CsvMapping(
        "bidmc",
        time="Time [s]",
        time_unit_s=1.0,
        columns=(
            Column("PLETH", "PLETH", SignalKind.PPG, "NU"),
            *(Column(name, name, SignalKind.ECG, "mV") for name in ("I", "II", "III", "AVR", "AVL", "AVF", "V", "MCL")),
        ),
        required=("Time [s]", "PLETH"),
        person_ends="_Signals",
    ),
    # NCKU: frame, ticks of 125 us, PPG (12 bit), three ECG channels in ADC counts of unknown gain and lead.
    CsvMapping(
        "ncku",
        time=1,
        time_unit_s=125e-6,
        columns=(
            Column(2, "PPG", SignalKind.PPG, "ADC"),
            *(Column(k, f"ECG {k - 2}", SignalKind.ECG, "unknown") for k in (3, 4, 5)),
        ),
        width=6,
        person_ends="_",
    ),
)


def mapping_of(path: Path) -> CsvMapping | None:
    """Find the layout of a file by its first two lines; None when it is not a declared one."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            first, second = file.readline(1000).split(","), file.readline(1000).split(",")
    except OSError:
        return None
    names = {field.strip() for field in first}
    for mapping in MAPPINGS:
        if mapping.required and set(mapping.required) <= names:
            return mapping
        if not mapping.required and len(first) == mapping.width and _numbers(first) and _numbers(second):
            return mapping
    return None


def _numbers(fields: list[str]) -> bool:
    try:
        return all(np.isfinite(float(field)) for field in fields)
    except ValueError:
        return False


def read(path: Path, name: str, source: str, skipped: list[RecordError]) -> Iterator[Recording]:
    """Read a CSV of a declared layout; RecordError when it does not hold what the layout says."""
    mapping = mapping_of(path)
    if mapping is None:
        raise RecordError(f"{path.name} has no layout that p2es knows: declare one in p2es/formats/csv.py", "layout")
    table = _table(path, mapping)
    fs_hz = _rate(table[mapping.time] * mapping.time_unit_s, path.name)
    signals = tuple(
        Signal(c.name, c.kind, table[c.at].astype(np.float32), fs_hz, c.unit, 0.0, canonical_lead(c.name))
        for c in mapping.columns
        if c.at in table and np.isfinite(table[c.at]).any()
    )
    if not signals:
        raise RecordError(f"{path.name} has no samples: fetch it again", "no_signal")
    person = path.stem.split(mapping.person_ends)[0] if mapping.person_ends else path.stem
    yield Recording(name, source, person, signals, provenance={"format": "csv", "layout": mapping.name})


def _table(path: Path, mapping: CsvMapping) -> dict[str | int, NDArray[np.float64]]:
    """Read the columns by name or number; what is no number is NaN."""
    import pandas as pd

    try:
        frame = pd.read_csv(path, header=0 if mapping.required else None, skipinitialspace=True)
        frame = frame.apply(pd.to_numeric, errors="coerce")
    except (ValueError, OSError) as error:
        raise RecordError(
            f"{path.name} cannot be read ({type(error).__name__}): fetch it again", "unreadable"
        ) from error
    keys = [name.strip() if isinstance(name, str) else int(name) for name in frame.columns]
    return {key: frame.iloc[:, k].to_numpy(np.float64) for k, key in enumerate(keys)}


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
