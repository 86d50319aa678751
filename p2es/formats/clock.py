"""A column of times: the rate it shows, and the stretches without a gap."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from p2es.errors import RecordError
from p2es.recording import Samples

_BLOCK = 1 << 20
# No clock shows more: 30,000 years. Sums of such times are still exact enough, and finite.
_LATEST_S = 1e12
# More stretches than this in one file is not a recording with gaps but a column that is no time.
MAX_STRETCHES = 10_000


@dataclass(frozen=True)
class Stretch:
    """Rows start to stop without a gap.

    Attributes
    ----------
    start, stop : int
    start_s : float
        Time of the first row.
    fs_hz : float
    uneven : bool
        Whether rows leave the even grid by more than a step: their values must be interpolated.
    """

    start: int
    stop: int
    start_s: float
    fs_hz: float
    uneven: bool


def stretches(time_s: Samples, name: str) -> list[Stretch]:
    """Find the stretches of a column of times, block by block.

    Printed times are rounded (BIDMC's after 10 s to 0.01 s, 1.25 samples), so steps differ and some are 0: a gap is a
    step of over 2.5 mean ones and the rounding. The rate is the slope of the line through a stretch; where no sample
    would move by half a step, it is a whole number of hertz.

    Parameters
    ----------
    time_s : samples (time,)
        Seconds.
    name : str
        File name for errors.

    Raises
    ------
    RecordError
        `rate` when the times have holes, stand still or run backwards; `time_gaps` when gaps are all there is.
    """
    size = time_s.size
    step, grain = _step(time_s, name)
    gaps: list[int] = []
    for start, difference in _steps(time_s, name):
        gaps += (start + 1 + np.flatnonzero(difference > 2.5 * step + grain)).tolist()
        if len(gaps) > MAX_STRETCHES:
            raise RecordError(f"the time column of {name} has more gaps than a recording: correct it", "time_gaps")
    edges = [0, *gaps, size]
    found = [_stretch(time_s, a, b, grain) for a, b in pairwise(edges) if b - a > 2]
    good = [stretch for stretch in found if stretch is not None]
    if not good:
        raise RecordError(f"the time column of {name} is gaps only: the rate is unknown", "time_gaps")
    return good


def _steps(time_s: Samples, name: str) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Give the differences of neighbouring times, with the number of the first, in blocks."""
    for start in range(0, time_s.size - 1, _BLOCK):
        block = np.asarray(time_s[start : min(start + _BLOCK + 1, time_s.size)], np.float64)
        if not (np.abs(block) <= _LATEST_S).all():
            raise RecordError(f"the time column of {name} has holes: the rate is unknown", "rate")
        yield start, np.diff(block)


def _step(time_s: Samples, name: str) -> tuple[float, float]:
    """Give the mean step without gaps, and how coarsely the times are written (the smallest step above 0)."""
    if time_s.size < 3:
        raise RecordError(f"{name} has {time_s.size} rows: the rate is unknown", "rate")
    bound, step, grain = np.inf, 0.0, np.inf
    for _ in range(8):
        total, count = 0.0, 0
        for _, difference in _steps(time_s, name):
            if (difference < 0).any():
                raise RecordError(f"the time column of {name} runs backwards: the rate is unknown", "rate")
            kept = difference[difference <= bound]
            total, count = total + float(kept.sum()), count + kept.size
            above = kept[kept > 0]
            grain = min(grain, float(above.min())) if above.size else grain
        if count == 0 or total <= 0:
            raise RecordError(f"the time column of {name} does not run: the rate is unknown", "rate")
        step, before = total / count, step
        bound = 4 * step + grain
        if step == before:
            break
    return step, grain


def _stretch(time_s: Samples, start: int, stop: int, grain: float) -> Stretch | None:
    """Fit a line to rows start to stop; None when it does not rise."""
    origin = float(time_s[start : start + 1][0])
    middle, count = (stop - start - 1) / 2, stop - start
    product = total = 0.0
    for at, times in _blocks(time_s, start, stop):
        index = np.arange(at - start, at - start + times.size) - middle
        product, total = product + float(index @ (times - origin)), total + float((times - origin).sum())
    step = product / (count * (count**2 - 1) / 12)
    # A rate above what any converter of an ECG or PPG has, or below 1 Hz, is a column that is no time.
    if not 1e-5 <= step <= 1.0:
        return None
    whole = round(1 / step)
    if whole >= 1 and abs(whole * step - 1) * count < 0.5:
        step = 1 / whole
    first = origin + total / count - middle * step
    worst = max(
        float(np.abs(times - first - step * np.arange(at - start, at - start + times.size)).max())
        for at, times in _blocks(time_s, start, stop)
    )
    return Stretch(start, stop, first, 1 / step, worst > step + grain)


def _blocks(time_s: Samples, start: int, stop: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    for at in range(start, stop, _BLOCK):
        yield at, np.asarray(time_s[at : min(at + _BLOCK, stop)], np.float64)
