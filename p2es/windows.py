"""Window: ten seconds of one person, and its Arrow codec (a dataset can be read without Ray).

What is stored is un-aligned, in physical units, and each lead once: a lead that follows from stored ones by the
lead laws is left out and completed at load. Signals are int16 with one scale a window (a relative error of at most
1.6e-5 of the largest value), the smallest and fastest of the layouts tried (docs/decisions.md).
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.demographics import Demographics
from p2es.errors import DatasetError
from p2es.leads import LEADS, N_LEADS, complete_limb_leads

FS_HZ = 128.0
"""Rate of every stored signal."""
ECG_BAND_HZ = (0.5, 40.0)
"""Band of every stored ECG."""
WINDOW_S = 10.0
MARGIN_S = 1.0
"""PPG kept on either side of the window: the last beat's pulse comes after the window ends."""
ECG_SAMPLES = int(WINDOW_S * FS_HZ)
MARGIN_SAMPLES = int(MARGIN_S * FS_HZ)
PPG_SAMPLES = ECG_SAMPLES + 2 * MARGIN_SAMPLES

SCHEMA_VERSION = 2
_FULL_SCALE = 32767
# Leads that agree with the laws to this are stored once; a recording that breaks them keeps all its leads.
_LAW_TOLERANCE_MV = 0.01


@dataclass(frozen=True)
class Window:
    """Ten seconds of one person's ECG and PPG.

    Attributes
    ----------
    window_id, person, recording : str
        Unique id of the window; hashed ids of the person and of the recording.
    source : str
        Institution family.
    split : str
        `train`, `validation` or `test`, decided by person.
    start_s : float
        Start of the ECG in the recording, seconds.
    ecg : array (12, 1280) or None
        float32 millivolt, 0.5-40 Hz, order of `LEADS`; zero where `lead_mask` is False.
    lead_mask : array (12,)
        True for the leads that were recorded or follow from recorded ones by the lead laws.
    ppg : array (channel, 1536) or None
        float32, z-scored over the window, one second longer than the ECG on either side, un-aligned.
    ppg_mask : array (1536,) or None
        True where the PPG was recorded.
    ppg_channels : tuple of str
        Names of the channels (a wavelength, a site).
    demographics : Demographics
    delay_s, delay_confidence, delay_iqr_s : float or None
        Time from R peak to the steepest rise of the pulse in this recording, the confidence in it (0 to 1), and its
        interquartile range over the recording's beats.
    ppg_quality : float or None
        0 (noise) to 1 (clean).
    ppg_flat, ppg_clipped, ppg_wrapped, ppg_missing : float or None
        Shares (0 to 1) of the twelve seconds as recorded, before any filter: a dead sensor, tops cut off at a rail,
        a converter that overflowed, nothing recorded. The best channel counts. None without a PPG.
    ppg_noise : float or None
        `quality.pulse_noise`, 0 (clean) to 1.
    lead_quality : array (12,) or None
        0 (noise) to 1 (clean) for each lead that was recorded; NaN where absent.
    lead_flat, lead_clipped, lead_wrapped, lead_missing, lead_noise : array (12,) or None
        The same shares for each recorded lead, over the ten seconds; noise by `quality.lead_noise`.
    heart_rate_bpm : float or None
        From the R peaks in the window, or else from its pulses.
    flags : tuple of str
        What is odd but kept: `amplitude` (a recording 2.1 times the usual size or more, or 0.42 times or less),
        `amplitude:V2` (a lead off its usual size by a factor of five), `gains_repaired` (converter steps taken as
        microvolt, since the file's gains break the lead laws), `rate_unlikely` (a heart rate or QRS that no heart has:
        the sampling rate may be wrong), `lead_laws_noise` (limb leads off the lead laws by independent noise of 0.01 to
        0.03 mV RMS), `ppg_turned:red` (a PPG channel that fell in systole and was turned).
    fingerprint : bytes or None
        What near-duplicates are found by (`p2es.fingerprint`).
    r_peaks_s : array or None
        Annotated R peaks, seconds from the start of the window.
    rhythm : str or None
        Annotated rhythm.
    enrolment : str or None
        `window_id` of another window of the same person that has all 12 leads.
    simulated : bool
        Whether a program made the signals.
    """

    window_id: str
    person: str
    recording: str
    source: str
    split: str
    start_s: float
    ecg: NDArray[np.float32] | None
    lead_mask: NDArray[np.bool_]
    ppg: NDArray[np.float32] | None
    ppg_mask: NDArray[np.bool_] | None
    ppg_channels: tuple[str, ...] = ()
    demographics: Demographics = Demographics()
    delay_s: float | None = None
    delay_confidence: float | None = None
    delay_iqr_s: float | None = None
    ppg_quality: float | None = None
    ppg_flat: float | None = None
    ppg_clipped: float | None = None
    ppg_wrapped: float | None = None
    ppg_missing: float | None = None
    ppg_noise: float | None = None
    lead_quality: NDArray[np.float32] | None = None
    lead_flat: NDArray[np.float32] | None = None
    lead_clipped: NDArray[np.float32] | None = None
    lead_wrapped: NDArray[np.float32] | None = None
    lead_missing: NDArray[np.float32] | None = None
    lead_noise: NDArray[np.float32] | None = None
    heart_rate_bpm: float | None = None
    flags: tuple[str, ...] = ()
    fingerprint: bytes | None = None
    r_peaks_s: NDArray[np.float32] | None = None
    rhythm: str | None = None
    enrolment: str | None = None
    simulated: bool = False

    def __post_init__(self) -> None:
        assert self.ecg is None or self.ecg.shape == (N_LEADS, ECG_SAMPLES)
        assert self.ppg is None or self.ppg.shape == (len(self.ppg_channels), PPG_SAMPLES)
        assert (self.ppg is None) == (self.ppg_mask is None)


