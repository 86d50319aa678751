from dataclasses import replace

import numpy as np
import pytest

from p2es.demographics import Demographics, Sex
from p2es.simulator import simulate
from p2es.simulator.people import draw_person
from p2es.simulator.population import POPULATIONS
from p2es.simulator.pulse import MISSING, draw_pulse, draw_train, pulse_wave
from p2es.simulator.rhythm import BeatKind, Breathing, Rhythm, draw_rhythm

HEALTHY = POPULATIONS["healthy"]
FS_HZ = 1000.0


class Held(Breathing):
    """Breath held half way: `Breathing` itself drifts even at a rate of 0."""

    def at(self, time_s):
        return np.zeros_like(time_s)


REST = Held(0.0, 0.0)


class Mean:
    """A generator that draws nothing but means: the average person."""

    def standard_normal(self, size=None):
        return 0.0 if size is None else np.zeros(size)

    def spawn(self, n):
        return [self] * n

    def uniform(self, low, high, size=None):
        return (low + high) / 2 if size is None else np.full(size, (low + high) / 2)


def person_of(seed=0, age_years=50.0, height_cm=174.0, sex=Sex.MALE, **traits):
    demographics = Demographics(age_years, sex, height_cm, 26 * (height_cm / 100) ** 2)
    return replace(draw_person(np.random.default_rng(seed), HEALTHY, demographics), **traits)


def beats_at(r_s, kind=None, breathing=REST):
    r_s, n = np.asarray(r_s, float), len(r_s)
    kind = np.zeros(n, np.int64) if kind is None else np.asarray(kind)
    return Rhythm("sinus", r_s, kind, r_s, np.full(n, 0.16), np.arange(n), np.zeros(n, bool), breathing)


def steady(rr_s, n=12, **options):
    return beats_at(rr_s * np.arange(n), **options)


def wave_of(pulse, train, duration_s, delay_s=0.0, fs_hz=FS_HZ):
    return pulse_wave(pulse, train, np.arange(round(duration_s * fs_hz)) / fs_hz, delay_s)


def mean_pulse(age_years, population=HEALTHY):
    return draw_pulse(Mean(), person_of(pulse_age_years=age_years, subtype="usual"), population)


def one_beat(age_years, rr_s=0.857, population=HEALTHY):
    """Render one beat of the mean pulse of an age out of an even row, from just before its foot."""
    pulse = mean_pulse(age_years, population)
    rhythm = steady(rr_s)
    train = draw_train(Mean(), person_of(), pulse, rhythm)
    start = round((train.start_s[6] - 0.05) * FS_HZ)
    return wave_of(pulse, train, 12 * rr_s)[start : start + round(rr_s * FS_HZ)]


def acceleration_waves(beat):
    """Find a to e in turn on the second derivative: the largest, then alternately the next extrema."""
    second = np.gradient(np.gradient(beat))
    at = int(second[:200].argmax())
    found = [second[at]]
    for sign in (-1, 1, -1, 1):
        turned = sign * second
        k = at + 1
        while not (turned[k] >= turned[k - 1] and turned[k] > turned[k + 1]):
            k += 1
        at = k
        found.append(second[at])
    return np.array(found)


@pytest.mark.parametrize("age", [20.0, 25.0, 35.0, 45.0, 55.0, 65.0, 72.0])
def test_the_acceleration_of_the_pulse_ages_as_takazawa_measured(age):
    a, *others = acceleration_waves(one_beat(age))
    lines = [0.0045 * age - 0.803, -0.0044 * age + 0.1017, -0.0062 * age + 0.034, -0.001 * age + 0.2002]
    np.testing.assert_allclose(np.array(others) / a, lines, atol=0.02)
    b, c, d, e = np.array(others) / a
    assert b - c - d - e == pytest.approx(0.0162 * age - 1.1389, abs=0.04)


def test_people_s_pulses_age_by_their_years_and_women_s_are_older():
    def depth_of_b(**changes):
        found = []
        for seed in range(40):
            person = replace(person_of(seed, **changes), subtype="usual")
            pulse = draw_pulse(np.random.default_rng(seed), person, HEALTHY)
            train = draw_train(Mean(), person, pulse, steady(0.857, 4))
            start = round((train.start_s[2] - 0.05) * FS_HZ)
            wave = wave_of(pulse, train, 3.5)[start : start + 400]
            second = np.gradient(np.gradient(wave))
            found.append(second[:200].min() / second[:200].max())
        return np.mean(found)

    assert depth_of_b(age_years=55.0) - depth_of_b(age_years=35.0) == pytest.approx(20 * 0.0045, rel=0.25)
    woman, man = depth_of_b(sex=Sex.FEMALE, height_cm=161.0), depth_of_b()
    assert woman - man == pytest.approx(12 * 0.0045, rel=0.25)


