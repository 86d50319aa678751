"""Premature beats and pauses: what is one, which of them a drawn ECG shows, and what is said of a population."""

import numpy as np
import pytest
from gaussian_hearts import DOWER, LBBB, NORMAL
from row_tables import people_names, stacked, table
from windowed import batch_of_ecgs, drawn

from p2es.beats import r_peaks, usual_intervals_s
from p2es.delineation import dominant_shape
from p2es.evaluation.beat_kinds import COUNTS, KINDS, beat_kinds, kind_counts
from p2es.evaluation.ectopy import TITLES, ectopy_agreement
from p2es.evaluation.measure import measure
from p2es.leads import LEADS, lift
from p2es.windows import ECG_SAMPLES, FS_HZ

QUICK = {"bootstrap": 200, "seed": 0}
# Nothing in it has a shape.
NOISE = lift(np.random.default_rng(9).normal(0, 0.01, (8, ECG_SAMPLES)))
PREMATURE, OTHER_SHAPE, PAUSE = range(3)


def rng_of(seed):
    return np.random.default_rng(seed)


def ecg_of(beats_s, wide=(), late_s=0.0, noise_mv=0.01):
    """An ECG of ten seconds (12, 1280), a Gaussian beat at each time; those that are `wide` have another shape."""
    time_s = np.arange(ECG_SAMPLES) / FS_HZ
    leads = np.zeros((8, ECG_SAMPLES))
    for k, at in enumerate(beats_s):
        for _, centre, width, *xyz in LBBB if k in wide else NORMAL:
            bump = np.exp(-0.5 * ((time_s - at - late_s - centre) / width) ** 2)
            leads += np.outer(DOWER @ xyz, bump)
    leads += noise_mv * rng_of(0).normal(size=leads.shape)
    return lift(leads).astype(np.float32)


def train_of(intervals_s, start_s=0.3):
    return start_s + np.concatenate([[0.0], np.cumsum(intervals_s)])


def kinds_of(beats_s):
    return beat_kinds(NOISE, FS_HZ, np.asarray(beats_s, float))


def both(truth_s, drawn_s, lag_s=0.0, kinds=None, drawn_kinds=None):
    truth_s, drawn_s = np.asarray(truth_s, float), np.asarray(drawn_s, float)
    kinds = kinds_of(truth_s) if kinds is None else kinds
    drawn_kinds = kinds_of(drawn_s) if drawn_kinds is None else drawn_kinds
    return kind_counts(truth_s, kinds, drawn_s, drawn_kinds, lag_s=lag_s, duration_s=10.0)


# A premature beat with its pause, a pause of a beat that did not come, and bigeminy.
ECTOPIC = train_of([0.8, 0.8, 0.5, 1.1, 0.8, 0.8, 0.5, 1.1, 0.8, 0.8])
DROPPED = train_of([0.9, 0.9, 0.9, 1.8, 0.9, 0.9, 0.9, 0.9])
BIGEMINY = train_of([0.5, 1.1] * 5)
REGULAR = train_of([0.8] * 11)


# --- Kinds ------------------------------------------------------------------------------------------------------------


def test_the_usual_interval_is_that_of_the_neighbours_whatever_the_beat_does():
    assert usual_intervals_s(np.full(11, 0.8)) == pytest.approx(0.8)
    for early in range(12):
        intervals = np.full(12, 0.8)
        intervals[early : early + 2] = (0.5, 1.1)[: 12 - early]
        assert usual_intervals_s(intervals) == pytest.approx(0.8), early
    assert usual_intervals_s(np.tile([0.5, 1.1], 6)) == pytest.approx(0.8), "half are short and half long"
    for odd in (5, 7, 11):
        assert usual_intervals_s(np.tile([0.5, 1.1], 6)[:odd]) == pytest.approx(0.8), odd
    # It follows a rate that changes.
    rising = np.linspace(0.6, 1.2, 40)
    assert np.abs(usual_intervals_s(rising) - rising)[4:-4].max() < 0.02
    assert np.isnan(usual_intervals_s(np.full(3, 0.8))).all()
    assert np.isfinite(usual_intervals_s(np.full(4, 0.8))).all()
    assert usual_intervals_s(np.empty(0)).shape == (0,)


