import numpy as np
import pyarrow as pa
import pytest
from row_tables import people_names, stacked, table
from scipy import stats

from p2es.errors import InputError
from p2es.evaluation.agreement import agreement
from p2es.evaluation.audit import AUDITED, leakage_audit
from p2es.evaluation.bootstrap import People, mean_figure, packed
from p2es.evaluation.calibration import calibration, central_interval, crps, pit_counts
from p2es.evaluation.columns import comparable, scalars, vectors, wrap_deg
from p2es.evaluation.counterfactual import EFFECTS, counterfactual
from p2es.evaluation.fairness import fairness
from p2es.evaluation.kappa import cohen, tables
from p2es.evaluation.morphology import POLARITY_LEADS, morphology
from p2es.evaluation.ranking import auc, sensitivity_at
from p2es.evaluation.rhythm import rhythm_agreement
from p2es.leads import LEADS

QUICK = {"bootstrap": 200, "seed": 0}


def rng_of(seed=0):
    return np.random.default_rng(seed)


# --- people and their bootstrap ---


def test_people_weigh_the_same_however_many_windows_they_have():
    people = People.of(np.array(["a"] * 9 + ["b"]), **QUICK)
    values = np.array([0.0] * 9 + [1.0])
    figure = mean_figure(values, people, "mV")
    assert (figure["value"], figure["n"], figure["unit"]) == (0.5, 2, "mV")
    assert (figure["low"], figure["high"]) == (0.0, 1.0)
    # With one person weighing as much as the other, half of the weight is at 0.
    assert people.quantile(values, 0.5)[0] == pytest.approx(0.5)
    assert people.quantile(values, 0.4)[0] == 0.0
    assert people.quantile(values, 0.6)[0] == 1.0


def test_the_bootstrap_of_a_mean_has_its_standard_error_and_no_nan_enters():
    values = rng_of().normal(3, 2, 400)
    people = People.of(np.array(people_names(400)), bootstrap=4000, seed=1)
    holed = np.append(values, np.nan)
    more = People(np.append(people.code, 0), people.counts)
    assert mean_figure(holed, more, "") == mean_figure(values, people, "")
    draws = people.average(people.means(values))[1]
    assert draws.std() == pytest.approx(values.std() / 20, rel=0.05)
    assert draws.mean() == pytest.approx(values.mean(), abs=0.01)


def test_quantiles_are_those_of_numpy_where_everybody_has_one_window():
    for n in (9, 10):
        values = rng_of(n).normal(size=n)
        people = People.of(np.array(people_names(n)), **QUICK)
        median, draws = people.quantile(values, 0.5)
        assert median == pytest.approx(np.median(values))
        resampled = [np.median(np.repeat(values, count.astype(int))) for count in people.counts]
        assert draws == pytest.approx(resampled)


def test_an_undefined_figure_is_none():
    assert packed(np.nan, np.full(3, np.nan), "mV", 0) == {
        "value": None,
        "low": None,
        "high": None,
        "unit": "mV",
        "n": 0,
    }


def test_auc_and_sensitivity_are_those_of_scikit_learn():
    from sklearn.metrics import roc_auc_score, roc_curve

    rng = rng_of(3)
    label = rng.random(300) < 0.3
    score = np.round(rng.normal(size=300) + label, 1)  # with ties
    people = People.of(np.array(people_names(300)), bootstrap=50, seed=0)
    value, draws = auc(score, label, people)
    assert value == pytest.approx(roc_auc_score(label, score))
    times = [count.astype(int) for count in people.counts]
    assert draws == pytest.approx([roc_auc_score(np.repeat(label, t), np.repeat(score, t)) for t in times])
    for alarms in (0.01, 0.1):
        false, true, _ = roc_curve(label, score, drop_intermediate=False)
        assert sensitivity_at(score, label, people, alarms=alarms)[0] == pytest.approx(true[false <= alarms].max())
    one_kind = np.ones(300, bool)
    assert np.isnan(auc(score, one_kind, people)[0])


# --- columns ---


def test_columns_keep_null_nan_and_short_lists_apart_from_values():
    rows = table(["a", "b", "c"], real_pr_ms=[1.0, None, np.inf], draws_pr_ms=[[1.0, 2.0], None, [np.nan]])
    assert np.array_equal(scalars(rows, "real_pr_ms"), [1, np.nan, np.nan], equal_nan=True)
    expected = [[1, 2], [np.nan, np.nan], [np.nan, np.nan]]
    assert np.array_equal(vectors(rows, "draws_pr_ms"), expected, equal_nan=True)
    chunked = pa.concat_tables([rows.slice(0, 1), rows.slice(1)])
    assert np.array_equal(vectors(chunked, "draws_pr_ms"), expected, equal_nan=True)
    with pytest.raises(InputError, match="no column"):
        scalars(rows.drop_columns(["real_pr_ms"]), "real_pr_ms")
    with pytest.raises(InputError, match="list of 2 where 1"):
        vectors(rows, "draws_pr_ms", 1)


