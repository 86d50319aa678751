from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from p2es.baselines.common import BaselineConfig
from p2es.baselines.intervals import ERRORS, IntervalRegression, wrapped_deg
from p2es.baselines.mean_waveform import MeanWaveform
from p2es.baselines.oracle import SimulatorOracle, _completed, _condition, _drawn
from p2es.baselines.other_segment import OtherSegment
from p2es.baselines.pasting import TIME_S, paste
from p2es.baselines.pulse_shape import PULSE_S, mean_pulse, pulse_features
from p2es.baselines.regression import BeatRegression, _missed, _ridge
from p2es.baselines.retrieval import Retrieval
from p2es.baselines.template import Template
from p2es.delay import DelayLaw
from p2es.delineation import measure_ecg
from p2es.demographics import Demographics, Sex
from p2es.errors import DatasetError, InputError, ModelError
from p2es.evaluation.beats import constant_lag, f1_score
from p2es.evaluation.measure import describe, measure
from p2es.leads import INDEPENDENT_INDEX, law_residuals, lift
from p2es.segmenting import segment
from p2es.signals import r_peaks, zscore_ppg
from p2es.simulator import simulate_person
from p2es.simulator.people import draw_person, on_a_day
from p2es.simulator.population import POPULATIONS, Prevalence, population_named
from p2es.translator import Translator
from p2es.windows import ECG_SAMPLES, FS_HZ, MARGIN_S, PPG_SAMPLES, WindowBatch, WindowStore, collate

GAINS = np.array([0.8, 1.2, -0.6, -0.3, 0.7, 1.5, 1.4, 1.0])
PEOPLE = 40
DELAY_S = 0.35


def amplitude_of(age_years):
    return 1.0 + 0.01 * (age_years - 50.0)


def beats_of(rng, rr_s):
    return -1.5 + np.cumsum(rng.uniform(0.94, 1.06, 30) * rr_s)


def ecg_of(beats_s, amplitude):
    t = np.arange(ECG_SAMPLES) / FS_HZ
    wave = sum(np.exp(-(((t - b) / 0.014) ** 2)) + 0.25 * np.exp(-(((t - b - 0.25) / 0.05) ** 2)) for b in beats_s)
    return (amplitude * lift(GAINS[:, None] * wave)).astype(np.float32)


def ppg_of(beats_s, delay_s, width_s=0.1):
    t = np.arange(PPG_SAMPLES) / FS_HZ - MARGIN_S
    # The steepest rise of a Gaussian is one width before its top.
    wave = sum(np.exp(-0.5 * ((t - b - delay_s - width_s) / width_s) ** 2) for b in beats_s)
    return zscore_ppg(wave[None], np.ones(PPG_SAMPLES, bool))


def batch_of(rng, people, prefix="p", widths_s=None):
    """Make people whose ECG grows with age; or, where `widths_s` is given, with the width of their pulse."""
    ages = rng.uniform(25, 85, people)
    beats = [beats_of(rng, rng.uniform(0.7, 1.1)) for _ in range(people)]
    delays = DELAY_S + rng.normal(0, 0.02, people)
    names = np.array([f"{prefix}{k:02d}" for k in range(people)])
    fields = np.column_stack([ages, rng.integers(0, 2, people), rng.normal(170, 8, people), rng.normal(75, 9, people)])
    sizes = amplitude_of(ages) if widths_s is None else 10 * widths_s
    widths_s = np.full(people, 0.1) if widths_s is None else widths_s
    return WindowBatch(
        ecg_mv=np.stack([ecg_of(b, a) for b, a in zip(beats, sizes, strict=True)]),
        lead_mask=np.ones((people, 12), bool),
        ppg=np.stack([ppg_of(b, d, w) for b, d, w in zip(beats, delays, widths_s, strict=True)]),
        ppg_mask=np.ones((people, PPG_SAMPLES), bool),
        people=fields,
        delay_s=delays.astype(np.float32),
        delay_confidence=np.ones(people, np.float32),
        person=names,
        window_id=names,
        recording=names,
    )


@pytest.fixture(scope="module")
def train():
    return WindowStore.from_batches([batch_of(np.random.default_rng(0), PEOPLE)])


@pytest.fixture(scope="module")
def unseen():
    return batch_of(np.random.default_rng(1), 6, "q")


def fitted(kind):
    @pytest.fixture(scope="module")
    def yardstick(train):
        return kind().fit(train, BaselineConfig())

    return yardstick


template, mean_waveform, regression = fitted(Template), fitted(MeanWaveform), fitted(BeatRegression)
retrieval, oracle, other_segment = fitted(Retrieval), fitted(SimulatorOracle), fitted(OtherSegment)

EVERY = ["template", "mean_waveform", "regression", "retrieval", "oracle", "other_segment"]


@pytest.fixture(params=EVERY)
def yardstick(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["regression", "oracle"])
def drawing(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["template", "mean_waveform", "retrieval", "other_segment"])
def fixed(request):
    return request.getfixturevalue(request.param)


