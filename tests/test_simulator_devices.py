import dataclasses
import time

import numpy as np
import pytest
from scipy import signal

from p2es.beats import pulse_onsets
from p2es.leads import INDEPENDENT, LEADS, law_residuals, lift
from p2es.quality import ppg_quality
from p2es.simulator import electrodes as el
from p2es.simulator import sensor as se
from p2es.simulator.noise import band_noise, happenings, ramps, samples_between, slow_noise

EVERY_KIND = tuple(se.SENSORS)


def wave_at(time_s):
    """A wave with the mean and the power that the sensors take a pulse to have."""
    return 0.37 + 0.34 * np.sqrt(2) * np.sin(2 * np.pi * 1.2 * time_s)


def breath_at(time_s):
    return np.sin(2 * np.pi * 0.25 * time_s)


def piece(name="clip-a", conditions=se.CLEAN, seed=0, **changes):
    return dataclasses.replace(se.draw_sensor(np.random.default_rng(seed), (name,), conditions), **changes)


def sensed(sensor, duration_s=60.0, seed=0, wave=wave_at, breath=breath_at):
    time_s = se.sample_times(np.random.default_rng(seed), sensor, duration_s)
    waves = np.tile(wave(time_s), (len(sensor.kind.wavelengths), 1))
    return se.sense(np.random.default_rng(seed + 1), sensor, waves, breath(time_s))


def still(time_s):
    return np.zeros_like(time_s)


def in_pulses(sensor, found):
    """Undo the converter: (wavelength, time) in systolic amplitudes of the first wavelength."""
    full = 2**sensor.kind.bits - 1 if sensor.kind.raw else 1
    return (found.samples / full - sensor.level) / sensor.pulse_share * (-1 if sensor.kind.inverted else 1)


def inside(found, kind, fs_hz):
    mask = np.zeros(found.samples.shape[1], bool)
    for artefact in found.artefacts:
        if artefact.kind == kind:
            mask[samples_between(artefact.start_s, artefact.stop_s, mask.size, fs_hz)] = True
    return mask


def share_in(x, fs_hz, low_hz, high_hz):
    """Share of the power of `x` in a band."""
    frequency, power = signal.periodogram(x, fs_hz, window="hann")
    return power[(frequency >= low_hz) & (frequency <= high_hz)].sum() / power.sum()


# Noise.


def test_noise_has_the_band_and_the_power_asked_for_at_any_length():
    for n in (997, 4096, 30011):
        for make, low_hz, high_hz in ((band_noise, 15.0, 100.0), (slow_noise, 0.5, 8.0)):
            drawn = [make(np.random.default_rng(seed), n, 500.0, low_hz, high_hz) for seed in range(60)]
            assert {x.size for x in drawn} == {n}
            assert np.mean(np.square(drawn)) == pytest.approx(1.0, abs=0.1)
            assert np.mean([share_in(x, 500.0, low_hz - 1, high_hz + 1) for x in drawn]) > 0.98


def test_a_rate_that_cannot_hold_a_band_gives_its_part_of_it():
    power = np.mean([np.var(band_noise(np.random.default_rng(k), 5000, 100.0, 15.0, 100.0)) for k in range(40)])
    assert power == pytest.approx(35 / 85, rel=0.05)


def test_a_short_recording_gets_a_piece_of_a_slow_wander():
    # One that closed within the recording would have a mean near 0 (measured: 0.1).
    means = [slow_noise(np.random.default_rng(seed), 1090, 100.0, 0.02, 0.4).mean() for seed in range(300)]
    assert np.std(means) > 0.25


def test_samples_between_two_times():
    assert samples_between(0.3, 0.7, 100, 10.0) == slice(3, 7)
    assert samples_between(0.25, 0.75, 100, 10.0) == slice(3, 8)
    assert samples_between(-1.0, 99.0, 100, 10.0) == slice(0, 100)


def test_what_happens_is_a_poisson_process_and_a_longer_recording_has_more_of_the_same():
    counts, gaps_s = [], []
    for seed in range(300):
        starts_s, numbers = happenings(np.random.default_rng(seed), 3.0, 120.0, 2)
        longer_s, more = happenings(np.random.default_rng(seed), 3.0, 600.0, 2)
        assert longer_s.size > starts_s.size
        np.testing.assert_array_equal(starts_s, longer_s[longer_s < 120.0])
        np.testing.assert_array_equal(numbers, more[: len(numbers)])
        counts.append(starts_s.size)
        gaps_s.extend(np.diff(longer_s))
    assert np.mean(counts) == pytest.approx(6.0, abs=0.5)
    assert np.var(counts) == pytest.approx(6.0, abs=1.5)
    assert np.mean(gaps_s) == pytest.approx(20.0, rel=0.05)
    assert happenings(np.random.default_rng(0), 0.0, 60.0, 2)[1].shape == (0, 2)


