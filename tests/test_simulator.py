import json
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2es import signals
from p2es.beats import pulse_onsets, r_peaks
from p2es.demographics import Demographics, Sex
from p2es.errors import InputError
from p2es.leads import LEADS, law_residuals, lift
from p2es.simulator import MORPHOLOGIES, POPULATIONS, RHYTHMS, simulate, simulate_person
from p2es.simulator.catalogue import compatible
from p2es.simulator.people import Subtype, draw_demographics, draw_person, interaction, on_a_day, subtype_odds
from p2es.simulator.population import Prevalence, draw_condition

HEALTHY = POPULATIONS["healthy"]


def ecg_of(recording):
    return np.stack([signal.samples for signal in recording.signals[:12]])


def person_of(seed=0, **changes):
    fields = {"age_years": 50.0, "sex": Sex.MALE, "height_cm": 174.0, "weight_kg": 78.7}
    return draw_person(np.random.default_rng(seed), HEALTHY, Demographics(**(fields | changes)))


def assert_same(a, b):
    assert a.recording.demographics == b.recording.demographics
    assert json.dumps(a.truth.scalars()) == json.dumps(b.truth.scalars())
    for x, y in zip(a.recording.signals, b.recording.signals, strict=True):
        assert (x.name, x.unit, x.fs_hz) == (y.name, y.unit, y.fs_hz)
        np.testing.assert_array_equal(x.samples, y.samples)
    for name in a.truth.beats.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a.truth.beats, name), getattr(b.truth.beats, name))


@st.composite
def requests(draw):
    rhythm = draw(st.sampled_from(RHYTHMS))
    names = draw(st.lists(st.sampled_from(MORPHOLOGIES), max_size=3, unique=True))
    shapes = []
    for name in names:
        if compatible([*shapes, name], rhythm):
            shapes.append(name)
    return {
        "seed": draw(st.integers(0, 2**40)),
        "index": draw(st.integers(0, 10**7)),
        "duration_s": draw(st.floats(1.0, 12.0)),
        "population": draw(st.sampled_from(sorted(POPULATIONS))),
        "day": draw(st.integers(0, 3)),
        "rhythm": draw(st.one_of(st.none(), st.just(rhythm))) if not shapes else rhythm,
        "morphologies": shapes,
        "noise": draw(st.booleans()),
        "ecg_fs_hz": draw(st.sampled_from([100.0, 250.0, 360.0, 500.0])),
    }


@settings(max_examples=40, deadline=None)
@given(requests())
def test_any_person_is_whole_and_the_same_again(request):
    simulation = simulate(**request)
    recording, truth = simulation.recording, simulation.truth
    n = round(request["duration_s"] * request["ecg_fs_hz"])
    ecg = ecg_of(recording)
    assert ecg.shape == (12, n)
    assert tuple(recording.leads) == LEADS
    assert np.isfinite(simulation.clean_mv).all()
    assert np.abs(simulation.clean_mv).max() < 15
    off = [one for one in truth.artefacts if one[1] == "off"]
    missing = np.isnan(ecg)
    time_s = np.arange(n) / request["ecg_fs_hz"]
    told = np.zeros(n, bool)
    for _, _, start_s, stop_s in off:
        told |= (time_s >= start_s - 1e-6) & (time_s < stop_s)
    np.testing.assert_array_equal(missing.any(axis=0), told)
    assert np.nanmax(np.abs(np.nan_to_num(law_residuals(ecg)))) < 1e-12 * max(np.nanmax(np.abs(np.nan_to_num(ecg))), 1)
    assert np.abs(law_residuals(lift(simulation.clean_mv))).max() < 1e-12
    for signal in recording.signals[12:]:
        assert signal.samples.size == round(request["duration_s"] * signal.fs_hz)
        gone = np.isnan(signal.samples)
        if not request["noise"]:
            assert not gone.any()
    beats = truth.beats
    assert (np.diff(beats.r_s) > 0.2).all()
    assert ((beats.r_s >= 0) & (beats.r_s < request["duration_s"])).all()
    np.testing.assert_array_equal(recording.r_peaks_s, beats.r_s)
    for names in ("qrs_on_s r_s qrs_off_s", "t_on_s t_peak_s t_off_s", "pulse_foot_s pulse_steepest_s"):
        for a, b in pairwise(getattr(beats, name) for name in names.split()):
            assert ((a < b) | np.isnan(a)).all()
            np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    assert not np.isnan(beats.qrs_on_s).any()
    assert not np.isnan(beats.t_off_s).any()
    led = ~np.isnan(beats.p_on_s)
    assert (beats.p_off_s[led] < beats.r_s[led]).all()
    assert (beats.p_on_s[led] < beats.qrs_on_s[led]).all()
    scalars = json.dumps(truth.scalars(), allow_nan=False)
    assert "NaN" not in scalars
    assert all(value is not None or name != "rhythm" for name, value in recording.provenance.items())
    simulate(request["seed"], request["index"] + 1, 1.0, request["population"])
    assert_same(simulation, simulate(**request))


