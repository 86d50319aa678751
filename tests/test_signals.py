import os
from pathlib import Path

import numpy as np
import pytest
from simulated import monitored

from p2es import signals
from p2es.errors import InputError
from p2es.windows import FS_HZ, PPG_SAMPLES


@pytest.fixture(scope="module")
def person():
    recording = monitored(3, 5, 40.0)
    assert recording.provenance["motion"] == "false"
    return recording


def ecg_of(recording):
    return np.stack([signal.samples for signal in recording.signals[:12]])


def ppg_of(recording):
    return recording.signals[12].samples[None]


def matches(found, truth, tolerance_s):
    distance = np.abs(np.asarray(found)[:, None] - np.asarray(truth))
    hits = (distance.min(axis=0) < tolerance_s).sum()
    return 2 * hits / (len(found) + len(truth))


def wave(fs_hz, duration_s=12.0, frequency_hz=3.3):
    return np.sin(2 * np.pi * frequency_hz * np.arange(round(duration_s * fs_hz)) / fs_hz + 0.3)


@pytest.mark.parametrize("fs_in_hz", [50.0, 124.945, 125.0, 128.0, 249.89, 250.0, 360.0, 500.0, 1000.0])
@pytest.mark.parametrize("fs_out_hz", [128.0, 250.0])
def test_resampling_a_sinusoid_gives_the_sinusoid_at_the_new_times(fs_in_hz, fs_out_hz):
    x = np.stack([wave(fs_in_hz), -2 * wave(fs_in_hz)])
    y = signals.resample(x, fs_in_hz, fs_out_hz)
    truth = wave(fs_out_hz, y.shape[1] / fs_out_hz)
    inside = slice(int(fs_out_hz / 2), -int(fs_out_hz / 2))
    assert abs(y.shape[1] - 12 * fs_out_hz) <= 1
    np.testing.assert_allclose(y[0, inside], truth[inside], atol=2e-3)
    np.testing.assert_allclose(y[1], -2 * y[0], atol=1e-9)


@pytest.mark.parametrize("fs_in_hz", [249.89, 250.0, 500.0])
def test_resampling_does_not_fold_what_is_above_half_the_new_rate(fs_in_hz):
    y = signals.resample(wave(fs_in_hz, frequency_hz=100.0), fs_in_hz, FS_HZ)
    assert np.abs(y[64:-64]).max() < 0.01


def test_resampling_keeps_gaps_and_only_gaps():
    x = wave(250.0)
    x[1000:1050] = np.nan
    y = signals.resample(x, 250.0, FS_HZ)
    time_s = np.arange(y.size) / FS_HZ
    missing = (time_s > 999 / 250 + 1e-9) & (time_s < 1050 / 250 - 1e-9)
    np.testing.assert_array_equal(np.isnan(y), missing)


def test_resampling_refuses_an_impossible_rate():
    with pytest.raises(InputError, match="positive"):
        signals.resample(np.zeros(10), float("nan"), 128.0)


@pytest.mark.parametrize("fs_hz", [60.0, 100.0, 128.0, 250.0, 500.0])
def test_ecg_filter_keeps_time_and_passband_and_drops_the_offset(fs_hz):
    time_s = np.arange(int(10 * fs_hz)) / fs_hz
    bump = np.exp(-0.5 * ((time_s - 5.0) / 0.03) ** 2)
    filtered = signals.bandpass_ecg(bump + 7.0, fs_hz)
    assert abs(time_s[np.argmax(filtered)] - 5.0) <= 1 / fs_hz
    assert abs(np.median(filtered)) < 0.02
    tone = signals.bandpass_ecg(wave(fs_hz, 10.0, 8.0), fs_hz)
    assert np.std(tone) == pytest.approx(np.std(wave(fs_hz, 10.0, 8.0)), rel=0.02)


def test_filters_put_gaps_back_and_stay_close_outside_them(person):
    ppg = ppg_of(person)
    broken = ppg.copy()
    broken[:, 3000:3020] = np.nan
    filtered = signals.bandpass_ppg(broken, 250.0)
    np.testing.assert_array_equal(np.isnan(filtered), np.isnan(broken))
    whole = signals.bandpass_ppg(ppg, 250.0)
    assert np.nanmax(np.abs(filtered - whole)[:, :2000]) < 0.05 * np.ptp(whole)


def test_a_rate_too_low_for_the_band_is_refused():
    with pytest.raises(InputError, match="too low"):
        signals.bandpass_ecg(np.zeros(100), 1.0)


def test_r_peaks_are_those_of_the_truth(person):
    found = signals.r_peaks(ecg_of(person), 250.0)
    assert matches(found, person.r_peaks_s, 0.015) >= 0.99