def sample(translator, batch, rows=None, samples=3, seeds=None, people=None, ppg=None):
    rows = list(range(len(batch))) if rows is None else rows
    # The ECG of the window itself stands in for another of the person.
    enrolment = {"enrolment": batch.ecg_mv[rows]} if isinstance(translator, OtherSegment) else {}
    return translator.sample(
        batch.ppg[rows] if ppg is None else ppg,
        people or [Demographics.from_array(person) for person in batch.people[rows]],
        fs_hz=FS_HZ,
        samples=samples,
        evaluations=1,
        seeds=rows if seeds is None else seeds,
        **enrolment,
    )


def test_yardsticks_are_translators_that_obey_the_lead_laws(yardstick, unseen):
    assert isinstance(yardstick, Translator)
    for drawn in sample(yardstick, unseen, samples=20):
        assert drawn.ecg_mv.shape == (20, 12, ECG_SAMPLES)
        assert drawn.ecg_mv.dtype == np.float32
        for ecg in (drawn.ecg_mv, drawn.median_mv):
            assert np.abs(law_residuals(ecg.astype(np.float64))).max() < 1e-3
        assert np.ptp(drawn.ecg_mv) > 0.01


def test_twenty_samples_have_a_band_unless_they_are_one_recording(yardstick, unseen):
    for samples, told in ((19, False), (20, not isinstance(yardstick, OtherSegment))):
        drawn = sample(yardstick, unseen, [0], samples=samples)[0]
        assert (drawn.band_mv is not None) == told
    if told:
        assert drawn.band_mv.shape == (2, 12, ECG_SAMPLES)
        assert (drawn.band_mv[1] >= drawn.band_mv[0]).all()
        assert np.median(drawn.band_mv[1] - drawn.band_mv[0]) > 1e-4


def test_a_window_is_the_same_alone_and_in_a_batch(yardstick, unseen):
    together = sample(yardstick, unseen, rows=[5, 4, 0])
    alone = sample(yardstick, unseen, rows=[4])[0]
    np.testing.assert_array_equal(together[1].ecg_mv, alone.ecg_mv)


def test_one_draw_is_the_first_of_many(yardstick, unseen):
    one, many = sample(yardstick, unseen, [0], samples=1)[0], sample(yardstick, unseen, [0], samples=5)[0]
    np.testing.assert_array_equal(one.ecg_mv[0], many.ecg_mv[0])
    assert one.band_mv is None


def test_seeds_and_draws_differ(drawing, unseen):
    first, second = (sample(drawing, unseen, [0], seeds=[seed])[0].ecg_mv for seed in (1, 2))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first[0], first[1])


def test_what_draws_nothing_knows_no_seed(fixed, unseen):
    first, second = (sample(fixed, unseen, [0], seeds=[seed])[0].ecg_mv for seed in (1, 2))
    np.testing.assert_array_equal(first, second)


def test_a_gap_in_the_pulse_is_no_end(yardstick, unseen):
    ppg = unseen.ppg[:1].copy()
    ppg[..., 500:700] = np.nan
    drawn = sample(yardstick, unseen, [0], samples=20, ppg=ppg)[0]
    assert np.isfinite(drawn.ecg_mv).all()
    assert np.ptp(drawn.ecg_mv) > 0.01


def test_what_is_saved_is_what_is_loaded(yardstick, unseen, tmp_path):
    yardstick.save(tmp_path / "kept")
    again = type(yardstick).load(tmp_path / "kept")
    before, after = sample(yardstick, unseen, [0, 3], samples=20), sample(again, unseen, [0, 3], samples=20)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a.ecg_mv, b.ecg_mv)
        np.testing.assert_array_equal(a.band_mv, b.band_mv)


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign"])
def test_a_damaged_file_is_a_model_error(yardstick, tmp_path, damage):
    yardstick.save(tmp_path)
    path = tmp_path / f"{yardstick.name}.npz"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    else:
        np.savez(path, weights_mv=np.zeros(3), mean_mv=np.zeros(3))
    with pytest.raises(ModelError) as caught:
        type(yardstick).load(tmp_path)
    assert "\n" not in str(caught.value)


def test_pulses_of_another_person_give_other_beats_but_not_another_mean(regression, mean_waveform, unseen):
    other = replace(unseen, ppg=unseen.ppg[::-1].copy())
    np.testing.assert_array_equal(
        sample(mean_waveform, unseen, [0])[0].ecg_mv, sample(mean_waveform, other, [0])[0].ecg_mv
    )
    own, theirs = (r_peaks(sample(regression, b, [0])[0].ecg_mv[0], FS_HZ) for b in (unseen, other))
    truth = r_peaks(unseen.ecg_mv[0], FS_HZ)

    def score(found):
        lag = constant_lag(truth, found)
        return f1_score(truth, found, tolerance_s=0.05, lag_s=lag, duration_s=10.0)

    assert score(own) > 0.95
    assert score(theirs) < 0.7


@pytest.mark.parametrize("name", ["template", "regression", "oracle"])
def test_what_pastes_knows_the_usual_delay(name, unseen, request):
    yardstick = request.getfixturevalue(name)
    assert yardstick.delay.intercept_s == pytest.approx(DELAY_S, abs=0.02)
    assert yardstick.delay.spread_s == pytest.approx(0.02, abs=0.01)
    lags = []
    for row, drawn in enumerate(sample(yardstick, unseen, samples=1)):
        lags.append(constant_lag(r_peaks(unseen.ecg_mv[row], FS_HZ), r_peaks(drawn.ecg_mv[0], FS_HZ)))
    assert np.abs(lags).max() < 0.1


