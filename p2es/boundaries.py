"""Where QRS, T and P of one beat begin and end, on the spatial magnitude of its 8 independent leads.

The magnitude is the length of the vector whose components are the leads. A wave begins and ends where it leaves and
reaches 5 % of the wave's own largest (reference/clinical.md, 3.3 and 7.3).
"""

from dataclasses import dataclass
from functools import lru_cache
from math import inf, isfinite, log, nan, sqrt

import numpy as np
from scipy import ndimage, signal

from p2es.leads import N_INDEPENDENT
from p2es.median_beat import WORK_HZ, Array, MedianBeat, median_of, smooth_beat, speed_of

# A wave's ends are where its magnitude crosses this share of its largest.
_EDGE = 0.05
# A summit this high (share of QRS) in the 24 ms before what seems the onset is a delta wave's; P comes earlier.
_DELTA = 0.06
# How sure (t) the likeness of the beats to the median must be: simulated P waves have 16 and more, f waves 8 and less,
# the flutter in LUDB 10.
_MIN_STEADINESS = 10.5
_MIN_QRS_MV, _MIN_T_MV, _MIN_P_MV = 0.1, 0.05, 0.02
# The shortest P of people is near 60 ms; the foot of a slow QRS passed for one of 26 ms.
_MIN_P_S = 0.045
# The top of T comes before this share of the interval, the next P after it.
_T_PEAK_SHARE = 0.65
# Pairs of levels on a flank from which its end is extrapolated. The onset of P starts high, for T may lie below.
_T_LEVELS = ((0.3, 0.1), (0.4, 0.15), (0.6, 0.2), (0.7, 0.35), (0.8, 0.5))
_P_ON_LEVELS = ((0.6, 0.2), (0.7, 0.35), (0.8, 0.5))
_P_OFF_LEVELS = ((0.3, 0.1), (0.6, 0.2), (0.7, 0.35), (0.8, 0.5))
# Samples (2 ms) between the ends that two pairs tell above which the nearer is believed; on Gaussian T waves they
# differ by 8 at most.
_DISAGREE = 12.0
# Samples after the extrapolated end of T within which its 5 % are believed; without them T's slow foot ends 2 ms later.
_T_TRUST, _T_SHIFT = 6.0, 1.0
_P_REACH = 60


@lru_cache(maxsize=8)
def _weights(near: int, far: int, line: bool) -> tuple[float, ...]:
    """Give the weights of samples 0 to `far` back that tell the level now: a mean or a line through near..far."""
    k = np.arange(near, far + 1)
    weights = np.full(k.size, 1.0 / k.size)
    if line:
        weights -= k.mean() * (k - k.mean()) / np.square(k - k.mean()).sum()
    return (*np.zeros(near), *weights)


def _departure(beat: Array, near: int, far: int, line: bool) -> Array:
    """Give how far (time,) a beat (lead, time) is from where its samples near..far back would have it."""
    weights = np.array(_weights(near, far, line))
    padded = np.concatenate([np.repeat(beat[:, :1], far, axis=1), beat], axis=1)
    expected = np.stack([np.convolve(row, weights, "valid") for row in padded])
    return np.asarray(np.linalg.norm(beat - expected, axis=0))


def falls(x: Array, start: int, step: int, level: float, hold: int = 1) -> float:
    """Give where x, from `start` on in steps of 1 or -1, falls below `level` for `hold` samples; NaN if nowhere."""
    along = x[start::step]
    quiet = along < level
    if hold > 1:
        # Of the last `hold` samples none is loud: moved back to the first of them.
        run = np.cumsum(quiet)
        quiet = np.concatenate([run[hold - 1 : hold], run[hold:] - run[:-hold]]) == hold
    if not quiet.any():
        return nan
    k = int(np.argmax(quiet))
    if k == 0:
        return float(start)
    part = (along[k - 1] - level) / (along[k - 1] - along[k])
    return start + step * (k - 1 + float(part))