def test_a_ramp_rises_to_one_and_falls():
    for n in (1, 2, 3, 50):
        window = ramps(n, 0.4)
        assert window.shape == (n,)
        np.testing.assert_allclose(window, window[::-1])
        assert window.min() > 0
        assert window.max() <= 1
    assert ramps(50, 0.4)[0] < 0.05
    assert (ramps(50, 0.4) == 1.0).sum() == 30


# Sensors: what is drawn.


def test_the_makes_span_what_real_devices_are():
    kinds = se.SENSORS.values()
    assert {kind.site for kind in kinds} == {"finger", "wrist", "ear", "forehead", "arm"}
    assert {25.0, 64.0, 500.0} <= {kind.fs_hz for kind in kinds}
    assert [name for name, kind in se.SENSORS.items() if kind.inverted] == ["raw-patch"]
    assert all(kind.raw for kind in kinds if kind.inverted)
    assert all(0 <= kind.delay_s <= 0.35 for kind in kinds)
    assert all(kind.wavelengths[0] == "green" for kind in kinds if kind.site == "wrist")


def test_the_delay_is_that_of_the_make_this_piece_and_its_clock():
    sensors = [piece("watch-a", se.USUAL, seed) for seed in range(800)]
    own_s = np.array([sensor.delay_s - sensor.offset_s for sensor in sensors]) - 0.14
    assert own_s.mean() == pytest.approx(0, abs=0.002)
    assert own_s.std() == pytest.approx(0.010, rel=0.1)
    offsets_s = np.array([sensor.offset_s for sensor in sensors])
    assert np.abs(offsets_s).max() < 0.020
    assert offsets_s.std() == pytest.approx(0.020 / np.sqrt(3), rel=0.1)
    assert abs(np.corrcoef(own_s, offsets_s)[0, 1]) < 0.15
    drifts = np.array([sensor.clock_drift_ppm for sensor in sensors])
    assert np.abs(drifts).max() < 50
    assert drifts.std() == pytest.approx(50 / np.sqrt(3), rel=0.1)


def test_conditions_happen_as_often_as_they_say():
    sensors = [se.draw_sensor(np.random.default_rng(seed), EVERY_KIND, se.STRESS) for seed in range(1000)]
    assert {sensor.name for sensor in sensors} == set(se.SENSORS)
    for field in ("motion", "saturation", "dropout", "perfusion_drops"):
        share = np.mean([getattr(sensor, field) for sensor in sensors])
        assert share == pytest.approx(getattr(se.STRESS, field), abs=0.06)
    assert np.mean([sensor.contact < 0.75 for sensor in sensors]) == pytest.approx(0.40, abs=0.06)
    assert np.mean([sensor.packet_loss for sensor in sensors]) == pytest.approx(0.02, rel=0.15)
    clean = [se.draw_sensor(np.random.default_rng(seed), EVERY_KIND, se.CLEAN) for seed in range(100)]
    assert not any(s.motion or s.saturation or s.dropout or s.perfusion_drops or s.packet_loss for s in clean)


def test_poor_contact_and_a_weak_pulse_cost_signal_to_noise():
    def snr_db(**conditions):
        made = [piece("clip-b", se.SensorConditions(**conditions), seed) for seed in range(300)]
        return np.array([sensor.snr_db for sensor in made])

    usual_db = snr_db()
    assert usual_db.std() == pytest.approx(2.2, abs=0.4)
    assert usual_db.mean() == pytest.approx(se.SENSORS["clip-b"].snr_db, abs=1.0)
    assert snr_db(poor_contact=1.0).mean() < usual_db.mean() - 4
    assert snr_db(poor_perfusion=1.0).mean() < usual_db.mean() - 10


# Sensors: when they sample.


def test_drift_is_measured_in_the_sample_times():
    sensor = piece("clip-a", clock_drift_ppm=40.0)
    time_s = se.sample_times(np.random.default_rng(0), sensor, 3600.0)
    assert time_s.size == 3600 * 125
    assert time_s[0] == 0
    nominal_s = np.arange(time_s.size) / 125.0
    assert 1e6 * (np.polyfit(nominal_s, time_s, 1)[0] - 1) == pytest.approx(40.0, rel=1e-6)
    straight = se.sample_times(np.random.default_rng(0), piece("clip-a", clock_drift_ppm=0.0), 60.0)
    np.testing.assert_allclose(straight, np.arange(7500) / 125.0, atol=1e-12)