@pytest.mark.parametrize("age", [22.0, 45.0, 70.0])
def test_a_pulse_begins_and_ends_at_rest_and_has_one_top(age):
    pulse = mean_pulse(age)
    time_s = np.arange(-0.1, 1.39, 0.001)
    wave = pulse.shape(time_s)
    assert np.abs(wave[:100]).max() < 0.005
    assert np.abs(wave[-200:]).max() < 0.01
    assert wave.max() == pytest.approx(1, abs=1e-3)
    assert wave.min() > -0.02
    rises = np.diff(wave) > 1e-5
    # Never more than the upstroke and a diastolic hump.
    assert 1 <= (rises[1:] & ~rises[:-1]).sum() <= 2


def test_older_pulses_take_longer_to_their_top():
    crest = [one_beat(age).argmax() for age in (25.0, 45.0, 65.0)]
    assert crest[0] < crest[1] < crest[2]


def tangent_foot_s(wave, from_s, to_s):
    """Where the tangent at the steepest rise meets the lowest level before it; and the steepest rise."""
    first, last = round(from_s * FS_HZ), round(to_s * FS_HZ)
    slope = np.gradient(wave) * FS_HZ
    steepest = first + int(slope[first:last].argmax())
    level = wave[max(steepest - 150, 0) : steepest].min()
    return steepest / FS_HZ - (wave[steepest] - level) / slope[steepest], steepest / FS_HZ


def people():
    for seed in range(12):
        yield seed, person_of(seed, age_years=25.0 + 4 * seed)


@pytest.mark.parametrize("rr_s", [0.6, 0.857, 1.2])
def test_the_foot_comes_after_r_by_ejection_and_transit_time(rr_s):
    missed = []
    for seed, person in people():
        pulse = draw_pulse(np.random.default_rng(seed), person, HEALTHY)
        rhythm = steady(rr_s, 14)
        train = draw_train(np.random.default_rng(seed), person, pulse, rhythm)
        wave = wave_of(pulse, train, 13 * rr_s)
        feet = [tangent_foot_s(wave, r_s + 0.08, r_s + 0.08 + 0.7 * rr_s)[0] - r_s for r_s in rhythm.r_s[3:11]]
        missed.append(np.median(feet) - person.pep_s - person.ptt_s)
    # Beat noise is 4 ms and 2 %; the run-off of the beat before moves the foot a little.
    assert np.median(missed) == pytest.approx(0, abs=0.006)
    assert np.abs(missed).max() < 0.015


def test_the_truth_is_where_the_wave_rises_most_and_leaves_its_foot():
    steep, foot = [], []
    for seed, person in people():
        rng = np.random.default_rng(seed)
        rhythm = draw_rhythm(rng, person, 20.0)
        pulse = draw_pulse(rng, person, HEALTHY)
        train = draw_train(rng, person, pulse, rhythm)
        wave = wave_of(pulse, train, 20.0, delay_s=0.1)
        for foot_s, steepest_s in zip(train.foot_s + 0.1, train.steepest_s + 0.1, strict=True):
            if 0.5 < steepest_s < 19.5:
                found = tangent_foot_s(wave, steepest_s - 0.1, steepest_s + 0.1)
                foot.append(found[0] - foot_s)
                steep.append(found[1] - steepest_s)
    assert np.abs(steep).max() < 0.006
    assert np.abs(foot).max() < 0.012
    assert np.abs(np.median(foot)) < 0.006


def test_beats_differ_by_4_ms_of_ejection_and_2_percent_of_transit():
    person = person_of(3)
    rhythm = steady(0.9, 4000)
    train = draw_train(np.random.default_rng(0), person, mean_pulse(50.0), rhythm)
    assert (train.foot_s - rhythm.r_s).std() == pytest.approx(np.hypot(0.004, 0.02 * person.ptt_s), rel=0.05)