def test_premature_beats_and_pauses_are_told_where_they_are():
    assert np.flatnonzero(kinds_of(ECTOPIC)[PREMATURE]).tolist() == [3, 7]
    assert not kinds_of(ECTOPIC)[PAUSE].any(), "a pause that compensates is no longer than 1.5 intervals here"
    assert np.flatnonzero(kinds_of(DROPPED)[PAUSE]).tolist() == [4]
    assert not kinds_of(DROPPED)[PREMATURE].any()
    assert np.flatnonzero(kinds_of(BIGEMINY)[PREMATURE]).tolist() == [1, 3, 5, 7, 9]
    assert not kinds_of(REGULAR).any()
    assert not kinds_of(train_of(0.85 + 0.12 * np.sin(np.arange(10)))).any(), "breathing alone is neither"


@pytest.mark.parametrize(("interval_s", "kind"), [(0.79, 0), (0.81, None), (1.49, None), (1.51, 2)])
def test_the_limits_are_those_that_are_said(interval_s, kind):
    intervals = np.ones(9)
    intervals[4] = interval_s
    found = kinds_of(train_of(intervals))[:, 5]
    assert found.tolist() == [kind == PREMATURE, False, kind == PAUSE]


def test_two_seconds_are_a_pause_where_nothing_is_usual():
    assert kinds_of([1.0, 2.9, 5.0]).tolist() == [[False] * 3, [False] * 3, [False, False, True]]
    assert kinds_of(train_of([1.9, 2.1, 1.9, 1.9]))[PAUSE].tolist() == [False, False, True, False, False]
    for beats in ([], [4.0]):
        assert kinds_of(beats).shape == (3, len(beats))
        assert not kinds_of(beats).any()


def test_prematurity_is_a_ratio_and_does_not_know_when_or_how_fast():
    for scale, shift in ((1.0, 0.0), (0.6, 0.0), (1.2, 0.4)):
        np.testing.assert_array_equal(kinds_of(ECTOPIC * scale + shift)[PREMATURE], kinds_of(ECTOPIC)[PREMATURE])
    np.testing.assert_array_equal(kinds_of(ECTOPIC[::-1].max() - ECTOPIC[::-1])[PREMATURE].sum(), 2)


def test_a_premature_beat_of_another_shape_is_told_from_one_of_the_same():
    wide = beat_kinds(ecg_of(ECTOPIC, wide=(3, 7)), FS_HZ, ECTOPIC)
    one = beat_kinds(ecg_of(ECTOPIC, wide=(7,)), FS_HZ, ECTOPIC)
    same = beat_kinds(ecg_of(ECTOPIC), FS_HZ, ECTOPIC)
    assert np.flatnonzero(wide[OTHER_SHAPE]).tolist() == [3, 7]
    assert np.flatnonzero(one[OTHER_SHAPE]).tolist() == [7]
    assert not same[OTHER_SHAPE].any()
    np.testing.assert_array_equal(wide[PREMATURE], same[PREMATURE])
    # A wide beat in time is none, nor is it where nothing is premature.
    assert not beat_kinds(ecg_of(REGULAR, wide=(4,)), FS_HZ, REGULAR).any()
    # Gain and sign of the leads do not matter.
    np.testing.assert_array_equal(beat_kinds(-0.3 * ecg_of(ECTOPIC, wide=(3, 7)), FS_HZ, ECTOPIC), wide)