def test_the_regression_learns_what_depends_on_age_and_the_template_does_not(regression, template, unseen):
    def height(yardstick, age):
        person = Demographics.from_array(np.array([age, 0.0, 170.0, 75.0]))
        drawn = sample(yardstick, unseen, [0], samples=40, people=[person])[0]
        return np.median(drawn.ecg_mv[:, 1].max(axis=1))

    expected = amplitude_of(80.0) / amplitude_of(30.0)
    assert height(regression, 80.0) / height(regression, 30.0) == pytest.approx(expected, rel=0.12)
    assert height(template, 80.0) == pytest.approx(height(template, 30.0), rel=1e-6)


def test_the_regression_learns_what_depends_on_the_pulse():
    rng = np.random.default_rng(5)
    store = WindowStore.from_batches([batch_of(rng, 40, widths_s=rng.uniform(0.07, 0.13, 40))])
    widths = np.array([0.08, 0.10, 0.12])
    new = batch_of(rng, 3, "q", widths_s=widths)
    fitted = BeatRegression().fit(store, BaselineConfig())
    heights = [np.median(drawn.ecg_mv[:, 1].max(axis=1)) for drawn in sample(fitted, new, samples=40)]
    np.testing.assert_allclose(np.array(heights) / heights[1], widths / 0.10, rtol=0.08)


def test_what_the_regression_misses_is_as_wide_as_it_is_on_others():
    """White noise of unit size on 24 people: what ten terms leave of it on the same people is 24 % too small."""
    rng = np.random.default_rng(6)
    terms = np.column_stack([np.ones(24), rng.standard_normal((24, 9))])
    beats = rng.standard_normal((24, 8, TIME_S.size))
    weights, leverage = _ridge(terms, beats, np.ones((24, 8), bool))
    assert (beats - np.tensordot(terms, weights, axes=1)).std() < 0.85
    assert _missed(terms, beats, weights, leverage).std() == pytest.approx(1.0, abs=0.03)


def test_the_template_is_the_mean_beat_of_people(template, train):
    batch = train.batch(np.arange(PEOPLE))
    peak = template.beat_mv[:, np.argmin(np.abs(TIME_S))]
    expected = amplitude_of(batch.people[:, 0]).mean() * GAINS
    # An R of 14 ms loses some of its height to beats that lie between samples.
    np.testing.assert_allclose(peak, expected, rtol=0.06)


def test_the_template_is_the_same_for_people_of_one_delay_at_any_rate(template, unseen):
    same = replace(template, delay=DelayLaw(0.35))
    drawn = sample(same, unseen, samples=1)
    everybody = sample(same, unseen, [0], people=[Demographics(20, Sex.MALE, 200, 120)], samples=1)[0]
    np.testing.assert_array_equal(drawn[0].ecg_mv, everybody.ecg_mv)
    tops = []
    for window in drawn:
        beats = r_peaks(window.ecg_mv[0], FS_HZ)[2:-2]
        at = (beats[:, None] * FS_HZ + np.arange(20, 45)).round().astype(int)
        tops.append(window.ecg_mv[0, 1][at].mean(axis=0))
    assert np.ptp([60 / np.median(np.diff(r_peaks(w.ecg_mv[0], FS_HZ))) for w in drawn]) > 10
    np.testing.assert_allclose(tops, np.broadcast_to(tops[0], (6, 25)), atol=0.03)


def test_the_band_of_the_template_covers_what_it_was_fitted_to(template, train):
    batch = train.batch(np.arange(PEOPLE))
    drawn = sample(template, batch, samples=20)
    inside = [(e >= d.band_mv[0]) & (e <= d.band_mv[1]) for e, d in zip(batch.ecg_mv, drawn, strict=True)]
    np.testing.assert_allclose(np.mean(inside, axis=(0, 2)), 0.90, atol=0.02)


def test_without_any_pulse_in_training_the_template_has_no_band(train, unseen):
    batch = train.batch(np.arange(PEOPLE))
    without = replace(batch, ppg_mask=np.zeros_like(batch.ppg_mask), ppg=np.zeros_like(batch.ppg))
    store = WindowStore.from_batches([without])
    assert sample(Template().fit(store, BaselineConfig()), unseen, [0], samples=20)[0].band_mv is None
    assert sample(BeatRegression().fit(store, BaselineConfig()), unseen, [0], samples=20)[0].band_mv is not None
    with pytest.raises(DatasetError, match="pulse"):
        Retrieval().fit(store, BaselineConfig())


def test_people_of_whom_nothing_is_known_are_drawn(yardstick, unseen):
    drawn = sample(yardstick, unseen, [0], people=[Demographics()])[0]
    assert np.isfinite(drawn.ecg_mv).all()


@pytest.mark.parametrize("rr_s", [0.4, 0.75, 1.2])
def test_shares_of_neighbouring_beats_add_up_to_one(rr_s):
    beats_s = np.arange(-3.0, 13.0, rr_s)
    pasted = paste(np.ones((8, TIME_S.size)), beats_s)
    assert pasted.shape == (8, ECG_SAMPLES)
    # Beats are placed to the nearest sample, so neighbouring fades may be one sample apart.
    np.testing.assert_allclose(pasted, 1.0, atol=0.2)
    assert pasted.mean() == pytest.approx(1.0, abs=0.01)


