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
_LOWER = 0.025 / len(AUDITED)
_LOOK = (
    "look for people shared between training and test, leads given or an enrolment used, windows aligned or inputs "
    "derived from the test ECG, a device or site that tells the diagnosis, and a regression fitted on other features"
)


def leakage_audit(
    rows: pa.Table, *, system: str = MODEL, reference: str = REGRESSION, bootstrap: int, seed: int
) -> dict[str, Any]:
    """Compare a system's posterior medians with a regression on demographics and heart rate.

    Skill is ``1 - MAE / MAE of the regression`` over the windows that both have, errors averaged within people, then
    over people; angles are wrapped. The audit is raised where a skill is above 0.20 and surely above 0: at a lower
    bound of 0.025 over the number of features, since one of four is more often lucky than one.

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
        value, draws, n = _skill(mine, theirs, feature, people)
        skills[feature.name] = packed(value, draws, "", n)
        if value > MAX_SKILL and float(np.nanquantile(draws, _LOWER)) > 0:
            by.append(feature.name)
    return {"skills": skills, "raised": bool(by), "raised_by": by, "message": _message(skills, by)}


def _skill(mine: pa.Table, theirs: pa.Table, feature: Feature, people: People) -> tuple[float, Array, int]:
    real = scalars(mine, f"real_{feature.name}")
    errors = np.stack(
        [
            np.abs(difference(real, scalars(part, f"median_{feature.name}"), circular=feature.circular))
            for part in (mine, theirs)
        ],
        axis=1,
    )
    means = people.means(np.where(np.isfinite(errors).all(axis=1, keepdims=True), errors, np.nan))
    value, draws = people.average(means)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (
            float(1 - value[0] / value[1]),
            1 - draws[:, 0] / draws[:, 1],
            int(np.isfinite(means[:, 0]).sum()),
        )


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
