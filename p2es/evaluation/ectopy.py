"""Whether premature beats and pauses survive translation, beat by beat."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.evaluation.beat_kinds import COUNTS, KINDS
from p2es.evaluation.beats import EDGE_S
from p2es.evaluation.bootstrap import Figure, People, each_system, mean_figure, packed
from p2es.evaluation.columns import strings, vectors
from p2es.windows import WINDOW_S

Array = NDArray[np.float64]

TITLES = {
    "premature": "Premature beats",
    "premature_other_shape": "Premature beats of another shape",
    "pause": "Pauses",
}
"""What a reader sees of `KINDS`."""
_REAL, _FOUND, _DRAWN, _RIGHT = range(len(COUNTS))
_COUNTED_MIN = (WINDOW_S - 2 * EDGE_S) / 60.0


def ectopy_agreement(rows: pa.Table, *, bootstrap: int = 1000, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Hold the premature beats and pauses of one sample against those of the recording; see `beat_kinds`.

    Counts are averaged over each person's windows and then summed over people: who has more such beats weighs more, as
    in EC57's gross statistics, and who has more windows does not. Windows without such beats count too, or drawing them
    everywhere would cost nothing. A drawn ECG that is not finite has found none.

    Parameters
    ----------
    rows : pyarrow.Table
    bootstrap, seed : int

    Returns
    -------
    dict
        System (those that draw ECGs), kind of `KINDS`:

        - `sensitivity` : Figure, share of the recorded ones that are drawn so at the same place
        - `predictivity` : Figure, share of the drawn ones that are recorded so; None where none is drawn
        - `f1` : Figure, (found + right) / (recorded + drawn)
        - the same with `_lag`, after the one constant lag of the window
        - `invented_per_minute` : Figure, drawn ones in windows whose recording has none
        - `beats`, `drawn_beats` : recorded and drawn ones; `irregular_beats` : recorded ones in windows of irregular
          rhythm, where they may be atrial fibrillation
        - `windows`, `n` : windows and people with recorded ones

        Where none was recorded there is nothing to find: `beats` is 0, the shares are None.
    """
    result: dict[str, dict[str, Any]] = {}
    for name, mine, whose in each_system(rows, bootstrap=bootstrap, seed=seed):
        found = {kind: _of_kind(mine, kind, whose) for kind in KINDS}
        if kept := {kind: figures for kind, figures in found.items() if figures is not None}:
            result[name] = kept
    return result


def _of_kind(rows: pa.Table, kind: str, people: People) -> dict[str, Any] | None:
    plain, lagged = (vectors(rows, f"{kind}_counts{lag}", len(COUNTS)) for lag in ("", "_lag"))
    # A system that draws nothing (features only) has no beats to judge.
    if not np.isfinite(plain).any():
        return None
    real, drawn = np.nan_to_num(plain[:, _REAL]), plain[:, _DRAWN]
    irregular = strings(rows, "rhythm") == "irregular"
    invented = np.where(real == 0, drawn / _COUNTED_MIN, np.nan)
    return {
        **_shares(plain, people, ""),
        **_shares(lagged, people, "_lag"),
        "invented_per_minute": mean_figure(invented, people, "/min"),
        "beats": int(real.sum()),
        "drawn_beats": int(np.nansum(drawn)),
        "irregular_beats": int(real[irregular].sum()),
        "windows": int(np.count_nonzero(real)),
        "n": len(np.unique(people.code[real > 0])),
    }


def _shares(counts: Array, people: People, lag: str) -> dict[str, Figure]:
    """Give sensitivity, predictivity and F1 of counts (row, 4)."""
    means = people.means(counts)
    value, draws = people.average(means)
    both = np.concatenate([value[None], draws])
    real, found, drawn, right = both.T
    # Without a recorded beat in a draw there is nothing to find in it.
    there = np.where(real > 0, 1.0, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = {
            "sensitivity": found / real,
            "predictivity": there * right / drawn,
            "f1": there * (found + right) / (real + drawn),
        }
    n = {"sensitivity": _REAL, "predictivity": _DRAWN, "f1": _REAL}
    return {
        f"{name}{lag}": packed(float(share[0]), share[1:], "", int((means[:, n[name]] > 0).sum()))
        for name, share in shares.items()
    }
