"""Each metric against another implementation or a closed form, and what it sees of graded corruption."""

import numpy as np
import pytest
from scipy import stats
from windowed import batch_of_ecgs, clean_window, drawn

from p2es.beats import r_peaks, regularity
from p2es.errors import ConfigError
from p2es.evaluation.beat_marks import INTERVALS
from p2es.evaluation.beats import f1_score, found_and_real, relative_error_percent, rmssd_ms, sdnn_ms
from p2es.evaluation.delineator_check import delineator_check
from p2es.evaluation.features import aligned_beat
from p2es.evaluation.measure import measure
from p2es.evaluation.metrics import BY_NAME, METRICS
from p2es.evaluation.probabilistic import (
    central_interval,
    centre,
    covered,
    distance,
    energy_score,
    fair_crps,
    fair_crps_deg,
    interval_width,
    wrap_deg,
)
from p2es.evaluation.waveform import (
    correlations,
    dipolarity_percent,
    dtw,
    frechet_curve,
    log_spectral_distance_db,
    mae,
    prd_percent,
    rmse,
    ssim,
)
from p2es.leads import lift
from p2es.windows import ECG_SAMPLES, FS_HZ


def rng_of(seed):
    return np.random.default_rng(seed)


# --- Waveform ---------------------------------------------------------------------------------------------------------


def dtw_by_definition(x, y, reach):
    """Every cell in turn: the cheapest way there, of equally cheap ones the shortest."""
    best = {(0, 0): (abs(x[0] - y[0]), 1)}
    for i in range(len(x)):
        for j in range(len(y)):
            if abs(i - j) <= reach and (i, j) != (0, 0):
                before = [best[p] for p in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if p in best]
                cost, points = min(before)
                best[i, j] = (cost + abs(x[i] - y[j]), points + 1)
    cost, points = best[len(x) - 1, len(y) - 1]
    return cost / points


def frechet_by_definition(x, y):
    c = np.full((len(x) + 1, len(y) + 1), np.inf)
    c[0, 0] = -np.inf
    for i in range(len(x)):
        for j in range(len(y)):
            c[i + 1, j + 1] = max(abs(x[i] - y[j]), min(c[i, j], c[i, j + 1], c[i + 1, j]))
    return c[-1, -1]


@pytest.mark.parametrize(("n", "fs_hz"), [(1, 64.0), (2, 64.0), (9, 64.0), (60, 64.0), (60, 20.0), (60, 5.0)])
def test_warping_distances_are_those_of_their_definition(n, fs_hz):
    for seed in range(5):
        x, y = rng_of(seed).normal(size=(2, n)).cumsum(axis=1)
        assert dtw(x, y, fs_hz) == pytest.approx(dtw_by_definition(x, y, int(0.15 * fs_hz)), abs=1e-12)
        assert frechet_curve(x, y) == pytest.approx(frechet_by_definition(x, y), abs=1e-12)


def test_warping_distances_in_closed_form():
    x = rng_of(0).normal(size=200)
    assert dtw(x, x, 64.0) == 0.0
    assert frechet_curve(x, x) == 0.0
    assert dtw(np.zeros(50), np.full(50, 0.3), 64.0) == pytest.approx(0.3)
    assert frechet_curve(np.zeros(50), np.full(50, 0.3)) == pytest.approx(0.3)
    spike = np.zeros(200)
    spike[100] = 2.0
    assert frechet_curve(np.zeros(200), spike) == 2.0, "one point rules it"
    assert dtw(np.zeros(200), spike, 64.0) == pytest.approx(2.0 / 200)
    for late in (3, 9, 30):
        assert frechet_curve(spike, np.roll(spike, late)) == 0.0, "it is blind to time"
    assert dtw(spike, np.roll(spike, 9), 64.0) == 0.0, "140 ms are forgiven"
    assert dtw(spike, np.roll(spike, 12), 64.0) > 0.01, "188 ms are not"


