from dataclasses import replace

import numpy as np
import pytest
from gaussian_hearts import MORPHOLOGIES, default_heart, draw_heart, record

from p2es.beats import r_peaks
from p2es.delineation import WORK_HZ, delineate, measure_ecg, median_beat
from p2es.errors import InputError
from p2es.filters import resample
from p2es.leads import INDEPENDENT, INDEPENDENT_INDEX, LEADS, law_residuals


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


@pytest.mark.parametrize("fs_hz", [128.0, 250.0, 1000.0])
def test_intervals_do_not_depend_on_the_rate(fs_hz):
    errors, _, wrong = errors_ms("normal", fs_hz, 12, 4)
    assert wrong == 0
    assert (np.abs(errors.mean(axis=0)) <= 3.0).all(), errors.mean(axis=0)
    assert (errors.std(axis=0) <= 3.0).all(), errors.std(axis=0)


def test_an_ecg_measures_what_the_tables_say(normal):
    heart, ecg, _ = normal
    found = measure_ecg(ecg, 500.0)
    np.testing.assert_allclose(intervals_ms(found), heart.intervals_ms(), atol=3.0)
    # clinical.md, 7.3.
    assert found.p_ms == pytest.approx(112, abs=6)
    assert found.qrs_axis_deg == pytest.approx(53, abs=2)
    assert found.t_axis_deg == pytest.approx(50, abs=2)
    assert found.p_axis_deg == pytest.approx(78, abs=5)
    r_mv = {"I": 0.66, "II": 0.92, "III": 0.33, "V1": 0.29, "V2": 0.43, "V3": 0.86, "V4": 1.41, "V5": 1.45, "V6": 1.16}
    for lead, value in r_mv.items():
        assert found.r_mv[LEADS.index(lead)] == pytest.approx(value, abs=0.03), lead
    for lead, value in {"V1": -0.95, "V2": -1.11, "V3": -1.03, "V4": -0.54}.items():
        assert found.s_mv[LEADS.index(lead)] == pytest.approx(value, abs=0.03), lead
    for lead, value in {"II": 0.25, "V2": 0.39, "V3": 0.60, "V5": 0.39}.items():
        assert found.t_mv[LEADS.index(lead)] == pytest.approx(value, abs=0.02), lead
    assert found.transition_lead == "V4"
    assert 3.0 < found.transition < 4.0
    assert found.rr_s == pytest.approx(heart.rr_s, rel=0.05)
    assert found.qtcf_ms == pytest.approx(found.qt_ms / found.rr_s ** (1 / 3))
    assert found.qtcb_ms == pytest.approx(found.qt_ms / np.sqrt(found.rr_s))


@pytest.mark.parametrize(
    ("morphology", "levels"),
    [
        ("ste_anterior", {"V2": (0.30, 0.35), "V3": (0.36, 0.43)}),
        ("ste_inferior", {"II": (0.22, 0.28), "III": (0.30, 0.35), "aVF": (0.26, 0.31), "aVL": (-0.22, -0.17)}),
    ],
)
def test_st_levels_are_those_of_the_recipe(morphology, levels):
    found = measure_ecg(record(default_heart(morphology), rng_of(2))[0], 500.0)
    for lead, (low, high) in levels.items():
        assert low <= found.st_mv[LEADS.index(lead)] <= high, lead


@pytest.mark.parametrize(("rr_s", "delay_s", "other_s"), [(0.8, 0.06, 0.04), (0.55, 0.04, 0.06)])
def test_st_is_measured_earlier_at_a_fast_rate(rr_s, delay_s, other_s):
    heart = replace(default_heart("ste_inferior"), rr_s=rr_s, plateau_s=(0.045, 0.13))
    ecg, r_s = record(heart, rng_of(2), noise_mv=0.002, irregular=0.001)
    found = delineate(median_beat(ecg, 500.0, r_s)).st_mv[INDEPENDENT_INDEX]
    j_s = heart.marks()["Q"][1]
    expected, other = (heart.wave("QT", np.array([j_s + x]))[:, 0] for x in (delay_s, other_s))
    assert np.linalg.norm(found - expected) < 0.5 * np.linalg.norm(found - other)


def test_t_polarity_is_that_of_the_recipe():
    found = measure_ecg(record(default_heart("lbbb"), rng_of(3))[0], 500.0)
    polarity = dict(zip(LEADS, found.t_polarity, strict=True))
    assert (polarity["I"], polarity["V6"], polarity["V1"], polarity["V2"]) == (-1, -1, 1, 1)
    flat = replace(default_heart(), leads_mv=default_heart().leads_mv.copy())
    flat.leads_mv[0, flat.kind == "T"] *= 0.1
    assert measure_ecg(record(flat, rng_of(3))[0], 500.0).t_polarity[0] == 0


