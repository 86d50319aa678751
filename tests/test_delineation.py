from dataclasses import replace

import numpy as np
import pytest
from gaussian_hearts import MORPHOLOGIES, default_heart, draw_heart, record

from p2es import delineation
from p2es.delineation import delineate, measure_ecg, median_beat
from p2es.errors import InputError
from p2es.filters import resample
from p2es.leads import INDEPENDENT_INDEX, LEADS, law_residuals


def rng_of(seed):
    return np.random.default_rng(seed)


def intervals_ms(found):
    return np.array([found.pr_ms, found.qrs_ms, found.qt_ms])


def marks_s(found):
    names = ("p_on_s", "p_off_s", "qrs_on_s", "qrs_off_s", "t_off_s")
    return np.array([getattr(found, name) for name in names])


@pytest.fixture(scope="module")
def normal():
    heart = default_heart()
    return heart, *record(heart, rng_of(1))


# --- The oracle: marks of Gaussian beats from their formula -----------------------------------------------------------


def errors_ms(morphology, fs_hz, count, seed):
    """Give errors (person, 3) of PR, QRS and QT, and how many P, QRS and T waves are right and wrong."""
    rng, errors, right, wrong = rng_of(seed), [], 0, 0
    for _ in range(count):
        heart = draw_heart(rng, morphology)
        fibrillates = morphology == "af"
        made_hz = max(fs_hz, 500.0)
        ecg, r_s = record(
            heart, rng, made_hz, irregular=0.2 if fibrillates else 0.03, f_wave_mv=0.03 if fibrillates else 0.0
        )
        found = delineate(median_beat(resample(ecg, made_hz, fs_hz), fs_hz, r_s))
        errors.append(intervals_ms(found) - heart.intervals_ms())
        there = {"P": not fibrillates, "QRS": True, "T": True}
        agree = sum((name not in found.missing) == there[name] for name in there)
        right, wrong = right + agree, wrong + 3 - agree
    return np.array(errors), right, wrong


# Bias of QT where a plateau raises ST up to T: the end of T that the formula gives is that of T alone.
_QT_BIAS_MS = {"ste_anterior": 9.0, "wpw": 5.0, "af": 6.0}
_SD_MS = {"af": (np.nan, 3.0, 12.0), "low_voltage": (8.0, 3.0, 4.0)}


@pytest.mark.parametrize("morphology", MORPHOLOGIES)
def test_intervals_are_those_of_the_formula(morphology):
    errors, right, wrong = errors_ms(morphology, 500.0, 16, 3)
    assert wrong == 0, right
    columns = slice(1, None) if morphology == "af" else slice(None)
    bias, spread = errors.mean(axis=0)[columns], errors.std(axis=0)[columns]
    assert (np.abs(bias) <= np.array([3.0, 3.0, _QT_BIAS_MS.get(morphology, 3.0)])[columns]).all(), bias
    assert (spread <= np.array(_SD_MS.get(morphology, (3.0, 3.0, 3.0)))[columns]).all(), spread