def test_a_known_pulse_retrieves_its_own_ecg_bit_for_bit(retrieval, train):
    batch = train.batch(np.arange(PEOPLE))
    rows = [3, 17, 30]
    for row, drawn in zip(rows, sample(retrieval, batch, rows, samples=PEOPLE + 2), strict=True):
        independent = drawn.ecg_mv[:, INDEPENDENT_INDEX]
        np.testing.assert_array_equal(independent[0], batch.ecg_mv[row, INDEPENDENT_INDEX])
        found = {ecg.tobytes() for ecg in independent}
        assert len(found) == PEOPLE, "each sample is of another person, until all were given"
        np.testing.assert_array_equal(independent[PEOPLE], independent[0])


def test_retrieval_follows_rate_person_and_shape():
    rng = np.random.default_rng(9)
    # Two people alike but in one thing each: with it, the nearer one is told.
    base = batch_of(rng, 2)
    beats = beats_of(rng, 0.9)
    person = np.array([50.0, 0.0, 170.0, 75.0])

    def nearest(ppg, people, query_ppg, query_person):
        store = WindowStore.from_batches([replace(base, ppg=np.stack(ppg), people=np.stack(people))])
        fitted = Retrieval().fit(store, BaselineConfig())
        drawn = fitted.sample(
            query_ppg[None], [Demographics.from_array(query_person)], fs_hz=FS_HZ, samples=1, evaluations=1, seeds=[0]
        )[0]
        return int(np.argmin(np.abs(base.ecg_mv - drawn.ecg_mv[0]).sum(axis=(1, 2))))

    one, slow, wide = ppg_of(beats, 0.3), ppg_of(1.4 * beats, 0.3), ppg_of(beats, 0.3, 0.13)
    old = np.array([80.0, 0.0, 170.0, 75.0])
    assert nearest([one, slow], [person, person], slow, person) == 1
    assert nearest([one, one], [person, old], one, old) == 1
    assert nearest([one, wide], [person, person], wide, person) == 1
    assert nearest([one, wide], [person, person], one, person) == 0


def test_leads_that_nobody_has_are_flat_when_retrieved(train, unseen):
    batch = train.batch(np.arange(8))
    mask = batch.lead_mask.copy()
    mask[:, 6:] = False
    partial = replace(batch, lead_mask=mask, ecg_mv=np.where(mask[..., None], batch.ecg_mv, np.float32(0)))
    drawn = sample(Retrieval().fit(WindowStore.from_batches([partial]), BaselineConfig()), unseen, [0])[0]
    assert np.ptp(drawn.ecg_mv[:, :6]) > 0.5
    assert not drawn.ecg_mv[:, 6:].any()


def test_another_segment_is_given_back_as_it_is(other_segment, unseen):
    for row, drawn in enumerate(sample(other_segment, unseen)):
        np.testing.assert_array_equal(drawn.ecg_mv, np.repeat(unseen.ecg_mv[row][None], 3, axis=0))
        np.testing.assert_array_equal(drawn.median_mv, unseen.ecg_mv[row])


def test_without_another_segment_there_is_none(other_segment, unseen):
    request = {"fs_hz": FS_HZ, "samples": 1, "evaluations": 1, "seeds": [0]}
    with pytest.raises(ModelError, match="enrolment"):
        other_segment.sample(unseen.ppg[:1], [Demographics()], **request)
    with pytest.raises(ModelError, match="shape"):
        other_segment.sample(unseen.ppg[:1], [Demographics()], enrolment=unseen.ecg_mv[:2], **request)
    partial = unseen.ecg_mv[:1].copy()
    partial[0, 7] = np.nan
    with pytest.raises(InputError, match="no other whole ECG"):
        other_segment.sample(unseen.ppg[:1], [Demographics()], enrolment=partial, **request)


def test_the_shape_of_a_gaussian_pulse_is_known_in_closed_form():
    width = 0.08
    pulse = np.exp(-0.5 * ((PULSE_S - width) / width) ** 2)
    rise_s, width_s, notch, b_a = pulse_features(pulse, 1.0)
    # From the first sample, as a Gaussian has no foot, to its top.
    assert rise_s == pytest.approx(width - PULSE_S[0], abs=0.005)
    assert width_s == pytest.approx(2 * np.sqrt(2 * np.log(2)) * width, abs=0.005)
    # Its second derivative is largest sqrt(3) widths from the top, where it is 2 exp(-3/2) of what it is at the top.
    assert notch == pytest.approx(np.exp(-1.5), abs=0.02)
    assert b_a == pytest.approx(-1 / (2 * np.exp(-1.5)), rel=0.02)


def test_the_mean_pulse_is_that_of_every_beat():
    rng = np.random.default_rng(3)
    at = np.cumsum(rng.uniform(0.9, 1.1, 9))
    t = np.arange(PPG_SAMPLES) / FS_HZ
    ppg = 3 + 2 * sum(np.exp(-0.5 * ((t - a - 0.1) / 0.1) ** 2) for a in at)
    everything = np.ones(t.size, bool)
    found = mean_pulse(ppg, everything, at)
    expected = np.exp(-0.5 * ((PULSE_S - 0.1) / 0.1) ** 2)
    foot = expected[PULSE_S <= 0].min()
    np.testing.assert_allclose(found, (expected - foot) / (1 - foot), atol=0.01)
    spoiled, mask = ppg.copy(), everything.copy()
    bad = (t > at[2] - 0.3) & (t < at[6] + 0.7)
    spoiled[bad], mask[bad] = 99.0, False
    np.testing.assert_allclose(mean_pulse(spoiled, mask, at), found, atol=0.01)
    assert mean_pulse(ppg, t < at[1] + 0.3, at) is None


