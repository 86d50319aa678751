"""A sampling rate that is written several times too high or too low shows in the heart rate, or in the QRS."""

import dataclasses

import numpy as np
import pytest

from p2es.formats import find_records, read
from p2es.heart_rate import unlikely_ecg, unlikely_ppg
from p2es.recording import SignalKind
from p2es.segmenting import segment
from p2es.simulator import simulate_person
from p2es.windows import FS_HZ

FLAG = "rate_unlikely"


def ids(*parts):
    return "-".join(parts)


def declared(recording, factor, kind=None):
    """Give the recording with a rate that is `factor` times the true one, in all signals or those of a kind."""
    signals = [
        dataclasses.replace(s, fs_hz=s.fs_hz * factor) if kind in (None, s.kind) else s for s in recording.signals
    ]
    return dataclasses.replace(recording, signals=tuple(signals), r_peaks_s=None)


def only(recording, *kinds):
    kept = tuple(signal for signal in recording.signals if signal.kind in kinds)
    return dataclasses.replace(recording, signals=kept)


def flagged(recording):
    windows = segment(recording, step_s=10.0, ids=ids).windows
    return [FLAG in window.flags for window in windows]


@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_a_rate_off_by_four_is_flagged(factor):
    found = []
    for index in range(12):
        recording = simulate_person(9, index, 80.0)
        assert not any(flagged(recording))
        found.append(all(flagged(declared(recording, factor)) or [False]))
    assert np.mean(found) >= 0.8


@pytest.mark.parametrize("kind", [SignalKind.ECG, SignalKind.PPG])
def test_each_signal_is_judged_for_itself(kind):
    other = SignalKind.PPG if kind is SignalKind.ECG else SignalKind.ECG
    # 72 and 288 beats a minute.
    recording = next(
        r for r in (simulate_person(9, k, 80.0) for k in range(40)) if 70 < r.provenance["heart_rate_bpm"] < 78
    )
    alone = flagged(declared(only(recording, kind), 4.0))
    assert alone
    assert all(alone)
    wrong = segment(declared(recording, 4.0, kind), step_s=10.0, ids=ids).windows
    for window in wrong:
        has = window.ecg is not None if kind is SignalKind.ECG else window.ppg is not None
        assert (FLAG in window.flags) == has
    assert not any(flagged(only(recording, other)))


def beats(rate_bpm, qrs_s, seed=0, spread=0.0, count=60 * 128):
    """Give one lead (1, time) of bell-shaped R waves, a smaller T wave after each, and a little noise."""
    rng = np.random.default_rng(seed)
    times_s = np.cumsum(60 / rate_bpm * (1 + spread * rng.standard_normal(600)))
    time_s = np.arange(count) / FS_HZ
    lead = 0.01 * rng.standard_normal(count)
    for beat_s in times_s[times_s < time_s[-1] + 1]:
        lead += np.exp(-0.5 * ((time_s - beat_s) / qrs_s) ** 2)
        lead += 0.2 * np.exp(-0.5 * ((time_s - beat_s - 0.35 * 60 / rate_bpm) / (4 * qrs_s)) ** 2)
    return lead[None]


@pytest.mark.parametrize("rate_bpm", [30, 45, 72, 130, 220])
@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_rates_that_people_have_are_not_flagged(rate_bpm, spread):
    assert not unlikely_ecg([beats(rate_bpm, 0.014, spread=spread)], FS_HZ)


@pytest.mark.parametrize("rate_bpm", [265, 300])
def test_rates_that_nobody_has_are_flagged(rate_bpm):
    assert unlikely_ecg([beats(rate_bpm, 0.006)], FS_HZ)
    assert unlikely_ppg([np.sin(2 * np.pi * rate_bpm / 60 * np.arange(60 * 128) / FS_HZ)[None]], FS_HZ)


def test_a_slow_rate_is_flagged_only_with_slow_complexes():
    assert unlikely_ecg([beats(18, 0.06)], FS_HZ)
    assert not unlikely_ecg([beats(22, 0.014)], FS_HZ)


def test_it_takes_most_of_the_recording():
    stretches = [beats(300, 0.006), beats(70, 0.014), beats(70, 0.014, seed=1)]
    assert not unlikely_ecg(stretches, FS_HZ)
    assert unlikely_ecg([stretches[0], stretches[0], stretches[1]], FS_HZ)


@pytest.mark.parametrize(
    "rows", [np.zeros((2, 1280)), np.full((1, 1280), np.nan), np.zeros((0, 1280)), np.ones((1, 5))]
)
def test_nothing_has_no_rate(rows):
    assert not unlikely_ecg([rows], FS_HZ)
    assert not unlikely_ppg([rows], FS_HZ)
    assert not unlikely_ecg([], FS_HZ)


def test_noise_has_no_rate():
    for seed in range(20):
        noise = np.random.default_rng(seed).standard_normal((2, 60 * 128))
        assert not unlikely_ecg([noise], FS_HZ)
        assert not unlikely_ppg([noise], FS_HZ)


def test_real_recordings_are_not_flagged_and_are_when_their_rate_is_multiplied(recordings):
    found = []
    for folder in ("bidmc", "icu/TestICUdata.mat", "neurokit", "ncku", "wfdb/mixedsignals.hea", "wfdb/a103l.hea"):
        for reference in find_records(str(recordings / folder)):
            for recording in read(reference, folder, []):
                windows = segment(recording, step_s=10.0, ids=ids).windows
                assert not any(FLAG in window.flags for window in windows), reference.name
                rate_bpm = np.median([window.heart_rate_bpm for window in windows if window.heart_rate_bpm])
                for factor in (4.0, 0.25):
                    possible = 25 < rate_bpm * factor < 250
                    if not possible and min(s.fs_hz for s in recording.signals) * factor >= 20:
                        found += flagged(declared(recording.between(0.0, 130.0), factor))
    assert len(found) > 100
    assert np.mean(found) >= 0.9
