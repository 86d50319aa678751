"""Agreement of clinical features, drawn against recorded: bias, spread, limits of agreement, failures.

After Bland and Altman (1986), with people as the unit: each person has the same weight, shared by their windows, so
that the SD is that of one window of one person. One sample of an honest system has sqrt(2) times the error of the best
median, so the two stand apart. Time and memory grow with windows and with people times bootstrap draws.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.evaluation.bootstrap import People, each_system, packed
from p2es.evaluation.columns import scalars, wrap_deg
from p2es.evaluation.features import FEATURES, Feature

Array = NDArray[np.float64]

KINDS = {"sample": "drawn_", "median": "median_"}
_LIMIT_SD = 1.96


def agreement(rows: pa.Table, *, bootstrap: int, seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Hold the features of each system against the recorded ones.

    Parameters
    ----------
    rows : pyarrow.Table
        The row table, of any systems.
    bootstrap, seed : int
        Draws over people, shared by all figures.

    Returns
    -------
    dict
        System, `sample` or `median`, feature. `median` is left out where a system drew too few samples for one,
        `sample` where it drew none. Of each feature, with d = drawn - recorded, wrapped to (-180, 180] for an angle:

        - `bias` : Figure, mean of d; for an angle the circular mean
        - `sd` : Figure, of d about the bias, sqrt(n / (n - 1)) with n people
        - `mae` : Figure, mean of ``|d|``
        - `loa` : [low, high], bias -/+ 1.96 sd; None where not defined. Those of an angle are not wrapped
        - `real_failures` : share of windows in which the recorded feature was not found
        - `drawn_failures` : share, of the windows in which it was, in which the drawn was not
        - `n` : people; `windows` : windows with both
    """
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for name, mine, whose in each_system(rows, bootstrap=bootstrap, seed=seed):
        result[name] = {}
        for kind, prefix in KINDS.items():
            drawn = {f.name: scalars(mine, prefix + f.name) for f in FEATURES}
            if any(np.isfinite(values).any() for values in drawn.values()):
                result[name][kind] = {
                    f.name: _agreement(scalars(mine, f"real_{f.name}"), drawn[f.name], f, whose) for f in FEATURES
                }
    return result


def difference(real: Array, drawn: Array, *, circular: bool) -> Array:
    """Give drawn - real, wrapped to (-180, 180] for an angle in degrees."""
    return wrap_deg(drawn - real) if circular else drawn - real


def _agreement(real: Array, drawn: Array, feature: Feature, people: People) -> dict[str, Any]:
    found = np.isfinite(real)
    delta = difference(real, drawn, circular=feature.circular)
    both = np.isfinite(delta)
    bias, bias_draws, centre = _bias(delta, people, circular=feature.circular)
    away = wrap_deg(delta - centre) if feature.circular else delta - centre
    sd, sd_draws = _sd(away, people)
    mae, mae_draws = people.average(people.means(np.abs(delta)))
    n = int(np.isfinite(people.means(delta)).sum())
    limits = [bias - _LIMIT_SD * sd, bias + _LIMIT_SD * sd]
    return {
        "bias": packed(bias, bias_draws, feature.unit, n),
        "sd": packed(sd, sd_draws, feature.unit, n),
        "mae": packed(float(mae), mae_draws, feature.unit, n),
        "loa": [float(limit) if np.isfinite(limit) else None for limit in limits],
        "real_failures": _share(~found),
        "drawn_failures": _share(~both[found]),
        "n": n,
        "windows": int(both.sum()),
    }


def _bias(delta: Array, people: People, *, circular: bool) -> tuple[float, Array, float]:
    """Give the mean difference, that of each draw and the centre the SD is taken about (0 where there is none)."""
    if not circular:
        mean, draws = people.average(people.means(delta))
    else:
        angle = np.radians(delta)
        parts, part_draws = people.average(people.means(np.stack([np.sin(angle), np.cos(angle)], axis=1)))
        mean = np.degrees(np.arctan2(parts[0], parts[1]))
        # Draws about the value: at +-180 an interval would else be torn in two.
        draws = mean + wrap_deg(np.degrees(np.arctan2(part_draws[:, 0], part_draws[:, 1])) - mean)
    return float(mean), draws, float(np.nan_to_num(mean))


def _sd(away: Array, people: People) -> tuple[float, Array]:
    """Give the SD of a centred difference, each person with the same weight."""
    means = people.means(np.stack([away, away**2], axis=1))
    n = int(np.isfinite(means[:, 0]).sum())
    if n < 2:
        return float("nan"), np.full(len(people.counts), np.nan)
    value, draws = people.average(means)
    spread = [np.maximum(m[..., 1] - m[..., 0] ** 2, 0.0) * n / (n - 1) for m in (value, draws)]
    return float(np.sqrt(spread[0])), np.sqrt(spread[1])


def _share(flags: NDArray[np.bool_]) -> float | None:
    return float(flags.mean()) if flags.size else None