@pytest.mark.parametrize("gain", [-1.0, 1e-3, 40.0])
def test_r_peaks_do_not_depend_on_gain_sign_or_offset(person, gain):
    ecg = ecg_of(person)
    np.testing.assert_allclose(signals.r_peaks(gain * ecg + 5.0, 250.0), signals.r_peaks(ecg, 250.0), atol=1e-3)


@pytest.mark.parametrize("leads", [[1], [6], [0, 1], [2, 3, 8]])
def test_r_peaks_from_few_leads_are_the_same_events(person, leads):
    mask = np.isin(np.arange(12), leads)
    few = signals.r_peaks(ecg_of(person), 250.0, mask)
    assert matches(few, person.r_peaks_s, 0.04) >= 0.98
    lag_s = few[np.abs(few[:, None] - person.r_peaks_s).argmin(axis=0)] - person.r_peaks_s
    assert np.std(lag_s) < 0.004


def test_r_peaks_survive_noisy_missing_and_flat_leads(person):
    ecg = ecg_of(person)
    ecg[0] = 50 * np.random.default_rng(0).standard_normal(ecg.shape[1])
    ecg[4] = np.nan
    ecg[7] = 0.0
    assert matches(signals.r_peaks(ecg, 250.0), person.r_peaks_s, 0.03) >= 0.98


def test_r_peaks_of_a_window_are_those_of_the_recording(person):
    ecg = signals.resample(ecg_of(person), 250.0, FS_HZ)
    whole = signals.r_peaks(ecg, FS_HZ)
    part = signals.r_peaks(ecg[:, 1280:2560], FS_HZ) + 10.0
    inner = whole[(whole > 10.2) & (whole < 19.8)]
    assert np.abs(part[:, None] - inner).min(axis=0).max() < 0.01
    assert len(part) <= ((whole > 9.99) & (whole < 20.01)).sum()


@pytest.mark.parametrize("ecg", [np.zeros((12, 1280)), np.full((12, 1280), np.nan), np.zeros((12, 5))])
def test_nothing_has_no_r_peaks(ecg):
    assert signals.r_peaks(ecg, FS_HZ).size == 0


def test_one_pulse_a_beat_also_in_a_slow_heart_with_a_dicrotic_wave():
    slow = next(
        recording
        for recording in (monitored(1, index, 60.0, rhythm="sinus_bradycardia") for index in (7, 29, 44, 59, 68))
        if recording.provenance["heart_rate_bpm"] < 52
    )
    found = signals.pulse_onsets(ppg_of(slow)[0], 250.0)
    truth = slow.r_peaks_s + slow.provenance["delay_s"]
    assert matches(found, truth[(truth > 0) & (truth < 60)], 0.04) >= 0.97


@pytest.mark.parametrize("gain", [1e-3, 5000.0])
def test_pulse_onsets_do_not_depend_on_gain_or_offset(person, gain):
    ppg = ppg_of(person)[0]
    scaled = signals.pulse_onsets(gain * ppg - 12.0, 250.0)
    np.testing.assert_allclose(scaled, signals.pulse_onsets(ppg, 250.0), atol=1e-6)


@pytest.mark.parametrize("ppg", [np.zeros(1536), np.full(1536, np.nan), np.ones(10)])
def test_nothing_has_no_pulses(ppg):
    assert signals.pulse_onsets(ppg, FS_HZ).size == 0


def beats(rng, n, mean_s=0.9):
    return np.cumsum(mean_s * (1 + 0.06 * rng.standard_normal(n)))


@pytest.mark.parametrize("delay_s", [0.15, 0.33, 0.55, 0.66])
def test_delay_is_recovered_with_lost_and_spurious_pulses(delay_s):
    rng = np.random.default_rng(4)
    r = beats(rng, 60)
    pulses = r + delay_s + 0.006 * rng.standard_normal(60)
    kept = np.sort(np.concatenate([rng.permutation(pulses)[:50], rng.uniform(0, r[-1], 6)]))
    found, confidence, _ = signals.pulse_delay(r, kept)
    assert found == pytest.approx(delay_s, abs=0.005)
    assert 0.4 < confidence < 1


def test_delay_without_relation_is_not_trusted():
    rng = np.random.default_rng(5)
    related = beats(rng, 60)
    sure = signals.pulse_delay(related, related + 0.3).confidence
    unsure = signals.pulse_delay(related, np.sort(rng.uniform(0, related[-1], 60))).confidence
    assert sure > 0.95
    assert unsure < 0.3


