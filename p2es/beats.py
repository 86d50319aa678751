"""Beats: R peaks in an ECG, pulses in a PPG, and the rhythm that a pulse tells."""

from math import inf, nan

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from p2es.filters import bandpass, bandpass_ppg, bridge, resample
from p2es.windows import FS_HZ

QRS_BAND_HZ = (5.0, 30.0)
PREMATURE, PAUSE = 0.8, 1.5
"""Shares of the usual interval below and above which a beat comes early and late.

20 % is the least prematurity of a premature beat in studies of heart rate turbulence (Schmidt et al., Lancet 1999;
librasch.org/hrt). A pause is half way between one interval and the two of a beat that did not come: this project's
choice.
"""
PAUSE_S = 2.0
"""A longer interval is a pause whatever is usual (Grauer and Leytem, Am Fam Physician 1992)."""
_REFRACTORY_S = 0.3
# A dicrotic wave comes 0.30 to 0.36 s after the systolic rise; real beats that close are seldom so much smaller.
_DICROTIC_S = 0.42

# The intervals that tell the usual one, and the least of them.
_AROUND, _LEAST = 8, 4

Floats = NDArray[np.floating]


def prominence(qrs: Floats) -> NDArray[np.float64]:
    """Give (...,) how far the largest 2 % of |x| (..., time) stand above its median; 0 where flat.

    In 5-30 Hz it is 3.5 in white noise and above 7 in a clean lead.
    """
    size = np.abs(qrs)
    middle, top = np.quantile(size, (0.5, 0.98), axis=-1)
    return np.where(top > 1e-9, top / np.maximum(middle, 1e-3 * top + 1e-300), 0.0)


