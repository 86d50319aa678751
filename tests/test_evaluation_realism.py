import numpy as np
import pytest
from row_tables import BEAT, WAVE, people_names, stacked, table
from scipy import linalg, ndimage

from p2es.errors import InputError
from p2es.evaluation.bootstrap import People
from p2es.evaluation.encoding import Space, dimensions
from p2es.evaluation.memorisation import aligned_correlation, memorisation
from p2es.evaluation.realism import _spread, c2st, frechet, kernel_distance, neighbourhoods, realism

QUICK = {"bootstrap": 200, "seed": 0}


def rng_of(seed=0):
    return np.random.default_rng(seed)


def people_of(n, windows=1):
    return People.of(np.array(people_names(n, windows=windows)), **QUICK)


# --- ECGs of a made-up law: a few shapes for the beat, pulses at a rate for the wave ---

SHAPES = ndimage.gaussian_filter1d(np.random.default_rng(99).normal(size=(6, BEAT)), 3, axis=1)


def ecgs(n, rng, *, level=0.0, spread=1.0):
    """Beats (n, BEAT) and waves (n, WAVE) of people drawn afresh."""
    beats = level + spread * rng.normal(size=(n, 6)) @ SHAPES + rng.normal(0, 0.01, (n, BEAT))
    t = np.arange(WAVE) / 64
    rate, phase, size = rng.uniform(0.8, 1.6, (n, 1)), rng.uniform(0, 1, (n, 1)), rng.uniform(0.5, 1.5, (n, 1))
    turn = np.mod(t * rate + phase + 0.05 * np.cumsum(rng.normal(size=(n, WAVE)), axis=1) / 8, 1) - 0.5
    return beats, size * np.exp(-((turn / 0.06) ** 2)) + rng.normal(0, 0.01, (n, WAVE))


def pairs(real, drawn, person=None, system="model", **columns):
    person = people_names(len(real[0])) if person is None else person
    sides = {"real_encoding": real[0], "real_wave": real[1], "drawn_encoding": drawn[0], "drawn_wave": drawn[1]}
    return table(person, system, **(sides | columns))


def bank_of(ecg, prefix="train"):
    return table(people_names(len(ecg[0]), prefix), "train", real_encoding=ecg[0], real_wave=ecg[1])


# --- Fréchet ---


def test_frechet_is_the_closed_form():
    rng = rng_of(0)
    n, d = 200_000, 4
    one = rng.multivariate_normal(np.zeros(d), np.diag([1.0, 4.0, 9.0, 0.25]), n)
    other = rng.multivariate_normal([1.0, 0.0, -2.0, 0.0], np.diag([4.0, 1.0, 9.0, 0.0]), n)
    # Diagonal covariances: the sum of squared differences of the SDs, and of the means.
    assert frechet(one, other) == pytest.approx(1 + 4 + (1 + 1 + 0 + 0.25), abs=0.05)


def test_frechet_with_covariances_that_do_not_commute_against_scipy():
    rng = rng_of(1)
    one, other = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(70, 5)) @ rng.normal(size=(5, 5))
    s1, s2 = np.cov(one.T), np.cov(other.T)
    shift = one.mean(axis=0) - other.mean(axis=0)
    expected = shift @ shift + np.trace(s1 + s2 - 2 * linalg.sqrtm(s1 @ s2).real)
    assert frechet(one, other) == pytest.approx(expected)
    assert frechet(other, one) == pytest.approx(expected)
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)
    # A system that always draws the same: the whole covariance of the other is left.
    assert frechet(one, np.zeros((60, 5))) == pytest.approx(one.mean(axis=0) @ one.mean(axis=0) + np.trace(s1))


def test_frechet_is_relative_to_recordings_of_others():
    rng = rng_of(2)
    n = 200
    real, bank = ecgs(n, rng), bank_of(ecgs(3 * n, rng))
    systems = {
        "model": ecgs(n, rng),
        "flat": (np.zeros((n, BEAT)), np.zeros((n, WAVE))),
        "shifted": tuple(part + 0.3 for part in ecgs(n, rng)),
        "copied": real,
    }
    found = realism(stacked(*(pairs(real, drawn, system=s) for s, drawn in systems.items())), bank, **QUICK)
    for name in ("frechet_waveform", "frechet_feature"):
        figure = found["model"][name]
        assert 0.6 < figure["relative"] < 1.4, name
        assert figure["relative"] == pytest.approx(figure["value"] / figure["real_half"])
        assert (figure["n"], figure["dimensions"]) == (n, 20)
        # Of one law, and yet far from 0: what few windows add.
        assert figure["real_half"] > 0
        assert found["flat"][name]["relative"] > 1.5
        assert found["shifted"][name]["relative"] > 1.5
        assert found["copied"][name]["relative"] == pytest.approx(0, abs=1e-6)