def test_internal_systems_are_in_no_comparison():
    names = ["model", "template", "train", "members", "counterfactual:male"]
    rows = stacked(*(table(["a"], name, real_pr_ms=[1.0], drawn_pr_ms=[1.0]) for name in names))
    assert comparable(rows) == ["model", "template"]
    assert set(agreement(rows, **QUICK)) == {"model", "template"}


# --- agreement ---


def test_angles_wrap():
    assert wrap_deg(np.array([179.0 + 179.0, -358.0, 180.0, -180.0, 540.0])).tolist() == [
        -2.0,
        2.0,
        180.0,
        180.0,
        180.0,
    ]
    person = people_names(2)
    rows = table(person, real_qrs_axis_deg=[179.0, -179.0], drawn_qrs_axis_deg=[-179.0, 179.0])
    found = agreement(rows, **QUICK)["model"]["sample"]["qrs_axis_deg"]
    assert found["mae"]["value"] == pytest.approx(2.0)
    assert found["bias"]["value"] == pytest.approx(0.0, abs=1e-9)
    # An interval about a bias of 180 is one stretch, not all around.
    delta = rng_of().normal(180, 5, 100)
    rows = table(people_names(100), real_qrs_axis_deg=np.zeros(100), drawn_qrs_axis_deg=delta)
    bias = agreement(rows, **QUICK)["model"]["sample"]["qrs_axis_deg"]["bias"]
    assert wrap_deg(np.array(bias["value"] - 180)) == pytest.approx(0, abs=2)
    assert bias["high"] - bias["low"] < 4


def test_agreement_is_that_of_bland_and_altman():
    rng = rng_of(1)
    real, delta = rng.normal(160, 20, 300), rng.normal(4, 10, 300)
    rows = table(people_names(300), real_pr_ms=real, drawn_pr_ms=real + delta, median_pr_ms=real)
    found = agreement(rows, bootstrap=1000, seed=0)["model"]
    sample = found["sample"]["pr_ms"]
    assert sample["bias"]["value"] == pytest.approx(delta.mean())
    assert sample["sd"]["value"] == pytest.approx(delta.std(ddof=1))
    assert sample["mae"]["value"] == pytest.approx(np.abs(delta).mean())
    assert sample["loa"] == pytest.approx(
        [delta.mean() - 1.96 * delta.std(ddof=1), delta.mean() + 1.96 * delta.std(ddof=1)]
    )
    width = sample["bias"]["high"] - sample["bias"]["low"]
    assert width == pytest.approx(2 * 1.96 * delta.std() / np.sqrt(300), rel=0.1)
    # Of a normal law the SD's standard error is sd / sqrt(2 n).
    assert sample["sd"]["high"] - sample["sd"]["low"] == pytest.approx(2 * 1.96 * 10 / np.sqrt(600), rel=0.25)
    assert found["median"]["pr_ms"]["mae"]["value"] == 0.0
    assert found["sample"]["qrs_ms"]["mae"]["value"] is None
    assert found["sample"]["qrs_ms"]["loa"] == [None, None]


def test_failures_are_counted_and_a_kind_that_was_not_drawn_is_left_out():
    rows = table(
        people_names(5),
        real_pr_ms=[1.0, 2.0, 3.0, 4.0, None],
        drawn_pr_ms=[1.0, None, 3.0, np.nan, 5.0],
        real_qrs_ms=[1.0] * 5,
        drawn_qrs_ms=[1.0] * 5,
    )
    features_only = table(people_names(5), "demographic_regression", real_pr_ms=[1.0] * 5, median_pr_ms=[2.0] * 5)
    found = agreement(stacked(rows, features_only), **QUICK)
    pr = found["model"]["sample"]["pr_ms"]
    assert (pr["real_failures"], pr["drawn_failures"], pr["n"], pr["windows"]) == (0.2, 0.5, 2, 2)
    assert set(found["model"]) == {"sample"}
    assert set(found["demographic_regression"]) == {"median"}
    assert found["demographic_regression"]["median"]["pr_ms"]["bias"]["value"] == 1.0


# --- classes ---


def test_kappa_by_hand_and_against_scikit_learn():
    from sklearn.metrics import cohen_kappa_score

    # Cohen's own kind of table: p_o = .7, p_e = .5.
    assert cohen(np.array([[20.0, 5.0], [10.0, 15.0]])) == pytest.approx(0.4)
    assert cohen(np.eye(3)) == pytest.approx(1.0)
    assert np.isnan(cohen(np.array([[7.0, 0.0], [0.0, 0.0]])))
    rng = rng_of()
    real, drawn = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    people = People.of(np.array(people_names(200)), **QUICK)
    mean = people.average(tables(real, drawn, 3, people))[0]
    assert cohen(mean) == pytest.approx(cohen_kappa_score(real, drawn))


