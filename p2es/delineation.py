"""P, QRS and T of the median beat: intervals, axes, amplitudes and ST levels of a short ECG.

The beats of the dominant shape are laid over each other to a fraction of a sample; their median, lead by lead, is
measured. Global times are those of the 8 independent leads at once, on the spatial magnitude: the length of the vector
whose components are the leads. A wave begins and ends where that magnitude leaves and reaches 5 % of the wave's own
largest (reference/clinical.md, 3.3 and 7.3).

Nothing is high-passed, because 0.5 Hz moves ST levels and the ends of P and T: the baseline is a spline through the
quietest moment of each beat, and levels count from the isoelectric line before QRS. In the stored windows, which are
0.5-40 Hz, QT comes out 1 to 9 ms short (SD 3 to 6): compare like with like.

On Gaussian beats of 12 morphologies PR, QRS and QT have a bias and an SD below 3 ms, at 128 to 500 Hz; but PR an SD of
3 to 5 ms at low voltage, and QT a bias of -6 ms where the end of T meets a raised ST. Cardiologists begin QRS about
20 ms earlier and end it as much later (LUDB); P and T they mark alike within 7 ms.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import atan2, degrees, hypot, inf, isfinite, log, nan, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate, ndimage, signal

from p2es.beats import r_peaks
from p2es.errors import InputError
from p2es.filters import bridge, resample
from p2es.leads import INDEPENDENT, LEADS, LIFT, N_INDEPENDENT, N_LEADS, complete_limb_leads

WORK_HZ = 500.0
"""Every ECG is measured at this rate, so that one set of lengths holds for all."""
MIN_RATE_HZ = 100.0

# The P of a PR of 400 ms, and the T end of a QT of 600 ms at 48 beats a minute; at faster rates these shares of the
# interval, which leave the neighbouring beats' QRS out.
_BEFORE_S, _AFTER_S = 0.46, 0.76
_BEFORE_SHARE, _AFTER_SHARE = 0.62, 0.74
_MAX_MISSING = 0.2

# A wave's ends are where its magnitude crosses this share of its largest.
_EDGE = 0.05
# A summit this high (share of QRS) in the 24 ms before what seems the onset is a delta wave's; P comes earlier.
_DELTA = 0.06
# How sure (t) the likeness of the beats to the median must be: simulated P waves have 16 and more, f waves 8 and less,
# the flutter in LUDB 10.
_MIN_STEADINESS = 10.5
_MIN_QRS_MV, _MIN_T_MV, _MIN_P_MV = 0.1, 0.05, 0.02
_MIN_R_MV, _FLAT_T_MV = 0.02, 0.05
# The shortest P of people is near 60 ms; the foot of a slow QRS passed for one of 26 ms.
_MIN_P_S = 0.045
# Below these net areas an axis is left out (clinical.md 3.3: 10 uV s); of P the usual area is 8 uV s itself.
_MIN_AREA_MV_S = {"QRS": 0.010, "T": 0.010, "P": 0.002}
_T_FROM_J_S = 0.04
# The top of T comes before this share of the interval, the next P after it.
_T_PEAK_SHARE = 0.65
# Pairs of levels on a flank from which its end is extrapolated. The onset of P starts high, for T may lie below.
_T_LEVELS = ((0.3, 0.1), (0.4, 0.15), (0.6, 0.2), (0.7, 0.35), (0.8, 0.5))
_P_ON_LEVELS = ((0.6, 0.2), (0.7, 0.35), (0.8, 0.5))
_P_OFF_LEVELS = ((0.3, 0.1), (0.6, 0.2), (0.7, 0.35), (0.8, 0.5))
# Samples (2 ms) between the ends that two pairs tell above which the nearer is believed; on Gaussian T waves they
# differ by 8 at most.
_DISAGREE = 12.0
# Samples after the extrapolated end of T within which its 5 % are believed; without them T's slow foot ends 2 ms later.
_T_TRUST, _T_SHIFT = 6.0, 1.0
_P_REACH = 60


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


@dataclass(frozen=True)
class Delineation:
    """What was measured. What was not found is NaN, with its reason in `missing`.

    Attributes
    ----------
    p_on_s, p_peak_s, p_off_s, qrs_on_s, qrs_off_s, t_peak_s, t_off_s : float
        Global times, seconds from R.
    rr_s : float
    p_axis_deg, qrs_axis_deg, t_axis_deg : float
        Frontal axes from net areas, (-180, 180].
    p_mv, q_mv, r_mv, s_mv, t_mv : array (12,)
        Amplitudes against the isoelectric line; Q and S are 0 or negative, R is 0 or positive. A QRS without R counts
        as S.
    st_mv : array (12,)
        At J + 60 ms, above 100 beats a minute at J + 40 ms.
    t_polarity : array (12,)
        1, -1, or 0 where T stays within 0.05 mV.
    transition : float
        Where R/S becomes 1 on the way from V1 (1) to V6 (6), between leads by interpolation.
    transition_lead : str or None
        The first lead with R/S >= 1.
    kept, left_out : int
        As in `MedianBeat`.
    missing : mapping
        Of what was not found ("QRS", "P", "T", "RR", "QRS axis", ...): the reason.
    """

    p_on_s: float = nan
    p_peak_s: float = nan
    p_off_s: float = nan
    qrs_on_s: float = nan
    qrs_off_s: float = nan
    t_peak_s: float = nan
    t_off_s: float = nan
    rr_s: float = nan
    p_axis_deg: float = nan
    qrs_axis_deg: float = nan
    t_axis_deg: float = nan
    p_mv: Array = field(default_factory=lambda: np.full(N_LEADS, nan))
    q_mv: Array = field(default_factory=lambda: np.full(N_LEADS, nan))
    r_mv: Array = field(default_factory=lambda: np.full(N_LEADS, nan))
    s_mv: Array = field(default_factory=lambda: np.full(N_LEADS, nan))
    t_mv: Array = field(default_factory=lambda: np.full(N_LEADS, nan))
    st_mv: Array = field(default_factory=lambda: np.full(N_LEADS, nan))
    t_polarity: Array = field(default_factory=lambda: np.full(N_LEADS, nan))
    transition: float = nan
    transition_lead: str | None = None
    kept: int = 0
    left_out: int = 0
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def p_ms(self) -> float:
        """Duration of P."""
        return 1000.0 * (self.p_off_s - self.p_on_s)

    @property
    def pr_ms(self) -> float:
        """From the onset of P to that of QRS."""
        return 1000.0 * (self.qrs_on_s - self.p_on_s)

    @property
    def qrs_ms(self) -> float:
        """Duration of QRS."""
        return 1000.0 * (self.qrs_off_s - self.qrs_on_s)

    @property
    def qt_ms(self) -> float:
        """From the onset of QRS to the end of T."""
        return 1000.0 * (self.t_off_s - self.qrs_on_s)

    @property
    def qtcf_ms(self) -> float:
        """QT at 60 beats a minute, after Fridericia: QT / RR^(1/3)."""
        return self.qt_ms / self.rr_s ** (1 / 3)

    @property
    def qtcb_ms(self) -> float:
        """QT at 60 beats a minute, after Bazett: QT / RR^(1/2)."""
        return self.qt_ms / self.rr_s**0.5


def measure_ecg(ecg_mv: NDArray[np.floating], fs_hz: float) -> Delineation:
    """Measure an ECG: `delineate` of its `median_beat`."""
    return delineate(median_beat(ecg_mv, fs_hz))


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
    leads, present = _independent(ecg_mv, fs_hz)
    if r_peaks_s is None:
        r_peaks_s = r_peaks(leads[present], fs_hz)
    leads = np.asarray(resample(leads, fs_hz, WORK_HZ), np.float64)
    at = np.asarray(r_peaks_s, np.float64) * WORK_HZ
    at = at[(at >= 0) & (at <= leads.shape[1] - 1)]
    if at.size == 0:
        return _no_beat(present, 0, "no beats were found")
    rr_s = float(np.median(np.diff(at))) / WORK_HZ if at.size > 1 else nan
    alike = _alike(leads, at)
    left_out = int(np.count_nonzero(~alike))
    if np.count_nonzero(alike) < max(at.size / 3, 2 if left_out else 1):
        return _no_beat(present, left_out, "no three of ten beats are alike")
    at = at[_undisturbed(alike)]
    before, after = _reach(rr_s)
    pieces, r_sample = _aligned(leads, at, np.arange(-before, after))
    middle = _median(pieces)
    error = _error(pieces, middle)
    return MedianBeat(middle, error, pieces, present, r_sample, rr_s, len(pieces), left_out)


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
    leads = np.asarray(resample(_independent(ecg_mv, fs_hz)[0], fs_hz, WORK_HZ), np.float64)
    at = np.asarray(r_peaks_s, np.float64) * WORK_HZ
    inside = (at >= 0) & (at <= leads.shape[1] - 1)
    found = np.zeros(at.size, bool)
    if inside.any():
        found[inside] = _alike(leads, at[inside])
    return found


def _independent(ecg_mv: NDArray[np.floating], fs_hz: float) -> tuple[Array, Mask]:
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


def _reach(rr_s: float) -> tuple[int, int]:
    """Give how many samples before and after R a beat is cut."""
    usual_s = rr_s if isfinite(rr_s) else inf
    before_s, after_s = min(_BEFORE_S, _BEFORE_SHARE * usual_s), min(_AFTER_S, _AFTER_SHARE * usual_s)
    return int(before_s * WORK_HZ), int(after_s * WORK_HZ)


def _cut(leads: Array, at: Array, offsets: NDArray[np.intp]) -> Array:
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


def _median(beats: Array) -> Array:
    """Give the median along the first axis: sorted whole, which takes a third of the time of `numpy.median`."""
    ordered = np.sort(beats, axis=0)
    middle = len(ordered) // 2
    return np.asarray(0.5 * (ordered[middle] + ordered[-middle - 1]))


def _alike(leads: Array, at: Array) -> Mask:
    """Tell which beats (beat,) have the dominant shape, from 120 ms before to 160 ms after R."""
    near = _cut(leads, np.round(at), np.arange(-60, 80))
    near = near.reshape(at.size, N_INDEPENDENT, -1, 5).mean(axis=3)
    near = (near - near.mean(axis=2, keepdims=True)).reshape(at.size, -1)
    size = np.linalg.norm(near, axis=1)
    same = near @ near.T > 0.8 * np.maximum(np.outer(size, size), 1e-12)
    kept = same[np.argmax(same.sum(axis=1))]
    for _ in range(2):
        if not kept.any():
            break
        template = _median(near[kept])
        misfit = np.square(near - template).sum(axis=1)
        # The second term lets noise pass that all beats have.
        limit = 0.15 * template @ template + 3.0 * np.quantile(misfit, 0.25)
        kept = misfit < min(limit, 0.6 * template @ template)
    return kept


def _undisturbed(alike: Mask) -> Mask:
    """Leave out also the neighbours of beats of other shape, for those lie on their T and P, where half stay."""
    odd = ~alike
    near = odd.copy()
    near[1:] |= odd[:-1]
    near[:-1] |= odd[1:]
    alone = np.count_nonzero(~near)
    return ~near if alone >= max(5, 0.5 * np.count_nonzero(alike)) else alike


def _aligned(leads: Array, at: Array, offsets: NDArray[np.intp]) -> tuple[Array, int]:
    """Give beats (beat, 8, time) over each other, off their baseline; and the sample of R."""
    r = -int(offsets[0])
    knots = at + _quiet_phase(leads, at, r)
    inside = (at + offsets[0] >= 0) & (at + offsets[-1] < leads.shape[1])
    if np.count_nonzero(inside) >= 3:
        at = at[inside]
    baseline = _baseline(leads, knots, at, offsets)
    near = slice(max(r - 50, 0), r + 60)
    for _ in range(2):
        pieces = _cut(leads, at, offsets[near]) - baseline[..., near]
        middle = _median(pieces)
        slope = np.gradient(middle, axis=1)
        shift = ((pieces - middle) * slope).sum(axis=(1, 2)) / max(float(np.square(slope).sum()), 1e-12)
        at = at - np.clip(shift, -3.0, 3.0)
    return _cut(leads, at, offsets) - baseline, r


def _quiet_phase(leads: Array, at: Array, r: int) -> int:
    """Give the quietest moment between 300 and 30 ms before R, in samples from R, of beats cut from r before."""
    first = max(-150, 6 - r)
    rough = _cut(leads, at, np.arange(first - 6, -9))
    rough -= rough.mean(axis=2, keepdims=True)
    speed = ndimage.uniform_filter1d(_speed(_median(rough)), 13)
    return first + int(np.argmin(speed[6:-6]))


@lru_cache(maxsize=8)
def _fit(length: int, order: int) -> Array:
    """Give the Savitzky-Golay weights, for `correlate1d`, of the value or the slope of a cubic."""
    return np.asarray(signal.savgol_coeffs(length, 3, deriv=order, use="dot"), np.float64)


def _smooth(beat: Array) -> Array:
    """Smooth (lead, time) over 22 ms: a cubic, -3 dB at 54 Hz."""
    return np.asarray(ndimage.correlate1d(beat, _fit(11, 0), axis=1, mode="nearest"))


def _speed(beat: Array) -> Array:
    """Give ||dv/dt|| (time,) of a beat (lead, time), mV a sample, over 30 ms."""
    slope = ndimage.correlate1d(beat, _fit(15, 1), axis=1, mode="nearest")
    return np.asarray(np.linalg.norm(slope, axis=0))


def _baseline(leads: Array, knots: Array, at: Array, offsets: NDArray[np.intp]) -> Array:
    """Give (beat, lead, time) of a cubic spline through the levels around the knots, held outside them."""
    whole = (knots >= 6) & (knots <= leads.shape[1] - 7)
    level = _cut(leads, knots, np.arange(-6, 7)).mean(axis=2)
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


def _error(pieces: Array, middle: Array) -> Array:
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


@lru_cache(maxsize=8)
def _weights(near: int, far: int, line: bool) -> tuple[float, ...]:
    """Give the weights of samples 0 to `far` back that tell the level now: a mean or a line through near..far."""
    k = np.arange(near, far + 1)
    weights = np.full(k.size, 1.0 / k.size)
    if line:
        weights -= k.mean() * (k - k.mean()) / np.square(k - k.mean()).sum()
    return (*np.zeros(near), *weights)


def _departure(beat: Array, near: int, far: int, line: bool) -> Array:
    """Give how far (time,) a beat (lead, time) is from where its samples near..far back would have it."""
    weights = np.array(_weights(near, far, line))
    padded = np.concatenate([np.repeat(beat[:, :1], far, axis=1), beat], axis=1)
    expected = np.stack([np.convolve(row, weights, "valid") for row in padded])
    return np.asarray(np.linalg.norm(beat - expected, axis=0))


def _falls(x: Array, start: int, step: int, level: float, hold: int = 1) -> float:
    """Give where x, from `start` on in steps of 1 or -1, falls below `level` for `hold` samples; NaN if nowhere."""
    along = x[start::step]
    quiet = along < level
    if hold > 1:
        # Of the last `hold` samples none is loud: moved back to the first of them.
        run = np.cumsum(quiet)
        quiet = np.concatenate([run[hold - 1 : hold], run[hold:] - run[:-hold]]) == hold
    if not quiet.any():
        return nan
    k = int(np.argmax(quiet))
    if k == 0:
        return float(start)
    part = (along[k - 1] - level) / (along[k - 1] - along[k])
    return start + step * (k - 1 + float(part))


@dataclass(frozen=True)
class _Wave:
    """Onset, peak and offset in samples of the beat, with fractions; an onset that is not measured is NaN."""

    on: float
    peak: float
    off: float


def delineate(beat: MedianBeat) -> Delineation:
    """Measure a median beat.

    QRS begins where the leads have left their level of 8 to 20 ms before by 5 % of the largest magnitude of QRS, and
    ends where they have come within 5 % of the line through the 10 to 32 ms that follow: neither P nor a raised ST
    moves it. T and P are measured on the magnitude above the isoelectric line; where their 5 % lie in noise or in the
    next wave, they are extrapolated from the flank above, as if it were a Gaussian's.
    """
    waves, missing = dict[str, _Wave](), dict[str, str]()
    if not isfinite(beat.rr_s):
        missing["RR"] = beat.reason or "there is one beat only"
    smooth = beat.ecg_mv if beat.reason else _smooth(beat.ecg_mv)
    found = beat.reason or _qrs(smooth, beat)
    if isinstance(found, str):
        missing |= dict.fromkeys(("QRS", "P", "T"), found)
        return _nothing(beat, missing)
    waves["QRS"] = found
    level = np.zeros((N_INDEPENDENT, 1))
    tail = np.zeros_like(smooth)
    # Where T runs into the next P no isoelectric line is to be seen; what T's tail, once known, leaves is one.
    for _ in range(2):
        level = _isoelectric(smooth - tail, found.on, beat.rr_s)
        t = _t_wave(smooth - level, beat, found)
        tail = _tail(smooth - level, beat, t)
    p = _p_wave(smooth - level - tail, beat, found, t)
    for name, wave in (("T", t), ("P", p)):
        if isinstance(wave, str):
            missing[name] = wave
        else:
            waves[name] = wave
    return _measured(beat, LIFT @ (beat.ecg_mv - level), waves, missing)


def _qrs(smooth: Array, beat: MedianBeat) -> _Wave | str:
    r = beat.r_sample
    middle = smooth - np.median(smooth[:, max(r - 60, 0) : max(r - 20, 1)], axis=1, keepdims=True)
    magnitude = np.linalg.norm(middle, axis=0)
    first = max(r - 30, 0)
    peak = first + int(np.argmax(magnitude[first : r + 60]))
    top = float(magnitude[peak])
    noise = float(np.linalg.norm(beat.error_mv[:, peak]))
    if top < max(_MIN_QRS_MV, 8.0 * noise):
        return f"the largest magnitude of {top:.2f} mV does not stand out of the noise"
    on = _falls(_departure(smooth, 4, 10, line=False), peak, -1, _EDGE * top, hold=6)
    if isfinite(on):
        on = _delta_onset(smooth, on, top, beat.rr_s)
    end = smooth.shape[1] - 1
    off = end - _falls(_departure(smooth[:, ::-1], 5, 16, line=True), end - peak, -1, _EDGE * top, hold=15)
    if not (isfinite(on) and isfinite(off)):
        return "QRS has no end within the beat"
    return _Wave(on, float(peak), off)


def _delta_onset(smooth: Array, on: float, top: float, rr_s: float) -> float:
    """Give the onset of a delta wave whose top `on` turns out to be, else `on`."""
    magnitude = np.linalg.norm(smooth - _isoelectric(smooth, on, rr_s), axis=0)
    k = int(on)
    back = magnitude[max(k - 40, 0) : k + 1][::-1]
    summit = int(np.argmax(back[:13]))
    if back[summit] < _DELTA * top or summit < 2 or summit in (12, back.size - 1):
        return on
    foot = k - summit - int(np.argmin(back[summit:]))
    earlier = _falls(np.linalg.norm(smooth - smooth[:, foot : foot + 1], axis=0), k - summit, -1, _EDGE * top)
    return earlier if isfinite(earlier) else on


def _search(rr_s: float) -> int:
    """Give how many samples before QRS a quiet moment is looked for: 300 ms, less where the T before would be met."""
    return int(min(0.30, 0.40 * rr_s if isfinite(rr_s) else inf) * WORK_HZ)


def _isoelectric(smooth: Array, qrs_on: float, rr_s: float) -> Array:
    """Give the level (8, 1) before QRS: from 32 to 8 ms before it, or, where P reaches into that, the quietest."""
    quiet = ndimage.uniform_filter1d(_speed(smooth), 13)
    before = max(int(qrs_on) - 10, 0)
    first = max(int(qrs_on) - _search(rr_s), 0)
    quietest = first + int(np.argmin(quiet[first : before + 1]))
    at = before if quiet[before] <= 2.0 * quiet[quietest] else quietest
    return np.asarray(smooth[:, max(at - 6, 0) : at + 7].mean(axis=1, keepdims=True), np.float64)


def _magnitude(smooth: Array, error: Array) -> Array:
    """Give the spatial magnitude (time,), less what noise adds to it on average."""
    return np.sqrt(np.maximum(np.square(smooth).sum(axis=0) - np.square(error).sum(axis=0), 0.0))


def _t_wave(smooth: Array, beat: MedianBeat, qrs: _Wave) -> _Wave | str:
    magnitude = _magnitude(smooth, beat.error_mv)
    first = int(qrs.off) + 15
    last = magnitude.size
    if isfinite(beat.rr_s):
        last = min(last, beat.r_sample + int(_T_PEAK_SHARE * beat.rr_s * WORK_HZ))
    if last - first < 10:
        return "the beat is too short for a T"
    peak = first + int(np.argmax(magnitude[first:last]))
    top = float(magnitude[peak])
    if top < _MIN_T_MV:
        return f"T is flat: its largest magnitude is {top:.3f} mV"
    noise = float(np.linalg.norm(beat.error_mv[:, peak:].mean(axis=1)))
    off = _edge(magnitude[peak:], _T_LEVELS, noise)
    if not isfinite(off):
        return "T does not come down within the beat"
    steadiness = _steadiness(beat.beats_mv, first, peak + off)
    if steadiness < _MIN_STEADINESS:
        return f"what follows QRS is not alike from beat to beat (t {steadiness:.1f})"
    direct = _falls(magnitude, peak, 1, _EDGE * top) - peak
    seen = direct < off + _T_TRUST and _EDGE * top > 2.0 * noise
    return _Wave(nan, float(peak), peak + (direct if seen else off + _T_SHIFT))


def _sigmas(share: float) -> float:
    """Give where a Gaussian has fallen to a share of its top, in standard deviations."""
    return sqrt(-2.0 * log(share))


def _edge(flank: Array, levels: tuple[tuple[float, float], ...], noise: float = 0.0) -> float:
    """Give where a flank (time,), from its peak outwards, reaches 5 %; NaN if it does not come down.

    It is extrapolated from where it crosses a pair of `levels`: the first that stand out of the noise, unless the
    next tell an end that is much nearer, for then the flank does not go down to the isoelectric line.
    """
    ends: list[float] = []
    for high, low in levels:
        upper, lower = (_falls(flank, 0, 1, share * float(flank[0])) for share in (high, low))
        slope = (_sigmas(_EDGE) - _sigmas(low)) / (_sigmas(low) - _sigmas(high))
        if isfinite(lower) and (low * flank[0] >= 2.0 * noise or (not ends and (high, low) == levels[-1])):
            ends.append(lower + slope * (lower - upper))
    end = ends[0] if ends else nan
    for other in ends[1:]:
        end = other if other < end - _DISAGREE else end
    return end


def _p_edge(flank: Array, levels: tuple[tuple[float, float], ...]) -> float:
    """Give `_edge`; from the foot of the flank, where that does not lie on the isoelectric line within 120 ms."""
    edge = _edge(flank, levels)
    if edge <= _P_REACH:
        return edge
    foot = int(np.argmin(flank[: _P_REACH + 1]))
    return _edge(flank[: foot + 1] - flank[foot], levels)


def _steadiness(beats: Array, on: float, off: float) -> float:
    """Give how surely beats (beat, 8, time) have a wave at on..off: the t of their likeness to its median.

    It is about 2 for f waves and noise, which are of course like a median that they are part of.
    """
    if len(beats) < 3:
        return inf
    part = beats[..., max(round(on), 0) : round(off) + 1]
    line = np.arange(part.shape[2]) - (part.shape[2] - 1) / 2
    part = part - part.mean(axis=2, keepdims=True)
    part -= (part @ line / max(float(line @ line), 1.0))[..., None] * line
    wave = _median(part)
    like = np.tensordot(part, wave, axes=2)
    return float(like.mean() / max(like.std(ddof=1) / sqrt(len(like)), 1e-12))


def _p_wave(smooth: Array, beat: MedianBeat, qrs: _Wave, t: _Wave | str) -> _Wave | str:
    last = int(qrs.on) - 3
    first = 0
    if isinstance(t, _Wave) and isfinite(beat.rr_s):
        first = max(int(t.off - beat.rr_s * WORK_HZ) - 8, 0)
    if last - first < 20:
        return "there is no room between T and QRS"
    # Two directions hold P; the noise of the other six does not blur its edges.
    leads = smooth[:, first:last]
    directions = np.linalg.eigh(leads @ leads.T)[1][:, -2:]
    magnitude = _magnitude(directions.T @ smooth[:, :last], 0.5 * beat.error_mv[:, :last])
    # What T leaves may be higher than P, but it slopes: P is what rises most above both its sides.
    tops, found = signal.find_peaks(magnitude[first:last], prominence=0.5 * _MIN_P_MV)
    if not tops.size or magnitude[first + tops].max() < _MIN_P_MV:
        return f"nothing rises above {_MIN_P_MV:g} mV before QRS"
    peak = first + int(tops[np.argmax(found["prominences"])])
    on = peak - _p_edge(magnitude[first : peak + 1][::-1], _P_ON_LEVELS)
    off = peak + _p_edge(magnitude[peak:], _P_OFF_LEVELS)
    if not isfinite(on):
        return "P does not come down towards T"
    if (min(off, qrs.on) if isfinite(off) else qrs.on) - on < _MIN_P_S * WORK_HZ:
        return "what rises before QRS is too short for P: it is the foot of QRS"
    steadiness = _steadiness(beat.beats_mv, on - 10, min(off, qrs.on) if isfinite(off) else qrs.on)
    if steadiness < _MIN_STEADINESS:
        return f"what is before QRS is not alike from beat to beat (t {steadiness:.1f})"
    return _Wave(on, float(peak), min(off, qrs.on) if isfinite(off) else qrs.on)


def _tail(smooth: Array, beat: MedianBeat, t: _Wave | str) -> Array:
    """Give what the T before (8, time) leaves in this beat: its last flank, continued as a Gaussian, a beat earlier."""
    if isinstance(t, str) or not isfinite(beat.rr_s):
        return np.zeros_like(smooth)
    peak = int(t.peak)
    flank = _magnitude(smooth, beat.error_mv)[peak:]
    upper, lower = (_falls(flank, 0, 1, share * float(flank[0])) for share in (0.4, 0.15))
    if not isfinite(lower):
        return np.zeros_like(smooth)
    width = (lower - upper) / (_sigmas(0.15) - _sigmas(0.4))
    at = np.arange(smooth.shape[1]) + beat.rr_s * WORK_HZ - peak
    z = _sigmas(0.15) + (at - lower) / width
    share = np.exp(-0.5 * np.square(z)) / np.exp(-0.5 * _sigmas(0.15) ** 2)
    here = peak + round(lower)
    return smooth[:, here - 3 : here + 4].mean(axis=1, keepdims=True) * np.where(z > 0, np.minimum(share, 6.0), 0.0)


def _measured(beat: MedianBeat, ecg_mv: Array, waves: Mapping[str, _Wave], missing: dict[str, str]) -> Delineation:
    """Gather what is measured between the marks on all leads (12, time), which count from the isoelectric line."""
    ecg_mv = np.where(_lifted(beat.present)[:, None], ecg_mv, nan)
    nowhere = _Wave(nan, nan, nan)
    p, qrs, t = (waves.get(name, nowhere) for name in ("P", "QRS", "T"))
    spans = {"QRS": (qrs.on, qrs.off), "T": (qrs.off + _T_FROM_J_S * WORK_HZ, t.off), "P": (p.on, p.off)}
    axes, peaks, areas = {}, {}, {}
    for name, (on, off) in spans.items():
        part = ecg_mv[:, round(on) : round(off) + 1] if isfinite(on) and isfinite(off) else ecg_mv[:, :0]
        areas[name] = part.sum(axis=1) / WORK_HZ if part.size else np.full(N_LEADS, nan)
        peaks[name] = _extreme(part)
        axes[name] = _axis_deg(areas[name], _MIN_AREA_MV_S[name])
        if part.size and not isfinite(axes[name]):
            missing[f"{name} axis"] = f"the net area of {name} in the limb leads is too small, or they are not there"
    q_mv, r_mv, s_mv = _q_r_s(ecg_mv[:, round(qrs.on) : round(qrs.off) + 1])
    transition, lead = _transition(r_mv[6:], s_mv[6:])
    if not isfinite(transition):
        missing["transition"] = "R stays below S in V1 to V6, or one of these leads is not there"
    polarity = np.where(np.abs(peaks["T"]) < _FLAT_T_MV, 0.0 * peaks["T"], np.sign(areas["T"]))
    seconds = {f"{name}_s": (at - beat.r_sample) / WORK_HZ for name, at in _marks(p, qrs, t).items()}
    found = replace(_nothing(beat, missing), **seconds)  # type: ignore[arg-type]
    return replace(
        found,
        p_axis_deg=axes["P"],
        qrs_axis_deg=axes["QRS"],
        t_axis_deg=axes["T"],
        p_mv=peaks["P"],
        q_mv=q_mv,
        r_mv=r_mv,
        s_mv=s_mv,
        t_mv=peaks["T"],
        st_mv=_st(ecg_mv, qrs.off, beat.rr_s),
        t_polarity=polarity,
        transition=transition,
        transition_lead=lead,
    )


def _nothing(beat: MedianBeat, missing: dict[str, str]) -> Delineation:
    return Delineation(rr_s=beat.rr_s, kept=beat.kept, left_out=beat.left_out, missing=missing)


def _marks(p: _Wave, qrs: _Wave, t: _Wave) -> dict[str, float]:
    marks = {"p_on": p.on, "p_peak": p.peak, "p_off": p.off, "qrs_on": qrs.on, "qrs_off": qrs.off}
    return marks | {"t_peak": t.peak, "t_off": t.off}


def _lifted(present: Mask) -> Mask:
    """Tell which of the 12 leads follow from those of the 8 that are present."""
    return ~(LIFT[:, ~present] != 0).any(axis=1)


def _extreme(part: Array) -> Array:
    """Give the value (lead,) of largest size of (lead, time), with its sign; NaN when there is none."""
    if not part.size:
        return np.full(part.shape[0], nan)
    at = np.argmax(np.abs(part), axis=1)
    return np.asarray(np.take_along_axis(part, at[:, None], axis=1)[:, 0])


def _axis_deg(area: Array, least: float) -> float:
    """Give the frontal axis from net areas (12,) in mV s: I, and aVF with 2 / sqrt(3), for its leads are shorter."""
    x, y = float(area[0]), 2.0 / sqrt(3.0) * float(area[5])
    return degrees(atan2(y, x)) if hypot(x, y) >= least else nan


def _q_r_s(part: Array) -> tuple[Array, Array, Array]:
    """Give Q, R and S (lead,) of a QRS (lead, time); where R is below 0.02 mV all of it is S."""
    top = np.argmax(np.where(np.isnan(part), -inf, part), axis=1)[:, None]
    r_mv = np.maximum(np.take_along_axis(part, top, axis=1)[:, 0], 0.0)
    r_mv = np.where(r_mv < _MIN_R_MV, 0.0, r_mv)
    before = (np.arange(part.shape[1]) < top) & (r_mv > 0)[:, None]
    q_mv = np.where(before, part, 0.0).min(axis=1, initial=0.0)
    s_mv = np.where(before, 0.0, part).min(axis=1, initial=0.0)
    absent = np.isnan(part).any(axis=1)
    return tuple(np.where(absent, nan, x) for x in (q_mv, r_mv, s_mv))  # type: ignore[return-value]


def _transition(r_mv: Array, s_mv: Array) -> tuple[float, str | None]:
    """Give where R/S becomes 1 (V1 is 1, V6 is 6), and the first lead at or beyond it, of V1..V6 (6,)."""
    balance = (r_mv + s_mv) / np.maximum(r_mv - s_mv, 1e-9)
    reached = np.flatnonzero(balance >= 0.0)
    if np.isnan(balance).any() or not reached.size:
        return nan, None
    k = int(reached[0])
    part = float(balance[k - 1] / (balance[k - 1] - balance[k])) if k else 1.0
    return k + part, LEADS[6 + k]


def _st(ecg_mv: Array, j: float, rr_s: float) -> Array:
    """Give the level (12,) at J + 60 ms, above 100 beats a minute at J + 40 ms; mean of 10 ms."""
    at = round(j + (0.04 if rr_s < 0.6 else 0.06) * WORK_HZ)
    return np.asarray(ecg_mv[:, at - 2 : at + 3].mean(axis=1) if at + 3 <= ecg_mv.shape[1] else ecg_mv[:, 0] * nan)
