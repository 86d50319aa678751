"""Filters and resampling: from a file's rate and clock to the stored 128 Hz, zero-phase.

NaN means "not recorded" throughout: a short gap is bridged for the sake of a filter and put back afterwards, a long
one parts the signal in two. All filters are zero-phase, because a causal one would move the R peak and the pulse by
different times.
"""

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from math import inf, isfinite, nan

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate, signal

from p2es.errors import InputError
from p2es.windows import FS_HZ

ECG_BAND_HZ = (0.5, 40.0)
PPG_BAND_HZ = (0.4, 8.0)
_FILTER_ORDER = 2
# At 128 Hz the band's upper edge takes 22 dB off 50 Hz, which leaves 54 uV RMS of a hum of 1 mV, and 66 dB off 60 Hz,
# which leaves nothing. So 50 Hz alone needs a notch, always: it changes a clean simulated ECG by under 1 uV RMS.
_LINE_HZ = 50.0
_LINE_WIDTH_HZ = 3.0

# Longer gaps are not bridged: a line across minutes would tie what is on either side together.
MAX_BRIDGE_S = 2.0
# The largest term of a ratio that polyphase filtering is used for.
_MAX_RATIO_TERM = 640
# Kaiser's window for 90 dB in the stop band: a baseline of 10 mV leaves 0.3 uV of ripple.
_KAISER_BETA = 8.96

Floats = NDArray[np.floating]
Array = NDArray[np.float64]