@pytest.mark.parametrize("first", [0, 1])
def test_in_bigeminy_the_premature_half_is_the_other_shape_even_where_it_is_larger(first):
    beats = BIGEMINY[first:]
    early = [k for k in range(beats.size) if (k + first) % 2 == 1]
    found = beat_kinds(ecg_of(beats, wide=early), FS_HZ, beats)
    # The first beat has no interval.
    assert np.flatnonzero(found[OTHER_SHAPE]).tolist() == [k for k in early if k > 0]


def test_the_dominant_shape_is_that_of_most_beats_inside_the_window():
    assert dominant_shape(ecg_of(ECTOPIC, wide=(3, 7)), FS_HZ, ECTOPIC).tolist() == [k not in (3, 7) for k in range(11)]
    outside = np.append(REGULAR[:5], 11.0)
    assert dominant_shape(ecg_of(REGULAR[:5]), FS_HZ, outside).tolist() == [True] * 5 + [False]
    assert dominant_shape(NOISE, FS_HZ, np.empty(0)).shape == (0,)
    assert not dominant_shape(0 * NOISE, FS_HZ, ECTOPIC).any(), "a flat line has no shape"


def test_the_kinds_of_simulated_rhythms_are_those_they_were_made_with():
    """Of what was found none is wrong; ventricular beats have another shape, atrial ones have not."""
    from p2es.filters import stored_ecg
    from p2es.simulator import simulate
    from p2es.simulator.rhythm import BeatKind

    counts = {}
    for rhythm, source in (("premature_ventricular", BeatKind.VENTRICULAR), ("premature_atrial", BeatKind.ATRIAL)):
        made = found = wrong = shaped = 0
        for index in range(8):
            one = simulate(5, index, 13.0, rhythm=rhythm, morphologies=(), noise=False)
            whole = np.stack([signal.read() for signal in one.recording.signals[:12]]).astype(np.float64)
            ecg = stored_ecg(whole, 250.0, 0.0, 192, ECG_SAMPLES)
            beats = r_peaks(ecg, FS_HZ)
            kinds = beat_kinds(ecg, FS_HZ, beats)
            true_s = one.truth.beats.r_s[one.truth.beats.kind == source] - 192 / FS_HZ
            near = np.abs(beats[:, None] - true_s[None]) < 0.1
            inside = (true_s > 1.5) & (true_s < 9.5)
            made += inside.sum()
            found += near[kinds[PREMATURE]].any(axis=0)[inside].sum()
            wrong += kinds[PREMATURE].sum() - near[kinds[PREMATURE]].any(axis=1).sum()
            shaped += kinds[OTHER_SHAPE].sum() == kinds[PREMATURE].sum()
        counts[rhythm] = (made, found, wrong, shaped)
    for made, found, wrong, _ in counts.values():
        assert made > 8
        assert found > 0.6 * made
        assert wrong == 0
    assert counts["premature_ventricular"][3] == 8


# --- Counts -----------------------------------------------------------------------------------------------------------


def test_the_recording_itself_has_found_everything():
    for beats, kind, number in ((ECTOPIC, PREMATURE, 2), (DROPPED, PAUSE, 1), (BIGEMINY, PREMATURE, 5)):
        counts = both(beats, beats)
        assert counts[kind].tolist() == [number] * 4
        assert both(beats, REGULAR)[kind, 0] == number


def test_what_drops_or_mends_every_premature_beat_has_found_none():
    dropped = np.delete(ECTOPIC, [3, 7])
    assert both(ECTOPIC, dropped)[PREMATURE].tolist() == [2, 0, 0, 0]
    assert both(ECTOPIC, dropped)[PAUSE].tolist() == [0, 0, 2, 0], "where the beat was there are pauses instead"
    mended = ECTOPIC.copy()
    mended[[3, 7]] += 0.3
    assert both(ECTOPIC, mended)[PREMATURE].tolist() == [2, 0, 0, 0]
    filled = np.sort(np.append(DROPPED, DROPPED[3] + 0.9))
    assert both(DROPPED, filled)[PAUSE].tolist() == [1, 0, 0, 0]
    assert both(ECTOPIC, [])[PREMATURE].tolist() == [2, 0, 0, 0], "whoever draws no beat has found none either"


