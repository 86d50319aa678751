from dataclasses import fields

import numpy as np
import pytest
from gaussian_hearts import default_heart, record

from p2es.beats import PAUSE, PREMATURE
from p2es.beatwise import CUT, BeatMarks, delineate_beats
from p2es.delineation import dominant_shape, measure_ecg
from p2es.errors import InputError
from p2es.evaluation.beat_marks import (
    ABSENT,
    CSE_SD_MS,
    CUT_OFF,
    FAILED,
    FOUND,
    INTERVALS,
    MARKS,
    errors_of,
    summarise_beats,
)
from p2es.evaluation.delineator_check import LUDB_MEASURED, true_beats
from p2es.evaluation.marked_beats import beats_of_lead, global_marks
from p2es.filters import stored_ecg
from p2es.leads import INDEPENDENT, INDEPENDENT_INDEX, lift
from p2es.simulator import simulate

FS_HZ = 500.0
TIMES = ("p_on_s", "p_peak_s", "p_off_s", "qrs_on_s", "qrs_off_s", "t_peak_s", "t_off_s")


def rng_of(seed):
    return np.random.default_rng(seed)


def person(index, rhythm="sinus", seed=11, **options):
    options = {"morphologies": (), "noise": False, "sensor": "lab-clip", "ecg_fs_hz": FS_HZ} | options
    one = simulate(seed, index, 10.0, rhythm=rhythm, **options)
    return one, np.stack([signal.read() for signal in one.recording.signals[:12]]).astype(np.float64)


def table(found):
    """Give all times as (beat, mark)."""
    return np.stack([getattr(found, name) for name in TIMES], axis=1)


def intervals_ms(found):
    return np.stack([found.pr_ms, found.qrs_ms, found.qt_ms], axis=1)


def with_noise(ecg, rng, noise_uv):
    return ecg + lift(1e-3 * noise_uv * rng.standard_normal((8, ecg.shape[1])))


def planted(ecg, r_s, at_s, morphology="lbbb", scale=1.5):
    """Give the ECG with a wide beat added at a time (only QRS and T), and the R peaks with it."""
    time_s = np.arange(ecg.shape[1]) / FS_HZ
    spoilt = ecg.copy()
    spoilt += lift(scale * default_heart(morphology).wave("QT", time_s - at_s))
    return spoilt, np.sort(np.append(r_s, at_s))


@pytest.fixture(scope="module")
def normal():
    heart = default_heart()
    return heart, *record(heart, rng_of(1))


# --- The oracle -------------------------------------------------------------------------------------------------------


def summary(noise_uv, *, stored, people=8, rhythm="sinus"):
    rng, errors = rng_of(2), []
    for index in range(people):
        one, ecg = person(index, rhythm)
        ecg, fs_hz = with_noise(ecg, rng, noise_uv), FS_HZ
        if stored:
            ecg, fs_hz = stored_ecg(ecg, FS_HZ, 0.0, 0, 1280), 128.0
        # The detector of R peaks is judged elsewhere.
        found = delineate_beats(ecg, fs_hz, np.asarray(one.truth.beats.r_s))
        errors.append(errors_of(found, true_beats(one), duration_s=10.0))
    return summarise_beats(errors, bootstrap=50)


# SD of PR, QRS and QT in ms. In the stored band the high-pass moves the end of T; the noise is that of the median beat.
@pytest.mark.parametrize(
    ("noise_uv", "stored", "limits"),
    [
        (0, False, (3.0, 3.0, 3.0)),
        (20, False, (3.0, 3.0, 4.0)),
        (50, False, (9.0, 3.0, 9.0)),
        (0, True, (3.0, 3.0, 6.0)),
        (20, True, (7.0, 3.0, 6.0)),
    ],
)
def test_every_beat_has_the_intervals_of_the_formulas(noise_uv, stored, limits):
    found = summary(noise_uv, stored=stored)
    assert found["beats"] > 80
    assert found["false_beats"] == 0
    for name, limit in zip(INTERVALS, limits, strict=True):
        assert found[name]["sd_ms"] <= limit, (name, found[name])
        assert abs(found[name]["bias_ms"]) <= max(limit, 3.0), (name, found[name])
        # From beat to beat of one person it is finer than from person to person.
        assert found[name]["within_sd_ms"] <= 2.0, (name, found[name])
        assert found[name]["failures"] == 0.0, (name, found[name])