def test_warping_needs_two_signals_of_one_length():
    for x, y in ((np.zeros(3), np.zeros(4)), (np.zeros(0), np.zeros(0)), (np.zeros((2, 2)), np.zeros((2, 2)))):
        with pytest.raises(ValueError, match="equally long"):
            dtw(x, y, 64.0)
        with pytest.raises(ValueError, match="equally long"):
            frechet_curve(x, y)


def test_pointwise_errors_are_those_of_their_formulas():
    x, y = rng_of(1).normal(size=(2, 12, 300)) + 0.2
    # Norms of vectors instead of means of squares; scipy's r.
    np.testing.assert_allclose(rmse(x, y), np.linalg.norm(x - y, axis=1) / np.sqrt(300))
    np.testing.assert_allclose(mae(x, y), np.linalg.norm(x - y, ord=1, axis=1) / 300)
    np.testing.assert_allclose(prd_percent(x, y), 100 * np.linalg.norm(x - y, axis=1) / (x.std(axis=1) * np.sqrt(300)))
    np.testing.assert_allclose(correlations(x, y), [stats.pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)])


def test_prd_has_known_values():
    x = rng_of(2).normal(size=(1, 20_000)) - 3.0
    assert prd_percent(x, 0.7 * (x + 3.0) - 3.0)[0] == pytest.approx(30.0, abs=0.3)
    assert prd_percent(x, np.full_like(x, x.mean()))[0] == pytest.approx(100.0)
    assert prd_percent(x, rng_of(3).normal(size=x.shape) - 3.0)[0] == pytest.approx(100 * np.sqrt(2), abs=2)
    assert np.isnan(prd_percent(np.full((1, 50), 0.4), np.zeros((1, 50)))[0])


def ssim_by_definition(x, y):
    at = np.arange(-12, 13)
    weight = np.exp(-0.5 * (at / (25 * 1.5 / 11)) ** 2)
    weight /= weight.sum()
    values = []
    for centre_at in range(12, len(x) - 12):
        a, b = x[centre_at + at], y[centre_at + at]
        ma, mb = weight @ a, weight @ b
        va, vb, vab = weight @ (a - ma) ** 2, weight @ (b - mb) ** 2, weight @ ((a - ma) * (b - mb))
        values.append((2 * ma * mb + 4e-4) * (2 * vab + 3.6e-3) / ((ma**2 + mb**2 + 4e-4) * (va + vb + 3.6e-3)))
    return np.mean(values)


def test_ssim_is_that_of_its_definition():
    x, y = 0.3 * rng_of(4).normal(size=(2, 3, 120)).cumsum(axis=2)
    np.testing.assert_allclose(ssim(x, y), [ssim_by_definition(a, b) for a, b in zip(x, y, strict=True)])
    np.testing.assert_allclose(ssim(x, x), 1.0)
    level = ssim(np.full((1, 60), 0.5), np.full((1, 60), 0.1))[0]
    assert level == pytest.approx((2 * 0.5 * 0.1 + 4e-4) / (0.25 + 0.01 + 4e-4))


def spectrum(x):
    """Welch's estimate from plain Fourier transforms."""
    window = np.sin(np.pi * np.arange(256) / 256) ** 2
    parts = [x[k : k + 256] for k in range(0, len(x) - 255, 128)]
    power = [np.abs(np.fft.rfft(window * (part - part.mean()))) ** 2 for part in parts]
    return 2 * np.mean(power, axis=0)[1:81] / (FS_HZ * np.sum(window**2))


def test_log_spectral_distance_is_that_of_its_definition():
    x, y = rng_of(5).normal(size=(2, 2, ECG_SAMPLES))
    for k in range(2):
        expected = np.sqrt(np.mean((10 * np.log10(spectrum(x[k]) / spectrum(y[k]))) ** 2))
        assert log_spectral_distance_db(x, y)[k] == pytest.approx(expected)
    np.testing.assert_allclose(log_spectral_distance_db(x, 0.5 * x), 20 * np.log10(2))
    assert np.isfinite(log_spectral_distance_db(x, np.zeros_like(x))).all()