def test_the_mean_is_the_mean_and_its_band_covers(mean_waveform, train):
    batch = train.batch(np.arange(PEOPLE))
    np.testing.assert_allclose(mean_waveform.mean_mv, batch.ecg_mv.mean(axis=0), atol=1e-5)
    inside = (batch.ecg_mv >= mean_waveform.band_mv[0]) & (batch.ecg_mv <= mean_waveform.band_mv[1])
    np.testing.assert_allclose(inside.mean(axis=(0, 2)), 0.90, atol=0.01)


def test_leads_that_are_missing_in_training_do_not_pull_the_mean_down(train, template, regression):
    batch = train.batch(np.arange(PEOPLE))
    mask = batch.lead_mask.copy()
    mask[: PEOPLE // 2, 6] = False
    partial = replace(batch, lead_mask=mask, ecg_mv=np.where(mask[..., None], batch.ecg_mv, np.float32(0)))
    store = WindowStore.from_batches([partial])
    found = MeanWaveform().fit(store, BaselineConfig())
    np.testing.assert_allclose(found.mean_mv[6], batch.ecg_mv[PEOPLE // 2 :, 6].mean(axis=0), atol=1e-5)
    for fitted, beat_of in ((template, lambda t: t.beat_mv), (regression, lambda r: r.weights_mv[0])):
        beat, whole = beat_of(type(fitted)().fit(store, BaselineConfig())), beat_of(fitted)
        assert np.abs(beat[2]).max() == pytest.approx(np.abs(whole[2]).max(), rel=0.1)


def test_the_number_of_training_windows_is_bounded(train):
    few = MeanWaveform().fit(train, BaselineConfig(max_windows=5))
    assert not np.allclose(few.mean_mv, MeanWaveform().fit(train, BaselineConfig()).mean_mv)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"ppg": np.zeros((1, 1, PPG_SAMPLES), np.float32)}, InputError),
        ({"ppg": np.full((1, 1, PPG_SAMPLES), np.nan, np.float32)}, InputError),
        ({"ppg": np.zeros((1, 1, 100), np.float32)}, InputError),
        ({"fs_hz": float("nan")}, InputError),
        ({"seeds": [1, 2]}, InputError),
        ({"samples": 0}, InputError),
        ({"known": np.zeros((1, 12, ECG_SAMPLES), np.float32)}, ModelError),
        ({"enrolment": np.zeros((1, 12, 7), np.float32)}, ModelError),
    ],
)
def test_bad_requests_are_told_in_one_line(yardstick, unseen, change, error):
    request = {"ppg": unseen.ppg[:1], "fs_hz": FS_HZ, "samples": 1, "evaluations": 1, "seeds": [0]} | change
    if isinstance(yardstick, OtherSegment):
        request = {"enrolment": unseen.ecg_mv[:1]} | request
    with pytest.raises(error) as caught:
        yardstick.sample(request.pop("ppg"), [Demographics()], **request)
    assert "\n" not in str(caught.value)


def test_a_dataset_without_ecg_cannot_be_fitted(train):
    batch = train.batch(np.arange(4))
    empty = WindowStore.from_batches([replace(batch, lead_mask=np.zeros((4, 12), bool))])
    flat = WindowStore.from_batches([replace(batch, ecg_mv=np.zeros_like(batch.ecg_mv))])
    with pytest.raises(DatasetError, match="ECG"):
        MeanWaveform().fit(empty, BaselineConfig())
    for kind in (Template, BeatRegression):
        with pytest.raises(DatasetError, match="beat"):
            kind().fit(flat, BaselineConfig())


# What is simulated is delineated below, by the same code as in an evaluation.


def windows_of(seed, people, duration_s, split):
    recordings = [simulate_person(seed, index, duration_s) for index in range(people)]
    cut = (segment(r, step_s=10.0, ids=lambda *parts: "-".join(parts), split=split).windows for r in recordings)
    return collate([window for windows in cut for window in windows])


@pytest.fixture(scope="module")
def hearts():
    return WindowStore.from_batches([windows_of(7, 36, 12.5, "train")])


@pytest.fixture(scope="module")
def tested():
    """The second window of each of 10 people, and the first as its enrolment."""
    batch = windows_of(8, 10, 22.5, "test")
    names = np.unique(batch.person)
    rows = [np.flatnonzero(batch.person == name) for name in names]
    return batch.take([row[-1] for row in rows]), batch.take([row[0] for row in rows])