@pytest.mark.parametrize("name", EVERY_KIND)
def test_the_samples_of_a_packet_share_their_jitter_and_time_goes_on(name):
    sensor = piece(name, clock_drift_ppm=0.0, packet_jitter_s=0.004)
    kind = sensor.kind
    time_s = se.sample_times(np.random.default_rng(1), sensor, 1200.0)
    assert np.diff(time_s).min() > 0.05 / kind.fs_hz
    shift_s = time_s - np.arange(time_s.size) / kind.fs_hz
    packets = shift_s[: time_s.size // kind.packet * kind.packet].reshape(-1, kind.packet)
    assert np.ptp(packets, axis=1).max() < 1e-9
    assert len(np.unique(packets[:, 0].round(9))) > 0.5 * len(packets) * (kind.fs_hz < 400)
    # Jitter that the next packet may undo is all there; a faster rate works it off over several packets.
    if kind.fs_hz <= 100:
        assert packets[:, 0].std() == pytest.approx(0.004, rel=0.15)
    assert np.abs(packets).max() < 0.0121
    shorter_s = se.sample_times(np.random.default_rng(1), sensor, 60.0)
    np.testing.assert_allclose(shorter_s, time_s[: shorter_s.size], atol=1e-12)


# Sensors: what they record.


@pytest.mark.parametrize("name", EVERY_KIND)
def test_noise_is_as_far_below_the_pulse_as_asked(name):
    sensor = piece(name, wander=0.0, snr_db=20.0)
    found = in_pulses(sensor, sensed(sensor, 60.0, breath=still))
    rates = np.array([se.LIGHTS[light].pulse for light in sensor.kind.wavelengths])
    time_s = np.arange(found.shape[1]) / sensor.kind.fs_hz
    for row, size in zip(found, rates / rates[0], strict=True):
        # The pulse by least squares, so that its size is measured and not assumed.
        pulse = wave_at(time_s) - 0.37
        scale = row @ pulse / (pulse @ pulse)
        assert scale == pytest.approx(size, rel=0.03)
        snr_db = 20 * np.log10(scale * pulse.std() / (row - scale * pulse).std())
        assert snr_db == pytest.approx(20 + 20 * np.log10(size), abs=0.6)


def test_green_sees_the_pulse_best_and_deeper_light_sees_more_breathing():
    sensor = piece("watch-c", snr_db=60.0, wander=1.0)
    assert sensor.kind.wavelengths == ("green", "red", "infrared")
    found = in_pulses(sensor, sensed(sensor, 120.0))
    time_s = np.arange(found.shape[1]) / sensor.kind.fs_hz
    pulse, breath = wave_at(time_s) - 0.37, breath_at(time_s)
    of_pulse, of_breath = (found @ x / (x @ x) for x in (pulse, breath))
    assert of_pulse[0] > of_pulse[2] > of_pulse[1] > 0
    assert of_breath[2] / of_pulse[2] > 2 * of_breath[0] / of_pulse[0] > 0


def test_raw_light_falls_in_systole_for_the_one_inverted_make():
    for name in EVERY_KIND:
        sensor = piece(name, wander=0.0)
        samples = sensed(sensor, 20.0).samples[0]
        time_s = np.arange(samples.size) / sensor.kind.fs_hz
        assert np.corrcoef(samples, wave_at(time_s))[0, 1] * (-1 if name == "raw-patch" else 1) > 0.9


@pytest.mark.parametrize("name", EVERY_KIND)
def test_samples_are_whole_steps_of_the_converter(name):
    sensor = piece(name, se.STRESS, seed=3)
    found = sensed(sensor, 60.0)
    steps = found.samples * (1 if sensor.kind.raw else 2**sensor.kind.bits - 1)
    steps = steps[np.isfinite(steps)]
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)
    assert steps.min() >= 0
    assert steps.max() <= 2**sensor.kind.bits - 1
    assert found.unit == ("adu" if sensor.kind.raw else "NU")
    # The pulse takes more than ten steps: what a make cannot show, it would not be sold with.
    clean = piece(name)
    assert clean.pulse_share * (2**clean.kind.bits - 1) > 10


@pytest.mark.parametrize("name", ["clip-a", "clip-b", "raw-patch", "patient-monitor"])
def test_saturation_sits_at_a_rail_and_nowhere_else(name):
    sensor = piece(name, dataclasses.replace(se.CLEAN, saturation_per_min=6.0), saturation=True)
    found = sensed(sensor, 300.0)
    top = 2**sensor.kind.bits - 1 if sensor.kind.raw else 1.0
    railed = (found.samples == 0) | (found.samples == top)
    spans = inside(found, "saturation", sensor.kind.fs_hz)
    assert spans.any()
    assert not spans.all()
    assert not railed[:, ~spans].any()
    assert railed[:, spans].mean() > 0.85
    assert (found.samples == 0).any()
    assert (found.samples == top).any()
    assert {artefact.kind for artefact in found.artefacts} == {"saturation"}


