"""Filters, resampling, quality, R peaks, pulse onsets and the delay between them.

NaN means "not recorded" throughout: it is bridged for the sake of a filter and put back afterwards. All
filters are zero-phase, because a causal one would move the R peak and the pulse by different times.
"""

from fractions import Fraction
from functools import lru_cache
from math import gcd, inf, nan

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate, ndimage, signal

from p2es.errors import InputError
from p2es.windows import FS_HZ, MARGIN_S, PPG_SAMPLES, WINDOW_S

ECG_BAND_HZ = (0.5, 40.0)
PPG_BAND_HZ = (0.4, 8.0)
_QRS_BAND_HZ = (5.0, 30.0)
_FILTER_ORDER = 2

MIN_PPG_RATE_HZ = 20.0
"""Below this the 8 Hz edge of the pulse band is out of reach."""
MAX_PPG_RATE_HZ = 10_000.0

_REFRACTORY_S = 0.3
# A dicrotic wave comes 0.30 to 0.36 s after the systolic rise; real beats that close are seldom so much
# smaller.
_DICROTIC_S = 0.42
# Real devices: 0.30 to 0.58 s from R to the steepest rise; the range leaves room on both sides.
DELAY_RANGE_S = (0.1, 0.7)
# Above this rate two pulses fall in the range above, and which one belongs to an R peak is a guess.
_AMBIGUOUS_RR_S = 60.0 / 110.0

# The largest term of a ratio that polyphase filtering is used for: its filter has 20 taps a term.
_MAX_RATIO_TERM = 640

Floats = NDArray[np.floating]


