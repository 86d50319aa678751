"""Intervals and axis from demographics and heart rate alone: what a model must not be far better than.

Demographics explain 6 to 13 % of the variance of these features, and a PPG adds almost nothing to that
(reference/clinical.md, 5.1 and 6). A model whose posterior median is much better than this regression on people it has
not seen has found a way around its input: `evaluation.audit` looks at that.

It is a median regression: the linear function with the least mean absolute error, which is what it is scored by.
Features of a population with bundle branch blocks or AV blocks have a long tail; a mean is drawn towards it, and a
model would gain skill over least squares by nothing but giving a median.
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.optimize import linprog

from p2es.demographics import DemographicScaler
from p2es.errors import DatasetError, InputError

SYSTEM = "demographic_regression"
"""The name of its rows."""
ERRORS = {
    "pr_ms": "pr_error_ms",
    "qrs_ms": "qrs_error_ms",
    "qtcf_ms": "qtcf_error_ms",
    "qrs_axis_deg": "qrs_axis_error_deg",
}
"""What is regressed, and the column of its absolute error."""
_CIRCULAR = ("qrs_axis_deg",)
_PEOPLE = ("age_years", "female", "height_cm", "weight_kg")
_RATE = "hr_bpm"
_TERMS = 6
# With fewer people than this there is only the median of all.
_MIN_PEOPLE = 20
_LEAST_RATE_SPREAD_BPM = 1.0
# What tells a row apart, and what of it is of the recording alone: all else in a row is of what was drawn.
_OF_THE_WINDOW = ("window_id", "person", *_PEOPLE, "rhythm")
_REAL = "real_"

Floats = NDArray[np.float64]


@dataclass
class IntervalRegression:
    """Linear median regressions of PR, QRS, QTcF and the axis of QRS.

    Attributes
    ----------
    weights : mapping
        Of each feature (6,): its value in the average person, and its change a standard deviation of age, sex, height,
        weight and heart rate. Axes are counted from `middle_deg`.
    middle_deg : mapping
        Circular mean of each circular feature over training people. Angles are unwrapped about it and regressed as
        numbers: a regression of sine and cosine would minimise a squared error, and axes keep within 180 degrees of
        their mean in all but a few people.
    scaler : DemographicScaler
        Fills unknown fields by what the known ones imply.
    rate_bpm : tuple
        Mean and standard deviation of heart rate over training people; an unknown rate counts as the mean.
    """

    weights: dict[str, Floats] = field(default_factory=dict)
    middle_deg: dict[str, float] = field(default_factory=dict)
    scaler: DemographicScaler = field(default_factory=lambda: DemographicScaler.fit(np.empty((0, 4))))
    rate_bpm: tuple[float, float] = (70.0, 12.0)

    def fit(self, bank: pa.Table) -> Self:
        """Fit to training windows, each person counting once.

        Parameters
        ----------
        bank : pyarrow.Table
            Of `evaluation.measure.describe`: `person`, demographics and `real_` of the features and of `hr_bpm`.

        Returns
        -------
        IntervalRegression
            Itself.

        Raises
        ------
        DatasetError
            When a feature was measured in no training window.
        """
        people, person = _people(bank), np.asarray(bank["person"].to_pylist(), dtype=np.str_)
        first = np.unique(person, return_index=True)[1]
        self.scaler = DemographicScaler.fit(people[first])
        rate = _column(bank, f"{_REAL}{_RATE}")
        if np.isfinite(rate).any():
            spread = max(float(np.nanstd(rate)), _LEAST_RATE_SPREAD_BPM)
            self.rate_bpm = (float(np.nanmean(rate)), spread)
        terms = self._terms(people, rate)
        for name in ERRORS:
            value = _column(bank, _REAL + name)
            known = np.isfinite(value)
            if not known.any():
                raise DatasetError(f"{name} was measured in no training window: it cannot be regressed")
            share = _shares(person[known])
            if name in _CIRCULAR:
                self.middle_deg[name] = _circular_mean_deg(value[known], share)
                value = wrapped_deg(value - self.middle_deg[name])
            self.weights[name] = _median_regression(terms[known], value[known], share)
        return self

    def predict(self, people: Floats, heart_rate_bpm: Floats) -> dict[str, Floats]:
        """Predict the features of windows.

        Parameters
        ----------
        people : array (n, 4)
            `Demographics.to_array`; NaN is unknown.
        heart_rate_bpm : array (n,)
            From the pulse; NaN is unknown.

        Returns
        -------
        dict of array (n,)
            `pr_ms`, `qrs_ms`, `qtcf_ms`, `qrs_axis_deg` in (-180, 180]; and `hr_bpm`, the rate as it came.

        Raises
        ------
        InputError
            Before it is fitted, or for arrays of other shapes.
        """
        if not self.weights:
            raise InputError("the regression of intervals has not been fitted: call fit first")
        people, rate = np.asarray(people, np.float64), np.asarray(heart_rate_bpm, np.float64)
        if people.ndim != 2 or people.shape[1] != len(_PEOPLE) or rate.shape != (len(people),):
            raise InputError(f"people {people.shape} and rates {rate.shape} do not fit: give (n, 4) and (n,)")
        terms = self._terms(people, rate)
        found = {name: terms @ weights for name, weights in self.weights.items()}
        for name, middle in self.middle_deg.items():
            found[name] = wrapped_deg(found[name] + middle)
        return found | {_RATE: rate.copy()}

    def rows(self, truth_rows: pa.Table, heart_rate_bpm: Floats) -> pa.Table:
        """Give the rows of the system `demographic_regression`.

        Parameters
        ----------
        truth_rows : pyarrow.Table
            A row a window, of any system or of `describe`.
        heart_rate_bpm : array (n,)
            Of the pulse of the same windows (`Translation.heart_rate_bpm`).

        Returns
        -------
        pyarrow.Table
            Of the same schema. Who, rhythm and `real_` columns are those of `truth_rows`; filled are `median_` of what
            is predicted and its absolute error, NaN where nothing was measured in the recording; of all else numbers
            are NaN and lists and words null.
        """
        predicted = self.predict(_people(truth_rows), heart_rate_bpm)
        columns = {f"median_{name}": value for name, value in predicted.items()}
        for name, error in ERRORS.items():
            off = predicted[name] - _column(truth_rows, _REAL + name)
            columns[error] = np.abs(wrapped_deg(off) if name in _CIRCULAR else off)
        n = truth_rows.num_rows
        made = []
        for column in truth_rows.schema:
            if column.name == "system":
                made.append(pa.array([SYSTEM] * n, column.type))
            elif column.name in _OF_THE_WINDOW or column.name.startswith(_REAL):
                made.append(truth_rows[column.name])
            elif column.name in columns:
                made.append(pa.array(columns[column.name], column.type))
            else:
                made.append(pa.array([float("nan") if pa.types.is_floating(column.type) else None] * n, column.type))
        return pa.table(made, schema=truth_rows.schema)

    def _terms(self, people: Floats, rate_bpm: Floats) -> Floats:
        """Give (n, 6): 1, the standardised demographics, unknown ones as expected, and the standardised rate."""
        filled, _ = self.scaler.complete(people)
        mean, spread = self.rate_bpm
        return np.column_stack([np.ones(len(people)), filled, np.nan_to_num((rate_bpm - mean) / spread)])


def wrapped_deg(angle_deg: Floats) -> Floats:
    """Bring angles to (-180, 180]."""
    return 180.0 - np.mod(180.0 - angle_deg, 360.0)


def _column(table: pa.Table, name: str) -> Floats:
    return np.array([np.nan if value is None else value for value in table[name].to_pylist()], np.float64)


def _people(table: pa.Table) -> Floats:
    return np.column_stack([_column(table, name) for name in _PEOPLE])


def _shares(person: NDArray[np.str_]) -> Floats:
    """Give each window's weight (n,): those of a person add up to 1."""
    _, code, count = np.unique(person, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / count[code], np.float64)


