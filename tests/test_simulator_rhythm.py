import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.signal import welch
from scipy.stats import kstest

from p2es.demographics import Demographics, Sex
from p2es.errors import InputError
from p2es.simulator.catalogue import RHYTHMS, SINUS_RHYTHMS
from p2es.simulator.people import draw_person
from p2es.simulator.population import POPULATIONS
from p2es.simulator.rhythm import BeatKind, draw_rhythm

HEALTHY = POPULATIONS["healthy"]


def person_of(seed=0, age_years=50.0, **traits):
    demographics = Demographics(age_years, Sex.MALE, 174.0, 78.7)
    return replace(draw_person(np.random.default_rng(seed), HEALTHY, demographics), **traits)


def rhythm_of(name, seed=0, duration_s=300.0, **traits):
    """Give the rhythm of a person whose sinus node hardly varies, so that definitions hold beat by beat."""
    person = person_of(seed, **({"rsa_s": 1e-4, "heart_rate_bpm": 66.0} | traits))
    return draw_rhythm(np.random.default_rng([seed, 1]), person, duration_s, name)


def several(name, count=12, **options):
    return [rhythm_of(name, seed, **options) for seed in range(count)]


A_DAY = ("sinus", "premature_ventricular", "av_block_3")


@pytest.mark.parametrize(
    ("name", "duration_s"),
    [*itertools.product(RHYTHMS, (1.0, 7.3, 1200.0)), *((name, 86_400.0) for name in A_DAY)],
)
def test_beats_and_p_waves_belong_together_at_any_length(name, duration_s):
    rhythm = rhythm_of(name, 3, duration_s, rsa_s=0.05)
    assert (np.diff(rhythm.r_s) > 0.2).all()
    assert (np.diff(rhythm.r_s) < 4.0).all()
    assert (np.diff(rhythm.p_s - rhythm.pr_s) > 0.2).all()
    assert rhythm.kind.shape == rhythm.r_s.shape
    assert rhythm.p_s.shape == rhythm.pr_s.shape == rhythm.p_beat.shape == rhythm.p_premature.shape
    led = rhythm.p_beat >= 0
    assert np.unique(rhythm.p_beat[led]).size == led.sum()
    np.testing.assert_allclose(rhythm.r_s[rhythm.p_beat[led]], rhythm.p_s[led], atol=1e-9)
    assert ((rhythm.pr_s > 0.05) & (rhythm.pr_s < 0.45)).all()


@pytest.mark.parametrize("name", RHYTHMS)
def test_the_heart_beats_from_before_the_start_to_after_the_end(name):
    for duration_s in (10.0, 300.0):
        for rhythm in several(name, 20, duration_s=duration_s):
            assert rhythm.r_s[0] < 0
            assert rhythm.r_s[-1] > duration_s
            assert rhythm.fibrillates or (rhythm.p_s[0] < 0 and rhythm.p_s[-1] > duration_s)


@pytest.mark.parametrize("name", SINUS_RHYTHMS)
def test_in_sinus_rhythms_each_p_leads_to_a_normal_beat(name):
    rhythm = rhythm_of(name)
    assert (rhythm.kind == BeatKind.NORMAL).all()
    np.testing.assert_array_equal(rhythm.p_beat, np.arange(rhythm.r_s.size))
    assert not rhythm.p_premature.any()


def rates_bpm(name, **traits):
    return np.array([60 / np.diff(rhythm.r_s).mean() for rhythm in several(name, 30, duration_s=60.0, **traits)])


def test_tachycardia_is_above_100_and_bradycardia_below_60_whatever_the_person():
    for own in (50.0, 100.0):
        fast, slow = (rates_bpm(name, heart_rate_bpm=own) for name in ("sinus_tachycardia", "sinus_bradycardia"))
        assert fast.min() > 100
        assert fast.max() > 125
        assert slow.max() < 60
        assert slow.min() < 48
    assert rates_bpm("sinus", heart_rate_bpm=81.0) == pytest.approx(81.0, abs=1.2)


def test_sinus_arrhythmia_varies_by_more_than_120_ms_and_more_than_sinus_rhythm():
    for seed in range(20):
        person = person_of(seed, age_years=70.0)
        for name, low, high in (("sinus_arrhythmia", 0.12, 0.7), ("sinus", 0.0, 0.12)):
            rr_s = np.diff(draw_rhythm(np.random.default_rng(seed), person, 60.0, name).r_s)
            assert low < np.ptp(rr_s) < high, name


