"""Tables of stored windows straight to arrays: what training reads, without a Python object for every window."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from p2es.leads import LIFT, LIMB, N_LEADS
from p2es.windows import ECG_SAMPLES, PPG_SAMPLES, WindowBatch, check_schema

_PEOPLE = ("age_years", "sex", "height_cm", "weight_kg")
COLUMNS = (
    "window_id", "person", "recording", *_PEOPLE, "ecg", "ecg_scale_mv", "ecg_stored", "ecg_leads",
    "ppg", "ppg_scale", "ppg_mask", "delay_s", "delay_confidence",
)  # fmt: skip
"""The columns that a `WindowBatch` is made of."""
LISTED = ("window_id", "person", "recording", *_PEOPLE, "ecg_scale_mv", "ecg_leads", "ppg_mask")
"""The columns that a `WindowList` is made of: 0.45 kB a window, where the signals are 24."""


@dataclass(frozen=True)
class WindowList:
    """Windows without their signals: whose they are, and what was recorded.

    Attributes
    ----------
    window_id, person, recording : array (n,) of str
    people : array (n, 4)
        `Demographics.to_array`; NaN is unknown.
    lead_mask : array (n, 12)
        As in `WindowBatch`.
    has_ppg : array (n,)
        True where any sample of a PPG was recorded.
    """

    window_id: NDArray[np.str_]
    person: NDArray[np.str_]
    recording: NDArray[np.str_]
    people: NDArray[np.float64]
    lead_mask: NDArray[np.bool_]
    has_ppg: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.person)

    def take(self, rows: NDArray[np.integer]) -> "WindowList":
        """Choose windows by index."""
        return WindowList(**{name: value[rows] for name, value in vars(self).items()})


def list_of(tables: Iterable[pa.Table]) -> WindowList:
    """List the windows of tables with `LISTED` at least, each of `WINDOW_SCHEMA`, as they come; there is one or more.

    Raises
    ------
    DatasetError
        When a table has another schema version.
    """
    parts = [_listed(table) for table in tables]
    return WindowList(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])})


def _listed(table: pa.Table) -> WindowList:
    check_schema(table.schema)
    table = table.combine_chunks()
    return WindowList(
        window_id=_names(table, "window_id"),
        person=_names(table, "person"),
        recording=_names(table, "recording"),
        people=_people(table),
        # A window has a scale where it has an ECG, which itself is not read.
        lead_mask=_bits(table, "ecg_leads") & table["ecg_scale_mv"].is_valid().to_numpy()[:, None],
        has_ppg=np.asarray(_ppg_mask(table).any(axis=1)),
    )


def _people(table: pa.Table) -> NDArray[np.float64]:
    return np.stack([_numbers(table, name, np.nan, np.float64) for name in _PEOPLE], axis=1)


def batch_of(table: pa.Table, channels: int = 1) -> WindowBatch:
    """Give the windows of a table as arrays: `collate(decode(table), channels)`, some ten times as fast.

    Parameters
    ----------
    table : pa.Table
        With `COLUMNS` at least, of `WINDOW_SCHEMA`.
    channels : int
        PPG channels; what a window has beyond is left out, missing ones are zero.

    Raises
    ------
    DatasetError
        When the table has another schema version.
    """
    check_schema(table.schema)
    table = table.combine_chunks()
    lead_mask = _bits(table, "ecg_leads") & table["ecg"].is_valid().to_numpy()[:, None]
    ppg_mask = _ppg_mask(table)
    return WindowBatch(
        ecg_mv=_ecg(table, lead_mask),
        lead_mask=lead_mask,
        ppg=_ppg(table, channels, ppg_mask),
        ppg_mask=ppg_mask,
        people=_people(table),
        delay_s=_numbers(table, "delay_s", np.nan, np.float32),
        delay_confidence=_numbers(table, "delay_confidence", 0.0, np.float32),
        person=_names(table, "person"),
        window_id=_names(table, "window_id"),
        recording=_names(table, "recording"),
    )


def _numbers(table: pa.Table, name: str, missing: float, kind: type[np.floating]) -> NDArray[np.floating]:
    return pc.fill_null(table[name], missing).to_numpy().astype(kind)


def _names(table: pa.Table, name: str) -> NDArray[np.str_]:
    return np.array(table[name].to_pylist(), dtype=np.str_)


def _bits(table: pa.Table, name: str) -> NDArray[np.bool_]:
    """Unpack a column of lead masks to (n, 12)."""
    return (table[name].to_numpy()[:, None] >> np.arange(N_LEADS) & 1).astype(bool)


def _counts(column: pa.ChunkedArray, rows: NDArray[np.integer], samples: int) -> NDArray[np.int16]:
    """Give the int16 of rows that have as many signals each, (row, signal, sample)."""
    if len(rows) == len(column):
        # All of them: they lie one after another as they are, and need not be copied.
        (chunk,) = column.chunks
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, np.int32)[[chunk.offset, chunk.offset + len(chunk)]]
        return np.frombuffer(data, np.uint8)[ends[0] : ends[1]].view("<i2").reshape(len(rows), -1, samples)
    raw = b"".join(column.take(pa.array(rows)).to_pylist())
    return np.frombuffer(raw, "<i2").reshape(len(rows), -1, samples)


def _ecg(table: pa.Table, lead_mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Give (n, 12, 1280), zero where the mask is False; windows with the same stored leads are decoded at once."""
    result = np.zeros((table.num_rows, N_LEADS, ECG_SAMPLES), np.float32)
    stored, there = table["ecg_stored"].to_numpy(), table["ecg"].is_valid().to_numpy()
    scale = _numbers(table, "ecg_scale_mv", 0.0, np.float32)
    for pattern in np.unique(stored[there]):
        rows = np.flatnonzero(there & (stored == pattern))
        # A slice is written in place, chosen rows through a copy.
        place = slice(None) if len(rows) == table.num_rows else rows
        counts = _counts(table["ecg"], rows, ECG_SAMPLES)
        for k, lead in enumerate(_leads(pattern)):
            result[place, lead] = counts[:, k] * scale[rows, None]
        for lead, (first, second), (a, b) in _completions(pattern):
            result[place, lead] = np.float32(a) * result[place, first] + np.float32(b) * result[place, second]
    result[~lead_mask] = 0
    return result