@pytest.fixture(scope="module")
def measured(hearts, tested):
    truth, earlier = tested
    tables = {}
    for kind in (MeanWaveform, Template, BeatRegression, Retrieval, SimulatorOracle, OtherSegment):
        yardstick = kind().fit(hearts, BaselineConfig())
        enrolment = earlier.ecg_mv if kind is OtherSegment else None
        drawn = yardstick.sample(
            np.where(truth.ppg_mask[:, None], truth.ppg, np.float32(np.nan)),
            [Demographics.from_array(person) for person in truth.people],
            fs_hz=FS_HZ,
            enrolment=enrolment,
            samples=1,
            evaluations=1,
            seeds=range(len(truth)),
        )
        tables[yardstick.name] = measure(truth, drawn, system=yardstick.name)
        rates = np.array([translation.heart_rate_bpm for translation in drawn])
    bank = describe(hearts.batch(np.arange(len(hearts))), system="train")
    tables["demographic_regression"] = IntervalRegression().fit(bank).rows(tables["template"], rates)
    return tables


def mean_of(table, column):
    return float(np.nanmean(table[column].to_numpy()))


def test_the_mean_waveform_has_the_lowest_error_and_its_beats_are_at_chance(measured):
    errors = {name: mean_of(measured[name], "rmse_mv_sample") for name in EVERY}
    assert min(errors, key=errors.get) == "mean_waveform"
    # A beat at a random place lies within the tolerance of another by so much.
    rate = mean_of(measured["template"], "real_hr_bpm") / 60
    for tolerance_ms in (50, 150):
        found = mean_of(measured["mean_waveform"], f"r_f1_{tolerance_ms}ms")
        assert found < 2 * tolerance_ms / 1000 * rate + 0.15
    assert mean_of(measured["template"], "r_f1_150ms") > 0.75


def test_pulse_beats_tell_the_heart_rate_without_a_model(measured):
    errors = {name: mean_of(measured[name], "hr_error_bpm") for name in EVERY}
    assert errors["template"] < 0.5
    assert errors["template"] < min(errors[name] for name in ("mean_waveform", "retrieval"))
    assert mean_of(measured["template"], "r_f1_50ms_lag") > 0.97


def test_two_real_ecgs_of_a_person_are_far_nearer_than_demographics_tell(measured):
    for error in ERRORS.values():
        # Sample 0 is all there is of one ECG.
        floor = measured["other_segment"][f"{error}_sample"].to_numpy()
        told = measured["demographic_regression"][error].to_numpy()
        assert np.nanmedian(floor) < 0.4 * np.nanmedian(told)


def test_morphology_of_the_oracle_varies_and_that_of_the_template_does_not(measured):
    def spread(name, of):
        return np.nanstd(measured[name][f"{of}_qrs_ms"].to_numpy())

    assert spread("template", "drawn") < 0.2 * spread("template", "real")
    assert 0.5 < spread("oracle", "drawn") / spread("oracle", "real") < 2.0


def features_of(draws):
    found = [measure_ecg(ecg, FS_HZ) for ecg in draws]
    return {name: np.array([getattr(one, name) for one in found]) for name in ("pr_ms", "qrs_ms", "qtcf_ms")}


@pytest.fixture(scope="module")
def couple(tested):
    """What the oracle draws of a woman and of a man, each of usual height, with one pulse and one seed."""
    people = [Demographics(50, Sex.FEMALE, 161, 67), Demographics(50, Sex.MALE, 174, 79)]
    ppg = np.repeat(tested[0].ppg[:1], 2, axis=0)
    drawn = SimulatorOracle().sample(ppg, people, fs_hz=FS_HZ, samples=45, evaluations=1, seeds=[3, 3])
    return people, [features_of(one.ecg_mv) for one in drawn]


def test_the_oracle_knows_what_sex_does(couple):
    _, (woman, man) = couple
    # The simulator's own equations; draws of one seed differ by them alone, so that 45 are enough.
    for name, effect in (("qrs_ms", -6.0), ("qtcf_ms", 11.0), ("pr_ms", -6.0)):
        assert np.nanmedian(woman[name] - man[name]) == pytest.approx(effect, abs=2.5)


def test_the_oracle_draws_as_the_population_is(couple):
    people, drawn = couple
    rng = np.random.default_rng(0)
    settings = population_named("healthy")
    for person, found in zip(people, drawn, strict=True):
        others = [on_a_day(rng, draw_person(rng, settings, person)) for _ in range(1000)]
        for name, values in found.items():
            expected = np.array([getattr(other, name) for other in others])
            known = values[np.isfinite(values)]
            assert known.size > 35
            # Four standard errors, and what the delineator is off in this band.
            assert known.mean() == pytest.approx(expected.mean(), abs=4 * expected.std() / np.sqrt(known.size) + 4)
            assert 0.6 < known.std() / expected.std() < 1.5


def test_what_is_not_known_of_a_person_is_as_usual_among_people_like_them():
    rng = np.random.default_rng(1)
    settings = population_named("healthy")
    known = np.array([np.nan, 1.0, np.nan, np.nan])
    women = np.array([_completed(rng, settings, known).to_array() for _ in range(200)])
    assert (women[:, 1] == 1).all()
    assert women[:, 2].mean() == pytest.approx(160.5, abs=2)
    assert 20 < women[:, 0].min() < 30
    known[3] = 95.0
    heavy = np.array([_completed(rng, settings, known).to_array() for _ in range(200)])
    assert (heavy[:, 3] == 95).all()
    assert heavy[:, 2].mean() > women[:, 2].mean() + 2


