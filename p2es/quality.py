"""How much a PPG looks like pulses and a lead like heart beats, as numbers."""

from math import nan

import numpy as np
from numpy.typing import NDArray

from p2es.beats import cut_around, prominence, pulse_onsets, regularity
from p2es.filters import bandpass_ppg, bridge

MIN_QUALITY = 0.2
"""Least quality of a PPG or lead that is kept."""
# White noise in 5-30 Hz has a prominence of 3.5, a clean lead one above 7.
_NOISE_PROMINENCE, _CLEAN_PROMINENCE = 3.5, 7.0
# 5 % of a lead's samples at a rail and nothing of its shape is to be believed.
_CLIPPED_FACTOR = 20.0
# As few intervals as this may alternate by chance.
_ALTERNATING = 4

Floats = NDArray[np.floating]


def pulse_noise(clean: Floats, onsets_s: Floats, fs_hz: float) -> float:
    """Give how little a PPG looks like a train of pulses: 0 (clean) to 1 (noise, or fewer than four pulses).

    One less the mean correlation of each pulse with the median pulse, 0.6 counting as 0 and 0.95 as 1 (pieces of
    noise cut at their own steepest rises correlate by about 0.5), times the evenness of the intervals.

    Parameters
    ----------
    clean : array (time,)
        0.4-8 Hz, without NaN.
    onsets_s : array (pulse,)
        Steepest rises, seconds from the first sample.
    fs_hz : float
    """
    before, after = int(0.2 * fs_hz), int(0.5 * fs_hz)
    centres = np.round(np.asarray(onsets_s) * fs_hz).astype(np.intp)
    centres = centres[(centres >= before) & (centres + after <= clean.size)]
    if centres.size < 4:
        return 1.0
    pulses = cut_around(clean, centres, before, after)
    pulses = pulses - pulses.mean(axis=1, keepdims=True)
    template = np.median(pulses, axis=0)
    norms = np.linalg.norm(pulses, axis=1) * np.linalg.norm(template)
    likeness = (pulses @ template) / np.maximum(norms, 1e-300)
    return float(1.0 - np.clip((likeness.mean() - 0.6) / 0.35, 0.0, 1.0) * _evenness(np.diff(onsets_s)))


def _evenness(intervals_s: NDArray[np.float64]) -> float:
    """Give 1 for intervals a heart could make, falling to 0 where neighbours differ as wildly as in noise.

    Intervals that alternate (bigeminy, or two rises a beat) are judged by every second one.
    """
    usual = np.median(intervals_s)
    # Atrial fibrillation stays near 0.2; white noise in the pulse band is above 0.3.
    change = np.median(np.abs(np.diff(intervals_s))) / usual
    even = float(np.clip((0.45 - change) / 0.2, 0.0, 1.0))
    if intervals_s.size <= _ALTERNATING:
        return even
    change = np.median(np.abs(intervals_s[2:] - intervals_s[:-2])) / usual
    # A bigeminy repeats to 0.05 and noise to 0.3: with the limits from above, every second interval would let through
    # 40 % of motion in 0.5-3 Hz instead of 26 (24 without it).
    return max(even, float(np.clip((0.2 - change) / 0.1, 0.0, 1.0)))


def ppg_quality(ppg: Floats, mask: NDArray[np.bool_], fs_hz: float) -> float:
    """Give how much the PPG looks like a train of pulses, 0 (flat or noise) to 1 (clean).

    One less its `pulse_noise`, times the share of valid samples. The best channel counts.

    Parameters
    ----------
    ppg : array (channel, time)
    mask : array (time,)
    fs_hz : float
    """
    if not mask.any():
        return 0.0
    rows = [bridge(bandpass_ppg(np.where(mask, row, nan).astype(np.float64), fs_hz))[0] for row in ppg]
    noises = [pulse_noise(clean, pulse_onsets(row, fs_hz, mask), fs_hz) for clean, row in zip(rows, ppg, strict=True)]
    return float(mask.mean() * (1.0 - min(noises, default=1.0)))


def lead_noise(qrs: Floats) -> NDArray[np.float32]:
    """Give how little QRS complexes stand out of each lead: 0 (clean) to 1 (white noise, or nothing at all).

    Parameters
    ----------
    qrs : array (..., time)
        The lead in 5-30 Hz, without NaN.

    Returns
    -------
    array (...,)
        By `beats.prominence`: 3.5 (white noise) counts as 1 and 7 (a clean lead) as 0.
    """
    share = (_CLEAN_PROMINENCE - prominence(qrs)) / (_CLEAN_PROMINENCE - _NOISE_PROMINENCE)
    return np.clip(share, 0.0, 1.0).astype(np.float32)


def lead_quality(missing: Floats, flat: Floats, clipped: Floats, noise: Floats) -> NDArray[np.float32]:
    """Give how usable leads are, 0 to 1: the product of what is there, moves, is off the rails and is no noise.

    Parameters
    ----------
    missing, flat, clipped, noise : array (...,)
        Shares, 0 to 1.
    """
    clipping = np.clip(1.0 - _CLIPPED_FACTOR * clipped, 0.0, 1.0)
    return np.asarray(np.clip(1.0 - missing - flat, 0.0, 1.0) * clipping * (1.0 - noise), np.float32)


def pulse_rhythm(ppg: Floats, mask: NDArray[np.bool_], fs_hz: float) -> tuple[float, str]:
    """Give heart rate and regularity from the pulse intervals of the best channel.

    Parameters
    ----------
    ppg : array (channel, time)
    mask : array (time,)
    fs_hz : float

    Returns
    -------
    heart_rate_bpm : float
        60 over the median interval; NaN when unknown.
    rhythm : str
        `beats.regularity`; `unknown` with fewer than 5 pulses or a quality below 0.2.
    """
    qualities = [ppg_quality(row[None], mask, fs_hz) for row in ppg]
    if not qualities or max(qualities) < 0.2:
        return nan, "unknown"
    onsets = pulse_onsets(ppg[int(np.argmax(qualities))], fs_hz, mask)
    rhythm = regularity(onsets)
    return nan if rhythm == "unknown" else 60.0 / float(np.median(np.diff(onsets))), rhythm