def test_beats_outside_the_pulse_recording_do_not_count_against_the_delay():
    r = beats(np.random.default_rng(6), 60)
    delay_s, confidence, _ = signals.pulse_delay(r, r[20:40] + 0.3)
    assert delay_s == pytest.approx(0.3, abs=0.005)
    assert confidence > 0.9


@pytest.mark.parametrize("rate_bpm", [60, 90, 120, 150, 170])
@pytest.mark.parametrize("delay_s", [0.2, 0.35, 0.5, 0.62])
def test_the_series_of_intervals_tells_whose_pulse_it_is(rate_bpm, delay_s):
    """Above 110 bpm two or three pulses fall in the range where a delay may be."""
    rng = np.random.default_rng(rate_bpm)
    r = beats(rng, 150, mean_s=60 / rate_bpm)
    pulses = r + delay_s + 0.006 * rng.standard_normal(r.size)
    found = signals.pulse_delay(np.delete(r, [20, 90]), np.delete(pulses, [50, 51, 120]))
    assert found.delay_s == pytest.approx(delay_s, abs=0.005)
    assert found.confidence > 0.6


def test_a_fast_heart_as_regular_as_a_clock_leaves_the_delay_open():
    rng = np.random.default_rng(1)
    r = 0.4 * np.arange(200)
    found = signals.pulse_delay(r, r + 0.3 + 0.004 * rng.standard_normal(r.size))
    assert found.confidence < 0.2
    slow = 0.8 * np.arange(200)
    assert signals.pulse_delay(slow, slow + 0.3).confidence > 0.9


def test_the_spread_of_the_delay_is_told():
    rng = np.random.default_rng(2)
    r = beats(rng, 400)
    found = signals.pulse_delay(r, r + 0.35 + 0.010 * rng.standard_normal(r.size))
    assert found.iqr_s == pytest.approx(1.35 * 0.010, rel=0.2)


@pytest.mark.parametrize("pulses", [[], [1.0, 2.0], [10.0, 20.0, 30.0, 40.0]])
def test_delay_is_nan_when_hopeless(pulses):
    delay_s, confidence, _ = signals.pulse_delay(np.arange(1.0, 9.0), np.array(pulses))
    assert np.isnan(delay_s)
    assert confidence == 0.0


def twelve_seconds(person, fs_hz):
    return signals.resample(ppg_of(person), 250.0, fs_hz)[:, : round(12 * fs_hz)]


@pytest.mark.parametrize("fs_hz", [64.0, 100.0, 125.0, 249.89])
def test_prepared_ppg_does_not_depend_on_rate_gain_or_offset(person, fs_hz):
    reference, _ = signals.prepare_ppg(ppg_of(person)[:, :3000], 250.0)
    ppg, mask = signals.prepare_ppg(3.0 + 900 * twelve_seconds(person, fs_hz), fs_hz)
    assert ppg.shape == (1, PPG_SAMPLES)
    assert ppg.dtype == np.float32
    assert mask.all()
    np.testing.assert_allclose(ppg[:, 64:-64], reference[:, 64:-64], atol=0.05)


def test_prepared_ppg_masks_what_is_missing_and_scales_the_rest(person):
    samples = twelve_seconds(person, 128.0)
    samples[0, 400:600] = np.nan
    ppg, mask = signals.prepare_ppg(samples, 128.0)
    np.testing.assert_array_equal(mask, np.isfinite(samples[0]))
    assert not ppg[0, ~mask].any()
    assert ppg[0, mask].mean() == pytest.approx(0.0, abs=1e-5)
    assert ppg[0, mask].std() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("extra", [-2, 2])
def test_prepared_ppg_forgives_two_samples(person, extra):
    ppg, mask = signals.prepare_ppg(ppg_of(person)[:, : 3000 + extra], 250.0)
    assert ppg.shape == (1, PPG_SAMPLES)
    assert mask.sum() >= PPG_SAMPLES - 2


