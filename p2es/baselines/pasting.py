"""Beats cut from training windows, and beats pasted where the pulse says that they are."""

import numpy as np
from numpy.typing import NDArray

from p2es.baselines.common import independent
from p2es.errors import DatasetError
from p2es.leads import N_INDEPENDENT
from p2es.signals import r_peaks
from p2es.windows import ECG_SAMPLES, FS_HZ, WINDOW_S, WindowBatch

# A beat owns the time from 0.42 RR before its R peak to 0.58 RR after it: of usual hearts at 110 beats a minute T ends
# 0.30 s after R and P begins 0.20 s before it, so that the border lies between them.
_SHARE_BEFORE = 0.42
_FADE_S = 0.08
# Samples at the border of a beat whose mean is its level there.
_BORDER = 5
_BEFORE, _AFTER = int(0.7 * FS_HZ), int(1.2 * FS_HZ)
TIME_S = np.arange(-_BEFORE, _AFTER) / FS_HZ
"""Time of a beat's samples, seconds from R."""
TIME_S.setflags(write=False)
RR_LIMITS_S = (0.3, 1.7)
"""Intervals outside these are taken as the nearer of the two."""

Floats = NDArray[np.float64]


def gate(before_s: float, after_s: float) -> Floats:
    """Give a beat's share of each point of `TIME_S`; gates of neighbouring beats add up to 1."""
    rise = np.clip((TIME_S + before_s) / _FADE_S + 0.5, 0.0, 1.0)
    fall = np.clip((after_s - TIME_S) / _FADE_S + 0.5, 0.0, 1.0)
    return np.sin(np.pi / 2 * rise) ** 2 * np.sin(np.pi / 2 * fall) ** 2


def _edges_s(beats_s: Floats) -> tuple[Floats, Floats]:
    """Give how far each beat reaches back and forward; the first and the last as by the median interval."""
    rr_s = np.clip(np.diff(beats_s), *RR_LIMITS_S)
    usual = np.median(rr_s)
    before, after = np.append(usual, rr_s), np.append(rr_s, usual)
    return _SHARE_BEFORE * before, (1 - _SHARE_BEFORE) * after


def paste(beat_mv: Floats, beats_s: Floats) -> Floats:
    """Add a beat at each time, each within its own share of the intervals.

    Parameters
    ----------
    beat_mv : array (lead, time)
        At `TIME_S`.
    beats_s : array (beat,)
        R peaks, seconds from the start of the window, ascending; two at least. They may lie outside it.

    Returns
    -------
    array (lead, 1280)
    """
    margin = _BEFORE + _AFTER
    ecg = np.zeros((len(beat_mv), ECG_SAMPLES + 2 * margin))
    for at_s, before_s, after_s in zip(beats_s, *_edges_s(beats_s), strict=True):
        start = round(at_s * FS_HZ) - _BEFORE + margin
        if 0 <= start <= ecg.shape[1] - TIME_S.size:
            ecg[:, start : start + TIME_S.size] += beat_mv * gate(before_s, after_s)
    return ecg[:, margin : margin + ECG_SAMPLES]


def beats_of_people(batch: WindowBatch) -> tuple[Floats, Floats, NDArray[np.bool_], NDArray[np.intp]]:
    """Average each person's median beats.

    Returns
    -------
    beats : array (person, 8, time)
        Millivolt at `TIME_S`; 0 in a lead that is missing.
    rr_s : array (person,)
    mask : array (person, 8)
        Leads that any of the person's windows has.
    person : array (person,)
        Place among the sorted people of the batch; those without a usable beat are left out.

    Raises
    ------
    DatasetError
        When nobody has a beat.
    """
    ecg, present = independent(batch)
    names, code = np.unique(batch.person, return_inverse=True)
    total = np.zeros((len(names), N_INDEPENDENT, TIME_S.size))
    count = np.zeros((len(names), N_INDEPENDENT))
    rr_total, windows = np.zeros(len(names)), np.zeros(len(names))
    for k, who in enumerate(code):
        found = _median_beat(ecg[k], r_peaks(batch.ecg_mv[k], FS_HZ, batch.lead_mask[k]))
        if found is not None:
            total[who] += found[0] * present[k][:, None]
            count[who] += present[k]
            rr_total[who] += found[1]
            windows[who] += 1
    kept = np.flatnonzero(windows)
    if kept.size == 0:
        raise DatasetError("no training window has a heart beat that can be found: check the dataset's ECG")
    beats = total[kept] / np.maximum(count[kept], 1)[..., None]
    return beats, rr_total[kept] / windows[kept], count[kept] > 0, kept


def _median_beat(ecg_mv: NDArray[np.float32], beats_s: Floats) -> tuple[Floats, float] | None:
    """Give the median of the beats of (8, 1280) and the median RR; None with too few beats.

    Beyond its share the beat goes on at the level at its border. With zeros there a mean over people of different rates
    has slopes that pass for P (PR was off by 72 ms), since the band's high-pass puts the baseline off zero.
    """
    rr_s = np.diff(beats_s)
    if rr_s.size < 2 or not RR_LIMITS_S[0] <= np.median(rr_s) <= RR_LIMITS_S[1]:
        return None
    before_s, after_s = _SHARE_BEFORE * float(np.median(rr_s)), (1 - _SHARE_BEFORE) * float(np.median(rr_s))
    # A beat that is cut by the window's end is not known whole.
    whole = beats_s[(beats_s >= before_s) & (beats_s + after_s <= WINDOW_S)]
    if whole.size == 0:
        return None
    padded = np.pad(ecg_mv, ((0, 0), (_BEFORE, _AFTER)))
    starts = np.round(whole * FS_HZ).astype(np.intp)
    beat = np.median([padded[:, start : start + TIME_S.size] for start in starts], axis=0)
    first, last = np.searchsorted(TIME_S, (-before_s, after_s))
    beat[:, :first] = beat[:, first : first + _BORDER].mean(axis=1, keepdims=True)
    beat[:, last:] = beat[:, last - _BORDER : last].mean(axis=1, keepdims=True)
    return beat, float(np.median(rr_s))
