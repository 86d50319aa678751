"""Whether ECG leads are of a size that a heart can give them.

A factor of a thousand is a wrong unit and is refused; a factor of five is a wrong gain or an unusual heart, which
samples alone cannot tell apart, and is flagged.
"""

import numpy as np
from numpy.typing import NDArray

from p2es.leads import LEADS, LIMB
from p2es.windows import FS_HZ

USUAL_MV = dict(
    zip(LEADS, (0.86, 0.96, 0.72, 0.83, 0.66, 0.71, 1.09, 1.37, 1.73, 1.97, 1.76, 1.36), strict=True)
)  # fmt: skip
"""Peak to peak of a beat, 0.5-40 Hz, as `peak_to_peak` has it: the median over 108 real recordings with 12 leads
(CinC 2021: PTB-XL, Ningbo and Georgia; CPSC 2018; LUDB with its converter steps as microvolt; PTB). The simulator's
medians are 0.66 to 1.03 of these."""
POSSIBLE_MV = (0.02, 10.0)
"""Peak to peak of a lead beyond which its unit cannot be millivolt."""
FACTOR = 5.0
"""A lead off its usual size by more is flagged."""
USUAL_HEARTS = (0.42, 2.1)
"""Size of a recording over the usual one (geometric mean over its leads) that is not flagged.

The ends are a factor of five apart, so a recording of usual size that is scaled by five or more is always flagged.
Of the 108 real recordings 2 are beyond (0.36 and 2.7), of 150 simulated ones none."""
# With fewer leads the axis of the heart decides the size as much as the gain does.
_LEADS_OF_A_HEART = 3
_BLOCK = round(2.0 * FS_HZ)

Floats = NDArray[np.floating]


def peak_to_peak(ecg_mv: Floats) -> Floats:
    """Give the usual size of a beat, (...,): the median peak to peak of blocks of 2 s, (..., time) at 128 Hz."""
    blocks = ecg_mv.shape[-1] // _BLOCK
    parts = ecg_mv[..., : blocks * _BLOCK].reshape(*ecg_mv.shape[:-1], blocks, _BLOCK)
    return np.asarray(np.median(np.ptp(parts, axis=-1), axis=-1))


def possible(size_mv: Floats) -> NDArray[np.bool_]:
    """Tell which leads, by their `peak_to_peak`, can be in millivolt."""
    return np.asarray((size_mv >= POSSIBLE_MV[0]) & (size_mv <= POSSIBLE_MV[1]))


def heart_size(size_mv: Floats, mask: NDArray[np.bool_]) -> float | None:
    """Give the size of a recording over the usual one: the geometric mean over its leads; None with fewer than 3.

    Parameters
    ----------
    size_mv : array (12,)
        Peak to peak of each lead.
    mask : array (12,)
        True for the leads that were recorded.
    """
    usable = mask & (size_mv > 0)
    if usable.sum() < _LEADS_OF_A_HEART:
        return None
    return float(np.exp(np.mean(np.log(size_mv[usable] / _usual()[usable]))))


def unusual_heart(size: float | None) -> bool:
    """Tell whether a `heart_size` should be flagged."""
    return size is not None and not USUAL_HEARTS[0] <= size <= USUAL_HEARTS[1]


def unusual_leads(size_mv: Floats, mask: NDArray[np.bool_]) -> tuple[str, ...]:
    """Name the leads (12,) that are off their usual size by a factor of five or more.

    A small limb lead lies across the heart's axis, when three or more of them show that the gains agree.
    """
    ratio = size_mv / _usual()
    small = ratio * FACTOR <= 1.0
    if mask[: len(LIMB)].sum() >= 3:
        small[: len(LIMB)] = False
    return tuple(LEADS[k] for k in np.flatnonzero(mask & (small | (ratio >= FACTOR))))


def _usual() -> NDArray[np.float64]:
    return np.array([USUAL_MV[name] for name in LEADS])