def test_breathing_moves_the_rhythm_by_what_the_age_says():
    for age, published_s in ((20.0, 0.060), (45.0, 0.0313), (70.0, 0.0164)):
        depths = []
        for seed in range(40):
            rhythm = draw_rhythm(np.random.default_rng(seed), person_of(seed, age_years=age), 300.0)
            rr_s, middle_s = np.diff(rhythm.r_s), (rhythm.r_s[1:] + rhythm.r_s[:-1]) / 2
            breath = rhythm.breathing.at(middle_s)
            slope = np.polyfit(breath, rr_s, 1)[0]
            assert slope < 0
            # Depth is stated at RR 0.9 s, and an interval averages the breathing within it.
            averaged = np.sinc(rhythm.breathing.rate_hz * rr_s.mean())
            depths.append(-2 * slope / averaged * 0.9 / rr_s.mean())
        # exp(0.3 N) has a mean of 1.046; 40 people leave 5 %.
        assert np.mean(depths) / 1.046 == pytest.approx(published_s, rel=0.15)


def spectrum(rhythm):
    at_s = np.arange(0, rhythm.r_s[-1] - 1, 0.25)
    rr_s = np.interp(at_s, rhythm.r_s[1:], np.diff(rhythm.r_s))
    return welch(rr_s - rr_s.mean(), 4.0, nperseg=480)


def test_the_spectrum_has_a_line_at_the_breathing_rate_and_mayer_s_at_a_tenth_of_a_hertz():
    slow = []
    for seed in range(25):
        rhythm = draw_rhythm(np.random.default_rng(seed), person_of(seed, age_years=30.0), 900.0)
        f_hz, power = spectrum(rhythm)
        fast = (f_hz > 0.16) & (f_hz < 0.45)
        assert f_hz[fast][power[fast].argmax()] == pytest.approx(rhythm.breathing.rate_hz, abs=0.025)
        slow.append(power / power.sum())
    mean, band = np.mean(slow, axis=0), (f_hz > 0.05) & (f_hz < 0.16)
    assert f_hz[band][mean[band].argmax()] == pytest.approx(0.1, abs=0.015)
    share = mean[(f_hz > 0.04) & (f_hz < 0.15)].sum() / mean[(f_hz >= 0.15) & (f_hz < 0.4)].sum()
    assert 0.3 < share < 2.5


def test_rate_of_breathing_differs_between_people():
    rates = [draw_rhythm(np.random.default_rng(s), person_of(s), 10.0).breathing.rate_hz for s in range(60)]
    assert 0.18 < min(rates) < 0.21
    assert 0.29 < max(rates) < 0.33


@pytest.mark.parametrize("own", [42.0, 55.0, 85.0, 100.0, 112.0])
def test_fibrillation_is_as_irregular_as_in_people(own):
    for seed in range(6):
        rr_s = np.diff(rhythm_of("atrial_fibrillation", seed, 900.0, heart_rate_bpm=own).r_s)
        assert 0.15 < rr_s.std() / rr_s.mean() < 0.36


def test_fibrillation_has_no_p_and_no_interval_that_tells_the_next():
    next_to, apart = [], []
    for own, seed in itertools.product((42.0, 67.0, 112.0), range(6)):
        rhythm = rhythm_of("atrial_fibrillation", seed, 900.0, heart_rate_bpm=own)
        rr_s = np.diff(rhythm.r_s)
        assert rhythm.fibrillates
        assert rhythm.p_s.size == rhythm.p_beat.size == 0
        assert 45 < 60 / rr_s.mean() < 165
        next_to.append(np.corrcoef(rr_s[1:], rr_s[:-1])[0, 1])
        apart.append(np.corrcoef(rr_s[4:], rr_s[:-4])[0, 1])
    # The refractory period follows 15 % of the interval before it (Corino), and nothing else does.
    assert np.mean(next_to) == pytest.approx(0.15, abs=0.05)
    assert np.abs(np.mean(apart)) < 0.03


def test_a_node_that_recovers_lets_no_two_beats_follow_within_240_ms():
    for seed in range(6):
        assert np.diff(rhythm_of("atrial_fibrillation", seed, 900.0, heart_rate_bpm=112.0).r_s).min() > 0.24


