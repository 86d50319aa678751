"""The delay from R peak to pulse: measured in a recording, and as a distribution given the person.

The absolute time of an R peak is known from a pulse only up to the device's delay (0.3 to 0.6 s in real data). The
delay of an unseen recording is therefore drawn, never measured on its own ECG: mean by a linear regression on age and
height (a longer path, a stiffer wall), spread by what the regression leaves between recordings.
"""

from dataclasses import dataclass
from math import inf, nan
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

DELAY_RANGE_S = (0.1, 0.7)
"""Where a delay is looked for. Real devices: 0.30 to 0.58 s from R to the steepest rise."""
MIN_CONFIDENCE = 0.3
"""Recordings whose delay is less sure than this do not enter the law, and are aligned by it."""
_LIMITS_S = (0.05, 0.9)
_COLUMNS = (0, 2)  # age and height of Demographics.to_array
_CENTRE = np.array([50.0, 168.0])
_SPREAD = np.array([17.0, 10.0])
# How far a pulse may lie from the common delay and still be its beat's.
_NEAR_S = 0.06
# Beat-to-beat changes are far from independent (breathing): this many count as one.
_BEATS_A_DRAW = 8.0
# What detection and sampling leave between the intervals of pulses and beats that belong together.
_JITTER_S = 0.002

Floats = NDArray[np.floating]


class Delay(NamedTuple):
    """The delay of a recording: median and interquartile range over its beats (s, NaN when unknown), confidence."""

    delay_s: float
    confidence: float
    iqr_s: float


_UNKNOWN = Delay(nan, 0.0, nan)


def pulse_delay(r_peaks_s: Floats, pulses_s: Floats) -> Delay:
    """Give the time from R peak to the steepest rise of its pulse in a recording.

    All differences pulse minus R within 0.1 to 0.7 s are pooled; the densest place (Gaussian kernel of 15
    ms) is the delay, refined to the median of the differences within 60 ms of it. Where the pulse before or after
    would also do (a fast heart), the series decide: intervals between pulses follow those between their own beats
    more evenly than those between the beats before or after. A heart as regular as a clock leaves it open.

    Parameters
    ----------
    r_peaks_s, pulses_s : array (beat,), array (pulse,)
        Seconds on the same clock, ascending.

    Returns
    -------
    Delay
        `delay_s` is NaN when fewer than 3 beats, or fewer than 3 in 10, have a pulse at one common delay.
        `confidence`, 0 to 1: the share of beats that have their pulse there, times ``exp(-IQR / 50 ms)``, times how
        sure the choice between neighbouring pulses is (0 for a guess, 1 where there is no choice).
    """
    r, pulses = np.asarray(r_peaks_s, np.float64), np.asarray(pulses_s, np.float64)
    if r.size < 3 or pulses.size < 3:
        return _UNKNOWN
    mode = _densest(r, pulses)
    if mode is None:
        return _UNKNOWN
    shift, certainty = _which_pulse(r, pulses, mode)
    if shift:
        mode = float(np.median(_lags(r, pulses, mode)[shift]))
    nearest = _nearest(pulses, r + mode)
    lags = pulses[nearest] - r
    values = lags[np.abs(lags - mode) <= _NEAR_S]
    # Beats before the first pulse or after the last one had no chance to be matched.
    possible = (r + mode >= pulses[0] - _NEAR_S) & (r + mode <= pulses[-1] + _NEAR_S)
    share = float(values.size / max(int(possible.sum()), values.size, 1))
    if values.size < 3 or share < 0.3:
        return _UNKNOWN
    iqr_s = float(np.subtract(*np.quantile(values, (0.75, 0.25))))
    return Delay(float(np.median(values)), float(share * np.exp(-iqr_s / 0.05) * certainty), iqr_s)


def _nearest(pulses: NDArray[np.float64], times_s: NDArray[np.float64]) -> NDArray[np.intp]:
    """Give the index of the pulse nearest to each time."""
    after = np.clip(np.searchsorted(pulses, times_s), 1, pulses.size - 1)
    return after - (times_s - pulses[after - 1] < pulses[after] - times_s)


def _densest(r: NDArray[np.float64], pulses: NDArray[np.float64]) -> float | None:
    """Give where the differences pulse minus R lie densest; None with fewer than 3."""
    low, high = DELAY_RANGE_S
    first = np.searchsorted(pulses, r + low)
    # At most four pulses fit in the range at the refractory time of 0.3 s.
    index = first[:, None] + np.arange(4)
    lags = np.where(index < pulses.size, pulses[np.minimum(index, pulses.size - 1)], inf) - r[:, None]
    pooled = lags[lags <= high]
    if pooled.size < 3:
        return None
    counts, edges = np.histogram(pooled, bins=np.append(np.arange(low, high, 0.005), high + 0.005))
    density = ndimage.gaussian_filter1d(counts.astype(np.float64), 3.0, mode="constant")
    return float(edges[int(np.argmax(density))]) + 0.0025