def rhythm_rows(pairs):
    real, drawn = zip(*pairs, strict=True)
    return table(people_names(len(pairs)), rhythm=list(real), drawn_rhythm=list(drawn))


def test_rhythm_by_hand():
    pairs = (
        [("irregular", "irregular")] * 6
        + [("irregular", "regular")] * 2
        + [("irregular", "unknown")] * 2
        + [("regular", "irregular")] * 3
        + [("regular", "regular")] * 27
        + [("unknown", "irregular")] * 50
    )
    found = rhythm_agreement(rhythm_rows(pairs), **QUICK)["model"]["irregular"]
    assert found["sensitivity"]["value"] == pytest.approx(0.6)
    assert found["predictivity"]["value"] == pytest.approx(6 / 9)
    assert found["f1"]["value"] == pytest.approx(12 / (12 + 3 + 4))
    assert found["n"] == 40
    expected = (33 * 40 - (10 * 9 + 30 * 29)) / (40 * 40 - (10 * 9 + 30 * 29))
    assert found["kappa"]["value"] == pytest.approx(expected)
    assert found["sensitivity"]["low"] < 0.6 < found["sensitivity"]["high"]
    features_only = table(people_names(2), "demographic_regression", rhythm=["regular"] * 2)
    assert rhythm_agreement(features_only) == {}


# --- morphology ---


def lead_rows(real, drawn, person=None, **columns):
    """Per-lead features (row, 12): amplitudes all the same, ST and polarity if named."""
    person = people_names(len(real)) if person is None else person
    named = {}
    for side, values in (("real", real), ("drawn", drawn)):
        named |= {f"{side}_{name}": values for name in ("p_mv", "r_mv", "s_mv", "t_mv")}
    return table(person, **(named | columns))


def test_a_constant_has_slope_minus_one_and_no_variance_and_a_faithful_one_zero_and_one():
    real = rng_of().normal(1, 0.3, (200, 12))
    for drawn, ratio, slope in (
        (np.full((200, 12), 0.9), 0.0, -1.0),
        (real, 1.0, 0.0),
        (0.8 * real + 0.1, 0.64, -0.2),
        (2 * real, 4.0, 1.0),
    ):
        found = morphology(lead_rows(real, drawn), **QUICK)["model"]["amplitude"]["r_mv"]
        assert found["variance_ratio"]["value"] == pytest.approx(ratio, abs=1e-6)
        assert found["slope"]["value"] == pytest.approx(slope, abs=1e-6)
        one = found["by_lead"]["V3"]
        column = LEADS.index("V3")
        fit = stats.linregress(real[:, column], (drawn - real)[:, column])
        assert one["slope"] == pytest.approx(fit.slope, abs=1e-5)
        assert one["bias"] == pytest.approx((drawn - real)[:, column].mean(), abs=1e-6)
        assert one["mae"] == pytest.approx(np.abs(drawn - real)[:, column].mean(), abs=1e-6)


def test_a_fresh_draw_of_the_same_law_keeps_the_variance_however_many_windows_a_person_has():
    """Means of a person's windows would make the drawn vary less than the recorded, which stay the same."""
    rng = rng_of(5)
    people, windows = 300, 4
    real = np.repeat(rng.normal(1, 0.3, (people, 12)), windows, axis=0)
    drawn = rng.normal(1, 0.3, (people * windows, 12))
    rows = lead_rows(real, drawn, people_names(people, windows=windows))
    found = morphology(rows, **QUICK)["model"]["amplitude"]["r_mv"]
    assert found["variance_ratio"]["low"] < 1.0 < found["variance_ratio"]["high"]
    assert found["slope"]["value"] == pytest.approx(-1, abs=0.1)
    assert found["slope"]["n"] == people


def test_missing_leads_are_left_out_and_failures_counted():
    rng = rng_of(2)
    real = rng.normal(1, 0.3, (100, 12))
    drawn = real.copy()
    real[:, LEADS.index("V6")] = np.nan
    drawn[:20, LEADS.index("V1")] = np.nan
    found = morphology(lead_rows(real, drawn), **QUICK)["model"]["amplitude"]["r_mv"]
    assert found["by_lead"]["V6"] == {"bias": None, "mae": None, "variance_ratio": None, "slope": None}
    assert found["failures"] == pytest.approx(20 / 1100)
    assert found["variance_ratio"]["value"] == pytest.approx(1.0)