def early_beats(rhythm, kind):
    found = np.flatnonzero(rhythm.kind == kind)
    return found[(found > 1) & (found < rhythm.r_s.size - 2)]


def lone(rhythm, found):
    """Those of some beats with two normal beats on either side."""
    normal = rhythm.kind == BeatKind.NORMAL
    return [k for k in found if normal[[k - 2, k - 1, k + 1, k + 2]].all()]


def test_a_ventricular_beat_is_early_and_its_pause_compensates():
    whole, couplings, lengths = [], [], []
    for rhythm in several("premature_ventricular", 20):
        early = early_beats(rhythm, BeatKind.VENTRICULAR)
        assert early.size
        assert set(rhythm.kind) == {BeatKind.NORMAL, BeatKind.VENTRICULAR}
        assert not np.isin(early, rhythm.p_beat).any()
        r_s = rhythm.r_s
        mine = []
        for k in lone(rhythm, early):
            usual_s = (r_s[k - 1] - r_s[k - 2] + r_s[k + 2] - r_s[k + 1]) / 2
            whole.append((r_s[k + 1] - r_s[k - 1]) / (2 * usual_s))
            mine.append((r_s[k] - r_s[k - 1]) / usual_s)
        couplings.extend(mine)
        lengths.append(np.std(mine) if len(mine) > 3 else 0.0)
        # The atria go on: one P wave is lost at each of them.
        assert (rhythm.p_beat < 0).sum() == (rhythm.kind == BeatKind.VENTRICULAR).sum()
        assert np.ptp(np.diff(rhythm.p_s)) < 0.15
    assert np.abs(np.array(whole) - 1).max() < 0.05
    assert np.mean(whole) == pytest.approx(1, abs=0.004)
    assert min(couplings) > 0.40
    assert max(couplings) < 0.78
    # One focus: coupling differs between people, hardly in one.
    assert max(lengths) < 0.035


def test_an_atrial_beat_is_early_and_sets_the_sinus_node_back():
    for rhythm in several("premature_atrial", 20):
        early = early_beats(rhythm, BeatKind.ATRIAL)
        assert early.size
        np.testing.assert_array_equal(np.flatnonzero(rhythm.p_premature), np.flatnonzero(rhythm.kind == 1))
        np.testing.assert_array_equal(rhythm.p_beat, np.arange(rhythm.r_s.size))
        r_s = rhythm.r_s
        for k in lone(rhythm, early):
            usual_s = (r_s[k - 1] - r_s[k - 2] + r_s[k + 2] - r_s[k + 1]) / 2
            before, after = (r_s[k] - r_s[k - 1]) / usual_s, (r_s[k + 1] - r_s[k]) / usual_s
            assert 0.5 < before < 0.85
            assert 0.97 < after < 1.2
            assert before + after < 1.99


@pytest.mark.parametrize("name", ["premature_atrial", "premature_ventricular"])
def test_premature_beats_are_some_or_every_other_and_never_two_in_a_row(name):
    kind = BeatKind.ATRIAL if name == "premature_atrial" else BeatKind.VENTRICULAR
    shares = []
    for rhythm in several(name, 60, duration_s=120.0):
        early = np.flatnonzero(rhythm.kind == kind)
        assert (np.diff(early) >= 2).all()
        shares.append(early.size / rhythm.r_s.size)
        inside = rhythm.r_s[early]
        assert ((inside > 0) & (inside < 120)).any()
    shares = np.array(shares)
    assert 0.03 < (shares > 0.4).mean() < 0.35
    assert ((shares < 0.2) | (shares > 0.4)).all()


@pytest.mark.parametrize("duration_s", [4.0, 10.0])
@pytest.mark.parametrize("name", ["premature_atrial", "premature_ventricular"])
def test_a_short_recording_of_premature_beats_has_one(name, duration_s):
    for rhythm in several(name, 60, duration_s=duration_s):
        early = rhythm.r_s[rhythm.kind != BeatKind.NORMAL]
        assert ((early > 0) & (early < duration_s)).any()