def test_a_turned_heart_turns_the_axis(normal):
    _, ecg, r_s = normal
    turned = ecg.copy()
    # Mirrored in lead I: an axis of a becomes 180 - a.
    turned[0], turned[1] = -ecg[0], ecg[2]
    turned[2] = turned[1] - turned[0]
    turned[3:6] = -(turned[0] + turned[1]) / 2, turned[0] - turned[1] / 2, turned[1] - turned[0] / 2
    before, after = (delineate(median_beat(x, 500.0, r_s)) for x in (ecg, turned))
    assert after.qrs_axis_deg == pytest.approx(180 - before.qrs_axis_deg, abs=2)


def test_an_axis_is_left_out_where_the_net_area_is_small(normal):
    _, ecg, r_s = normal
    small = ecg.copy()
    small[:6] *= 0.05
    found = delineate(median_beat(small, 500.0, r_s))
    assert np.isnan(found.qrs_axis_deg)
    assert "QRS axis" in found.missing


# --- Properties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [0.5, 3.0, -1.0])
def test_gain_and_sign_change_amplitudes_and_no_times(normal, gain):
    _, ecg, r_s = normal
    one, other = (delineate(median_beat(x, 500.0, r_s)) for x in (ecg, gain * ecg))
    np.testing.assert_allclose(marks_s(other), marks_s(one), atol=1e-6)
    np.testing.assert_allclose(other.st_mv, gain * one.st_mv, atol=1e-9)
    np.testing.assert_allclose(other.t_mv, gain * one.t_mv, atol=1e-9)


def test_a_shift_in_time_changes_nothing(normal):
    _, ecg, _ = normal
    one, other = measure_ecg(ecg[:, :-500], 500.0), measure_ecg(np.roll(ecg, 137, axis=1)[:, 137:-363], 500.0)
    np.testing.assert_allclose(marks_s(other), marks_s(one), atol=1e-9)
    np.testing.assert_allclose(intervals_ms(measure_ecg(ecg[:, 300:], 500.0)), intervals_ms(one), atol=3.0)


def test_eight_leads_measure_as_twelve(normal):
    _, ecg, _ = normal
    twelve, eight = measure_ecg(ecg, 500.0), measure_ecg(ecg[INDEPENDENT_INDEX], 500.0)
    np.testing.assert_allclose(marks_s(eight), marks_s(twelve), atol=1e-9)
    np.testing.assert_allclose(eight.r_mv, twelve.r_mv, atol=1e-9)


def test_amplitudes_of_twelve_leads_obey_the_lead_laws(normal):
    st_mv = delineate(median_beat(normal[1], 500.0)).st_mv
    np.testing.assert_allclose(law_residuals(st_mv[:, None]), 0.0, atol=1e-12)


def test_times_do_not_depend_on_the_order_of_precordial_leads(normal):
    _, ecg, r_s = normal
    one = delineate(median_beat(ecg, 500.0, r_s))
    other = delineate(median_beat(ecg[[0, 1, 2, 3, 4, 5, 11, 10, 9, 8, 7, 6]], 500.0, r_s))
    np.testing.assert_allclose(marks_s(other), marks_s(one), atol=1e-9)
    np.testing.assert_allclose(other.r_mv[6:], one.r_mv[:5:-1], atol=1e-9)


def test_offset_and_drift_change_little(normal):
    _, ecg, r_s = normal
    time_s = np.arange(ecg.shape[1]) / 500.0
    drifting = ecg + 5.0 + 0.4 * np.sin(2 * np.pi * 0.25 * time_s) + 0.02 * time_s
    one, other = (delineate(median_beat(x, 500.0, r_s)) for x in (ecg, drifting))
    np.testing.assert_allclose(intervals_ms(other), intervals_ms(one), atol=4.0)
    np.testing.assert_allclose(other.st_mv, one.st_mv, atol=0.03)


def test_rough_r_peaks_are_put_right(normal):
    _, ecg, r_s = normal
    rough = r_s + 0.005 * rng_of(5).uniform(-1, 1, r_s.size)
    one, other = (delineate(median_beat(ecg, 500.0, x)) for x in (r_s, rough))
    np.testing.assert_allclose(intervals_ms(other), intervals_ms(one), atol=1.5)