def test_premature_beats_that_are_invented_are_wrong():
    assert both(REGULAR, ECTOPIC)[PREMATURE].tolist() == [0, 0, 2, 0]
    # At another place.
    moved = train_of([0.8, 0.8, 0.8, 0.8, 0.5, 1.1, 0.8, 0.8, 0.8, 0.8])
    assert both(train_of([0.8, 0.5, 1.1] + [0.8] * 7), moved)[PREMATURE].tolist() == [1, 0, 1, 0]


def test_a_premature_beat_beside_a_usual_one_at_the_place_is_no_find():
    extra = np.sort(np.append(REGULAR, REGULAR[5] - 0.12))
    recorded = REGULAR.copy()
    recorded[5] -= 0.25
    counts = both(recorded, extra)
    assert counts[PREMATURE, 0] == 1
    assert counts[PREMATURE, 2] >= 1


@pytest.mark.parametrize("lag_s", [-0.4, -0.2, 0.2, 0.4])
def test_a_constant_lag_is_forgiven_only_where_it_is_removed(lag_s):
    late = ECTOPIC + lag_s
    kinds = kinds_of(ECTOPIC)
    raw = both(ECTOPIC, late, 0.0, kinds, kinds)
    assert raw[PREMATURE].tolist() == [2, 0, 2, 0]
    assert both(ECTOPIC, late, lag_s, kinds, kinds)[PREMATURE].tolist() == [2] * 4


@pytest.mark.parametrize("seed", range(5))
def test_what_is_found_of_one_is_right_of_the_other(seed):
    """Recorded and drawn change places, and the lag its sign."""
    rng = rng_of(seed)
    truth, other = (np.sort(rng.uniform(0, 10, 13)) for _ in range(2))
    lag_s = rng.uniform(-0.3, 0.3)
    there, back = both(truth, other, lag_s), both(other, truth, -lag_s)
    np.testing.assert_array_equal(there[:, [2, 3, 0, 1]], back)
    assert (there[:, 1] <= there[:, 0]).all()
    assert (there[:, 3] <= there[:, 2]).all()


def test_no_ecg_is_asked_for_an_interval_it_could_not_show():
    """With a lag of 0.5 s the beats of the first half second of the recording are not in the drawn window."""
    beats = train_of([0.5, 1.1, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8], start_s=0.4)
    assert both(beats, beats)[PREMATURE].tolist() == [1] * 4
    early = beats - 0.5
    early = early[early > 0]
    assert both(beats, early, -0.5)[PREMATURE, 0] == 0
    assert both(beats, early, -0.5)[PREMATURE, 2] == 0
    # It could show it where the lag is the other way.
    late = beats[beats + 0.5 < 10] + 0.5
    assert both(beats, late, 0.5)[PREMATURE].tolist() == [1] * 4


def test_more_corruption_finds_less():
    """Beats that move, and premature beats that are dropped: both the share found and the share right fall."""
    rng = rng_of(1)
    found = {}
    for jitter_s in (0.0, 0.04, 0.1, 0.2):
        total = sum(both(ECTOPIC, np.sort(ECTOPIC + rng.normal(0, jitter_s, 11))) for _ in range(60))
        found[jitter_s] = total[PREMATURE, [1, 3]] / total[PREMATURE, [0, 2]]
    assert found[0.0].tolist() == [1.0, 1.0]
    assert (np.diff(np.array(list(found.values())), axis=0) < 0).all()


# --- Rows -------------------------------------------------------------------------------------------------------------


def counts_of(truth_mv, drawn_mv, **options):
    row = measure(batch_of_ecgs([truth_mv], **options), [drawn(drawn_mv)], system="model").to_pylist()[0]
    names = [f"{kind}_counts{lag}" for kind in KINDS for lag in ("", "_lag")]
    return {name.replace("_counts", ""): row[name] for name in names}


