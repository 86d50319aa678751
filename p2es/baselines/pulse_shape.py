"""The shape of a window's pulse: its mean pulse, and four numbers that say most of what is published of it.

The stored PPG holds 0.4 to 8 Hz: a dicrotic notch is a bend in it, seldom a dip, and its foot lies lower than before
the filter. So these numbers compare windows that went through the same filter; they are not those of the literature.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from p2es.windows import FS_HZ

PULSE_HZ = 250.0
"""Rate of a mean pulse: finer than the PPG's, so that times are not in steps of 8 ms."""
PULSE_S = np.arange(-50, 150) / PULSE_HZ
"""Time of its samples, seconds from the steepest rise."""
PULSE_S.setflags(write=False)
FEATURES = ("rise_s", "width_s", "notch", "b_a")
"""Names of `pulse_features`, in their order."""
_TOP_S = 0.35
# Where the dicrotic notch may be: after the top, and before the next pulse.
_NOTCH_AFTER_TOP_S, _NOTCH_LAST_S, _NOTCH_SHARE = 0.06, 0.45, 0.70

Floats = NDArray[np.float64]


def mean_pulse(ppg: NDArray[np.floating], mask: NDArray[np.bool_], onsets_s: Floats) -> Floats | None:
    """Give the median of a window's pulses, laid over each other at the steepest rise.

    Parameters
    ----------
    ppg, mask : array (time,)
        At `FS_HZ`.
    onsets_s : array (pulse,)
        As of `beats.pulse_onsets`.

    Returns
    -------
    array (200,) or None
        At `PULSE_S`; 0 at the foot (the lowest point of the 0.2 s before), 1 at the top (the highest of the 0.35 s
        after). None with fewer than two pulses that were recorded whole.
    """
    at = (onsets_s[:, None] + PULSE_S) * FS_HZ
    whole = (at[:, 0] >= 0) & (at[:, -1] <= ppg.size - 1)
    inside = np.clip(np.round(at), 0, ppg.size - 1).astype(np.intp)
    whole &= mask[inside].all(axis=1)
    if np.count_nonzero(whole) < 2:
        return None
    pulse = np.median(ndimage.map_coordinates(ppg.astype(np.float64), [at[whole]], order=3, mode="nearest"), axis=0)
    foot = pulse[PULSE_S <= 0].min()
    height = pulse[(PULSE_S >= 0) & (PULSE_S <= _TOP_S)].max() - foot
    return (pulse - foot) / height if height > 0 else None


def pulse_features(pulse: Floats, rr_s: float) -> Floats:
    """Measure a mean pulse.

    Parameters
    ----------
    pulse : array (200,)
        As of `mean_pulse`.
    rr_s : float
        Usual interval between pulses: the notch is looked for in its first 70 %.

    Returns
    -------
    array (4,)
        `rise_s`, from foot to top. `width_s`, for which the pulse is above half its height (to the end of the 0.6 s
        at most). `notch`, the level, 0 to 1, where it bends upwards most between the top and the next pulse: the e
        wave of the second derivative, where the dicrotic notch is. `b_a`, the second derivative's lowest over its
        highest value in the upstroke: -1 in young arteries and nearer to 0 in stiff ones (Takazawa 1998).
    """
    upstroke = int(np.searchsorted(PULSE_S, 0.0))
    foot = int(np.argmin(pulse[: upstroke + 1]))
    top = upstroke + int(np.argmax(pulse[upstroke : int(np.searchsorted(PULSE_S, _TOP_S)) + 1]))
    above = pulse > 0.5
    start = top - int(np.argmin(above[top::-1])) if not above[: top + 1].all() else 0
    stop = top + int(np.argmin(above[top:])) if not above[top:].all() else pulse.size
    bend = np.gradient(np.gradient(pulse))
    first = top + round(_NOTCH_AFTER_TOP_S * PULSE_HZ)
    last = int(np.searchsorted(PULSE_S, min(_NOTCH_LAST_S, _NOTCH_SHARE * rr_s)))
    notch = first + int(np.argmax(bend[first:last])) if last > first else min(first, pulse.size - 1)
    a, b = bend[foot : upstroke + 1].max(), bend[upstroke : top + 1].min()
    rise_s, width_s = (top - foot) / PULSE_HZ, (stop - start) / PULSE_HZ
    return np.array([rise_s, width_s, pulse[notch], b / max(float(a), 1e-12)])