_KEYS = ("window_id", "person", "recording", "source", "split")
_PPG_FIGURES = ("ppg_quality", "ppg_flat", "ppg_clipped", "ppg_wrapped", "ppg_missing", "ppg_noise")
_LEAD_FIGURES = ("lead_quality", "lead_flat", "lead_clipped", "lead_wrapped", "lead_missing", "lead_noise")
_PEOPLE = ("age_years", "sex", "height_cm", "weight_kg")
_NUMBERS = ("delay_s", "delay_confidence", "delay_iqr_s", *_PPG_FIGURES, "heart_rate_bpm")
_LISTS = (*_LEAD_FIGURES, "r_peaks_s")
_PLAIN = (*_KEYS, "start_s", "simulated", *_NUMBERS, "rhythm", "enrolment", "fingerprint")

WINDOW_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in _KEYS),
        pa.field("start_s", pa.float64(), nullable=False),
        pa.field("simulated", pa.bool_(), nullable=False),
        *(pa.field(name, pa.float32()) for name in _PEOPLE),
        # The stored rows of the ECG, int16 little-endian, in the order of LEADS, and which leads they are.
        pa.field("ecg", pa.binary()),
        pa.field("ecg_scale_mv", pa.float32()),
        pa.field("ecg_stored", pa.uint16(), nullable=False),
        pa.field("ecg_leads", pa.uint16(), nullable=False),
        pa.field("ppg", pa.binary()),
        pa.field("ppg_scale", pa.float32()),
        pa.field("ppg_mask", pa.binary(PPG_SAMPLES // 8)),
        pa.field("ppg_channels", pa.list_(pa.string())),
        *(pa.field(name, pa.float32()) for name in _NUMBERS),
        *(pa.field(name, pa.list_(pa.float32())) for name in _LISTS),
        pa.field("rhythm", pa.string()),
        pa.field("enrolment", pa.string()),
        pa.field("flags", pa.list_(pa.string()), nullable=False),
        # Equal for windows whose stored signals are, whatever record they came from.
        pa.field("content", pa.binary(16), nullable=False),
        pa.field("fingerprint", pa.binary()),
    ],
    metadata={"p2es_window_schema": str(SCHEMA_VERSION)},
)