def test_st_quantiles_false_elevation_and_classes_by_hand():
    n = 40
    real, drawn = np.zeros((n, 12)), np.zeros((n, 12))
    v2, avr = LEADS.index("V2"), LEADS.index("aVR")
    drawn[:] = 0.04
    drawn[:4, v2] = 0.16  # above the limit of women, below that of men
    drawn[4:8, avr] = 0.3  # aVR is not asked
    real[8:10, 0] = drawn[8:10, 0] = 0.12  # a true one: not among those without
    female = np.array([1.0] * 2 + [0.0] * (n - 2))
    rows = lead_rows(
        np.ones((n, 12)), np.ones((n, 12)),
        real_st_filtered_mv=real, drawn_st_filtered_mv=drawn, female=female, age_years=np.full(n, 60.0),
    )  # fmt: skip
    found = morphology(rows, **QUICK)["model"]["st_filtered"]
    assert found["median_abs_mv"]["value"] == pytest.approx(0.04)
    assert found["false_elevation"]["value"] == pytest.approx(2 / 38)
    assert found["p95_abs_mv"]["value"] == pytest.approx(0.04)
    # Elevated: real 2, drawn 2 (V2 of women) + 4 (aVR) + 2, of n x 12.
    cells = n * 12
    expected = (1 - 6 / cells - (2 * 8 + (cells - 2) * (cells - 8)) / cells**2) / (
        1 - (2 * 8 + (cells - 2) * (cells - 8)) / cells**2
    )
    assert found["kappa"]["value"] == pytest.approx(expected)


def test_quantiles_of_st_error_are_those_of_numpy_over_windows_and_leads():
    real, drawn = rng_of(4).normal(0, 0.1, (2, 101, 12))
    drawn[:, LEADS.index("V6")] = np.nan
    rows = lead_rows(real, drawn, real_st_filtered_mv=real, drawn_st_filtered_mv=drawn)
    found = morphology(rows, **QUICK)["model"]["st_filtered"]
    error = np.abs(drawn - real)[:, :-1]
    assert found["median_abs_mv"]["value"] == pytest.approx(np.quantile(error, 0.5), rel=0.01)
    assert found["p95_abs_mv"]["value"] == pytest.approx(np.quantile(error, 0.95), rel=0.01)


def test_polarity_counts_what_was_not_found_as_wrong():
    n = 50
    real = np.ones((n, 12))
    drawn = real.copy()
    drawn[:10, LEADS.index("V4")] = np.nan
    drawn[:5, LEADS.index("II")] = -1
    drawn[:, LEADS.index("V1")] = -1  # not scored in the figure
    rows = lead_rows(np.ones((n, 12)), np.ones((n, 12)), real_t_polarity=real, drawn_t_polarity=drawn)
    found = morphology(rows, **QUICK)["model"]["t_polarity"]
    assert found["agreement"]["value"] == pytest.approx(1 - 15 / (n * len(POLARITY_LEADS)))
    assert found["by_lead"]["V1"]["agreement"] == 0.0
    assert found["by_lead"]["V4"]["agreement"] == pytest.approx(0.8)


def test_transition_and_progression_by_hand():
    n = 10
    r, s = np.full((n, 12), 1.0), np.full((n, 12), -0.5)
    real_r, drawn_r = r.copy(), r.copy()
    v1, v3 = LEADS.index("V1"), LEADS.index("V3")
    real_r[:5, v1] = 0.2
    drawn_r[:5, v1] = 0.2
    real_r[5:, v3], drawn_r[5:, v3] = 0.2, 0.9
    columns = {
        "real_r_mv": real_r, "drawn_r_mv": drawn_r, "real_s_mv": s, "drawn_s_mv": s,
        "real_transition": [3.0] * 9 + [None],
        "drawn_transition": [3.0, 4.0, 4.1, None] + [2.5] * 6,
    }  # fmt: skip
    found = morphology(lead_rows(r, r, **columns), **QUICK)["model"]["transition"]
    assert found["within_one"]["value"] == pytest.approx(7 / 9)
    assert found["v1_dominant_r_kappa"]["value"] == pytest.approx(1.0)
    assert found["poor_progression_kappa"]["value"] == pytest.approx(0.0)


# --- calibration ---


def test_crps_of_a_normal_law_is_its_closed_form():
    rng = rng_of(7)
    truth = np.linspace(-2, 2, 9)
    draws = rng.normal(size=(9, 20_000))
    z = truth
    closed = z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi)
    assert crps(truth, draws) == pytest.approx(closed, abs=0.02)


