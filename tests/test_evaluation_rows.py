"""The row of a window: which columns there are, what is read off an ECG, and what a failure of the drawn costs."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import gamma
from windowed import batch_of_ecgs, clean_window, drawn

from p2es.delineation import measure_ecg
from p2es.evaluation import features
from p2es.evaluation.beats import heart_rate_bpm
from p2es.evaluation.columns import wrap_deg
from p2es.evaluation.feature_scores import (
    FAILURE_SDS,
    feature_crps,
    feature_energy,
    feature_errors,
    feature_intervals,
)
from p2es.evaluation.features import FEATURES, LEAD_FEATURES, aligned_beat, encoding, middle_of, read_ecg, wave
from p2es.evaluation.measure import ROW_SCHEMA, describe, measure
from p2es.evaluation.metrics import METRICS
from p2es.evaluation.probabilistic import fair_crps, fair_crps_deg
from p2es.evaluation.summary import summarise
from p2es.filters import resample
from p2es.leads import INDEPENDENT, LEADS, lift
from p2es.translator import MIN_BAND_SAMPLES
from p2es.windows import ECG_SAMPLES, FS_HZ

EVERY = np.ones(12, bool)
NAMES = [feature.name for feature in FEATURES]
SDS = np.array([feature.typical_sd for feature in FEATURES])
CIRCULAR = np.array([feature.circular for feature in FEATURES])


def rng_of(seed):
    return np.random.default_rng(seed)


def row_of(truth_mv, translation, mask=None, **options):
    batch = batch_of_ecgs([truth_mv], None if mask is None else [mask], **options)
    return measure(batch, [translation], system="model").to_pylist()[0]


def draws_of(ecg, count=MIN_BAND_SAMPLES, sd_mv=0.01, seed=0):
    noise = lift(rng_of(seed).normal(0, sd_mv, size=(count, 8, ECG_SAMPLES)))
    return (ecg + noise).astype(np.float32)


def without_waves(ecg):
    """The same R peaks, and nothing that can be delineated: spikes of one sample in noise."""
    spiky = 0.05 * lift(rng_of(1).normal(size=(8, ECG_SAMPLES)))
    return spiky.astype(np.float32) + 0 * ecg


@pytest.fixture(scope="module")
def person():
    return clean_window(31, 0)


@pytest.fixture(scope="module")
def someone_else():
    return clean_window(31, 1)


# --- What is read off -------------------------------------------------------------------------------------------------


def test_features_are_those_of_the_delineator(person):
    found, reading = measure_ecg(person, FS_HZ), read_ecg(person, EVERY)
    scalars = dict(zip(NAMES, reading.scalars, strict=True))
    for name in NAMES[1:]:
        assert scalars[name] == pytest.approx(getattr(found, name), abs=2.0 if name.endswith("ms") else 1.0), name
    assert scalars["hr_bpm"] == heart_rate_bpm(reading.r_peaks_s)
    leads = dict(zip(LEAD_FEATURES, reading.leads, strict=True))
    np.testing.assert_allclose(leads["st_filtered_mv"], found.st_mv, atol=0.01)
    np.testing.assert_allclose(leads["r_mv"], found.r_mv, atol=0.02)


def test_features_are_of_the_recorded_leads_only(person, someone_else):
    mask = np.array([name in ("II", "V2", "V5") for name in LEADS])
    mixed = np.where(mask[:, None], person, someone_else)
    one, other = read_ecg(person, mask), read_ecg(mixed, mask)
    np.testing.assert_array_equal(one.scalars, other.scalars)
    np.testing.assert_array_equal(one.leads, other.leads)
    assert (np.isfinite(one.leads).all(axis=0) == mask).all()
    assert np.isnan(one.scalars[NAMES.index("qrs_axis_deg")]), "no axis without limb leads"
    assert np.isfinite(one.scalars[NAMES.index("qrs_ms")])


def test_the_beat_is_blind_to_where_beats_are(person):
    beats_s = read_ecg(person, EVERY).r_peaks_s
    beat = aligned_beat(person, beats_s)
    assert beat.shape == (12, 90)
    late = np.roll(person, 37, axis=1)
    np.testing.assert_allclose(aligned_beat(late, beats_s + 37 / FS_HZ), beat, atol=0.06)
    assert np.argmax(np.abs(beat[1])) == pytest.approx(32, abs=2), "R is 0.25 s from its start"
    np.testing.assert_array_equal(aligned_beat(person, np.empty(0)), 0.0)
    assert np.isfinite(aligned_beat(person, np.array([0.01, 9.99]))).all(), "ends are held when there are no others"


def test_the_beat_is_the_mean_of_equal_beats_to_a_fraction_of_a_sample():
    time_s = np.arange(ECG_SAMPLES) / FS_HZ
    beats_s = 0.7 + np.arange(10) * 0.8573
    wide = sum(np.exp(-0.5 * ((time_s - at) / 0.03) ** 2) for at in beats_s)
    beat_s = np.arange(-32, 58) / FS_HZ
    found = aligned_beat(np.stack([wide, -2 * wide]), beats_s)
    expected = np.exp(-0.5 * (beat_s / 0.03) ** 2)
    np.testing.assert_allclose(found, np.stack([expected, -2 * expected]), atol=0.02)


def test_encoding_and_wave_have_fixed_lengths_whatever_was_recorded(person):
    beats_s = read_ecg(person, EVERY).r_peaks_s
    mask = np.array([name in ("I", "V3") for name in LEADS])
    whole, part = encoding(person, EVERY, beats_s), encoding(person, mask, beats_s)
    assert whole.shape == part.shape == (8 * 45,)
    assert whole.dtype == np.float32
    missing = np.isnan(part.reshape(8, 45)).all(axis=1)
    assert [name for name, gone in zip(INDEPENDENT, missing, strict=True) if not gone] == ["I", "V3"]
    np.testing.assert_array_equal(part[np.isfinite(part)], whole[np.isfinite(part)])
    assert wave(person, mask).shape == (640,)
    np.testing.assert_allclose(wave(person, EVERY), resample(person[1].astype(float), FS_HZ, 64.0), atol=1e-6)
    np.testing.assert_allclose(wave(person, mask), resample(person[0].astype(float), FS_HZ, 64.0), atol=1e-6)


def reading(scalars, t_polarity=1.0):
    leads = np.full((len(LEAD_FEATURES), 12), 0.1)
    leads[LEAD_FEATURES.index("t_polarity")] = t_polarity
    values = {name: scalars.get(name, np.nan) for name in NAMES}
    return features.Reading(np.array(list(values.values())), leads, np.empty(0))


def test_the_median_is_circular_and_needs_half_of_the_draws():
    draws = [reading({"qrs_axis_deg": angle}) for angle in [175.0] * 9 + [-175.0] * 11]
    middle = middle_of(draws)[0][NAMES.index("qrs_axis_deg")]
    assert middle == pytest.approx(-175.0)
    k = NAMES.index("pr_ms")
    half = [reading({"pr_ms": 150.0 + j} if j < 10 else {}) for j in range(20)]
    assert middle_of(half)[0][k] == pytest.approx(154.5)
    assert np.isnan(middle_of([*half[1:], half[-1]])[0][k]), "eleven of twenty failed"
    assert np.isnan(middle_of(half[:10])[0][k]), "ten draws are too few"


def test_a_polarity_between_two_classes_is_flat():
    draws = [reading({}, polarity) for polarity in [1.0] * 10 + [0.0] * 10]
    assert (middle_of(draws)[1][LEAD_FEATURES.index("t_polarity")] == 0).all()
    draws = [reading({}, polarity) for polarity in [1.0] * 11 + [-1.0] * 9]
    assert (middle_of(draws)[1][LEAD_FEATURES.index("t_polarity")] == 1).all()


# --- Rows -------------------------------------------------------------------------------------------------------------


def test_a_row_has_every_column_of_the_schema(person):
    batch = batch_of_ecgs([person], people=[[44.0, 1.0, np.nan, 61.0]])
    table = measure(batch, [drawn(draws_of(person))], system="model")
    assert table.schema == ROW_SCHEMA
    row = table.to_pylist()[0]
    assert (row["age_years"], row["female"], row["weight_kg"]) == (44.0, 1.0, 61.0)
    assert np.isnan(row["height_cm"])
    assert (row["rhythm"], row["drawn_rhythm"]) == ("regular", "regular")
    assert len(row["draws_qrs_ms"]) == MIN_BAND_SAMPLES
    assert row["drawn_qrs_ms"] == row["draws_qrs_ms"][0]
    assert row["median_qrs_ms"] == pytest.approx(np.median(row["draws_qrs_ms"]))
    assert {len(row[f"{of}_{name}"]) for of in ("real", "drawn", "median") for name in LEAD_FEATURES} == {12}
    assert len(row["real_encoding"]) == len(row["drawn_encoding"]) == 360
    assert len(row["real_wave"]) == len(row["drawn_wave"]) == 640
    unfilled = {name for name in ROW_SCHEMA.names if row[name] is None}
    assert unfilled == set()
    undefined = {m.name for m in METRICS if not np.isfinite(row[m.name])}
    assert undefined == {"coverage_90", "coverage_90_lag", "band_width_mv"}, "this system gave no band"


def test_the_recording_is_described_as_it_is_measured(person, someone_else):
    batch = batch_of_ecgs([person, someone_else], persons=["a", "b"])
    told = describe(batch, system="train")
    rows = measure(batch, [drawn(person), drawn(person)], system="model")
    assert told.schema == ROW_SCHEMA
    same = ["window_id", "person", "rhythm", *(name for name in ROW_SCHEMA.names if name.startswith("real_"))]
    assert told.select(same).to_pylist() == rows.select(same).to_pylist()
    assert told["system"].to_pylist() == ["train", "train"]
    assert told["drawn_qrs_ms"].to_pylist() == told["draws_qrs_ms"].to_pylist() == [None, None]
    assert told["dipolarity_real_percent"].null_count == 0
    assert told["rmse_mv_sample"].null_count == 2


def test_what_was_not_recorded_changes_no_column(person, someone_else):
    mask = np.array([name in ("I", "II", "III", "aVR", "aVL", "aVF", "V1") for name in LEADS])
    plain = draws_of(person, 3)
    mixed = np.where(mask[:, None], plain, someone_else)
    one, other = (row_of(person, drawn(draws), mask) for draws in (plain, mixed))
    for name in ROW_SCHEMA.names:
        np.testing.assert_equal(one[name], other[name], err_msg=name)
    assert np.isnan(one["dipolarity_percent"]), "dipolarity is of all 8 leads or of none"
    assert np.isfinite(one["qrs_axis_error_deg_sample"])


def test_a_system_that_always_draws_the_same_is_read_once(person, monkeypatch):
    calls = []

    def counted(ecg_mv, mask):
        calls.append(1)
        return read_ecg(ecg_mv, mask)

    monkeypatch.setattr(features, "read_ecg", counted)
    same = np.repeat(person[None], 20, axis=0)
    row = row_of(person, drawn(same))
    assert len(calls) == 1
    assert len(set(row["draws_qrs_ms"])) == 1
    assert row["feature_crps"] == pytest.approx(0.0, abs=1e-9)
    calls.clear()
    row_of(person, drawn(draws_of(person, 3)))
    assert len(calls) == 3


def test_the_batch_a_window_is_in_changes_nothing(person, someone_else):
    both = batch_of_ecgs([person, someone_else])
    drawings = [drawn(draws_of(someone_else, 2)), drawn(draws_of(person, 2))]
    together = measure(both, drawings, system="model").to_pylist()
    apart = [measure(both.take([k]), [drawings[k]], system="model").to_pylist()[0] for k in range(2)]
    for one, other in zip(together, apart, strict=True):
        for name in ROW_SCHEMA.names:
            np.testing.assert_equal(one[name], other[name], err_msg=name)


# --- Failures ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_measured_in_the_drawn_is_counted_and_costs(person):
    row = row_of(person, drawn(draws_of(without_waves(person))))
    assert np.isnan(row["drawn_pr_ms"])
    assert np.isnan(row["median_pr_ms"])
    assert np.isnan(row["draws_pr_ms"]).all()
    assert row["drawn_failures_sample"] >= 0.9
    for name, sd in (("pr_error_ms", 24.0), ("qrs_error_ms", 9.7), ("qtcf_error_ms", 21.0)):
        assert row[name] == row[f"{name}_sample"] == pytest.approx(FAILURE_SDS * sd)
    assert row["qrs_axis_error_deg"] == pytest.approx(64.0)
    assert row["t_polarity_agreement_sample"] == 0.0
    assert row["st_filtered_error_mv_sample"] == pytest.approx(0.1)
    assert row["feature_crps"] > 1.5


def test_a_flat_line_is_worse_than_any_answer(person, someone_else):
    flat, other = (row_of(person, drawn(np.repeat(x[None], 20, axis=0))) for x in (0 * person, someone_else))
    assert flat["drawn_failures_sample"] == 1.0
    assert flat["feature_crps"] == pytest.approx(FAILURE_SDS)
    assert flat["feature_crps"] > other["feature_crps"]
    assert flat["hr_error_percent"] == flat["sdnn_error_percent"] == flat["rmssd_error_percent"] == 100.0
    assert flat["r_sensitivity_50ms_lag"] == flat["r_predictivity_50ms_lag"] == 0.0
    assert flat["beat_rmse_mv_sample"] > 0.05
    assert set(flat["drawn_encoding"]) == {0.0}
    assert flat["drawn_rhythm"] == "unknown"
    assert flat["prd_percent_sample"] == pytest.approx(100.0, abs=0.5)


def test_an_ecg_that_is_next_to_flat_has_failed(person):
    """What a collapsed model draws: beats that can be found, of an amplitude that nothing can be read from."""
    row = row_of(person, drawn(1e-7 * draws_of(person, 2, sd_mv=0.0)))
    assert row["drawn_failures_sample"] >= 0.9


def test_what_is_not_in_the_recording_has_no_error(person):
    row = row_of(without_waves(person), drawn(draws_of(person)))
    assert np.isnan(row["real_pr_ms"])
    assert np.isfinite(row["drawn_pr_ms"])
    for name in ("pr_error_ms", "qrs_error_ms_sample", "t_polarity_agreement_sample", "transition_error_leads_sample"):
        assert np.isnan(row[name]), name


def test_what_is_not_finite_leaves_the_recording_described(person):
    broken = draws_of(person)
    broken[4, 2, 100] = np.inf
    row = row_of(person, drawn(broken))
    assert row["finite_share"] == 0.0
    assert np.isfinite(row["real_qrs_ms"])
    assert len(row["real_encoding"]) == 360
    assert np.isnan(row["drawn_qrs_ms"])
    assert np.isnan(row["qrs_error_ms"])
    assert [m.name for m in METRICS if np.isfinite(row[m.name])] == ["dipolarity_real_percent", "finite_share"]


def test_errors_are_absolute_and_wrap():
    real = np.array([reading({"pr_ms": 160.0, "qrs_ms": 90.0, "qrs_axis_deg": 170.0}).scalars]).ravel()
    answer = reading({"pr_ms": 150.0, "qrs_axis_deg": -170.0, "qtcf_ms": 400.0}).scalars
    found = feature_errors(real, answer)
    assert found["pr_error_ms"] == pytest.approx(10.0)
    assert found["qrs_axis_error_deg"] == pytest.approx(20.0)
    assert found["qrs_error_ms"] == pytest.approx(19.4), "not answered"
    assert np.isnan(found["qtcf_error_ms"]), "not in the recording"


def test_feature_crps_is_in_standard_deviations_between_people():
    rng = rng_of(2)
    real = rng.normal(size=len(FEATURES)) * SDS + 60.0
    draws = rng.normal(size=(20, len(FEATURES))) * SDS + 60.0
    by_hand = [
        fair_crps_deg(y, x) / f.typical_sd if f.circular else float(fair_crps(np.array(y), x)) / f.typical_sd
        for y, x, f in zip(real, draws.T, FEATURES, strict=True)
    ]
    assert feature_crps(real, draws) == pytest.approx(np.mean(by_hand))
    many = [
        feature_crps(rng.normal(size=len(FEATURES)) * SDS, rng.normal(size=(20, len(FEATURES))) * SDS)
        for _ in range(300)
    ]
    assert np.mean(many) == pytest.approx(1 / np.sqrt(np.pi), abs=0.03)


def test_failed_draws_cost_in_proportion_and_never_pay():
    real = reading({"pr_ms": 160.0}).scalars
    good = np.stack([reading({"pr_ms": 160.0 + j}).scalars for j in range(-10, 10)])
    nothing = np.full_like(good, np.nan)
    scores = [feature_crps(real, np.concatenate([good[n:], nothing[:n]])) for n in range(0, 21, 5)]
    assert (np.diff(scores) > 0).all()
    assert scores[-1] == FAILURE_SDS
    assert feature_crps(real, np.concatenate([good[:1], nothing[:19]])) == FAILURE_SDS, "one draw is no forecast"
    assert np.isnan(feature_crps(np.full(len(FEATURES), np.nan), good))


def only(name, real, draws):
    """A recording and draws in which one feature was found."""
    k = NAMES.index(name)
    one, many = np.full(len(FEATURES), np.nan), np.full((len(draws), len(FEATURES)), np.nan)
    one[k], many[:, k] = real, draws
    return one, many


@pytest.mark.parametrize("name", ["pr_ms", "qrs_axis_deg"])
def test_the_energy_score_of_one_feature_is_its_crps(name):
    real, draws = only(name, 170.0, wrap_deg(rng_of(3).normal(175.0, 10.0, 20)))
    assert feature_energy(real, draws) == pytest.approx(feature_crps(real, draws))


def test_the_energy_score_knows_what_the_mean_and_what_all_people_score():
    """Ten independent normal features: the length of one has mean sqrt(2) Gamma(11/2) / Gamma(5)."""
    rng = rng_of(4)
    length = np.sqrt(2) * gamma(5.5) / gamma(5.0)
    # Small enough that no angle wraps.
    sds = np.minimum(SDS, 25.0)
    constant, people = [], []
    for _ in range(300):
        real = rng.normal(size=len(FEATURES)) * sds * 0.5
        draws = rng.normal(size=(20, len(FEATURES))) * sds * 0.5
        size = np.sqrt(np.mean((sds / SDS) ** 2)) * 0.5
        constant.append(feature_energy(real, 0 * draws) / size)
        people.append(feature_energy(real, draws) / size)
    assert np.mean(constant) == pytest.approx(length / np.sqrt(10), abs=0.04)
    assert np.mean(people) == pytest.approx(np.sqrt(0.5) * length / np.sqrt(10), abs=0.04)


def test_the_energy_score_sees_whether_features_belong_together():
    """Draws with the right margins, QT and rate hanging together as in the recordings, or the other way round."""
    rng = rng_of(5)
    scores = {1: [], -1: [], 0: []}
    margins = {sign: [] for sign in scores}
    for _ in range(200):
        z = rng.normal(size=21)
        for sign in scores:
            other = rng.normal(size=21) if sign == 0 else sign * z
            other = np.append(z[0], other[1:])
            real, draws = np.full(len(FEATURES), np.nan), np.full((20, len(FEATURES)), np.nan)
            for name, values in (("hr_bpm", z), ("qt_ms", other)):
                k = NAMES.index(name)
                real[k], draws[:, k] = 60 + SDS[k] * values[0], 60 + SDS[k] * values[1:]
            scores[sign].append(feature_energy(real, draws))
            margins[sign].append(feature_crps(real, draws))
    assert np.mean(scores[1]) < np.mean(scores[0]) - 0.01 < np.mean(scores[-1]) - 0.02
    assert np.mean(margins[1]) == pytest.approx(np.mean(margins[-1]), abs=0.02), "one by one nothing is seen"


def test_a_failed_feature_has_its_price_in_the_energy_score_and_in_coverage():
    real = np.full(len(FEATURES), 50.0)
    good = 50.0 + SDS * rng_of(6).normal(size=(20, len(FEATURES)))
    nothing = np.full_like(good, np.nan)
    failing = [np.concatenate([good[n:], nothing[:n]]) for n in range(0, 21, 5)]
    scores = [feature_energy(real, draws) for draws in failing]
    assert (np.diff(scores) > 0).all()
    assert scores[-1] == pytest.approx(FAILURE_SDS)
    held = [feature_intervals(real, draws)["feature_coverage_90"] for draws in failing]
    assert held[0] == held[1] == 1.0
    assert held[3:] == [0.0, 0.0], "what most draws lack holds nothing, however it would have been"
    assert np.isnan(feature_intervals(real, nothing)["feature_width_90"])
    for figures in (feature_intervals(nothing[0], good), {"feature_energy": feature_energy(nothing[0], good)}):
        assert all(np.isnan(value) for value in figures.values()), "nothing was recorded"


@pytest.mark.parametrize("spread", [0.4, 1.0, 2.0])
def test_feature_intervals_hold_what_they_say_and_are_as_wide_as_the_draws(spread):
    """An angle across 180 degrees among the features, whose interval must not tear."""
    rng = rng_of(7)
    scale = 0.3 * SDS
    held, wide = [], []
    for _ in range(400):
        real, draws = rng.normal(size=len(FEATURES)), spread * rng.normal(size=(20, len(FEATURES)))
        centre = np.where(CIRCULAR, 179.0, 60.0)
        real, draws = centre + scale * real, centre + scale * draws
        found = feature_intervals(np.where(CIRCULAR, wrap_deg(real), real), np.where(CIRCULAR, wrap_deg(draws), draws))
        held.append(found["feature_coverage_90"])
        wide.append(found["feature_width_90"])
    # At 19.95 of 20 order statistics, whose means are 1.408 and 1.867 (Harter 1961).
    assert np.mean(wide) == pytest.approx(0.3 * spread * 2 * (0.05 * 1.408 + 0.95 * 1.867), rel=0.02)
    if spread == 1.0:
        assert np.mean(held) == pytest.approx(0.9, abs=0.015)
    else:
        assert (np.mean(held) > 0.99) if spread > 1 else (np.mean(held) < 0.6)


def test_rows_of_every_kind_are_summarised(person, someone_else):
    batch = batch_of_ecgs([person, someone_else], persons=["a", "b"])
    rows = pa.concat_tables(
        [
            measure(batch, [drawn(draws_of(person)), drawn(draws_of(someone_else))], system="model"),
            measure(batch, [drawn(someone_else), drawn(person)], system="other"),
            describe(batch, system="train"),
        ]
    )
    summary = summarise(rows, bootstrap=50, seed=0)
    assert set(summary.figures["model"]) == {metric.name for metric in METRICS}
    better = summary.contrasts["qrs_axis_error_deg_sample: model - other"]
    assert better["value"] < 0
    assert summary.contrasts["beat_rmse_mv_sample: model / other"]["value"] < 1
    assert summary.figures["train"]["rmse_mv_sample"]["value"] is None