@pytest.mark.parametrize(("rhythm", "of_af"), [("irregular", 0.95), ("regular", 0.05)])
def test_rhythm_is_drawn_as_the_pulse_says(rhythm, of_af):
    settings = replace(POPULATIONS["clinic"], rhythms=(("atrial_fibrillation", Prevalence(0.2)),), morphologies=())
    rng = np.random.default_rng(2)
    draws = [_condition(rng, settings, 60.0, rhythm)[0] for _ in range(600)]
    found = np.mean([name == "atrial_fibrillation" for name in draws])
    of_sinus = 0.01 if rhythm == "irregular" else 0.99
    expected = 0.2 * of_af / (0.2 * of_af + 0.8 * of_sinus)
    assert found == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 600))


def test_a_fibrillating_heart_of_the_oracle_has_no_p():
    settings = population_named("healthy")
    af = replace(settings, rhythms=(("atrial_fibrillation", Prevalence(0.9)),))
    person = np.array([70.0, 0.0, 175.0, 80.0])
    beats = -0.5 + np.cumsum(np.random.default_rng(4).uniform(0.6, 1.0, 18))
    without = [measure_ecg(_drawn(np.random.default_rng(k), af, person, "irregular", beats), FS_HZ) for k in range(6)]
    within = [
        measure_ecg(_drawn(np.random.default_rng(k), settings, person, "regular", beats), FS_HZ) for k in range(6)
    ]
    assert sum(np.isnan(one.p_ms) for one in without) >= 5
    assert sum(np.isnan(one.p_ms) for one in within) <= 1


@pytest.mark.parametrize("rate_bpm", [50.0, 75.0, 110.0])
def test_the_oracle_beats_at_the_pulse_and_follows_its_rate(rate_bpm):
    settings = population_named("healthy")
    person = np.array([40.0, 1.0, 165.0, 60.0])
    beats = np.arange(-1.0, 13.0, 60 / rate_bpm)
    ecg = _drawn(np.random.default_rng(7), settings, person, "regular", beats)
    found = r_peaks(ecg, FS_HZ)
    apart = np.abs(found[:, None] - (beats - MARGIN_S)).min(axis=1)
    assert apart.max() < 0.02
    assert np.diff(found) == pytest.approx(60 / rate_bpm, abs=0.02)
    # The same person at another rate: QT by Fridericia, PR as it was.
    usual = measure_ecg(_drawn(np.random.default_rng(7), settings, person, "regular", np.arange(-1.0, 13.0)), FS_HZ)
    this = measure_ecg(ecg, FS_HZ)
    assert this.qtcf_ms == pytest.approx(usual.qtcf_ms, abs=8)
    assert this.pr_ms == pytest.approx(usual.pr_ms, abs=6)


def test_the_oracle_knows_no_other_population():
    with pytest.raises(InputError, match="population"):
        SimulatorOracle("martians")


# Intervals.


def bank_of(rng, people, windows=1, axis_deg=40.0):
    """Make rows of people whose features follow known lines, with noise of a long tail."""
    fields = np.column_stack(
        [
            rng.uniform(20, 80, people),
            rng.integers(0, 2, people),
            rng.normal(168, 9, people),
            rng.normal(75, 12, people),
        ]
    )
    rate = rng.normal(70, 10, people)
    standard = np.column_stack([(fields - [50, 0.5, 168, 75]) / [17, 0.5, 9, 12], (rate - 70) / 10])

    def tail(size):
        return size * (rng.exponential(1.0, people) - np.log(2.0))

    lines = {
        "pr_ms": 160 + standard @ [4, -3, 2, 1, -3] + tail(10),
        "qrs_ms": 92 + standard @ [0, -4, 3, 0, 0] + tail(5),
        "qtcf_ms": 400 + standard @ [3, 6, 0, 0, 2] + tail(10),
        "qrs_axis_deg": wrapped_deg(axis_deg + standard @ [-9, 2, 4, -6, 0] + rng.normal(0, 15, people)),
    }
    columns = {"window_id": [f"w{k}" for k in range(people)], "person": [f"p{k:04d}" for k in range(people)]}
    columns |= dict(zip(("age_years", "female", "height_cm", "weight_kg"), fields.T, strict=True))
    columns |= {"system": ["train"] * people, "real_hr_bpm": rate} | {f"real_{k}": v for k, v in lines.items()}
    columns |= {f"median_{name}": np.full(people, np.nan) for name in ("hr_bpm", *lines)}
    columns |= {name: np.full(people, np.nan) for name in ERRORS.values()}
    columns |= {"draws_pr_ms": [[1.0]] * people, "rmse_mv_sample": np.zeros(people)}
    return pa.table({name: pa.array(list(values) * windows) for name, values in columns.items()})