def test_taller_people_have_later_and_older_people_earlier_pulses():
    def transit_s(**changes):
        feet = []
        for seed in range(30):
            person, rhythm = person_of(seed, **changes), steady(0.9)
            pulse = draw_pulse(np.random.default_rng(seed), person, HEALTHY)
            train = draw_train(np.random.default_rng(seed), person, pulse, rhythm)
            wave = wave_of(pulse, train, 9.0)
            feet.append(np.median([tangent_foot_s(wave, r + 0.05, r + 0.6)[0] - r for r in rhythm.r_s[2:9]]))
        return np.mean(feet)

    # PTT = 0.5 height / (7 + 0.05 (age - 25)).
    usual_s, speed_m_s = transit_s(), 7 + 0.05 * 25
    assert transit_s(height_cm=194.0) - usual_s == pytest.approx(0.1 / speed_m_s, rel=0.25)
    assert transit_s(age_years=75.0) - usual_s == pytest.approx(0.87 / (speed_m_s + 1.25) - 0.87 / speed_m_s, rel=0.3)
    assert 0.15 < usual_s < 0.22


def heights_of(wave, rhythm, beats, reach_s=0.62):
    """Give how far the pulse of some beats rises above what the line before it goes on to."""
    found = []
    for k in beats:
        first = round((rhythm.r_s[k] + 0.1) * FS_HZ)
        part = wave[first : first + round(reach_s * FS_HZ)]
        found.append(part.max() - wave[first : first + 100].min())
    return np.array(found)


def test_a_short_interval_leaves_a_weak_pulse():
    pulse, person = mean_pulse(40.0), person_of()
    pulse = replace(pulse, breath_gain=0.0)
    amplitudes = []
    for short_s in (0.35, 0.45, 0.6, 0.9, 1.3):
        r_s = np.concatenate([0.9 * np.arange(8), 0.9 * 7 + short_s + np.concatenate([[0], 1.2 * np.arange(1, 6)])])
        train = draw_train(Mean(), person, pulse, beats_at(r_s))
        start = round((train.start_s[8] + 0.02 if short_s < 0.6 else train.start_s[8]) * FS_HZ)
        wave = wave_of(pulse, train, r_s[-1])
        without = replace(train, amplitude=np.where(np.arange(r_s.size) == 8, 0.0, train.amplitude))
        alone = wave - wave_of(pulse, without, r_s[-1])
        assert start > 0
        amplitudes.append(alone.max())
    filling = 1 - np.exp(-(np.array([0.35, 0.45, 0.6, 0.9, 1.3]) - 0.25) / 0.25)
    np.testing.assert_allclose(amplitudes, filling / filling[3], atol=0.02)


def test_a_ventricular_beat_gives_half_a_pulse_at_most_and_later():
    person, pulse = person_of(), replace(mean_pulse(40.0), breath_gain=0.0)
    n = 600
    kind = np.where(np.arange(n) % 3 == 1, BeatKind.VENTRICULAR, BeatKind.NORMAL)
    rhythm = steady(0.9, n, kind=kind)
    train = draw_train(np.random.default_rng(0), person, pulse, rhythm)
    wide = kind == BeatKind.VENTRICULAR
    assert train.amplitude[wide].max() < 0.5
    assert train.amplitude[wide].min() < 0.02
    assert 0.15 < np.isnan(train.foot_s[wide]).mean() < 0.35
    assert not np.isnan(train.foot_s[~wide]).any()
    later_s = np.nanmean((train.foot_s - rhythm.r_s)[wide]) - np.mean((train.foot_s - rhythm.r_s)[~wide])
    assert later_s == pytest.approx(0.040, abs=0.003)


def test_a_missing_pulse_is_missing_from_the_wave():
    person, pulse = person_of(), replace(mean_pulse(40.0), breath_gain=0.0)
    kind = np.where(np.arange(60) % 3 == 1, BeatKind.VENTRICULAR, BeatKind.NORMAL)
    train = draw_train(np.random.default_rng(0), person, pulse, steady(0.9, 60, kind=kind))
    gone = np.isnan(train.foot_s)
    assert gone.any()
    np.testing.assert_array_equal(gone, train.amplitude < MISSING)
    empty = replace(train, amplitude=np.where(gone, 0.0, train.amplitude))
    np.testing.assert_allclose(wave_of(pulse, train, 54.0), wave_of(pulse, empty, 54.0), atol=0.01)


def test_breathing_changes_the_size_of_pulses_by_its_gain():
    person, pulse = person_of(), replace(mean_pulse(40.0), breath_gain=0.08)
    rhythm = steady(0.7, 80, breathing=Breathing(0.2, 0.3))
    train = draw_train(Mean(), person, pulse, rhythm)
    wave = wave_of(pulse, train, 54.0)
    inside = np.arange(3, 70)
    heights = heights_of(wave, rhythm, inside, 0.5)
    slope = np.polyfit(rhythm.breathing.at(rhythm.r_s[inside]), heights / heights.mean(), 1)[0]
    assert slope == pytest.approx(0.08, abs=0.015)