def test_crps_is_the_mean_over_pairs_and_leaves_nan_out():
    rng = rng_of(8)
    truth, draws = rng.normal(0, 100, 6), rng.normal(0, 100, (6, 7))
    for circular in (False, True):
        away = (lambda d: abs((d + 180) % 360 - 180)) if circular else abs
        by_hand = [
            np.mean([away(x - y) for x in row]) - sum(away(a - b) for a in row for b in row) / (2 * 7 * 6)
            for y, row in zip(truth, draws, strict=True)
        ]
        assert crps(truth, draws, circular=circular) == pytest.approx(by_hand)
        holed = np.concatenate([draws, np.full((6, 2), np.nan)], axis=1)
        assert crps(truth, holed, circular=circular) == pytest.approx(by_hand)
    assert crps(np.array([179.0]), np.array([[-179.0, -179.0]]), circular=True) == pytest.approx([2.0])


@pytest.mark.parametrize("samples", [20, 39])
def test_intervals_hold_what_they_say_of_the_right_law(samples):
    rng = rng_of(9)
    n = 20_000
    truth, draws = rng.normal(size=n), rng.normal(size=(n, samples))
    for share in (0.5, 0.8, 0.9):
        low, high = central_interval(draws, share)
        assert ((truth >= low) & (truth <= high)).mean() == pytest.approx(share, abs=0.01)


def calibration_rows(spread, n=1500, samples=20, feature="pr_ms", centre=160.0, seed=0):
    rng = rng_of(seed)
    mean = rng.normal(centre, 10, n)
    truth, draws = rng.normal(mean, 10), rng.normal(mean[:, None], 10 * spread, (n, samples))
    if feature.endswith("deg"):
        truth, draws = wrap_deg(truth), wrap_deg(draws)
    return table(people_names(n), **{f"real_{feature}": truth, f"draws_{feature}": draws})


def test_pit_is_flat_for_the_right_law_a_u_for_an_overconfident_and_a_hump_for_an_unsure_one():
    pit = {s: np.array(calibration(calibration_rows(s), **QUICK)["model"]["pr_ms"]["pit"]) for s in (1.0, 0.4, 2.5)}
    for counts in pit.values():
        assert counts.sum() == pytest.approx(1500)
    assert np.abs(pit[1.0] - 150).max() < 45
    assert pit[0.4][[0, 9]].min() > 2 * 150 > 4 * pit[0.4][4:6].max()
    assert pit[2.5][[0, 9]].max() < 50 < 150 < pit[2.5][4:6].min()


@pytest.mark.parametrize(("feature", "centre"), [("pr_ms", 160.0), ("qrs_axis_deg", 178.0)])
def test_coverage_width_and_crps_of_a_known_law(feature, centre):
    found = calibration(calibration_rows(1.0, feature=feature, centre=centre), **QUICK)["model"][feature]
    for share in (50, 80, 90):
        figure = found[f"coverage_{share}"]
        assert figure["value"] == pytest.approx(share / 100, abs=0.04)
        assert figure["low"] < share / 100 < figure["high"]
    # At 19.95 of 20 order statistics, whose means are 1.408 and 1.867 (Harter 1961).
    assert found["width_90"]["value"] == pytest.approx(2 * 10 * (0.05 * 1.408 + 0.95 * 1.867), rel=0.02)
    assert found["crps"]["value"] == pytest.approx(10 / np.sqrt(np.pi), rel=0.06)
    assert (found["n"], found["windows"]) == (1500, 1500)
    sure = calibration(calibration_rows(0.4, feature=feature, centre=centre), **QUICK)["model"][feature]
    assert sure["coverage_90"]["high"] < 0.75
    assert sure["crps"]["value"] > found["crps"]["value"]


def test_a_window_needs_twenty_samples_and_half_of_them_found():
    for samples, found, counts in ((20, 20, True), (20, 19, False), (60, 30, True), (60, 29, False)):
        draws = np.ones((2, samples))
        draws[0, found:] = np.nan
        figures = calibration(table(people_names(2), real_pr_ms=[1.0] * 2, draws_pr_ms=draws), **QUICK)
        assert figures["model"]["pr_ms"]["windows"] == 1 + counts, (samples, found)
        assert set(figures["model"]) == {"pr_ms"}
        assert figures["model"]["pr_ms"]["left_out"] == 1 - counts
        assert figures["model"]["pr_ms"]["failed"] == pytest.approx((samples - found) / (2 * samples))
    few = table(people_names(3), real_pr_ms=[1.0] * 3, draws_pr_ms=np.ones((3, 4)))
    assert calibration(few, **QUICK) == {}


def test_pit_spreads_ties_evenly():
    assert pit_counts(np.array([1.0]), np.ones((1, 20))) == pytest.approx(np.full(10, 0.1))


# --- fairness ---


