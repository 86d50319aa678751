"""Which way up a PPG is.

A PPG of light absorbed rises in systole; one of light received, as many wearables keep it, falls. In every artery the
systolic change is shorter and steeper than the diastolic one, and that tells the two apart.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from p2es.beats import pulse_onsets
from p2es.quality import pulse_noise

BLOCK_S = 10.0
"""What is judged at a time: 10 to 20 pulses."""
# Of the slope's skewness, and of the share of time that the pulse falls less the share that it rises. 26 upright
# recordings of 9 people have medians of at least 0.66 and 0.21.
_MARGINS = (0.3, 0.1)
# One block is not enough: of 2,827 real windows of 12 s two are movements that look like pulses upside down.
_LEAST_BLOCKS = 3
# A block of more is as much noise as pulse.
_MOST_NOISE = 0.5
_LEAST_RECORDED = 0.8
_LEAST_SHARE = 0.75

Floats = NDArray[np.floating]


def is_inverted(stretches: Sequence[Floats], fs_hz: float) -> bool:
    """Tell whether one channel of a PPG is upside down; where that is not clear, it is taken as upright.

    Blocks of 10 s that look like pulses, one way up or the other, are judged by the skewness of their slope and by
    whether they fall for longer than they rise. Three blocks are needed; both medians must be negative by a margin,
    and both figures of three blocks in four.

    Parameters
    ----------
    stretches : sequence of array (time,)
        In 0.4-8 Hz; NaN where nothing was recorded. Stretches spread over a long recording are enough.
    fs_hz : float
    """
    found = [figures for stretch in stretches for figures in _figures(np.asarray(stretch), fs_hz)]
    if len(found) < _LEAST_BLOCKS:
        return False
    evidence = np.array(found)
    agree = (evidence < 0).all(axis=1).mean() >= _LEAST_SHARE
    return bool(agree and (np.median(evidence, axis=0) <= -np.array(_MARGINS)).all())


def _figures(ppg: Floats, fs_hz: float) -> list[tuple[float, float]]:
    """Give skewness of the slope and time falling less time rising of each block that looks like pulses."""
    length = round(BLOCK_S * fs_hz)
    onsets_s = {sign: pulse_onsets(sign * ppg, fs_hz) for sign in (1, -1)}
    found = []
    for first in range(0, ppg.size - length + 1, length):
        block = ppg[first : first + length]
        recorded = np.isfinite(block)
        if recorded.mean() < _LEAST_RECORDED:
            continue
        clean = np.interp(np.arange(length), np.flatnonzero(recorded), block[recorded])
        inside = {sign: _within(times - first / fs_hz) for sign, times in onsets_s.items()}
        if any(pulse_noise(sign * clean, times, fs_hz) <= _MOST_NOISE for sign, times in inside.items()):
            slope = np.diff(clean)
            found.append((_skewness(slope), float(np.mean(slope < 0) - np.mean(slope > 0))))
    return found


def _within(times_s: Floats) -> Floats:
    return times_s[(times_s >= 0) & (times_s < BLOCK_S)]


def _skewness(x: Floats) -> float:
    """Give the skewness of x (time,); scipy's takes 0.7 ms a call, as long as the rest of a block."""
    centred = x - x.mean()
    return float(np.mean(centred**3) / max(float(np.mean(centred**2)), 1e-300) ** 1.5)