def bridge(x: Floats) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Interpolate over what is not finite along the last axis; give also where that was."""
    filled = np.array(x, dtype=np.float64)
    missing = ~np.isfinite(filled)
    if not missing.any():
        return filled, missing
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


@lru_cache(maxsize=1)
def _stored_ecg_sos() -> NDArray[np.float64]:
    notch = signal.tf2sos(*signal.iirnotch(_LINE_HZ, _LINE_HZ / _LINE_WIDTH_HZ, fs=FS_HZ))
    return np.concatenate([_design(*ECG_BAND_HZ, FS_HZ), notch])


def _there_and_back(sos: Array, x: Array, fs_hz: float, low_hz: float) -> Array:
    # The default padding of a few samples leaves a 0.5 Hz edge ringing for a second at both ends.
    pad = min(int(1.5 * fs_hz / low_hz), x.shape[-1] - 1)
    return np.asarray(signal.sosfiltfilt(sos, x, axis=-1, padtype="odd", padlen=max(pad, 0)), np.float64)


def bandpass(x: Floats, fs_hz: float, band_hz: tuple[float, float]) -> Floats:
    """Band-pass (..., time) by a second-order Butterworth run forwards and backwards; NaN is bridged and put back."""
    sos = _design(*band_hz, float(fs_hz))
    filled, missing = bridge(x)
    result = _there_and_back(sos, filled, fs_hz, band_hz[0])
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
    return bandpass(ecg, fs_hz, ECG_BAND_HZ)


def bandpass_ppg(ppg: Floats, fs_hz: float) -> Floats:
    """Band-pass a PPG to 0.4-8 Hz; otherwise as `bandpass_ecg`."""
    return bandpass(ppg, fs_hz, PPG_BAND_HZ)


def stored_ecg(ecg: Floats, fs_hz: float, start_s: float, first: int, count: int) -> NDArray[np.float64]:
    """Bring ECG leads to what is stored: 128 Hz on the recording's clock, 0.5-40 Hz, without the power line.

    The band is made at 128 Hz whatever the recording's rate, so that leads of all archives went through one filter:
    -6 dB at 0.5 and 40 Hz, -22 dB at 50 Hz and with the notch there less than -60, -66 dB at 60 Hz.

    Parameters
    ----------
    ecg : array (lead, time)
        Any unit; NaN where nothing was recorded.
    fs_hz : float
    start_s : float
        Time of the first sample on the recording's clock.
    first, count : int
        The samples wanted: k is at ``k / 128`` s of that clock, exactly.

    Returns
    -------
    array (lead, count)
        NaN where nothing was recorded.
    """
    return _stored(ecg, fs_hz, start_s, first, count, _stored_ecg_sos(), ECG_BAND_HZ[0])


def stored_ppg(ppg: Floats, fs_hz: float, start_s: float, first: int, count: int) -> NDArray[np.float64]:
    """Bring a PPG (channel, time) to 128 Hz and 0.4-8 Hz; otherwise as `stored_ecg`."""
    return _stored(ppg, fs_hz, start_s, first, count, _design(*PPG_BAND_HZ, FS_HZ), PPG_BAND_HZ[0])


def _stored(
    x: Floats, fs_hz: float, start_s: float, first: int, count: int, sos: NDArray[np.float64], low_hz: float
) -> NDArray[np.float64]:
    result = np.full((x.shape[0], count), nan)
    for rows, part, missing in _stretches(x, fs_hz):
        begin_s = start_s + part.start / fs_hz
        whole = len(rows) == len(x)
        at, samples = _on_clock(x[:, part] if whole else x[rows, part], missing, fs_hz, begin_s, FS_HZ)
        if not samples.shape[-1]:
            continue
        if missing.any():
            samples = np.where(np.isnan(samples), nan, _there_and_back(sos, bridge(samples)[0], FS_HZ, low_hz))
        else:
            samples = _there_and_back(sos, samples, FS_HZ, low_hz)
        low, high = max(at, first), min(at + samples.shape[-1], first + count)
        if low < high:
            result[rows, low - first : high - first] = samples[:, low - at : high - at]
    return result


def _stretches(x: Floats, fs_hz: float) -> Iterator[tuple[NDArray[np.intp], slice, NDArray[np.bool_]]]:
    """Part rows (row, time) at their long gaps: rows with the same gaps together, a stretch, its missing samples."""
    missing = ~np.isfinite(x)
    if not missing.any():
        yield np.arange(len(x)), slice(0, x.shape[-1]), missing[0]
        return
    same: dict[bytes, list[int]] = {}
    for row, gaps in enumerate(missing):
        same.setdefault(np.packbits(gaps).tobytes(), []).append(row)
    for rows in same.values():
        good = np.flatnonzero(~missing[rows[0]])
        for part in np.split(good, np.flatnonzero(np.diff(good) > MAX_BRIDGE_S * fs_hz) + 1) if good.size else ():
            stretch = slice(int(part[0]), int(part[-1]) + 1)
            yield np.array(rows), stretch, missing[rows[0]][stretch]


def _on_clock(
    x: Floats, missing: NDArray[np.bool_], fs_hz: float, start_s: float, fs_out_hz: float
) -> tuple[int, NDArray[np.float64]]:
    """Resample rows (row, time) that miss the same samples (time,); give the number of the first output sample.

    Sample k of the output is at ``k / fs_out_hz`` of the clock on which the input starts at `start_s`; it is NaN
    between or beside missing samples.
    """
    n_in = x.shape[-1]
    first = int(np.ceil(start_s * fs_out_hz - 1e-6))
    stop = int(np.ceil((start_s + n_in / fs_hz) * fs_out_hz - 1e-6))
    at = (np.arange(first, stop) / fs_out_hz - start_s) * fs_hz
    # Copies of all leads at once cost more than the filters: 14 MB each for 12 leads of 5 minutes.
    filled = bridge(x)[0] if missing.any() else np.asarray(x, np.float64)
    ratio = _small_ratio(fs_hz, fs_out_hz)
    result = None
    if ratio == (1, 1) and abs(start_s * fs_out_hz - first) < 1e-3:
        result = filled[:, : stop - first].copy()
    elif ratio is not None:
        result = _polyphase(filled, *ratio, start_s * fs_hz, first, stop - first)
    if result is None:
        result = _spline(filled, fs_hz, at, fs_out_hz)
    if missing.any():
        left = np.clip(np.floor(at + 1e-6).astype(np.int64), 0, n_in - 1)
        right = np.clip(np.ceil(at - 1e-6).astype(np.int64), 0, n_in - 1)
        result[:, missing[left] | missing[right]] = nan
    return first, result


@lru_cache(maxsize=256)
def _small_ratio(fs_in_hz: float, fs_out_hz: float) -> tuple[int, int] | None:
    """Give (up, down) where the ratio of the rates is one of small integers, exactly (1e-11: 0.1 samples a year)."""
    ratio = Fraction(fs_out_hz / fs_in_hz).limit_denominator(_MAX_RATIO_TERM)
    if ratio.numerator == 0 or ratio.numerator > _MAX_RATIO_TERM:
        return None
    exact = abs(float(ratio) * fs_in_hz / fs_out_hz - 1.0) < 1e-11
    return (ratio.numerator, ratio.denominator) if exact else None


@lru_cache(maxsize=64)
def _lowpass(up: int, down: int) -> NDArray[np.float64]:
    """Give the low-pass of a polyphase resampler, at `up` times the input rate.

    Down to 128 Hz it passes 46 Hz and stops 82 Hz: what aliases comes to lie above the ECG's band. Upwards it is
    longer, since the input's own Nyquist frequency is near (125 Hz: it passes 51 Hz).
    """
    largest = max(up, down)
    half = (10 if down >= up else 16) * largest
    return signal.firwin(2 * half + 1, 1.0 / largest, window=("kaiser", _KAISER_BETA))


def _polyphase(
    x: NDArray[np.float64], up: int, down: int, offset: float, first: int, count: int
) -> NDArray[np.float64] | None:
    """Resample (row, time) whose sample 0 is at `offset` input samples; None when the two clocks do not meet."""
    start = round(offset * up)
    # In steps of 1 / up of an input sample, output k is at k * down and input j at start + j * up.
    if abs(offset * up - start) > 1e-3 * up:
        return None
    reach = 20 * max(1, -(-down // up))
    # A padding after which an output falls on the first padded sample; the ends are continued by point reflection.
    pad = reach + (start - reach * up) * pow(up, -1, down) % down if down > 1 else reach
    shift = (pad * up - start) // down
    mode = {"mode": "reflect", "reflect_type": "odd"} if x.shape[-1] > 1 else {"mode": "edge"}
    result = np.empty((len(x), count))
    for row, samples in zip(result, x, strict=True):
        padded = np.pad(samples, (pad, reach), **mode)  # type: ignore[call-overload]
        longer = signal.resample_poly(padded, up, down, window=_lowpass(up, down))  # type: ignore[call-overload]
        row[:] = longer[first + shift : first + shift + count]
    return result


def _spline(x: NDArray[np.float64], fs_in_hz: float, at: NDArray[np.float64], fs_out_hz: float) -> NDArray[np.float64]:
    """Low-pass and interpolate at any times, given in input samples."""
    if fs_out_hz < fs_in_hz and x.shape[-1] > 1:
        sos = signal.butter(8, 0.42 * fs_out_hz, fs=fs_in_hz, output="sos")
        x = signal.sosfiltfilt(sos, x, axis=-1, padlen=min(x.shape[-1] - 1, int(fs_in_hz)))
    at = np.clip(at, 0, x.shape[-1] - 1)
    if x.shape[-1] < 4:
        return np.stack([np.interp(at, np.arange(row.size), row) for row in x])
    return np.asarray(interpolate.make_interp_spline(np.arange(x.shape[-1]), x, k=3, axis=-1)(at), np.float64)


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
    if not (isfinite(fs_in_hz) and isfinite(fs_out_hz) and 0.0 < fs_in_hz < inf and 0.0 < fs_out_hz < inf):
        raise InputError(f"cannot resample from {fs_in_hz} Hz to {fs_out_hz} Hz: give positive rates")
    dtype = x.dtype if np.issubdtype(x.dtype, np.floating) else np.dtype(np.float64)
    if fs_in_hz == fs_out_hz or x.shape[-1] == 0:
        return np.array(x, dtype=dtype)
    flat = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    rows = [_on_clock(row[None], ~np.isfinite(row), fs_in_hz, 0.0, fs_out_hz)[1] for row in flat]
    return np.concatenate(rows).reshape(*x.shape[:-1], -1).astype(dtype)