def fair_rows(n_old=60, n_young=60, gap=0.0, seed=0, women=0.5):
    rng = rng_of(seed)
    n = n_old + n_young
    age = np.repeat([75.0, 30.0], [n_old, n_young])
    female = (np.arange(n) % 10 < 10 * women).astype(float)
    error = rng.normal(0.3, 0.05, n) + gap * (age > 65)
    return table(
        people_names(n), age_years=age, female=female, height_cm=np.full(n, 170.0), weight_kg=np.full(n, 80.0),
        rhythm=["regular"] * n, rmse_mv_sample=error, correlation_sample_lag=1 - error,
    )  # fmt: skip


METRIC_NAMES = ["rmse_mv_sample", "correlation_sample_lag"]


def test_a_planted_gap_is_found_with_its_side_and_size():
    rows = fair_rows(gap=0.1)
    found = fairness(rows, metrics=METRIC_NAMES, **QUICK)
    error = scalars(rows, "rmse_mv_sample")
    gap = found["age"]["gaps"]["rmse_mv_sample"]
    assert gap["value"] == pytest.approx(error[:60].mean() - error[60:].mean())
    assert gap["low"] > 0.07
    assert (gap["highest"], gap["lowest"]) == (">=65", "<40")
    assert gap["relative"] == pytest.approx(gap["value"] / error.mean())
    # A median over people, where the metric is one.
    level = found["age"]["levels"][">=65"]["correlation_sample_lag"]
    assert level["value"] == pytest.approx(1 - np.median(error[:60]))
    assert found["sex"]["gaps"]["rmse_mv_sample"]["value"] < 0.05


def test_levels_of_few_people_are_not_shown_and_in_no_gap():
    found = fairness(fair_rows(n_old=29, gap=5.0), metrics=METRIC_NAMES, **QUICK)["age"]
    assert found["levels"][">=65"] == {"n": 29, "rmse_mv_sample": None, "correlation_sample_lag": None}
    assert found["levels"]["40-64"]["n"] == 0
    assert found["gaps"]["rmse_mv_sample"]["value"] is None
    shown = fairness(fair_rows(n_old=29, gap=5.0), metrics=METRIC_NAMES, least=29, **QUICK)["age"]
    assert shown["gaps"]["rmse_mv_sample"]["value"] == pytest.approx(5, abs=0.05)


def opportunity_rows(sensitivity, people=60, windows=2, seed=0):
    """People of both sexes with an irregular rhythm and a long QTcF, found as often as it says of men and women."""
    rng = rng_of(seed)
    n = people * windows
    female = np.repeat(np.arange(people) % 2, windows).astype(float)
    limit = np.where(female > 0, 460.0, 450.0)
    found = rng.random((2, n)) < np.where(female > 0, sensitivity[1], sensitivity[0])
    columns = {
        "female": female, "age_years": np.full(n, 50.0), "rhythm": ["irregular"] * n,
        "drawn_rhythm": [["regular", "irregular"][int(k)] for k in found[0]],
        "real_qtcf_ms": limit + 5.0, "drawn_qtcf_ms": limit + np.where(found[1], 1.0, -1.0),
        "rmse_mv_sample": np.ones(n),
    }  # fmt: skip
    return table(people_names(people, windows=windows), **columns), found, female


FINDINGS = ("irregular_found", "long_qtc_found")


def test_a_planted_gap_in_sensitivity_is_found_with_its_side_and_size():
    rows, found, female = opportunity_rows((0.9, 0.4))
    groups = fairness(rows, metrics=["rmse_mv_sample"], **QUICK)
    for k, name in enumerate(FINDINGS):
        result = groups["sex"]["opportunity"][name]
        men, women = found[k][female == 0].mean(), found[k][female == 1].mean()
        assert result["levels"]["male"]["sensitivity"]["value"] == pytest.approx(men)
        assert result["gap"]["value"] == pytest.approx(men - women)
        assert (result["gap"]["highest"], result["gap"]["lowest"]) == ("male", "female")
        assert 0.2 < result["gap"]["low"] < men - women < result["gap"]["high"]
        assert (result["note"], result["levels"]["male"]["n"]) == ("", 30)
        # All are of one age, so that there is nothing to compare.
        assert groups["age"]["opportunity"][name]["gap"]["value"] is None
        assert "<40 0, 40-64 60, >=65 0" in groups["age"]["opportunity"][name]["note"]
    same = fairness(opportunity_rows((1.0, 1.0))[0], metrics=["rmse_mv_sample"], **QUICK)
    assert [same["sex"]["opportunity"][name]["gap"]["value"] for name in FINDINGS] == [0.0, 0.0]


