"""Marks of each beat held against true ones, or against a cardiologist's: bias, SD, and what was not found.

A mark that is not found is a failure and is counted, unless the end of the window cuts the wave. Intervals of the SD
are by bootstrap over people: beats of one person are alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2es.beatwise import BeatMarks
from p2es.evaluation.beats import match
from p2es.evaluation.bootstrap import INTERVAL, People

Array = NDArray[np.float64]

MARKS = ("p_on", "p_off", "qrs_on", "qrs_off", "t_peak", "t_off")
INTERVALS = {"pr_ms": ("p_on", "qrs_on"), "qrs_ms": ("qrs_on", "qrs_off"), "qt_ms": ("qrs_on", "t_off")}
WAVES = {"p": "P", "qrs": "QRS", "t": "T"}
CSE_SD_MS = {"p_on": 10.2, "p_off": 12.7, "qrs_on": 6.5, "qrs_off": 11.6, "t_off": 30.6}
"""What the CSE working party allows a delineator (1985, after Martinez 2004, who takes it for the two-SD limits)."""
TOLERANCE_S = 0.15
"""Beats this near are the same (EC57)."""

ABSENT, FOUND, CUT_OFF, FAILED = range(4)


@dataclass(frozen=True)
class BeatErrors:
    """What was found less what is true, of some beats.

    Attributes
    ----------
    error_ms : mapping of array (beat,)
        By `MARKS` and `INTERVALS`; NaN where not found or not there.
    status : mapping of array (beat,)
        `ABSENT` where there is nothing to find, else `FOUND`, `CUT_OFF` or `FAILED`.
    dominant : array (beat,)
        Whether it was taken for the usual shape; False of beats that were not found.
    false_beats : int
        Beats found between the first and the last true one that are none.
    """

    error_ms: Mapping[str, Array]
    status: Mapping[str, NDArray[np.int64]]
    dominant: NDArray[np.bool_]
    false_beats: int


def errors_of(found: BeatMarks, true_s: Mapping[str, Array], *, duration_s: float = nan) -> BeatErrors:
    """Hold marks against true ones.

    Parameters
    ----------
    found : BeatMarks
    true_s : mapping of array (beat,)
        `r` and `MARKS`, seconds from the start of the window; NaN for what is not there.
    duration_s : float
        Of the window; a true wave that reaches beyond it is cut, and so is a beat whose QRS does. NaN: none.
    """
    r_s = true_s["r"]
    pairs = match(r_s, found.r_s, TOLERANCE_S)
    mine = np.full(r_s.size, -1)
    mine[pairs[:, 0]] = pairs[:, 1]
    has = mine >= 0
    errors, statuses = dict[str, Array](), dict[str, NDArray[np.int64]]()
    for name in MARKS:
        wave = name.split("_")[0]
        values, cut = np.full(r_s.size, nan), np.zeros(r_s.size, bool)
        values[has], cut[has] = getattr(found, f"{name}_s")[mine[has]], found.cut(WAVES[wave])[mine[has]]
        # Of a beat whose QRS is cut nothing is asked.
        for end in {f"{wave}_on", f"{wave}_off", "qrs_on", "qrs_off"} & true_s.keys():
            cut |= (true_s[end] < 0) | (true_s[end] > duration_s)
        there = np.isfinite(true_s[name])
        status = np.where(cut, CUT_OFF, np.where(np.isfinite(values), FOUND, FAILED))
        statuses[name] = np.where(there, status, ABSENT)
        errors[name] = np.where(statuses[name] == FOUND, 1e3 * (values - true_s[name]), nan)
    for name, (on, off) in INTERVALS.items():
        errors[name] = errors[off] - errors[on]
        either = np.stack([statuses[on], statuses[off]])
        status = np.where((either == CUT_OFF).any(axis=0), CUT_OFF, either.max(axis=0))
        statuses[name] = np.where((either == ABSENT).any(axis=0), ABSENT, status)
    dominant = np.zeros(r_s.size, bool)
    dominant[has] = found.dominant[mine[has]]
    extra = np.setdiff1d(np.arange(found.r_s.size), pairs[:, 1])
    between = (found.r_s[extra] > r_s.min(initial=np.inf)) & (found.r_s[extra] < r_s.max(initial=-np.inf))
    return BeatErrors(errors, statuses, dominant, int(np.count_nonzero(between)))


def summarise_beats(people: Sequence[BeatErrors], *, bootstrap: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Sum up beats of several people.

    Parameters
    ----------
    people : sequence of BeatErrors
        One a person.
    bootstrap, seed : int

    Returns
    -------
    dict
        `beats`, `false_beats`, and for each of `MARKS` and `INTERVALS`: `marked` (there are so many), `cut`, `failures`
        (share of those that are not cut), `bias_ms`, `sd_ms` (n - 1, over all beats), `low_ms`, `high_ms` (its 95 %
        interval), `robust_sd_ms` (1.4826 times the median distance from the median) and `within_sd_ms` (about each
        person's own mean); None with fewer than two beats.
    """
    code = np.repeat(np.arange(len(people)), [one.dominant.size for one in people])
    result: dict[str, Any] = {"beats": int(code.size), "false_beats": sum(one.false_beats for one in people)}
    draws = People.of(np.array([f"{k:09d}" for k in range(len(people))]), bootstrap=bootstrap, seed=seed).counts
    for name in (*MARKS, *INTERVALS):
        error = np.concatenate([one.error_ms[name] for one in people]) if people else np.zeros(0)
        status = np.concatenate([one.status[name] for one in people]) if people else np.zeros(0, np.int64)
        result[name] = {
            "marked": int(np.count_nonzero(status != ABSENT)),
            "cut": int(np.count_nonzero(status == CUT_OFF)),
            "failures": _share(status == FAILED, np.isin(status, (FOUND, FAILED))),
        } | _spread(error, code, draws)
    return result


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float | None:
    return float(part.sum() / whole.sum()) if whole.any() else None


def _spread(error_ms: Array, code: NDArray[np.intp], draws: Array) -> dict[str, float | None]:
    kept = np.isfinite(error_ms)
    error_ms, code = error_ms[kept], code[kept]
    if error_ms.size < 2:
        return dict.fromkeys(("bias_ms", "sd_ms", "low_ms", "high_ms", "robust_sd_ms", "within_sd_ms"))
    n = draws.shape[1]
    count, total, squares = (np.bincount(code, w, n) for w in (np.ones(code.size), error_ms, np.square(error_ms)))
    drawn = draws @ np.stack([count, total, squares], axis=1)
    drawn = drawn[drawn[:, 0] > 1]
    variance = (drawn[:, 2] - np.square(drawn[:, 1]) / drawn[:, 0]) / (drawn[:, 0] - 1)
    low, high = np.quantile(np.sqrt(np.maximum(variance, 0.0)), INTERVAL)
    own = error_ms - (total / np.maximum(count, 1))[code]
    free = max(error_ms.size - int(np.count_nonzero(count)), 1)
    middle = float(np.median(error_ms))
    return {
        "bias_ms": float(error_ms.mean()),
        "sd_ms": float(error_ms.std(ddof=1)),
        "low_ms": float(low),
        "high_ms": float(high),
        "robust_sd_ms": 1.4826 * float(np.median(np.abs(error_ms - middle))),
        "within_sd_ms": float(np.sqrt(np.square(own).sum() / free)),
    }
