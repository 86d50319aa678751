"""Distances between two waveforms, point by point and after warping; all lead by lead, in millivolt as recorded.

Nothing is normalised: values of 0.2 to 0.3 in papers on PPG to ECG are of windows scaled to 0..1 or to a standard
deviation of 1, and compare with nothing here. What each distance cannot see is said in its docstring, and tested.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from p2es.windows import ECG_BAND_HZ, FS_HZ

MAX_WARP_S = 0.15
"""Dynamic time warping may move a point this far: the tolerance of a beat in EC57."""
FLAT_MV = 0.005
"""A lead whose standard deviation is below this is flat."""
# 25 samples are 0.2 s at 128 Hz; Wang (2004) takes a Gaussian of 1.5 in 11.
_SSIM_RADIUS = 12
_SSIM_SIGMA = 1.5 / 11 * (2 * _SSIM_RADIUS + 1)
SSIM_RANGE_MV = 2.0
"""The L of SSIM, fixed: with the range of each window instead, no two values could be compared."""
_WELCH = int(2 * FS_HZ)
# 0.6 uV RMS over the whole band: below what a window's int16 resolve, and the logarithm of a flat line is defined.
_LEAST_POWER = 1e-8

Array = NDArray[np.floating]
Floats = NDArray[np.float64]


def rmse(truth: Array, drawn: Array) -> Floats:
    """Give the root mean square error of each lead of (lead, time), in its unit.

    Blind to nothing, but least for a flat, smooth guess: an honest sample has sqrt(2) times the error of the best mean.
    """
    return np.sqrt(np.square(drawn - truth, dtype=np.float64).mean(axis=-1))


def mae(truth: Array, drawn: Array) -> Floats:
    """Give the mean absolute error of each lead of (lead, time), in its unit; the flat line does well in it too."""
    return np.abs(drawn - truth).mean(axis=-1, dtype=np.float64)


def prd_percent(truth: Array, drawn: Array) -> Floats:
    """Give the percentage root mean square difference of each lead of (lead, time), the mean removed.

    ``100 sqrt(sum (x - y)^2 / sum (x - mean(x))^2)``: the form without the mean is smaller by any offset. 100 is
    what a flat line scores, 141 an ECG of the right power and the wrong phase. NaN where the recorded lead is flat.
    """
    power = np.square(truth - truth.mean(axis=-1, keepdims=True, dtype=np.float64)).mean(axis=-1)
    result = 100.0 * rmse(truth, drawn) / np.sqrt(np.maximum(power, 1e-30))
    return np.where(power < FLAT_MV**2, np.nan, result)


def correlations(truth: Array, drawn: Array) -> Floats:
    """Give Pearson's r of each lead of (lead, time): NaN where the recorded is flat, 0 where the drawn is.

    A drawn flat line tells nothing and scores so; leaving it out would favour a system that goes flat where it is
    unsure. Blind to gain and offset; and high for any ECG with its beats in the right places: one template for all
    people scores .80 at the true beats, .68 with a jitter of 10 ms (40 simulated people), so r proves nothing of one.
    """
    x = truth - truth.mean(axis=-1, keepdims=True, dtype=np.float64)
    y = drawn - drawn.mean(axis=-1, keepdims=True, dtype=np.float64)
    sx, sy = np.sqrt(np.square(x).mean(axis=-1)), np.sqrt(np.square(y).mean(axis=-1))
    flat = sy < FLAT_MV
    r = np.where(flat, 0.0, (x * y).mean(axis=-1) / np.maximum(sx * np.where(flat, 1.0, sy), 1e-30))
    return np.where(sx < FLAT_MV, np.nan, r)


def dtw(truth: Array, drawn: Array, fs_hz: float) -> float:
    """Give the dynamic time warping distance of two signals (time,), a step of the path, in their unit.

    The least sum of ``|x_i - y_j|`` over paths from both starts to both ends, in steps of (1, 1), (1, 0) or (0, 1),
    with i and j never more than 150 ms apart (Sakoe-Chiba), divided by the number of points on the path; of equal
    steps the diagonal one is taken. It forgives timing errors of up to 150 ms nearly whole: read it beside the R peaks.

    Raises
    ------
    ValueError
        When the two are not equally long, or empty.
    """
    x, y = _pair(truth, drawn)
    n, reach = x.size, int(MAX_WARP_S * fs_hz)
    width = 2 * reach + 1
    # Column k of row i is j = i + k - reach. Outside the signal a point costs more than any path, but is finite.
    j = np.arange(n)[:, None] + np.arange(width) - reach
    outside = (j < 0) | (j >= n)
    local = np.where(outside, 0.0, np.abs(x[:, None] - y[np.clip(j, 0, n - 1)]))
    total = np.full((n, width + 1), np.inf)
    run = np.cumsum(local, axis=1)
    before = run - local
    total[0, reach:width] = run[0, reach:] - before[0, reach]
    for i in range(1, n):
        # From above (i - 1, j) is one column to the right, the diagonal (i - 1, j - 1) the same column.
        entry = np.minimum(total[i - 1, :width], total[i - 1, 1:])
        entry[outside[i]] = np.inf
        # Along the row: enter at some k, then walk right.
        np.minimum.accumulate(entry - before[i], out=entry)
        total[i, :width] = entry + run[i]
        total[i, :width][outside[i]] = np.inf
    return float(total[n - 1, reach]) / _path_length(total, reach)


def _path_length(total: Floats, reach: int) -> int:
    """Count the points of the cheapest path, from its end back; `total` has a column of infinity at its right."""
    rows = total.tolist()
    i, k, points = len(rows) - 1, reach, 1
    while i > 0 or k != reach:
        left = rows[i][k - 1] if k > 0 else np.inf
        diagonal, above = (rows[i - 1][k], rows[i - 1][k + 1]) if i > 0 else (np.inf, np.inf)
        if diagonal <= above and diagonal <= left:
            i -= 1
        elif above <= left:
            i, k = i - 1, k + 1
        else:
            k -= 1
        points += 1
    return points


def frechet_curve(truth: Array, drawn: Array) -> float:
    """Give the discrete Fréchet distance of two signals (time,) as curves, in their unit.

    ``c(i, j) = max(|x_i - y_j|, min(c(i-1, j), c(i-1, j-1), c(i, j-1)))`` (Eiter & Mannila 1994), without any limit on
    warping: blind to timing while the beats are as many, and ruled by the one worst point. It is neither of the two
    other things called "FD", which are between sets of ECGs: `frechet_waveform` and `frechet_feature`.

    Raises
    ------
    ValueError
        When the two are not equally long, or empty.
    """
    x, y = _pair(truth, drawn)
    n = x.size
    backwards = y[::-1].copy()
    # Diagonal s holds i + j = s at index i + 1; beside its ends stands infinity.
    here, one, two = (np.full(n + 2, np.inf) for _ in range(3))
    apart = np.empty(n)
    one[1] = abs(x[0] - y[0])
    for s in range(1, 2 * n - 1):
        first, last = max(0, s - n + 1), min(s, n - 1) + 1
        best, local = here[first + 1 : last + 1], apart[: last - first]
        np.minimum(one[first:last], one[first + 1 : last + 1], out=best)
        np.minimum(best, two[first:last], out=best)
        np.subtract(x[first:last], backwards[n - 1 - s + first : n - 1 - s + last], out=local)
        np.abs(local, out=local)
        np.maximum(best, local, out=best)
        here[first] = here[last + 1] = np.inf
        here, one, two = two, here, one
    return float(one[n])


def _pair(truth: Array, drawn: Array) -> tuple[Floats, Floats]:
    x, y = np.asarray(truth, np.float64), np.asarray(drawn, np.float64)
    if x.shape != y.shape or x.ndim != 1 or x.size == 0:
        raise ValueError(f"signals of shapes {x.shape} and {y.shape}: give two equally long ones, (time,)")
    return x, y


def ssim(truth: Array, drawn: Array) -> Floats:
    """Give the structural similarity of each lead of (lead, time) at 128 Hz, averaged over time.

    ``(2 mx my + C1)(2 sxy + C2) / ((mx^2 + my^2 + C1)(sx^2 + sy^2 + C2))`` in Gaussian windows of 0.2 s (25 samples,
    standard deviation 27 ms: Wang 2004's 1.5 in 11), C1 = (.01 L)^2, C2 = (.03 L)^2, L = 2 mV for all. Only whole
    windows count. Flat stretches look alike to it: between beats it is near 1 whatever is drawn.
    """
    x, y = np.asarray(truth, np.float64), np.asarray(drawn, np.float64)
    c1, c2 = (0.01 * SSIM_RANGE_MV) ** 2, (0.03 * SSIM_RANGE_MV) ** 2
    mx, my, xx, yy, xy = (_windowed(part) for part in (x, y, x * x, y * y, x * y))
    sxx, syy, sxy = xx - mx * mx, yy - my * my, xy - mx * my
    index = (2 * mx * my + c1) * (2 * sxy + c2) / ((mx * mx + my * my + c1) * (sxx + syy + c2))
    return np.asarray(index.mean(axis=-1), np.float64)


def _windowed(x: Floats) -> Floats:
    smooth = ndimage.gaussian_filter1d(x, _SSIM_SIGMA, axis=-1, radius=_SSIM_RADIUS)
    return np.asarray(smooth[..., _SSIM_RADIUS:-_SSIM_RADIUS], np.float64)


def log_spectral_distance_db(truth: Array, drawn: Array) -> Floats:
    """Give the log-spectral distance of each lead of (lead, time) at 128 Hz, dB.

    ``sqrt(mean_f (10 log10 Px - 10 log10 Py)^2)`` over 0.5 to 40 Hz in steps of 0.5; P by Welch, Hann windows of 2 s
    that overlap by half, and not less than 1e-8 mV^2/Hz. Blind to phase: to a shift, and to where the beats are.
    """
    levels = []
    for x in (truth, drawn):
        f_hz, power = signal.welch(np.asarray(x, np.float64), FS_HZ, "hann", _WELCH)
        band = (f_hz >= ECG_BAND_HZ[0]) & (f_hz <= ECG_BAND_HZ[1])
        levels.append(10.0 * np.log10(np.maximum(power[..., band], _LEAST_POWER)))
    return np.asarray(np.sqrt(np.square(levels[0] - levels[1]).mean(axis=-1)), np.float64)


def dipolarity_percent(independent: Array) -> float:
    """Give the share of the energy of 8 leads (8, time) that lies in their first three principal components, %.

    About 98 in healthy people. At exactly 100 a set of ECGs was made by one fixed dipole; well below, its leads do not
    belong together. NaN when all leads are flat.
    """
    x = np.asarray(independent, np.float64)
    x = x - x.mean(axis=-1, keepdims=True)
    energy = np.linalg.eigvalsh(x @ x.T)
    if energy.sum() < len(x) * x.shape[-1] * FLAT_MV**2:
        return float("nan")
    return float(100.0 * energy[-3:].sum() / energy.sum())


def mean_of_measured(values: Floats) -> float:
    """Average over leads what is not NaN; NaN when nothing is."""
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if kept.size else float("nan")