@dataclass(frozen=True)
class Wave:
    """Onset, peak and offset in samples of the beat, with fractions; an onset that is not measured is NaN."""

    on: float
    peak: float
    off: float


def find_waves(beat: MedianBeat) -> tuple[dict[str, Wave], dict[str, str], Array]:
    """Find QRS, T and P of a beat.

    QRS begins where the leads have left their level of 8 to 20 ms before by 5 % of the largest magnitude of QRS, and
    ends where they have come within 5 % of the line through the 10 to 32 ms that follow: neither P nor a raised ST
    moves it. T and P are measured on the magnitude above the isoelectric line; where their 5 % lie in noise or in the
    next wave, they are extrapolated from the flank above, as if it were a Gaussian's.

    Returns
    -------
    waves : dict of Wave
        By "QRS", "T" and "P".
    missing : dict of str
        Of those that were not found: the reason.
    level : array (8, 1)
        The isoelectric line, mV.
    """
    level = np.zeros((N_INDEPENDENT, 1))
    smooth = beat.ecg_mv if beat.reason else smooth_beat(beat.ecg_mv)
    qrs = beat.reason or find_qrs(smooth, beat)
    if isinstance(qrs, str):
        return {}, dict.fromkeys(("QRS", "P", "T"), qrs), level
    tail = np.zeros_like(smooth)
    # Where T runs into the next P no isoelectric line is to be seen; what T's tail, once known, leaves is one.
    for _ in range(2):
        level = isoelectric(smooth - tail, qrs.on, beat.rr_s)
        t = find_t(smooth - level, beat, qrs)
        tail = _tail(smooth - level, beat, t)
    found = {"QRS": qrs, "T": t, "P": find_p(smooth - level - tail, beat, qrs, t)}
    waves = {name: wave for name, wave in found.items() if isinstance(wave, Wave)}
    return waves, {name: wave for name, wave in found.items() if isinstance(wave, str)}, level


def find_qrs(smooth: Array, beat: MedianBeat) -> Wave | str:
    """Give QRS in a smoothed beat (8, time), or why there is none."""
    r = beat.r_sample
    middle = smooth - np.median(smooth[:, max(r - 60, 0) : max(r - 20, 1)], axis=1, keepdims=True)
    magnitude = np.linalg.norm(middle, axis=0)
    first = max(r - 30, 0)
    peak = first + int(np.argmax(magnitude[first : r + 60]))
    top = float(magnitude[peak])
    noise = float(np.linalg.norm(beat.error_mv[:, peak]))
    if top < max(_MIN_QRS_MV, 8.0 * noise):
        return f"the largest magnitude of {top:.2f} mV does not stand out of the noise"
    on = falls(_departure(smooth, 4, 10, line=False), peak, -1, _EDGE * top, hold=6)
    if isfinite(on):
        on = _delta_onset(smooth, on, top, beat.rr_s)
    end = smooth.shape[1] - 1
    off = end - falls(_departure(smooth[:, ::-1], 5, 16, line=True), end - peak, -1, _EDGE * top, hold=15)
    if not (isfinite(on) and isfinite(off)):
        return "QRS has no end within the beat"
    return Wave(on, float(peak), off)


def _delta_onset(smooth: Array, on: float, top: float, rr_s: float) -> float:
    """Give the onset of a delta wave whose top `on` turns out to be, else `on`."""
    magnitude = np.linalg.norm(smooth - isoelectric(smooth, on, rr_s), axis=0)
    k = int(on)
    back = magnitude[max(k - 40, 0) : k + 1][::-1]
    summit = int(np.argmax(back[:13]))
    if back[summit] < _DELTA * top or summit < 2 or summit in (12, back.size - 1):
        return on
    foot = k - summit - int(np.argmin(back[summit:]))
    earlier = falls(np.linalg.norm(smooth - smooth[:, foot : foot + 1], axis=0), k - summit, -1, _EDGE * top)
    return earlier if isfinite(earlier) else on


