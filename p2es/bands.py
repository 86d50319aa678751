"""The 90 % band: quantiles of the draws, widened until it covers what it says (split conformal).

For a draw-based band [lo, hi] around the median m, a point x scores s = (m - x)/(m - lo) below the median and
(x - m)/(hi - m) above. The inflation is the 90 % quantile of s over validation windows; the band becomes
[m - q (m - lo), m + q (hi - m)]. Coverage then holds on average over points and people like those of the validation
set (Romano, Patterson & Candes 2019, with the median regression replaced by draws); it says nothing of a single beat.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2es.leads import INDEPENDENT_INDEX, N_LEADS, lift
from p2es.translator import BAND

# A half-width below this share of the lead's scale is the sampler's arithmetic, not its certainty.
_FLOOR_SHARE = 0.05


@dataclass(frozen=True)
class Band:
    """How far to widen the draws' own quantiles.

    Attributes
    ----------
    inflation : float
        1 leaves the quantiles as they are.
    floor_mv : tuple of float
        Least half-width of each of the 12 leads.
    calibrated_on : int
        Windows that set the inflation; 0 is not calibrated.
    """

    inflation: float = 1.0
    floor_mv: tuple[float, ...] = (0.0,) * N_LEADS
    calibrated_on: int = 0

    def around(self, draws_mv: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the lower and upper limit, (2, 12, time), of draws (samples, 12, time)."""
        middle, below, above = _spread(draws_mv, np.array(self.floor_mv))
        return np.stack([middle - self.inflation * below, middle + self.inflation * above]).astype(np.float32)


def median_mv(draws_mv: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give the pointwise median of draws (samples, 12, time), lifted from 8 leads so that the lead laws hold."""
    return lift(np.median(draws_mv[:, INDEPENDENT_INDEX], axis=0).astype(np.float32))


def _spread(
    draws_mv: NDArray[np.float32], floor_mv: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    low, high = np.quantile(draws_mv, BAND, axis=0)
    middle = median_mv(draws_mv)
    floor = floor_mv[:, None]
    return middle, np.maximum(middle - low, floor), np.maximum(high - middle, floor)


def calibrate(
    windows: Iterable[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]],
    lead_scale_mv: NDArray[np.floating],
) -> Band:
    """Find the inflation at which 90 % of the validation points lie in the band.

    Parameters
    ----------
    windows : iterable of (draws (samples, 12, time), truth (12, time), lead_mask (12,))
    lead_scale_mv : array (12,)

    Returns
    -------
    Band
    """
    floor = _FLOOR_SHARE * np.asarray(lead_scale_mv, np.float64)
    scores = []
    for draws, truth, mask in windows:
        middle, below, above = _spread(draws, floor)
        error = truth - middle
        scores.append(np.where(error < 0, -error / below, error / above)[mask].ravel())
    if not scores:
        return Band(floor_mv=tuple(map(float, floor)))
    inflation = float(np.quantile(np.concatenate(scores), BAND[1] - BAND[0]))
    return Band(inflation, tuple(map(float, floor)), len(scores))
