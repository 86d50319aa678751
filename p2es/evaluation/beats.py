"""Matching the R peaks of a drawn ECG to those of the recorded one, with and without a constant lag."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

EDGE_S = 0.2
"""Beats this near to the ends of a window are not scored: a detector sees only a part of them."""
MAX_LAG_S = 0.6
_LAG_STEP_S = 0.01
_LAG_TOLERANCE_S = 0.05
# Decimal tolerances are not binary numbers: 0.35 - 0.30 must still be within 0.05.
_ROUNDING_S = 1e-9

Seconds = NDArray[np.float64]


def match(truth_s: Seconds, drawn_s: Seconds, tolerance_s: float) -> NDArray[np.intp]:
    """Match beats one to one: the most pairs within the tolerance and, of those, the least total distance.

    Parameters
    ----------
    truth_s, drawn_s : array (beat,)
        Seconds, ascending.
    tolerance_s : float
        Largest distance of a pair (EC57 uses 0.15).

    Returns
    -------
    array (pair, 2)
        Index into `truth_s` and into `drawn_s`, ascending.
    """
    distance = np.abs(drawn_s[None, :] - truth_s[:, None])
    allowed = distance <= tolerance_s + _ROUNDING_S
    # A pair is worth more than any distance it could save, so the number of pairs comes first.
    worth = 1.0 + tolerance_s * (1 + min(distance.shape))
    rows, columns = linear_sum_assignment(np.where(allowed, distance - worth, 0.0))
    kept = allowed[rows, columns]
    return np.stack([rows[kept], columns[kept]], axis=1)


def constant_lag(truth_s: Seconds, drawn_s: Seconds) -> float:
    """Find the one lag, drawn minus truth, that brings the most beats together.

    Over a grid of 10 ms within 0.6 s either way: the lag with the most beats matched within 50 ms; of
    several, the one with the least mean distance, then the smallest. It is then refined by the median of the
    signed offsets of the beats it matches. The lag is chosen on the beats it is scored on, so a score after
    removing it has a higher chance level; a control must go through the same.

    Returns
    -------
    float
        Seconds; 0 when no beats come together at any lag.
    """
    steps = round(MAX_LAG_S / _LAG_STEP_S)
    grid_s = np.arange(-steps, steps + 1) * _LAG_STEP_S
    distance = np.abs(drawn_s[None, None, :] - truth_s[None, :, None] - grid_s[:, None, None])
    near = distance <= _LAG_TOLERANCE_S + _ROUNDING_S
    # Beats of one ECG are further apart than twice the tolerance, so this count is the size of the matching.
    count = np.minimum(near.any(axis=2).sum(axis=1), near.any(axis=1).sum(axis=1))
    if count.max(initial=0) == 0:
        return 0.0
    mean_distance = np.where(near, distance, 0.0).sum(axis=(1, 2)) / np.maximum(near.sum(axis=(1, 2)), 1)
    best = np.lexsort((np.abs(grid_s), np.round(mean_distance, 9), -count))[0]
    pairs = match(truth_s, drawn_s - grid_s[best], _LAG_TOLERANCE_S)
    return float(np.median(drawn_s[pairs[:, 1]] - truth_s[pairs[:, 0]]))


def found_and_real(
    truth_s: Seconds, drawn_s: Seconds, *, tolerance_s: float, lag_s: float, duration_s: float
) -> tuple[float, float]:
    """Give the sensitivity and the positive predictivity of the drawn beats after removing a lag.

    Sensitivity is the share of recorded beats that have a partner, positive predictivity that of drawn beats.
    Only beats at least `EDGE_S` inside both ECGs count, the drawn one shifted by the lag; their partners may
    lie outside.

    Returns
    -------
    sensitivity, predictivity : float
        NaN when there is no recorded beat to find; 0 when none is drawn, which claims nothing and finds nothing.
    """
    drawn_s = drawn_s - lag_s
    low, high = EDGE_S + max(0.0, -lag_s), duration_s - EDGE_S - max(0.0, lag_s)
    truth_counts = (truth_s >= low) & (truth_s <= high)
    drawn_counts = (drawn_s >= low) & (drawn_s <= high)
    if not truth_counts.any():
        return float("nan"), float("nan")
    pairs = match(truth_s, drawn_s, tolerance_s)
    sensitivity = truth_counts[pairs[:, 0]].sum() / truth_counts.sum()
    predictivity = drawn_counts[pairs[:, 1]].sum() / max(drawn_counts.sum(), 1)
    return float(sensitivity), float(predictivity)


def f1_score(truth_s: Seconds, drawn_s: Seconds, *, tolerance_s: float, lag_s: float, duration_s: float) -> float:
    """Give the F1 of the drawn beats, ``2 Se P / (Se + P)`` of `found_and_real`; 0 where both are 0."""
    sensitivity, predictivity = found_and_real(
        truth_s, drawn_s, tolerance_s=tolerance_s, lag_s=lag_s, duration_s=duration_s
    )
    if sensitivity + predictivity == 0:
        return 0.0
    return 2 * sensitivity * predictivity / (sensitivity + predictivity)


def offsets_s(truth_s: Seconds, drawn_s: Seconds, *, tolerance_s: float, lag_s: float) -> Seconds:
    """Give the signed offsets, drawn minus truth, of beats matched after removing a lag, (pair,) seconds."""
    pairs = match(truth_s, drawn_s - lag_s, tolerance_s)
    return drawn_s[pairs[:, 1]] - lag_s - truth_s[pairs[:, 0]]


def interval_error_s(truth_s: Seconds, drawn_s: Seconds, *, tolerance_s: float, lag_s: float) -> float:
    """Give the mean absolute error of the RR intervals whose two beats are matched and neighbours in both.

    Returns
    -------
    float
        Seconds; NaN when there is no such interval.
    """
    pairs = match(truth_s, drawn_s - lag_s, tolerance_s)
    neighbours = (np.diff(pairs, axis=0) == 1).all(axis=1)
    if not neighbours.any():
        return float("nan")
    recorded, drawn = np.diff(truth_s[pairs[:, 0]]), np.diff(drawn_s[pairs[:, 1]])
    return float(np.abs(drawn - recorded)[neighbours].mean())


def heart_rate_bpm(beats_s: Seconds) -> float:
    """Give 60 over the mean RR interval; NaN with fewer than two beats."""
    return float(60.0 / np.diff(beats_s).mean()) if beats_s.size > 1 else float("nan")


def sdnn_ms(beats_s: Seconds) -> float:
    """Give the standard deviation (n - 1) of the RR intervals, all beats taken as normal; NaN with fewer than 3."""
    return float(1e3 * np.diff(beats_s).std(ddof=1)) if beats_s.size > 3 else float("nan")


def rmssd_ms(beats_s: Seconds) -> float:
    """Give the root mean square of the differences of neighbouring RR intervals; NaN with fewer than 3 intervals."""
    return float(1e3 * np.sqrt(np.square(np.diff(beats_s, 2)).mean())) if beats_s.size > 3 else float("nan")


def relative_error_percent(recorded: float, drawn: float, least: float) -> float:
    """Give ``100 |drawn - recorded| / max(recorded, least)``, what is not drawn (NaN) counting as 0.

    Parameters
    ----------
    recorded, drawn : float
    least : float
        What the recorded cannot be told from 0 below: two intervals that differ by a millisecond must not make an
        error of several hundred percent.

    Returns
    -------
    float
        NaN when nothing was recorded.
    """
    return 100.0 * abs((0.0 if np.isnan(drawn) else drawn) - recorded) / max(recorded, least)
