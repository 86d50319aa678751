from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import monitored

from p2es.filters import bandpass_ecg, bandpass_ppg
from p2es.fingerprint import BYTES, MAX_BEATS, fingerprint, unpack
from p2es.segmenting import segment
from p2es.windows import FS_HZ, decode, encode


def ids(*parts):
    return "-".join(parts)


def windows_of(index, step_s=5.0):
    return segment(monitored(5, index, 34.0), step_s=step_s, ids=ids).windows


@pytest.fixture(scope="module")
def window():
    return windows_of(0)[1]


def beats(*windows):
    return unpack(np.array([np.frombuffer(fingerprint(w), np.uint8) for w in windows]))


def noisy(window, snr_db, seed):
    rng = np.random.default_rng(seed)
    share = 10 ** (-snr_db / 20)
    # Of the raw signals: what is left of it in the band is less.
    noise = bandpass_ecg(rng.standard_normal(window.ecg.shape), FS_HZ)
    ecg = window.ecg + share * window.ecg.std(axis=1, keepdims=True) * noise
    ppg = window.ppg + share * bandpass_ppg(rng.standard_normal(window.ppg.shape), FS_HZ)
    return replace(window, ecg=ecg.astype(np.float32), ppg=ppg.astype(np.float32))


def likeness(one, other):
    return float(one.shape[0] @ other.shape[0])


def shared_times(one, other, lag_s):
    """Times of the beats both windows should have, paired with the nearest of the other, in the first's seconds."""
    here, there = (b.times_s[0, : b.count[0]] for b in (one, other))
    there = there + lag_s
    inside = here[(here > lag_s + 0.2) & (here < min(9.8, lag_s + 9.8))]
    assert inside.size >= 3
    return inside, there[np.abs(inside[:, None] - there).argmin(axis=1)]


def test_beats_are_where_the_simulator_put_them(window):
    recording = monitored(5, 0, 34.0)
    truth = recording.r_peaks_s - window.start_s
    truth = truth[(truth > 0.2) & (truth < 9.8)]
    ecg, ppg = beats(window)
    for found, jitter_s in ((ecg, 0.006), (ppg, 0.02)):
        times = found.times_s[0, : found.count[0]]
        lags = times[
            np.abs(truth[:, None] + (recording.provenance["delay_s"] if found is ppg else 0) - times).argmin(1)
        ]
        # The landmark lies at its own place in a beat, the same in each.
        assert np.std(lags - truth) < jitter_s


@settings(max_examples=25, deadline=None)
@given(
    gains=st.lists(st.floats(0.05, 20.0), min_size=12, max_size=12),
    flipped=st.integers(0, 11),
    ppg_gain=st.floats(0.05, 20.0),
    offset=st.floats(-5.0, 5.0),
)
def test_gain_offset_and_the_sign_of_a_lead_change_nothing(window, gains, flipped, ppg_gain, offset):
    factors = np.array(gains, np.float32)
    factors[flipped] *= -1
    changed = replace(
        window, ecg=window.ecg * factors[:, None], ppg=(window.ppg * ppg_gain + offset).astype(np.float32)
    )
    for before, after in zip(beats(window), beats(changed), strict=True):
        assert before.count == after.count
        np.testing.assert_allclose(before.times_s, after.times_s, atol=0.5e-3)
        assert likeness(before, after) > 0.9995


@pytest.mark.parametrize("snr_db", [20, 30])
@pytest.mark.parametrize("index", range(4))
def test_mild_noise_moves_most_beats_by_less_than_the_tolerance_of_the_search(index, snr_db):
    window = windows_of(index)[1]
    for before, after, tolerance_s in zip(
        beats(window), beats(noisy(window, snr_db, index)), (4e-3, 8e-3), strict=True
    ):
        here, there = shared_times(before, after, 0.0)
        assert np.median(np.abs(np.diff(here) - np.diff(there))) < tolerance_s
        assert likeness(before, after) > 0.98


@pytest.mark.parametrize("index", range(4))
def test_a_window_that_starts_later_has_the_same_beats_later(index):
    first, second = windows_of(index)[:2]
    lag_s = second.start_s - first.start_s
    assert lag_s == 5.0
    for one, other in zip(beats(first), beats(second), strict=True):
        here, there = shared_times(one, other, lag_s)
        # A dicrotic wave that is just large enough in one of them may count there alone.
        assert np.quantile(np.abs(here - there), 0.8) < 1e-3
        assert likeness(one, other) > 0.98


def test_the_ecg_and_the_ppg_stand_for_themselves(window):
    ecg, ppg = beats(window)
    only_ecg = beats(replace(window, ppg=None, ppg_mask=None, ppg_channels=()))
    only_ppg = beats(replace(window, ecg=None, lead_mask=np.zeros(12, bool)))
    np.testing.assert_array_equal(only_ecg[0].times_s, ecg.times_s)
    np.testing.assert_array_equal(only_ppg[1].times_s, ppg.times_s)
    assert only_ecg[1].count == 0
    assert only_ppg[0].count == 0
    assert not only_ppg[0].shape.any()


def test_a_gap_in_the_ppg_hides_its_beats_and_no_others(window):
    mask = window.ppg_mask.copy()
    start, stop = round(4 * FS_HZ), round(6 * FS_HZ)
    mask[start:stop] = False
    _, whole = beats(window)
    _, gap = beats(replace(window, ppg=np.where(mask, window.ppg, np.float32(0)), ppg_mask=mask))
    times = whole.times_s[0, : whole.count[0]] + 1.0
    hidden = (times > 3.9) & (times < 6.1)
    assert hidden.any()
    np.testing.assert_allclose(gap.times_s[0, : gap.count[0]] + 1.0, times[~hidden], atol=2e-3)


def test_signals_without_a_beat_have_none():
    flat = replace(windows_of(1)[0], ecg=np.zeros((12, 1280), np.float32), ppg=np.zeros((1, 1536), np.float32))
    for found in beats(flat):
        assert found.count == 0
        assert np.isnan(found.times_s).all()


def test_a_fast_heart_keeps_its_first_beats(window):
    # 200 beats a minute: 33 in the window.
    at = (np.arange(1280) / FS_HZ) % 0.3
    fast = np.exp(-0.5 * ((at - 0.15) / 0.01) ** 2).astype(np.float32)
    ecg, _ = beats(replace(window, ecg=np.tile(fast, (12, 1)), lead_mask=np.ones(12, bool)))
    assert ecg.count == MAX_BEATS
    np.testing.assert_allclose(np.diff(ecg.times_s[0]), 0.3, atol=2e-3)


def test_it_is_stored_with_the_window_and_of_one_length(window):
    assert len(window.fingerprint) == BYTES
    assert window.fingerprint == fingerprint(window)
    (stored,) = decode(encode([window]))
    assert stored.fingerprint == window.fingerprint


def test_another_version_or_a_broken_one_holds_no_beats(window):
    data = np.frombuffer(fingerprint(window), np.uint8).copy()
    data[0] = 99
    noise = np.random.default_rng(0).integers(0, 256, (200, BYTES), np.uint8)
    for found in unpack(data[None]):
        assert found.count == 0
    for found in unpack(noise):
        assert (found.count <= MAX_BEATS).all()
        assert np.isfinite(found.shape).all()
