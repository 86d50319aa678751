import json

import numpy as np
import pyarrow as pa
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from windowed import batch_of_ecgs, drawn

from p2es.errors import DatasetError
from p2es.evaluation.beats import constant_lag, f1_score, interval_error_s, match
from p2es.evaluation.controls import other_person
from p2es.evaluation.measure import ROW_SCHEMA, measure
from p2es.evaluation.metrics import METRICS
from p2es.evaluation.probabilistic import fair_crps
from p2es.evaluation.report import Source, compose
from p2es.evaluation.summary import summarise
from p2es.evaluation.waveform import correlations
from p2es.leads import LEADS, lift
from p2es.windows import ECG_SAMPLES, FS_HZ

GAINS = np.array([0.8, 1.2, -0.6, -0.3, 0.7, 1.5, 1.4, 1.0])


def irregular_beats(rng, mean_s=0.85, duration_s=10.0):
    return np.cumsum(rng.uniform(0.75, 1.25, 40) * mean_s)[: int(duration_s / mean_s) + 3] - mean_s / 2


def ecg_of(beats_s, gain=1.0):
    t = np.arange(ECG_SAMPLES) / FS_HZ
    wave = sum(
        np.exp(-(((t - b) / 0.012) ** 2)) - 0.25 * np.exp(-(((t - b - 0.03) / 0.012) ** 2))
        + 0.25 * np.exp(-(((t - b - 0.28) / 0.05) ** 2))
        for b in beats_s
    )  # fmt: skip
    return (gain * lift(GAINS[:, None] * wave)).astype(np.float32)


def row_of(truth_mv, translation, mask=None):
    batch = batch_of_ecgs([truth_mv], None if mask is None else [mask])
    return measure(batch, [translation], system="model").to_pylist()[0]


def test_matching_is_the_largest_there_is():
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = np.sort(rng.uniform(0, 3, rng.integers(0, 9))), np.sort(rng.uniform(0, 3, rng.integers(0, 9)))
        pairs = match(a, b, 0.15)
        near = np.abs(a[:, None] - b[None]) <= 0.15
        best = 0
        if near.size:
            best = int((maximum_bipartite_matching(csr_matrix(near), perm_type="column") >= 0).sum())
        assert len(pairs) == best
        assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
        assert (np.abs(b[pairs[:, 1]] - a[pairs[:, 0]]) <= 0.15 + 1e-9).all()


def test_of_two_largest_matchings_the_nearer_one_is_taken():
    assert match(np.array([1.0]), np.array([0.96, 1.01]), 0.05).tolist() == [[0, 1]]


@pytest.mark.parametrize("lag_s", [-0.55, -0.217, 0.0, 0.033, 0.412, 0.59])
def test_a_shifted_copy_has_its_lag_found_and_no_error_left(lag_s):
    truth = irregular_beats(np.random.default_rng(3))
    found = constant_lag(truth, truth + lag_s)
    assert found == pytest.approx(lag_s, abs=1e-6)
    assert f1_score(truth, truth + lag_s, tolerance_s=0.05, lag_s=found, duration_s=10.0) == 1.0
    assert interval_error_s(truth, truth + lag_s, tolerance_s=0.15, lag_s=found) == pytest.approx(0, abs=1e-9)
    if abs(lag_s) > 0.06:
        assert f1_score(truth, truth + lag_s, tolerance_s=0.05, lag_s=0.0, duration_s=10.0) < 0.5


def test_no_beats_have_no_lag():
    assert constant_lag(np.empty(0), np.array([1.0, 2.0])) == 0.0
    assert constant_lag(np.array([1.0]), np.array([9.0])) == 0.0


@pytest.mark.parametrize(("tolerance_s", "chance"), [(0.15, 0.350), (0.05, 0.117)])
def test_beats_at_a_random_phase_score_at_chance(tolerance_s, chance):
    rng, rr = np.random.default_rng(1), 0.857
    scores = []
    for _ in range(400):
        truth = np.arange(rng.uniform(0, rr), 10, rr)
        other = np.arange(rng.uniform(0, rr), 10, rr)
        scores.append(f1_score(truth, other, tolerance_s=tolerance_s, lag_s=0.0, duration_s=10.0))
    assert np.mean(scores) == pytest.approx(chance, abs=0.06)


