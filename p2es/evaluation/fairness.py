"""Figures of the model by sex, age, body mass index and rhythm, and the gaps between the groups.

Each figure is of the people of a level, each with the same weight. Few people make a gap of nothing, so levels of fewer
than `least` are not shown and are in no gap. Skin tone, which matters for PPG, is in no archive we read.

Equal opportunity (Hardt et al. 2016) asks that whoever has a finding has the same chance that it is found: the gap in
sensitivity, over the people who have it. Both are told from one sample, as from the recording.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.evaluation.bootstrap import Figure, People, packed
from p2es.evaluation.columns import MODEL, of_system, scalars, strings
from p2es.evaluation.metrics import BY_NAME, Metric

Array = NDArray[np.float64]

AGES = ("<40", "40-64", ">=65")
BMIS = ("<25", "25-30", ">=30")
SEXES = ("male", "female")
RHYTHMS = ("regular", "irregular")
OPPORTUNITIES = {
    "irregular_found": "Irregular rhythm that is drawn irregular",
    "long_qtc_found": "QTcF above its limit that is drawn above it",
}
"""Findings of a recording whose sensitivity is given by group, and what a reader sees."""
QTC_LIMIT_MS = {"male": 450.0, "female": 460.0}
"""QTc above this is long (AHA/ACC/HRS 2009; reference/clinical.md, 4.1)."""
_AGE_EDGES, _BMI_EDGES = (40.0, 65.0), (25.0, 30.0)


def fairness(
    rows: pa.Table, *, metrics: Sequence[str], bootstrap: int, seed: int, least: int = 30, system: str = MODEL
) -> dict[str, dict[str, Any]]:
    """Give metrics by group and the gaps.

    Parameters
    ----------
    rows : pyarrow.Table
    metrics : sequence of str
        Names of `METRICS`, with the mean or the median as statistic.
    bootstrap, seed : int
    least : int
        People a level must have to be shown.
    system : str

    Returns
    -------
    dict
        `sex`, `age`, `bmi`, `rhythm`; of each:

        - `levels` : level to `n` (people with a window of the level) and, of each metric, Figure or None
        - `gaps` : metric to the Figure of the largest less the smallest over the levels shown, with `highest` and
          `lowest`, the levels, and `relative`, the gap over the figure of everybody; value None with fewer than two
          levels. A gap is never negative: chance alone makes one, and an interval that leaves 0 out proves nothing
        - `unknown` : people of whom the level is not known
        - `opportunity` : finding of `OPPORTUNITIES` to `levels` (level to `n`, people who have it, and `sensitivity`,
          Figure or None with fewer than `least` of them), `gap` (as in `gaps`) and `note`, why there is no gap.
          A finding that cannot be told from what was drawn was not found. Who is of unknown sex has no limit of QTc
    """
    mine = of_system(rows, system)
    people = People.of(strings(mine, "person"), bootstrap=bootstrap, seed=seed)
    chosen = [BY_NAME[name] for name in metrics]
    values = {metric.name: scalars(mine, metric.name) for metric in chosen}
    findings = _findings(mine)
    return {
        group: _group(level, names, values, chosen, people, least)
        | {"opportunity": {name: _opportunity(level, names, found, people, least) for name, found in findings.items()}}
        for group, (level, names) in _levels(mine).items()
    }


def _findings(rows: pa.Table) -> dict[str, Array]:
    """Tell for each finding and row whether it was found (1) or not (0); NaN where the recording has not got it."""
    irregular, drawn_irregular = (strings(rows, name) == "irregular" for name in ("rhythm", "drawn_rhythm"))
    female = scalars(rows, "female")
    limit = np.where(female >= 0.5, QTC_LIMIT_MS["female"], QTC_LIMIT_MS["male"])
    limit = np.where(np.isfinite(female), limit, np.nan)
    # NaN compares as False: what could not be measured in the drawn was not found.
    long, drawn_long = (scalars(rows, f"{of}_qtcf_ms") > limit for of in ("real", "drawn"))
    return {
        "irregular_found": np.where(irregular, drawn_irregular, np.nan),
        "long_qtc_found": np.where(long, drawn_long, np.nan),
    }


def _levels(rows: pa.Table) -> dict[str, tuple[NDArray[np.intp], tuple[str, ...]]]:
    """Give the level of each row (-1 unknown) and the levels' names."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bmi = scalars(rows, "weight_kg") / (scalars(rows, "height_cm") / 100) ** 2
    female = scalars(rows, "female")
    sex = np.where(np.isfinite(female), female >= 0.5, -1).astype(np.intp)
    rhythm = np.array([RHYTHMS.index(r) if r in RHYTHMS else -1 for r in strings(rows, "rhythm")], np.intp)
    return {
        "sex": (sex, SEXES),
        "age": (_between(scalars(rows, "age_years"), _AGE_EDGES), AGES),
        "bmi": (_between(bmi, _BMI_EDGES), BMIS),
        "rhythm": (rhythm, RHYTHMS),
    }


