"""Whether a recording's heart rate and QRS can be a heart's: a rate written several times too high or too low cannot.

What repeats is told by the autocorrelation, since detectors of beats have a refractory time and a band of their own:
of a heart of 70 bpm whose rate is written four times too high they make 140 to 290 bpm.
"""

from collections.abc import Sequence
from math import nan

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from p2es.filters import bridge

POSSIBLE_BPM = (25.0, 250.0)
"""Sustained rates that people have. Of 240 real and simulated recordings the fastest ECG repeats 142 times a minute,
the slowest PPG 42 times."""
FAST_BPM, FAST_QRS_HZ = 180.0, 21.0
"""At such a rate a QRS of such a spectrum is too short for a heart: 20 Hz is the most in real records (median 15)."""
SLOW_QRS_HZ = 8.0
"""A slow ECG is believed to be too slow only with so low a spectrum: AF repeats, by chance, every few beats."""
_BLOCK_S = 24.0
# Fastest and slowest period that is looked for.
_PERIODS_S = (0.12, 6.0)
# A period and its multiples repeat alike; the first that is nearly as high as the highest is it.
_NEARLY = 0.85
# Least autocorrelation of something that repeats: that of white noise in either band is 0.44 at most (of 200 stretches
# of 10 s; of 24 s 0.25), the median of real and simulated recordings 0.93.
_LEAST_HEIGHT = {"ecg": 0.5, "ppg": 0.75}
_LEAST_RECORDED = 0.8
_LEAST_SHARE = 0.5

Floats = NDArray[np.floating]
Array = NDArray[np.float64]


def unlikely_ecg(stretches: Sequence[Floats], fs_hz: float) -> bool:
    """Tell whether an ECG beats at a rate, or has QRS complexes, that no heart makes.

    Parameters
    ----------
    stretches : sequence of array (lead, time)
        In 0.5-40 Hz; any unit, NaN where nothing was recorded.
    fs_hz : float
    """
    blocks = [np.gradient(block, axis=1) for stretch in stretches for block in _blocks(stretch, fs_hz)]
    rate_bpm = _sustained_bpm([_envelope(slope, fs_hz) for slope in blocks], fs_hz, _LEAST_HEIGHT["ecg"])
    if not np.isfinite(rate_bpm):
        return False
    qrs_hz = float(np.median([_middle_hz(slope, fs_hz) for slope in blocks]))
    too_slow = rate_bpm < POSSIBLE_BPM[0] and qrs_hz < SLOW_QRS_HZ
    return too_slow or rate_bpm > POSSIBLE_BPM[1] or (rate_bpm > FAST_BPM and qrs_hz > FAST_QRS_HZ)


def unlikely_ppg(stretches: Sequence[Floats], fs_hz: float) -> bool:
    """Tell whether a PPG, stretches (channel, time) in 0.4-8 Hz, has pulses at a rate that no heart makes."""
    blocks = [block for stretch in stretches for block in _blocks(stretch, fs_hz)]
    rate_bpm = _sustained_bpm(blocks, fs_hz, _LEAST_HEIGHT["ppg"])
    return bool(np.isfinite(rate_bpm)) and not POSSIBLE_BPM[0] <= rate_bpm <= POSSIBLE_BPM[1]


def _blocks(rows: Floats, fs_hz: float) -> list[Array]:
    """Cut rows (row, time) into pieces of 24 s, one where there is less, each row scaled; without dead rows."""
    length = min(round(_BLOCK_S * fs_hz), int(rows.shape[1]))
    found = []
    for first in range(0, rows.shape[1] - length + 1, max(length, 1)):
        piece = rows[:, first : first + length]
        clean = bridge(piece[np.isfinite(piece).mean(axis=1) >= _LEAST_RECORDED])[0]
        size = clean.std(axis=1, keepdims=True)
        alive = size[:, 0] > 0
        if alive.any():
            found.append(clean[alive] / size[alive])
    return found


def _envelope(slope: Array, fs_hz: float) -> Array:
    """Give how steep the leads (lead, time) are together, (1, time), smoothed so that beats of two shapes are alike."""
    usual = np.maximum(np.quantile(np.abs(slope), 0.98, axis=1, keepdims=True), 1e-12)
    steepness = np.minimum(np.linalg.norm(slope / usual, axis=0) / np.sqrt(len(slope)), 1.5)
    return np.asarray(ndimage.gaussian_filter1d(steepness, 0.03 * fs_hz))[None]


def _middle_hz(slope: Array, fs_hz: float) -> float:
    """Give the frequency that halves the power of the slope of leads (lead, time)."""
    lines_hz, power = signal.welch(slope, fs_hz, nperseg=min(round(4 * fs_hz), slope.shape[1]), axis=1)
    mean = (power / np.maximum(power.sum(axis=1, keepdims=True), 1e-300)).mean(axis=0)
    return float(lines_hz[np.count_nonzero(np.cumsum(mean) < 0.5) % lines_hz.size])


def _sustained_bpm(blocks: Sequence[Array], fs_hz: float, least_height: float) -> float:
    """Give the median rate at which blocks (row, time) repeat; NaN where half of them do not."""
    rates = [_repeats_bpm(block, fs_hz, least_height) for block in blocks]
    known = np.isfinite(rates)
    return float(np.median(np.array(rates)[known])) if len(rates) and known.mean() >= _LEAST_SHARE else nan


def _repeats_bpm(rows: Array, fs_hz: float, least_height: float) -> float:
    """Give the rate at which rows (row, time) repeat, by the sum of their autocorrelations; NaN if they do not."""
    count = rows.shape[1]
    centred = rows - rows.mean(axis=1, keepdims=True)
    power = np.square(np.abs(np.fft.rfft(centred, 2 * count))).sum(axis=0)
    shared = np.fft.irfft(power)[:count]
    if not shared[0] > 0:
        return nan
    likeness = shared / shared[0] * count / (count - np.arange(count))
    first, last = round(_PERIODS_S[0] * fs_hz), min(round(_PERIODS_S[1] * fs_hz), count // 2)
    peaks, _ = signal.find_peaks(likeness[first:last])
    heights = likeness[first:last][peaks]
    if heights.max(initial=0.0) < least_height:
        return nan
    return float(60.0 * fs_hz / (first + peaks[heights >= _NEARLY * heights.max()][0]))