def test_a_row_counts_what_the_drawn_ecg_shows():
    truth = ecg_of(ECTOPIC, wide=(3, 7))
    same = counts_of(truth, truth)
    assert set(same) == {f"{kind}{lag}" for kind in KINDS for lag in ("", "_lag")}
    for name in ("premature", "premature_other_shape", "premature_lag"):
        assert same[name] == [2.0] * len(COUNTS), name
    assert same["pause"] == [0.0] * 4
    narrow = counts_of(truth, ecg_of(ECTOPIC))
    assert (narrow["premature"], narrow["premature_other_shape"]) == ([2.0] * 4, [2.0, 0.0, 0.0, 0.0])
    even = counts_of(truth, ecg_of(train_of([0.8] * 11)))
    assert even["premature"] == [2.0, 0.0, 0.0, 0.0]
    late = counts_of(truth, ecg_of(ECTOPIC, wide=(3, 7), late_s=0.25))
    assert late["premature"] == [2.0, 0.0, 2.0, 0.0]
    assert late["premature_lag"] == late["premature_other_shape_lag"] == [2.0] * 4


def test_pauses_of_a_row_are_found_where_they_are():
    truth = ecg_of(DROPPED)
    assert counts_of(truth, truth)["pause"] == [1.0] * 4
    assert counts_of(truth, ecg_of(train_of([0.9] * 9)))["pause"] == [1.0, 0.0, 0.0, 0.0]


def test_what_is_not_finite_or_flat_has_found_none_and_is_not_forgotten():
    truth = ecg_of(ECTOPIC, wide=(3, 7))
    broken = truth.copy()
    broken[3, 5] = np.nan
    for nothing in (broken, 0 * truth):
        counts = counts_of(truth, nothing)
        assert counts["premature"] == counts["premature_lag"] == [2.0, 0.0, 0.0, 0.0]


def test_only_recorded_leads_are_read():
    mask = np.array([name in ("II", "V2") for name in LEADS])
    truth = ecg_of(ECTOPIC, wide=(3, 7))
    mixed = np.where(mask[:, None], truth, ecg_of(REGULAR))
    found = counts_of(truth, mixed, masks=[mask])
    assert found == counts_of(truth, truth, masks=[mask])
    assert found["premature"][0] > 0


# --- Population -------------------------------------------------------------------------------------------------------


def rows_of(counts, system="model", person=None, lagged=None, **columns):
    counts = np.asarray(counts, float)
    person = people_names(len(counts)) if person is None else person
    lagged = counts if lagged is None else np.asarray(lagged, float)
    columns = {"rhythm": ["regular"] * len(counts)} | columns
    made = {f"{kind}_counts{lag}": np.zeros((len(counts), 4)) for kind in KINDS for lag in ("", "_lag")}
    return table(person, system, **made | {"premature_counts": counts, "premature_counts_lag": lagged} | columns)


def premature(*tables, system="model"):
    return ectopy_agreement(stacked(*tables), **QUICK)[system]["premature"]


def value(found, *names):
    return tuple(found[name]["value"] for name in names)