def test_planted_effects_are_found():
    bank = bank_of(np.random.default_rng(0), 1500)
    found = IntervalRegression().fit(bank)
    person = np.array([[50.0, 0.5, 168.0, 75.0]])

    def change(name, column, by, rate=0.0):
        other = person.copy()
        if column is not None:
            other[0, column] += by
        there, here = found.predict(other, np.array([70.0 + rate])), found.predict(person, np.array([70.0]))
        return float(there[name][0] - here[name][0])

    # Slopes of 1,500 people are known to about 0.3 ms and 0.5 degrees.
    assert change("pr_ms", 0, 17.0) == pytest.approx(4, abs=1.2)
    assert change("pr_ms", None, 0.0, rate=10) == pytest.approx(-3, abs=1.2)
    assert change("qrs_ms", 1, 0.5) == pytest.approx(-4, abs=0.6)
    assert change("qtcf_ms", 1, 0.5) == pytest.approx(6, abs=1.2)
    assert change("qrs_axis_deg", 0, 17.0) == pytest.approx(-9, abs=2)
    assert float(found.predict(person, np.array([70.0]))["pr_ms"][0]) == pytest.approx(160, abs=1.2)


def test_no_other_line_has_a_lower_mean_absolute_error():
    bank = bank_of(np.random.default_rng(1), 200)
    found = IntervalRegression().fit(bank)
    people = np.column_stack([bank[name].to_numpy() for name in ("age_years", "female", "height_cm", "weight_kg")])
    terms = found._terms(people, bank["real_hr_bpm"].to_numpy())
    truth = bank["real_pr_ms"].to_numpy()

    def cost(weights):
        return np.abs(truth - terms @ weights).sum() + np.abs(weights[1:]).sum()

    best = cost(found.weights["pr_ms"])
    rng = np.random.default_rng(2)
    others = [found.weights["pr_ms"] + rng.normal(0, size, 6) for size in (0.01, 0.1, 1.0) for _ in range(200)]
    assert min(map(cost, others)) >= best - 1e-6
    squares = np.linalg.lstsq(terms, truth, rcond=None)[0]
    assert np.abs(truth - terms @ squares).mean() > np.abs(truth - terms @ found.weights["pr_ms"]).mean() + 0.1


def test_axes_are_wrapped():
    bank, turned = (bank_of(np.random.default_rng(3), 400, axis_deg=axis_deg) for axis_deg in (40.0, 175.0))
    people, rate = np.array([[80.0, 0.0, 168.0, 75.0], [25.0, 1.0, 168.0, 90.0]]), np.array([70.0, 70.0])
    here, there = (IntervalRegression().fit(b).predict(people, rate)["qrs_axis_deg"] for b in (bank, turned))
    np.testing.assert_allclose(wrapped_deg(there - here), 135.0, atol=0.5)
    assert (np.abs(there) <= 180).all()
    rows = IntervalRegression().fit(turned).rows(turned, turned["real_hr_bpm"].to_numpy())
    assert rows["qrs_axis_error_deg"].to_numpy().max() < 90
    assert list(wrapped_deg(np.array([180.0, -180.0, 540.0, 359.0]))) == [180.0, 180.0, 180.0, -1.0]


def test_a_person_counts_once():
    rng = np.random.default_rng(4)
    bank = bank_of(rng, 60)
    often = pa.concat_tables([bank, *[bank.slice(0, 20)] * 5])
    people, rate = np.array([[60.0, 1.0, 160.0, 70.0]]), np.array([75.0])
    once, repeated = (IntervalRegression().fit(b) for b in (bank, often))
    # The mean rate is over windows; what is predicted at a rate does not hang on it.
    for name, value in once.predict(people, rate).items():
        assert repeated.predict(people, rate)[name][0] == pytest.approx(value[0], abs=0.5)


def test_rows_of_the_regression_hold_what_it_knows_and_no_more():
    bank = bank_of(np.random.default_rng(5), 100)
    truth = bank.set_column(
        bank.schema.get_field_index("real_pr_ms"), "real_pr_ms", pa.array([None, float("nan"), *[150.0] * 98])
    )
    found = IntervalRegression().fit(bank)
    rate = np.full(100, 65.0)
    rows = found.rows(truth, rate)
    assert rows.schema == truth.schema
    assert set(rows["system"].to_pylist()) == {"demographic_regression"}
    assert rows["real_qrs_ms"] == truth["real_qrs_ms"]
    assert rows["median_hr_bpm"].to_pylist() == [65.0] * 100
    error = rows["pr_error_ms"].to_numpy()
    assert np.isnan(error[:2]).all()
    np.testing.assert_allclose(error[2:], np.abs(rows["median_pr_ms"].to_numpy()[2:] - 150.0))
    assert rows["draws_pr_ms"].null_count == 100
    assert np.isnan(rows["rmse_mv_sample"].to_numpy()).all()


def test_few_people_or_none():
    bank = bank_of(np.random.default_rng(6), 9)
    few = IntervalRegression().fit(bank)
    people = np.array([[20.0, 0.0, 190.0, 90.0], [np.nan] * 4])
    predicted = few.predict(people, np.array([50.0, np.nan]))
    for name in ("pr_ms", "qrs_ms", "qtcf_ms"):
        np.testing.assert_allclose(predicted[name], np.median(bank[f"real_{name}"].to_numpy()), atol=1e-6)
    with pytest.raises(InputError, match="fitted"):
        IntervalRegression().predict(people, np.array([50.0, 60.0]))
    with pytest.raises(InputError, match="give"):
        few.predict(people, np.array([50.0]))
    none = bank.set_column(bank.schema.get_field_index("real_pr_ms"), "real_pr_ms", pa.array([float("nan")] * 9))
    with pytest.raises(DatasetError, match="pr_ms"):
        IntervalRegression().fit(none)