def test_dipolarity_is_the_share_of_three_components():
    rng = rng_of(6)
    dipole = rng.normal(size=(8, 3)) @ rng.normal(size=(3, 500))
    assert dipolarity_percent(dipole) == pytest.approx(100.0)
    x = dipole + 0.5 * rng.normal(size=(8, 500)) + 7.0
    energy = np.linalg.svd(x - x.mean(axis=1, keepdims=True), compute_uv=False) ** 2
    assert dipolarity_percent(x) == pytest.approx(100 * energy[:3].sum() / energy.sum())
    assert dipolarity_percent(rng.normal(size=(8, 200_000))) == pytest.approx(37.5, abs=0.5)
    assert np.isnan(dipolarity_percent(np.full((8, 500), 0.3)))


# --- Beats ------------------------------------------------------------------------------------------------------------


def test_variability_has_known_values():
    beats_s = np.cumsum([0.0, 0.8, 0.9, 0.8, 0.9, 0.8])
    assert rmssd_ms(beats_s) == pytest.approx(100.0)
    assert sdnn_ms(beats_s) == pytest.approx(np.std([800, 900, 800, 900, 800], ddof=1))
    assert np.isnan(sdnn_ms(beats_s[:3]))
    assert np.isnan(rmssd_ms(beats_s[:3]))
    drifting = np.cumsum(0.8 + 0.01 * np.arange(12))
    assert rmssd_ms(drifting) == pytest.approx(10.0)


def test_relative_errors_count_what_is_not_drawn_as_nothing():
    assert relative_error_percent(60.0, 66.0, 1.0) == pytest.approx(10.0)
    assert relative_error_percent(60.0, float("nan"), 1.0) == 100.0
    assert relative_error_percent(0.5, 1.5, 5.0) == pytest.approx(20.0), "a steady heart makes no error of 200 %"
    assert np.isnan(relative_error_percent(float("nan"), 60.0, 1.0))


def test_sensitivity_and_predictivity_tell_missed_from_invented():
    truth = np.arange(0.5, 9.6, 1.0)

    def scores(found):
        return found_and_real(truth, found, tolerance_s=0.05, lag_s=0.0, duration_s=10.0)

    assert scores(truth[1:]) == (0.9, 1.0)
    assert scores(np.sort(np.append(truth, 5.0))) == (1.0, pytest.approx(10 / 11))
    assert scores(np.empty(0)) == (0.0, 0.0)
    some = np.sort(np.append(truth[:7], [3.1, 4.2, 6.3]))
    se, p = scores(some)
    assert f1_score(truth, some, tolerance_s=0.05, lag_s=0.0, duration_s=10.0) == pytest.approx(stats.hmean([se, p]))
    assert all(np.isnan(found_and_real(np.empty(0), truth, tolerance_s=0.05, lag_s=0.0, duration_s=10.0)))


def test_regularity_needs_beats_and_bears_breathing():
    breathing = np.cumsum(0.8 * (1 + 0.04 * np.sin(np.arange(12) * 1.5)))
    assert regularity(breathing) == "regular"
    assert regularity(np.cumsum(0.8 * (1 + 0.25 * rng_of(7).normal(size=12)))) == "irregular"
    assert regularity(breathing[:4]) == "unknown"


# --- Probability ------------------------------------------------------------------------------------------------------


def gaussian_crps(y, mean, sd):
    z = (y - mean) / sd
    return sd * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))


@pytest.mark.parametrize(("y", "mean", "sd"), [(0.0, 0.0, 1.0), (3.0, 1.0, 0.5), (-2.0, 5.0, 4.0)])
def test_crps_is_that_of_the_gaussian(y, mean, sd):
    draws = rng_of(8).normal(mean, sd, size=(20, 20_000))
    score = fair_crps(np.full(20_000, y), draws)
    assert score.mean() == pytest.approx(gaussian_crps(y, mean, sd), rel=0.02)


