"""Premature beats and pauses of a window, and which of them a drawn ECG shows at the same place.

What a beat is follows from R peaks and, where asked, from its shape; both ECGs go through the same steps.

Early beats and pauses are those of `beats.early_and_late`, which says where its limits come from.

From intervals alone a block that drops every third beat looks like bigeminy, and the short intervals of atrial
fibrillation like premature beats.
"""

import numpy as np
from numpy.typing import NDArray

from p2es.beats import early_and_late
from p2es.delineation import dominant_shape
from p2es.evaluation.beats import EDGE_S, match

KINDS = ("premature", "premature_other_shape", "pause")
"""By interval; by interval and with another shape than the beats that are not premature; by interval."""
COUNTS = ("real", "found", "drawn", "right")
"""Recorded beats of a kind, those of them that are drawn so, drawn ones, and those of them that are recorded so."""

MATCH_S = 0.15
"""Two beats are the same one within this distance (EC57)."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def beat_kinds(ecg_mv: NDArray[np.floating], fs_hz: float, r_peaks_s: Floats) -> Mask:
    """Tell the kinds of the beats of an ECG.

    Parameters
    ----------
    ecg_mv : array (12, time)
        NaN in leads that were not recorded. Only shapes are read from it.
    fs_hz : float
    r_peaks_s : array (beat,)
        Seconds, ascending.

    Returns
    -------
    array (kind, beat)
        In the order of `KINDS`; a pause is told at the beat that ends it. The first beat has no interval, so no kind.
    """
    premature, pause = early_and_late(r_peaks_s)
    kinds = np.stack([premature, np.zeros_like(premature), pause])
    if kinds[0].any():
        kinds[1] = kinds[0] & _other_shape(dominant_shape(ecg_mv, fs_hz, r_peaks_s), kinds[0])
    return kinds


def _other_shape(dominant: Mask, premature: Mask) -> Mask:
    """Tell beats whose shape is not that of most beats that are not premature: with bigeminy these may be fewer."""
    usual = dominant[~premature]
    return dominant != (2 * np.count_nonzero(usual) > usual.size)


def kind_counts(
    truth_s: Floats, truth_kinds: Mask, drawn_s: Floats, drawn_kinds: Mask, *, lag_s: float, duration_s: float
) -> Floats:
    """Count the beats of each kind, and those that both ECGs show so at the same place.

    All beats are matched one to one within 150 ms after removing a lag, whatever their kind, and then their kinds are
    compared, as in the beat-by-beat comparison of EC57: a premature beat drawn beside a usual one at the right place is
    no find. A beat is counted where it and the beat before it are at least `EDGE_S` inside both ECGs, the drawn shifted
    by the lag, so that no ECG is asked for an interval it could not show; partners may lie outside.

    Parameters
    ----------
    truth_s, drawn_s : array (beat,)
    truth_kinds, drawn_kinds : array (kind, beat)
        From `beat_kinds`.
    lag_s, duration_s : float

    Returns
    -------
    array (kind, 4)
        In the order of `COUNTS`.
    """
    drawn_s = drawn_s - lag_s
    low, high = EDGE_S + max(0.0, -lag_s), duration_s - EDGE_S - max(0.0, lag_s)
    truth_counts, drawn_counts = _counts(truth_s, low, high), _counts(drawn_s, low, high)
    ours, theirs = match(truth_s, drawn_s, MATCH_S).T
    same = truth_kinds[:, ours] & drawn_kinds[:, theirs]
    counted = (
        truth_kinds & truth_counts,
        same & truth_counts[ours],
        drawn_kinds & drawn_counts,
        same & drawn_counts[theirs],
    )
    return np.stack([part.sum(axis=1) for part in counted], axis=1).astype(np.float64)


def _counts(beats_s: Floats, low: float, high: float) -> Mask:
    inside = (beats_s >= low) & (beats_s <= high)
    inside[1:] &= inside[:-1].copy()
    inside[:1] = False
    return inside