def _to_bits(mask: NDArray[np.bool_]) -> int:
    return int(np.sum(mask.astype(np.int64) << np.arange(N_LEADS)))


def _from_bits(bits: int) -> NDArray[np.bool_]:
    return (bits >> np.arange(N_LEADS) & 1).astype(bool)


def _completed(ecg: NDArray[np.float32], stored: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Fill the limb leads that follow from stored ones; the rest stay zero."""
    known = {name: ecg[k] for k, name in enumerate(LEADS) if stored[k]}
    result = np.zeros((N_LEADS, ecg.shape[-1]), dtype=np.float32)
    for name, samples in complete_limb_leads(known).items():
        result[LEADS.index(name)] = samples
    return result


def _leads_to_store(ecg: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Choose the rows to store: two limb leads where the others follow from them, and all precordial leads."""
    limb = np.flatnonzero(mask[:6])
    if limb.size <= 2:
        return mask
    stored = mask.copy()
    stored[limb[2:]] = False
    misfit = np.abs(_completed(ecg, stored) - ecg)[mask].max(initial=0.0)
    return stored if misfit <= _LAW_TOLERANCE_MV else mask


def _to_counts(signal: NDArray[np.float32]) -> tuple[bytes, float]:
    scale = float(np.float32(max(float(np.abs(signal).max(initial=0.0)), 1e-9) / _FULL_SCALE))
    return np.round(signal / scale).astype("<i2").tobytes(), scale


def _signals(window: Window) -> dict[str, object]:
    """Give the columns of a window that hold its signals, and their digest."""
    row: dict[str, object] = {"ecg": None, "ecg_scale_mv": None, "ecg_stored": 0}
    row |= {"ecg_leads": _to_bits(window.lead_mask), "ppg": None, "ppg_scale": None, "ppg_mask": None}
    if window.ecg is not None:
        stored = _leads_to_store(window.ecg, window.lead_mask)
        row["ecg"], row["ecg_scale_mv"] = _to_counts(window.ecg[stored])
        row["ecg_stored"] = _to_bits(stored)
    if window.ppg is not None and window.ppg_mask is not None:
        row["ppg"], row["ppg_scale"] = _to_counts(window.ppg)
        row["ppg_mask"] = np.packbits(window.ppg_mask).tobytes()
    digest = hashlib.sha256()
    for value in row.values():
        # With its length before it, bytes of one column cannot pass for those of the next.
        part = value if isinstance(value, bytes) else repr(value).encode()
        digest.update(len(part).to_bytes(4, "little") + part)
    return row | {"content": digest.digest()[:16]}


def encode(windows: Iterable[Window]) -> pa.Table:
    """Encode windows as a table of `WINDOW_SCHEMA`."""
    windows = list(windows)
    columns: dict[str, list[object]] = {name: [getattr(w, name) for w in windows] for name in (*_PLAIN, *_LISTS)}
    people = [[None if np.isnan(x) else x for x in w.demographics.to_array()] for w in windows]
    columns |= {name: [person[k] for person in people] for k, name in enumerate(_PEOPLE)}
    columns |= {name: [list(getattr(w, name)) for w in windows] for name in ("ppg_channels", "flags")}
    signals = [_signals(window) for window in windows]
    for name in ("ecg", "ecg_scale_mv", "ecg_stored", "ecg_leads", "ppg", "ppg_scale", "ppg_mask", "content"):
        columns[name] = [row[name] for row in signals]
    arrays = [pa.array(columns[field.name], type=field.type) for field in WINDOW_SCHEMA]
    return pa.table(arrays, schema=WINDOW_SCHEMA)


def check_schema(schema: pa.Schema) -> None:
    """Raise DatasetError unless `schema` is one this version reads."""
    found = (schema.metadata or {}).get(b"p2es_window_schema", b"none").decode()
    if found != str(SCHEMA_VERSION):
        raise DatasetError(
            f"the table has window schema {found}, this p2es reads {SCHEMA_VERSION}: ingest it again, or use the "
            "p2es that wrote it"
        )


def _decode_ecg(row: dict[str, object]) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
    mask = _from_bits(int(row["ecg_leads"]))  # type: ignore[call-overload]
    if row["ecg"] is None:
        return None, mask
    stored = _from_bits(int(row["ecg_stored"]))  # type: ignore[call-overload]
    counts = np.frombuffer(row["ecg"], dtype="<i2").reshape(-1, ECG_SAMPLES)  # type: ignore[call-overload]
    ecg = np.zeros((N_LEADS, ECG_SAMPLES), dtype=np.float32)
    ecg[stored] = counts * np.float32(row["ecg_scale_mv"])  # type: ignore[arg-type]
    return _completed(ecg, stored), mask


def _decode_row(row: dict[str, object]) -> Window:
    ecg, lead_mask = _decode_ecg(row)
    ppg = ppg_mask = None
    if row["ppg"] is not None:
        counts = np.frombuffer(row["ppg"], dtype="<i2").reshape(-1, PPG_SAMPLES)  # type: ignore[call-overload]
        ppg = counts * np.float32(row["ppg_scale"])  # type: ignore[arg-type]
        ppg_mask = np.unpackbits(np.frombuffer(row["ppg_mask"], np.uint8)).astype(bool)  # type: ignore[call-overload]
    people = np.array([np.nan if row[k] is None else row[k] for k in _PEOPLE], dtype=np.float64)
    lists = {name: None if row[name] is None else np.array(row[name], dtype=np.float32) for name in _LISTS}
    return Window(
        **{name: row[name] for name in _PLAIN},  # type: ignore[arg-type]
        **lists,  # type: ignore[arg-type]
        ecg=ecg, lead_mask=lead_mask, ppg=ppg, ppg_mask=ppg_mask,
        ppg_channels=tuple(row["ppg_channels"] or ()),  # type: ignore[arg-type]
        flags=tuple(row["flags"]),  # type: ignore[arg-type]
        demographics=Demographics.from_array(people),
    )  # fmt: skip


def decode(table: pa.Table) -> list[Window]:
    """Undo `encode`; leads that follow from stored ones are completed."""
    check_schema(table.schema)
    return [_decode_row(row) for row in table.to_pylist()]


@dataclass(frozen=True)
class WindowBatch:
    """Windows as arrays, ready for a model; n windows, one after another.

    Attributes
    ----------
    ecg_mv : array (n, 12, 1280)
        float32; zero where `lead_mask` is False.
    lead_mask : array (n, 12)
    ppg : array (n, channel, 1536)
        float32, zero where `ppg_mask` is False; all zero for a window without PPG.
    ppg_mask : array (n, 1536)
    people : array (n, 4)
        `Demographics.to_array`; NaN is unknown.
    delay_s, delay_confidence : array (n,)
        NaN and 0 where unknown.
    person, window_id, recording : array (n,) of str
    """

    ecg_mv: NDArray[np.float32]
    lead_mask: NDArray[np.bool_]
    ppg: NDArray[np.float32]
    ppg_mask: NDArray[np.bool_]
    people: NDArray[np.float64]
    delay_s: NDArray[np.float32]
    delay_confidence: NDArray[np.float32]
    person: NDArray[np.str_]
    window_id: NDArray[np.str_]
    recording: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.person)

    def take(self, rows: Sequence[int] | NDArray[np.integer] | NDArray[np.bool_] | slice) -> "WindowBatch":
        """Choose windows by index, mask or slice."""
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
        return WindowBatch(**{name: value[rows] for name, value in vars(self).items()})

    def aligned(self) -> "WindowBatch":
        """Shift each PPG earlier by its recording's delay, so that pulses stand under their R peaks.

        Windows whose delay is unknown are left as they are.
        """
        ppg, mask = shift_earlier(self.ppg, self.ppg_mask, np.nan_to_num(self.delay_s))
        return replace(self, ppg=ppg, ppg_mask=mask)