def test_opportunity_is_of_those_who_have_it_and_not_measured_among_few():
    rows = opportunity_rows((0.9, 0.4), people=58)[0]
    result = fairness(rows, metrics=["rmse_mv_sample"], **QUICK)["sex"]["opportunity"]["irregular_found"]
    assert result["levels"] == {level: {"n": 29, "sensitivity": None} for level in ("male", "female")}
    assert result["gap"]["value"] is None
    assert "it takes 30 people who have it in two groups, and there are male 29, female 29" in result["note"]
    # Who has it not, is in no sensitivity, whatever is drawn.
    n = 4
    mixed = table(
        people_names(n), female=[0.0, 0.0, 1.0, None], age_years=[50.0] * n,
        rhythm=["irregular", "regular", "unknown", "irregular"], drawn_rhythm=["unknown"] + ["irregular"] * 3,
        real_qtcf_ms=[455.0, 449.0, 455.0, 500.0], drawn_qtcf_ms=[None, 500.0, 500.0, 500.0],
        rmse_mv_sample=np.ones(n),
    )  # fmt: skip
    groups = fairness(mixed, metrics=["rmse_mv_sample"], least=1, **QUICK)
    by_age = {name: groups["age"]["opportunity"][name]["levels"]["40-64"] for name in FINDINGS}
    assert by_age["irregular_found"]["n"] == 2
    assert by_age["irregular_found"]["sensitivity"]["value"] == 0.5
    assert by_age["long_qtc_found"]["n"] == 1, "455 ms is long in men alone, and of no limit where sex is unknown"
    assert by_age["long_qtc_found"]["sensitivity"]["value"] == 0.0, "what cannot be measured was not found"


def test_levels_have_their_edges_and_the_unknown_are_counted():
    rows = table(
        people_names(7),
        age_years=[39.9, 40.0, 64.9, 65.0, None, 20.0, 20.0],
        female=[1.0, 0.0, None, None, None, None, None],
        height_cm=[100.0] * 6 + [None],
        weight_kg=[24.9, 25.0, 29.9, 30.0, None, 20.0, 20.0],
        rhythm=["irregular"] * 2 + ["unknown"] * 5,
        rmse_mv_sample=np.ones(7),
    )
    found = fairness(rows, metrics=["rmse_mv_sample"], least=1, **QUICK)
    numbers = {g: {k: v["n"] for k, v in found[g]["levels"].items()} for g in found}
    assert numbers == {
        "sex": {"male": 1, "female": 1},
        "age": {"<40": 3, "40-64": 2, ">=65": 1},
        "bmi": {"<25": 2, "25-30": 2, ">=30": 1},
        "rhythm": {"regular": 0, "irregular": 2},
    }
    assert {g: found[g]["unknown"] for g in found} == {"sex": 5, "age": 1, "bmi": 2, "rhythm": 5}


# --- counterfactual ---


def counterfactual_rows(effects, n=80, samples=4, seed=0):
    """Rows of the six runs, with effects {(system, feature): size} on one and the same scatter."""
    rng = rng_of(seed)
    scatter = {f: rng.normal(0, 15, (n, samples)) for f in ("pr_ms", "qrs_ms", "qtcf_ms", "qrs_axis_deg", "hr_bpm")}
    start = {"pr_ms": 160, "qrs_ms": 90, "qtcf_ms": 400, "qrs_axis_deg": 178, "hr_bpm": 65}
    t_mv = rng.uniform(0.2, 0.5, (n, 12))
    made = []
    for system in ("base", "female", "male", "height+10", "bmi+5", "age+20"):
        columns = {}
        for name, noise in scatter.items():
            values = start[name] + noise + effects.get((system, name), 0.0)
            columns[f"draws_{name}"] = wrap_deg(values) if name.endswith("deg") else values
        columns["drawn_t_mv"] = t_mv * (1 + effects.get((system, "t_mv"), 0.0) / 100)
        made.append(table(people_names(n), f"counterfactual:{system}", **columns))
    # The order of the rows must not matter: windows are paired by name.
    made[1] = made[1].take(np.arange(n)[::-1])
    return stacked(*made)


def test_published_effects_are_found_with_their_size():
    effects = {(effect.minuend, effect.feature): effect.published for effect in EFFECTS}
    found = counterfactual(counterfactual_rows(effects), **QUICK)
    assert len(found) == len(EFFECTS) >= 6
    for row in found:
        assert row["found"]["value"] == pytest.approx(row["published"], abs=1e-6), row
        assert row["right_sign"] is True
        assert row["in_range"] is True
        assert row["found"]["n"] == 80