@pytest.mark.parametrize("k", [2, 5, 20])
def test_crps_is_fair_to_any_number_of_draws(k):
    rng = rng_of(9)
    truth, right, narrow = rng.normal(size=40_000), rng.normal(size=(k, 40_000)), rng.normal(0, 0.6, (k, 40_000))
    score = fair_crps(truth, right).mean()
    assert score == pytest.approx(1 / np.sqrt(np.pi), abs=0.01)
    assert score < fair_crps(truth, narrow).mean() - 0.015


def test_circular_crps_is_the_plain_one_on_an_arc_and_turns_with_it():
    rng = rng_of(10)
    draws = rng.normal(20, 15, 20)
    assert fair_crps_deg(31.0, draws) == pytest.approx(float(fair_crps(np.array(31.0), draws)))
    for turn in (100.0, 170.0, -190.0):
        assert fair_crps_deg(31.0 + turn, wrap_deg(draws + turn)) == pytest.approx(fair_crps_deg(31.0, draws))
    assert fair_crps_deg(-179.0, np.array([179.0, 179.0])) == pytest.approx(2.0)
    everywhere = np.linspace(-180, 180, 720, endpoint=False)
    assert fair_crps_deg(77.0, everywhere) == pytest.approx(45.0, abs=0.1)


def test_the_centre_of_angles_is_nearest_to_all():
    grid = np.arange(-180, 180, 0.25)
    for seed in range(20):
        draws = wrap_deg(rng_of(seed).normal(170, 40, 21))
        total = distance(grid[:, None], draws[None], circular=True).sum(axis=1)
        found = distance(centre(draws, circular=True), draws, circular=True).sum()
        assert found <= total.min() + 1e-9
    draws = rng_of(0).normal(10, 20, 20)
    assert centre(draws, circular=True) == pytest.approx(np.median(draws))
    assert wrap_deg(np.array([180.0, -180.0, 540.0, 190.0])).tolist() == [180.0, 180.0, 180.0, -170.0]


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("k", [20, 50])
def test_central_intervals_hold_as_many_truths_as_they_say(k, share):
    rng = rng_of(11)
    truth, draws = rng.normal(size=40_000), rng.normal(size=(k, 40_000))
    assert covered(truth, draws, share).mean() == pytest.approx(share, abs=0.01)
    low, high = central_interval(draws, share)
    tail = (1 - share) / 2
    np.testing.assert_allclose(low, np.quantile(draws, tail, axis=0, method="weibull"), atol=1e-12)
    np.testing.assert_allclose(high, np.quantile(draws, 1 - tail, axis=0, method="weibull"), atol=1e-12)
    np.testing.assert_allclose(interval_width(draws, share), high - low)
    assert covered(truth, 0.5 * draws, share).mean() < share - 0.1


def test_beyond_its_outermost_draws_nothing_is_claimed():
    draws = np.arange(20.0)
    low, high = central_interval(draws, 0.99)
    assert (low, high) == (0.0, 19.0)


def test_intervals_of_angles_do_not_tear_at_180():
    rng = rng_of(12)
    truth, draws = rng.normal(178, 12, 2000), rng.normal(178, 12, (2000, 20))
    pairs = list(zip(wrap_deg(truth), wrap_deg(draws), strict=True))
    assert np.mean([covered(t, d, 0.8, circular=True) for t, d in pairs]) == pytest.approx(0.8, abs=0.03)
    np.testing.assert_allclose(
        [interval_width(d, 0.8, circular=True) for _, d in pairs], [interval_width(d, 0.8) for d in draws]
    )


