"""Figures with intervals: windows are averaged within a person, then people are averaged and resampled.

Windows of one person are alike, so an interval over windows would be too narrow. All figures and contrasts
share one set of bootstrap draws, and contrasts are taken window by window, so that what two systems have in
common cancels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.evaluation.bootstrap import Figure, packed
from p2es.evaluation.metrics import METRICS, Metric

RATIOS = (
    "rmse_mv_sample",
    "rmse_mv_sample_lag",
    "rmse_mv_mean",
    "beat_rmse_mv_sample",
    "crps_mv",
    "feature_crps",
    "feature_energy",
    "pr_error_ms",
    "qrs_error_ms",
    "qtcf_error_ms",
    "qrs_axis_error_deg",
)
"""Errors whose ratio between two systems is reported beside their difference."""


@dataclass(frozen=True)
class Summary:
    """Figures of each system and contrasts between the model and the others.

    Attributes
    ----------
    figures : dict of system to dict of metric name to Figure
    contrasts : dict
        `<metric>: <model> - <system>` and, for errors, the ratios `<metric>: <model> / <system>` and
        `<metric>: <system> / <model>`, each a Figure.
    """

    figures: dict[str, dict[str, Figure]]
    contrasts: dict[str, Figure]


@dataclass(frozen=True)
class _Pivot:
    """Metrics by system over one list of windows; NaN where a system has no figure for a window."""

    values: Mapping[str, Mapping[str, NDArray[np.float64]]]
    person: NDArray[np.intp]
    draws: NDArray[np.intp]
    """People of each bootstrap draw, (draw, person)."""


def summarise(rows: pa.Table, *, model: str = "model", bootstrap: int, seed: int) -> Summary:
    """Average rows of `measure` and contrast the model with every other system.

    Parameters
    ----------
    rows : pyarrow.Table
        `measure.ROW_SCHEMA`, of one or several systems over the same windows.
    model : str
        The system that is judged.
    bootstrap : int
        Draws over people.
    seed : int

    Returns
    -------
    Summary
    """
    pivot = _pivot(rows, bootstrap, seed)
    figures = {
        system: {metric.name: _figure(values[metric.name], metric, pivot) for metric in METRICS}
        for system, values in pivot.values.items()
    }
    contrasts: dict[str, Figure] = {}
    for other in (system for system in pivot.values if system != model):
        ours, theirs = pivot.values[model], pivot.values[other]
        for metric in METRICS:
            if metric.statistic != "max":
                difference = ours[metric.name] - theirs[metric.name]
                contrasts[f"{metric.name}: {model} - {other}"] = _figure(difference, metric, pivot)
        for name in RATIOS:
            contrasts[f"{name}: {model} / {other}"] = _ratio(ours[name], theirs[name], pivot)
            contrasts[f"{name}: {other} / {model}"] = _ratio(theirs[name], ours[name], pivot)
    return Summary(figures, contrasts)


def _pivot(rows: pa.Table, bootstrap: int, seed: int) -> _Pivot:
    system = np.array(rows["system"].to_pylist(), dtype=np.str_)
    windows, first, place = np.unique(
        np.array(rows["window_id"].to_pylist(), dtype=np.str_), return_index=True, return_inverse=True
    )
    person = np.unique(np.array(rows["person"].to_pylist(), dtype=np.str_)[first], return_inverse=True)[1]
    columns = {m.name: np.array(rows[m.name].to_pylist(), dtype=object).astype(np.float64) for m in METRICS}
    values: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name in dict.fromkeys(system.tolist()):
        mine = system == name
        values[name] = {}
        for metric, column in columns.items():
            values[name][metric] = np.full(len(windows), np.nan)
            values[name][metric][place[mine]] = column[mine]
    people = int(person.max(initial=-1)) + 1
    draws = np.random.default_rng(seed).integers(0, max(people, 1), (bootstrap, people))
    return _Pivot(values, person, draws)


def person_means(values: NDArray[np.float64], person: NDArray[np.intp]) -> NDArray[np.float64]:
    """Average the finite values (window,) of each person; NaN for a person without one."""
    good = np.isfinite(values)
    people = int(person.max(initial=-1)) + 1
    total = np.bincount(person[good], weights=values[good], minlength=people)
    count = np.bincount(person[good], minlength=people)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _average(values: NDArray[np.float64], statistic: str) -> NDArray[np.float64]:
    """Average over the last axis, leaving NaN out; NaN where nothing is left."""
    masked = np.ma.masked_invalid(values)
    result = np.ma.median(masked, axis=-1) if statistic == "median" else masked.mean(axis=-1)
    return np.ma.filled(np.ma.atleast_1d(result).astype(np.float64), np.nan)


def _figure(values: NDArray[np.float64], metric: Metric, pivot: _Pivot) -> Figure:
    means = person_means(values, pivot.person)
    n = int(np.isfinite(means).sum())
    if metric.statistic == "max":
        # A worst case has no interval: more windows can only make it worse.
        worst = np.array([values[np.isfinite(values)].max()]) if n else np.array([np.nan])
        return packed(float(worst[0]), worst, metric.unit, n)
    value = _average(means[None], metric.statistic)[0]
    return packed(float(value), _average(means[pivot.draws], metric.statistic), metric.unit, n)


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64], pivot: _Pivot) -> Figure:
    """Give the ratio of the means over the windows that both systems have."""
    both = np.isfinite(numerator) & np.isfinite(denominator)
    above = person_means(np.where(both, numerator, np.nan), pivot.person)
    below = person_means(np.where(both, denominator, np.nan), pivot.person)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = _average(above[None], "mean")[0] / _average(below[None], "mean")[0]
        draws = _average(above[pivot.draws], "mean") / _average(below[pivot.draws], "mean")
    return packed(float(value), draws, "", int(np.isfinite(above).sum()))
