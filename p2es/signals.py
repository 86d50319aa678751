"""What a PPG is turned into for a model; and the signal processing of `p2es` in one place to import from.

NaN means "not recorded" throughout.
"""

from math import nan

import numpy as np
from numpy.typing import NDArray

from p2es.beats import pulse_onsets, r_peaks
from p2es.delay import DELAY_RANGE_S, pulse_delay
from p2es.errors import InputError
from p2es.filters import ECG_BAND_HZ, PPG_BAND_HZ, bandpass_ecg, bandpass_ppg, resample, stored_ppg
from p2es.quality import ppg_quality, pulse_rhythm
from p2es.windows import MARGIN_S, PPG_SAMPLES, WINDOW_S

__all__ = [
    "DELAY_RANGE_S",
    "ECG_BAND_HZ",
    "MAX_PPG_RATE_HZ",
    "MIN_PPG_RATE_HZ",
    "PPG_BAND_HZ",
    "bandpass_ecg",
    "bandpass_ppg",
    "ppg_quality",
    "prepare_ppg",
    "pulse_delay",
    "pulse_onsets",
    "pulse_rhythm",
    "r_peaks",
    "resample",
    "zscore_ppg",
]

MIN_PPG_RATE_HZ = 20.0
"""Below this the 8 Hz edge of the pulse band is out of reach."""
MAX_PPG_RATE_HZ = 10_000.0

Floats = NDArray[np.floating]


def zscore_ppg(ppg: Floats, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Bring each channel to mean 0 and standard deviation 1 over its valid samples.

    Parameters
    ----------
    ppg : array (..., channel, time)
    mask : array (..., time)
        True where valid.

    Returns
    -------
    array (..., channel, time)
        float32; zero where the mask is False, and throughout where the channel is constant.
    """
    valid = np.broadcast_to(mask[..., None, :], ppg.shape)
    x = np.where(valid, ppg, 0.0).astype(np.float64)
    count = np.maximum(valid.sum(axis=-1, keepdims=True), 1)
    mean = x.sum(axis=-1, keepdims=True) / count
    centred = np.where(valid, x - mean, 0.0)
    deviation = np.sqrt(np.square(centred).sum(axis=-1, keepdims=True) / count)
    flat = deviation <= 1e-9 * np.maximum(np.abs(mean), 1e-300)
    return np.where(flat, 0.0, centred / np.where(flat, 1.0, deviation)).astype(np.float32)


def _check_ppg(samples: Floats, fs_hz: float) -> None:
    if not MIN_PPG_RATE_HZ <= fs_hz <= MAX_PPG_RATE_HZ:
        limits = f"{MIN_PPG_RATE_HZ:g} to {MAX_PPG_RATE_HZ:g}"
        raise InputError(f"a PPG rate of {fs_hz:g} Hz is not usable: give the true rate, {limits} Hz")
    if samples.ndim != 2 or samples.shape[0] == 0:
        raise InputError(f"the PPG has shape {samples.shape}: give (channel, time)")
    needed_s = WINDOW_S + 2 * MARGIN_S
    if abs(samples.shape[1] - needed_s * fs_hz) > 2:
        found = f"{samples.shape[1]} samples at {fs_hz:g} Hz are {samples.shape[1] / fs_hz:.2f} s"
        raise InputError(f"the PPG has the wrong length: {found}; give {needed_s:g} s")
    finite = np.isfinite(samples)
    for channel, (row, good) in enumerate(zip(samples, finite, strict=True)):
        if not good.any():
            raise InputError(f"PPG channel {channel} has no samples: leave it out or give another recording")
        if np.ptp(row[good]) <= 1e-6 * np.abs(row[good]).max():
            raise InputError(f"PPG channel {channel} is a flat line: check the sensor and record again")
    share = finite.all(axis=0).mean()
    if share < 0.5:
        raise InputError(f"only {share:.0%} of the PPG was recorded: give a stretch with at least 50%")


def prepare_ppg(samples: Floats, fs_hz: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Turn twelve seconds of a user's PPG into what models take.

    Parameters
    ----------
    samples : array (channel, time)
        Twelve seconds (the window and one second on either side), two samples more or less; any unit, NaN
        where nothing was recorded. Upright: rising in systole. A PPG of light received must be negated by the caller,
        since twelve seconds do not tell it from movement (`p2es.polarity`).
    fs_hz : float
        20 to 10,000.

    Returns
    -------
    ppg : array (channel, PPG_SAMPLES)
        float32, 128 Hz, 0.4-8 Hz, z-scored.
    mask : array (PPG_SAMPLES,)
        True where every channel was recorded.

    Raises
    ------
    InputError
        No samples, a flat line, less than half recorded, wrong length, or an impossible rate.
    """
    samples = np.asarray(samples, dtype=np.float64)
    _check_ppg(samples, fs_hz)
    ppg = stored_ppg(np.where(np.isfinite(samples), samples, nan), fs_hz, 0.0, 0, PPG_SAMPLES)
    mask = np.asarray(np.isfinite(ppg).all(axis=0))
    return zscore_ppg(ppg, mask), mask