def _between(values: Array, edges: tuple[float, ...]) -> NDArray[np.intp]:
    return np.where(np.isfinite(values), np.searchsorted(edges, values, side="right"), -1).astype(np.intp)


def _group(
    level: NDArray[np.intp],
    names: tuple[str, ...],
    values: dict[str, Array],
    metrics: Sequence[Metric],
    people: People,
    least: int,
) -> dict[str, Any]:
    numbers = [len(np.unique(people.code[level == k])) for k in range(len(names))]
    levels: dict[str, dict[str, Any]] = {name: {"n": n} for name, n in zip(names, numbers, strict=True)}
    gaps: dict[str, Figure] = {}
    for metric in metrics:
        shown: dict[str, tuple[float, Array]] = {}
        for k, name in enumerate(names):
            means = people.means(np.where(level == k, values[metric.name], np.nan))
            n = int(np.isfinite(means).sum())
            levels[name][metric.name] = None
            if n >= least:
                shown[name] = _statistic(means, metric, people)
                levels[name][metric.name] = packed(*shown[name], metric.unit, n)
        gaps[metric.name] = _gap(shown, metric, values[metric.name], people)
    unknown = len(np.setdiff1d(people.code[level < 0], people.code[level >= 0]))
    return {"levels": levels, "gaps": gaps, "unknown": unknown}


def _opportunity(
    level: NDArray[np.intp], names: tuple[str, ...], found: Array, people: People, least: int
) -> dict[str, Any]:
    metric = Metric("sensitivity", "", better="higher")
    group = _group(level, names, {"sensitivity": found}, (metric,), people, least)
    numbers = [len(np.unique(people.code[(level == k) & np.isfinite(found)])) for k in range(len(names))]
    levels = {
        name: {"n": n, "sensitivity": group["levels"][name]["sensitivity"]}
        for name, n in zip(names, numbers, strict=True)
    }
    gap = group["gaps"]["sensitivity"]
    counted = ", ".join(f"{name} {n}" for name, n in zip(names, numbers, strict=True))
    note = f"not measured: it takes {least} people who have it in two groups, and there are {counted}"
    return {"levels": levels, "gap": gap, "note": note if gap["value"] is None else ""}


def _statistic(means: Array, metric: Metric, people: People) -> tuple[float, Array]:
    if metric.statistic == "median":
        return people.median(means)
    value, draws = people.average(means)
    return float(value), draws


def _gap(shown: dict[str, tuple[float, Array]], metric: Metric, values: Array, people: People) -> Figure:
    means = people.means(values)
    n = int(np.isfinite(means).sum())
    if len(shown) < 2:
        return packed(np.nan, np.zeros(0), metric.unit, n) | {"highest": None, "lowest": None, "relative": None}
    names = list(shown)
    level = np.array([shown[name][0] for name in names])
    draws = np.array([shown[name][1] for name in names])
    gap = float(np.ptp(level))
    overall = _statistic(means, metric, people)[0]
    return packed(gap, np.ptp(draws, axis=0), metric.unit, n) | {
        "highest": names[int(level.argmax())],
        "lowest": names[int(level.argmin())],
        "relative": gap / abs(overall) if overall else None,
    }
