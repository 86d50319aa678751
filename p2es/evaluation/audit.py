"""The leakage audit: skill that a PPG cannot give.

PR, QRS, QTcF and the QRS axis are in no pulse; demographics explain 6 to 13 % of them (reference/clinical.md, 6). A
model that is a fifth better than a regression on demographics and heart rate, on people it has not seen, has most
likely seen the answer.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.evaluation.agreement import difference
from p2es.evaluation.bootstrap import Figure, People, packed
from p2es.evaluation.columns import MODEL, of_system, scalars, strings
from p2es.evaluation.features import FEATURES, Feature

Array = NDArray[np.float64]

AUDITED = ("pr_ms", "qrs_ms", "qtcf_ms", "qrs_axis_deg")
REGRESSION = "demographic_regression"
MAX_SKILL = 0.20
# One alarm in 40 by chance for all features together, not for each.
_CHANCE = 0.025 / len(AUDITED)
_LOOK = (
    "look for people shared between training and test, leads given or an enrolment used, windows aligned or inputs "
    "derived from the test ECG, a device or site that tells the diagnosis, and a regression fitted on other features"
)


def leakage_audit(
    rows: pa.Table, *, system: str = MODEL, reference: str = REGRESSION, bootstrap: int, seed: int
) -> dict[str, Any]:
    """Compare a system's posterior medians with a regression on demographics and heart rate.

    Skill is ``1 - MAE / MAE of the regression`` over the windows that both have, errors averaged within people, then
    over people; angles are wrapped. The audit is raised where a skill is above 0.20 and surely above 0: by Student's t
    of the people's differences in error, one-sided at 0.025 over the number of features. Bootstrap intervals of 12
    people are too narrow: by them, noise as large as the regression's error alarmed in 11 of 100 seeds, by t in 4.

    Parameters
    ----------
    rows : pyarrow.Table
        With both systems, on people that were not trained on, without enrolment and given leads.
    system, reference : str
    bootstrap, seed : int

    Returns
    -------
    dict
        `skills` : feature to Figure (95 %); `raised` : bool; `raised_by` : features; `message` : what was found and
        what to look for. Without a figure nothing is raised, and the message says so.
    """
    mine, theirs = of_system(rows, system), of_system(rows, reference)
    _, here, where = np.intersect1d(strings(mine, "window_id"), strings(theirs, "window_id"), return_indices=True)
    mine, theirs = mine.take(here), theirs.take(where)
    people = People.of(strings(mine, "person"), bootstrap=bootstrap, seed=seed)
    skills: dict[str, Figure] = {}
    by: list[str] = []
    for feature in (f for f in FEATURES if f.name in AUDITED):
        errors = _errors(mine, theirs, feature, people)
        skills[feature.name] = _skill(errors, people)
        if (skills[feature.name]["value"] or 0.0) > MAX_SKILL and _surely_smaller(errors):
            by.append(feature.name)
    return {"skills": skills, "raised": bool(by), "raised_by": by, "message": _message(skills, by)}


def _errors(mine: pa.Table, theirs: pa.Table, feature: Feature, people: People) -> Array:
    """Give each person's mean absolute error, ours and the regression's, over the windows both have, (person, 2)."""
    real = scalars(mine, f"real_{feature.name}")
    medians = (scalars(part, f"median_{feature.name}") for part in (mine, theirs))
    errors = np.stack([np.abs(difference(real, median, circular=feature.circular)) for median in medians], axis=1)
    return people.means(np.where(np.isfinite(errors).all(axis=1, keepdims=True), errors, np.nan))


def _skill(errors: Array, people: People) -> Figure:
    value, draws = people.average(errors)
    with np.errstate(divide="ignore", invalid="ignore"):
        skill, skills = 1 - value[0] / value[1], 1 - draws[:, 0] / draws[:, 1]
    return packed(float(skill), skills, "", int(np.isfinite(errors[:, 0]).sum()))


def _surely_smaller(errors: Array) -> bool:
    from scipy import stats

    saved = errors[:, 1] - errors[:, 0]
    saved = saved[np.isfinite(saved)]
    if len(saved) < 2:
        return False
    scatter = saved.std(ddof=1) / np.sqrt(len(saved))
    return bool(saved.mean() > scatter * stats.t.ppf(1 - _CHANCE, len(saved) - 1))


def _message(skills: dict[str, Figure], by: list[str]) -> str:
    known = {name: skill["value"] for name, skill in skills.items() if skill["value"] is not None}
    if by:
        found = ", ".join(f"{name} {known[name]:.2f}" for name in by)
        return f"leakage suspected: skill over the demographic regression is {found}, above {MAX_SKILL:.2f}: {_LOOK}"
    if not known:
        return "the leakage audit could not run: no window has both a posterior median and a demographic regression"
    best = max(known, key=lambda name: known[name])
    missing = [name for name in skills if name not in known]
    note = f"; without a figure: {', '.join(missing)}" if missing else ""
    return f"no sign of leakage: the largest skill over the demographic regression is {known[best]:.2f} ({best}){note}"