def test_frechet_has_as_many_windows_as_the_bank_and_none_with_few():
    rng = rng_of(3)
    rows = pairs(ecgs(60, rng), ecgs(60, rng))
    figure = realism(rows, bank_of(ecgs(40, rng)), **QUICK)["model"]["frechet_feature"]
    assert (figure["n"], figure["dimensions"]) == (40, 4)
    for few in (bank_of(ecgs(10, rng)), bank_of(ecgs(10, rng)).slice(0, 0)):
        found = realism(rows, few, **QUICK)["model"]
        assert found["frechet_feature"] is None
        assert found["frechet_waveform"] is None
        assert found["precision"]["value"] is not None


def test_rows_are_chosen_one_of_each_person_before_a_second_of_any():
    person = np.array(["a"] * 50 + ["b"] * 3 + ["c"])
    for seed in range(5):
        chosen = person[_spread(person, 7, rng_of(seed))]
        assert sorted(chosen) == ["a"] * 3 + ["b"] * 3 + ["c"]
        assert len(set(chosen[:3])) == 3


# --- KID ---


def test_kid_is_unbiased_and_by_hand():
    rng = rng_of(4)
    x, y = rng.normal(size=(12, 3)), rng.normal(1, 1, (12, 3))
    people = people_of(4, windows=3)
    scale = 3.0

    def mean_kernel(a, b):
        kept = [(a[i] @ b[j] / scale + 1) ** 3 for i in range(12) for j in range(12) if i // 3 != j // 3]
        return np.mean(kept)

    expected = mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)
    assert kernel_distance(x, y, people, scale=scale)["value"] == pytest.approx(expected)
    alike = [kernel_distance(*rng.normal(size=(2, 30, 3)), people_of(30), scale=3)["value"] for _ in range(1000)]
    assert abs(np.mean(alike)) < 3 * np.std(alike) / np.sqrt(1000)
    far = kernel_distance(rng.normal(size=(100, 3)), rng.normal(1, 1, (100, 3)), people_of(100), scale=3)
    assert far["low"] > 0


# --- two samples ---