def test_f1_counts_what_is_missed_and_what_is_invented():
    truth = np.arange(0.5, 9.6, 1.0)

    def score(found):
        return f1_score(truth, found, tolerance_s=0.05, lag_s=0.0, duration_s=10.0)

    assert score(truth) == 1.0
    assert score(np.sort(np.append(truth, 5.0))) == pytest.approx(20 / 21)
    assert score(truth[1:]) == pytest.approx(18 / 19)
    assert score(np.empty(0)) == 0.0
    assert score(np.sort(np.append(truth, 0.1))) == 1.0, "a beat at the very edge is not scored"
    assert np.isnan(f1_score(np.empty(0), truth, tolerance_s=0.05, lag_s=0.0, duration_s=10.0))


def test_a_perfect_copy_has_no_error():
    ecg = ecg_of(irregular_beats(np.random.default_rng(5)))
    row = row_of(ecg, drawn(ecg))
    for name in ("r_f1_50ms", "r_f1_150ms", "r_f1_50ms_lag", "correlation_sample", "finite_share"):
        assert row[name] == pytest.approx(1.0), name
    for name in ("rmse_mv_sample", "rmse_mv_sample_lag", "hr_error_bpm", "rr_error_ms", "lag_s"):
        assert row[name] == pytest.approx(0.0, abs=1e-6), name


def test_a_late_copy_is_wrong_until_its_lag_is_removed():
    beats = irregular_beats(np.random.default_rng(6))
    row = row_of(ecg_of(beats), drawn(ecg_of(beats + 0.25)))
    assert row["lag_s"] == pytest.approx(0.25, abs=0.005)
    assert row["r_f1_50ms"] < 0.3
    assert row["r_f1_50ms_lag"] == 1.0
    assert row["rmse_mv_sample_lag"] < 0.05 * row["rmse_mv_sample"]
    assert row["correlation_sample_lag"] > 0.99
    assert row["correlation_sample"] < 0.5
    assert row["hr_error_bpm"] < 2, "a shifted window loses a beat at one end and gains one at the other"


def test_errors_are_in_millivolt_and_scale_with_the_gain():
    beats = irregular_beats(np.random.default_rng(7))
    ecg = ecg_of(beats)
    row = row_of(ecg, drawn(ecg_of(beats, gain=0.5)))
    assert row["correlation_sample"] == pytest.approx(1.0, abs=1e-6)
    assert row["rmse_mv_sample"] == pytest.approx(0.5 * np.sqrt((ecg**2).mean(axis=1)).mean(), rel=1e-5)


def test_leads_that_were_not_recorded_do_not_count():
    rng = np.random.default_rng(8)
    beats = irregular_beats(rng)
    ecg, mask = ecg_of(beats), np.array([name in ("II", "V1") for name in LEADS])
    garbage = ecg.copy()
    garbage[~mask] = rng.normal(size=(10, ECG_SAMPLES))
    clean, dirty = row_of(ecg, drawn(ecg), mask), row_of(ecg, drawn(garbage), mask)
    for name in ("rmse_mv_sample", "correlation_sample", "r_f1_50ms"):
        assert clean[name] == pytest.approx(dirty[name], abs=1e-6)
    assert np.isfinite(dirty["correlation_lead"]).tolist() == mask.tolist()
    assert dirty["lead_law_uv"] > 100


def test_a_breach_of_a_lead_law_is_measured_in_any_draw():
    draws = np.repeat(ecg_of(irregular_beats(np.random.default_rng(9)))[None], 3, axis=0)
    assert row_of(draws[0], drawn(draws))["lead_law_uv"] < 1.0
    draws[2, LEADS.index("aVR"), 700] += 0.05
    assert row_of(draws[0], drawn(draws))["lead_law_uv"] == pytest.approx(50, rel=0.01)


def test_what_is_not_finite_is_told_and_not_scored():
    ecg = ecg_of(irregular_beats(np.random.default_rng(10)))
    broken = ecg.copy()
    broken[3, 100] = np.nan
    row = row_of(ecg, drawn(broken))
    assert row["finite_share"] == 0.0
    assert np.isnan(row["rmse_mv_sample"])


def test_no_beats_drawn_is_the_worst_answer_not_a_missing_one():
    beats = irregular_beats(np.random.default_rng(11))
    row = row_of(ecg_of(beats), drawn(np.zeros((12, ECG_SAMPLES))))
    assert row["r_f1_50ms_lag"] == 0.0
    assert row["hr_error_bpm"] > 50
    assert row["correlation_sample"] == 0.0


def test_the_mean_of_the_samples_beats_a_sample_by_root_two():
    rng = np.random.default_rng(12)
    draws = lift(rng.normal(size=(200, 8, ECG_SAMPLES)))
    row = row_of(lift(rng.normal(size=(8, ECG_SAMPLES))).astype(np.float32), drawn(draws))
    assert row["rmse_mv_sample"] / row["rmse_mv_mean"] == pytest.approx(np.sqrt(2), rel=0.03)