def test_energy_score_is_crps_in_one_dimension_and_known_in_two():
    rng = rng_of(14)
    draws = rng.normal(size=20)
    plain = energy_score(np.array([0.4]), draws[:, None], np.array([1.0]))
    assert plain == pytest.approx(float(fair_crps(np.array(0.4), draws)))
    many = rng.normal(size=(1200, 2)) * [10.0, 0.1]
    score = energy_score(np.zeros(2), many, np.array([10.0, 0.1]))
    assert score == pytest.approx(np.sqrt(np.pi / 2) * (1 - 1 / np.sqrt(2)), abs=0.03)
    # It sees what marginals cannot: draws that hang together the wrong way.
    both = rng.normal(size=(200, 1)) * [1.0, 1.0]
    apart = both * [1.0, -1.0]
    truths = rng.normal(size=(40, 1)) * [1.0, 1.0]
    ones = np.ones(2)
    assert np.mean([energy_score(t, both, ones) for t in truths]) < np.mean(
        [energy_score(t, apart, ones) for t in truths]
    )
    angles = np.array([True, False])
    near, far = np.array([[179.0, 0.0]] * 3), np.array([[100.0, 0.0]] * 3)
    truth = np.array([-179.0, 0.0])
    assert energy_score(truth, near, ones, angles) < energy_score(truth, far, ones, angles)


def test_in_the_energy_score_a_feature_that_a_draw_lacks_has_its_price_and_no_spread():
    rng = rng_of(15)
    truth, scale = np.zeros(2), np.array([1.0, 10.0])
    draws = rng.normal(size=(6, 2)) * scale
    holed = draws.copy()
    holed[:2, 1] = np.nan

    def parts(a, b, missing):
        away = np.abs(a - b) / scale
        return np.hypot(*np.where(np.isnan(away), missing, away))

    pairs = sum(parts(a, b, 0.0) for a in holed for b in holed) / (2 * 6 * 5)
    by_hand = np.mean([parts(x, truth, 3.0) for x in holed]) - pairs
    assert energy_score(truth, holed, scale, failure=3.0) == pytest.approx(by_hand)
    assert energy_score(truth, draws, scale, failure=3.0) == pytest.approx(energy_score(truth, draws, scale))
    nothing = np.full((6, 2), np.nan)
    assert energy_score(truth, nothing, scale, failure=3.0) == pytest.approx(3.0 * np.sqrt(2))
    assert np.isnan(energy_score(truth, holed, scale)), "without a price there is no score"


# --- Graded corruption ------------------------------------------------------------------------------------------------

PEOPLE = 6
NOISE_MV = (0.01, 0.03, 0.1, 0.2)
SHIFTS_S = (0.02, 0.06)
GAINS = (0.9, 0.8, 0.6)


def arms_swapped(ecg):
    """The two arm electrodes exchanged: I turns over, II and III change places, aVR and aVL too."""
    result = ecg.copy()
    result[0], result[[1, 2]], result[[3, 4]] = -ecg[0], ecg[[2, 1]], ecg[[4, 3]]
    return result


def corruptions():
    noise = lift(rng_of(15).normal(size=(PEOPLE, 8, ECG_SAMPLES))).astype(np.float32)
    yield "same", lambda k: clean_window(21, k)
    for sd in NOISE_MV:
        yield f"noise {sd}", lambda k, sd=sd: clean_window(21, k) + sd * noise[k]
    for shift_s in SHIFTS_S:
        yield f"shift {shift_s}", lambda k, shift_s=shift_s: clean_window(21, k, shift_s)
    for gain in GAINS:
        yield f"gain {gain}", lambda k, gain=gain: gain * clean_window(21, k)
    yield "arms", lambda k: arms_swapped(clean_window(21, k))
    yield "other", lambda k: clean_window(21, k + 1)


@pytest.fixture(scope="module")
def corrupted():
    """{corruption: {metric: mean over people}}."""
    truth = batch_of_ecgs([clean_window(21, k) for k in range(PEOPLE)])
    found = {}
    for name, corrupt in corruptions():
        rows = measure(truth, [drawn(corrupt(k)) for k in range(PEOPLE)], system=name)
        columns = {m.name: np.array(rows[m.name].to_pylist(), float) for m in METRICS}
        found[name] = {name: np.nanmean(c) for name, c in columns.items() if np.isfinite(c).any()}
    return found