def test_changes_from_beat_to_beat_are_seen_and_not_the_median_for_all():
    one, ecg = person(3, "sinus_arrhythmia")
    found, true = delineate_beats(ecg, FS_HZ), one.truth.beats
    mine, theirs = found.qt_ms[1:-1], 1e3 * (true.t_off_s - true.qrs_on_s)[1:-1]
    assert theirs.std() > 1.0
    np.testing.assert_allclose(mine - mine.mean(), theirs - theirs.mean(), atol=1.5)
    mine, theirs = found.pr_ms[1:-1], 1e3 * (true.qrs_on_s - true.p_on_s)[1:-1]
    assert theirs.std() > 2.0
    np.testing.assert_allclose(mine - mine.mean(), theirs - theirs.mean(), atol=1.5)


def test_the_beats_are_about_what_the_median_beat_is(normal):
    heart, ecg, r_s = normal
    found = delineate_beats(ecg, FS_HZ, r_s)
    np.testing.assert_allclose(found.r_s, r_s)
    one = measure_ecg(ecg, FS_HZ)
    np.testing.assert_allclose(np.nanmedian(intervals_ms(found), axis=0), (one.pr_ms, one.qrs_ms, one.qt_ms), atol=2.0)
    inner = intervals_ms(found)[1:-1]
    np.testing.assert_allclose(inner, np.tile(heart.intervals_ms(), (len(inner), 1)), atol=5.0)
    assert found.dominant.all()
    assert not found.premature.any()
    assert not found.pause.any()


# --- Properties -------------------------------------------------------------------------------------------------------


def test_a_shift_in_time_moves_all_marks_by_as_much(normal):
    _, ecg, r_s = normal
    one = delineate_beats(ecg[:, :-500], FS_HZ, r_s[r_s < 8.5])
    other = delineate_beats(np.roll(ecg, 137, axis=1)[:, :-500], FS_HZ, r_s[r_s < 8.5] + 137 / FS_HZ)
    inner = slice(2, -2)
    np.testing.assert_allclose(table(other)[inner], table(one)[inner] + 137 / FS_HZ, atol=1e-3)


@pytest.mark.parametrize("gain", [0.5, 3.0, -1.0])
def test_gain_and_sign_change_no_times(normal, gain):
    _, ecg, r_s = normal
    one, other = (delineate_beats(x, FS_HZ, r_s) for x in (ecg, gain * ecg))
    np.testing.assert_allclose(table(other), table(one), atol=1e-6)


def test_eight_leads_measure_as_twelve_and_their_order_as_named(normal):
    _, ecg, r_s = normal
    one, other = (delineate_beats(x, FS_HZ, r_s) for x in (ecg, ecg[INDEPENDENT_INDEX]))
    np.testing.assert_allclose(table(other), table(one), atol=1e-9)


def test_offset_and_drift_change_little(normal):
    _, ecg, r_s = normal
    time_s = np.arange(ecg.shape[1]) / FS_HZ
    drifting = ecg + 5.0 + 0.4 * np.sin(2 * np.pi * 0.25 * time_s) + 0.02 * time_s
    one, other = (delineate_beats(x, FS_HZ, r_s) for x in (ecg, drifting))
    np.testing.assert_allclose(intervals_ms(other)[1:-1], intervals_ms(one)[1:-1], atol=8.0)


def test_rough_r_peaks_are_put_right(normal):
    _, ecg, r_s = normal
    rough = r_s + 0.003 * rng_of(5).uniform(-1, 1, r_s.size)
    one, other = (delineate_beats(ecg, FS_HZ, x) for x in (r_s, rough))
    np.testing.assert_allclose(table(other), table(one), atol=2e-3)
    np.testing.assert_allclose(other.r_s, rough)