def _masked(ppg: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(mask[..., None, :], ppg, np.float32(0))


def collate(windows: Sequence[Window], channels: int = 1) -> WindowBatch:
    """Stack windows; PPG channels beyond `channels` are left out, missing ones are zero."""
    n = len(windows)
    ecg = np.zeros((n, N_LEADS, ECG_SAMPLES), np.float32)
    ppg = np.zeros((n, channels, PPG_SAMPLES), np.float32)
    mask = np.zeros((n, PPG_SAMPLES), bool)
    for k, window in enumerate(windows):
        if window.ecg is not None:
            ecg[k] = np.where(window.lead_mask[:, None], window.ecg, 0)
        if window.ppg is not None and window.ppg_mask is not None:
            mask[k] = window.ppg_mask
            ppg[k, : len(window.ppg)] = _masked(window.ppg[:channels], window.ppg_mask)
    none = np.float32(np.nan)
    return WindowBatch(
        ecg_mv=ecg,
        lead_mask=np.array([w.lead_mask if w.ecg is not None else np.zeros(N_LEADS, bool) for w in windows]).reshape(
            n, N_LEADS
        ),
        ppg=ppg,
        ppg_mask=mask,
        people=np.array([w.demographics.to_array() for w in windows]).reshape(n, 4),
        delay_s=np.array([none if w.delay_s is None else w.delay_s for w in windows], np.float32),
        delay_confidence=np.array([w.delay_confidence or 0.0 for w in windows], np.float32),
        person=np.array([w.person for w in windows], dtype=np.str_),
        window_id=np.array([w.window_id for w in windows], dtype=np.str_),
        recording=np.array([w.recording for w in windows], dtype=np.str_),
    )


@dataclass(frozen=True)
class WindowStore:
    """Many windows in memory as int16, decoded to a `WindowBatch` a few at a time (a quarter of float64's size)."""

    ecg: NDArray[np.int16]
    ecg_scale: NDArray[np.float32]
    ppg: NDArray[np.int16]
    ppg_scale: NDArray[np.float32]
    rest: WindowBatch = field(repr=False)

    @classmethod
    def from_batches(cls, batches: Iterable[WindowBatch]) -> "WindowStore":
        """Pack batches as they come, so that no more than one is ever held as float."""
        packed = [_pack(batch) for batch in batches]
        if not packed:
            raise DatasetError("there are no windows to read: check the split and the dataset")
        arrays = [np.concatenate([part[k] for part in packed]) for k in range(4)]
        rests = [part[4] for part in packed]
        rest = WindowBatch(**{name: np.concatenate([getattr(part, name) for part in rests]) for name in vars(rests[0])})
        return cls(arrays[0], arrays[1], arrays[2], arrays[3], rest)

    @classmethod
    def write(cls, folder: Path, count: int, batches: Iterable[WindowBatch]) -> None:
        """Pack `count` windows into files of `folder`, a batch at a time, for `map` to open.

        Raises
        ------
        DatasetError
            When there are not that many windows, or none.
        """
        files: dict[str, NDArray[Any]] = {}
        at = 0
        for batch in batches:
            parts = _named(_pack(batch))
            if not files:
                folder.mkdir(parents=True, exist_ok=True)
                for name, part in parts.items():
                    # Ids of later batches may be longer than those of the first.
                    kind = "<U64" if part.dtype.kind == "U" else part.dtype
                    shape = (count, *part.shape[1:])
                    files[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", kind, shape)
            if at + len(batch) > count:
                break
            for name, part in parts.items():
                files[name][at : at + len(batch)] = part
            at += len(batch)
        for file in files.values():
            file.flush()  # type: ignore[attr-defined]
        if at != count or not at:
            raise DatasetError(f"{at} of {count} windows could be read: check the split and the dataset")

    @classmethod
    def map(cls, folder: Path) -> "WindowStore":
        """Open what `write` made: signals stay on disk, and all processes of a machine share what is in memory."""
        names = [*_SIGNALS, *(field.name for field in fields(WindowBatch) if field.name not in ("ecg_mv", "ppg"))]
        mapped = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
        signals = [mapped.pop(name) for name in _SIGNALS]
        # Asked for again and again as a whole, and small.
        held = {name: value if name == "ppg_mask" else np.array(value) for name, value in mapped.items()}
        none = np.zeros((len(signals[0]), 0, 0), np.float32)
        return cls(signals[0], signals[1], signals[2], signals[3], WindowBatch(ecg_mv=none, ppg=none, **held))

    def __len__(self) -> int:
        return len(self.rest)

    @property
    def person(self) -> NDArray[np.str_]:
        """Hashed id of each window's person."""
        return self.rest.person

    def batch(self, rows: Sequence[int] | NDArray[np.integer]) -> WindowBatch:
        """Decode the windows at `rows`."""
        rows = np.asarray(rows)
        return replace(
            self.rest.take(rows),
            ecg_mv=self.ecg[rows] * self.ecg_scale[rows, None, None],
            ppg=self.ppg[rows] * self.ppg_scale[rows, None, None],
        )


_Packed = tuple[
    NDArray[np.int16], NDArray[np.float32], NDArray[np.int16], NDArray[np.float32], WindowBatch
]  # fmt: skip
_SIGNALS = ("ecg", "ecg_scale", "ppg", "ppg_scale")


def _named(packed: _Packed) -> dict[str, NDArray[Any]]:
    *signals, rest = packed
    named: dict[str, NDArray[Any]] = dict(zip(_SIGNALS, signals, strict=True))  # type: ignore[arg-type]
    return named | {name: value for name, value in vars(rest).items() if name not in ("ecg_mv", "ppg")}


def _pack(batch: WindowBatch) -> _Packed:
    def counts(signal: NDArray[np.float32]) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
        scale = np.maximum(np.abs(signal).max(axis=(1, 2), initial=0.0), 1e-9).astype(np.float32) / _FULL_SCALE
        return np.round(signal / scale[:, None, None]).astype(np.int16), scale

    n = len(batch)
    rest = replace(batch, ecg_mv=np.zeros((n, 0, 0), np.float32), ppg=np.zeros((n, 0, 0), np.float32))
    return *counts(batch.ecg_mv), *counts(batch.ppg), rest


def shift_earlier(
    ppg: NDArray[np.float32], mask: NDArray[np.bool_], delay_s: NDArray[np.floating]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Shift signals earlier in time by `delay_s`, by linear interpolation between samples.

    Parameters
    ----------
    ppg : array (n, channel, time)
        At `FS_HZ`.
    mask : array (n, time)
    delay_s : array (n,)

    Returns
    -------
    ppg, mask : arrays of the same shapes
        What is shifted in from outside is zero and masked out.
    """
    time = ppg.shape[-1]
    at = np.arange(time) + (np.asarray(delay_s, np.float64) * FS_HZ)[:, None]
    left = np.floor(at).astype(np.int64)
    fraction = (at - left).astype(np.float32)
    inside = (left >= 0) & (left + 1 < time)
    left = np.clip(left, 0, time - 2)
    good = inside & np.take_along_axis(mask, left, 1) & np.take_along_axis(mask, left + 1, 1)
    low = np.take_along_axis(ppg, left[:, None], 2)
    high = np.take_along_axis(ppg, left[:, None] + 1, 2)
    shifted = low + fraction[:, None] * (high - low)
    return _masked(shifted, good), good