def two_samples(shift, n=300, seed=0, windows=1):
    rng = rng_of(seed)
    person = rng.normal(size=(n, 5)) if windows == 1 else np.repeat(rng.normal(size=(n // windows, 5)), windows, axis=0)
    real, drawn = person + 0.1 * rng.normal(size=(n, 5)), rng.normal(size=(n, 5))
    drawn[:, 0] += shift
    none = np.full((n, 1), np.nan)
    return c2st(real, drawn, none, none, people_of(n // windows, windows), seed=0)


def test_a_classifier_cannot_tell_what_is_of_one_law_and_can_what_is_not():
    alike, far = two_samples(0.0), two_samples(4.0)
    assert alike["low"] < 0.5 < alike["high"]
    assert alike["high"] - alike["low"] < 0.15
    assert far["value"] > 0.97
    assert far["low"] > 0.95


def test_a_classifier_that_has_seen_a_person_would_not_be_asked_about_them():
    """Eight recordings of a person are alike and the drawn are not, so folds by window would tell them apart."""
    values = [two_samples(0.0, n=240, seed=seed, windows=8)["value"] for seed in range(3)]
    assert np.mean(values) < 0.62


def test_trees_see_a_spread_that_a_mean_does_not():
    rng = rng_of(6)
    real, drawn, none = rng.normal(size=(300, 3)), 0.3 * rng.normal(size=(300, 3)), np.full((300, 1), np.nan)
    assert c2st(real, drawn, none, none, people_of(300), seed=0)["low"] > 0.75


def test_one_person_is_not_enough_for_a_test():
    none = np.full((30, 1), np.nan)
    figure = c2st(none, none, none, none, people_of(1, 30), seed=0)
    assert figure["value"] is None


# --- precision, recall, density, coverage ---


def by_hand(real, drawn, k=5):
    """The four by loops over people with one window each, own partner left out."""
    n = len(real)

    def reach(points, i):
        return sorted(np.linalg.norm(points[i] - points[j]) for j in range(n) if j != i)[k - 1]

    real_reach, drawn_reach = [reach(real, i) for i in range(n)], [reach(drawn, i) for i in range(n)]
    held = [[i != j and np.linalg.norm(real[i] - drawn[j]) <= real_reach[i] for j in range(n)] for i in range(n)]
    back = [[i != j and np.linalg.norm(real[i] - drawn[j]) <= drawn_reach[j] for j in range(n)] for i in range(n)]
    held, back = np.array(held), np.array(back)
    return {
        "precision": held.any(axis=0).mean(),
        "recall": back.any(axis=1).mean(),
        "density": held.sum(axis=0).mean() / k,
        "coverage": held.any(axis=1).mean(),
    }


def test_neighbourhoods_by_hand():
    rng = rng_of(7)
    real, drawn = rng.normal(size=(40, 3)), 0.7 * rng.normal(size=(40, 3)) + 0.2
    found = neighbourhoods(real, drawn, people_of(40))
    assert {name: figure["value"] for name, figure in found.items()} == pytest.approx(by_hand(real, drawn))


def test_a_collapsed_generator_is_precise_and_recalls_little_and_a_wild_one_the_reverse():
    rng = rng_of(8)
    n = 300
    # Three kinds of people, of which the collapsed one draws a single kind.
    kinds = 10 * np.eye(3)[rng.integers(0, 3, n)]
    real = kinds + rng.normal(size=(n, 3))
    systems = {
        "fresh": 10 * np.eye(3)[rng.integers(0, 3, n)] + rng.normal(size=(n, 3)),
        "collapsed": 10 * np.eye(3)[0] + 0.3 * rng.normal(size=(n, 3)),
        "wild": rng.normal(0, 15, (n, 3)),
        "elsewhere": real + 100,
    }
    found = {
        name: {key: figure["value"] for key, figure in neighbourhoods(real, drawn, people_of(n)).items()}
        for name, drawn in systems.items()
    }
    assert found["fresh"]["precision"] > 0.9 < found["fresh"]["recall"]
    assert found["fresh"]["density"] == pytest.approx(1, abs=0.1)
    assert found["fresh"]["coverage"] == pytest.approx(1 - 2**-5, abs=0.03)
    assert found["collapsed"]["precision"] > 0.95
    assert found["collapsed"]["recall"] < 0.1
    assert found["collapsed"]["coverage"] < 0.4
    assert found["wild"]["precision"] < 0.2
    assert found["wild"]["recall"] > 0.9
    assert set(found["elsewhere"].values()) == {0.0}


def test_windows_of_the_same_person_are_no_neighbours():
    """Each of 20 people has ten windows on one spot; the drawn lie between people, where only others' balls reach."""
    rng = rng_of(9)
    spots = np.repeat(rng.normal(size=(20, 2)), 10, axis=0)
    drawn = np.repeat(rng.normal(size=(20, 2)), 10, axis=0)
    found = neighbourhoods(spots, drawn, people_of(20, 10))
    assert found["precision"]["value"] > 0.5
    own = neighbourhoods(spots[:10], drawn[:10], people_of(1, 10))
    assert own["precision"]["value"] is None


# --- the whole ---


def test_a_lead_that_was_not_recorded_tells_nothing():
    rng = rng_of(10)
    n = 120
    real, drawn = ecgs(n, rng), ecgs(n, rng)
    real[0][:, :24] = np.nan  # two leads of eight; the drawn ECG has them, far off
    drawn[0][:, :24] = 50.0
    found = realism(pairs(real, drawn), bank_of(ecgs(200, rng)), **QUICK)["model"]
    assert found["c2st_auroc"]["value"] < 0.7
    assert found["precision"]["value"] > 0.5
    assert 0.5 < found["frechet_feature"]["relative"] < 3


def test_features_count_and_their_failures_do_not_tell():
    rng = rng_of(11)
    n = 150
    real, drawn, bank = ecgs(n, rng), ecgs(n, rng), ecgs(n, rng)
    narrow = {"real_qrs_ms": rng.normal(90, 9, n), "drawn_qrs_ms": rng.normal(150, 9, n)}
    turned = {"real_qrs_axis_deg": rng.normal(180, 5, n), "drawn_qrs_axis_deg": rng.normal(-180, 5, n)}
    failed = {"real_qrs_ms": rng.normal(90, 9, n), "drawn_qrs_ms": np.full(n, np.nan)}
    rows = stacked(
        pairs(real, drawn, system="wide", **narrow),
        pairs(real, drawn, system="turned", **turned),
        pairs(real, drawn, system="failed", **failed),
    )
    found = realism(rows, bank_of(bank), **QUICK)
    assert found["wide"]["c2st_auroc"]["low"] > 0.9
    # 180 and -180 degrees are the same axis.
    assert found["turned"]["c2st_auroc"]["value"] < 0.65
    assert found["failed"]["c2st_auroc"]["value"] < 0.65


def test_systems_that_drew_nothing_or_little_are_left_out():
    rng = rng_of(12)
    little = pairs(ecgs(19, rng), ecgs(19, rng), system="little")
    none = table(people_names(30), "demographic_regression", real_encoding=ecgs(30, rng)[0])
    assert realism(stacked(little, none), bank_of(ecgs(50, rng)), **QUICK) == {}


def test_the_same_rows_in_another_order_give_the_same_figures():
    rng = rng_of(13)
    rows, bank = pairs(ecgs(60, rng), ecgs(60, rng)), bank_of(ecgs(60, rng))
    turned = rows.take(rng.permutation(60))
    one, other = (realism(part, bank, **QUICK)["model"] for part in (rows, turned))
    for name in ("precision", "recall", "density", "coverage", "kid"):
        assert other[name]["value"] == pytest.approx(one[name]["value"])
    assert other["frechet_feature"]["value"] == pytest.approx(one["frechet_feature"]["value"])


# --- the space ---


def test_the_space_keeps_distances_of_what_varies_and_takes_the_mean_for_what_is_missing():
    rng = rng_of(14)
    reference = rng.normal(5, 2, (500, 3))
    space = Space.of(reference, 3)
    x = space.project(reference)
    assert x.mean(axis=0) == pytest.approx(np.zeros(3), abs=1e-9)
    # A rotation: distances are those of the standardised columns.
    z = (reference - reference.mean(axis=0)) / reference.std(axis=0)
    assert np.linalg.norm(x[0] - x[1]) == pytest.approx(np.linalg.norm(z[0] - z[1]))
    assert np.linalg.norm(space.project(np.full((1, 3), np.nan))) == pytest.approx(0)
    flat = Space.of(np.zeros((50, 3)), 2)
    assert flat.project(np.full((1, 3), 0.01)).shape == (1, 2)
    assert np.isfinite(flat.project(np.full((1, 3), 0.01))).all()
    assert [dimensions(n) for n in (5, 20, 199, 10_000)] == [1, 2, 19, 64]


# --- memorisation ---


def memory_case(seed=0, n=150, train=400):
    rng = rng_of(seed)
    return rng, ecgs(n, rng), ecgs(train, rng)


def noisy(ecg, rng, size=0.002):
    return tuple(part + rng.normal(0, size, part.shape) for part in ecg)


def test_a_generator_that_copies_the_bank_is_caught():
    rng, real, known = memory_case()
    taken = rng.integers(0, 400, 150)
    copies = noisy((known[0][taken], np.roll(known[1][taken], 20, axis=1)), rng)
    found = memorisation(pairs(real, copies), bank_of(known), None, **QUICK)
    assert found["nn_ratio"]["value"] < 0.1
    assert found["nn_ratio"]["high"] < 0.2
    assert found["below_first_percentile"]["value"] > 0.95
    assert found["duplicates"] > 140
    assert found["duplicates_real"] == 0
    assert (found["n"], found["windows"], found["bank"], found["dimensions"]) == (150, 150, 400, 40)


def test_a_fresh_generator_is_not():
    rng, real, known = memory_case(1)
    found = memorisation(pairs(real, ecgs(150, rng)), bank_of(known), None, **QUICK)
    assert found["nn_ratio"]["low"] < 1 < found["nn_ratio"]["high"]
    assert found["nn_ratio"]["value"] == pytest.approx(1, abs=0.15)
    assert found["below_first_percentile"]["value"] < 0.05
    assert found["duplicates"] == 0
    assert found["duplicates_members"] is None
    assert found["membership_auc"] is None


def test_a_few_copies_among_fresh_ones_are_counted():
    rng, real, known = memory_case(2)
    beats, waves = ecgs(150, rng)
    beats[:7], waves[:7] = noisy((known[0][:7], known[1][:7]), rng)
    found = memorisation(pairs(real, (beats, waves)), bank_of(known), None, **QUICK)
    assert found["duplicates"] == 7
    assert found["below_first_percentile"]["value"] >= 7 / 150


def member_case(shift, seed=3, n=200):
    rng, real, known = memory_case(seed, n=n, train=n)
    rows = pairs(real, ecgs(n, rng), rmse_mv_sample_lag=rng.normal(1, 0.1, n))
    person = people_names(n, "train")
    members = pairs(known, ecgs(n, rng), person, "members", rmse_mv_sample_lag=rng.normal(1 - shift, 0.1, n))
    return rows, bank_of(known), members


def test_membership_is_inferred_from_a_smaller_error_only():
    found = memorisation(*member_case(0.0), **QUICK)
    assert found["membership_auc"]["low"] < 0.5 < found["membership_auc"]["high"]
    assert found["membership_tpr_at_1_percent"]["value"] < 0.06
    assert found["membership_auc"]["n"] == 400
    assert found["duplicates_members"] == 0
    # Two normal laws 2 SD apart: Phi(2 / sqrt 2); and Phi(2 - 2.326) at 1 % alarms.
    found = memorisation(*member_case(0.2), **QUICK)
    assert found["membership_auc"]["value"] == pytest.approx(0.921, abs=0.03)
    assert found["membership_tpr_at_1_percent"]["value"] == pytest.approx(0.372, abs=0.15)
    assert found["membership_auc"]["low"] > 0.85


def test_a_training_ecg_drawn_from_its_own_pulse_is_a_duplicate_of_a_member():
    rows, bank, _ = member_case(0.0)
    _, _, known = memory_case(3, n=200, train=200)
    person = people_names(200, "train")
    members = pairs(known, noisy(known, rng_of(5)), person, "members", rmse_mv_sample_lag=np.ones(200))
    found = memorisation(rows, bank, members, **QUICK)
    assert found["duplicates_members"] == 200
    assert found["duplicates"] == 0


def test_a_bank_of_test_people_or_of_nobody_is_refused():
    rng, real, known = memory_case(4, n=30, train=30)
    rows = pairs(real, ecgs(30, rng))
    with pytest.raises(InputError, match="30 people"):
        memorisation(rows, bank_of(known, prefix="p"), None, **QUICK)
    with pytest.raises(InputError, match="empty"):
        memorisation(rows, bank_of(known).slice(0, 0), None, **QUICK)
    with pytest.raises(InputError, match="no rows of template"):
        memorisation(rows, bank_of(known), None, system="template", **QUICK)


def test_aligned_correlation_finds_the_lag_whatever_gain_and_offset():
    rng = rng_of(15)
    _, waves = ecgs(6, rng)
    for lag in (-128, -40, 0, 1, 127):
        moved = 2.5 * np.roll(waves, lag, axis=1) - 7
        assert aligned_correlation(waves, moved, fs_hz=64) == pytest.approx(np.ones(6), abs=1e-9)
        assert aligned_correlation(moved, waves, fs_hz=64) == pytest.approx(np.ones(6), abs=1e-9)
    assert (aligned_correlation(waves, -waves, fs_hz=64) < 0.9).all()
    assert aligned_correlation(waves[:1], np.ones((1, WAVE)), fs_hz=64) == pytest.approx([-1])
    assert np.isnan(aligned_correlation(waves[:1], np.full((1, WAVE), np.nan), fs_hz=64)).all()


def test_aligned_correlation_is_the_largest_over_lags_by_hand():
    rng = rng_of(16)
    x, y = rng.normal(size=(2, 100))
    expected = max(
        np.corrcoef(x[max(0, lag) : 100 + min(0, lag)], y[max(0, -lag) : 100 + min(0, -lag)])[0, 1]
        for lag in range(-20, 21)
    )
    assert aligned_correlation(x[None], y[None], fs_hz=10) == pytest.approx([expected])
