"""P, QRS and T of every beat of a short ECG: the waves of the median beat, found again in each beat.

A single beat is too noisy for its 5 % to be seen: 20 uV of noise are 5 % of a T wave and 20 % of a P wave. So the
median beat is delineated, and what is measured in each beat is how its waves differ from the median's in time: the
onset and the end of QRS and the whole of P by a shift (Woody, IEEE Trans Biomed Eng 1967), T by a stretch from the
onset of QRS (Berger, IEEE Trans Biomed Eng 1997), each by least squares on all leads at once. Marks are those of the
median beat, moved along; durations of P are therefore those of the median's.

Beats of another shape are measured each on its own by the rules of the median beat: QRS and T, no P.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite, nan

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from p2es.beats import early_and_late
from p2es.boundaries import Wave, find_qrs, find_t, find_waves, isoelectric
from p2es.median_beat import (
    WORK_HZ,
    Array,
    Mask,
    MedianBeat,
    alike,
    at_work_rate,
    baseline_under,
    cut_beats,
    error_of,
    median_of_leads,
    quiet_phase,
    smooth_beat,
    speed_of,
)

CUT = "the end of the window cuts it"
"""The reason of a wave that lies outside, wholly or in part: no failure."""
# From here on a change between the intervals before and after the usual beats is looked at.
_UNEQUAL = 1.2
# Samples cut on either side beyond the median beat, for waves that come earlier or end later.
_MARGIN = 60
# How much earlier and later than usual (samples) P may come, and how much shorter and longer T may be.
_P_EARLIER, _P_LATER = 60, 30
_STRETCHES = np.linspace(0.75, 1.30, 56)
# Below this likeness (correlation over all leads) a wave is not the median's.
_MIN_LIKENESS = 0.5
# Samples beside QRS that tell where its flanks are, and the most they are moved at a time.
_FLANK, _MAX_SHIFT = 8, 10.0
# Samples beside P that it is fitted with, and the least between what is fitted of it and QRS.
_P_AROUND, _P_ROOM = 10, 8
# T is fitted from so many samples after QRS to so many after its usual end, but not nearer to the onset of the next
# QRS; and so many after its peak must be seen.
_T_AFTER, _T_BEYOND, _NEXT, _T_SEEN = 10, 15, 10, 10


@dataclass(frozen=True)
class BeatMarks:
    """The waves of each beat, all (beat,); what was not found is NaN, with its reason in `missing`.

    Attributes
    ----------
    r_s : array
        As given, or found.
    p_on_s, p_peak_s, p_off_s, qrs_on_s, qrs_off_s, t_peak_s, t_off_s : array
        Global times over the 8 leads, seconds from the first sample.
    rr_s : array
        Interval that ends at the beat; NaN of the first.
    dominant : array of bool
        Has the shape that most beats have.
    premature, pause : array of bool
        Its interval is below 0.8 of the usual one nearby; above 1.5 of it, or 2 s. By intervals alone: the beat after
        an interpolated one counts as premature, and so do the short intervals of fibrillation.
    missing : tuple of mapping
        Of each beat, what was not found ("P", "QRS", "T", "RR"): the reason; `CUT` where the window ends.
    """

    r_s: Array
    p_on_s: Array
    p_peak_s: Array
    p_off_s: Array
    qrs_on_s: Array
    qrs_off_s: Array
    t_peak_s: Array
    t_off_s: Array
    rr_s: Array
    dominant: Mask
    premature: Mask
    pause: Mask
    missing: tuple[Mapping[str, str], ...]

    @property
    def pr_ms(self) -> Array:
        """From the onset of P to that of QRS."""
        return 1000.0 * (self.qrs_on_s - self.p_on_s)

    @property
    def qrs_ms(self) -> Array:
        """Duration of QRS."""
        return 1000.0 * (self.qrs_off_s - self.qrs_on_s)

    @property
    def qt_ms(self) -> Array:
        """From the onset of QRS to the end of T."""
        return 1000.0 * (self.t_off_s - self.qrs_on_s)

    def cut(self, wave: str) -> Mask:
        """Tell (beat,) of "P", "QRS" or "T" whether the end of the window cuts it."""
        return np.array([missing.get(wave) == CUT for missing in self.missing], bool)


def delineate_beats(
    ecg_mv: NDArray[np.floating], fs_hz: float, r_peaks_s: NDArray[np.floating] | None = None
) -> BeatMarks:
    """Find P, QRS and T of every beat.

    Parameters
    ----------
    ecg_mv : array (12, time) or (8, time)
        In the order of `LEADS` or `INDEPENDENT`, in mV; NaN where nothing was recorded.
    fs_hz : float
        100 or more.
    r_peaks_s : array (beat,), optional
        Seconds from the first sample, ascending, those outside are left out; else `beats.r_peaks`.

    Returns
    -------
    BeatMarks
        Of no beats when there are none.

    Raises
    ------
    InputError
        Not 8 or 12 leads, or a rate that is too low.
    """
    leads, present, at = at_work_rate(ecg_mv, fs_hz, r_peaks_s)
    marks = _Marks(at, leads.shape[1])
    rr = np.diff(at, prepend=nan)
    if not at.size:
        nothing = np.zeros(0, bool)
        return marks.result(rr, nothing, nothing, nothing)
    same = alike(leads, at)
    premature, pause = early_and_late(at / WORK_HZ)
    steady = same & ~premature
    if np.count_nonzero(steady) < max(3, at.size / 3):
        steady = same
    beat = median_of_leads(leads, present, at, steady)
    waves, missing = _waves_of(beat, rr / WORK_HZ, steady)
    if "QRS" in waves:
        pieces = _Pieces(leads, at, steady, beat)
        qrs = waves["QRS"]
        whole = (at + qrs.on >= beat.r_sample) & (at + qrs.off <= leads.shape[1] - 1 + beat.r_sample)
        # Of a QRS that is cut not even the shape is known.
        marks.miss(np.flatnonzero(~whole), dict.fromkeys(("P", "QRS", "T"), CUT))
        _usual_beats(marks, pieces, beat, waves, missing, same & whole)
        for k in map(int, np.flatnonzero(~same & whole)):
            _other_beat(marks, pieces, k, rr, beat)
    else:
        marks.miss(np.arange(at.size), missing)
    return marks.result(rr / WORK_HZ, same, premature, pause)


def _waves_of(beat: MedianBeat, rr_s: Array, steady: Mask) -> tuple[dict[str, Wave], dict[str, str]]:
    """Give the waves of the median of the beats `steady` (beat,), and why others are missing.

    In bigeminy what comes before such a beat is a long interval and what comes after a short one: T has the latter.
    """
    waves, missing, _ = find_waves(beat)
    before, after = rr_s[steady], np.append(rr_s[1:], nan)[steady]
    before_s, after_s = (float(np.nanmedian(x)) if np.isfinite(x).any() else nan for x in (before, after))
    if not (before_s > _UNEQUAL * after_s or after_s > _UNEQUAL * before_s):
        return waves, missing
    for name, interval_s in (("P", before_s), ("T", after_s)):
        found, reasons, _ = find_waves(replace(beat, rr_s=interval_s))
        waves.pop(name, None)
        missing.pop(name, None)
        waves |= {name: found[name]} if name in found else {}
        missing |= {name: reasons[name]} if name in reasons else {}
    return waves, missing


class _Marks:
    """The marks in samples of the window, while they are found."""

    def __init__(self, at: Array, length: int) -> None:
        self.at, self.length = at, length
        names = ("p_on", "p_peak", "p_off", "qrs_on", "qrs_off", "t_peak", "t_off")
        self.of = {name: np.full(at.size, nan) for name in names}
        self.missing: list[dict[str, str]] = [{} for _ in at]

    def miss(self, which: NDArray[np.intp], reasons: Mapping[str, str]) -> None:
        for k in which:
            self.missing[k] |= reasons

    def put(
        self, which: NDArray[np.intp], wave: str, on: Array, off: Array, marks: Mapping[str, Array]
    ) -> NDArray[np.bool_]:
        """Note marks of beats `which` (beat,) whose wave on..off is inside, and which are cut; tell the former."""
        inside = (on >= 0) & (off <= self.length - 1)
        self.miss(which[~inside], {wave: CUT})
        for name, values in marks.items():
            self.of[name][which[inside]] = values[inside]
        return inside

    def result(self, rr_s: Array, dominant: Mask, premature: Mask, pause: Mask) -> BeatMarks:
        for k in np.flatnonzero(np.isnan(rr_s)):
            self.missing[k]["RR"] = "there is no beat before"
        seconds = {f"{name}_s": values / WORK_HZ for name, values in self.of.items()}
        return BeatMarks(
            r_s=self.at / WORK_HZ,
            rr_s=rr_s,
            dominant=dominant,
            premature=premature,
            pause=pause,
            missing=tuple(self.missing),
            **seconds,
        )


class _Pieces:
    """Smoothed beats (beat, 8, time) off their baseline, cut around times that may be moved."""

    def __init__(self, leads: Array, at: Array, steady: Mask, beat: MedianBeat) -> None:
        self.leads = smooth_beat(leads)
        self.r = beat.r_sample + _MARGIN
        self.offsets = np.arange(-self.r, beat.ecg_mv.shape[1] - beat.r_sample + _MARGIN)
        phase = quiet_phase(leads, at[steady] if steady.any() else at, beat.r_sample)
        # A knot before a premature beat would lie on the T of the beat before.
        knots = at[steady] + phase
        if np.count_nonzero((knots >= 6) & (knots <= leads.shape[1] - 7)) < 3:
            knots = at + phase
        self.knots = knots

    def cut(self, at: Array) -> Array:
        """Cut beats around R (beat,) between samples."""
        return cut_beats(self.leads, at, self.offsets) - baseline_under(self.leads, self.knots, at, self.offsets)


@dataclass(frozen=True)
class _Usual:
    """Beats of the dominant shape over each other, and the median beat that they are held against.

    Attributes
    ----------
    which : array (beat,)
        Their numbers among all.
    start : array (beat,)
        Sample of the window, with a fraction, at which each is cut.
    beats : array (beat, 8, time)
    template : array (8, time)
    waves : mapping of Wave
        The template's.
    room : array (beat,)
        Samples from `start` at which the next beat begins.
    """

    which: NDArray[np.intp]
    start: Array
    beats: Array
    template: Array
    waves: Mapping[str, Wave]
    room: Array


def _usual_beats(
    marks: _Marks, pieces: _Pieces, beat: MedianBeat, waves: Mapping[str, Wave], missing: Mapping[str, str], same: Mask
) -> None:
    """Mark the beats `same` (beat,), of the dominant shape."""
    which = np.flatnonzero(same)
    template = np.pad(smooth_beat(beat.ecg_mv), ((0, 0), (_MARGIN, _MARGIN)), mode="edge")
    moved = {name: Wave(w.on + _MARGIN, w.peak + _MARGIN, w.off + _MARGIN) for name, w in waves.items()}
    qrs, at = moved["QRS"], marks.at[which]
    for _ in range(2):
        at = at + _shift(template, pieces.cut(at), qrs.on - _FLANK, qrs.off + _FLANK)
    beats, start = pieces.cut(at), at - pieces.r
    on = qrs.on + _shift(template, beats, qrs.on - _FLANK, qrs.peak)
    off = qrs.off + _shift(template, beats, qrs.peak, qrs.off + _FLANK)
    marks.put(which, "QRS", start + on, start + off, {"qrs_on": start + on, "qrs_off": start + off})
    following = np.append(marks.at, np.inf)[which + 1] - start - (pieces.r - qrs.on)
    usual = _Usual(which, start, beats, template, moved, following)
    for name, find in (("T", _usual_t), ("P", _usual_p)):
        if name in moved:
            find(marks, usual, on)
        else:
            marks.miss(which, {name: missing[name]})


def _shift(template: Array, beats: Array, first: float, last: float) -> Array:
    """Give how much later (beat,) beats (beat, 8, time) are than the template (8, time) within first..last, samples.

    One step of least squares; each lead's level is free.
    """
    part = slice(max(round(first), 1), round(last) + 1)
    slope = np.gradient(template, axis=1)[:, part]
    slope = slope - slope.mean(axis=1, keepdims=True)
    later = -np.tensordot(beats[..., part] - template[:, part], slope, axes=2)
    return np.clip(later / max(float(np.square(slope).sum()), 1e-12), -_MAX_SHIFT, _MAX_SHIFT)


def _without_line(x: Array) -> Array:
    """Take the straight line off (..., time)."""
    line = _line(x.shape[-1])
    return np.asarray(x - x.mean(axis=-1, keepdims=True) - (x @ line)[..., None] * line, np.float64)


def _line(length: int) -> Array:
    """Give a straight line (length,) through 0, of norm 1."""
    line = np.arange(length) - 0.5 * (length - 1)
    return np.asarray(line / max(float(np.linalg.norm(line)), 1e-12), np.float64)


def _top(values: Array, best: NDArray[np.intp]) -> Array:
    """Give the top of the parabola through the largest of each row (row, step), in steps from it; 0 at an end."""
    at = np.clip(best, 1, values.shape[1] - 2)
    rows = np.arange(len(values))
    before, top, after = values[rows, at - 1], values[rows, at], values[rows, at + 1]
    bend = np.minimum(before - 2 * top + after, -1e-12)
    return np.where(best == at, np.clip(0.5 * (before - after) / bend, -0.5, 0.5), 0.0)


def _usual_t(marks: _Marks, usual: _Usual, on: Array) -> None:
    """Mark T by the stretch from the onset of QRS (beat,) that makes the template's T the beat's."""
    qrs, t = usual.waves["QRS"], usual.waves["T"]
    first, last = round(qrs.off) + _T_AFTER, min(round(t.off) + _T_BEYOND, usual.template.shape[1])
    # What is seen of T ends where the next beat begins; beats with the same room are done together.
    lasts = np.minimum(last, np.maximum(usual.room - _NEXT, 0.0)).astype(np.intp)
    stretch, likeness = np.full(on.size, nan), np.zeros(on.size)
    seen = lasts > t.peak + _T_SEEN
    for end in np.unique(lasts[seen]):
        group = np.flatnonzero(lasts == end)
        stretch[group], likeness[group] = _stretch(usual, group, np.arange(first, end))
    marks.miss(usual.which[~seen], {"T": "the next beat comes before T has come down"})
    unlike = seen & ((likeness < _MIN_LIKENESS) | np.isnan(stretch))
    for k in np.flatnonzero(unlike):
        marks.missing[usual.which[k]]["T"] = f"what follows QRS is not like the T of the others ({likeness[k]:.2f})"
    found = seen & ~unlike
    begin, off = (usual.start + on + stretch * (x - qrs.on) for x in (qrs.off, t.off))
    peak = usual.start + on + stretch * (t.peak - qrs.on)
    where = {"t_peak": peak[found], "t_off": off[found]}
    marks.put(usual.which[found], "T", begin[found], off[found], where)
    # A T that the window cuts need not be like the others.
    gone = ~found & (usual.start + t.off > marks.length - 1)
    marks.miss(usual.which[gone], {"T": CUT})


def _stretch(usual: _Usual, group: NDArray[np.intp], window: NDArray[np.intp]) -> tuple[Array, Array]:
    """Give the stretch of T and the likeness (beat,) of some of the beats within a window (time,); NaN beyond reach."""
    onset = usual.waves["QRS"].on
    grid = np.arange(usual.template.shape[1])
    # All stretches of a lead in one interpolation.
    at = onset + (window - onset) / _STRETCHES[:, None]
    shapes = np.stack([np.interp(at, grid, row) for row in usual.template], axis=1)
    shapes = _without_line(shapes).reshape(_STRETCHES.size, -1)
    pieces = _without_line(usual.beats[group][..., window]).reshape(group.size, -1)
    like = pieces @ (shapes / np.maximum(np.linalg.norm(shapes, axis=1, keepdims=True), 1e-12)).T
    best = like.argmax(axis=1)
    stretch = _STRETCHES[best] + (_STRETCHES[1] - _STRETCHES[0]) * _top(like, best)
    stretch[(best == 0) | (best == _STRETCHES.size - 1)] = nan
    return stretch, like.max(axis=1) / np.maximum(np.linalg.norm(pieces, axis=1), 1e-12)


def _usual_p(marks: _Marks, usual: _Usual, on: Array) -> None:
    """Mark P by the shift that makes the template's P the beat's, but for a straight line under it."""
    qrs, p = usual.waves["QRS"], usual.waves["P"]
    # Where P runs into QRS its end is left out, so that it may come later.
    first, last = max(round(p.on) - _P_AROUND, 0), min(round(p.off) + _P_AROUND, round(qrs.on) - _P_ROOM)
    earliest, latest = max(first - _P_EARLIER, 0), min(first + _P_LATER, round(qrs.on) - (last - first))
    lags = np.arange(earliest, latest + 1) - first
    shape = _without_line(usual.template[:, first:last])
    energy, common = _slid(usual.beats[..., earliest : latest + last - first], shape)
    own = float(np.square(shape).sum())
    misfit = energy - 2.0 * common + own
    best = misfit.argmin(axis=1)
    rows = np.arange(len(best))
    lag = lags[best] + _top(-misfit, best)
    likeness = common[rows, best] / np.sqrt(np.maximum(energy[rows, best] * own, 1e-24))
    where = {f"p_{name}": usual.start + getattr(p, name) + lag for name in ("on", "peak", "off")}
    where["p_off"] = np.minimum(where["p_off"], usual.start + on)
    gone = usual.start + p.on < 0
    marks.miss(usual.which[gone], {"P": CUT})
    for k in np.flatnonzero(~gone & (likeness < _MIN_LIKENESS)):
        marks.missing[usual.which[k]]["P"] = f"what precedes QRS is not like the P of the others ({likeness[k]:.2f})"
    found = ~gone & (likeness >= _MIN_LIKENESS)
    where = {name: values[found] for name, values in where.items()}
    marks.put(usual.which[found], "P", where["p_on"], where["p_off"], where)


def _slid(beats: Array, shape: Array) -> tuple[Array, Array]:
    """Slide a shape (8, width) without line over beats (beat, 8, time).

    Returns
    -------
    energy : array (beat, lag)
        Sum of squares of what is under the shape, less its straight line.
    common : array (beat, lag)
        Sum of its products with the shape.
    """
    width = shape.shape[1]
    views = np.lib.stride_tricks.sliding_window_view(beats, width, axis=2)
    common = sum(views[:, lead] @ row for lead, row in enumerate(shape))
    sums = (np.cumsum(np.pad(x, ((0, 0), (0, 0), (1, 0))), axis=2) for x in (beats, np.square(beats)))
    total, squares = (x[..., width:] - x[..., :-width] for x in sums)
    energy = (squares - np.square(total) / width - np.square(views @ _line(width))).sum(axis=1)
    return np.asarray(energy, np.float64), np.asarray(common, np.float64)


def _other_beat(marks: _Marks, pieces: _Pieces, k: int, rr: Array, usual: MedianBeat) -> None:
    """Mark beat k, of another shape, by itself: off no baseline, for what makes it another may be a step of that."""
    rough = cut_beats(pieces.leads, marks.at[k : k + 1], pieces.offsets)
    at = marks.at[k] + _centre(rough[0], pieces.r)
    piece = cut_beats(pieces.leads, np.array([at]), pieces.offsets)
    before_s = float(rr[k]) / WORK_HZ if isfinite(rr[k]) else usual.rr_s
    after_s = float(rr[k + 1]) / WORK_HZ if k + 1 < rr.size else usual.rr_s
    beat = replace(usual, ecg_mv=piece[0], error_mv=error_of(piece, piece[0]), beats_mv=piece, r_sample=pieces.r)
    marks.missing[k]["P"] = "P is not looked for in a beat of another shape"
    qrs = find_qrs(piece[0], replace(beat, rr_s=before_s))
    if isinstance(qrs, Wave) and not qrs.on < pieces.r < qrs.off:
        qrs = "what was found does not hold the beat"
    if isinstance(qrs, str):
        marks.miss(np.array([k]), {"QRS": qrs, "T": qrs})
        return
    one, start = np.array([k]), at - pieces.r
    on, off = np.array([start + qrs.on]), np.array([start + qrs.off])
    if not marks.put(one, "QRS", on, off, {"qrs_on": on, "qrs_off": off})[0]:
        marks.missing[k]["T"] = CUT
        return
    t = find_t(piece[0] - isoelectric(piece[0], qrs.on, before_s), replace(beat, rr_s=after_s), qrs)
    if isinstance(t, str):
        marks.missing[k]["T"] = t
        return
    end = np.array([start + t.off])
    marks.put(one, "T", off, end, {"t_peak": np.array([start + t.peak]), "t_off": end})


def _centre(piece: Array, r: int) -> int:
    """Give where around r, in samples from it, a beat (8, time) changes most within 100 ms: its QRS."""
    power = ndimage.uniform_filter1d(np.square(speed_of(piece)), 50)
    first = max(r - 40, 0)
    return first - r + int(np.argmax(power[first : r + 41]))
