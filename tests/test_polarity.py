"""A PPG that falls in systole is turned, once for a recording; one that is upright, or that nobody can tell, stays."""

import dataclasses

import numpy as np
import pytest

from p2es.errors import RecordError
from p2es.filters import stored_ppg
from p2es.formats import find_records, read
from p2es.polarity import is_inverted
from p2es.recording import LazySamples, SignalKind
from p2es.segmenting import segment
from p2es.simulator import simulate_person
from p2es.windows import FS_HZ


def ids(*parts):
    return "/".join(parts)


def cut(recording):
    return segment(recording, step_s=10.0, ids=ids)


def upside_down(recording):
    """Give the recording as light received: less light at more blood, on an offset of its own."""

    def turned(signal):
        if signal.kind is not SignalKind.PPG:
            return signal
        samples = LazySamples(signal.samples.size, lambda start, stop: 7.0 - signal.samples[start:stop])
        return dataclasses.replace(signal, samples=samples)

    return dataclasses.replace(recording, signals=tuple(map(turned, recording.signals)))


def pulses_of(recording):
    (signal,) = recording.of_kind(SignalKind.PPG)
    count = int(signal.end_s * FS_HZ)
    return stored_ppg(np.asarray(signal.read(), np.float64)[None], signal.fs_hz, signal.start_s, 0, count)[0]


@pytest.mark.parametrize("population", ["healthy", "other"])
def test_simulated_people_are_left_upright_and_turned_when_upside_down(population):
    turned = []
    for index in range(40):
        pulses = pulses_of(simulate_person(11, index, 62.0, population))
        assert not is_inverted([pulses], FS_HZ)
        turned.append(is_inverted([-pulses], FS_HZ))
        assert is_inverted([-900 * pulses], FS_HZ) == turned[-1]
        assert is_inverted(np.split(-pulses[: 60 * 128], 2), FS_HZ) == turned[-1]
    assert np.mean(turned) >= 0.95


def test_noise_is_not_turned():
    rng = np.random.default_rng(1)
    for power in (0.0, 0.5, 1.0):
        for _ in range(10):
            spectrum = np.fft.rfft(rng.standard_normal(60 * 128))
            spectrum[1:] /= np.arange(1, spectrum.size) ** power
            noise = stored_ppg(np.fft.irfft(spectrum, 60 * 128)[None], FS_HZ, 0.0, 0, 60 * 128)[0]
            assert not is_inverted([noise], FS_HZ)
            assert not is_inverted([-noise], FS_HZ)


def test_what_is_as_long_in_its_rise_as_in_its_fall_is_not_turned():
    sine = np.sin(2 * np.pi * 1.3 * np.arange(60 * 128) / FS_HZ)
    assert not is_inverted([sine], FS_HZ)
    assert not is_inverted([-sine], FS_HZ)


def test_too_little_is_not_turned():
    pulses = pulses_of(simulate_person(3, 5, 62.0))
    assert is_inverted([-pulses], FS_HZ)
    assert not is_inverted([-pulses[: 12 * 128]], FS_HZ)
    holed = -pulses
    holed[15 * 128 :] = np.nan
    assert not is_inverted([holed], FS_HZ)
    assert not is_inverted([], FS_HZ)


def test_the_windows_of_a_turned_recording_are_those_of_the_upright_one():
    upright = simulate_person(3, 5, 700.0)
    result, turned = cut(upright), cut(upside_down(upright))
    assert len(turned.windows) == len(result.windows) == turned.notes["ppg_turned"]
    assert "ppg_turned" not in result.notes
    for mine, truth in zip(turned.windows, result.windows, strict=True):
        np.testing.assert_allclose(mine.ppg, truth.ppg, atol=2e-3)
        assert mine.delay_s == pytest.approx(truth.delay_s, abs=1e-4)
        assert mine.flags == (*truth.flags, "ppg_turned:Pleth")


def test_each_channel_is_turned_for_itself():
    upright = simulate_person(3, 5, 62.0)
    falling = dataclasses.replace(upside_down(upright).signals[12], name="red")
    both = cut(dataclasses.replace(upright, signals=(*upright.signals, falling)))
    for window in both.windows:
        assert window.ppg_channels == ("Pleth", "red")
        assert window.flags == ("ppg_turned:red",)
        np.testing.assert_allclose(window.ppg[0], window.ppg[1], atol=2e-3)


def test_no_real_recording_is_turned_and_each_is_when_it_is_negated(recordings):
    windows = 0
    for folder in ("bidmc", "icu", "ncku", "neurokit", "wfdb"):
        for reference in find_records(str(recordings / folder)):
            try:
                found = [r for r in read(reference, folder, []) if r.of_kind(SignalKind.PPG)]
            except RecordError:
                continue
            for recording in found:
                upright, negated = cut(recording), cut(upside_down(recording))
                assert not any("ppg_turned" in flag for window in upright.windows for flag in window.flags)
                pulses = sum(window.ppg is not None for window in upright.windows)
                # Three blocks of 10 s is the least that is judged.
                if recording.duration_s >= 40 and pulses:
                    assert negated.notes["ppg_turned"] == pulses
                    windows += pulses
    assert windows > 400
