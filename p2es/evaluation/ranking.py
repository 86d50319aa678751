"""How well a score tells two groups apart, each person with the same weight: AUROC, and sensitivity at few alarms."""

import numpy as np
from numpy.typing import NDArray

from p2es.evaluation.bootstrap import People

Array = NDArray[np.float64]
# Weights are sums of shares: a rate this little above its limit is at it.
_ROUNDING = 1e-9


def auc(score: Array, positive: NDArray[np.bool_], people: People) -> tuple[float, Array]:
    """Give the area under the ROC curve: how often a positive scores higher than a negative, ties counting half.

    Parameters
    ----------
    score : array (row,)
        Finite.
    positive : array (row,)
    people : People

    Returns
    -------
    value : float
    draws : array (draw,)
        NaN where a draw has none of one group.
    """
    weights, whose, up, last = _sorted(score, positive, people)
    values = np.array([_area(weights * draw[whose], up, last) for draw in _everyone(people)])
    return float(values[0]), values[1:]


def sensitivity_at(score: Array, positive: NDArray[np.bool_], people: People, *, alarms: float) -> tuple[float, Array]:
    """Give the largest share of positives above a threshold that at most a share `alarms` of negatives is above.

    Returns
    -------
    value : float
    draws : array (draw,)
    """
    weights, whose, up, last = _sorted(-score, positive, people)
    values = np.array([_sensitivity(weights * draw[whose], up, last, alarms) for draw in _everyone(people)])
    return float(values[0]), values[1:]


def _everyone(people: People) -> Array:
    return np.concatenate([np.ones((1, people.number)), people.counts])


def _sorted(
    score: Array, positive: NDArray[np.bool_], people: People
) -> tuple[Array, NDArray[np.intp], NDArray[np.bool_], NDArray[np.intp]]:
    """Sort by score: weights, person, group, and of each value the place where it ends."""
    order = np.argsort(score, kind="stable")
    weights = people.weights(positive) + people.weights(~positive)
    last = np.flatnonzero(np.append(np.diff(score[order]) > 0, True))
    return weights[order], people.code[order], positive[order], last


def _steps(weights: Array, up: NDArray[np.bool_], last: NDArray[np.intp]) -> tuple[Array, Array]:
    """Give the cumulated share of positives and of negatives at the end of each value, from 0."""
    shares = []
    for group in (up, ~up):
        below = np.cumsum(np.where(group, weights, 0.0))
        total = below[-1] if below[-1] > 0 else np.nan
        shares.append(np.concatenate([[0.0], below[last] / total]))
    return shares[0], shares[1]


def _area(weights: Array, up: NDArray[np.bool_], last: NDArray[np.intp]) -> float:
    positives, negatives = _steps(weights, up, last)
    return float((np.diff(positives) * (negatives[1:] + negatives[:-1]) / 2).sum())


def _sensitivity(weights: Array, up: NDArray[np.bool_], last: NDArray[np.intp], alarms: float) -> float:
    positives, negatives = _steps(weights, up, last)
    if not np.isfinite(positives[-1] + negatives[-1]):
        return float("nan")
    return float(positives[negatives <= alarms + _ROUNDING].max())