def test_a_wrong_sign_a_wrong_size_and_no_effect_are_told_apart():
    effects = {
        ("female", "qtcf_ms"): -11.0,
        ("female", "qrs_ms"): -20.0,
        ("female", "hr_bpm"): 3.0,
        ("female", "t_mv"): -12.0,
        ("age+20", "qrs_axis_deg"): -5.0,
    }
    found = {(r["change"], r["feature"]): r for r in counterfactual(counterfactual_rows(effects), **QUICK)}

    def verdict(change, feature):
        row = found[change, feature]
        return row["right_sign"], row["in_range"]

    assert verdict("woman for man", "qtcf_ms") == (False, False)
    assert verdict("woman for man", "qrs_ms") == (True, False)
    assert verdict("woman for man", "pr_ms") == (False, False)
    assert verdict("woman for man", "t_mv") == (True, True)
    assert verdict("woman for man", "hr_bpm") == (False, False)
    assert verdict("age +20 years", "qrs_axis_deg") == (True, False)
    assert found["woman for man", "hr_bpm"]["found"]["value"] == pytest.approx(3.0)


def test_without_the_runs_there_is_no_effect_and_without_a_feature_no_judgement():
    assert counterfactual(table(["a"]), **QUICK) == []
    rows = stacked(table(["a"], "counterfactual:female"), table(["a"], "counterfactual:male"))
    found = counterfactual(rows, **QUICK)
    assert {r["change"] for r in found} == {"woman for man"}
    assert all(r["found"]["value"] is None and r["right_sign"] is None for r in found)


# --- the leakage audit ---


def audit_rows(model_error, regression_error, seed=0):
    """Both systems with given errors (person, feature)."""
    n = len(model_error)
    real = rng_of(seed).normal([160, 90, 400, 170], [22, 9, 20, 30], (n, 4))
    wrap = np.array([False, False, False, True])
    made = []
    for system, error in (("model", model_error), ("demographic_regression", regression_error)):
        columns = {}
        for k, name in enumerate(AUDITED):
            truth, median = real[:, k], real[:, k] + error[:, k]
            columns[f"real_{name}"], columns[f"median_{name}"] = (
                wrap_deg(v) if wrap[k] else v for v in (truth, median)
            )
        if system != "model":  # features only: the recorded ones are read from the model's rows
            columns = {name: values for name, values in columns.items() if name.startswith("median")}
        made.append(table(people_names(n), system, **columns))
    return stacked(*made)


SPREAD = np.array([22.0, 9.0, 20.0, 30.0])


def test_a_model_that_knows_too_much_is_stopped():
    error = rng_of(1).normal(0, SPREAD, (100, 4))
    found = leakage_audit(audit_rows(0.5 * error, error), **QUICK)
    assert found["raised"] is True
    for figure in found["skills"].values():
        assert figure["value"] == pytest.approx(0.5)
    assert "leakage suspected" in found["message"]
    assert "people shared between training and test" in found["message"]
    # One feature is enough.
    one = error.copy()
    one[:, 3] *= 0.5
    found = leakage_audit(audit_rows(one, error), **QUICK)
    assert found["raised_by"] == ["qrs_axis_deg"]


def test_the_regression_itself_and_a_sample_of_it_raise_nothing():
    error = rng_of(2).normal(0, SPREAD, (100, 4))
    same = leakage_audit(audit_rows(error, error), **QUICK)
    assert same["raised"] is False
    assert all(s["value"] == 0.0 for s in same["skills"].values())
    worse = leakage_audit(audit_rows(np.sqrt(2) * error, error), **QUICK)
    assert worse["raised"] is False
    assert "no sign of leakage" in worse["message"]


def test_noise_of_twelve_people_seldom_alarms_and_leakage_of_thirty_always_does():
    """Errors as large as the regression's, but independent of them: the worst honest case."""
    alarms = found = 0
    for seed in range(100):
        rng = rng_of(1000 + seed)
        ours, theirs = rng.normal(0, SPREAD, (2, 12, 4))
        alarms += leakage_audit(audit_rows(ours, theirs, seed), **QUICK)["raised"]
    for seed in range(20):
        ours, theirs = rng_of(seed).normal(0, SPREAD, (2, 30, 4))
        found += leakage_audit(audit_rows(0.4 * ours, theirs, seed), **QUICK)["raised"]
    assert alarms <= 5
    assert found == 20


def test_the_audit_says_when_it_could_not_run():
    rows = stacked(table(["a"], real_pr_ms=[1.0]), table(["a"], "demographic_regression"))
    found = leakage_audit(rows, **QUICK)
    assert found["raised"] is False
    assert "could not run" in found["message"]
    assert found["skills"]["pr_ms"]["value"] is None
    assert "could not run" in leakage_audit(rows.slice(0, 1), **QUICK)["message"]


def test_rows_without_the_system_have_no_figures():
    rows = table(["a"], "template")
    found = fairness(rows, metrics=["rmse_mv_sample"], **QUICK)
    assert found["sex"]["levels"]["female"] == {"n": 0, "rmse_mv_sample": None}
    none = rows.slice(0, 0)
    for figures in (agreement, morphology, rhythm_agreement, calibration):
        assert figures(none, **QUICK) == {}