def test_noise_degrades_gracefully():
    one, ecg = person(2)
    spread = []
    for noise_uv in (5, 20, 60, 200):
        found = delineate_beats(with_noise(ecg, rng_of(3), noise_uv), FS_HZ, np.asarray(one.truth.beats.r_s))
        errors = errors_of(found, true_beats(one), duration_s=10.0)
        assert all(missing.keys() <= {"P", "QRS", "T", "RR"} for missing in found.missing)
        mine = np.stack([errors.error_ms[name] for name in ("qrs_on", "t_peak")])
        spread.append(np.nanstd(mine, axis=1) if np.isfinite(mine).any() else np.full(2, np.nan))
        for name, wave in (("p_on_s", "P"), ("qrs_on_s", "QRS"), ("t_off_s", "T")):
            lacking = np.isnan(getattr(found, name))
            np.testing.assert_array_equal(lacking, [wave in missing for missing in found.missing])
    # 200 uV are more than its median beat bears: nothing is found, with a reason.
    assert np.isnan(spread.pop()).all()
    spread = np.array(spread)
    assert (np.diff(spread, axis=0) > 0).all(), spread
    assert (spread[-1] < [4.0, 10.0]).all(), spread


# --- Beats of another shape, early and late ---------------------------------------------------------------------------


def test_a_planted_wide_beat_is_found_measured_and_disturbs_no_neighbour(normal):
    _, ecg, r_s = normal
    at_s = r_s[4] + 0.48
    spoilt, beats_s = planted(ecg, r_s, at_s)
    clean, found = delineate_beats(ecg, FS_HZ, r_s), delineate_beats(spoilt, FS_HZ)
    np.testing.assert_allclose(found.r_s, beats_s, atol=0.06)
    np.testing.assert_array_equal(found.dominant, beats_s != at_s)
    # It is interpolated: the interval after it is short too.
    k = int(np.flatnonzero(beats_s == at_s)[0])
    np.testing.assert_array_equal(np.flatnonzero(found.premature), [k, k + 1])
    odd = int(np.argmin(found.dominant))
    on, off = default_heart("lbbb").marks()["Q"]
    assert found.qrs_on_s[odd] == pytest.approx(at_s + on, abs=0.012)
    assert found.qrs_off_s[odd] == pytest.approx(at_s + off, abs=0.012)
    assert found.t_off_s[odd] == pytest.approx(at_s + default_heart("lbbb").marks()["T"][1], abs=0.03)
    assert np.isnan(found.pr_ms[odd])
    assert "another shape" in found.missing[odd]["P"]
    others = np.delete(table(found), odd, axis=0)
    np.testing.assert_allclose(np.delete(others, 5, axis=0), np.delete(table(clean), 5, axis=0), atol=4e-3)
    # The P of the next beat is under the T of this one: found within a little, or given up with a reason.
    np.testing.assert_allclose(others[5, 3:5], table(clean)[5, 3:5], atol=4e-3)


def test_early_and_late_beats_are_told_by_the_interval_before(normal):
    _, ecg, r_s = normal
    without = np.delete(r_s, 5)
    found = delineate_beats(ecg, FS_HZ, without)
    np.testing.assert_array_equal(np.flatnonzero(found.pause), [5])
    assert not found.premature.any()
    np.testing.assert_allclose(found.rr_s[1:], np.diff(without))
    assert np.isnan(found.rr_s[0])
    assert found.missing[0]["RR"]
    early = np.sort(np.append(r_s, r_s[5] + 0.8 * PREMATURE * np.median(np.diff(r_s))))
    assert delineate_beats(ecg, FS_HZ, early).premature[6]
    assert PREMATURE < 1.0 < PAUSE


def test_bigeminy_does_not_lend_the_wide_beat_to_the_others_t():
    errors = []
    for index in range(4):
        one, ecg = person(index, "premature_ventricular", seed=5)
        found = delineate_beats(ecg, FS_HZ, np.asarray(one.truth.beats.r_s))
        errors.append(errors_of(found, true_beats(one), duration_s=10.0))
        # Where half of the beats are wide, the wide ones may be the usual.
        usual = one.truth.beats.kind == one.truth.beats.kind[found.dominant][0]
        np.testing.assert_array_equal(found.dominant, usual)
    found = summarise_beats(errors, bootstrap=20)
    assert found["qrs_on"]["sd_ms"] < 3.0
    assert found["qrs_off"]["sd_ms"] < 12.0
    assert found["t_off"]["sd_ms"] < 20.0