@pytest.mark.parametrize("name", ["lab-clip", "wristband", "tracker", "watch-c"])
def test_bursts_of_motion_have_their_band_length_and_strength(name):
    conditions = dataclasses.replace(se.CLEAN, motion_per_min=4.0)
    sensor = piece(name, conditions, level=0.5, wander=0.0, snr_db=60.0)
    sensor = dataclasses.replace(sensor, pulse_share=sensor.pulse_share / 3)
    moved = sensed(dataclasses.replace(sensor, motion=True), 1800.0)
    rest = sensed(sensor, 1800.0)
    difference = in_pulses(sensor, moved) - in_pulses(sensor, rest)
    fs_hz = sensor.kind.fs_hz
    assert np.abs(difference[:, ~inside(moved, "motion", fs_hz)]).max() == 0
    assert np.mean([share_in(row, fs_hz, 0.3, 9.0) for row in difference]) > 0.97
    bursts = [a for a in moved.artefacts if a.kind == "motion" and a.stop_s < 1800.0]
    assert len(bursts) > 60
    lengths_s = np.array([burst.stop_s - burst.start_s for burst in bursts])
    assert lengths_s.min() >= 1
    assert lengths_s.max() <= 5
    middles = [(0.75 * a.start_s + 0.25 * a.stop_s, 0.25 * a.start_s + 0.75 * a.stop_s) for a in bursts]
    rms = [difference[:, samples_between(*middle, difference.shape[1], fs_hz)].std() for middle in middles]
    snr_db = -20 * np.log10(np.array(rms) / se.PULSE_RMS)
    assert np.median(snr_db) == pytest.approx(2.5, abs=2.0)
    assert np.quantile(snr_db, 0.02) > -9
    assert np.quantile(snr_db, 0.98) < 14


def test_wavelengths_share_a_part_of_the_motion():
    conditions = dataclasses.replace(se.CLEAN, motion_per_min=6.0)
    still_one = piece("watch-c", conditions, snr_db=60.0)
    difference = sensed(dataclasses.replace(still_one, motion=True), 1200.0).samples - sensed(still_one, 1200.0).samples
    correlations = np.corrcoef(difference)[np.triu_indices(3, 1)]
    np.testing.assert_allclose(correlations, 0.7, atol=0.1)


def test_a_drop_of_perfusion_weakens_the_pulse_and_nothing_else():
    conditions = dataclasses.replace(se.CLEAN, perfusion_drops_per_min=1.0)
    sensor = piece("clip-a", conditions, perfusion_drops=True, wander=0.0)
    found = sensed(sensor, 1800.0)
    x = in_pulses(sensor, found)[0]
    drops = [a for a in found.artefacts if a.stop_s < 1800.0]
    left = []
    for drop in drops:
        middle = samples_between(drop.start_s + 1.6, drop.stop_s - 1.6, x.size, 125.0)
        if middle.stop - middle.start > 250 and not any(
            other is not drop and other.start_s < drop.stop_s and other.stop_s > drop.start_s for other in drops
        ):
            left.append(x[middle].std() / se.PULSE_RMS)
    assert len(left) > 8
    assert min(left) > 0.04
    assert max(left) < 0.9
    rest = x[~inside(found, "perfusion", 125.0)]
    assert rest.std() == pytest.approx(0.34, rel=0.03)


def test_a_drop_of_perfusion_leaves_noise_and_wander_as_they_are():
    conditions = dataclasses.replace(se.CLEAN, perfusion_drops_per_min=2.0)
    sensor = piece("watch-b", conditions, snr_db=10.0)
    dropped = sensed(dataclasses.replace(sensor, perfusion_drops=True), 300.0)
    loss = in_pulses(sensor, sensed(sensor, 300.0)) - in_pulses(sensor, dropped)
    pulse = wave_at(np.arange(loss.shape[1]) / sensor.kind.fs_hz) - 0.37
    spans = inside(dropped, "perfusion", sensor.kind.fs_hz) & (np.abs(pulse) > 0.1)
    assert spans.any()
    assert (loss[0, spans] / pulse[spans]).min() > -0.01