BLIND, WORSE = "blind", "worse"
# For each metric: what is "as good as none" in its unit; then what it makes of noise, a shift, a gain, exchanged arm
# leads and another person's ECG. `worse` with the grade, each step; `blind` at every grade; None: neither, said why.
TABLE = {
    "r_f1_50ms": (0.01, BLIND, None, BLIND, BLIND, WORSE),  # falls off a cliff between 20 and 60 ms
    "r_f1_150ms": (0.01, BLIND, BLIND, BLIND, BLIND, WORSE),
    "r_f1_50ms_lag": (0.01, BLIND, BLIND, BLIND, BLIND, WORSE),
    "r_f1_150ms_lag": (0.01, BLIND, BLIND, BLIND, BLIND, WORSE),
    "r_sensitivity_50ms_lag": (0.01, BLIND, BLIND, BLIND, BLIND, WORSE),
    "r_predictivity_50ms_lag": (0.01, BLIND, BLIND, BLIND, BLIND, WORSE),
    "r_timing_ms_lag": (4.0, BLIND, BLIND, BLIND, BLIND, WORSE),
    "lag_abs_ms": (4.0, BLIND, WORSE, BLIND, BLIND, WORSE),
    "rr_error_ms": (4.0, BLIND, BLIND, BLIND, BLIND, WORSE),  # and NaN where no two neighbours are matched
    "hr_error_bpm": (0.2, BLIND, BLIND, BLIND, BLIND, WORSE),
    "hr_error_percent": (0.3, BLIND, BLIND, BLIND, BLIND, WORSE),
    "sdnn_error_percent": (12.0, BLIND, BLIND, BLIND, BLIND, WORSE),  # R peaks are found to a fraction of 8 ms
    "rmssd_error_percent": (25.0, BLIND, BLIND, BLIND, BLIND, WORSE),
    "rmse_mv_sample": (1e-6, WORSE, WORSE, WORSE, WORSE, WORSE),
    "rmse_mv_sample_lag": (0.04, WORSE, BLIND, WORSE, WORSE, WORSE),  # a lag is taken out to half a sample
    "mae_mv_sample": (1e-6, WORSE, WORSE, WORSE, WORSE, WORSE),
    "prd_percent_sample": (1e-4, WORSE, WORSE, WORSE, WORSE, WORSE),
    "beat_rmse_mv_sample": (0.012, WORSE, BLIND, WORSE, WORSE, WORSE),
    "correlation_sample": (1e-6, WORSE, WORSE, BLIND, WORSE, WORSE),
    "correlation_sample_lag": (0.04, WORSE, BLIND, BLIND, WORSE, WORSE),
    "dtw_mv_sample": (0.01, WORSE, BLIND, WORSE, WORSE, WORSE),
    "frechet_curve_mv_sample": (0.16, WORSE, BLIND, WORSE, WORSE, WORSE),  # at 64 Hz the top of R is cut differently
    "ssim_sample": (1e-6, WORSE, WORSE, WORSE, WORSE, WORSE),
    "log_spectral_distance_db_sample": (0.3, WORSE, BLIND, WORSE, WORSE, WORSE),
    "pr_error_ms_sample": (1.0, WORSE, BLIND, BLIND, BLIND, WORSE),
    "qrs_error_ms_sample": (1.0, None, BLIND, BLIND, BLIND, WORSE),  # what fails costs less than what is found in noise
    "qtcf_error_ms_sample": (1.0, None, BLIND, BLIND, BLIND, WORSE),
    "qrs_axis_error_deg_sample": (1.0, WORSE, BLIND, None, WORSE, WORSE),  # a small QRS loses its axis
    "st_filtered_error_mv_sample": (0.002, None, BLIND, WORSE, BLIND, WORSE),  # of most leads: V1 to V6 are as before
    "t_polarity_agreement_sample": (0.05, None, BLIND, BLIND, WORSE, BLIND),  # all healthy people have T upright
    "transition_error_leads_sample": (0.02, None, BLIND, BLIND, BLIND, WORSE),
    "drawn_failures_sample": (0.04, None, BLIND, None, BLIND, BLIND),
    "lead_law_uv": (0.5, BLIND, BLIND, BLIND, BLIND, BLIND),  # all of these obey the lead laws
    "einthoven_rms_uv": (0.1, BLIND, BLIND, BLIND, BLIND, BLIND),
    "finite_share": (1e-9, BLIND, BLIND, BLIND, BLIND, BLIND),
}
KINDS = {
    "noise": [f"noise {sd}" for sd in NOISE_MV],
    "shift": [f"shift {s}" for s in SHIFTS_S],
    "gain": [f"gain {g}" for g in GAINS],
    "arms": ["arms"],
    "other": ["other"],
}