def test_dominant_shape_is_of_all_the_peaks_that_are_given(normal):
    _, ecg, r_s = normal
    spoilt, beats_s = planted(ecg, r_s, r_s[4] + 0.48)
    np.testing.assert_array_equal(dominant_shape(spoilt, FS_HZ, beats_s), beats_s != r_s[4] + 0.48)
    outside = np.concatenate([[-0.5], r_s, [10.5]])
    np.testing.assert_array_equal(dominant_shape(ecg, FS_HZ, outside), np.isin(outside, r_s))
    assert dominant_shape(ecg, FS_HZ, np.zeros(0)).shape == (0,)
    with pytest.raises(InputError, match="give"):
        dominant_shape(ecg[:3], FS_HZ, r_s)


# --- Ends of the window, and nothing ----------------------------------------------------------------------------------


def test_waves_beyond_the_ends_are_cut_and_no_failures(normal):
    _, ecg, r_s = normal
    first, last = round((r_s[2] - 0.08) * FS_HZ), round((r_s[7] + 0.15) * FS_HZ)
    whole = delineate_beats(ecg, FS_HZ, r_s)
    found = delineate_beats(ecg[:, first:last], FS_HZ, r_s[2:8] - first / FS_HZ)
    assert found.missing[0]["P"] == CUT
    assert found.missing[-1]["T"] == CUT
    np.testing.assert_array_equal(found.cut("P"), [True, *[False] * 5])
    np.testing.assert_array_equal(found.cut("T"), [*[False] * 5, True])
    assert not found.cut("QRS").any()
    assert np.isnan(found.p_on_s[0])
    assert np.isnan(found.t_off_s[-1])
    np.testing.assert_allclose(found.qrs_on_s, whole.qrs_on_s[2:8] - first / FS_HZ, atol=2e-3)
    within = table(found)[1:-1]
    assert ((within >= 0) & (within <= (last - first) / FS_HZ)).all()


def test_a_qrs_at_the_very_end_is_cut(normal):
    _, ecg, r_s = normal
    found = delineate_beats(ecg[:, : round(r_s[7] * FS_HZ) + 3], FS_HZ, r_s[:8])
    assert found.missing[7]["QRS"] == CUT
    assert found.missing[7]["T"] == CUT
    assert np.isnan(found.qrs_ms[7])


@pytest.mark.parametrize("value", [0.0, 2.5, np.nan])
def test_flat_or_empty_leads_have_no_beats(value):
    for length in (5000, 0):
        found = delineate_beats(np.full((12, length), value), FS_HZ)
        assert all(len(getattr(found, field.name)) == 0 for field in fields(BeatMarks))


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_peaks_where_nothing_is_recorded_have_reasons(value):
    found = delineate_beats(np.full((12, 5000), value), FS_HZ, np.arange(1.0, 9.0))
    assert np.isnan(table(found)).all()
    assert all({"P", "QRS", "T"} <= missing.keys() for missing in found.missing)
    assert all(all(missing.values()) for missing in found.missing)


@pytest.mark.parametrize("seed", range(3))
def test_noise_has_no_waves(seed):
    found = delineate_beats(0.1 * rng_of(seed).standard_normal((12, 5000)), FS_HZ)
    assert np.isnan(table(found)).all()


def test_one_beat_is_measured_and_has_no_interval(normal):
    heart, ecg, r_s = normal
    part = slice(round((r_s[3] - 0.6) * FS_HZ), round((r_s[3] + 0.9) * FS_HZ))
    found = delineate_beats(ecg[:, part], FS_HZ, np.array([0.6]))
    assert found.qrs_ms[0] == pytest.approx(heart.intervals_ms()[1], abs=5.0)
    assert found.missing[0]["RR"]


def test_a_gap_costs_only_its_beats(normal):
    heart, ecg, _ = normal
    gap = ecg.copy()
    gap[:, 2000:2500] = np.nan
    found = delineate_beats(gap, FS_HZ)
    away = (np.abs(found.r_s - 4.5) > 1.3) & np.isfinite(found.pr_ms + found.qt_ms)
    assert np.count_nonzero(away) >= 4
    expected = np.tile(heart.intervals_ms(), (np.count_nonzero(away), 1))
    np.testing.assert_allclose(intervals_ms(found)[away], expected, atol=6.0)


