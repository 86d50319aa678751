"""How well a handful of draws tells the truth and how sure it is: CRPS, coverage, width, energy score.

Angles are circular: the distance of 170 and -170 degrees is 20. Everything is per draw set and truth; averages over
windows and people are taken elsewhere. The best of K draws is scored nowhere: choosing it takes the truth.
"""

import numpy as np
from numpy.typing import NDArray

from p2es.evaluation.columns import wrap_deg

Array = NDArray[np.floating]
Floats = NDArray[np.float64]


def distance(a: Array, b: Array, *, circular: bool = False) -> Floats:
    """Give ``|a - b|``, of angles in degrees the way round that is shorter (0 to 180)."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return np.abs(wrap_deg(difference) if circular else difference)


def centre(draws: Array, *, circular: bool = False) -> Floats:
    """Give the median along the first axis; of angles (sample,) the one with the least mean distance to all.

    A circular median is taken as the plain median about the draw that is nearest to the others (Fisher 1993), which is
    the plain median wherever the draws span less than half the circle.
    """
    draws = np.asarray(draws, np.float64)
    if not circular:
        return np.asarray(np.median(draws, axis=0))
    total = distance(draws[:, None], draws[None], circular=True).sum(axis=0)
    middle = draws[int(np.argmin(total))]
    return wrap_deg(middle + np.median(wrap_deg(draws - middle), axis=0))


def fair_crps(truth: Array, draws: Array) -> Floats:
    """Give the continuous ranked probability score of each point, in its unit; the fair form for K draws.

    ``mean_k |x_k - y| - 1/(2 K (K - 1)) sum_jk |x_j - x_k|`` (Ferro 2014): unlike the plain form it does not
    reward draws that spread too little, and can be below 0 for one window. The double sum is taken over sorted draws.

    Parameters
    ----------
    truth : array (...)
    draws : array (sample, ...)
        At least two samples.
    """
    k = len(draws)
    error = np.abs(draws - truth).mean(axis=0, dtype=np.float64)
    weight = (2 * np.arange(1, k + 1) - k - 1) / (k * (k - 1))
    return np.asarray(error - np.tensordot(weight, np.sort(draws, axis=0), axes=1))


def fair_crps_deg(truth_deg: float, draws_deg: Array) -> float:
    """Give the CRPS of an angle from K draws (sample,), degrees: `fair_crps` with the distance on the circle.

    ``mean_k d(x_k, y) - 1/(2 K (K - 1)) sum_jk d(x_j, x_k)``, d from 0 to 180 (Grimit 2006). Draws all round the circle
    score 45 whatever the truth, and a single direction the distance to it.
    """
    k = len(draws_deg)
    apart = distance(draws_deg[:, None], draws_deg[None], circular=True).sum() / (2 * k * (k - 1))
    return float(distance(draws_deg, np.asarray(truth_deg), circular=True).mean() - apart)


def central_interval(draws: Array, share: float) -> tuple[Floats, Floats]:
    """Give the limits between which the central `share` of the distribution lies, from draws (sample, ...).

    Quantiles at (K + 1) p of the sorted draws (Weibull's): with those, as many truths that are drawn like the samples
    lie inside as it says; with numpy's own, 45 % in the central 50 % of 20 draws. Where (K + 1) p is beyond the ends
    the limits are the outermost draws, so that K draws hold no more than (K - 1) / (K + 1).
    """
    # numpy's own quantiles take several times as long on the draws of a window.
    ordered = np.sort(draws, axis=0)
    last = len(draws) - 1
    place = np.clip((len(draws) + 1) * (1.0 - share) / 2.0 - 1.0, 0.0, last)
    k, part = int(place), place - int(place)
    low = (1.0 - part) * ordered[k] + part * ordered[min(k + 1, last)]
    high = (1.0 - part) * ordered[last - k] + part * ordered[max(last - k - 1, 0)]
    return np.asarray(low, np.float64), np.asarray(high, np.float64)


def covered(truth: Array, draws: Array, share: float, *, circular: bool = False) -> NDArray[np.bool_]:
    """Tell which truths (...) lie in the `central_interval` of their draws (sample, ...); angles about `centre`."""
    if circular:
        middle = centre(draws, circular=True)
        truth, draws = wrap_deg(truth - middle), wrap_deg(draws - middle)
    low, high = central_interval(draws, share)
    return np.asarray((truth >= low) & (truth <= high))


def interval_width(draws: Array, share: float, *, circular: bool = False) -> Floats:
    """Give the width of the `central_interval`: sharpness, to be read beside the coverage."""
    if circular:
        draws = wrap_deg(draws - centre(draws, circular=True))
    low, high = central_interval(draws, share)
    return high - low


def energy_score(
    truth: Array, draws: Array, scale: Array, circular: NDArray[np.bool_] | None = None, *, failure: float = np.nan
) -> float:
    """Give the energy score of a vector of features: the CRPS of several at once, which sees how they hang together.

    ``mean_k |x_k - y| - 1/(2 K (K - 1)) sum_jk |x_j - x_k|`` with Euclidean lengths (Gneiting 2007), fair as
    `fair_crps` is.

    Parameters
    ----------
    truth : array (feature,)
    draws : array (sample, feature)
    scale : array (feature,)
        What each is divided by, so that milliseconds and degrees can be added.
    circular : array (feature,), optional
        True for angles in degrees.
    failure : float
        How far from the truth a feature is that a draw lacks (NaN), in units of its scale. It is no distance between
        draws, so that nothing is won by the spread of what is not there. Without it a NaN makes the score NaN.
    """
    angles = np.zeros(len(truth), bool) if circular is None else circular

    def length(a: Array, b: Array, missing: float) -> Floats:
        parts = np.where(angles, distance(a, b, circular=True), distance(a, b)) / scale
        parts = parts if np.isnan(failure) else np.where(np.isnan(parts), missing, parts)
        return np.asarray(np.linalg.norm(parts, axis=-1))

    truth, draws = np.asarray(truth, np.float64), np.asarray(draws, np.float64)
    k = len(draws)
    apart = length(draws[:, None], draws[None], 0.0).sum() / (2 * k * (k - 1))
    return float(length(draws, truth, failure).mean() - apart)