def _bridge(x: Floats) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Interpolate over what is not finite along the last axis; give also where that was."""
    filled = np.array(x, dtype=np.float64)
    missing = ~np.isfinite(filled)
    at = np.arange(filled.shape[-1])
    for row in np.argwhere(missing.any(axis=-1)):
        samples, gap = filled[tuple(row)], missing[tuple(row)]
        samples[gap] = 0.0 if gap.all() else np.interp(at[gap], at[~gap], samples[~gap])
    return filled, missing


@lru_cache(maxsize=64)
def _design(low_hz: float, high_hz: float, fs_hz: float) -> NDArray[np.float64]:
    """Design the filter; an upper edge beyond 0.45 of the rate is left out, the signal has nothing there."""
    if low_hz >= 0.45 * fs_hz:
        raise InputError(f"a rate of {fs_hz:g} Hz is too low for a band from {low_hz:g} Hz: give a faster recording")
    if high_hz >= 0.45 * fs_hz:
        return signal.butter(_FILTER_ORDER, low_hz, "highpass", fs=fs_hz, output="sos")
    return signal.butter(_FILTER_ORDER, (low_hz, high_hz), "bandpass", fs=fs_hz, output="sos")


def _bandpass(x: Floats, fs_hz: float, band_hz: tuple[float, float]) -> Floats:
    sos = _design(*band_hz, float(fs_hz))
    filled, missing = _bridge(x)
    # The default padding of a few samples leaves a 0.5 Hz edge ringing for a second at both ends.
    pad = min(int(1.5 * fs_hz / band_hz[0]), filled.shape[-1] - 1)
    result = signal.sosfiltfilt(sos, filled, axis=-1, padtype="odd", padlen=max(pad, 0))
    result[missing] = nan
    return result.astype(x.dtype if np.issubdtype(x.dtype, np.floating) else np.float64)


def bandpass_ecg(ecg: Floats, fs_hz: float) -> Floats:
    """Band-pass an ECG to 0.5-40 Hz: second-order Butterworth run forwards and backwards.

    Parameters
    ----------
    ecg : array (..., time)
        Any unit; NaN is bridged linearly and put back.
    fs_hz : float
        With a rate below 89 Hz only the high-pass is applied.

    Returns
    -------
    array (..., time)
        Same unit and dtype.

    Raises
    ------
    InputError
        When the rate is too low for the band.
    """
    return _bandpass(ecg, fs_hz, ECG_BAND_HZ)


def bandpass_ppg(ppg: Floats, fs_hz: float) -> Floats:
    """Band-pass a PPG to 0.4-8 Hz; otherwise as `bandpass_ecg`."""
    return _bandpass(ppg, fs_hz, PPG_BAND_HZ)


def _small_ratio(fs_in_hz: float, fs_out_hz: float, n_out: int) -> tuple[int, int] | None:
    """Give (up, down) when small terms keep every output within a thousandth of a sample of its time."""
    ratio = Fraction(fs_out_hz / fs_in_hz).limit_denominator(_MAX_RATIO_TERM)
    if ratio.numerator == 0 or ratio.numerator > _MAX_RATIO_TERM:
        return None
    drift = abs(float(ratio) * fs_in_hz / fs_out_hz - 1.0) * n_out
    return (ratio.numerator, ratio.denominator) if drift < 1e-3 else None


def _resample_poly(x: NDArray[np.float64], up: int, down: int) -> NDArray[np.float64]:
    # The ends are continued by point reflection, by a whole number of output samples, so that they do not
    # ring.
    step = down // gcd(up, down)
    pad = step * -(-20 * max(1, -(-down // up)) // step)
    if pad >= x.shape[-1]:
        return signal.resample_poly(x, up, down, axis=-1, padtype="line")
    widths = [(0, 0)] * (x.ndim - 1) + [(pad, pad)]
    longer = signal.resample_poly(np.pad(x, widths, "reflect", reflect_type="odd"), up, down, axis=-1)
    return longer[..., pad * up // down :]


def _resample_spline(
    x: NDArray[np.float64], fs_in_hz: float, at: NDArray[np.float64], fs_out_hz: float
) -> NDArray[np.float64]:
    if fs_out_hz < fs_in_hz and x.shape[-1] > 1:
        sos = signal.butter(8, 0.42 * fs_out_hz, fs=fs_in_hz, output="sos")
        x = signal.sosfiltfilt(sos, x, axis=-1, padlen=min(x.shape[-1] - 1, int(fs_in_hz)))
    if x.shape[-1] < 4:
        return np.apply_along_axis(lambda row: np.interp(at, np.arange(row.size), row), -1, x)
    spline = interpolate.make_interp_spline(np.arange(x.shape[-1]), x, k=3, axis=-1)
    return np.asarray(spline(np.minimum(at, x.shape[-1] - 1)), np.float64)


def resample(x: Floats, fs_in_hz: float, fs_out_hz: float) -> Floats:
    """Resample by any ratio, without aliasing; sample k of the result is at time ``k / fs_out_hz``.

    Polyphase filtering for a ratio of small terms; otherwise (249.89 Hz to 128 Hz) a zero-phase low-pass
    and a cubic spline at the exact times.

    Parameters
    ----------
    x : array (..., time)
        NaN where nothing was recorded; output samples between or beside such samples are NaN.
    fs_in_hz, fs_out_hz : float

    Returns
    -------
    array (..., time')
        Same dtype; every k with ``k / fs_out_hz`` before the end of the input.

    Raises
    ------
    InputError
        When a rate is not a positive number.
    """
    if not (0.0 < fs_in_hz < inf and 0.0 < fs_out_hz < inf):
        raise InputError(f"cannot resample from {fs_in_hz} Hz to {fs_out_hz} Hz: give positive rates")
    dtype = x.dtype if np.issubdtype(x.dtype, np.floating) else np.dtype(np.float64)
    n_in = x.shape[-1]
    n_out = int(np.ceil(n_in * fs_out_hz / fs_in_hz - 1e-6))
    if fs_in_hz == fs_out_hz or n_in == 0:
        return np.array(x, dtype=dtype)
    filled, missing = _bridge(x)
    at = np.arange(n_out, dtype=np.float64) * (fs_in_hz / fs_out_hz)
    ratio = _small_ratio(fs_in_hz, fs_out_hz, n_out)
    if ratio is not None:
        result = np.array(_resample_poly(filled, *ratio)[..., :n_out])
    else:
        result = np.array(_resample_spline(filled, fs_in_hz, at, fs_out_hz))
    left = np.clip(np.floor(at + 1e-9).astype(np.int64), 0, n_in - 1)
    right = np.clip(np.ceil(at - 1e-9).astype(np.int64), 0, n_in - 1)
    result[missing[..., left] | missing[..., right]] = nan
    return result.astype(dtype)


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
        where nothing was recorded.
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
    filtered = bandpass_ppg(np.where(np.isfinite(samples), samples, nan), fs_hz)
    at_rate = resample(filtered, fs_hz, FS_HZ)[:, :PPG_SAMPLES]
    ppg = np.full((len(samples), PPG_SAMPLES), nan)
    ppg[:, : at_rate.shape[1]] = at_rate
    mask = np.isfinite(ppg).all(axis=0)
    return zscore_ppg(ppg, mask), mask


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
    slope = np.gradient(_bridge(bandpass_ppg(np.where(valid, ppg, nan), fs_hz))[0]) * fs_hz
    slope[~valid] = 0.0
    height = 0.4 * _usual_maximum(slope, fs_hz)
    peaks, _ = signal.find_peaks(slope, height=height, distance=_REFRACTORY_S * fs_hz)
    peaks = peaks[slope[peaks] > 0.0]
    climb = _climbs(slope, peaks)
    dicrotic = (np.diff(peaks, prepend=-np.inf) < _DICROTIC_S * fs_hz) & (climb < 0.6 * np.roll(climb, 1))
    peaks = peaks[~dicrotic]
    return (peaks + _parabola_offset(slope, peaks)) / fs_hz


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


def _parabola_offset(x: NDArray[np.float64], peaks: NDArray[np.intp]) -> NDArray[np.float64]:
    """Give the top of the parabola through each peak and its neighbours, in samples from the peak."""
    at = np.clip(peaks, 1, x.size - 2)
    before, top, after = x[at - 1], x[at], x[at + 1]
    bend = before - 2 * top + after
    return np.where(bend < 0, np.clip(0.5 * (before - after) / np.where(bend < 0, bend, -1.0), -0.5, 0.5), 0.0)


def _cut(x: NDArray[np.float64], centres: NDArray[np.intp], before: int, after: int) -> NDArray[np.float64]:
    """Cut (centre, before + after) pieces of x (time,); outside it the ends are held."""
    index = centres[:, None] + np.arange(-before, after)
    return x[np.clip(index, 0, x.size - 1)]


def _channel_quality(ppg: Floats, mask: NDArray[np.bool_], fs_hz: float) -> float:
    onsets = pulse_onsets(ppg, fs_hz, mask)
    before, after = int(0.2 * fs_hz), int(0.5 * fs_hz)
    centres = np.round(onsets * fs_hz).astype(np.intp)
    centres = centres[(centres >= before) & (centres + after <= ppg.size)]
    if centres.size < 4:
        return 0.0
    clean = _bridge(bandpass_ppg(np.where(mask, ppg, nan).astype(np.float64), fs_hz))[0]
    pulses = _cut(clean, centres, before, after)
    pulses = pulses - pulses.mean(axis=1, keepdims=True)
    template = np.median(pulses, axis=0)
    norms = np.linalg.norm(pulses, axis=1) * np.linalg.norm(template)
    likeness = (pulses @ template) / np.maximum(norms, 1e-300)
    return float(np.clip((likeness.mean() - 0.6) / 0.35, 0.0, 1.0) * _evenness(np.diff(onsets)))


def _evenness(intervals_s: NDArray[np.float64]) -> float:
    """Give 1 for intervals a heart could make, falling to 0 where neighbours differ as wildly as in noise."""
    change = np.median(np.abs(np.diff(intervals_s))) / np.median(intervals_s)
    # Atrial fibrillation stays near 0.2; white noise in the pulse band is above 0.3.
    return float(np.clip((0.45 - change) / 0.2, 0.0, 1.0))


def ppg_quality(ppg: Floats, mask: NDArray[np.bool_], fs_hz: float) -> float:
    """Give how much the PPG looks like a train of pulses, 0 (flat or noise) to 1 (clean).

    Mean correlation of each pulse with the median pulse, 0.6 counting as 0 and 0.95 as 1 (pieces of noise
    cut at their own steepest rises correlate by about 0.5), times the evenness of the intervals, times the
    share of valid samples. The best channel counts.

    Parameters
    ----------
    ppg : array (channel, time)
    mask : array (time,)
    fs_hz : float
    """
    if not mask.any():
        return 0.0
    return float(mask.mean() * max((_channel_quality(row, mask, fs_hz) for row in ppg), default=0.0))


def lead_quality(ecg: Floats, fs_hz: float) -> NDArray[np.float32]:
    """Give how usable each ECG lead is, 0 (flat, clipped away or noise) to 1 (clean).

    The product of three shares: samples that are finite and do not sit on a flat stretch of 0.2 s, samples
    not at the rail, and how far the QRS stands out: the ratio of the 98th percentile to the median of |5-30
    Hz|, which is 3.5 in white noise (counted as 0) and above 7 in a clean lead (counted as 1).

    Parameters
    ----------
    ecg : array (lead, time)
        NaN where nothing was recorded.
    fs_hz : float

    Returns
    -------
    array (lead,)
        float32.
    """
    filled, missing = _bridge(ecg)
    scale = np.maximum(np.abs(filled).max(axis=-1, keepdims=True), 1e-300)
    width = max(int(0.2 * fs_hz), 2)
    spread = ndimage.maximum_filter1d(filled, width) - ndimage.minimum_filter1d(filled, width)
    live = ~missing & (spread > 1e-6 * scale)
    rails = (filled == filled.max(axis=-1, keepdims=True)) | (filled == filled.min(axis=-1, keepdims=True))
    # A single largest sample is no rail; three in a row at the same extreme are.
    railed = ndimage.minimum_filter1d(rails.astype(np.uint8), 3) > 0
    clipping = np.clip(1.0 - 20.0 * (railed & live).mean(axis=-1), 0.0, 1.0)
    standing = np.clip((_prominence(_bandpass(filled, fs_hz, _QRS_BAND_HZ)) - 3.5) / 3.5, 0.0, 1.0)
    return (live.mean(axis=-1) * clipping * standing).astype(np.float32)


def _prominence(qrs: Floats) -> NDArray[np.float64]:
    """Give (lead,) how far the largest 2 % of |x| (lead, time) stand above its median; 0 where flat."""
    size = np.abs(qrs)
    middle, top = np.quantile(size, (0.5, 0.98), axis=-1)
    return np.where(top > 1e-9, top / np.maximum(middle, 1e-3 * top + 1e-300), 0.0)


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
    leads = _bridge(leads)[0]
    if leads.shape[0] == 0 or leads.shape[1] < 2 * fs_hz:
        return np.empty(0)
    rate_hz = fs_hz if fs_hz >= FS_HZ else 2 * FS_HZ
    leads = np.asarray(resample(leads, fs_hz, rate_hz), np.float64)
    qrs = np.asarray(_bandpass(leads, rate_hz, _QRS_BAND_HZ), np.float64)
    weight = np.clip(_prominence(qrs) - 3.5, 0.05, 5.0) * (np.abs(qrs).max(axis=1) > 1e-9)
    if not weight.any():
        return np.empty(0)
    qrs *= (weight / np.maximum(np.quantile(np.abs(qrs), 0.98, axis=1), 1e-9) ** 0.5)[:, None]
    beats = _detect(qrs, rate_hz)
    magnitude = ndimage.gaussian_filter1d(np.linalg.norm(qrs, axis=0), 0.010 * rate_hz)
    return np.unique(_align(magnitude, beats, rate_hz)) / rate_hz


def _detect(qrs: NDArray[np.float64], fs_hz: float) -> NDArray[np.intp]:
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
        template = np.median(_cut(magnitude, beats, half, half + 1), axis=0)
        # Re-centre on the peak first, so that the shifts below stay small.
        beats = np.clip(beats + int(np.argmax(template)) - half, 0, magnitude.size - 1)
        template = np.median(_cut(magnitude, beats, half, half + 1), axis=0)
        pieces = _cut(magnitude, beats, half + reach, half + reach + 1)
        windows = np.lib.stride_tricks.sliding_window_view(pieces, template.size, axis=1)
        misfit = np.square(windows - template).sum(axis=2)
        beats = np.clip(beats + np.argmin(misfit, axis=1) - reach, 0, magnitude.size - 1)
    template = np.median(_cut(magnitude, beats, half, half + 1), axis=0)
    peak = np.array([np.argmax(template)])
    exact = beats + (peak - half + _parabola_offset(template, peak))[0]
    return exact[(exact >= 0) & (exact <= magnitude.size - 1)]


def pulse_delay(r_peaks_s: Floats, pulses_s: Floats) -> tuple[float, float]:
    """Give the time from R peak to the steepest rise of its pulse in a recording.

    All differences pulse minus R within 0.1 to 0.7 s are pooled; the densest place (Gaussian kernel of 15
    ms) is the delay, refined to the median of the differences within 60 ms of it. The true pairing is the
    densest, because pressure pulses follow their own beat more evenly than the next one.

    Parameters
    ----------
    r_peaks_s, pulses_s : array (beat,), array (pulse,)
        Seconds on the same clock, ascending.

    Returns
    -------
    delay_s : float
        NaN when fewer than 3 beats, or fewer than 3 in 10, have a pulse at one common delay.
    confidence : float
        0 to 1: the share of beats that have their pulse there, times ``exp(-IQR / 50 ms)``; times 0.3 above
        110 bpm, where a pulse could also belong to the beat before.
    """
    r, pulses = np.asarray(r_peaks_s, np.float64), np.asarray(pulses_s, np.float64)
    if r.size < 3 or pulses.size < 3:
        return nan, 0.0
    low, high = DELAY_RANGE_S
    first = np.searchsorted(pulses, r + low)
    # At most four pulses fit in the range at the refractory time of 0.3 s.
    index = first[:, None] + np.arange(4)
    lags = np.where(index < pulses.size, pulses[np.minimum(index, pulses.size - 1)], inf) - r[:, None]
    pooled = lags[lags <= high]
    if pooled.size < 3:
        return nan, 0.0
    grid = np.arange(low, high, 0.005)
    counts, edges = np.histogram(pooled, bins=np.append(grid, high + 0.005))
    density = ndimage.gaussian_filter1d(counts.astype(np.float64), 3.0, mode="constant")
    mode = edges[int(np.argmax(density))] + 0.0025
    near = np.where(np.abs(lags - mode) <= 0.06, lags, nan)
    matched = np.isfinite(near).any(axis=1)
    # Beats before the first pulse or after the last one had no chance to be matched.
    possible = (r + mode >= pulses[0] - 0.06) & (r + mode <= pulses[-1] + 0.06)
    share = float(matched.sum() / max(int(possible.sum()), int(matched.sum()), 1))
    if matched.sum() < 3 or share < 0.3:
        return nan, 0.0
    values = near[np.isfinite(near)]
    spread = float(np.subtract(*np.quantile(values, (0.75, 0.25))))
    ambiguity = 0.3 if float(np.median(np.diff(r))) < _AMBIGUOUS_RR_S else 1.0
    return float(np.median(values)), float(share * np.exp(-spread / 0.05) * ambiguity)


def pulse_rhythm(ppg: Floats, mask: NDArray[np.bool_], fs_hz: float) -> tuple[float, str]:
    """Give heart rate and regularity from the pulse intervals of the best channel.

    Parameters
    ----------
    ppg : array (channel, time)
    mask : array (time,)
    fs_hz : float

    Returns
    -------
    heart_rate_bpm : float
        60 over the median interval; NaN when unknown.
    rhythm : str
        `irregular` when neighbouring intervals differ by more than 10 % at the median (respiration alone
        gives up to about 5 %), else `regular`; `unknown` with fewer than 5 pulses or a quality below 0.2.
    """
    qualities = [ppg_quality(row[None], mask, fs_hz) for row in ppg]
    if not qualities or max(qualities) < 0.2:
        return nan, "unknown"
    onsets = pulse_onsets(ppg[int(np.argmax(qualities))], fs_hz, mask)
    if onsets.size < 5:
        return nan, "unknown"
    intervals = np.diff(onsets)
    usual = float(np.median(intervals))
    change = float(np.median(np.abs(np.diff(intervals)))) / usual
    return 60.0 / usual, "irregular" if change > 0.10 else "regular"
