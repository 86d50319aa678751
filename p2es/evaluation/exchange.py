"""Another system under the same evaluation: what it is asked, and what it answers.

A request is twelve seconds of PPG and a person. A file of requests says neither which window is a control nor whose
PPG it holds: a system that knew could answer them better. An answer is one or more ECGs, leads by name.
"""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from p2es.bands import Band, median_mv
from p2es.demographics import Demographics
from p2es.errors import InputError
from p2es.files import write_whole
from p2es.filters import resample
from p2es.leads import INDEPENDENT, LEADS, canonical_lead, complete_limb_leads, lift
from p2es.translator import MIN_BAND_SAMPLES, Translation
from p2es.windows import ECG_SAMPLES, FS_HZ, WINDOW_S

REQUESTS = pa.schema(
    [
        pa.field("request", pa.string(), nullable=False),
        # Millivolt of nothing: a PPG has no unit. NaN where nothing was recorded.
        pa.field("ppg", pa.list_(pa.float32()), nullable=False),
        pa.field("age_years", pa.float64()),
        pa.field("sex", pa.string()),
        pa.field("height_cm", pa.float64()),
        pa.field("weight_kg", pa.float64()),
        pa.field("samples", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
    ],
    metadata={
        "format": "p2es-requests",
        "version": "1",
        "fs_hz": f"{FS_HZ:g}",
        "ppg": "12 s: the window of 10 s and one second on either side",
        "answer": "10 s of ECG in millivolt, 0.5-40 Hz, for the window; `samples` draws, or one",
    },
)
"""A row a request. `samples` and `seed` are a proposal: one draw is enough, but gives no band."""

# More than any ECG in millivolt, less than any in microvolt.
_MOST_MV = 30.0
_SLACK_S = 0.02


@dataclass(frozen=True)
class Request:
    """One row of a file of requests."""

    request: str
    ppg: NDArray[np.float32]
    person: Demographics
    samples: int
    seed: int


@dataclass(frozen=True)
class Answers:
    """What a system answered.

    Attributes
    ----------
    name : str
        Of the file.
    sha256 : str
        Of its bytes.
    leads : array (12,)
        True for leads that it draws, or that follow from those by Einthoven's law.
    ecg_mv : mapping
        Request to (sample, 12, 1280), millivolt at 128 Hz; zero in leads that it does not draw.
    """

    name: str
    sha256: str
    leads: NDArray[np.bool_]
    ecg_mv: Mapping[str, NDArray[np.float32]]


def request_id(system: str, window_id: str, seed: int) -> str:
    """Name a request by a hash, so that the same evaluation knows it again and nobody else learns what it is."""
    return hashlib.sha256(f"p2es-request\0{seed}\0{system}\0{window_id}".encode()).hexdigest()[:20]


def write_requests(requests: Iterable[Request], path: Path) -> int:
    """Write requests as Parquet, in the order of their names, whole or not at all; give how many."""
    rows = [
        {
            "request": one.request,
            "ppg": one.ppg,
            "age_years": one.person.age_years,
            "sex": None if one.person.sex is None else one.person.sex.value,
            "height_cm": one.person.height_cm,
            "weight_kg": one.person.weight_kg,
            "samples": one.samples,
            "seed": one.seed,
        }
        for one in sorted(requests, key=lambda one: one.request)
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=REQUESTS), buffer, compression="zstd")
    write_whole(path, buffer.getvalue())
    return len(rows)