def test_the_median_beat_is_the_beat(normal):
    heart, ecg, r_s = normal
    beat = median_beat(ecg, 500.0, r_s)
    time_s = (np.arange(beat.ecg_mv.shape[1]) - beat.r_sample) / WORK_HZ
    near = np.abs(time_s) < 0.35
    rest = beat.ecg_mv - heart.wave("PQT", time_s)
    rest -= np.median(rest[:, near], axis=1, keepdims=True)
    assert np.abs(rest[:, near]).max() < 0.03
    assert time_s[0] <= -0.4
    assert time_s[-1] >= 0.6


def test_premature_wide_beats_are_left_out(normal):
    heart, _, _ = normal
    wide = default_heart("lbbb")
    rng = rng_of(7)
    ecg, r_s = record(heart, rng)
    time_s = np.arange(ecg.shape[1]) / 500.0
    spoilt = ecg.copy()
    for k in (2, 6):
        spoilt[INDEPENDENT_INDEX] += 1.5 * wide.wave("QT", time_s - r_s[k] - 0.45)
    beats_s = np.sort(np.append(r_s, r_s[[2, 6]] + 0.45))
    clean, found = median_beat(ecg, 500.0, r_s), median_beat(spoilt, 500.0, beats_s)
    assert found.left_out == 2
    assert clean.left_out == 0
    np.testing.assert_allclose(intervals_ms(delineate(found)), intervals_ms(delineate(clean)), atol=4.0)


def test_the_neighbouring_beats_stay_out_at_a_fast_rate():
    beat = median_beat(*(lambda ecg, r_s: (ecg, 500.0, r_s))(*record(default_heart(rr_s=0.42), rng_of(8))))
    size = np.linalg.norm(beat.ecg_mv, axis=0)
    r = beat.r_sample
    outside = np.concatenate([size[: r - 60], size[r + 60 :]])
    assert outside.max() < 0.5 * size[r - 20 : r + 30].max()


# --- Failures ---------------------------------------------------------------------------------------------------------


def assert_nothing(found, names=("QRS", "P", "T")):
    for name in names:
        assert found.missing[name]
    assert np.isnan(intervals_ms(found)).all()


@pytest.mark.parametrize("seed", range(6))
def test_noise_has_no_waves(seed):
    assert_nothing(measure_ecg(0.1 * rng_of(seed).standard_normal((12, 5000)), 500.0))


def test_coloured_noise_has_no_waves():
    noise = np.cumsum(0.05 * rng_of(1).standard_normal((12, 5000)), axis=1)
    assert_nothing(measure_ecg(noise, 500.0))


@pytest.mark.parametrize("value", [0.0, 2.5, np.nan])
def test_flat_or_empty_leads_have_no_waves(value):
    assert_nothing(measure_ecg(np.full((12, 5000), value), 500.0))
    assert_nothing(measure_ecg(np.zeros((12, 0)), 500.0))


def test_one_beat_gives_intervals_and_no_rate(normal):
    heart, ecg, r_s = normal
    part = slice(round((r_s[3] - 0.6) * 500), round((r_s[3] + 0.9) * 500))
    found = delineate(median_beat(ecg[:, part], 500.0, np.array([0.6])))
    np.testing.assert_allclose(intervals_ms(found)[1], heart.intervals_ms()[1], atol=5.0)
    assert found.missing["RR"]
    assert np.isnan(found.qtcf_ms)
    assert found.kept == 1


def test_atrial_fibrillation_has_no_p():
    for seed in range(8):
        rng = rng_of(seed)
        found = measure_ecg(record(default_heart("af", 0.7), rng, irregular=0.2, f_wave_mv=0.04)[0], 500.0)
        assert found.missing["P"]
        assert np.isnan(found.pr_ms)
        assert np.isnan(found.p_mv).all()
        assert found.qrs_ms == pytest.approx(default_heart("af").intervals_ms()[1], abs=8.0)


def test_a_flat_t_is_told(normal):
    heart, _, _ = normal
    flat = replace(heart, leads_mv=np.where(heart.kind == "T", 0.0, heart.leads_mv))
    found = measure_ecg(record(flat, rng_of(9))[0], 500.0)
    assert found.missing["T"]
    assert np.isnan(found.qt_ms)
    assert np.isfinite(found.qrs_ms)


def test_a_missing_lead_is_left_out_and_follows_where_it_can(normal):
    heart, ecg, r_s = normal
    without = ecg.copy()
    without[[0, 9]] = np.nan
    found = delineate(median_beat(without, 500.0, r_s))
    # Lead I follows from II and III; V4 from nothing.
    assert found.r_mv[0] == pytest.approx(delineate(median_beat(ecg, 500.0, r_s)).r_mv[0], abs=0.01)
    assert np.isnan(found.r_mv[9])
    assert np.isfinite(np.delete(found.r_mv, 9)).all()
    assert "transition" in found.missing
    np.testing.assert_allclose(intervals_ms(found), heart.intervals_ms(), atol=4.0)