def test_block_of_the_first_degree_conducts_all_later_than_200_ms():
    for own in (110.0, 160.0, 230.0):
        rhythm, usual = (rhythm_of(name, pr_ms=own) for name in ("av_block_1", "sinus"))
        assert (rhythm.pr_s > 0.200).all()
        assert (rhythm.pr_s < 0.4).all()
        np.testing.assert_array_equal(rhythm.p_beat, np.arange(rhythm.r_s.size))
        assert np.median(rhythm.pr_s - usual.pr_s) >= 0.0699


def groups_of(rhythm):
    """Give, for each group that ends with a blocked P, the indices of its P waves; the first and last are left."""
    blocked = np.flatnonzero(rhythm.p_beat < 0)
    return [np.arange(a + 1, b + 1) for a, b in itertools.pairwise(blocked)]


def test_wenckebach_lengthens_pr_until_a_beat_is_dropped():
    lengths = set()
    for rhythm in several("av_block_2_wenckebach"):
        assert len(groups_of(rhythm)) > 20
        for group in groups_of(rhythm):
            led = group[:-1]
            lengths.add(group.size)
            pr_s, beats = rhythm.pr_s[led], rhythm.p_beat[led]
            np.testing.assert_array_equal(np.diff(beats), 1)
            growth = np.diff(pr_s)
            assert (growth > 0.004).all()
            assert growth[0] == pytest.approx(0.040, abs=0.006)
            r_s = rhythm.r_s
            if beats[-1] + 1 < r_s.size and led.size > 1:
                # The pause is shorter than two of the shortest intervals, and PR starts anew after it.
                pause_s = r_s[beats[-1] + 1] - r_s[beats[-1]]
                assert pause_s < 2 * np.diff(r_s[beats]).min()
                assert pause_s > 1.5 * np.diff(r_s[beats]).min()
            assert pr_s[0] < pr_s[-1]
        impulses_s = rhythm.p_s - rhythm.pr_s
        assert np.ptp(np.diff(impulses_s)) < 0.15
    assert lengths == {3, 4, 5}


def test_mobitz_drops_beats_out_of_an_even_pr():
    for rhythm in several("av_block_2_mobitz"):
        assert rhythm.pr_s.std() < 0.004
        assert 0.15 < (rhythm.p_beat < 0).mean() < 0.35
        rr_s = np.diff(rhythm.r_s)
        usual_s = np.median(np.diff(rhythm.p_s))
        np.testing.assert_allclose(rr_s / usual_s, np.rint(rr_s / usual_s), atol=0.12)
        assert set(np.rint(rr_s / usual_s)) == {1.0, 2.0}


def test_in_complete_block_atria_and_ventricles_know_nothing_of_each_other():
    kinds, together = [], []
    for rhythm in several("av_block_3", 24):
        assert (rhythm.p_beat == -1).all()
        assert np.unique(rhythm.kind).size == 1
        kinds.append(int(rhythm.kind[0]))
        rr_s = np.diff(rhythm.r_s)
        assert 34.5 < 60 / rr_s.mean() < 45.5
        assert rr_s.std() / rr_s.mean() < 0.03
        assert 60 < 60 / np.diff(rhythm.p_s).mean() < 110
        inside = (rhythm.p_s > rhythm.r_s[0]) & (rhythm.p_s < rhythm.r_s[-1])
        nth = np.searchsorted(rhythm.r_s, rhythm.p_s[inside])
        phase = (rhythm.p_s[inside] - rhythm.r_s[nth - 1]) / rr_s[nth - 1]
        together.append(phase)
    assert set(kinds) == {BeatKind.JUNCTIONAL, BeatKind.ESCAPE}
    # Neighbouring P waves are not independent draws, so the distance itself is the test.
    assert kstest(np.concatenate(together), "uniform").statistic < 0.03


def test_pr_follows_the_interval_as_published():
    rates = np.array([50.0, 60.0, 80.0, 110.0])
    pr_s = [person_of().pr_s(60 / rate) for rate in rates]
    assert np.polyfit(60 / rates, pr_s, 1)[0] == pytest.approx(0.054, abs=1e-6)
    rhythm = rhythm_of("sinus_arrhythmia", duration_s=300.0)
    slope = np.polyfit(np.diff(rhythm.r_s), rhythm.pr_s[1:], 1)[0]
    assert slope == pytest.approx(0.054, abs=0.003)


def test_an_unknown_rhythm_is_refused():
    with pytest.raises(InputError, match="no rhythm"):
        rhythm_of("asystole")