def _leads(pattern: int) -> list[int]:
    return [lead for lead in range(N_LEADS) if pattern >> lead & 1]


def _completions(pattern: int) -> list[tuple[int, tuple[int, int], tuple[float, float]]]:
    """Give the limb leads that follow from the first two stored ones: the lead, those two, and how much of each."""
    limb = [lead for lead in _leads(pattern) if lead < len(LIMB)]
    if len(limb) < 2:
        return []
    shares = LIFT[: len(LIMB), :2] @ np.linalg.inv(LIFT[limb[:2], :2])
    pair = (limb[0], limb[1])
    return [(lead, pair, (shares[lead, 0], shares[lead, 1])) for lead in range(len(LIMB)) if lead not in limb]


def _ppg_mask(table: pa.Table) -> NDArray[np.bool_]:
    mask = np.zeros((table.num_rows, PPG_SAMPLES), bool)
    rows = np.flatnonzero(table["ppg_mask"].is_valid().to_numpy())
    packed = np.frombuffer(b"".join(table["ppg_mask"].take(pa.array(rows)).to_pylist()), np.uint8)
    mask[rows] = np.unpackbits(packed.reshape(len(rows), PPG_SAMPLES // 8), axis=1)
    return mask


def _ppg(table: pa.Table, channels: int, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Give (n, channel, 1536), zero where the mask is False."""
    result = np.zeros((table.num_rows, channels, PPG_SAMPLES), np.float32)
    lengths = pc.fill_null(pc.binary_length(table["ppg"]), 0).to_numpy()
    scale = _numbers(table, "ppg_scale", 0.0, np.float32)
    for length in _lengths(lengths):
        rows = np.flatnonzero(lengths == length)
        signals = _counts(table["ppg"], rows, PPG_SAMPLES)[:, :channels] * scale[rows, None, None]
        result[rows, : signals.shape[1]] = np.where(mask[rows, None], signals, 0)
    return result


def _lengths(lengths: NDArray[np.integer]) -> Sequence[int]:
    return [int(length) for length in np.unique(lengths) if length > 0]