def read_answers(path: Path) -> Answers:
    """Read the ECGs of another system.

    Parameters
    ----------
    path : Path
        `.npz` with `request` (n,) or `window_id` (n,), `ecg_mv` (n, lead, time) or (n, sample, lead, time), `leads`
        (lead,) and `fs_hz`; or `.parquet` with a row a draw: `request` or `window_id`, a column a lead (list of
        millivolt), and `fs_hz` as a column or in the file's metadata.

    Returns
    -------
    Answers
        An answer by `window_id` is to the model's own request of that window, and its key is the window's id.

    Raises
    ------
    InputError
        When it cannot be read, lacks a column, names an unknown lead or none, or an ECG is not of 10 s or not in
        millivolt.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path.name} cannot be read ({error.strerror}): give a file of predictions") from error
    if data[:4] == b"PAR1":
        found = _from_parquet(data, path.name)
    elif data[:2] == b"PK":
        found = _from_npz(data, path.name)
    else:
        raise InputError(f"{path.name} is neither Parquet nor npz: see `p2es evaluate --help`")
    ids, ecg, names, fs_hz = found
    leads = _lead_names(names, path.name)
    if not ids:
        raise InputError(f"{path.name} holds no prediction")
    drawn: dict[str, list[NDArray[np.float32]]] = {}
    for name, signals in zip(ids, ecg, strict=True):
        drawn.setdefault(name, []).append(_twelve(signals, leads, fs_hz, f"{path.name}, {name}"))
    present = np.array([lead in _completed_names(leads) for lead in LEADS])
    return Answers(
        path.name,
        hashlib.sha256(data).hexdigest(),
        present,
        {name: np.concatenate(draws) for name, draws in drawn.items()},
    )


def translation_of(ecg_mv: NDArray[np.float32]) -> Translation:
    """Make draws (sample, 12, 1280) a Translation; the band is that of their own quantiles."""
    finite = bool(np.isfinite(ecg_mv).all())
    band = Band().around(ecg_mv) if finite and len(ecg_mv) >= MIN_BAND_SAMPLES else None
    return Translation(ecg_mv, median_mv(ecg_mv), band, float("nan"), "unknown", float("nan"))


_Found = tuple[list[str], list[NDArray[np.float64]], list[str], float]


def _from_npz(data: bytes, name: str) -> _Found:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise InputError(f"{name} is no npz that can be read ({type(error).__name__}): write it anew") from error
    key = _id_column(arrays, name)
    for needed in ("ecg_mv", "leads", "fs_hz"):
        if needed not in arrays:
            raise InputError(f"{name} has no array {needed!r}: give request, ecg_mv, leads and fs_hz")
    ids, ecg, leads = [str(x) for x in arrays[key]], arrays["ecg_mv"], [str(x) for x in np.atleast_1d(arrays["leads"])]
    if ecg.ndim == 3:
        ecg = ecg[:, None]
    if ecg.ndim != 4 or ecg.dtype.kind not in "fiu" or len(ecg) != len(ids) or ecg.shape[2] != len(leads):
        raise InputError(
            f"{name}: ecg_mv is {arrays['ecg_mv'].shape} for {len(ids)} requests and {len(leads)} leads: give "
            "(request, lead, time) or (request, sample, lead, time)"
        )
    return ids, list(ecg.astype(np.float64)), leads, _rate(arrays["fs_hz"].ravel(), name)


def _from_parquet(data: bytes, name: str) -> _Found:
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{name} is no Parquet that can be read ({type(error).__name__}): write it anew") from error
    key = _id_column(table.column_names, name)
    columns = [column for column in table.column_names if pa.types.is_list(table.schema.field(column).type)
               or pa.types.is_fixed_size_list(table.schema.field(column).type)
               or pa.types.is_large_list(table.schema.field(column).type)]  # fmt: skip
    leads = [column for column in columns if canonical_lead(column) is not None]
    if not leads:
        raise InputError(f"{name} has no column with the name of a lead: give {', '.join(LEADS)}, lists of millivolt")
    stored = (table.schema.metadata or {}).get(b"fs_hz")
    if "fs_hz" not in table.column_names and stored is None:
        raise InputError(f"{name} does not say its rate: give a column fs_hz, or fs_hz in the file's metadata")
    if stored is None or "fs_hz" in table.column_names:
        rate = _rate(np.array(table["fs_hz"].to_pylist(), dtype=object), name)
    else:
        rate = _rate(np.array([stored.decode()], dtype=object), name)
    ids = [str(one) for one in table[key].to_pylist()]
    ecg = []
    for row, one in zip(table.select(leads).to_pylist(), ids, strict=True):
        rows = [np.array([] if row[lead] is None else row[lead], np.float64) for lead in leads]
        if len({len(x) for x in rows}) != 1:
            raise InputError(f"{name}, {one}: the leads are not of one length")
        ecg.append(np.stack(rows)[None])
    return ids, ecg, leads, rate


def _id_column(names: Iterable[str], file: str) -> str:
    there = set(names)
    for name in ("request", "window_id"):
        if name in there:
            return name
    raise InputError(f"{file} says not what it answers: give `request` of the file of requests, or `window_id`")


def _rate(values: NDArray[np.generic], name: str) -> float:
    try:
        rates = {float(value) for value in values}
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: fs_hz is not a number") from error
    if len(rates) != 1 or not 50 <= (rate := rates.pop()) <= 5000:
        raise InputError(f"{name}: give one fs_hz for all, between 50 and 5000")
    return rate


def _lead_names(names: Sequence[str], file: str) -> list[str]:
    found = [canonical_lead(name) for name in names]
    for name, lead in zip(names, found, strict=True):
        if lead is None:
            raise InputError(f"{file}: {name!r} is no lead of the twelve: give {', '.join(LEADS)}")
    leads = [lead for lead in found if lead is not None]
    if len(set(leads)) != len(leads):
        raise InputError(f"{file} has the same lead twice: {', '.join(names)}")
    return leads


def _completed_names(leads: Sequence[str]) -> set[str]:
    return set(complete_limb_leads({lead: np.zeros(1) for lead in leads}))


def _twelve(ecg: NDArray[np.float64], leads: Sequence[str], fs_hz: float, where: str) -> NDArray[np.float32]:
    """Bring (sample, lead, time) to (sample, 12, 1280) at 128 Hz, limb leads completed, absent ones zero or lawful."""
    if abs(ecg.shape[-1] / fs_hz - WINDOW_S) > max(_SLACK_S, 1.0 / fs_hz):
        raise InputError(f"{where}: {ecg.shape[-1]} samples at {fs_hz:g} Hz are not {WINDOW_S:g} s")
    finite = np.isfinite(ecg)
    if np.abs(ecg[finite]).max(initial=0.0) > _MOST_MV:
        raise InputError(f"{where} reaches {np.abs(ecg[finite]).max():.0f} mV: is it in microvolt?")
    # What is not finite must be seen as such: a resampler would spread it, or hide it.
    bad = ~finite.all(axis=(1, 2))
    clean = np.where(finite, ecg, 0.0)
    at_rate = clean if fs_hz == FS_HZ else resample(clean, fs_hz, FS_HZ)
    at_rate = at_rate[..., :ECG_SAMPLES]
    short = ECG_SAMPLES - at_rate.shape[-1]
    if short:
        at_rate = np.concatenate([at_rate, np.repeat(at_rate[..., -1:], short, axis=-1)], axis=-1)
    given = complete_limb_leads({lead: at_rate[:, k] for k, lead in enumerate(leads)})
    nothing = np.zeros((len(ecg), ECG_SAMPLES))
    result = lift(np.stack([given.get(lead, nothing) for lead in INDEPENDENT], axis=1))
    for lead, signal in given.items():
        result[:, LEADS.index(lead)] = signal
    result[bad] = np.nan
    return result.astype(np.float32)