def _search(rr_s: float) -> int:
    """Give how many samples before QRS a quiet moment is looked for: 300 ms, less where the T before would be met."""
    return int(min(0.30, 0.40 * rr_s if isfinite(rr_s) else inf) * WORK_HZ)


def isoelectric(smooth: Array, qrs_on: float, rr_s: float) -> Array:
    """Give the level (8, 1) before QRS: from 32 to 8 ms before it, or, where P reaches into that, the quietest."""
    quiet = ndimage.uniform_filter1d(speed_of(smooth), 13)
    before = max(int(qrs_on) - 10, 0)
    first = max(int(qrs_on) - _search(rr_s), 0)
    quietest = first + int(np.argmin(quiet[first : before + 1]))
    at = before if quiet[before] <= 2.0 * quiet[quietest] else quietest
    return np.asarray(smooth[:, max(at - 6, 0) : at + 7].mean(axis=1, keepdims=True), np.float64)


def _magnitude(smooth: Array, error: Array) -> Array:
    """Give the spatial magnitude (time,), less what noise adds to it on average."""
    return np.sqrt(np.maximum(np.square(smooth).sum(axis=0) - np.square(error).sum(axis=0), 0.0))


def find_t(smooth: Array, beat: MedianBeat, qrs: Wave) -> Wave | str:
    """Give T in a smoothed beat (8, time) that counts from the isoelectric line, or why there is none."""
    magnitude = _magnitude(smooth, beat.error_mv)
    first = int(qrs.off) + 15
    last = magnitude.size
    if isfinite(beat.rr_s):
        last = min(last, beat.r_sample + int(_T_PEAK_SHARE * beat.rr_s * WORK_HZ))
    if last - first < 10:
        return "the beat is too short for a T"
    peak = first + int(np.argmax(magnitude[first:last]))
    top = float(magnitude[peak])
    if top < _MIN_T_MV:
        return f"T is flat: its largest magnitude is {top:.3f} mV"
    noise = float(np.linalg.norm(beat.error_mv[:, peak:].mean(axis=1)))
    off = _edge(magnitude[peak:], _T_LEVELS, noise)
    if not isfinite(off):
        return "T does not come down within the beat"
    steadiness = _steadiness(beat.beats_mv, first, peak + off)
    if steadiness < _MIN_STEADINESS:
        return f"what follows QRS is not alike from beat to beat (t {steadiness:.1f})"
    direct = falls(magnitude, peak, 1, _EDGE * top) - peak
    seen = direct < off + _T_TRUST and _EDGE * top > 2.0 * noise
    return Wave(nan, float(peak), peak + (direct if seen else off + _T_SHIFT))


def _sigmas(share: float) -> float:
    """Give where a Gaussian has fallen to a share of its top, in standard deviations."""
    return sqrt(-2.0 * log(share))


def _edge(flank: Array, levels: tuple[tuple[float, float], ...], noise: float = 0.0) -> float:
    """Give where a flank (time,), from its peak outwards, reaches 5 %; NaN if it does not come down.

    It is extrapolated from where it crosses a pair of `levels`: the first that stand out of the noise, unless the
    next tell an end that is much nearer, for then the flank does not go down to the isoelectric line.
    """
    ends: list[float] = []
    for high, low in levels:
        upper, lower = (falls(flank, 0, 1, share * float(flank[0])) for share in (high, low))
        slope = (_sigmas(_EDGE) - _sigmas(low)) / (_sigmas(low) - _sigmas(high))
        if isfinite(lower) and (low * flank[0] >= 2.0 * noise or (not ends and (high, low) == levels[-1])):
            ends.append(lower + slope * (lower - upper))
    end = ends[0] if ends else nan
    for other in ends[1:]:
        end = other if other < end - _DISAGREE else end
    return end


def _p_edge(flank: Array, levels: tuple[tuple[float, float], ...]) -> float:
    """Give `_edge`; from the foot of the flank, where that does not lie on the isoelectric line within 120 ms."""
    edge = _edge(flank, levels)
    if edge <= _P_REACH:
        return edge
    foot = int(np.argmin(flank[: _P_REACH + 1]))
    return _edge(flank[: foot + 1] - flank[foot], levels)


