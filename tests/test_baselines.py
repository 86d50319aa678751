from dataclasses import replace

import numpy as np
import pytest

from p2es.baselines.common import BaselineConfig
from p2es.baselines.mean_waveform import MeanWaveform
from p2es.baselines.template import _TIME_S, Template, _paste
from p2es.demographics import Demographics
from p2es.errors import DatasetError, InputError, ModelError
from p2es.evaluation.beats import constant_lag, f1_score
from p2es.leads import law_residuals, lift
from p2es.signals import r_peaks, zscore_ppg
from p2es.translator import Translator
from p2es.windows import ECG_SAMPLES, FS_HZ, MARGIN_S, PPG_SAMPLES, WindowBatch, WindowStore

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


def ppg_of(beats_s, delay_s):
    t = np.arange(PPG_SAMPLES) / FS_HZ - MARGIN_S
    # The steepest rise of a Gaussian is one width before its top.
    wave = sum(np.exp(-0.5 * ((t - b - delay_s - 0.1) / 0.1) ** 2) for b in beats_s)
    return zscore_ppg(wave[None], np.ones(PPG_SAMPLES, bool))


def batch_of(rng, people, prefix="p"):
    ages = rng.uniform(25, 85, people)
    beats = [beats_of(rng, rng.uniform(0.7, 1.1)) for _ in range(people)]
    delays = DELAY_S + rng.normal(0, 0.02, people)
    names = np.array([f"{prefix}{k:02d}" for k in range(people)])
    fields = np.column_stack([ages, rng.integers(0, 2, people), rng.normal(170, 8, people), rng.normal(75, 9, people)])
    return WindowBatch(
        ecg_mv=np.stack([ecg_of(b, amplitude_of(a)) for b, a in zip(beats, ages, strict=True)]),
        lead_mask=np.ones((people, 12), bool),
        ppg=np.stack([ppg_of(b, d) for b, d in zip(beats, delays, strict=True)]),
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


@pytest.fixture(scope="module")
def template(train):
    return Template().fit(train, BaselineConfig())


@pytest.fixture(scope="module")
def mean_waveform(train):
    return MeanWaveform().fit(train, BaselineConfig())


@pytest.fixture(params=["template", "mean_waveform"])
def yardstick(request):
    return request.getfixturevalue(request.param)


def sample(translator, batch, rows=None, samples=3, seeds=None, people=None):
    rows = list(range(len(batch))) if rows is None else rows
    return translator.sample(
        batch.ppg[rows],
        people or [Demographics.from_array(person) for person in batch.people[rows]],
        fs_hz=FS_HZ,
        samples=samples,
        evaluations=1,
        seeds=rows if seeds is None else seeds,
    )


def test_yardsticks_are_translators_that_obey_the_lead_laws(yardstick, unseen):
    assert isinstance(yardstick, Translator)
    for drawn in sample(yardstick, unseen, samples=20):
        assert drawn.ecg_mv.shape == (20, 12, ECG_SAMPLES)
        assert drawn.ecg_mv.dtype == np.float32
        assert drawn.band_mv.shape == (2, 12, ECG_SAMPLES)
        assert (drawn.band_mv[1] >= drawn.band_mv[0]).all()
        for ecg in (drawn.ecg_mv, drawn.median_mv):
            assert np.abs(law_residuals(ecg.astype(np.float64))).max() < 1e-3
        assert np.ptp(drawn.ecg_mv) > 0.01


def test_a_window_is_the_same_alone_and_in_a_batch(yardstick, unseen):
    together = sample(yardstick, unseen)
    alone = sample(yardstick, unseen, rows=[4])[0]
    np.testing.assert_array_equal(together[4].ecg_mv, alone.ecg_mv)


def test_one_draw_is_the_first_of_many(template, unseen):
    one, many = sample(template, unseen, [0], samples=1)[0], sample(template, unseen, [0], samples=5)[0]
    np.testing.assert_array_equal(one.ecg_mv[0], many.ecg_mv[0])
    assert one.band_mv is None


def test_seeds_and_draws_differ(template, unseen):
    first, second = (sample(template, unseen, [0], seeds=[seed])[0].ecg_mv for seed in (1, 2))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first[0], first[1])


def test_what_is_saved_is_what_is_loaded(yardstick, unseen, tmp_path):
    yardstick.save(tmp_path / "kept")
    again = type(yardstick).load(tmp_path / "kept")
    before, after = sample(yardstick, unseen, samples=20), sample(again, unseen, samples=20)
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