def test_the_table_holds_every_metric_of_one_sample(corrupted):
    of_the_samples = {"coverage_50", "coverage_80", "coverage_90", "coverage_90_lag", "band_width_mv", "spread_mv"}
    of_the_samples |= {"crps_mv", "feature_crps", "feature_energy", "feature_coverage_90", "feature_width_90"}
    of_the_samples |= {"rmse_mv_mean", "correlation_mean"}
    of_the_samples |= {"pr_error_ms", "qrs_error_ms", "qtcf_error_ms", "qrs_axis_error_deg"}
    to_be_compared = {"dipolarity_percent", "dipolarity_real_percent"}
    assert set(TABLE) | of_the_samples | to_be_compared == set(BY_NAME)
    assert set(TABLE) <= set(corrupted["same"])


@pytest.mark.parametrize("metric", list(TABLE))
def test_a_metric_sees_what_it_should_and_no_more(corrupted, metric):
    tolerance, *expected = TABLE[metric]
    sign = -1.0 if BY_NAME[metric].better == "higher" else 1.0
    perfect = corrupted["same"][metric]
    assert perfect == pytest.approx(1.0 if BY_NAME[metric].better == "higher" else 0.0, abs=1e-4)
    for (kind, grades), seen in zip(KINDS.items(), expected, strict=True):
        worse = [sign * (corrupted[name][metric] - perfect) for name in grades]
        if seen == BLIND:
            assert np.abs(worse).max() <= tolerance, (kind, worse)
        elif seen == WORSE:
            assert (np.diff([0.0, *worse]) > 0).all(), (kind, worse)
            assert worse[-1] > tolerance, (kind, worse)


def test_noise_in_one_lead_breaks_the_lead_laws_and_lowers_dipolarity(corrupted):
    ecg = clean_window(21, 0)
    spoilt = ecg.copy()
    spoilt[2] += 0.03 * rng_of(16).normal(size=ECG_SAMPLES).astype(np.float32)
    row = measure(batch_of_ecgs([ecg]), [drawn(spoilt)], system="model").to_pylist()[0]
    assert row["einthoven_rms_uv"] == pytest.approx(15, rel=0.05), "one law of four is broken by 30 uV"
    assert row["lead_law_uv"] > 60
    shares = [corrupted[name]["dipolarity_percent"] for name in ("same", *KINDS["noise"])]
    assert (np.diff(shares) < 0).all()


@pytest.fixture(scope="module")
def spread_draws():
    """Twenty draws around a corrupted ECG: right in spread where nothing is corrupted."""
    sd = 0.04
    truth_mv = [clean_window(21, k) for k in range(2)]
    rng = rng_of(17)

    def around(ecg):
        return ecg + sd * lift(rng.normal(size=(20, 8, ECG_SAMPLES))).astype(np.float32)

    recorded = [ecg + sd * lift(rng.normal(size=(8, ECG_SAMPLES))).astype(np.float32) for ecg in truth_mv]
    truth = batch_of_ecgs(recorded)
    cases = {
        "right": truth_mv,
        "shift 0.02": [clean_window(21, k, 0.02) for k in range(2)],
        "shift 0.06": [clean_window(21, k, 0.06) for k in range(2)],
        "gain 0.6": [0.6 * ecg for ecg in truth_mv],
        "other": [clean_window(21, k + 2) for k in range(2)],
    }
    return {
        name: measure(truth, [drawn(around(ecg)) for ecg in ecgs], system=name).to_pandas()
        for name, ecgs in cases.items()
    }


