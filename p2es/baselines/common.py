"""What the yardsticks share: their training windows, reading PPG, and their files."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from p2es.bands import Band, median_mv
from p2es.delay import DelayLaw
from p2es.demographics import Demographics, DemographicScaler
from p2es.errors import DatasetError, InputError, ModelError
from p2es.files import write_whole
from p2es.leads import INDEPENDENT_INDEX, lift
from p2es.model import spread_over_people
from p2es.signals import ppg_quality, prepare_ppg, pulse_onsets, pulse_rhythm
from p2es.translator import MIN_BAND_SAMPLES, Translation
from p2es.windows import FS_HZ, WindowBatch, WindowStore

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class BaselineConfig:
    """How a yardstick is fitted."""

    max_windows: int = 1000
    """Training windows, taken evenly over people."""


@dataclass(frozen=True)
class Pulse:
    """One window's PPG as read: (channel, time) at `FS_HZ`, its mask, quality, rate and rhythm."""

    ppg: NDArray[np.float32]
    mask: NDArray[np.bool_]
    quality: float
    heart_rate_bpm: float
    rhythm: str


def training_windows(dataset: WindowStore, config: BaselineConfig) -> WindowBatch:
    """Take windows that hold any lead, evenly over people; DatasetError when there are none."""
    rows = np.flatnonzero(dataset.rest.lead_mask.any(axis=1))
    if rows.size == 0:
        raise DatasetError("no training window has an ECG: a yardstick cannot be fitted to this dataset")
    return dataset.batch(rows[spread_over_people(dataset.person[rows], config.max_windows)])


def read_pulse(ppg: NDArray[np.floating], fs_hz: float) -> Pulse:
    """Read twelve seconds of PPG (channel, time); InputError when it cannot be used."""
    window, mask = prepare_ppg(np.atleast_2d(ppg), fs_hz)
    rate, rhythm = pulse_rhythm(window, mask, FS_HZ)
    return Pulse(window, mask, ppg_quality(window, mask, FS_HZ), rate, rhythm)


def onsets_of(pulse: Pulse) -> NDArray[np.float64]:
    """Give the steepest rises of the pulses, (pulse,) seconds from the first sample of the PPG; InputError below 2."""
    onsets_s = pulse_onsets(pulse.ppg[0], FS_HZ, pulse.mask)
    if onsets_s.size < 2:
        raise InputError("no pulse was found in the PPG: choose a stretch with less motion")
    return onsets_s


def training_pulse(batch: WindowBatch, row: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
    """Read the PPG (time,) of a training window and its mask as `read_pulse` does; None when it cannot be used.

    The stored PPG went through the band once and a user's copy of it goes through again, so training must do the same:
    what is learned of a pulse's shape holds for the filter it was seen through.
    """
    try:
        ppg, mask = prepare_ppg(np.where(batch.ppg_mask[row], batch.ppg[row, :1], np.nan), FS_HZ)
    except InputError:
        return None
    return ppg[0], mask


def fit_delay(batch: WindowBatch) -> DelayLaw:
    """Fit the delay to each recording of a batch once."""
    first = np.unique(batch.recording, return_index=True)[1]
    return DelayLaw.fit(batch.people[first], batch.delay_s[first], batch.delay_confidence[first])


def fit_scaler(batch: WindowBatch) -> DemographicScaler:
    """Fit the demographics of each person of a batch once."""
    return DemographicScaler.fit(batch.people[np.unique(batch.person, return_index=True)[1]])


def check_request(
    ppg: Sequence[object] | NDArray[np.floating],
    demographics: Sequence[Demographics],
    seeds: Sequence[int],
    samples: int,
) -> None:
    """Raise InputError unless there is one person and one seed a window, and something to draw."""
    if not len(ppg) == len(demographics) == len(seeds):
        raise InputError(f"{len(ppg)} PPG windows, {len(demographics)} people and {len(seeds)} seeds: give one each")
    if samples < 1:
        raise InputError(f"samples is {samples}: ask for at least 1")


def refuse_more(name: str, known: NDArray[np.float32] | None, enrolment: NDArray[np.float32] | None) -> None:
    """Raise ModelError when a yardstick is given leads or an earlier ECG: it knows no use for them."""
    if known is not None or enrolment is not None:
        raise ModelError(f"{name} uses neither known leads nor an earlier ECG: leave them out")


def translation(ecg_mv: NDArray[np.float32], pulse: Pulse) -> Translation:
    """Make a Translation of draws (samples, 12, time), with their own quantiles as the band."""
    band = Band().around(ecg_mv) if len(ecg_mv) >= MIN_BAND_SAMPLES else None
    return Translation(ecg_mv, median_mv(ecg_mv), band, pulse.quality, pulse.rhythm, pulse.heart_rate_bpm)


def lifted(independent_mv: NDArray[np.floating]) -> NDArray[np.float32]:
    """Lift (..., 8, time) to (..., 12, time) in float64, so that the lead laws hold to rounding."""
    return lift(independent_mv.astype(np.float64)).astype(np.float32)


def independent(batch: WindowBatch) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Give the 8 independent leads (n, 8, time) and which are there (n, 8)."""
    return batch.ecg_mv[:, INDEPENDENT_INDEX], batch.lead_mask[:, INDEPENDENT_INDEX]


def write_arrays(folder: Path, name: str, arrays: Arrays) -> None:
    """Write arrays as `<folder>/<name>.npz`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_whole(folder / f"{name}.npz", buffer.getvalue())


def read_arrays(folder: Path, name: str, check: Callable[[Arrays], None]) -> dict[str, NDArray[np.generic]]:
    """Undo `write_arrays`; ModelError when the file is missing, corrupt or fails `check`."""
    path = folder / f"{name}.npz"
    try:
        # From memory: numpy leaves a file open that turns out to be no archive.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        check(arrays)
    except FileNotFoundError as error:
        raise ModelError(f"there is no {name} in {folder.name}: {path.name} is missing") from error
    except (OSError, KeyError, ValueError, EOFError, BadZipFile) as error:
        raise ModelError(f"{path.name} is corrupt ({type(error).__name__}): fit the yardstick again") from error
    return arrays


def law_arrays(law: DelayLaw) -> dict[str, NDArray[np.generic]]:
    """Give a delay law as arrays to write."""
    return {f"delay_{key}": np.array(value) for key, value in vars(law).items()}


def law_from(arrays: Arrays) -> DelayLaw:
    """Undo `law_arrays`; KeyError or ValueError when it is not there whole."""
    age, height = np.asarray(arrays["delay_slopes_s"], np.float64)
    intercept_s, spread_s = (float(arrays[f"delay_{name}"].item()) for name in ("intercept_s", "spread_s"))
    return DelayLaw(intercept_s, (float(age), float(height)), spread_s)


def scaler_arrays(scaler: DemographicScaler) -> dict[str, NDArray[np.generic]]:
    """Give a scaler of demographics as arrays to write."""
    return {f"scaler_{key}": np.array(value) for key, value in vars(scaler).items()}


def scaler_from(arrays: Arrays) -> DemographicScaler:
    """Undo `scaler_arrays`; KeyError or ValueError when it is not there whole."""
    mean, covariance = (np.asarray(arrays[f"scaler_{name}"], np.float64) for name in ("mean", "covariance"))
    if mean.shape != (4,) or covariance.shape != (4, 4):
        raise ValueError("shape")
    return DemographicScaler(tuple(mean.tolist()), tuple(map(tuple, covariance.tolist())))
