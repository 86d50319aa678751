"""A cardiologist's marks, lead by lead as in LUDB, made into global times of each beat.

Global is the second earliest onset and the second latest end of the 8 independent leads: the very outermost is that of
one doubtful lead. The norm takes the outermost (reference/clinical.md, 3.3).
"""

from collections.abc import Mapping, Sequence
from math import nan

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Wave = tuple[float, float, float]
Beat = Mapping[str, Wave]

_NAMES = {"p": "p", "N": "qrs", "t": "t"}
# Marks of QRS in the leads of one beat are no further apart than this.
_SAME_S = 0.15
_LEAST_LEADS = 4


def beats_of_lead(samples: Sequence[int], symbols: Sequence[str], fs_hz: float) -> list[Beat]:
    """Give the beats of one lead from its annotations.

    Parameters
    ----------
    samples : sequence of int
    symbols : sequence of str
        `p`, `N` and `t` at the peaks, each between `(` at its onset and `)` at its end, where those are marked.
    fs_hz : float

    Returns
    -------
    list of mapping
        Of "qrs", and of "p" and "t" where they are its neighbours: onset, peak and end in seconds; NaN if not marked.
    """
    waves: list[tuple[str, Wave]] = []
    padded = [("", 0), *zip(symbols, samples, strict=True), ("", 0)]
    for left, here, right in zip(padded, padded[1:], padded[2:], strict=False):
        if here[0] in _NAMES:
            on = left[1] / fs_hz if left[0] == "(" else nan
            off = right[1] / fs_hz if right[0] == ")" else nan
            waves.append((_NAMES[here[0]], (on, here[1] / fs_hz, off)))
    beats: list[Beat] = []
    for k, (name, wave) in enumerate(waves):
        if name == "qrs":
            before, after = waves[max(k - 1, 0) : k], waves[k + 1 : k + 2]
            near = [*(one for one in before if one[0] == "p"), *(one for one in after if one[0] == "t")]
            beats.append({"qrs": wave} | dict(near))
    return beats


def global_marks(leads: Sequence[Sequence[Beat]]) -> dict[str, Array]:
    """Give global times of the beats that at least four of the leads have.

    Parameters
    ----------
    leads : sequence of sequence of mapping
        From `beats_of_lead`.

    Returns
    -------
    dict of array (beat,)
        `r` (median of the leads' peaks), `p_on`, `p_off`, `qrs_on`, `qrs_off`, `t_peak` (median), `t_off` in seconds,
        NaN where fewer than four leads have it; and `p_leads`, how many have a P.
    """
    rows = sorted(((beat["qrs"][1], lead, beat) for lead, beats in enumerate(leads) for beat in beats), key=_when)
    groups: list[dict[int, Beat]] = []
    first_s = -np.inf
    for peak_s, lead, beat in rows:
        if peak_s - first_s > _SAME_S or lead in groups[-1]:
            groups.append({})
            first_s = peak_s
        groups[-1][lead] = beat
    beats = [list(group.values()) for group in groups if len(group) >= _LEAST_LEADS]
    marks = {"r": [_middle(beat, "qrs") for beat in beats], "t_peak": [_middle(beat, "t") for beat in beats]}
    for name in ("p", "qrs", "t"):
        marks[f"{name}_on"] = [_outer(beat, name, 0) for beat in beats]
        marks[f"{name}_off"] = [_outer(beat, name, 2) for beat in beats]
    marks["p_leads"] = [sum("p" in lead for lead in beat) for beat in beats]
    return {name: np.array(values, np.float64) for name, values in marks.items()}


def _when(row: tuple[float, int, Beat]) -> tuple[float, int]:
    return row[:2]


def _times(beat: Sequence[Beat], name: str, column: int) -> Array:
    times = np.array([lead[name][column] for lead in beat if name in lead], np.float64)
    return np.sort(times[np.isfinite(times)])


def _middle(beat: Sequence[Beat], name: str) -> float:
    times = _times(beat, name, 1)
    return float(np.median(times)) if times.size >= _LEAST_LEADS else nan


def _outer(beat: Sequence[Beat], name: str, column: int) -> float:
    times = _times(beat, name, column)
    return float(times[1 if column == 0 else -2]) if times.size >= _LEAST_LEADS else nan
