"""The median beat of a short ECG: the beats of the dominant shape, laid over each other to a fraction of a sample.

Nothing is high-passed, because 0.5 Hz moves ST levels and the ends of P and T: the baseline is a spline through the
quietest moment of each beat.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import inf, isfinite, nan, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate, ndimage, signal

from p2es.beats import r_peaks
from p2es.errors import InputError
from p2es.filters import bridge, resample
from p2es.leads import INDEPENDENT, LEADS, N_INDEPENDENT, N_LEADS, complete_limb_leads

WORK_HZ = 500.0
"""Every ECG is measured at this rate, so that one set of lengths holds for all."""
MIN_RATE_HZ = 100.0

# The P of a PR of 400 ms, and the T end of a QT of 600 ms at 48 beats a minute; at faster rates these shares of the
# interval, which leave the neighbouring beats' QRS out.
_BEFORE_S, _AFTER_S = 0.46, 0.76
_BEFORE_SHARE, _AFTER_SHARE = 0.62, 0.74
_MAX_MISSING = 0.2

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class MedianBeat:
    """The median of the beats of the dominant shape.

    Attributes
    ----------
    ecg_mv : array (8, time)
        The independent leads, against a baseline through the beats' quietest moments; 0 in a lead that is missing.
    error_mv : array (8, time)
        Standard error of the median, from the spread of the beats.
    beats_mv : array (beat, 8, time)
        The beats it is the median of.
    present : array (8,)
        True for the leads that were recorded.
    r_sample : int
        The R peak; the rate is `WORK_HZ`.
    rr_s : float
        Usual (median) interval; NaN with fewer than two beats.
    kept, left_out : int
        Beats in the median, and beats of another shape (premature, wide, disturbed). The neighbours of those, and beats
        that the ends of the recording cut, are in neither where enough others are left.
    reason : str
        Why there is no beat; empty when there is one.
    """

    ecg_mv: Array
    error_mv: Array
    beats_mv: Array
    present: Mask
    r_sample: int
    rr_s: float
    kept: int
    left_out: int
    reason: str = ""


def median_beat(ecg_mv: NDArray[np.floating], fs_hz: float, r_peaks_s: Array | None = None) -> MedianBeat:
    """Give the median of the beats of the dominant shape, at 500 Hz.

    Parameters
    ----------
    ecg_mv : array (12, time) or (8, time)
        In the order of `LEADS` or `INDEPENDENT`; NaN where nothing was recorded. A lead that misses more than a fifth
        is left out; I and II follow from any two limb leads.
    fs_hz : float
        100 or more.
    r_peaks_s : array (beat,), optional
        Seconds from the first sample, ascending; else `beats.r_peaks`.

    Returns
    -------
    MedianBeat
        With a `reason` and nothing else when there are no beats, or no two alike.

    Raises
    ------
    InputError
        Not 8 or 12 leads, or a rate that is too low.
    """
    return median_of_leads(*at_work_rate(ecg_mv, fs_hz, r_peaks_s))


def dominant_shape(ecg_mv: NDArray[np.floating], fs_hz: float, r_peaks_s: NDArray[np.floating]) -> Mask:
    """Tell which beats have the shape that most have, from 120 ms before to 160 ms after R.

    Parameters
    ----------
    ecg_mv : array (12, time) or (8, time)
        As for `median_beat`.
    fs_hz : float
        100 or more.
    r_peaks_s : array (beat,)
        Seconds from the first sample.

    Returns
    -------
    array (beat,)
        False for the beats of another shape, and for those outside the window.

    Raises
    ------
    InputError
        Not 8 or 12 leads, or a rate that is too low.
    """
    peaks_s = np.asarray(r_peaks_s, np.float64)
    leads, _, _ = at_work_rate(ecg_mv, fs_hz, peaks_s)
    inside = _inside(peaks_s * WORK_HZ, leads)
    found = np.zeros(peaks_s.size, bool)
    if inside.any():
        found[inside] = alike(leads, peaks_s[inside] * WORK_HZ)
    return found


def at_work_rate(
    ecg_mv: NDArray[np.floating], fs_hz: float, r_peaks_s: NDArray[np.floating] | None
) -> tuple[Array, Mask, Array]:
    """Give the 8 leads (8, time) at `WORK_HZ`, which of them were recorded, and R (beat,) in samples of them.

    Parameters, errors and what becomes of missing leads: as of `median_beat`.
    """
    leads, present = independent_leads(ecg_mv, fs_hz)
    if r_peaks_s is None:
        r_peaks_s = r_peaks(leads[present], fs_hz)
    leads = np.asarray(resample(leads, fs_hz, WORK_HZ), np.float64)
    at = np.asarray(r_peaks_s, np.float64) * WORK_HZ
    return leads, present, at[_inside(at, leads)]


def _inside(at: Array, leads: Array) -> Mask:
    return (at >= 0) & (at <= leads.shape[1] - 1)


def median_of_leads(leads: Array, present: Mask, at: Array, usual: Mask | None = None) -> MedianBeat:
    """Give the median beat of what `at_work_rate` gives; of the beats `usual` (beat,), else those that are `alike`."""
    if at.size == 0:
        return _no_beat(present, 0, "no beats were found")
    rr_s = float(np.median(np.diff(at))) / WORK_HZ if at.size > 1 else nan
    usual = alike(leads, at) if usual is None else usual
    left_out = int(np.count_nonzero(~usual))
    if np.count_nonzero(usual) < max(at.size / 3, 2 if left_out else 1):
        return _no_beat(present, left_out, "no three of ten beats are alike")
    at = at[_undisturbed(usual)]
    before, after = reach_of(rr_s)
    pieces, r_sample = _aligned(leads, at, np.arange(-before, after))
    middle = median_of(pieces)
    error = error_of(pieces, middle)
    return MedianBeat(middle, error, pieces, present, r_sample, rr_s, len(pieces), left_out)


def independent_leads(ecg_mv: NDArray[np.floating], fs_hz: float) -> tuple[Array, Mask]:
    """Give the 8 independent leads (8, time), without NaN, and which of them were recorded."""
    ecg = np.asarray(ecg_mv, np.float64)
    if ecg.ndim != 2 or ecg.shape[0] not in (N_INDEPENDENT, N_LEADS):
        raise InputError(f"the ECG has shape {ecg.shape}: give (12, time) or (8, time)")
    if not (isfinite(fs_hz) and fs_hz >= MIN_RATE_HZ):
        raise InputError(f"an ECG at {fs_hz:g} Hz cannot be measured: give {MIN_RATE_HZ:g} Hz or more")
    names = LEADS if ecg.shape[0] == N_LEADS else INDEPENDENT
    missing = (~np.isfinite(ecg)).mean(axis=1) if ecg.shape[1] else np.ones(ecg.shape[0])
    known = {name: row for name, row, share in zip(names, ecg, missing, strict=True) if share <= _MAX_MISSING}
    known = complete_limb_leads(known)
    present = np.array([name in known for name in INDEPENDENT])
    leads = np.stack([known.get(name, np.zeros(ecg.shape[1])) for name in INDEPENDENT])
    leads = bridge(leads)[0]
    return leads - np.median(leads[:, ::8], axis=1, keepdims=True) if leads.shape[1] else leads, present


def _no_beat(present: Mask, left_out: int, reason: str) -> MedianBeat:
    empty = np.zeros((N_INDEPENDENT, 0))
    return MedianBeat(empty, empty, empty[None, :0], present, 0, nan, 0, left_out, reason)


def reach_of(rr_s: float) -> tuple[int, int]:
    """Give how many samples before and after R a beat is cut."""
    usual_s = rr_s if isfinite(rr_s) else inf
    before_s, after_s = min(_BEFORE_S, _BEFORE_SHARE * usual_s), min(_AFTER_S, _AFTER_SHARE * usual_s)
    return int(before_s * WORK_HZ), int(after_s * WORK_HZ)


def cut_beats(leads: Array, at: Array, offsets: NDArray[np.intp]) -> Array:
    """Cut (beat, lead, offset) around times `at` (beat,) between samples, by cubic interpolation; ends are held."""
    whole = np.floor(at).astype(np.intp)
    f = (at - whole)[:, None, None]
    index = whole[:, None] + np.arange(offsets[0] - 1, offsets[-1] + 3)
    pieces = leads[:, np.clip(index, 0, leads.shape[1] - 1)].transpose(1, 0, 2)
    weights = (-f * (1 - f) * (2 - f) / 6, (1 - f * f) * (2 - f) / 2, f * (1 + f) * (2 - f) / 2, -f * (1 - f * f) / 6)
    result = weights[0] * pieces[..., : offsets.size]
    for k in range(1, 4):
        result += weights[k] * pieces[..., k : k + offsets.size]
    return result


def median_of(beats: Array) -> Array:
    """Give the median along the first axis: sorted whole, which takes a third of the time of `numpy.median`."""
    ordered = np.sort(beats, axis=0)
    middle = len(ordered) // 2
    return np.asarray(0.5 * (ordered[middle] + ordered[-middle - 1]))


def alike(leads: Array, at: Array) -> Mask:
    """Tell which beats (beat,) have the dominant shape, from 120 ms before to 160 ms after R."""
    near = cut_beats(leads, np.round(at), np.arange(-60, 80))
    near = near.reshape(at.size, N_INDEPENDENT, -1, 5).mean(axis=3)
    near = (near - near.mean(axis=2, keepdims=True)).reshape(at.size, -1)
    size = np.linalg.norm(near, axis=1)
    same = near @ near.T > 0.8 * np.maximum(np.outer(size, size), 1e-12)
    kept = same[np.argmax(same.sum(axis=1))]
    for _ in range(2):
        if not kept.any():
            break
        template = median_of(near[kept])
        misfit = np.square(near - template).sum(axis=1)
        # The second term lets noise pass that all beats have.
        limit = 0.15 * template @ template + 3.0 * np.quantile(misfit, 0.25)
        kept = misfit < min(limit, 0.6 * template @ template)
    return kept


def _undisturbed(same: Mask) -> Mask:
    """Leave out also the neighbours of beats of other shape, for those lie on their T and P, where half stay."""
    odd = ~same
    near = odd.copy()
    near[1:] |= odd[:-1]
    near[:-1] |= odd[1:]
    alone = np.count_nonzero(~near)
    return ~near if alone >= max(5, 0.5 * np.count_nonzero(same)) else same


def _aligned(leads: Array, at: Array, offsets: NDArray[np.intp]) -> tuple[Array, int]:
    """Give beats (beat, 8, time) over each other, off their baseline; and the sample of R."""
    r = -int(offsets[0])
    knots = at + quiet_phase(leads, at, r)
    inside = (at + offsets[0] >= 0) & (at + offsets[-1] < leads.shape[1])
    if np.count_nonzero(inside) >= 3:
        at = at[inside]
    baseline = baseline_under(leads, knots, at, offsets)
    near = slice(max(r - 50, 0), r + 60)
    for _ in range(2):
        pieces = cut_beats(leads, at, offsets[near]) - baseline[..., near]
        middle = median_of(pieces)
        slope = np.gradient(middle, axis=1)
        shift = ((pieces - middle) * slope).sum(axis=(1, 2)) / max(float(np.square(slope).sum()), 1e-12)
        at = at - np.clip(shift, -3.0, 3.0)
    return cut_beats(leads, at, offsets) - baseline, r


def quiet_phase(leads: Array, at: Array, r: int) -> int:
    """Give the quietest moment between 300 and 30 ms before R, in samples from R, of beats cut from r before."""
    first = max(-150, 6 - r)
    rough = cut_beats(leads, at, np.arange(first - 6, -9))
    rough -= rough.mean(axis=2, keepdims=True)
    speed = ndimage.uniform_filter1d(speed_of(median_of(rough)), 13)
    return first + int(np.argmin(speed[6:-6]))


@lru_cache(maxsize=8)
def _fit(length: int, order: int) -> Array:
    """Give the Savitzky-Golay weights, for `correlate1d`, of the value or the slope of a cubic."""
    return np.asarray(signal.savgol_coeffs(length, 3, deriv=order, use="dot"), np.float64)


def smooth_beat(beat: Array) -> Array:
    """Smooth (lead, time) over 22 ms: a cubic, -3 dB at 54 Hz."""
    return np.asarray(ndimage.correlate1d(beat, _fit(11, 0), axis=1, mode="nearest"))


def speed_of(beat: Array) -> Array:
    """Give ||dv/dt|| (time,) of a beat (lead, time), mV a sample, over 30 ms."""
    slope = ndimage.correlate1d(beat, _fit(15, 1), axis=1, mode="nearest")
    return np.asarray(np.linalg.norm(slope, axis=0))


def baseline_under(leads: Array, knots: Array, at: Array, offsets: NDArray[np.intp]) -> Array:
    """Give (beat, lead, time) of a cubic spline through the levels around the knots, held outside them."""
    whole = (knots >= 6) & (knots <= leads.shape[1] - 7)
    level = cut_beats(leads, knots, np.arange(-6, 7)).mean(axis=2)
    if np.count_nonzero(whole) < 3:
        return np.repeat(level[-at.size :, :, None], offsets.size, axis=2)
    knots, level = knots[whole], level[whole]
    coarse, spread = _spread(int(offsets[0]), int(offsets[-1]))
    where = np.clip(at[:, None] + coarse, knots[0], knots[-1])
    spline = interpolate.CubicSpline(knots, level, bc_type="natural")(where)
    return np.asarray(spline.transpose(0, 2, 1) @ spread, np.float64)


@lru_cache(maxsize=64)
def _spread(first: int, last: int) -> tuple[NDArray[np.intp], Array]:
    """Give every tenth sample (k,) of first..last, and the linear interpolation (k, time) between them."""
    offsets = np.arange(first, last + 1)
    coarse = np.append(offsets[:-1:10], last)
    return coarse, np.array([np.interp(offsets, coarse, row) for row in np.eye(coarse.size)])


def error_of(pieces: Array, middle: Array) -> Array:
    """Give the standard error (8, time) of a median of beats, each smoothed over 10 ms."""
    n, _, length = pieces.shape
    if n < 3:
        # Too few to compare: the second difference of white noise has sqrt(6) of its SD, a mean of five 1 / sqrt(5).
        noise = np.median(np.abs(np.diff(middle, 2, axis=1)), axis=1) / (0.6745 * sqrt(6.0) * sqrt(5.0))
        return np.repeat(noise[:, None], length, axis=1)
    part = slice(0, length // 5 * 5)
    off = (pieces[..., part] - middle[:, part]).reshape(n, N_INDEPENDENT, -1, 5).mean(axis=3)
    # Of normal deviates 1.25 times the mean size is the SD; a median errs 1.25 times as much as a mean.
    error = 1.25 * 1.25 / sqrt(n - 1.5) * np.abs(off).mean(axis=0)
    error = ndimage.uniform_filter1d(error, 5, axis=1)
    return error[:, np.minimum(np.arange(length) // 5, error.shape[1] - 1)]