def _lags(r: NDArray[np.float64], pulses: NDArray[np.float64], mode: float) -> dict[int, NDArray[np.float64]]:
    """Give, for the pulse at the delay `mode` (0), the one before (-1) and the one after (1), its lags (beat,).

    Only beats that have all three, and runs without a missed or spurious beat or pulse.
    """
    nearest = _nearest(pulses, r + mode)
    inside = (nearest > 0) & (nearest < pulses.size - 1) & (np.abs(pulses[nearest] - r - mode) <= 2 * _NEAR_S)
    # A pulse more or less between two beats shifts all that follow.
    follows = np.diff(nearest, append=-2) == 1
    kept = np.flatnonzero(inside & (follows | np.roll(follows, 1)))
    return {shift: pulses[nearest[kept] + shift] - r[kept] for shift in (-1, 0, 1)}


def _which_pulse(r: NDArray[np.float64], pulses: NDArray[np.float64], mode: float) -> tuple[int, float]:
    """Choose between the pulse at `mode` and its neighbours; give the shift and how sure it is, 0 to 1."""
    lags = _lags(r, pulses, mode)
    possible = [
        s for s in lags if s == 0 or (lags[s].size and DELAY_RANGE_S[0] <= np.median(lags[s]) <= DELAY_RANGE_S[1])
    ]
    if len(possible) == 1:
        return 0, 1.0
    if lags[0].size < 8:
        return 0, 0.0
    misfits = {}
    for shift in possible:
        changes = np.diff(lags[shift])
        misfits[shift] = float(np.hypot(np.median(np.abs(changes)), _JITTER_S))
    best, second = sorted(misfits, key=lambda shift: misfits[shift])[:2]
    # Of Laplace-distributed changes the log likelihood of one pairing over the other; even odds are no certainty.
    odds = lags[0].size / _BEATS_A_DRAW * np.log(misfits[second] / misfits[best])
    return best, float(np.tanh(odds / 2))


@dataclass(frozen=True)
class DelayLaw:
    """Delay ~ N(intercept + slopes . [age, height], spread), seconds; fields unknown count as average."""

    intercept_s: float = 0.4
    slopes_s: tuple[float, float] = (0.0, 0.0)
    spread_s: float = 0.1

    @staticmethod
    def _features(people: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.nan_to_num((people[:, _COLUMNS] - _CENTRE) / _SPREAD)

    @classmethod
    def fit(
        cls, people: NDArray[np.float64], delay_s: NDArray[np.floating], confidence: NDArray[np.floating]
    ) -> "DelayLaw":
        """Fit to recordings.

        Parameters
        ----------
        people : array (n, 4)
            `Demographics.to_array`.
        delay_s, confidence : array (n,)
            Measured delays; those below `MIN_CONFIDENCE` are left out. With fewer than 10 the default stays.
        """
        sure = np.isfinite(delay_s) & (confidence >= MIN_CONFIDENCE)
        if sure.sum() < 10:
            return cls()
        design = np.column_stack([np.ones(sure.sum()), cls._features(people[sure])])
        target = delay_s[sure].astype(np.float64)
        # A little ridge on the slopes: a set of one age must not invent an effect of age.
        ridge = np.diag([0.0, 1.0, 1.0])
        solution = np.linalg.solve(design.T @ design + ridge, design.T @ target)
        spread = float(np.std(target - design @ solution, ddof=3))
        return cls(float(solution[0]), (float(solution[1]), float(solution[2])), max(spread, 0.005))

    def mean_s(self, people: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the expected delay of each person, (n,), seconds."""
        return np.clip(self.intercept_s + self._features(people) @ np.array(self.slopes_s), *_LIMITS_S)

    def draw_s(self, people: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn standard normal draws (n,) into delays, seconds."""
        return np.clip(self.mean_s(people) + self.spread_s * normal, *_LIMITS_S)

    def best_s(
        self, people: NDArray[np.float64], delay_s: NDArray[np.floating], confidence: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """Give the measured delay where it is sure, the expected one elsewhere: for training only."""
        sure = np.isfinite(delay_s) & (confidence >= MIN_CONFIDENCE)
        return np.where(sure, np.nan_to_num(delay_s), self.mean_s(people))