@settings(max_examples=25, deadline=None)
@given(requests())
def test_noise_and_rate_of_the_ecg_leave_the_person_and_the_beats_alone(request):
    one, other = (
        simulate(**(request | {"noise": noise, "ecg_fs_hz": fs_hz})) for noise, fs_hz in ((True, 250.0), (False, 500.0))
    )
    assert one.truth.person == other.truth.person
    np.testing.assert_array_equal(one.truth.beats.r_s, other.truth.beats.r_s)
    if one.truth.rhythm != "atrial_fibrillation":
        n = min(one.clean_mv.shape[1], (other.clean_mv.shape[1] + 1) // 2)
        np.testing.assert_allclose(one.clean_mv[:, :n], other.clean_mv[:, ::2][:, :n], atol=2e-3)


@pytest.mark.parametrize("other", [(8, 3, "healthy"), (7, 4, "healthy"), (7, 3, "other")])
def test_seed_index_and_population_each_make_another_person(other):
    seed, index, population = other
    changed, alone = simulate_person(seed, index, 15.0, population), simulate_person(7, 3, 15.0)
    assert np.abs(changed.signals[1].samples - alone.signals[1].samples).max() > 0.1
    assert changed.demographics != alone.demographics


def test_people_of_neighbouring_seeds_and_indices_have_nothing_in_common():
    rates = np.array([[simulate(s, i, 1.0).truth.person.heart_rate_bpm for i in range(15)] for s in range(15)])
    assert np.unique(rates).size == rates.size
    for a, b in ((rates[1:], rates[:-1]), (rates[:, 1:], rates[:, :-1]), (rates[1:, :-1], rates[:-1, 1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.25


@pytest.mark.parametrize("longer_s", [60.0, 200.0])
def test_a_longer_recording_is_of_the_same_person(longer_s):
    short, long = (simulate(2, 6, duration_s).truth for duration_s in (15.0, longer_s))
    assert short.person == long.person
    assert dict(short.sensor) == dict(long.sensor)
    assert list(short.r_mv.values()) == pytest.approx(list(long.r_mv.values()), abs=1e-4)
    assert short.axis_deg == long.axis_deg


@pytest.mark.parametrize("longer_s", [60.0, 200.0])
@pytest.mark.parametrize("rhythm", RHYTHMS)
def test_a_longer_recording_goes_on_where_the_shorter_one_stops(rhythm, longer_s):
    short, long = (simulate(3, 5, s, rhythm=rhythm, morphologies=()).truth.beats for s in (30.0, longer_s))
    n = short.r_s.size
    np.testing.assert_allclose(short.r_s, long.r_s[:n], atol=1e-6)
    np.testing.assert_array_equal(short.kind, long.kind[:n])


def test_a_longer_recording_has_the_same_pulses():
    short, long = (simulate(3, 5, s, rhythm="sinus").truth.beats.pulse_foot_s for s in (30.0, 60.0))
    np.testing.assert_allclose(short, long[: short.size], atol=1e-6)


def test_the_recording_says_what_it_is():
    recording = simulate_person(0, 12, 15.0)
    assert recording.simulated
    assert (recording.source, recording.person) == ("simulated", "person-000012")
    assert [(s.unit, s.samples.size / s.fs_hz) for s in recording.signals[:12]] == [("mV", 15.0)] * 12
    assert recording.signals[12].samples.size / recording.signals[12].fs_hz == 15.0
    other = simulate_person(0, 12, 15.0, "other")
    assert other.person != recording.person
    assert other.record != recording.record


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((-1, 0, 10.0), {}),
        ((0, -1, 10.0), {}),
        ((0, 0, 0.0), {}),
        ((0, 0, 0.99), {}),
        ((0, 0, 86_401.0), {}),
        ((0, 0, float("nan")), {}),
        ((0, 0, float("inf")), {}),
        ((0, 0, 10.0, "sick"), {}),
        ((0, 0, 10.0), {"day": -1}),
        ((0, 0, 10.0), {"rhythm": "flutter"}),
        ((0, 0, 10.0), {"morphologies": ["brugada"]}),
        ((0, 0, 10.0), {"morphologies": ["lbbb", "rbbb"]}),
        ((0, 0, 10.0), {"rhythm": "av_block_3", "morphologies": ["wpw"]}),
        ((0, 0, 10.0), {"ecg_fs_hz": 99.0}),
        ((0, 0, 10.0), {"ecg_fs_hz": float("nan")}),
        ((0, 0, 10.0), {"demographics": {"shoe_size": 42}}),
        ((0, 0, 10.0), {"demographics": {"age_years": 300.0}}),
        ((0, 0, 10.0), {"demographics": {"weight_kg": None}}),
    ],
)
def test_what_cannot_be_simulated_is_refused(arguments, options):
    with pytest.raises(InputError):
        simulate_person(*arguments, **options)


def test_an_incomplete_person_cannot_be_drawn():
    with pytest.raises(InputError, match="all four"):
        person_of(weight_kg=None)


def test_a_woman_by_a_plain_letter_is_a_woman():
    word, named = (simulate(0, 3, 2.0, demographics={"sex": sex}).truth.person for sex in ("F", Sex.FEMALE))
    assert word.qtcf_ms == named.qtcf_ms


# Detectors that know nothing of the simulator.


@pytest.fixture(scope="module")
def crowd():
    return [simulate(11, index, 30.0, rhythm="sinus") for index in range(60)]


def f1(found_s, truth_s, within_s, duration_s=30.0, edge_s=0.5):
    """F1 of events, but for those at the edges, where a detector sees half of one."""
    near = np.abs(found_s[:, None] - truth_s) if found_s.size and truth_s.size else np.full((1, 1), np.inf)
    inside_truth = (truth_s > edge_s) & (truth_s < duration_s - edge_s)
    inside_found = (found_s > edge_s) & (found_s < duration_s - edge_s)
    hit = (near.min(axis=0) < within_s)[inside_truth]
    right = (near.min(axis=1) < within_s)[inside_found]
    return hit.sum() + right.sum(), hit.size + right.size


def test_r_peaks_are_found_where_they_are(crowd):
    counts = np.array([f1(r_peaks(ecg_of(s.recording), 250.0), s.truth.beats.r_s, 0.05) for s in crowd])
    assert counts[:, 0].sum() / counts[:, 1].sum() >= 0.999


def test_pulses_are_found_where_they_are(crowd):
    counts, offsets = [], []
    for s in crowd:
        if s.truth.artefacts:
            continue
        ppg = s.recording.signals[12]
        sign = -1 if s.recording.provenance["device"] == "raw-patch" else 1
        found_s = pulse_onsets(sign * ppg.samples, ppg.fs_hz)
        truth_s = s.truth.beats.pulse_foot_s
        truth_s = truth_s[np.isfinite(truth_s)]
        nearest = truth_s[np.abs(found_s[:, None] - truth_s).argmin(axis=1)]
        offset_s = np.median(found_s - nearest)
        offsets.append(offset_s)
        counts.append(f1(found_s - offset_s, truth_s, 0.05, edge_s=1.0))
    total = np.sum(counts, axis=0)
    assert len(counts) >= 40
    assert total[0] / total[1] >= 0.999
    # The detector's onset is not the tangent's foot, but lies near it in everybody.
    assert np.ptp(offsets) < 0.06


def test_the_delay_is_found_again(crowd):
    errors_s = []
    for s in crowd:
        found, ppg = r_peaks(ecg_of(s.recording), 250.0), s.recording.signals[12]
        if s.truth.artefacts:
            continue
        delay_s, _, _ = signals.pulse_delay(found, pulse_onsets(ppg.samples, ppg.fs_hz))
        errors_s.append(delay_s - s.truth.delay_s)
    assert np.median(np.abs(errors_s)) < 0.010
    assert np.quantile(np.abs(errors_s), 0.95) < 0.012
    # Where S is the largest part of QRS, it is R by the truth's definition, and the detector's R is another.
    assert np.max(np.abs(errors_s)) < 0.040


def test_pulses_are_where_the_truth_says_after_half_an_hour_of_drift():
    for index in (1, 2):
        s = simulate(0, index, 1800.0)
        assert abs(s.truth.sensor["clock_drift_ppm"]) > 25
        ppg, truth_s = s.recording.signals[12], s.truth.beats.pulse_foot_s
        found_s = pulse_onsets(ppg.samples, ppg.fs_hz)
        errors_s = found_s - truth_s[np.abs(found_s[:, None] - truth_s).argmin(axis=1)]
        early, late = (np.median(errors_s[(found_s > a) & (found_s < b)]) for a, b in ((5, 100), (1690, 1790)))
        assert late == pytest.approx(early, abs=0.015)


def test_the_population_spans_devices_rates_and_missing_fields(crowd):
    delays = [s.truth.delay_s for s in crowd]
    assert min(delays) < 0.27
    assert max(delays) > 0.5
    rates = [s.truth.heart_rate_bpm for s in crowd]
    assert np.percentile(rates, 90) - np.percentile(rates, 10) > 15
    heights = [s.recording.demographics.height_cm for s in crowd]
    assert 0 < sum(height is None for height in heights) < 15
    devices = {s.recording.provenance["device"] for s in crowd}
    others = {simulate_person(11, index, 2.0, "other").provenance["device"] for index in range(20)}
    assert devices == set(HEALTHY.sensors)
    assert len(others) == 3
    assert not devices & others


# Twins.


def test_a_twin_in_height_differs_in_pr_qrs_transit_and_nothing_else():
    known = {"height_cm": 170.0, "weight_kg": 26 * 1.7**2}
    taller = {"height_cm": 180.0, "weight_kg": 26 * 1.8**2}
    for index in range(20):
        one, twin = (simulate(4, index, 2.0, demographics=d).truth.person for d in (known, taller))
        if one.subtype != twin.subtype:
            continue
        # Within what the limits of a person leave.
        assert twin.pr_ms - one.pr_ms == pytest.approx(4.17, abs=0.01)
        assert twin.qrs_ms - one.qrs_ms == pytest.approx(2.06, abs=0.01)
        assert twin.ptt_s / one.ptt_s == pytest.approx(18 / 17)
        same = {"heart_rate_bpm", "qtcf_ms", "axis_deg", "gain", "t_gain", "pep_s", "rsa_s", "pulse_age_years", "p_ms"}
        for name in same:
            assert getattr(one, name) == pytest.approx(getattr(twin, name), rel=1e-12), name


@pytest.mark.parametrize(
    ("changes", "trait", "effect"),
    [
        ({"sex": Sex.FEMALE, "height_cm": 161.0, "weight_kg": 67.4}, "qtcf_ms", 11.0),
        ({"sex": Sex.FEMALE, "height_cm": 161.0, "weight_kg": 67.4}, "qrs_ms", -6.0),
        ({"sex": Sex.FEMALE, "height_cm": 161.0, "weight_kg": 67.4}, "pr_ms", -6.0),
        ({"height_cm": 184.0, "weight_kg": 88.0}, "pr_ms", 4.2),
        ({"age_years": 70.0}, "axis_deg", -12.0),
        ({"weight_kg": 93.8}, "axis_deg", -9.0),
        ({"weight_kg": 93.8}, "pr_ms", 2.4),
        ({"weight_kg": 93.8}, "p_ms", 1.9),
    ],
)
def test_one_changed_field_has_the_published_effect_on_the_mean(changes, trait, effect):
    differences = [getattr(person_of(k, **changes), trait) - getattr(person_of(k), trait) for k in range(100)]
    assert np.mean(differences) == pytest.approx(effect, abs=0.5)


def test_a_twin_keeps_the_heart_the_sensor_and_the_electrodes():
    for index in range(10):
        age = {"age_years": 50.0}
        one = simulate(6, index, 10.0, demographics=age)
        twin = simulate(6, index, 10.0, demographics={"age_years": 52.0})
        assert one.recording.provenance["device"] == twin.recording.provenance["device"]
        assert one.truth.electrodes == twin.truth.electrodes
        assert one.truth.sensor == twin.truth.sensor
        assert one.truth.person.heart_rate_bpm == twin.truth.person.heart_rate_bpm
        if one.truth.person.subtype == twin.truth.person.subtype:
            # R times differ by the little that arrhythmia of breathing does.
            n = min(one.truth.beats.r_s.size, twin.truth.beats.r_s.size)
            assert np.abs(one.truth.beats.r_s[:n] - twin.truth.beats.r_s[:n]).max() < 0.03
            r_mv = np.array([list(x.truth.r_mv.values()) for x in (one, twin)])
            assert np.abs(np.diff(r_mv, axis=0)).max() < 0.1


# Days.


@pytest.fixture(scope="module")
def days():
    return [[simulate(8, index, 2.0, day=day, noise=False) for day in range(8)] for index in range(24)]


def test_days_are_of_one_person_and_in_other_records(days):
    for person in days[:5]:
        assert len({s.recording.person for s in person}) == 1
        assert len({s.recording.record for s in person}) == 8
        assert len({s.recording.demographics for s in person}) == 1
        assert len({s.truth.person.subtype for s in person}) == 1
        assert len({s.recording.provenance["device"] for s in person}) == 1
        assert len({s.truth.heart_rate_bpm for s in person}) == 8


def within(days, value):
    """Spread within people, by the root of the mean variance."""
    values = np.array([[value(s.truth) for s in person] for person in days])
    return np.sqrt(values.var(axis=1, ddof=1).mean()), values.mean(axis=1).std(ddof=1)


def test_a_person_varies_from_day_to_day_as_people_do(days):
    heights = np.array([[s.truth.r_mv["V5"] for s in person] for person in days])
    assert 0.15 < np.mean(heights.std(axis=1, ddof=1) / heights.mean(axis=1)) < 0.25
    axis, between = within(days, lambda truth: truth.axis_deg)
    assert axis == pytest.approx(6.0, abs=1.2)
    assert between > 3 * axis
    rate, between = within(days, lambda truth: truth.person.heart_rate_bpm)
    assert 2.5 < rate < 5.5
    assert between > 1.7 * rate
    for name, spread_ms in (("pr_ms", 6), ("qrs_ms", 2), ("qtcf_ms", 8)):
        found, between = within(days, lambda truth, name=name: getattr(truth.person, name))
        assert found == pytest.approx(spread_ms, rel=0.2), name
        assert between > 1.5 * found


# Populations.


@pytest.fixture(scope="module")
def adults():
    """Traits on a day of 80,000 people, those of 25 to 75 years: a dict of columns."""
    rng, day = np.random.default_rng(0), np.random.default_rng(1)
    names = ("heart_rate_bpm", "pr_ms", "qrs_ms", "qtcf_ms", "axis_deg", "p_ms", "gain", "t_gain", "ptt_s")
    rows, subtypes = [], []
    for _ in range(80_000):
        known = draw_demographics(rng, HEALTHY)
        person = on_a_day(day, draw_person(rng, HEALTHY, known))
        if 25 <= known.age_years <= 75:
            rows.append((*known.to_array(), *(getattr(person, name) for name in names)))
            subtypes.append(person.subtype)
    table = dict(zip(("age", "female", "height", "weight", *names), np.array(rows).T, strict=True))
    return table | {"bmi": table["weight"] / (table["height"] / 100) ** 2, "subtype": np.array(subtypes)}


@pytest.mark.parametrize(
    ("name", "mason"),
    [
        ("heart_rate_bpm", (48, 67, 98)),
        ("pr_ms", (113, 160, 212)),
        ("qrs_ms", (69, 89, 109)),
        ("qtcf_ms", (359, 401, 445)),
        ("axis_deg", (-40, 29, 91)),
    ],
)
def test_limits_of_normal_are_mason_s(adults, name, mason):
    np.testing.assert_allclose(np.percentile(adults[name], [2, 50, 98]), mason, atol=6)


def effects(adults, values):
    female = adults["female"]
    design = np.stack(
        [
            np.ones(female.size),
            female,
            adults["height"] - np.where(female > 0, 161, 174),
            adults["bmi"] - 26,
            adults["age"] - 50,
        ],
        axis=1,
    )
    return dict(
        zip(
            ("level", "female", "height", "bmi", "age"),
            np.linalg.lstsq(design, values, rcond=None)[0].tolist(),
            strict=True,
        )
    )


EFFECTS = [
    ("heart_rate_bpm", "female", 3.0),
    ("pr_ms", "female", -6.0),
    ("pr_ms", "height", 0.417),
    ("pr_ms", "bmi", 0.48),
    ("pr_ms", "age", 0.25),
    ("qrs_ms", "female", -6.0),
    ("qrs_ms", "height", 0.206),
    ("qtcf_ms", "female", 11.0),
    ("qtcf_ms", "age", 0.15),
    ("axis_deg", "female", 4.0),
    ("axis_deg", "age", -0.6),
    ("axis_deg", "bmi", -1.8),
    ("p_ms", "female", -4.0),
    ("p_ms", "bmi", 0.38),
    ("log gain", "age", -0.003),
    ("log gain", "bmi", -0.012),
]


@pytest.mark.parametrize(("trait", "cause", "size"), EFFECTS)
def test_each_demographic_has_its_published_effect(adults, trait, cause, size):
    values = np.log(adults["gain"]) if trait == "log gain" else adults[trait]
    assert 0.8 < effects(adults, values)[cause] / size < 1.2


@pytest.mark.parametrize(("cause", "size"), [("female", -0.20), ("age", -0.005)])
def test_the_effects_on_t_are_the_published_ones_with_subtypes_and_all(adults, cause, size):
    assert 0.8 < effects(adults, adults["t_gain"])[cause] / size < 1.2


def test_what_has_no_published_effect_has_none(adults):
    assert abs(effects(adults, adults["qtcf_ms"])["height"]) < 0.05
    assert abs(effects(adults, adults["qrs_ms"])["bmi"]) < 0.05
    assert abs(effects(adults, adults["heart_rate_bpm"])["age"]) < 0.03


def test_demographics_explain_little(adults):
    for name, most in (("pr_ms", 0.10), ("qrs_ms", 0.17), ("qtcf_ms", 0.12), ("axis_deg", 0.18)):
        female = adults["female"]
        design = np.stack([np.ones(female.size), female, adults["height"], adults["bmi"], adults["age"]], axis=1)
        rest = adults[name] - design @ np.linalg.lstsq(design, adults[name], rcond=None)[0]
        assert 0.03 < 1 - rest.var() / adults[name].var() < most, name


def test_subtypes_are_as_common_as_their_odds_and_where_they_should_be(adults):
    of = {subtype: adults["subtype"] == subtype for subtype in Subtype}
    assert all(one.mean() > 0.03 for one in of.values())
    young_men = (adults["female"] == 0) & (adults["age"] < 35)
    old_women = (adults["female"] == 1) & (adults["age"] > 62) & (adults["bmi"] > 29)
    assert of[Subtype.EARLY_REPOLARISATION][young_men].mean() > 0.3
    assert of[Subtype.FLAT_T][old_women].mean() > 0.4
    assert of[Subtype.EARLY_REPOLARISATION][old_women].mean() < 0.05
    odds = subtype_odds(Demographics(30.0, Sex.MALE, 174.0, 78.7))
    assert sum(odds.values()) == pytest.approx(1)
    drawn = [person_of(k, age_years=30.0).subtype for k in range(1500)]
    for subtype, share in odds.items():
        assert np.mean([one is subtype for one in drawn]) == pytest.approx(share, abs=0.04)


def test_the_interaction_cannot_be_had_by_a_regression(adults):
    known = [
        Demographics(a, Sex.MALE, h, w)
        for a, h, w in zip(adults["age"][:4000], adults["height"][:4000], adults["weight"][:4000], strict=True)
    ]
    both = np.array([interaction(one) for one in known])
    assert np.abs(both).max() <= 1
    assert both.std() > 0.2
    sample = {name: values[:4000] for name, values in adults.items()}
    fitted = effects(sample, both)
    linear = sum(fitted[name] * (sample[name] - sample[name].mean()) for name in ("age", "bmi", "female"))
    assert linear.var() / both.var() < 0.15


def test_demographics_are_those_of_adults(adults):
    assert adults["female"].mean() == pytest.approx(0.5, abs=0.01)
    for female, height_cm in ((1, 161), (0, 174)):
        young = (adults["female"] == female) & (adults["age"] < 50)
        assert adults["height"][young].mean() == pytest.approx(height_cm, abs=0.3)
    assert np.percentile(adults["bmi"], [2, 50, 98]) == pytest.approx([19, 26, 35.5], abs=1.2)


@pytest.mark.parametrize("name", POPULATIONS)
def test_conditions_are_as_common_as_stated_and_always_compatible(name):
    population, n = POPULATIONS[name], 6000
    rng = np.random.default_rng(1)
    drawn = [draw_condition(rng, population, 60.0) for _ in range(n)]
    assert all(compatible(shapes, rhythm) for rhythm, shapes in drawn)
    for rhythm, prevalence in population.rhythms:
        assert np.mean([one == rhythm for one, _ in drawn]) == pytest.approx(prevalence.share, abs=0.02), rhythm
    for shape, prevalence in population.morphologies:
        found = np.mean([shape in shapes for _, shapes in drawn])
        assert 0.4 * prevalence.share - 0.003 < found < prevalence.share + 0.02, shape
    if name in {"healthy", "other"}:
        assert set(drawn) == {("sinus", ())}


def test_what_comes_with_age_is_more_common_in_the_old():
    assert Prevalence(0.05, 1.9).at(70) == pytest.approx(0.095)
    rng = np.random.default_rng(2)
    shares = [
        np.mean([draw_condition(rng, POPULATIONS["clinic"], age)[0] == "atrial_fibrillation" for _ in range(3000)])
        for age in (40.0, 80.0)
    ]
    assert shares[1] > 5 * shares[0]


def test_people_of_equal_demographics_still_differ():
    people = [person_of(k) for k in range(60)]
    assert np.std([person.qtcf_ms for person in people]) > 10
    assert np.std([person.axis_deg for person in people]) > 15
    assert len({person.pr_ms for person in people}) > 55


def test_a_person_takes_little_time():
    simulate_person(0, 0, 82.0)
    times = []
    for index in range(5):
        started = time.process_time()
        simulate_person(0, index, 82.0)
        times.append(time.process_time() - started)
    assert min(times) < 0.06