def test_a_gap_in_every_lead_costs_only_its_beats(normal):
    heart, ecg, _ = normal
    gap = ecg.copy()
    gap[:, 2000:2500] = np.nan
    np.testing.assert_allclose(intervals_ms(measure_ecg(gap, 500.0)), heart.intervals_ms(), atol=4.0)


@pytest.mark.parametrize(("shape", "fs_hz"), [((3, 5000), 500), ((5000,), 500), ((12, 5000), 50), ((12, 9), np.nan)])
def test_what_is_no_ecg_is_refused(shape, fs_hz):
    with pytest.raises(InputError, match="give"):
        measure_ecg(np.zeros(shape), fs_hz)


# --- Real recordings --------------------------------------------------------------------------------------------------


def marked_beats(name, wfdb):
    """Give, for each of the 8 leads of a LUDB record, {kind: [(onset, peak, offset), ...]} in samples."""
    leads = []
    for lead in INDEPENDENT:
        marks = wfdb.rdann(name, lead.lower())
        found = {"p": [], "N": [], "t": []}
        for k, kind in enumerate(marks.symbol):
            if kind in found and 0 < k < len(marks.symbol) - 1:
                onset = marks.sample[k - 1] if marks.symbol[k - 1] == "(" else np.nan
                offset = marks.sample[k + 1] if marks.symbol[k + 1] == ")" else np.nan
                found[kind].append((onset, marks.sample[k], offset))
        leads.append({kind: np.array(rows, float).reshape(-1, 3) for kind, rows in found.items()})
    return leads


def global_marks_s(leads, r_s):
    """Give P on, P off, QRS on, QRS off, T off (5,) in s from R: medians over beats, of the second outermost lead.

    The second earliest and second latest of the 8 leads, because the outermost is that of one doubtful lead.
    """
    rows = []
    for r in r_s * 500:
        row = []
        windows = {"p": (-0.35, -0.05), "N": (-0.12, 0.12), "t": (0.1, 0.6)}
        for kind, column in (("p", 0), ("p", 2), ("N", 0), ("N", 2), ("t", 2)):
            first, last = (r + x * 500 for x in windows[kind])
            times = [
                rows_of[near][np.argmin(np.abs(rows_of[near, 1] - (first + last) / 2)), column]
                for rows_of in (lead[kind] for lead in leads)
                if (near := (rows_of[:, 1] > first) & (rows_of[:, 1] < last)).any()
            ]
            times = np.sort(np.array(times)[np.isfinite(times)])
            row.append((times[1] if column == 0 else times[-2]) - r if times.size >= 4 else np.nan)
        rows.append(row)
    rows = np.array(rows)
    enough = np.isfinite(rows).sum(axis=0) >= 2
    return np.where(enough, np.nanmedian(np.where(enough, rows, 0.0), axis=0), np.nan) / 500


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")
def test_marks_of_ludb_spread_no_more_than_cardiologists_do(recordings):
    import wfdb

    errors, alike = [], 0
    for k in range(1, 81):
        name = str(recordings / "ludb" / "data" / str(k))
        steps = wfdb.rdrecord(name, physical=False).d_signal.T.astype(float)
        # The header's gains normalise each lead on its own; the steps are microvolt and obey the lead laws.
        ecg_mv = (steps - np.median(steps, axis=1, keepdims=True)) / 1000
        r_s = r_peaks(ecg_mv, 500.0)
        marked = global_marks_s(marked_beats(name, wfdb), r_s[1:-1])
        found = delineate(median_beat(ecg_mv, 500.0, r_s))
        alike += np.isfinite(marked[0]) == np.isfinite(found.p_on_s)
        errors.append(1000 * (marks_s(found) - marked))
    errors = np.array(errors)
    middle = np.nanmedian(errors, axis=0)
    spread = 1.4826 * np.nanmedian(np.abs(errors - middle), axis=0)
    # P on, P off, QRS on, QRS off, T off: what CSE allows (clinical.md, 4.1).
    assert (spread <= [10.2, 12.7, 6.5, 11.6, 30.6]).all(), spread
    # The plain SD of P on and QRS on is larger: two P of 70 are another bump, and a pacemaker's spike counts as QRS.
    assert (np.nanstd(errors, axis=0)[3:] <= [11.6, 30.6]).all()
    # Cardiologists mark QRS wider than 5 % of its magnitude, P and T about alike.
    assert (np.abs(middle - [6.0, -5.0, 18.0, -15.0, 3.0]) <= 5.0).all(), middle
    assert alike >= 73