def test_fibrillation_has_no_p_in_any_beat():
    ecg = record(default_heart("af", 0.7), rng_of(3), irregular=0.2, f_wave_mv=0.04)[0]
    found = delineate_beats(ecg, FS_HZ)
    assert found.r_s.size > 9
    assert np.isnan(found.p_on_s).all()
    assert all(missing["P"] for missing in found.missing)
    np.testing.assert_allclose(found.qrs_ms[1:-1], default_heart("af").intervals_ms()[1], atol=10.0)


@pytest.mark.parametrize(("shape", "fs_hz"), [((3, 5000), 500), ((5000,), 500), ((12, 5000), 50), ((12, 9), np.nan)])
def test_what_is_no_ecg_is_refused(shape, fs_hz):
    with pytest.raises(InputError, match="give"):
        delineate_beats(np.zeros(shape), fs_hz)


# --- Held against marks -----------------------------------------------------------------------------------------------


def marks_of(r_s, **changes):
    """Give beats marked at fixed distances from R."""
    r_s = np.asarray(r_s, np.float64)
    at = {
        "p_on": -0.17,
        "p_peak": -0.12,
        "p_off": -0.07,
        "qrs_on": -0.04,
        "qrs_off": 0.05,
        "t_peak": 0.25,
        "t_off": 0.33,
    }
    seconds = {f"{name}_s": r_s + value for name, value in at.items()} | changes
    n, no = r_s.size, np.zeros(r_s.size, bool)
    missing = tuple({} for _ in range(n))
    rr_s = np.diff(r_s, prepend=np.nan)
    whole = {"r_s": r_s, "rr_s": rr_s, "dominant": ~no, "premature": no, "pause": no, "missing": missing} | seconds
    return BeatMarks(**whole)


def true_of(marks):
    return {"r": marks.r_s} | {name: getattr(marks, f"{name}_s") for name in MARKS}


def test_failures_and_cuts_are_counted_and_nothing_is_dropped():
    true = true_of(marks_of([1.0, 2.0, 3.0, 4.0]))
    true["p_on"] = np.array([0.83, 1.83, 2.83, np.nan])
    # The third beat is not found, one is found that is none; the first has no P, the second's T is cut.
    late = np.array([1.01, 2.01, 3.51, 4.01])
    found = marks_of(late, p_on_s=np.array([np.nan, 1.84, 3.34, 3.84]), t_off_s=np.array([1.34, np.nan, 3.84, 4.34]))
    found = BeatMarks(
        **{field.name: getattr(found, field.name) for field in fields(found)}
        | {"missing": ({"P": "nothing"}, {"T": CUT}, {}, {})}
    )
    errors = errors_of(found, true, duration_s=5.0)
    assert errors.status["p_on"].tolist() == [FAILED, FOUND, FAILED, ABSENT]
    assert errors.status["t_off"].tolist() == [FOUND, CUT_OFF, FAILED, FOUND]
    assert errors.status["qt_ms"].tolist() == [FOUND, CUT_OFF, FAILED, FOUND]
    assert errors.false_beats == 1
    assert errors.dominant.tolist() == [True, True, False, True]
    np.testing.assert_allclose(errors.error_ms["qrs_on"], [10.0, 10.0, np.nan, 10.0], atol=1e-9)
    np.testing.assert_allclose(errors.error_ms["qrs_ms"], [0.0, 0.0, np.nan, 0.0], atol=1e-9)
    summed = summarise_beats([errors], bootstrap=10)
    assert summed["p_on"]["marked"] == 3
    assert summed["p_on"]["failures"] == pytest.approx(2 / 3)
    assert summed["t_off"]["cut"] == 1
    assert summed["t_off"]["failures"] == pytest.approx(1 / 3)
    assert summed["p_on"]["sd_ms"] is None