def spoil(kind, samples):
    if kind == "nothing":
        return np.full_like(samples, np.nan)
    if kind == "flat":
        return np.full_like(samples, 3.0)
    if kind == "gone":
        return np.where(np.arange(samples.shape[1]) < 0.6 * samples.shape[1], np.nan, samples)
    if kind == "infinite":
        return np.where(np.arange(samples.shape[1]) < 0.6 * samples.shape[1], np.inf, samples)
    return {"short": samples[:, :-3], "long": np.tile(samples, 2), "shape": samples[0], "empty": samples[:0]}[kind]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("nothing", "no samples"),
        ("flat", "flat line"),
        ("gone", "40%"),
        ("infinite", "40%"),
        ("short", "wrong length"),
        ("long", "wrong length"),
        ("shape", "channel, time"),
        ("empty", "channel, time"),
    ],
)
def test_unusable_ppg_is_refused_in_one_line(person, kind, says):
    with pytest.raises(InputError, match=says) as caught:
        signals.prepare_ppg(spoil(kind, ppg_of(person)[:, :3000]), 250.0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fs_hz", [0.0, -1.0, 5.0, 1e6, float("nan"), float("inf")])
def test_impossible_rates_are_refused(person, fs_hz):
    with pytest.raises(InputError, match="rate"):
        signals.prepare_ppg(ppg_of(person)[:, :3000], fs_hz)


def test_ppg_quality_falls_with_noise_and_with_gaps(person):
    rng = np.random.default_rng(7)
    ppg, mask = signals.prepare_ppg(ppg_of(person)[:, :3000], 250.0)
    noise = rng.standard_normal(ppg.shape)
    clean, noisy, noise_only = (signals.ppg_quality(x, mask, FS_HZ) for x in (ppg, ppg + 1.5 * noise, noise))
    assert clean > 0.9
    assert noise_only < 0.1
    assert noise_only <= noisy < clean
    assert signals.ppg_quality(np.zeros_like(ppg), mask, FS_HZ) == 0.0
    half = np.arange(mask.size) < mask.size / 2
    assert signals.ppg_quality(ppg, half, FS_HZ) == pytest.approx(clean / 2, abs=0.1)


def pulses_at(onsets_s, n=PPG_SAMPLES):
    time_s = np.arange(n) / FS_HZ
    lag = time_s[:, None] - np.asarray(onsets_s)
    return np.exp(-0.5 * (lag / np.where(lag < 0, 0.06, 0.16)) ** 2).sum(axis=1)[None]


@pytest.mark.parametrize(("spread", "rhythm"), [(0.0, "regular"), (0.03, "regular"), (0.25, "irregular")])
def test_rhythm_is_told_from_the_pulse(spread, rhythm):
    rng = np.random.default_rng(9)
    onsets = np.cumsum(np.maximum(0.8 * (1 + spread * rng.standard_normal(20)), 0.45))
    mask = np.ones(PPG_SAMPLES, bool)
    rate_bpm, found = signals.pulse_rhythm(pulses_at(onsets), mask, FS_HZ)
    assert found == rhythm
    assert rate_bpm == pytest.approx(60 / np.median(np.diff(onsets[onsets < 12])), rel=0.06)


def test_rhythm_of_noise_is_unknown():
    noise = np.random.default_rng(10).standard_normal((1, PPG_SAMPLES))
    rate_bpm, found = signals.pulse_rhythm(noise, np.ones(PPG_SAMPLES, bool), FS_HZ)
    assert found == "unknown"
    assert np.isnan(rate_bpm)


def test_zscore_leaves_a_constant_channel_at_zero():
    ppg = np.stack([np.full(100, 5.0), np.arange(100.0)])
    scaled = signals.zscore_ppg(ppg, np.ones(100, bool))
    assert not scaled[0].any()
    assert scaled[1].std() == pytest.approx(1.0, abs=1e-6)


@pytest.fixture
def recordings():
    folder = os.environ.get("P2ES_RECORDINGS")
    if not folder:
        pytest.skip("P2ES_RECORDINGS is not set: no real recordings to read")
    return Path(folder)


def test_delay_of_real_recordings_is_what_was_measured_by_hand(recordings):
    neurokit = np.genfromtxt(next((recordings / "neurokit").glob("*.csv")), delimiter=",", skip_header=1)
    delay_s, confidence, _ = signals.pulse_delay(
        signals.r_peaks(neurokit[:, :1].T, 100.0), signals.pulse_onsets(neurokit[:, 1], 100.0)
    )
    assert delay_s == pytest.approx(0.34, abs=0.02)
    assert confidence > 0.5


@pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")
def test_r_peaks_of_ludb_are_those_its_cardiologists_marked(recordings):
    import wfdb

    hits = found_count = marked_count = 0
    for k in range(1, 81):
        name = str(recordings / "ludb" / "data" / str(k))
        record, marks = wfdb.rdrecord(name), wfdb.rdann(name, "ii")
        marked = np.array([s for s, c in zip(marks.sample, marks.symbol, strict=True) if c == "N"]) / record.fs
        found = signals.r_peaks(record.p_signal.T, record.fs)
        found = found[(found > marked[0] - 0.15) & (found < marked[-1] + 0.15)]
        hits += (np.abs(found[:, None] - marked).min(axis=0) < 0.08).sum()
        found_count, marked_count = found_count + len(found), marked_count + len(marked)
    assert 2 * hits / (found_count + marked_count) >= 0.995