def test_gains_of_breathing_are_5_to_10_percent():
    gains = [draw_pulse(np.random.default_rng(s), person_of(s), HEALTHY).breath_gain for s in range(100)]
    assert 0.05 <= min(gains) < 0.055
    assert 0.095 < max(gains) <= 0.10


def test_pressure_delays_the_foot_by_22_ms_and_the_top_by_40():
    person, rhythm = person_of(), steady(0.857)
    found = []
    for pressure in (0.0, 1.0):
        pulse = mean_pulse(45.0).pressed(pressure)
        train = draw_train(Mean(), person, pulse, rhythm, pressure)
        wave = wave_of(pulse, train, 9.0)
        first = round((rhythm.r_s[5] + 0.05) * FS_HZ)
        top_s = (first + wave[first : first + 600].argmax()) / FS_HZ
        found.append((tangent_foot_s(wave, rhythm.r_s[5] + 0.05, rhythm.r_s[5] + 0.6)[0], top_s))
    foot_s, top_s = np.diff(found, axis=0)[0]
    assert foot_s == pytest.approx(0.022, abs=0.004)
    assert top_s == pytest.approx(0.040, abs=0.008)


def test_a_faster_heart_has_a_shorter_systole_by_the_root_of_the_interval():
    crests = []
    for rr_s in (0.6, 0.857, 1.2):
        beat = one_beat(40.0, rr_s)
        foot, steepest = tangent_foot_s(beat, 0.02, 0.35)
        crests.append(beat[: round(0.45 * FS_HZ)].argmax() / FS_HZ - foot)
        assert steepest > foot
    np.testing.assert_allclose(np.array(crests) / crests[1], np.sqrt(np.array([0.6, 0.857, 1.2]) / 0.857), rtol=0.10)


def test_the_other_population_has_less_of_a_reflected_wave():
    ours, theirs = (one_beat(45.0, population=POPULATIONS[name]) for name in ("healthy", "other"))
    after_notch = slice(round(0.35 * FS_HZ), round(0.60 * FS_HZ))
    assert theirs[after_notch].mean() < 0.95 * ours[after_notch].mean()


def test_the_wave_does_not_depend_on_the_rate_it_is_sampled_at_or_how_much_is_made():
    person = person_of(5)
    rhythm = draw_rhythm(np.random.default_rng(5), person, 300.0)
    pulse = draw_pulse(np.random.default_rng(5), person, HEALTHY)
    train = draw_train(np.random.default_rng(5), person, pulse, rhythm)
    fine, coarse = (wave_of(pulse, train, 300.0, 0.13, fs_hz) for fs_hz in (500.0, 25.0))
    np.testing.assert_allclose(fine[::20], coarse, atol=1e-6)
    np.testing.assert_allclose(wave_of(pulse, train, 40.0, 0.13, 500.0), fine[:20_000], atol=1e-9)
    # More than one chunk of 256 beats.
    assert rhythm.r_s.size > 256


def test_the_wave_is_that_of_its_beats_and_of_no_other():
    pulse, person = mean_pulse(45.0), person_of()
    train = draw_train(Mean(), person, pulse, steady(0.9, 20))
    whole = wave_of(pulse, train, 17.0)
    fields = ("start_s", "scale", "amplitude", "foot_s", "steepest_s")
    parts = [
        wave_of(pulse, replace(train, **{name: getattr(train, name)[part] for name in fields}), 17.0)
        for part in (slice(0, 9), slice(9, 20))
    ]
    np.testing.assert_allclose(whole, sum(parts), atol=1e-9)
    assert np.abs(whole[: round(train.foot_s[0] * FS_HZ) - 60]).max() < 1e-3


def delay_of(simulation):
    truth = simulation.truth
    return truth.delay_s, truth.beats.pulse_steepest_s - truth.beats.r_s


def test_the_delay_is_the_median_of_r_to_steepest_rise_with_the_sensor_in_it():
    for index in range(20):
        delay_s, each_s = delay_of(simulate(3, index, 20.0))
        assert delay_s == pytest.approx(np.nanmedian(each_s), abs=1e-9)
        assert 0.15 < delay_s < 0.75