def test_shares_are_those_of_the_counts():
    counts = [[4, 3, 5, 2], [2, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    lagged = [[4, 4, 4, 4], [2, 2, 2, 2], [0, 0, 0, 0], [0, 0, 0, 0]]
    found = premature(rows_of(counts, lagged=lagged, rhythm=["irregular", "regular", "regular", "unknown"]))
    assert value(found, "sensitivity", "predictivity", "f1") == pytest.approx((3 / 6, 2 / 6, 5 / 12))
    assert value(found, "sensitivity_lag", "predictivity_lag", "f1_lag") == pytest.approx((1.0, 1.0, 1.0))
    told = {name: found[name] for name in ("beats", "drawn_beats", "irregular_beats", "windows", "n")}
    assert told == {"beats": 6, "drawn_beats": 6, "irregular_beats": 4, "windows": 2, "n": 2}
    # One beat in two windows of 9.6 s of people without any.
    assert found["invented_per_minute"]["value"] == pytest.approx(60 / 9.6 / 2)
    assert found["invented_per_minute"]["n"] == 2
    assert (found["sensitivity"]["n"], found["predictivity"]["n"], found["f1"]["n"]) == (2, 2, 2)


def test_who_has_more_windows_does_not_weigh_more():
    one = rows_of([[2, 2, 2, 2], [1, 0, 1, 0]], person=["a", "b"])
    often = rows_of([[2, 2, 2, 2]] * 7 + [[1, 0, 1, 0]], person=["a"] * 7 + ["b"])
    names = ("sensitivity", "predictivity", "f1")
    assert value(premature(one), *names) == pytest.approx(value(premature(often), *names))
    assert value(premature(one), *names) == pytest.approx((2 / 3,) * 3)


def test_a_drawn_ecg_that_drops_them_all_scores_nothing_and_one_that_invents_pays():
    people = 30
    drops = premature(rows_of([[2, 0, 0, 0]] * people))
    assert value(drops, "sensitivity", "predictivity", "f1") == (0.0, None, 0.0)
    everywhere = [[2, 2, 4, 2]] * 10 + [[0, 0, 4, 0]] * 20
    invents = premature(rows_of(everywhere))
    assert value(invents, "sensitivity", "predictivity") == pytest.approx((1.0, 20 / 120))
    assert invents["invented_per_minute"]["value"] == pytest.approx(4 * 60 / 9.6)
    whole = premature(rows_of([[2, 2, 2, 2]] * people))
    assert value(whole, "sensitivity", "predictivity", "f1", "invented_per_minute") == (1.0, 1.0, 1.0, None)


def test_where_nothing_was_recorded_there_is_nothing_to_find():
    found = premature(rows_of([[0, 0, 3, 0], [0, 0, 0, 0]]))
    assert value(found, "sensitivity", "predictivity", "f1", "sensitivity_lag", "f1_lag") == (None,) * 5
    assert (found["beats"], found["windows"], found["n"], found["drawn_beats"]) == (0, 0, 0, 3)
    assert found["invented_per_minute"]["value"] > 0


def test_intervals_are_over_people_and_narrow_with_their_number():
    rng = rng_of(2)
    widths = []
    for people in (20, 80, 320):
        hits = rng.binomial(2, 0.7, people)
        found = premature(rows_of(np.stack([np.full(people, 2), hits, np.full(people, 2), hits], axis=1)))
        assert found["sensitivity"]["low"] < found["sensitivity"]["value"] < found["sensitivity"]["high"]
        assert found["sensitivity"]["low"] < 0.7 < found["sensitivity"]["high"]
        widths.append(found["sensitivity"]["high"] - found["sensitivity"]["low"])
    assert widths[0] > 1.4 * widths[1] > 2.0 * widths[2]
    expected = 2 * 1.96 * np.sqrt(0.7 * 0.3 / 640)
    assert widths[2] == pytest.approx(expected, rel=0.25)


def test_each_system_stands_beside_the_others_and_one_that_draws_nothing_does_not():
    person = people_names(3)
    none = table(person, "demographic_regression", rhythm=["regular"] * 3)
    found = ectopy_agreement(
        stacked(rows_of([[1, 1, 1, 1]] * 3), rows_of([[1, 0, 0, 0]] * 3, "template"), none), **QUICK
    )
    assert list(found) == ["model", "template"]
    assert set(found["model"]) == set(KINDS) == set(TITLES)
    assert found["template"]["premature"]["sensitivity"]["value"] == 0.0
    assert found["template"]["premature"]["beats"] == found["model"]["premature"]["beats"] == 3
    assert ectopy_agreement(none, **QUICK) == {}