def test_the_spread_is_that_of_its_closed_form():
    rng, people = rng_of(7), []
    for offset in (-8.0, 0.0, 8.0):
        true = marks_of(np.arange(1.0, 401.0))
        shift = 1e-3 * (offset + 2.0 * rng.standard_normal(400))
        people.append(errors_of(marks_of(true.r_s, qrs_on_s=true.qrs_on_s + shift), true_of(true)))
    figure = summarise_beats(people)["qrs_on"]
    assert figure["bias_ms"] == pytest.approx(0.0, abs=0.3)
    assert figure["within_sd_ms"] == pytest.approx(2.0, rel=0.05)
    assert figure["sd_ms"] == pytest.approx(np.sqrt(2 / 3 * 64 + 4), rel=0.03)
    assert figure["low_ms"] < figure["sd_ms"] < figure["high_ms"] + 0.1
    assert summarise_beats(people) == summarise_beats(people)


def test_no_people_have_no_figures():
    found = summarise_beats([])
    assert found["beats"] == 0
    assert found["pr_ms"]["sd_ms"] is None
    assert found["pr_ms"]["failures"] is None


def lead_of(*waves):
    """Give samples and symbols of (symbol, onset, peak, end) waves; None where an end is not marked."""
    rows = []
    for symbol, on, peak, off in waves:
        rows += [(on, "(")] if on is not None else []
        rows += [(peak, symbol)]
        rows += [(off, ")")] if off is not None else []
    return [row[0] for row in rows], [row[1] for row in rows]


def test_a_lead_of_marks_is_read_wave_by_wave():
    samples, symbols = lead_of(
        ("t", 20, 40, 60), ("p", 100, 120, 140), ("N", 150, 170, 200), ("t", None, 300, 340), ("N", 650, 670, None)
    )
    one, other = beats_of_lead(samples, symbols, 500.0)
    assert one["p"] == pytest.approx((0.2, 0.24, 0.28))
    assert one["qrs"] == pytest.approx((0.3, 0.34, 0.4))
    assert one["t"][1:] == pytest.approx((0.6, 0.68))
    assert np.isnan(one["t"][0])
    assert set(other) == {"qrs"}
    assert np.isnan(other["qrs"][2])


def test_global_marks_leave_the_one_outermost_lead_out():
    leads = []
    for k in range(8):
        samples, symbols = lead_of(
            ("p", 60 + k, 80, 95), ("N", 100 + k, 120 + k, 150 + k), ("t", 200, 240, 300 - 9 * k)
        )
        leads.append(beats_of_lead(samples, symbols, 500.0))
    leads[7] = []
    marks = global_marks(leads)
    assert marks["r"] == pytest.approx([123 / 500])
    assert marks["qrs_on"] == pytest.approx([101 / 500])
    assert marks["qrs_off"] == pytest.approx([155 / 500])
    assert marks["t_off"] == pytest.approx([291 / 500])
    assert marks["p_leads"].tolist() == [7]
    few = global_marks([*leads[:3], [], [], [], [], []])
    assert few["r"].size == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")
def test_marks_of_every_beat_of_ludb_are_what_the_report_says(recordings):
    import wfdb

    errors = []
    for k in range(1, 81):
        name = str(recordings / "ludb" / "data" / str(k))
        steps = wfdb.rdrecord(name, physical=False).d_signal.T.astype(float)
        marks = [wfdb.rdann(name, lead.lower()) for lead in INDEPENDENT]
        true_s = global_marks([beats_of_lead(lead.sample.tolist(), lead.symbol, FS_HZ) for lead in marks])
        found = delineate_beats((steps - np.median(steps, axis=1, keepdims=True)) / 1000, FS_HZ)
        errors.append(errors_of(found, true_s))
    summed = summarise_beats(errors)
    assert (summed["beats"], summed["false_beats"]) == (LUDB_MEASURED["beats"], LUDB_MEASURED["false_beats"])
    for name in (*MARKS, *INTERVALS):
        for figure, value in LUDB_MEASURED[name].items():
            assert summed[name][figure] == pytest.approx(value, abs=0.2), (name, figure)
    # The middle of them spreads no more than cardiologists do; of the plain SD that holds for QRS off and T off.
    for name, limit in CSE_SD_MS.items():
        assert summed[name]["robust_sd_ms"] <= limit, name
    for name in ("qrs_off", "t_off"):
        assert summed[name]["sd_ms"] <= CSE_SD_MS[name], name
    assert all(summed[name]["failures"] < 0.06 for name in MARKS)