def test_too_few_samples_have_no_mean_and_no_band():
    ecg = ecg_of(irregular_beats(np.random.default_rng(13)))
    row = row_of(ecg, drawn(np.repeat(ecg[None], 5, axis=0)))
    assert all(np.isnan(row[name]) for name in ("rmse_mv_mean", "crps_mv", "coverage_90", "spread_mv"))
    assert row["rank_counts"] == []


def test_fair_crps_agrees_with_its_definition_and_with_the_gaussian():
    rng = np.random.default_rng(14)
    truth, draws = rng.normal(size=(12, 40)), rng.normal(size=(7, 12, 40))
    apart = np.abs(draws[:, None] - draws[None]).sum(axis=(0, 1)) / (2 * 7 * 6)
    assert fair_crps(truth, draws).mean() == pytest.approx((np.abs(draws - truth).mean(axis=0) - apart).mean())
    truth, draws = rng.normal(size=(12, 5000)), rng.normal(size=(20, 12, 5000))
    assert fair_crps(truth, draws).mean() == pytest.approx(1 / np.sqrt(np.pi), rel=0.01)


def test_ranks_are_flat_and_bands_cover_when_the_spread_is_right():
    rng = np.random.default_rng(15)
    draws = lift(rng.normal(size=(20, 8, ECG_SAMPLES)))
    truth = lift(rng.normal(size=(8, ECG_SAMPLES))).astype(np.float32)
    sd = np.sqrt((lift(np.eye(8)) ** 2).sum(axis=1))[:, None] * np.ones(ECG_SAMPLES)
    band = (np.stack([-1.645 * sd, 1.645 * sd])).astype(np.float32)
    row = row_of(truth, drawn(draws, band))
    counts = np.array(row["rank_counts"])
    assert counts.sum() == truth.size
    assert np.abs(counts / counts.mean() - 1).max() < 0.15
    assert row["coverage_90"] == pytest.approx(0.90, abs=0.01)
    narrow = row_of(truth, drawn(draws, band / 2))
    assert narrow["coverage_90"] < 0.65
    assert narrow["band_width_mv"] == pytest.approx(row["band_width_mv"] / 2, rel=1e-5)


def test_correlation_of_flat_leads():
    x = np.sin(np.arange(200) / 9.0)
    flat = np.full(200, 0.3)
    r = correlations(np.stack([x, x, flat]), np.stack([2 * x + 1, flat, x]))
    assert r[0] == pytest.approx(1.0)
    assert r[1] == 0.0
    assert np.isnan(r[2])


def rows_of(values, metric="hr_error_bpm"):
    """Rows from {system: [(person, window, value)]}."""
    blank = {m.name: float("nan") for m in METRICS} | {"lag_s": 0.0}
    blank |= {"offsets_ms": [], "correlation_lead": [], "rank_counts": []}
    rows = [
        blank | {"system": system, "person": person, "window_id": window, metric: float(value)}
        for system, entries in values.items()
        for person, window, value in entries
    ]
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)


def test_people_count_the_same_however_many_windows_they_have():
    entries = [("a", f"a{k}", 0.0) for k in range(9)] + [("b", "b0", 1.0)]
    figure = summarise(rows_of({"model": entries}), bootstrap=200, seed=0).figures["model"]["hr_error_bpm"]
    assert figure["value"] == pytest.approx(0.5)
    assert figure["n"] == 2


def test_intervals_come_from_people_not_from_windows():
    rng = np.random.default_rng(16)
    values = rng.normal(size=30)

    def width(windows):
        entries = [(f"p{k}", f"{k}-{j}", v) for k, v in enumerate(values) for j in range(windows)]
        figure = summarise(rows_of({"model": entries}), bootstrap=400, seed=0).figures["model"]["hr_error_bpm"]
        return figure["high"] - figure["low"]

    assert width(6) == pytest.approx(width(1))
    assert width(1) == pytest.approx(2 * 1.96 * values.std() / np.sqrt(30), rel=0.15)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng, hits = np.random.default_rng(17), 0
    for trial in range(100):
        entries = [(f"p{k}", f"w{k}", v) for k, v in enumerate(rng.normal(3.0, 1.0, 40))]
        figure = summarise(rows_of({"model": entries}), bootstrap=200, seed=trial).figures["model"]["hr_error_bpm"]
        hits += figure["low"] <= 3.0 <= figure["high"]
    assert 86 <= hits <= 99