def pulse_onsets(ppg: Floats, fs_hz: float, mask: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Find the steepest systolic rise of each pulse.

    Peaks of the slope of the band-passed PPG that reach 0.4 of the largest slope usual nearby (median over
    five blocks of 2 s), at least 0.3 s apart, placed between samples by a parabola. The dicrotic wave of a
    slow pulse can be as steep as its systole: a peak soon after another that climbs less than 0.6 of it is
    left out.

    Parameters
    ----------
    ppg : array (time,)
        Upright (rising in systole), any unit.
    fs_hz : float
    mask : array (time,), optional
        True where recorded.

    Returns
    -------
    array (pulse,)
        Seconds from the first sample, ascending; empty when there is no pulse.
    """
    valid = np.isfinite(ppg) if mask is None else mask & np.isfinite(ppg)
    if ppg.size < 2 * fs_hz or valid.sum() < fs_hz:
        return np.empty(0)
    slope = np.gradient(bridge(bandpass_ppg(np.where(valid, ppg, nan), fs_hz))[0]) * fs_hz
    slope[~valid] = 0.0
    height = 0.4 * _usual_maximum(slope, fs_hz)
    peaks, _ = signal.find_peaks(slope, height=height, distance=_REFRACTORY_S * fs_hz)
    peaks = peaks[slope[peaks] > 0.0]
    climb = _climbs(slope, peaks)
    dicrotic = (np.diff(peaks, prepend=-np.inf) < _DICROTIC_S * fs_hz) & (climb < 0.6 * np.roll(climb, 1))
    peaks = peaks[~dicrotic]
    return (peaks + _parabola_offset(slope, peaks)) / fs_hz


def regularity(beats_s: NDArray[np.float64]) -> str:
    """Tell a rhythm from its beats, seconds: `regular`, `irregular`, or `unknown` with fewer than 5.

    Irregular is where neighbouring intervals differ by more than 10 % of the usual one at the median; respiration alone
    gives up to about 5 %.
    """
    if beats_s.size < 5:
        return "unknown"
    intervals = np.diff(beats_s)
    change = float(np.median(np.abs(np.diff(intervals)))) / float(np.median(intervals))
    return "irregular" if change > 0.10 else "regular"


def usual_intervals_s(intervals_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the usual interval (interval,) about each: the median of the 8 around it, itself among them.

    Of an even number if there are fewer: where every other beat is premature, half of them are short and half long, and
    their median lies between. Studies of heart rate turbulence take the five sinus intervals before a beat, which ten
    seconds seldom hold. NaN with fewer than 4 intervals, of which none is usual.
    """
    count = min(_AROUND, intervals_s.size) // 2 * 2
    if count < _LEAST:
        return np.full(intervals_s.size, nan)
    blocks = np.median(np.lib.stride_tricks.sliding_window_view(intervals_s, count), axis=1)
    first = np.arange(intervals_s.size) - count // 2
    return np.asarray(blocks[np.clip(first, 0, blocks.size - 1)])


def early_and_late(beats_s: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tell which beats come early (premature) and which end a pause, by the interval before each.

    Below `PREMATURE` of the usual interval, and above `PAUSE` of it or `PAUSE_S`. By intervals alone: the beat after
    an interpolated one counts as premature, and so do the short intervals of fibrillation; the pause that compensates
    for a premature beat is one if it is long enough.

    Parameters
    ----------
    beats_s : array (beat,)
        Seconds, ascending.

    Returns
    -------
    premature, pause : array (beat,)
        False of the first beat, which has no interval.
    """
    intervals_s = np.diff(beats_s)
    usual_s = usual_intervals_s(intervals_s)
    premature, pause = np.zeros(beats_s.size, bool), np.zeros(beats_s.size, bool)
    # NaN compares as False: without a usual interval nothing is early, and only 2 s are long.
    premature[1:] = intervals_s < PREMATURE * usual_s
    pause[1:] = (intervals_s > PAUSE * usual_s) | (intervals_s > PAUSE_S)
    return premature, pause


def _climbs(slope: NDArray[np.float64], peaks: NDArray[np.intp]) -> NDArray[np.float64]:
    """Give how far the signal climbs, from foot to top, around each peak of its slope."""
    runs, count = ndimage.label(slope > 0.0)
    climbs = ndimage.sum_labels(slope, runs, np.arange(count + 1))
    return climbs[runs[peaks]]


def _usual_maximum(x: NDArray[np.float64], fs_hz: float) -> NDArray[np.float64]:
    """Give the largest value usual nearby, (time,) as x, never below 0.3 of what is usual in the whole."""
    block = int(2 * fs_hz)
    count = max(x.size // block, 1)
    maxima = x[: count * block].reshape(count, -1).max(axis=1)
    overall = float(np.median(maxima[maxima > 0])) if (maxima > 0).any() else inf
    smooth = np.maximum(ndimage.median_filter(maxima, size=5, mode="nearest"), 0.3 * overall)
    return np.interp(np.arange(x.size), (np.arange(count) + 0.5) * block, smooth)


def _parabola_offset(x: Floats, peaks: NDArray[np.intp]) -> NDArray[np.float64]:
    """Give the top of the parabola through each peak and its neighbours, in samples from the peak."""
    at = np.clip(peaks, 1, x.size - 2)
    before, top, after = x[at - 1], x[at], x[at + 1]
    bend = before - 2 * top + after
    return np.where(bend < 0, np.clip(0.5 * (before - after) / np.where(bend < 0, bend, -1.0), -0.5, 0.5), 0.0)


def cut_around(x: Floats, centres: NDArray[np.intp], before: int, after: int) -> Floats:
    """Cut (centre, before + after) pieces of x (time,); outside it the ends are held."""
    index = centres[:, None] + np.arange(-before, after)
    return x[np.clip(index, 0, x.size - 1)]


def r_peaks(ecg_mv: Floats, fs_hz: float, lead_mask: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Find the R peaks: sleepecg on one signal fused from all leads, then aligned beat to beat.

    The fused signal is the first principal component of the leads in 5-30 Hz, each weighted by how far its
    QRS stands out, so that neither a noisy lead nor one across the QRS axis decides. It is not padded: with
    one second of reflection 23 false beats were found among 697 of LUDB, with none 1. Each beat is then
    shifted to fit the median beat of the spatial magnitude, and the peak of that median beat, smoothed over
    10 ms, is the R peak of all: the same event in every beat, where a peak picked beat by beat hops between R
    and S.

    Parameters
    ----------
    ecg_mv : array (lead, time)
        Any number of leads; NaN is taken as not recorded. Gain and sign do not matter.
    fs_hz : float
    lead_mask : array (lead,), optional
        True for the leads to use.

    Returns
    -------
    array (beat,)
        Seconds from the first sample, ascending; empty when no lead has anything to find.
    """
    leads = np.asarray(ecg_mv, np.float64)
    if lead_mask is not None:
        leads = leads[np.asarray(lead_mask, bool)]
    leads = bridge(leads)[0]
    if leads.shape[0] == 0 or leads.shape[1] < 2 * fs_hz:
        return np.empty(0)
    rate_hz = fs_hz if fs_hz >= FS_HZ else 2 * FS_HZ
    leads = np.asarray(resample(leads, fs_hz, rate_hz), np.float64)
    return r_peaks_in_band(bandpass(leads, rate_hz, QRS_BAND_HZ), rate_hz)


def r_peaks_in_band(qrs: Floats, fs_hz: float) -> NDArray[np.float64]:
    """Find the R peaks in leads (lead, time) that are in 5-30 Hz already, without NaN; otherwise as `r_peaks`."""
    if qrs.shape[0] == 0 or qrs.shape[1] < 2 * fs_hz:
        return np.empty(0)
    weight = np.clip(prominence(qrs) - 3.5, 0.05, 5.0) * (np.abs(qrs).max(axis=1) > 1e-9)
    if not weight.any():
        return np.empty(0)
    qrs = (
        np.asarray(qrs, np.float64)
        * (weight / np.maximum(np.quantile(np.abs(qrs), 0.98, axis=1), 1e-9) ** 0.5)[:, None]
    )
    beats = _detect(qrs, fs_hz)
    magnitude = ndimage.gaussian_filter1d(np.linalg.norm(qrs, axis=0), 0.010 * fs_hz)
    return np.unique(_align(magnitude, beats, fs_hz)) / fs_hz


def _detect(qrs: Floats, fs_hz: float) -> NDArray[np.intp]:
    """Give the beats (beat,) of QRS-band leads (lead, time), in samples."""
    from sleepecg import detect_heartbeats

    fused = np.linalg.eigh(qrs @ qrs.T)[1][:, -1] @ qrs
    # sleepecg looks for upward peaks, and the sign of a principal component is arbitrary.
    fused *= np.sign(np.mean(fused**3)) or 1.0
    beats = np.asarray(detect_heartbeats(fused, fs_hz), np.intp)
    if beats.size == 0:
        return beats
    # When sleepecg's first threshold falls too low it takes every T wave too; in 5-30 Hz those stay below
    # this.
    largest = ndimage.maximum_filter1d(np.linalg.norm(qrs, axis=0), int(0.12 * fs_hz))[beats]
    return beats[largest > 0.3 * np.quantile(largest, 0.75)]


def _align(magnitude: NDArray[np.float64], beats: NDArray[np.intp], fs_hz: float) -> NDArray[np.float64]:
    """Move each beat to the same point of the median beat; samples, with fractions."""
    if beats.size == 0:
        return beats.astype(np.float64)
    half, reach = int(0.10 * fs_hz), int(0.06 * fs_hz)
    for _ in range(2):
        template = np.median(cut_around(magnitude, beats, half, half + 1), axis=0)
        # Re-centre on the peak first, so that the shifts below stay small.
        beats = np.clip(beats + int(np.argmax(template)) - half, 0, magnitude.size - 1)
        template = np.median(cut_around(magnitude, beats, half, half + 1), axis=0)
        pieces = cut_around(magnitude, beats, half + reach, half + reach + 1)
        windows = np.lib.stride_tricks.sliding_window_view(pieces, template.size, axis=1)
        misfit = np.square(windows - template).sum(axis=2)
        beats = np.clip(beats + np.argmin(misfit, axis=1) - reach, 0, magnitude.size - 1)
    template = np.median(cut_around(magnitude, beats, half, half + 1), axis=0)
    peak = np.array([np.argmax(template)])
    exact = beats + (peak - half + _parabola_offset(template, peak))[0]
    return exact[(exact >= 0) & (exact <= magnitude.size - 1)]
