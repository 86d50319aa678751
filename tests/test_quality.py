"""Faults told on raw samples, noise figures, the size of a heart, and the power line."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import monitored

from p2es.amplitude import FACTOR, heart_size, peak_to_peak, possible, unusual_heart, unusual_leads
from p2es.beats import QRS_BAND_HZ
from p2es.evidence import Fault, examine
from p2es.filters import bandpass, resample, stored_ecg, stored_ppg
from p2es.leads import LEADS, N_LEADS
from p2es.quality import MIN_QUALITY, lead_noise, lead_quality, ppg_quality
from p2es.windows import FS_HZ, PPG_SAMPLES

FS = 250.0


@pytest.fixture(scope="module")
def person():
    return monitored(1, 11, 40.0)


def steps(samples, gain):
    """Give what a converter of this gain keeps."""
    return np.round(np.asarray(samples, np.float64) * gain) / gain


def shares(samples, gain=None, fs_hz=FS, starts=(1.0, 11.0, 21.0), length_s=10.0):
    found = examine(samples, fs_hz, gain=gain)
    return {fault.value: found.share(fault, np.array(starts), length_s) for fault in Fault}


@pytest.mark.parametrize("gain", [50.0, 200.0, 1000.0])
@pytest.mark.parametrize("lead", ["I", "II", "V1", "V4"])
def test_a_heart_in_converter_steps_has_no_fault(person, gain, lead):
    ecg = steps(person.leads[lead].samples, gain)
    for fault, share in shares(ecg, gain).items():
        assert share.max() <= (0.01 if fault == "clipped" else 0.0), fault


@pytest.mark.parametrize("counts", [60, 250, 4000])
def test_a_pulse_in_converter_steps_has_no_fault(person, counts):
    ppg = np.asarray(person.signals[12].samples)
    gain = counts / np.ptp(ppg)
    found = shares(steps(ppg, gain), gain)
    assert all(found[fault].max() == 0.0 for fault in ("wrapped", "missing", "flat"))
    assert found["clipped"].max() <= 0.05


@given(start_s=st.floats(0, 25), length_s=st.floats(0.6, 10))
@settings(max_examples=30, deadline=None)
def test_flat_and_missing_shares_are_what_was_made_so(person, start_s, length_s):
    ecg = np.array(person.leads["II"].samples, np.float64)
    part = slice(int(start_s * FS), int((start_s + length_s) * FS))
    truth = np.zeros(ecg.size)
    truth[part] = 1
    expected = [truth[int(s * FS) : int((s + 10) * FS)].mean() for s in (1, 11, 21)]
    flat, gone = ecg.copy(), ecg.copy()
    flat[part], gone[part] = ecg[part.start], np.nan
    np.testing.assert_allclose(shares(flat)["flat"], expected, atol=0.002)
    np.testing.assert_allclose(shares(gone)["missing"], expected, atol=1e-6)


def test_what_lies_outside_the_signal_is_missing(person):
    ecg = person.leads["II"].samples[: int(12 * FS)]
    found = examine(ecg, FS, start_s=5.0)
    np.testing.assert_allclose(found.share(Fault.MISSING, np.array([0.0, 7.0, 10.0, 30.0]), 10.0), [0.5, 0, 0.3, 1.0])


@pytest.mark.parametrize("gain", [None, 200.0])
def test_a_rail_is_told_and_grows_with_what_is_cut_off(person, gain):
    ecg = np.asarray(person.leads["V4"].samples, np.float64)
    ecg = ecg if gain is None else steps(ecg, gain)
    high, low = np.quantile(ecg, 0.97), np.quantile(ecg, 0.03)
    mild, hard = (np.clip(ecg, low * k, high * k) for k in (1.0, 0.5))
    assert shares(mild, gain)["clipped"].min() > 0.02
    assert (shares(hard, gain)["clipped"] > shares(mild, gain)["clipped"]).all()
    ppg = np.asarray(person.signals[12].samples)
    top = np.quantile(ppg, 0.8)
    assert shares(np.minimum(ppg, top))["clipped"].min() > 0.1


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("known", [True, False])
def test_an_overflow_is_told_where_it_is(person, bits, known):
    """A converter that is too small for a movement of the electrode, in the eleventh to fourteenth second."""
    ecg = np.asarray(person.leads["II"].samples, np.float64)
    gain = 0.45 * 2**bits / np.ptp(ecg)
    time_s = np.arange(ecg.size) / FS
    raw = np.round((ecg + 1.3 * np.ptp(ecg) * np.exp(-0.5 * ((time_s - 12.5) / 0.8) ** 2)) * gain)
    half = 2 ** (bits - 1)
    wrapped = ((raw + half) % 2**bits - half) / gain
    found = examine(wrapped, FS, gain=gain if known else None)
    assert found.wrapped is not None
    truth = np.abs(raw) > half
    assert found.wrapped[truth].all()
    assert not found.wrapped[time_s < 10].any()
    assert not found.wrapped[time_s > 15].any()
    assert shares(wrapped, gain)["wrapped"][1] > 0
    assert shares(raw / gain, gain)["wrapped"].max() == 0.0


def test_pacing_spikes_are_no_overflow(person):
    ecg = np.array(person.leads["II"].samples, np.float64)
    ecg[::200] += 20.0
    assert examine(steps(ecg, 200.0), FS, gain=200.0).wrapped is None


@given(
    samples=st.lists(st.sampled_from([0.0, 1.0, -1.0, 5.0, float("nan"), float("inf"), 2047.0, -2048.0]), max_size=80)
)
def test_any_samples_have_shares_between_0_and_1(samples):
    for share in shares(np.array(samples), fs_hz=5.0).values():
        assert ((share >= 0) & (share <= 1)).all()


def test_noise_and_quality_tell_clean_from_flat_clipped_noisy_and_half_missing(person):
    clean = stored_ecg(person.leads["II"].samples[None], FS, 0.0, 0, 1280)
    noise = np.random.default_rng(8).standard_normal((1, 1280))
    figures = lead_noise(bandpass(np.concatenate([clean, clean + 0.25 * noise, noise]), FS_HZ, QRS_BAND_HZ))
    assert figures[0] < 0.1
    assert figures[0] < figures[1] < figures[2]
    assert figures[2] > 0.8
    assert lead_noise(np.zeros((1, 1280)))[0] == 1.0
    zero = np.zeros(1)
    whole = lead_quality(zero, zero, zero, figures[:1])
    assert lead_quality(zero + 0.5, zero, zero, figures[:1]) == pytest.approx(whole / 2)
    assert lead_quality(zero, zero + 0.5, zero, figures[:1]) == pytest.approx(whole / 2)
    assert lead_quality(zero, zero, zero + 0.05, figures[:1]) == 0.0


def sizes_of(index, seed=5):
    recording = monitored(seed, index, 12.0)
    return peak_to_peak(stored_ecg(np.stack([s.samples for s in recording.signals[:12]]), FS, 0.0, 0, 1536))


@given(index=st.integers(0, 400), factor=st.one_of(st.floats(FACTOR, 2000), st.floats(1 / 2000, 1 / FACTOR)))
@settings(max_examples=40, deadline=None)
def test_a_recording_off_by_five_or_more_is_flagged_or_refused(index, factor):
    sizes, mask = sizes_of(index), np.ones(N_LEADS, bool)
    assert not unusual_heart(heart_size(sizes, mask))
    assert possible(sizes).all()
    assert unusual_heart(heart_size(sizes * factor, mask))
    if not 1 / 500 <= factor <= 500:
        assert not possible(sizes * factor).any()


def test_one_lead_off_by_ten_is_named():
    sizes = sizes_of(3)
    sizes[LEADS.index("V2")] *= 10
    assert unusual_leads(sizes, np.ones(N_LEADS, bool)) == ("V2",)
    sizes[LEADS.index("V5")] /= 15
    assert unusual_leads(sizes, np.ones(N_LEADS, bool)) == ("V2", "V5")
    assert unusual_leads(sizes, np.isin(LEADS, ["I", "II"])) == ()


@pytest.mark.parametrize("fs_hz", [125.0, 249.89, 250.0, 360.0, 500.0, 1000.0])
@pytest.mark.parametrize("line_hz", [49.8, 50.0, 60.0, 60.2])
def test_the_power_line_is_taken_out(person, fs_hz, line_hz):
    """A hum of 1 mV changes what is stored by less than 10 uV RMS, of a PPG by less than a thousandth of the hum."""
    ecg = resample(np.stack([person.leads[name].samples for name in ("II", "V3")]).astype(np.float64), FS, fs_hz)
    hum = np.sin(2 * np.pi * line_hz * np.arange(ecg.shape[1]) / fs_hz + 1.0)
    change = stored_ecg(ecg + hum, fs_hz, 0.0, 1280, 1280) - stored_ecg(ecg, fs_hz, 0.0, 1280, 1280)
    assert np.sqrt(np.mean(np.square(change), axis=1)).max() < 0.003
    change = stored_ppg(ecg + hum, fs_hz, 0.0, 1280, 1280) - stored_ppg(ecg, fs_hz, 0.0, 1280, 1280)
    assert np.abs(change).max() < 0.001


def test_the_filter_of_what_is_stored_is_the_same_for_every_rate(person):
    """A tone of 30 Hz has one height whatever rate it was recorded at; at its own rate each would have had another."""
    heights = []
    for fs_hz in (125.0, 249.89, 500.0, 1000.0):
        tone = np.sin(2 * np.pi * 30 * np.arange(int(40 * fs_hz)) / fs_hz)
        heights.append(np.std(stored_ecg(tone[None], fs_hz, 0.0, 1280, 1280)))
    assert np.ptp(heights) < 0.002 * heights[0]


@pytest.mark.parametrize("fs_hz", [100.0, 124.945, 128.0, 249.89, 500.0])
@pytest.mark.parametrize("start_s", [0.0, 0.1234, 3.0])
def test_sample_k_is_at_k_128ths_of_a_second_of_the_recordings_clock(fs_hz, start_s):
    at_s = start_s + np.arange(int(30 * fs_hz)) / fs_hz
    y = stored_ecg(np.sin(2 * np.pi * 5.0 * at_s)[None], fs_hz, start_s, 1280, 1280)[0]
    truth = np.sin(2 * np.pi * 5.0 * (10.0 + np.arange(1280) / FS_HZ))
    np.testing.assert_allclose(y, truth, atol=2e-3)


def bigeminy(early, weak, interval_s, seed):
    """Give pulses (time,) at 128 Hz of which every second comes `early` (of the interval) and is `weak`."""
    rng = np.random.default_rng(seed)
    intervals = interval_s * np.tile([early, 2 - early], 24) * (1 + 0.02 * rng.standard_normal(48))
    time_s = np.arange(PPG_SAMPLES) / FS_HZ
    after = time_s[:, None] - (np.cumsum(intervals) - 2.0)
    heights = np.tile([weak, 1.0], 24)
    wave = (heights * np.exp(-0.5 * (after / np.where(after < 0, 0.06, 0.11)) ** 2)).sum(axis=1)
    return wave + 0.02 * rng.standard_normal(wave.size)


@pytest.mark.parametrize("early", [0.65, 0.75, 0.85])
@pytest.mark.parametrize("interval_s", [0.7, 0.9])
def test_pulses_that_alternate_are_a_heart(early, interval_s):
    mask = np.ones(PPG_SAMPLES, bool)
    found = [ppg_quality(bigeminy(early, 0.8, interval_s, seed)[None], mask, FS_HZ) for seed in range(10)]
    assert np.mean(np.array(found) >= MIN_QUALITY) >= 0.8


def test_every_second_interval_lets_no_random_ones_through():
    """Perfect pulses at random times, 0.35 s apart at least: 13 of 60 pass by neighbours alone, and no more now."""
    mask = np.ones(PPG_SAMPLES, bool)
    time_s = np.arange(PPG_SAMPLES) / FS_HZ
    kept = 0
    for seed in range(60):
        starts_s = np.cumsum(0.35 + np.random.default_rng(seed).exponential(0.6, 30)) - 1.0
        after = time_s[:, None] - starts_s
        wave = np.exp(-0.5 * (after / np.where(after < 0, 0.06, 0.11)) ** 2).sum(axis=1)
        kept += ppg_quality(wave[None], mask, FS_HZ) >= MIN_QUALITY
    assert kept <= 14


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0], ids=["white", "pink", "brown"])
def test_noise_is_no_pulse(power):
    """At most 1 of 150 windows of noise passes (measured in 3,000: white 0, pink 1, brown 3)."""
    rng = np.random.default_rng(11)
    mask = np.ones(PPG_SAMPLES, bool)
    kept = 0
    for _ in range(150):
        spectrum = np.fft.rfft(rng.standard_normal(3000))
        spectrum[1:] /= np.arange(1, spectrum.size) ** power
        noise = np.fft.irfft(spectrum, 3000)[700 : 700 + PPG_SAMPLES]
        kept += ppg_quality(noise[None], mask, FS_HZ) >= MIN_QUALITY
    assert kept <= 1