def test_contrasts_are_paired_and_signed():
    rng = np.random.default_rng(18)
    people = rng.normal(0, 10, 40)
    model = [(f"p{k}", f"w{k}", v + 1 + rng.normal(0, 0.2)) for k, v in enumerate(people)]
    control = [(f"p{k}", f"w{k}", v) for k, v in enumerate(people)]
    summary = summarise(rows_of({"model": model, "shuffled_ppg": control}), bootstrap=400, seed=0)
    contrast = summary.contrasts["hr_error_bpm: model - shuffled_ppg"]
    assert 0.85 < contrast["low"] < contrast["value"] < contrast["high"] < 1.15
    ours, theirs = (summary.figures[name]["hr_error_bpm"] for name in ("model", "shuffled_ppg"))
    assert ours["low"] < theirs["high"], "alone, the two intervals overlap"


def test_ratios_are_taken_over_the_windows_both_have():
    model = [("a", "w0", 1.0), ("b", "w1", 1.0), ("c", "w2", 50.0)]
    other = [("a", "w0", 2.0), ("b", "w1", 2.0)]
    summary = summarise(rows_of({"model": model, "template": other}, "rmse_mv_mean"), bootstrap=50, seed=0)
    assert summary.contrasts["rmse_mv_mean: model / template"]["value"] == pytest.approx(0.5)
    assert summary.contrasts["rmse_mv_mean: template / model"]["value"] == pytest.approx(2.0)
    assert summary.contrasts["rmse_mv_mean: model - template"]["value"] == pytest.approx(-1.0)


def test_the_worst_window_is_not_averaged_away():
    entries = [("a", f"w{k}", 0.0) for k in range(50)] + [("a", "w99", 7.0)]
    summary = summarise(rows_of({"model": entries}, "lead_law_uv"), bootstrap=20, seed=0)
    assert summary.figures["model"]["lead_law_uv"]["value"] == 7.0


def test_nobody_is_given_their_own_ppg():
    rng = np.random.default_rng(19)
    for seed in range(100):
        person = np.array([f"p{k}" for k in rng.integers(0, 6, 30)])
        if np.unique(person, return_counts=True)[1].max() > 15:
            continue
        donor = other_person(person, seed)
        assert sorted(donor) == list(range(30))
        assert (person[donor] != person).all()


def test_one_person_cannot_be_shuffled():
    with pytest.raises(DatasetError, match="more than half"):
        other_person(np.array(["a", "a", "b"]), 0)


@pytest.fixture(scope="module")
def measured():
    rng = np.random.default_rng(20)
    tables = []
    beats = [irregular_beats(rng) for _ in range(8)]
    truth = batch_of_ecgs([ecg_of(b) for b in beats], persons=[f"p{k // 2}" for k in range(8)])
    shuffled = beats[2:] + beats[:2]
    for system, source, samples in (("model", beats, 20), ("shuffled_ppg", shuffled, 4), ("template", beats, 4)):
        translations = []
        for b in source:
            draws = np.stack([ecg_of(b + rng.normal(0, 0.01), gain=rng.normal(1, 0.1)) for _ in range(samples)])
            band = np.quantile(draws, (0.05, 0.95), axis=0).astype(np.float32)
            translations.append(drawn(draws, band))
        tables.append(measure(truth, translations, system=system))
    return pa.concat_tables(tables)


def test_rows_of_real_measurement_tell_a_model_that_follows_the_pulse_from_its_shuffled_self(measured):
    source = Source("demo", "d" * 64, "test", True, "a" * 64, "p2es", {"run_id": "r1"}, {}, {"model": 0}, 3)
    report = compose(measured, None, source, mandatory=("finite", "follows_pulse"), bootstrap=100, seed=0)
    passed = {goal["name"] for goal in report["goals"] if goal["passed"]}
    assert {"finite", "lead_laws", "lineage", "follows_pulse", "G1", "G23"} <= passed
    assert report["dataset"]["people"] == 4
    assert report["dataset"]["windows"] == 8
    assert set(report["controls"]) == {"shuffled_ppg", "template"}
    assert set(report["not_measured"]) == {
        "realism", "memorisation", "counterfactual", "audit", "pauses", "premature beats of another shape",
        "equal opportunity",
    }  # fmt: skip
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_measuring_twice_gives_the_same(measured):
    again = summarise(measured, bootstrap=100, seed=0)
    assert summarise(measured, bootstrap=100, seed=0) == again
