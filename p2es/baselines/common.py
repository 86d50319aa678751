"""What the yardsticks share: their training windows, reading PPG, and their files."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from p2es.bands import Band, median_mv
from p2es.demographics import Demographics
from p2es.errors import DatasetError, InputError, ModelError
from p2es.files import write_whole
from p2es.leads import INDEPENDENT_INDEX, lift
from p2es.model import spread_over_people
from p2es.signals import ppg_quality, prepare_ppg, pulse_rhythm
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
