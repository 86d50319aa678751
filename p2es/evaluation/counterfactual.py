"""Whether a changed demographic changes the drawn ECG as published, the PPG being the same.

Targets are those of reference/clinical.md, section 9: cohorts' mean differences, which are confounded by ancestry,
drugs and disease and each from a single population. A model that ignores demographics finds 0 everywhere; one that has
learnt a data set has its effects, which need not be these.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.evaluation.bootstrap import People, mean_figure
from p2es.evaluation.columns import of_system, strings, vectors, wrap_deg
from p2es.evaluation.features import FEATURES
from p2es.leads import N_LEADS

Array = NDArray[np.float64]

PREFIX = "counterfactual:"
_RANGE = (0.5, 1.5)
_CIRCULAR = {feature.name for feature in FEATURES if feature.circular}


@dataclass(frozen=True)
class Effect:
    """A published effect.

    Attributes
    ----------
    change : str
        What the reader sees.
    minuend, subtrahend : str
        Systems, without the prefix.
    feature : str
        Of `FEATURES`, or `t_mv`: the mean over leads of ``|T|``, in percent of the subtrahend's.
    published : float
        Size in `unit`; 0: there must be no effect.
    unit : str
    source : str
    tolerance : float
        Where nothing is published, how much is nothing.
    """

    change: str
    minuend: str
    subtrahend: str
    feature: str
    published: float
    unit: str
    source: str
    tolerance: float = 0.0


_ELSA, _HEIGHT = "ELSA-Brasil ECG reference", "Circ Arrhythm Electrophysiol 2017"
_OWN = "direction published, size of the simulator's equations"

EFFECTS = (
    Effect("woman for man", "female", "male", "qtcf_ms", 11.0, "ms", _ELSA),
    Effect("woman for man", "female", "male", "qrs_ms", -6.0, "ms", _ELSA),
    Effect("woman for man", "female", "male", "pr_ms", -6.0, "ms", _ELSA),
    Effect("woman for man", "female", "male", "t_mv", -20.0, "%", "men's T is 25 % higher (Simonson)"),
    Effect("woman for man", "female", "male", "hr_bpm", 0.0, "bpm", "the PPG fixes the rate", 1.0),
    Effect("height +10 cm", "height+10", "base", "pr_ms", 4.17, "ms", _HEIGHT),
    Effect("height +10 cm", "height+10", "base", "qrs_ms", 2.06, "ms", _HEIGHT),
    Effect("BMI +5 kg/m²", "bmi+5", "base", "pr_ms", 2.4, "ms", "PONS"),
    Effect("BMI +5 kg/m²", "bmi+5", "base", "qrs_axis_deg", -9.0, "°", f"Kurisu 2015; {_OWN}"),
    Effect("age +20 years", "age+20", "base", "qrs_axis_deg", -12.0, "°", f"Simonson; {_OWN}"),
    Effect("age +20 years", "age+20", "base", "t_mv", -10.0, "%", f"Simonson; {_OWN}"),
)


def counterfactual(rows: pa.Table, *, bootstrap: int, seed: int) -> list[dict[str, Any]]:
    """Compare the effect of each changed demographic with the published one.

    Of each window the median over the samples (for an angle about the circular mean; for amplitudes the posterior
    median, else sample 0) is taken with and without the change; the difference is averaged over people. Both runs
    have the same seeds, so that most of the samples' scatter cancels.

    Parameters
    ----------
    rows : pyarrow.Table
        With the systems `counterfactual:<change>`.
    bootstrap, seed : int

    Returns
    -------
    list of dict
        Of each of `EFFECTS` whose two systems are there: `change`, `feature`, `published`, `found` (Figure), `unit`,
        `source`, `right_sign` and `in_range` (50 to 150 % of the published size; None where nothing was found). Where
        no effect is published both say whether the found one is within the tolerance.
    """
    there = {name.removeprefix(PREFIX) for name in set(rows["system"].to_pylist()) if name.startswith(PREFIX)}
    tables = {name: of_system(rows, PREFIX + name) for name in sorted(there)}
    return [
        _effect(tables[effect.minuend], tables[effect.subtrahend], effect, bootstrap, seed)
        for effect in EFFECTS
        if {effect.minuend, effect.subtrahend} <= there
    ]


def _effect(changed: pa.Table, base: pa.Table, effect: Effect, bootstrap: int, seed: int) -> dict[str, Any]:
    _, here, where = np.intersect1d(strings(changed, "window_id"), strings(base, "window_id"), return_indices=True)
    people = People.of(strings(changed, "person")[here], bootstrap=bootstrap, seed=seed)
    found = mean_figure(_change(changed.take(here), base.take(where), effect.feature), people, effect.unit)
    return {
        "change": effect.change,
        "feature": effect.feature,
        "published": effect.published,
        "found": found,
        **_judged(found["value"], effect),
        "unit": effect.unit,
        "source": effect.source,
    }


def _judged(value: float | None, effect: Effect) -> dict[str, bool | None]:
    if value is None:
        return {"right_sign": None, "in_range": None}
    if effect.published == 0.0:
        nothing = abs(value) <= effect.tolerance
        return {"right_sign": nothing, "in_range": nothing}
    share = value / effect.published
    return {"right_sign": share > 0, "in_range": _RANGE[0] <= share <= _RANGE[1]}


def _change(changed: pa.Table, base: pa.Table, feature: str) -> Array:
    if feature == "t_mv":
        with np.errstate(divide="ignore", invalid="ignore"):
            percent = 100 * (_t_size(changed, base) - 1)
        return np.where(np.isfinite(percent), percent, np.nan)
    circular = feature in _CIRCULAR
    one, other = (_middle(vectors(part, f"draws_{feature}"), circular=circular) for part in (changed, base))
    return wrap_deg(one - other) if circular else one - other


def _middle(draws: Array, *, circular: bool) -> Array:
    """Give the median of the finite samples (row, sample) of each row; NaN without one."""
    centre = np.zeros(len(draws))
    if circular:
        angle = np.radians(draws)
        centre = np.degrees(np.arctan2(np.nansum(np.sin(angle), axis=1), np.nansum(np.cos(angle), axis=1)))
        draws = wrap_deg(draws - centre[:, None])
    count = np.isfinite(draws).sum(axis=1)
    if not draws.shape[1]:
        return np.full(len(draws), np.nan)
    ordered = np.sort(draws, axis=1)
    pick = np.stack([np.maximum(count - 1, 0) // 2, np.minimum(count // 2, draws.shape[1] - 1)], axis=1)
    middle = centre + np.take_along_axis(ordered, pick, axis=1).mean(axis=1)
    # `pick` of an even count is the two in the middle, of an odd one the same twice.
    return np.where(count > 0, middle, np.nan)


def _t_size(changed: pa.Table, base: pa.Table) -> Array:
    """Give the ratio of the mean |T| over the leads that both have."""
    one, other = (vectors(part, "median_t_mv", N_LEADS) for part in (changed, base))
    lacking = ~(np.isfinite(one) & np.isfinite(other)).any(axis=1)
    for part, table in ((one, changed), (other, base)):
        part[lacking] = vectors(table, "drawn_t_mv", N_LEADS)[lacking]
    both = np.isfinite(one) & np.isfinite(other)
    return np.where(both, np.abs(one), 0.0).sum(axis=1) / np.where(both, np.abs(other), 0.0).sum(axis=1)
