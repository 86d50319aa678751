"""Whether the rhythm survives translation: regular or irregular, by the same R peaks on both sides."""

from typing import Any

import numpy as np
import pyarrow as pa

from p2es.evaluation.bootstrap import each_system
from p2es.evaluation.columns import strings
from p2es.evaluation.kappa import kappa_figure, people_with, share_figure, tables

_CLASSES = ("regular", "irregular", "unknown")


def rhythm_agreement(rows: pa.Table, *, bootstrap: int = 1000, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Hold the rhythm of one sample against that of the recording.

    Windows whose recorded rhythm is unknown are left out. A drawn ECG whose rhythm is unknown is an answer, and a
    wrong one: it finds no irregular rhythm, and for kappa it is a class of its own. Each person has the same weight.
    Irregularity is not atrial fibrillation: frequent premature beats are irregular too.

    Parameters
    ----------
    rows : pyarrow.Table
    bootstrap, seed : int

    Returns
    -------
    dict
        System; `irregular`: Figures `sensitivity` (irregular of the recorded irregular), `predictivity` (recorded
        irregular of the drawn irregular), `f1` (2 TP / (2 TP + FP + FN)), `kappa` (Cohen), and `n` people.
    """
    result: dict[str, dict[str, Any]] = {}
    for name, mine, whose in each_system(rows, bootstrap=bootstrap, seed=seed):
        real = np.array([_CLASSES.index(r) if r in _CLASSES[:2] else -1 for r in strings(mine, "rhythm")], np.intp)
        text = strings(mine, "drawn_rhythm")
        # A system that draws nothing (features only) has no rhythm to judge.
        if not (text != "").any():
            continue
        drawn = np.array([_CLASSES.index(d) if d in _CLASSES else 2 for d in text], np.intp)
        table = tables(real, drawn, len(_CLASSES), whose)
        hit, found, there = table[:, 1, 1], table[:, :, 1].sum(axis=1), table[:, 1].sum(axis=1)
        result[name] = {
            "irregular": {
                "sensitivity": share_figure(hit, there, whose),
                "predictivity": share_figure(hit, found, whose),
                "f1": share_figure(2 * hit, there + found, whose),
                "kappa": kappa_figure(table, whose),
                "n": people_with(table),
            }
        }
    return result