def test_the_samples_together_are_scored_as_a_forecast(spread_draws):
    mean = {name: rows.select_dtypes("number").mean() for name, rows in spread_draws.items()}
    right = mean["right"]
    assert right["coverage_50"] == pytest.approx(0.5, abs=0.02)
    assert right["coverage_80"] == pytest.approx(0.8, abs=0.02)
    for name in ("crps_mv", "rmse_mv_mean"):
        grades = [mean[case][name] for case in ("right", "shift 0.02", "shift 0.06")]
        assert (np.diff(grades) > 0).all(), name
        assert mean["gain 0.6"][name] > right[name]
    for name in ("coverage_50", "coverage_80"):
        grades = [mean[case][name] for case in ("right", "shift 0.02", "shift 0.06")]
        assert (np.diff(grades) < 0).all(), name
    assert mean["shift 0.06"]["feature_crps"] == pytest.approx(right["feature_crps"], abs=0.2)
    assert mean["other"]["feature_crps"] > right["feature_crps"] + 0.2
    assert mean["other"]["qrs_error_ms"] + mean["other"]["pr_error_ms"] > right["qrs_error_ms"] + right["pr_error_ms"]


def test_correlation_alone_proves_nothing_of_a_person():
    """One beat for all, of other people, at the true beats: its r is high, and is the timing's and not the person's."""
    others = [clean_window(22, k) for k in range(30)]
    template = np.mean([aligned_beat(ecg, r_peaks(ecg, FS_HZ)) for ecg in others], axis=0)
    time_s, beat_s = np.arange(ECG_SAMPLES) / FS_HZ, np.arange(template.shape[1]) / FS_HZ - 0.25

    def score(jitter_s):
        rng, values = rng_of(18), []
        for k in range(24):
            ecg = clean_window(21, k)
            pasted = np.zeros(ecg.shape)
            for beat in r_peaks(ecg, FS_HZ):
                at = time_s - beat - rng.normal(0, jitter_s)
                pasted += np.stack([np.interp(at, beat_s, lead, left=0, right=0) for lead in template])
            values.append(np.nanmean(correlations(ecg, pasted)))
        return np.mean(values)

    exact, jittered = score(0.0), score(0.01)
    assert exact == pytest.approx(0.80, abs=0.04)
    assert jittered == pytest.approx(0.68, abs=0.05)


# --- The delineator ---------------------------------------------------------------------------------------------------


def test_the_delineator_meets_its_goal_on_people_it_has_not_seen():
    check = delineator_check(10, seed=77)
    assert check["largest_sd_ms"] <= 3.0
    assert check["least_f1"] >= 0.99
    for part in ("as_made", "as_stored"):
        for interval in INTERVALS:
            assert check[part][interval]["failures"] == 0.0
            assert abs(check[part][interval]["bias_ms"]) < 9.0
            every = check["beat_by_beat"][part][interval]
            assert abs(every["bias_ms"] - check[part][interval]["bias_ms"]) < 2.0
            assert every["failures"] < 0.02
            assert every["marked"] > 100
    assert check["largest_sd_ms"] == max(
        way["as_made"][interval]["sd_ms"] for way in (check, check["beat_by_beat"]) for interval in INTERVALS
    )
    assert delineator_check(3, seed=1) == delineator_check(3, seed=1)
    assert delineator_check(3, seed=1) != delineator_check(3, seed=2)


def test_two_people_have_no_spread():
    with pytest.raises(ConfigError, match="3 or more"):
        delineator_check(2)