def test_a_dropout_is_flat_or_nothing():
    sensor = piece("clip-b", dataclasses.replace(se.CLEAN, dropout_per_min=4.0), dropout=True)
    found = sensed(sensor, 600.0)
    kinds = set()
    for artefact in found.artefacts:
        cut = found.samples[:, samples_between(artefact.start_s, artefact.stop_s, found.samples.shape[1], 100.0)]
        nothing = np.isnan(cut).all()
        # Two dropouts may overlap.
        kinds.add("nothing" if nothing else "flat" if np.ptp(cut, axis=1).max() == 0 else "mixed")
    assert {"nothing", "flat"} <= kinds
    spans = inside(found, "dropout", 100.0)
    assert np.isfinite(found.samples[:, ~spans]).all()
    assert (np.diff(found.samples[0, ~spans]) == 0).mean() < 0.2


@pytest.mark.parametrize("name", ["clip-b", "oximeter", "patient-monitor"])
def test_lost_packets_are_whole_and_as_many_as_asked(name):
    sensor = piece(name, packet_loss=0.05)
    found = sensed(sensor, 3600.0 if sensor.kind.packet < 100 else 20_000.0)
    missing = np.isnan(found.samples)
    assert (missing == missing[0]).all()
    whole = missing[0, : missing.shape[1] // sensor.kind.packet * sensor.kind.packet].reshape(-1, sensor.kind.packet)
    assert (whole.all(axis=1) == whole.any(axis=1)).all()
    assert whole.mean() == pytest.approx(0.05, rel=0.15)
    # Each on its own: one after the other is a coincidence.
    alone = whole.any(axis=1)
    assert (alone[1:] & alone[:-1]).sum() < 0.15 * alone.sum()
    assert found.artefacts == ()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    sensor = piece("watch-c", se.STRESS, seed=5, motion=True, saturation=True, dropout=True, perfusion_drops=True)
    assert sensor.packet_loss > 0
    one, two, other = sensed(sensor, 600.0), sensed(sensor, 600.0), sensed(sensor, 600.0, seed=9)
    assert one.samples.tobytes() == two.samples.tobytes()
    assert one.artefacts == two.artefacts
    assert {artefact.kind for artefact in one.artefacts} == {"motion", "saturation", "dropout", "perfusion"}
    assert one.samples.tobytes() != other.samples.tobytes()
    assert piece("ring", se.USUAL, 3) == piece("ring", se.USUAL, 3) != piece("ring", se.USUAL, 4)


def test_a_longer_recording_has_the_same_artefacts_and_then_more():
    sensor = piece("clip-a", se.STRESS, seed=1, motion=True, saturation=True, dropout=True, perfusion_drops=True)
    short, long = sensed(sensor, 120.0), sensed(sensor, 600.0)
    started = [a for a in long.artefacts if a.start_s < 120.0]
    assert [(a.kind, a.start_s) for a in short.artefacts] == [(a.kind, a.start_s) for a in started]
    assert len(long.artefacts) > len(started) > 5
    assert all(a.stop_s <= 120.0 for a in short.artefacts)


@pytest.mark.parametrize("name", EVERY_KIND)
def test_clean_pulses_of_every_make_are_found_where_they_are(name):
    sensor = piece(name, seed=8)
    rises_s = np.arange(0.5, 40.0, 0.85)

    def pulses(time_s):
        return np.exp(-(((time_s[:, None] - rises_s - 0.06) / 0.06) ** 2) / 2).sum(axis=1)

    found = sensed(sensor, 40.0, wave=pulses)
    upright = found.samples * (-1 if sensor.kind.inverted else 1)
    mask = np.ones(upright.shape[1], bool)
    assert ppg_quality(upright, mask, sensor.kind.fs_hz) > 0.95
    onsets_s = pulse_onsets(upright[0], sensor.kind.fs_hz, mask)
    errors_s = onsets_s - rises_s[np.abs(onsets_s[:, None] - rises_s).argmin(axis=1)]
    assert len(onsets_s) >= len(rises_s) - 2
    assert abs(np.median(errors_s)) < 0.012


def test_a_pause_of_the_heart_does_not_silence_the_sensor():
    sensor = piece("clip-a", snr_db=30.0, wander=0.0)
    x = in_pulses(sensor, sensed(sensor, 60.0, wave=still))
    assert x.std() == pytest.approx(se.PULSE_RMS * 10**-1.5, rel=0.05)


# Electrodes.


def worn_pieces(conditions, count=200, duration_s=60.0):
    return [el.draw_electrodes(np.random.default_rng(seed), conditions, duration_s) for seed in range(count)]


def heart(n=2000, seed=0):
    return np.random.default_rng(seed).standard_normal((8, n))


QUIET = el.draw_electrodes(np.random.default_rng(0), el.NONE, 60.0)


def noise(electrodes, duration_s=60.0, fs_hz=500.0, seed=0):
    breath = breath_at(np.arange(round(duration_s * fs_hz)) / fs_hz)
    return el.electrode_noise(np.random.default_rng(seed), electrodes, breath, fs_hz)


def test_no_conditions_no_noise():
    assert not noise(QUIET).any()
    np.testing.assert_array_equal(el.worn(heart(), QUIET, 500.0), lift(heart()))


@pytest.mark.parametrize("swap", [None, *el.SWAPS])
def test_the_lead_laws_hold_with_noise_and_swaps(swap):
    electrodes = el.draw_electrodes(np.random.default_rng(2), dataclasses.replace(el.STRESS, hum=1.0), 60.0)
    electrodes = dataclasses.replace(electrodes, swap=swap, off=())
    ecg = el.worn(noise(electrodes) + heart(30_000), electrodes, 500.0)
    assert np.abs(law_residuals(ecg)).max() < 1e-9


@pytest.mark.parametrize("index", range(9))
def test_noise_at_an_electrode_reaches_the_leads_that_use_it(index):
    name = el.ELECTRODES[index]
    electrodes = dataclasses.replace(QUIET, breath_mv=tuple(0.3 * (np.arange(9) == index)))
    ecg = lift(noise(electrodes))
    moved = [lead for lead, row in zip(LEADS, ecg, strict=True) if np.abs(row).max() > 1e-12]
    assert moved == list(el.leads_of(name))


def test_noise_that_all_electrodes_share_cancels():
    shared = dataclasses.replace(QUIET, breath_mv=(0.3,) * 9, hum_mv=(0.2,) * 9)
    assert np.abs(noise(shared)).max() < 1e-12


def test_limb_swaps_give_the_textbook_leads():
    right = dict(zip(LEADS, lift(heart()), strict=True))

    def after(swap):
        ecg = el.worn(heart(), dataclasses.replace(QUIET, swap=swap), 500.0)
        return dict(zip(LEADS, ecg, strict=True))

    expected = {
        "RA-LA": {"I": -right["I"], "II": right["III"], "III": right["II"], "aVR": right["aVL"], "aVL": right["aVR"]}
        | {"aVF": right["aVF"]},
        "RA-LL": {"I": -right["III"], "II": -right["II"], "III": -right["I"], "aVR": right["aVF"]}
        | {"aVF": right["aVR"], "aVL": right["aVL"]},
        "LA-LL": {"I": right["II"], "II": right["I"], "III": -right["III"], "aVL": right["aVF"], "aVF": right["aVL"]}
        | {"aVR": right["aVR"]},
    }
    for swap, leads in expected.items():
        found = after(swap)
        for name in LEADS:
            np.testing.assert_allclose(found[name], leads.get(name, right[name]), atol=1e-12)
    found = after("V1-V2")
    for name in LEADS:
        other = {"V1": "V2", "V2": "V1"}.get(name, name)
        np.testing.assert_allclose(found[name], right[other], atol=1e-12)


def test_a_limb_swapped_with_a_chest_electrode_moves_wilsons_terminal():
    # V1 at the right arm: what RA gives is V1's potential, and the terminal moves by a third of the difference.
    leads = heart()
    found = el.swap_matrix("RA-V1") @ leads
    i, ii, v1 = leads[0], leads[1], leads[2]
    potential = v1 + (i + ii) / 3
    np.testing.assert_allclose(found[0], i - potential, atol=1e-12)
    np.testing.assert_allclose(found[2], 0 - (potential + i + ii) / 3, atol=1e-12)
    np.testing.assert_allclose(found[5], leads[5] - potential / 3, atol=1e-12)


@pytest.mark.parametrize("name", el.ELECTRODES)
def test_leads_of_an_electrode_that_is_off_are_missing_exactly_then(name):
    electrodes = dataclasses.replace(QUIET, off=(el.Off(name, 1.0, 2.5),))
    missing = np.isnan(el.worn(heart(2000), electrodes, 500.0))
    expected = np.zeros((12, 2000), bool)
    chest = [f"V{k}" for k in range(1, 7)]
    limbs = {
        "RA": ["I", "II", "aVR", "aVL", "aVF"],
        "LA": ["I", "III", "aVR", "aVL", "aVF"],
        "LL": ["II", "III", "aVR", "aVL", "aVF"],
    }
    for lead in limbs[name] + chest if name in limbs else [name]:
        expected[LEADS.index(lead), 500:1250] = True
    np.testing.assert_array_equal(missing, expected)


def test_an_electrode_that_is_off_takes_its_cable_with_it_when_it_is_swapped():
    electrodes = dataclasses.replace(QUIET, swap="RA-LA", off=(el.Off("RA", 0.0, 4.0),))
    found = el.worn(heart(), electrodes, 500.0)
    # III is formed without RA's cable: with the swap it is the II of the body.
    assert [lead for lead, row in zip(LEADS, found, strict=True) if np.isfinite(row).all()] == ["III"]
    np.testing.assert_allclose(found[2], heart()[1], atol=1e-12)


@pytest.mark.parametrize(("hum_hz", "fs_hz"), [(50.0, 500.0), (60.0, 500.0), (50.0, 250.0), (60.0, 250.0)])
def test_hum_is_at_the_mains_and_its_third_harmonic_unequal_and_drifting(hum_hz, fs_hz):
    levels = tuple(np.linspace(-0.05, 0.07, 9))
    leads = noise(dataclasses.replace(QUIET, hum_hz=hum_hz, hum_mv=levels), 60.0, fs_hz)
    at_mains = share_in(leads[0], fs_hz, hum_hz - 0.2, hum_hz + 0.2)
    if 3 * hum_hz < fs_hz / 2:
        assert at_mains == pytest.approx(1 / 1.04, abs=0.002)
        assert share_in(leads[0], fs_hz, 3 * hum_hz - 0.5, 3 * hum_hz + 0.5) == pytest.approx(0.04 / 1.04, abs=0.002)
    else:
        assert at_mains > 0.999
    assert len(np.unique(leads.std(axis=1).round(6))) > 4
    phase = np.unwrap(
        np.angle(signal.hilbert(signal.sosfiltfilt(signal.butter(4, 80, fs=fs_hz, output="sos"), leads[0])))
    )
    frequency = np.diff(phase)[1000:-1000].reshape(-1) * fs_hz / (2 * np.pi)
    smooth = np.convolve(frequency, np.ones(500) / 500, "valid")
    assert 0.02 < np.abs(smooth - hum_hz).max() < 0.06


def test_a_rate_below_the_mains_shows_no_hum():
    humming = dataclasses.replace(QUIET, hum_mv=(0.1, *(0.0,) * 8))
    assert not noise(humming, fs_hz=100.0).any()
    assert noise(humming, fs_hz=125.0).any()


def test_muscles_are_between_15_and_100_hz_at_the_level_drawn():
    leads = noise(dataclasses.replace(QUIET, muscle_mv=0.02))
    assert share_in(leads[0], 500.0, 14.5, 100.5) > 0.99
    # A limb lead is the difference of two electrodes.
    assert leads[0].std() == pytest.approx(0.02 * np.sqrt(2), rel=0.05)
    # Its spectrum is flat: the lower half of the band has half the power.
    assert share_in(leads[4], 500.0, 15.0, 57.5) == pytest.approx(0.5, abs=0.05)


def test_a_muscle_burst_is_where_and_as_strong_as_it_says():
    burst = el.Burst("V3", 10.0, 14.0, 0.1, 7)
    leads = noise(dataclasses.replace(QUIET, bursts=(burst,)))
    assert not np.delete(leads, 4, axis=0).any()
    row = leads[4]
    assert not row[:5000].any()
    assert not row[7001:].any()
    assert row[5600:6400].std() == pytest.approx(0.1, rel=0.15)
    assert share_in(row[5000:7000], 500.0, 13.0, 102.0) > 0.98
    # A recording that ends in it has its first part.
    np.testing.assert_allclose(noise(dataclasses.replace(QUIET, bursts=(burst,)), 12.0)[4], row[:6000], atol=1e-12)


def test_steps_rise_and_decay_bumps_swell_and_go():
    step, bump = el.Motion("V1", "step", 5.0, 0.8, 0.5), el.Motion("V2", "bump", 20.0, 1.0, -0.4)
    leads = noise(dataclasses.replace(QUIET, motion=(step, bump)))
    first, second = leads[2], leads[3]
    assert not first[:2500].any()
    assert 0.4 < first.max() < 0.5
    assert 0 < (np.argmax(first) / 500.0 - 5.0) < 0.15
    later = first[round(5.5 * 500)] / first[round(6.3 * 500)]
    assert later == pytest.approx(np.e, rel=1e-3)
    assert second.min() == pytest.approx(-0.4, rel=1e-3)
    assert np.argmin(second) == 10_250
    assert not second[:10_000].any()
    assert np.abs(second[10_500:]).max() < 1e-9
    for row in (first, second):
        assert share_in(row, 500.0, 0.0, 10.0) > 0.97


def test_wander_is_breathing_and_slower_things():
    leads = noise(dataclasses.replace(QUIET, breath_mv=(0.0, 0.1, *(0.0,) * 7), slow_mv=0.02), 600.0)
    breath = breath_at(np.arange(leads.shape[1]) / 500.0)
    assert leads[0] @ breath / (breath @ breath) == pytest.approx(0.1, abs=0.01)
    rest = leads[0] - 0.1 * breath
    assert rest.std() == pytest.approx(0.02 * np.sqrt(2), rel=0.2)
    assert share_in(rest, 500.0, 0.0, 0.42) > 0.99


def test_noise_of_the_electrodes_is_ranked_by_the_conditions_and_clean_is_small():
    def rms_mv(conditions):
        return np.sqrt(
            np.mean([noise(e, 30.0, 250.0, k).var() for k, e in enumerate(worn_pieces(conditions, 40, 30.0))])
        )

    clean, usual, ward, stress = map(rms_mv, (el.CLEAN, el.USUAL, el.WARD, el.STRESS))
    assert 0.01 < clean < 0.05
    assert clean < usual < ward < stress


def test_electrode_conditions_happen_as_often_as_they_say():
    made = worn_pieces(el.STRESS, 600)
    assert np.mean([e.swap is not None for e in made]) == pytest.approx(0.10, abs=0.04)
    assert np.mean([any(e.hum_mv) for e in made]) == pytest.approx(0.7, abs=0.06)
    assert np.mean([bool(e.motion) for e in made]) == pytest.approx(0.9, abs=0.05)
    assert np.mean([bool(e.bursts) for e in made]) == pytest.approx(0.8, abs=0.06)
    # In one of these recordings in three an electrode is off throughout; in the others once a minute.
    assert np.mean([bool(e.off) for e in made]) == pytest.approx(0.3 * (1 - 2 / 3 * np.exp(-1)), abs=0.06)
    assert np.mean([e.hum_hz == 50.0 for e in made]) == pytest.approx(0.5, abs=0.08)
    moves = [motion for e in made for motion in e.motion]
    assert {motion.electrode for motion in moves} == set(el.ELECTRODES)
    assert {motion.shape for motion in moves} == {"step", "bump"}
    sizes_mv = np.abs([motion.mv for motion in moves])
    assert sizes_mv.min() >= 0.2
    assert sizes_mv.max() <= 1.5
    assert np.mean([motion.mv > 0 for motion in moves]) == pytest.approx(0.5, abs=0.05)
    assert all(0 <= off.start_s < off.stop_s <= 60.0 for e in made for off in e.off)
    assert not any(e.swap or e.off or e.motion or e.bursts or any(e.hum_mv) for e in worn_pieces(el.CLEAN))


def test_the_same_electrodes_whatever_the_duration_with_more_happening():
    for seed in range(20):
        short, long = (el.draw_electrodes(np.random.default_rng(seed), el.STRESS, s) for s in (60.0, 900.0))
        for field in ("breath_mv", "slow_mv", "muscle_mv", "hum_hz", "hum_phase", "hum_mv", "swap"):
            assert getattr(short, field) == getattr(long, field)
        assert short.motion == tuple(motion for motion in long.motion if motion.start_s < 60.0)
        assert short.bursts == tuple(burst for burst in long.bursts if burst.start_s < 60.0)
        assert [off[:2] for off in short.off] == [off[:2] for off in long.off if off.start_s < 60.0]


def test_electrode_noise_is_a_function_of_its_seed():
    electrodes = el.draw_electrodes(np.random.default_rng(4), el.STRESS, 20.0)
    assert noise(electrodes, 20.0).tobytes() == noise(electrodes, 20.0).tobytes()
    assert noise(electrodes, 20.0).tobytes() != noise(electrodes, 20.0, seed=1).tobytes()
    assert noise(electrodes, 20.0).shape == (len(INDEPENDENT), 10_000)


# Cost.


def least_cpu_s(work, tries=15):
    spent = []
    for _ in range(tries):
        before = time.process_time()
        work()
        spent.append(time.process_time() - before)
    return min(spent)


def test_ten_seconds_cost_milliseconds():
    sensor = piece("lab-clip", se.STRESS, motion=True, saturation=True, dropout=True, perfusion_drops=True)
    electrodes = el.draw_electrodes(np.random.default_rng(0), el.STRESS, 10.0)
    # Measured: 0.4 ms and 2 ms.
    assert least_cpu_s(lambda: sensed(sensor, 10.0)) < 0.004
    assert least_cpu_s(lambda: el.worn(noise(electrodes, 10.0), electrodes, 500.0)) < 0.012


def test_room_for_the_electrodes_is_little_beside_the_result():
    import tracemalloc

    electrodes = el.draw_electrodes(np.random.default_rng(0), dataclasses.replace(el.STRESS, hum=1.0), 1800.0)
    breath = breath_at(np.arange(450_000) / 250.0)
    tracemalloc.start()
    result = el.electrode_noise(np.random.default_rng(0), electrodes, breath, 250.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.2 * result.nbytes
