"""Morphology of one sample against the recording: ST, T polarity, R transition and amplitudes.

Each person has the same weight, shared by their windows. What was recorded and is not found in the drawn ECG counts as
a disagreement; it is never left out. Time grows with windows times leads times bootstrap draws (the quantiles of ST),
a second for 500 windows and 1000 draws.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.evaluation.bootstrap import Figure, People, each_system, mean_figure, packed
from p2es.evaluation.columns import scalars, vectors
from p2es.evaluation.kappa import cohen, kappa_figure, tables
from p2es.leads import LEADS, N_LEADS

Array = NDArray[np.float64]

AMPLITUDES = ("p_mv", "r_mv", "s_mv", "t_mv")
POLARITY_LEADS = ("I", "II", "V4", "V5", "V6")
"""Leads in which the polarity of T is scored: elsewhere it varies in healthy people."""

_ST_MV = 0.1
_ST_V23_WOMEN_MV, _ST_V23_MEN_MV, _ST_V23_YOUNG_MEN_MV = 0.15, 0.20, 0.25
_YOUNG_YEARS = 40.0
_POOR_R_MV = 0.3
_WITHIN_LEADS = 1.0
_V1, _V2, _V3, _AVR = (LEADS.index(name) for name in ("V1", "V2", "V3", "aVR"))
# Less than this (2 uV squared) is no variation between people but rounding.
_LEAST_VARIANCE_MV2 = 4e-6


def morphology(rows: pa.Table, *, bootstrap: int, seed: int) -> dict[str, dict[str, Any]]:
    """Hold the per-lead features of sample 0 of each system against the recorded ones.

    Parameters
    ----------
    rows : pyarrow.Table
        The row table, of any systems; one that drew nothing is left out.
    bootstrap, seed : int

    Returns
    -------
    dict
        System to `st_filtered`, `t_polarity`, `transition` and `amplitude`: see `st_filtered`, `t_polarity`,
        `transition` and `amplitude` of this module.
    """
    result: dict[str, dict[str, Any]] = {}
    for name, mine, whose in each_system(rows, bootstrap=bootstrap, seed=seed):
        if np.isfinite(vectors(mine, "drawn_r_mv", N_LEADS)).any():
            result[name] = {
                "st_filtered": st_filtered(mine, whose),
                "t_polarity": t_polarity(mine, whose),
                "transition": transition(mine, whose),
                "amplitude": {feature: amplitude(mine, feature, whose) for feature in AMPLITUDES},
            }
    return result


def _pair(rows: pa.Table, feature: str) -> tuple[Array, Array]:
    return vectors(rows, f"real_{feature}", N_LEADS), vectors(rows, f"drawn_{feature}", N_LEADS)


def st_filtered(rows: pa.Table, people: People) -> dict[str, Figure]:
    """Score ST levels in the windows' band, 0.5-40 Hz, which is not the ST of a diagnostic ECG (0.05 Hz).

    The limit of elevation is 0.1 mV, in V2 and V3 0.15 mV for women, 0.25 mV for men below 40 years and 0.2 mV for
    others and where age or sex is unknown (AHA/ACC/HRS 2009); that of depression is 0.1 mV.

    Returns
    -------
    dict of Figure
        - `median_abs_mv`, `p95_abs_mv` : quantiles of ``|drawn - recorded|`` over people's windows and leads
        - `false_elevation` : of the windows without elevation in any lead but aVR, the share drawn with one
        - `kappa` : Cohen's, of elevated, depressed, neither (and not found, in the drawn) over windows and leads
    """
    real, drawn = _pair(rows, "st_filtered_mv")
    error = np.abs(drawn - real)
    each = People(np.repeat(people.code, N_LEADS), people.counts)
    n = int(np.isfinite(people.means(error)).any(axis=1).sum())
    limit = _elevation_mv(scalars(rows, "age_years"), scalars(rows, "female"))
    there, false = (_elevated(level, limit) for level in (real, drawn))
    return {
        "median_abs_mv": packed(*each.quantile(error.ravel(), 0.5), "mV", n),
        "p95_abs_mv": packed(*each.quantile(error.ravel(), 0.95), "mV", n),
        "false_elevation": mean_figure(np.where(there == 0, np.nan_to_num(false), np.nan), people, ""),
        "kappa": kappa_figure(tables(_st_class(real, limit), _missing(_st_class(drawn, limit), 3), 4, people), people),
    }


def _elevation_mv(age: Array, female: Array) -> Array:
    """Give the limit of elevation (row, lead)."""
    limit = np.full((len(age), N_LEADS), _ST_MV)
    men = np.where((female < 0.5) & (age < _YOUNG_YEARS), _ST_V23_YOUNG_MEN_MV, _ST_V23_MEN_MV)
    limit[:, [_V2, _V3]] = np.where(female >= 0.5, _ST_V23_WOMEN_MV, men)[:, None]
    return limit


def _elevated(level: Array, limit: Array) -> Array:
    """Tell whether any lead but aVR is elevated, (row,): 1 or 0, NaN where none was measured."""
    level, limit = np.delete(level, _AVR, axis=1), np.delete(limit, _AVR, axis=1)
    any_lead = (level >= limit).any(axis=1).astype(np.float64)
    return np.where(np.isfinite(level).any(axis=1), any_lead, np.nan)


def _st_class(level: Array, limit: Array) -> NDArray[np.intp]:
    classes = np.where(level >= limit, 1, np.where(level <= -_ST_MV, 2, 0))
    return np.where(np.isfinite(level), classes, -1).astype(np.intp)


def _missing(classes: NDArray[np.intp], instead: int) -> NDArray[np.intp]:
    """Make what was not found in the drawn ECG a class of its own."""
    return np.where(classes < 0, instead, classes)


def t_polarity(rows: pa.Table, people: People) -> dict[str, Any]:
    """Score the polarity of T: up, down, or flat within 0.05 mV.

    Returns
    -------
    dict
        `agreement` and `kappa` (Cohen), Figures over the windows and leads I, II and V4 to V6 in which the recorded T
        was found; `by_lead`: of all 12 leads, `agreement` and `kappa` as numbers, None where not defined.
    """
    real, drawn = (_polarity_class(part) for part in _pair(rows, "t_polarity"))
    drawn = _missing(drawn, 3)
    scored = [LEADS.index(name) for name in POLARITY_LEADS]
    table = tables(real[:, scored], drawn[:, scored], 4, people)
    by_lead = {}
    for k, lead in enumerate(LEADS):
        mean = people.average(tables(real[:, k], drawn[:, k], 4, people))[0]
        by_lead[lead] = {"agreement": _plain(np.trace(mean)), "kappa": _plain(cohen(mean))}
    value, draws = people.average(np.trace(table, axis1=1, axis2=2))
    agreement = packed(float(value), draws, "", int(np.isfinite(table[:, 0, 0]).sum()))
    return {"agreement": agreement, "kappa": kappa_figure(table, people), "by_lead": by_lead}


def _polarity_class(sign: Array) -> NDArray[np.intp]:
    return np.where(np.isfinite(sign), np.nan_to_num(np.sign(sign)) + 1, -1).astype(np.intp)


def transition(rows: pa.Table, people: People) -> dict[str, Figure]:
    """Score the R progression.

    Returns
    -------
    dict of Figure
        - `within_one` : share of windows in which R/S becomes 1 within one lead of where it does in the recording
        - `v1_dominant_r_kappa` : Cohen's, of R > |S| in V1
        - `poor_progression_kappa` : Cohen's, of R <= 0.3 mV in V3
    """
    real, drawn = scalars(rows, "real_transition"), scalars(rows, "drawn_transition")
    within = np.nan_to_num(np.abs(drawn - real), nan=np.inf) <= _WITHIN_LEADS
    (real_r, drawn_r), (real_s, drawn_s) = _pair(rows, "r_mv"), _pair(rows, "s_mv")
    dominant = [_flag(r[:, _V1] - np.abs(s[:, _V1]), above=True) for r, s in ((real_r, real_s), (drawn_r, drawn_s))]
    poor = [_flag(r[:, _V3] - _POOR_R_MV, above=False) for r in (real_r, drawn_r)]
    return {
        "within_one": mean_figure(np.where(np.isfinite(real), within, np.nan), people, ""),
        "v1_dominant_r_kappa": kappa_figure(tables(dominant[0], _missing(dominant[1], 2), 3, people), people),
        "poor_progression_kappa": kappa_figure(tables(poor[0], _missing(poor[1], 2), 3, people), people),
    }


def _flag(margin: Array, *, above: bool) -> NDArray[np.intp]:
    return np.where(np.isfinite(margin), (margin > 0) == above, -1).astype(np.intp)


def amplitude(rows: pa.Table, feature: str, people: People) -> dict[str, Any]:
    """Tell whether an amplitude varies over people as in life.

    Variances are over people's windows, each person with the same weight: averaging a person's windows first would
    take away the spread of the samples and leave that of the recordings. An honest sample from a PPG that tells nothing
    of the amplitude has a variance ratio of 1 and a slope near -1; a constant has 0 and -1; a faithful one 1 and 0.

    Returns
    -------
    dict
        `variance_ratio` (Var drawn / Var recorded) and `slope` (of drawn - recorded on recorded), Figures: medians over
        the leads; `failures`: share of the recorded (window, lead) not found in the drawn; `by_lead`: `bias` and `mae`
        (mV), `variance_ratio`, `slope` as numbers, None where not defined.
    """
    real, drawn = _pair(rows, feature)
    both = np.isfinite(real) & np.isfinite(drawn)
    # About the mean recorded level, or squares would drown a small variance.
    level = np.nan_to_num(people.average(people.means(np.where(both, real, np.nan)))[0])
    x, y = (np.where(both, part - level, np.nan) for part in (real, drawn))
    moments = people.means(np.stack([x, y, x * x, y * y, x * y, np.abs(y - x)], axis=1))
    value, draws = people.average(moments)
    ratio, slope = _ratio_and_slope(value)
    n = int(np.isfinite(moments).any(axis=(1, 2)).sum())
    found = np.isfinite(real)
    many = [_over_leads(part) for part in _ratio_and_slope(draws)]
    return {
        "variance_ratio": packed(float(_over_leads(ratio[None])[0]), many[0], "", n),
        "slope": packed(float(_over_leads(slope[None])[0]), many[1], "", n),
        "failures": float((found & ~both).sum() / found.sum()) if found.any() else None,
        "by_lead": {
            lead: {
                "bias": _plain(value[1, k] - value[0, k]),
                "mae": _plain(value[5, k]),
                "variance_ratio": _plain(ratio[k]),
                "slope": _plain(slope[k]),
            }
            for k, lead in enumerate(LEADS)
        },
    }


def _ratio_and_slope(moments: Array) -> tuple[Array, Array]:
    """Give the variance ratio and slope (..., lead) of moments (..., moment, lead); NaN without variation in life."""
    x, y, xx, yy, xy, _ = np.moveaxis(moments, -2, 0)
    variance = xx - x * x
    varied = variance > _LEAST_VARIANCE_MV2
    safe = np.where(varied, variance, 1.0)
    ratio, slope = (yy - y * y) / safe, (xy - x * y) / safe - 1.0
    return np.where(varied, np.maximum(ratio, 0.0), np.nan), np.where(varied, slope, np.nan)


def _over_leads(values: Array) -> Array:
    """Give the median over leads of (draw, lead), leaving NaN out."""
    ordered = np.sort(values, axis=1)
    count = np.isfinite(values).sum(axis=1)
    pick = np.stack([np.maximum(count - 1, 0) // 2, count // 2], axis=1)
    middle = np.take_along_axis(ordered, np.minimum(pick, values.shape[1] - 1), axis=1).mean(axis=1)
    return np.where(count > 0, middle, np.nan)


def _plain(value: float | np.floating | Array) -> float | None:
    return float(value) if np.isfinite(value) else None