def test_pulses_of_another_person_give_other_beats_but_not_another_mean(template, mean_waveform, unseen):
    other = replace(unseen, ppg=unseen.ppg[::-1].copy())
    np.testing.assert_array_equal(
        sample(mean_waveform, unseen, [0])[0].ecg_mv, sample(mean_waveform, other, [0])[0].ecg_mv
    )
    own, theirs = (r_peaks(sample(template, b, [0])[0].ecg_mv[0], FS_HZ) for b in (unseen, other))
    truth = r_peaks(unseen.ecg_mv[0], FS_HZ)

    def score(found):
        lag = constant_lag(truth, found)
        return f1_score(truth, found, tolerance_s=0.05, lag_s=lag, duration_s=10.0)

    assert score(own) > 0.95
    assert score(theirs) < 0.7


def test_the_template_knows_the_usual_delay(template, unseen):
    assert template.delay.intercept_s == pytest.approx(DELAY_S, abs=0.02)
    assert template.delay.spread_s == pytest.approx(0.02, abs=0.01)
    lags = []
    for row, drawn in enumerate(sample(template, unseen, samples=1)):
        lags.append(constant_lag(r_peaks(unseen.ecg_mv[row], FS_HZ), r_peaks(drawn.ecg_mv[0], FS_HZ)))
    assert np.abs(lags).max() < 0.1


def test_the_template_learns_what_depends_on_age(template, unseen):
    def height(age):
        person = Demographics.from_array(np.array([age, 0.0, 170.0, 75.0]))
        drawn = sample(template, unseen, [0], samples=40, people=[person])[0]
        return np.median(drawn.ecg_mv[:, 1].max(axis=1))

    expected = amplitude_of(80.0) / amplitude_of(30.0)
    assert height(80.0) / height(30.0) == pytest.approx(expected, rel=0.12)


def test_people_of_whom_nothing_is_known_are_drawn(template, unseen):
    drawn = sample(template, unseen, [0], people=[Demographics()])[0]
    assert np.isfinite(drawn.ecg_mv).all()
    assert drawn.ecg_mv[0, 1].max() == pytest.approx(1.2, rel=0.5)


@pytest.mark.parametrize("rr_s", [0.4, 0.75, 1.2])
def test_shares_of_neighbouring_beats_add_up_to_one(rr_s):
    beats_s = np.arange(-3.0, 13.0, rr_s)
    pasted = _paste(np.ones((8, _TIME_S.size)), beats_s, np.diff(beats_s))
    assert pasted.shape == (8, ECG_SAMPLES)
    # Beats are placed to the nearest sample, so neighbouring fades may be one sample apart.
    np.testing.assert_allclose(pasted, 1.0, atol=0.2)
    assert pasted.mean() == pytest.approx(1.0, abs=0.01)


def test_the_mean_is_the_mean_and_its_band_covers(mean_waveform, train):
    batch = train.batch(np.arange(PEOPLE))
    np.testing.assert_allclose(mean_waveform.mean_mv, batch.ecg_mv.mean(axis=0), atol=1e-5)
    inside = (batch.ecg_mv >= mean_waveform.band_mv[0]) & (batch.ecg_mv <= mean_waveform.band_mv[1])
    np.testing.assert_allclose(inside.mean(axis=(0, 2)), 0.90, atol=0.01)


def test_leads_that_are_missing_in_training_do_not_pull_the_mean_down(train):
    batch = train.batch(np.arange(PEOPLE))
    mask = batch.lead_mask.copy()
    mask[: PEOPLE // 2, 6] = False
    partial = replace(batch, lead_mask=mask, ecg_mv=np.where(mask[..., None], batch.ecg_mv, np.float32(0)))
    store = WindowStore.from_batches([partial])
    found = MeanWaveform().fit(store, BaselineConfig())
    np.testing.assert_allclose(found.mean_mv[6], batch.ecg_mv[PEOPLE // 2 :, 6].mean(axis=0), atol=1e-5)
    beat = Template().fit(store, BaselineConfig()).weights_mv[0]
    whole = Template().fit(train, BaselineConfig()).weights_mv[0]
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
        ({"enrolment": np.zeros((1, 12, ECG_SAMPLES), np.float32)}, ModelError),
    ],
)
def test_bad_requests_are_told_in_one_line(yardstick, unseen, change, error):
    request = {"ppg": unseen.ppg[:1], "fs_hz": FS_HZ, "samples": 1, "evaluations": 1, "seeds": [0]} | change
    with pytest.raises(error) as caught:
        yardstick.sample(request.pop("ppg"), [Demographics()], **request)
    assert "\n" not in str(caught.value)


def test_a_dataset_without_ecg_cannot_be_fitted(train):
    batch = train.batch(np.arange(4))
    empty = WindowStore.from_batches([replace(batch, lead_mask=np.zeros((4, 12), bool))])
    flat = WindowStore.from_batches([replace(batch, ecg_mv=np.zeros_like(batch.ecg_mv))])
    with pytest.raises(DatasetError, match="ECG"):
        MeanWaveform().fit(empty, BaselineConfig())
    with pytest.raises(DatasetError, match="beat"):
        Template().fit(flat, BaselineConfig())
