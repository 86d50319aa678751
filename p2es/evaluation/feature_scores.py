"""Clinical features of a window, drawn against recorded: errors, CRPS and energy score, coverage and width.

What is in the recording and cannot be measured in the drawn has failed, and costs: failing must not pay. What was not
found in the recording has no error, for there is nothing to hold the drawn against.
"""

import numpy as np
from numpy.typing import NDArray

from p2es.evaluation.features import FEATURES
from p2es.evaluation.probabilistic import (
    covered,
    distance,
    energy_score,
    fair_crps,
    fair_crps_deg,
    interval_width,
)

FAILURE_SDS = 2.0
"""What a feature costs that is in the recording and cannot be measured in the drawn, in SD between people.

A constant answer is off by 0.8 SD on average, so that failing never pays.
"""
_ERRORS = {
    "pr_error_ms": "pr_ms",
    "qrs_error_ms": "qrs_ms",
    "qtcf_error_ms": "qtcf_ms",
    "qrs_axis_error_deg": "qrs_axis_deg",
}
_INDEX = {feature.name: k for k, feature in enumerate(FEATURES)}
_SDS = np.array([feature.typical_sd for feature in FEATURES])
_CIRCULAR = np.array([feature.circular for feature in FEATURES])
_FEATURE_SHARE = 0.9
_NAN = float("nan")

Floats = NDArray[np.float64]


def feature_errors(real: Floats, answer: Floats) -> dict[str, float]:
    """Give the absolute errors of PR, QRS, QTcF and the axis of QRS (the shorter way round).

    Parameters
    ----------
    real, answer : array (feature,)
        In the order of `FEATURES`. A feature that is in `real` and NaN in `answer` has failed and costs `FAILURE_SDS`
        of its standard deviations between people: 48 ms, 19.4 ms, 42 ms and 64 degrees.

    Returns
    -------
    dict
        `pr_error_ms`, `qrs_error_ms`, `qtcf_error_ms`, `qrs_axis_error_deg`; NaN for what is not in `real`.
    """
    return {name: feature_error(real, answer, feature) for name, feature in _ERRORS.items()}


def feature_error(real: Floats, answer: Floats, name: str) -> float:
    """Give the absolute error of one feature, by name, in its unit; otherwise as `feature_errors`."""
    k = _INDEX[name]
    if np.isnan(real[k]):
        return _NAN
    error = float(distance(real[k], answer[k], circular=FEATURES[k].circular))
    return FAILURE_SDS * FEATURES[k].typical_sd if np.isnan(error) else error


def feature_crps(real: Floats, draws: Floats) -> float:
    """Give the CRPS of the features that are in the recording, each in SD between people, averaged.

    `probabilistic.fair_crps`, for angles `fair_crps_deg`, over the draws in which the feature was found; each of the
    others counts `FAILURE_SDS`. Answering every time what is usual scores about 0.6 (a Gaussian: 1 / sqrt(pi)).

    Parameters
    ----------
    real : array (feature,)
        In the order of `FEATURES`.
    draws : array (sample, feature)

    Returns
    -------
    float
        NaN when the recording has none of them.
    """
    scores = []
    for k in np.flatnonzero(np.isfinite(real)):
        found = draws[np.isfinite(draws[:, k]), k]
        failed = 1.0 - len(found) / len(draws) if len(found) > 1 else 1.0
        score = 0.0
        if failed < 1.0:
            crps = fair_crps_deg(real[k], found) if FEATURES[k].circular else float(fair_crps(real[k], found))
            score = crps / _SDS[k]
        scores.append((1.0 - failed) * score + failed * FAILURE_SDS)
    return float(np.mean(scores)) if scores else _NAN


def feature_energy(real: Floats, draws: Floats) -> float:
    """Give the energy score of the features that are in the recording, taken as one vector, in SD between people.

    `probabilistic.energy_score` over the square root of their number, so that windows in which fewer were found can be
    averaged with others; of one feature it is its CRPS. Unlike `feature_crps` it sees whether the features of a draw
    belong together. A feature that failed in a draw is `FAILURE_SDS` away from the recording and adds nothing to the
    spread. QT, QTcF and heart rate hang together and count as three. Of ten features that do not, the mean as every
    answer scores about 1.0, and draws from all people 0.7.

    Parameters
    ----------
    real : array (feature,)
        In the order of `FEATURES`.
    draws : array (sample, feature)

    Returns
    -------
    float
        NaN when the recording has none of them.
    """
    there = np.isfinite(real)
    if not there.any():
        return _NAN
    score = energy_score(real[there], draws[:, there], _SDS[there], _CIRCULAR[there], failure=FAILURE_SDS)
    return score / float(np.sqrt(np.count_nonzero(there)))


def feature_intervals(real: Floats, draws: Floats) -> dict[str, float]:
    """Give how many of the features in the recording lie in the central 90 % of their draws, and how wide that is.

    Of the draws in which a feature was found (`probabilistic.central_interval`). A feature that failed in more than
    half of the draws holds nothing and has no width: failing does not pay. Fewer than 19 draws hold less than 90 %, so
    that failures cost there as well.

    Parameters
    ----------
    real : array (feature,)
        In the order of `FEATURES`.
    draws : array (sample, feature)

    Returns
    -------
    dict
        `feature_coverage_90` (share) and `feature_width_90` (mean, SD between people); NaN when there is none.
    """
    inside, widths = [], []
    for k in np.flatnonzero(np.isfinite(real)):
        found = draws[np.isfinite(draws[:, k]), k]
        if 2 * len(found) < len(draws):
            inside.append(False)
            continue
        circular = FEATURES[k].circular
        inside.append(bool(covered(real[k], found, _FEATURE_SHARE, circular=circular)))
        widths.append(float(interval_width(found, _FEATURE_SHARE, circular=circular)) / FEATURES[k].typical_sd)
    return {
        "feature_coverage_90": float(np.mean(inside)) if inside else _NAN,
        "feature_width_90": float(np.mean(widths)) if widths else _NAN,
    }