def _steadiness(beats: Array, on: float, off: float) -> float:
    """Give how surely beats (beat, 8, time) have a wave at on..off: the t of their likeness to its median.

    It is about 2 for f waves and noise, which are of course like a median that they are part of.
    """
    if len(beats) < 3:
        return inf
    part = beats[..., max(round(on), 0) : round(off) + 1]
    line = np.arange(part.shape[2]) - (part.shape[2] - 1) / 2
    part = part - part.mean(axis=2, keepdims=True)
    part -= (part @ line / max(float(line @ line), 1.0))[..., None] * line
    wave = median_of(part)
    like = np.tensordot(part, wave, axes=2)
    return float(like.mean() / max(like.std(ddof=1) / sqrt(len(like)), 1e-12))


def find_p(smooth: Array, beat: MedianBeat, qrs: Wave, t: Wave | str) -> Wave | str:
    """Give P in a smoothed beat (8, time) that counts from the isoelectric line and is rid of the T before."""
    last = int(qrs.on) - 3
    first = 0
    if isinstance(t, Wave) and isfinite(beat.rr_s):
        first = max(int(t.off - beat.rr_s * WORK_HZ) - 8, 0)
    if last - first < 20:
        return "there is no room between T and QRS"
    # Two directions hold P; the noise of the other six does not blur its edges.
    leads = smooth[:, first:last]
    directions = np.linalg.eigh(leads @ leads.T)[1][:, -2:]
    magnitude = _magnitude(directions.T @ smooth[:, :last], 0.5 * beat.error_mv[:, :last])
    # What T leaves may be higher than P, but it slopes: P is what rises most above both its sides.
    tops, found = signal.find_peaks(magnitude[first:last], prominence=0.5 * _MIN_P_MV)
    if not tops.size or magnitude[first + tops].max() < _MIN_P_MV:
        return f"nothing rises above {_MIN_P_MV:g} mV before QRS"
    peak = first + int(tops[np.argmax(found["prominences"])])
    on = peak - _p_edge(magnitude[first : peak + 1][::-1], _P_ON_LEVELS)
    off = peak + _p_edge(magnitude[peak:], _P_OFF_LEVELS)
    if not isfinite(on):
        return "P does not come down towards T"
    if (min(off, qrs.on) if isfinite(off) else qrs.on) - on < _MIN_P_S * WORK_HZ:
        return "what rises before QRS is too short for P: it is the foot of QRS"
    steadiness = _steadiness(beat.beats_mv, on - 10, min(off, qrs.on) if isfinite(off) else qrs.on)
    if steadiness < _MIN_STEADINESS:
        return f"what is before QRS is not alike from beat to beat (t {steadiness:.1f})"
    return Wave(on, float(peak), min(off, qrs.on) if isfinite(off) else qrs.on)


def _tail(smooth: Array, beat: MedianBeat, t: Wave | str) -> Array:
    """Give what the T before (8, time) leaves in this beat: its last flank, continued as a Gaussian, a beat earlier."""
    if isinstance(t, str) or not isfinite(beat.rr_s):
        return np.zeros_like(smooth)
    peak = int(t.peak)
    flank = _magnitude(smooth, beat.error_mv)[peak:]
    upper, lower = (falls(flank, 0, 1, share * float(flank[0])) for share in (0.4, 0.15))
    if not isfinite(lower):
        return np.zeros_like(smooth)
    width = (lower - upper) / (_sigmas(0.15) - _sigmas(0.4))
    at = np.arange(smooth.shape[1]) + beat.rr_s * WORK_HZ - peak
    z = _sigmas(0.15) + (at - lower) / width
    share = np.exp(-0.5 * np.square(z)) / np.exp(-0.5 * _sigmas(0.15) ** 2)
    here = peak + round(lower)
    return smooth[:, here - 3 : here + 4].mean(axis=1, keepdims=True) * np.where(z > 0, np.minimum(share, 6.0), 0.0)
