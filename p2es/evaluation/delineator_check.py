"""Whether the ruler is straight: delineator and R peak detector on clean simulated ECGs of known truth (G22).

The median beat and each beat by itself; what was last measured on LUDB stands beside, for it is in no installation.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2es.beats import r_peaks
from p2es.beatwise import delineate_beats
from p2es.delineation import measure_ecg
from p2es.errors import ConfigError
from p2es.evaluation.beat_marks import INTERVALS, BeatErrors, errors_of, summarise_beats
from p2es.evaluation.beats import f1_score
from p2es.filters import stored_ecg
from p2es.simulator import Simulation, simulate
from p2es.windows import ECG_SAMPLES, FS_HZ, WINDOW_S

_FIGURES = ("bias_ms", "sd_ms", "low_ms", "high_ms", "robust_sd_ms", "within_sd_ms", "marked", "cut", "failures")
_LUDB = {
    "p_on": (2.5, 13.1, 9.7, 16.1, 7.4, 8.2, 540, 0, 0.0537),
    "p_off": (-5.2, 17.4, 11.2, 22.9, 9.8, 4.8, 540, 0, 0.0537),
    "qrs_on": (18.1, 9.3, 6.7, 11.6, 6.3, 4.3, 702, 0, 0.0028),
    "qrs_off": (-15.0, 9.8, 7.7, 11.6, 6.7, 6.3, 702, 0, 0.0028),
    "t_peak": (-10.9, 33.9, 12.8, 49.6, 6.2, 3.3, 627, 0, 0.0112),
    "t_off": (0.1, 26.1, 18.0, 33.9, 16.1, 10.6, 627, 0, 0.0112),
    "pr_ms": (16.7, 14.2, 10.8, 17.2, 10.4, 8.7, 540, 0, 0.0537),
    "qrs_ms": (-33.1, 14.4, 11.7, 16.9, 10.6, 7.9, 702, 0, 0.0028),
    "qt_ms": (-18.2, 28.6, 20.3, 36.2, 18.6, 11.8, 627, 0, 0.0112),
}
LUDB_MEASURED: dict[str, Any] = {
    "records": 80,
    "beats": 702,
    "false_beats": 1,
    "beats_without_p": 78,
    "false_p": 0,
    **{name: dict(zip(_FIGURES, row, strict=True)) for name, row in _LUDB.items()},
}
"""What `python benchmarks/bench_delineation.py --constants` measured on the 80 records of LUDB at hand, rounded: every
beat against the second earliest onset and second latest end that cardiologists marked. A slow test keeps it true."""

_MADE_HZ = 500.0
# A spread of fewer says nothing.
_LEAST_PEOPLE = 3


def delineator_check(people: int = 20, seed: int = 0) -> dict[str, Any]:
    """Measure freshly simulated people and hold what is found against what is true of them, and of each of their beats.

    Ten seconds of 12 leads in sinus rhythm, healthy shapes, without noise of electrodes; the truth comes from the
    formulas of the waves, not from samples. Once as they are made, at 500 Hz (this is goal G22: SD at most 3 ms, F1 at
    least .99), and once as windows are stored, at 128 Hz in 0.5-40 Hz, where the high-pass moves the end of T: there
    the SD of QT is 4 ms. Both sides of every comparison go through the latter, so most of that is in both.

    Parameters
    ----------
    people : int
        3 or more; about 0.2 s each.
    seed : int

    Returns
    -------
    dict
        `people`, `seed`; `as_made` and `as_stored`, each with `pr_ms`, `qrs_ms` and `qt_ms` (each with `bias_ms`,
        `sd_ms` (n - 1) over people in whom it was found, None where in fewer than two, and `failures`, a share) and
        with `r_f1_50ms`, `r_f1_150ms`, means over people without any lag removed; `beat_by_beat`, with `as_made` and
        `as_stored` as of `beat_marks.summarise_beats`; `largest_sd_ms`, of both ways `as_made`, and `least_f1`, within
        50 ms: the figures of the goal; and `ludb`, `LUDB_MEASURED`.

    Raises
    ------
    ConfigError
        With fewer than three people.
    """
    if people < _LEAST_PEOPLE:
        raise ConfigError(f"{people} people have no spread: give {_LEAST_PEOPLE} or more")
    errors: dict[str, list[list[float]]] = {"as_made": [], "as_stored": []}
    scores: dict[str, list[list[float]]] = {"as_made": [], "as_stored": []}
    beats: dict[str, list[BeatErrors]] = {"as_made": [], "as_stored": []}
    for index in range(people):
        one = simulate(
            seed, index, WINDOW_S, rhythm="sinus", morphologies=(), noise=False, sensor="lab-clip", ecg_fs_hz=_MADE_HZ
        )
        made = np.stack([signal.read() for signal in one.recording.signals[:12]]).astype(np.float64)
        stored = stored_ecg(made, _MADE_HZ, 0.0, 0, ECG_SAMPLES)
        for name, ecg, fs_hz in (("as_made", made, _MADE_HZ), ("as_stored", stored, FS_HZ)):
            error, score = _held_against_truth(one, ecg, fs_hz)
            errors[name].append(error)
            scores[name].append(score)
            beats[name].append(errors_of(delineate_beats(ecg, fs_hz), true_beats(one), duration_s=WINDOW_S))
    found = {name: _summary(np.array(errors[name]), np.array(scores[name])) for name in errors}
    each = {name: summarise_beats(beats[name]) for name in beats}
    sds = [way["as_made"][interval]["sd_ms"] for way in (found, each) for interval in INTERVALS]
    return {
        "people": people,
        "seed": seed,
        **found,
        "beat_by_beat": each,
        "largest_sd_ms": None if None in sds else max(sds),
        "least_f1": min(part["r_f1_50ms"] for part in found.values()),
        "ludb": LUDB_MEASURED,
    }


def true_beats(one: Simulation) -> dict[str, NDArray[np.float64]]:
    """Give the true marks of a simulated recording as `beat_marks.errors_of` takes them."""
    return {
        name.removesuffix("_s"): np.asarray(values, np.float64)
        for name, values in asdict(one.truth.beats).items()
        if name.endswith("_s")
    }


def _held_against_truth(one: Simulation, ecg: NDArray[np.float64], fs_hz: float) -> tuple[list[float], list[float]]:
    measured = measure_ecg(ecg, fs_hz)
    beats_s = r_peaks(ecg, fs_hz)
    true_s = np.asarray(one.truth.beats.r_s, np.float64)
    errors = [getattr(measured, name) - getattr(one.truth, name) for name in INTERVALS]
    scores = [f1_score(true_s, beats_s, tolerance_s=t, lag_s=0.0, duration_s=WINDOW_S) for t in (0.05, 0.15)]
    return errors, scores


def _summary(errors: NDArray[np.float64], scores: NDArray[np.float64]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, column in zip(INTERVALS, errors.T, strict=True):
        found = column[np.isfinite(column)]
        result[name] = {
            "bias_ms": float(found.mean()) if found.size else None,
            "sd_ms": float(found.std(ddof=1)) if found.size > 1 else None,
            "failures": 1.0 - found.size / column.size,
        }
    return result | dict(zip(("r_f1_50ms", "r_f1_150ms"), scores.mean(axis=0).tolist(), strict=True))