def _circular_mean_deg(angle_deg: Floats, share: Floats) -> float:
    angle = np.deg2rad(angle_deg)
    return float(np.rad2deg(np.arctan2(share @ np.sin(angle), share @ np.cos(angle))))


def _median_regression(terms: Floats, value: Floats, share: Floats) -> Floats:
    """Give the weights b (6,) that minimise ``sum share |value - terms b| + sum_j>0 |b_j|``.

    The second sum is that of one person a term, so that a term that hardly varies in training gets no weight. It is
    solved through the dual, a linear programme with as many equations as weights whatever the number of windows:
    ``max value d`` under ``terms' d = 0`` and ``|d| <= share``; the weights are its multipliers.
    """
    if share.sum() < _MIN_PEOPLE:
        terms = terms * (np.arange(_TERMS) == 0)
    design = np.concatenate([terms, np.eye(_TERMS)[1:]])
    target = np.concatenate([value, np.zeros(_TERMS - 1)])
    limit = np.concatenate([share, np.ones(_TERMS - 1)])
    bounds = [(-most, most) for most in limit.tolist()]
    solved = linprog(-target, A_eq=design.T, b_eq=np.zeros(_TERMS), bounds=bounds, method="highs")
    assert solved.status == 0, solved.message
    return -np.asarray(solved.eqlin.marginals, np.float64)
