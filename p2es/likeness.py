"""Likeness of two windows: whether they hold the same stretch of the same heart, sample by sample."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from p2es.windows import ECG_SAMPLES, FS_HZ, Window

MIN_OVERLAP_S = 4.0
"""Least stretch that two windows must share to be compared."""
# Nearer lags belong to the same peak of the correlation.
_SAME_PEAK_S = 0.25

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Likeness:
    """How alike two windows are.

    Attributes
    ----------
    correlation : float
        Largest normalised cross-correlation over all lags, -1 to 1; leads count by magnitude and power.
    runner_up : float
        The largest at a lag that is another beat's: what two hearts of the same rate and shape would reach.
    lag_s : float
        What is at time t in the first window is at t - `lag_s` in the second.
    """

    correlation: float
    runner_up: float
    lag_s: float


def likeness(one: Window, other: Window, *, kind: str) -> Likeness | None:
    """Compare two windows by one kind of signal.

    Parameters
    ----------
    one, other : Window
    kind : str
        `ecg` compares the leads that both have, whatever their sign; `ppg` the first channel.

    Returns
    -------
    Likeness or None
        None when they have no signal of this kind in common, or nothing in it moves.
    """
    pair = _leads(one, other) if kind == "ecg" else _pulses(one, other)
    if pair is None:
        return None
    correlation = _correlations(*pair)
    mean = _weights(pair[0], pair[2]) @ (np.abs(correlation) if kind == "ecg" else correlation)
    if not np.isfinite(mean).any():
        return None
    best = int(np.nanargmax(mean))
    lags = np.arange(mean.size) - mean.size // 2
    far = np.where(np.abs(lags - lags[best]) > _SAME_PEAK_S * FS_HZ, mean, np.nan)
    runner_up = _top(mean, int(np.nanargmax(far))) if np.isfinite(far).any() else -1.0
    return Likeness(_top(mean, best), runner_up, float(lags[best] / FS_HZ))


def _leads(one: Window, other: Window) -> tuple[Array, Array, Array, Array] | None:
    if one.ecg is None or other.ecg is None or not (both := one.lead_mask & other.lead_mask).any():
        return None
    mask = np.ones((1, ECG_SAMPLES))
    return one.ecg[both].astype(np.float64), mask, other.ecg[both].astype(np.float64), mask


def _pulses(one: Window, other: Window) -> tuple[Array, Array, Array, Array] | None:
    if one.ppg is None or one.ppg_mask is None or other.ppg is None or other.ppg_mask is None:
        return None
    masks = (one.ppg_mask[None].astype(np.float64), other.ppg_mask[None].astype(np.float64))
    return one.ppg[:1] * masks[0], masks[0], other.ppg[:1] * masks[1], masks[1]


def _weights(x: Array, y: Array) -> Array:
    """Give each signal its share of the power: in a small lead there is more noise, in a derived one that of two."""
    power = np.sqrt(x.var(axis=-1) * y.var(axis=-1))
    return power / max(float(power.sum()), 1e-300)


def _correlations(x: Array, x_mask: Array, y: Array, y_mask: Array) -> Array:
    """Give Pearson's r of signals (signal, time) at each lag (signal, lag), NaN where they overlap too little.

    Mean and size are those of the overlap, so that gain, offset and what only one of them shows do not matter.
    """
    time = x.shape[-1]
    size = fft.next_fast_len(2 * time, real=True)
    xs, x2, ms = (fft.rfft(z, size, axis=-1) for z in (x, x * x, x_mask))
    ys, y2, ns = (np.conj(fft.rfft(z, size, axis=-1)) for z in (y, y * y, y_mask))

    def at_lags(spectrum: NDArray[np.complex128]) -> Array:
        products = fft.irfft(spectrum, size, axis=-1)
        return np.concatenate([products[:, size - time + 1 :], products[:, :time]], axis=-1)

    count = at_lags(ms * ns)
    enough = count >= MIN_OVERLAP_S * FS_HZ - 0.5
    count = np.maximum(count, 1.0)
    sum_x, sum_y = at_lags(xs * ns), at_lags(ms * ys)
    var_x = at_lags(x2 * ns) - sum_x**2 / count
    var_y = at_lags(ms * y2) - sum_y**2 / count
    # A stretch with a millionth of the power is flat: only rounding would be compared there.
    flat = (var_x < 1e-6 * var_x.max(axis=-1, keepdims=True)) | (var_y < 1e-6 * var_y.max(axis=-1, keepdims=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (at_lags(xs * ys) - sum_x * sum_y / count) / np.sqrt(var_x * var_y)
    return np.where(enough & ~flat & np.isfinite(r), r, np.nan)


def _top(curve: Array, at: int) -> float:
    """Give the height of the parabola through a maximum: the true lag lies between samples."""
    top = float(curve[at])
    if not (0 < at < curve.size - 1 and np.isfinite(curve[at - 1 : at + 2]).all()):
        return min(top, 1.0)
    before, after = float(curve[at - 1]), float(curve[at + 1])
    bend = before - 2 * top + after
    return min(top - (after - before) ** 2 / (8 * bend), 1.0) if bend < 0 else top
