import dataclasses
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pytest

from p2es import signals
from p2es.demographics import Demographics, Sex
from p2es.errors import ConfigError, DatasetError, InputError
from p2es.leads import LEADS, law_residuals
from p2es.recording import Recording, Signal, SignalKind
from p2es.simulator import simulate_person
from p2es.simulator.archive import write_wfdb
from p2es.simulator.device import electrode_noise
from p2es.simulator.heart import DOWER, draw_heart, heart_ecg
from p2es.simulator.people import POPULATIONS, draw_person
from p2es.simulator.pulse import draw_pulse, pulse_times, pulse_wave, steepest_rises
from p2es.simulator.rhythm import Rhythm, draw_rhythm
from p2es_platform.settings import Settings
from pipelines import simulate
from pipelines.recipes import SimulateConfig, demo

HEALTHY = POPULATIONS["healthy"]
FS_HZ = 500.0


def ecg_of(recording):
    return np.stack([signal.samples for signal in recording.signals[:12]])


def person_of(seed=0, **changes):
    fields = {"age_years": 50.0, "sex": Sex.MALE, "height_cm": 174.0, "weight_kg": 78.7}
    return draw_person(np.random.default_rng(seed), HEALTHY, Demographics(**(fields | changes)))


def steady(rr_s, beats=12):
    return Rhythm(rr_s * np.arange(-2, beats), np.full(beats + 2, rr_s), 0.25, 0.0)


def median_beat(person, rr_s=1.0, seed=1):
    """Noise-free (12, time) beat, R at 0.4 s."""
    heart = draw_heart(np.random.default_rng(seed), person, HEALTHY)
    ecg = heart_ecg(heart, steady(rr_s), 10 * rr_s, FS_HZ)
    n, before = round(rr_s * FS_HZ), round(0.4 * FS_HZ)
    starts = n * np.arange(2, 8) - before
    return np.median([ecg[:, start : start + n] for start in starts], axis=0)


def span_s(beat, start_s, end_s, share):
    """First and last time, from R, where the spatial magnitude exceeds a share of its peak in a stretch."""
    time_s = np.arange(beat.shape[1]) / FS_HZ - 0.4
    inside = (time_s >= start_s) & (time_s <= end_s)
    size = np.linalg.norm(beat - beat[:, :5].mean(axis=1, keepdims=True), axis=0)
    above = time_s[inside & (size > share * size[inside].max())]
    return above[0], above[-1]


def frontal_axis_deg(beat):
    qrs = beat[:, round(0.33 * FS_HZ) : round(0.47 * FS_HZ)].sum(axis=1)
    return np.rad2deg(np.arctan2(2 / np.sqrt(3) * qrs[5], qrs[0]))


def test_lead_laws_hold_with_and_without_noise():
    recording = simulate_person(0, 1, 20.0)
    assert np.abs(law_residuals(ecg_of(recording))).max() < 1e-9
    heart = draw_heart(np.random.default_rng(0), person_of(), HEALTHY)
    assert np.abs(law_residuals(heart_ecg(heart, steady(0.9), 10.0, FS_HZ))).max() < 1e-9


def test_the_eight_leads_are_more_than_a_dipole_but_not_much_more():
    shares = []
    for seed in range(8):
        heart = draw_heart(np.random.default_rng(seed), person_of(seed), HEALTHY)
        ecg = heart_ecg(heart, steady(0.9), 10.0, FS_HZ)[[0, 1, 6, 7, 8, 9, 10, 11]]
        energy = np.linalg.svd(ecg, compute_uv=False) ** 2
        shares.append(energy[3:].sum() / energy.sum())
        assert not heart.residual_mv[:2].any()
        beyond = heart.residual_mv[2:] / np.abs(DOWER[2:] @ heart.vector_mv).max()
        assert 0.01 < np.abs(beyond).max() < 0.6
    assert 0.001 < np.median(shares) < 0.04


def test_the_same_person_is_the_same_whatever_else_is_made():
    alone = simulate_person(7, 3, 15.0)
    for other in (0, 4, 9):
        simulate_person(7, other, 15.0)
    again = simulate_person(7, 3, 15.0)
    assert alone.demographics == again.demographics
    assert alone.provenance == again.provenance
    for a, b in zip(alone.signals, again.signals, strict=True):
        np.testing.assert_array_equal(a.samples, b.samples)


@pytest.mark.parametrize("other", [(8, 3, "healthy"), (7, 4, "healthy"), (7, 3, "other")])
def test_seed_index_and_population_each_make_another_person(other):
    seed, index, population = other
    changed, alone = simulate_person(seed, index, 15.0, population), simulate_person(7, 3, 15.0)
    assert np.abs(changed.signals[1].samples - alone.signals[1].samples).max() > 0.1


def test_a_longer_recording_is_of_the_same_person():
    short, long = simulate_person(2, 6, 15.0), simulate_person(2, 6, 40.0)
    assert short.demographics == long.demographics
    assert short.provenance["qrs_ms"] == long.provenance["qrs_ms"]
    assert short.provenance["device"] == long.provenance["device"]


def test_the_recording_says_what_it_is():
    recording = simulate_person(0, 12, 15.0)
    assert recording.simulated
    assert (recording.source, recording.person) == ("simulated", "person-000012")
    assert tuple(recording.leads) == LEADS
    assert [(s.unit, s.samples.size / s.fs_hz) for s in recording.signals] == [("mV", 15.0)] * 12 + [("NU", 15.0)]
    assert simulate_person(0, 12, 15.0, "other").person != recording.person


@pytest.mark.parametrize(
    "arguments", [(-1, 0, 10.0), (0, -1, 10.0), (0, 0, 0.0), (0, 0, float("nan")), (0, 0, 10.0, "sick")]
)
def test_what_cannot_be_simulated_is_refused(arguments):
    with pytest.raises(InputError):
        simulate_person(*arguments)


def test_an_incomplete_person_cannot_be_drawn():
    with pytest.raises(InputError, match="all four"):
        person_of(weight_kg=None)


@pytest.fixture(scope="module")
def crowd():
    return [simulate_person(11, index, 30.0) for index in range(40)]


def test_r_peaks_and_delay_can_be_found_again(crowd):
    scores, errors_s = [], []
    for recording in crowd:
        truth = recording.r_peaks_s
        found = signals.r_peaks(ecg_of(recording), 250.0)
        distance = np.abs(found[:, None] - truth)
        scores.append(2 * (distance.min(axis=0) < 0.05).sum() / (len(found) + len(truth)))
        delay_s, _, _ = signals.pulse_delay(found, signals.pulse_onsets(recording.signals[12].samples, 250.0))
        errors_s.append(delay_s - recording.provenance["delay_s"])
    assert np.mean(scores) >= 0.99
    assert np.median(np.abs(errors_s)) < 0.010
    assert np.max(np.abs(errors_s)) < 0.020


def test_the_population_spans_devices_rates_and_missing_fields(crowd):
    delays = [recording.provenance["delay_s"] for recording in crowd]
    assert min(delays) < 0.27
    assert max(delays) > 0.5
    rates = [recording.provenance["heart_rate_bpm"] for recording in crowd]
    assert np.percentile(rates, 90) - np.percentile(rates, 10) > 15
    heights = [recording.demographics.height_cm for recording in crowd]
    assert 0 < sum(height is None for height in heights) < 12


def test_the_other_population_has_devices_of_its_own(crowd):
    devices = {recording.provenance["device"] for recording in crowd}
    others = {simulate_person(11, index, 12.0, "other").provenance["device"] for index in range(20)}
    assert len(devices) >= 4
    assert len(others) >= 2
    assert not devices & others


def test_a_longer_qt_moves_the_end_of_t_by_as_much():
    person = person_of()
    ends = [span_s(median_beat(dataclasses.replace(person, qtcf_ms=qt)), 0.12, 0.6, 0.1)[1] for qt in (370.0, 440.0)]
    assert ends[1] - ends[0] == pytest.approx(0.070, abs=0.010)


def test_qt_follows_the_cube_root_of_the_interval():
    person = person_of()
    slow, fast = (span_s(median_beat(person, rr_s), 0.1, 0.55, 0.1)[1] for rr_s in (1.0, 0.7))
    assert (fast + 0.045) / (slow + 0.045) == pytest.approx(0.7 ** (1 / 3), abs=0.03)


def test_a_longer_pr_moves_p_earlier_by_as_much():
    person = person_of()
    starts = [span_s(median_beat(dataclasses.replace(person, pr_ms=pr)), -0.4, -0.06, 0.3)[0] for pr in (130.0, 190.0)]
    assert starts[0] - starts[1] == pytest.approx(0.060, abs=0.006)


def test_a_longer_qrs_is_longer_by_as_much():
    person = person_of()
    widths = []
    for qrs_ms in (75.0, 110.0):
        start, end = span_s(median_beat(dataclasses.replace(person, qrs_ms=qrs_ms)), -0.07, 0.09, 0.05)
        widths.append(end - start)
    assert widths[1] - widths[0] == pytest.approx(0.035, abs=0.010)


def test_the_axis_of_the_signal_is_the_axis_of_the_person():
    person = person_of()
    wanted = np.arange(-40.0, 100.0, 10.0)
    measured = [
        np.mean([frontal_axis_deg(median_beat(dataclasses.replace(person, axis_deg=axis), seed=s)) for s in range(6)])
        for axis in wanted
    ]
    assert np.corrcoef(wanted, measured)[0, 1] > 0.98
    assert np.abs(np.array(measured) - wanted).mean() < 15


@pytest.mark.parametrize(
    ("changes", "trait", "effect"),
    [
        ({"sex": Sex.FEMALE, "height_cm": 161.0, "weight_kg": 67.4}, "qtcf_ms", 11.0),
        ({"sex": Sex.FEMALE, "height_cm": 161.0, "weight_kg": 67.4}, "qrs_ms", -6.0),
        ({"height_cm": 184.0, "weight_kg": 88.0}, "pr_ms", 4.2),
        ({"age_years": 70.0}, "axis_deg", -12.0),
        ({"weight_kg": 93.8}, "axis_deg", -9.0),
    ],
)
def test_one_changed_field_has_the_published_effect_on_the_mean(changes, trait, effect):
    differences = [getattr(person_of(k, **changes), trait) - getattr(person_of(k), trait) for k in range(60)]
    assert np.mean(differences) == pytest.approx(effect, abs=1.0)


def test_people_of_equal_demographics_still_differ():
    people = [person_of(k) for k in range(60)]
    assert np.std([person.qtcf_ms for person in people]) > 10
    assert np.std([person.axis_deg for person in people]) > 15
    a, b = (median_beat(people[0], seed=s) for s in (1, 2))
    assert np.corrcoef(a[7], b[7])[0, 1] < 0.999


def test_the_true_delay_is_where_the_wave_rises_most():
    person, rng = person_of(), np.random.default_rng(3)
    rhythm = draw_rhythm(rng, person, 20.0)
    pulse = draw_pulse(rng, person, HEALTHY)
    starts_s = pulse_times(rng, person, pulse, rhythm)
    slope = np.gradient(pulse_wave(pulse, rhythm, starts_s, 20.0, 1000.0))
    for truth_s in steepest_rises(pulse, starts_s, rhythm.rr_s):
        if 0.5 < truth_s < 19.5:
            near = np.arange(round(1000 * truth_s) - 60, round(1000 * truth_s) + 60)
            assert near[np.argmax(slope[near])] / 1000 == pytest.approx(truth_s, abs=0.004)


def test_the_foot_of_the_pulse_is_pre_ejection_and_transit_time_after_r():
    person = person_of()
    pulse = draw_pulse(np.random.default_rng(3), person, HEALTHY)
    rhythm = steady(0.857)
    starts_s = pulse_times(np.random.default_rng(4), person, pulse, rhythm)
    pulse_ = pulse_wave(pulse, rhythm, starts_s, 8.0, 1000.0)
    slope = np.gradient(pulse_)
    feet_s = []
    for r_s in rhythm.r_peaks_s[3:10]:
        steepest = round(1000 * r_s) + 100 + int(np.argmax(slope[round(1000 * r_s) + 100 :][:300]))
        level = pulse_[steepest - 200 : steepest].min()
        feet_s.append((steepest - (pulse_[steepest] - level) / slope[steepest]) / 1000 - r_s)
    assert np.median(feet_s) == pytest.approx(person.pep_s + person.ptt_s, abs=0.015)


def test_ecg_noise_is_shared_between_leads_as_electrodes_share_it():
    noise = electrode_noise(np.random.default_rng(2), steady(0.9), 20_000, 250.0)
    muscle = noise[:, 2:] - 2 * noise[:, 1:-1] + noise[:, :-2]
    likeness = np.corrcoef(muscle)
    # I and II share RA; V1 and V2 share a third of each limb electrode: 3/9 of a variance of 1 + 3/9.
    assert likeness[0, 1] == pytest.approx(0.5, abs=0.05)
    assert likeness[2, 3] == pytest.approx(0.25, abs=0.05)
    assert 0.005 < np.std(noise[1]) < 0.1


def test_taller_people_have_later_and_older_people_earlier_pulses():
    assert person_of(height_cm=190.0).ptt_s > person_of(height_cm=160.0).ptt_s
    assert person_of(age_years=75.0).ptt_s < person_of(age_years=25.0).ptt_s


def test_breathing_moves_the_rhythm_of_the_young_more():
    spreads = []
    for age in (22.0, 75.0):
        people = [person_of(k, age_years=age) for k in range(20)]
        spreads.append(np.mean([draw_rhythm(np.random.default_rng(1), person, 60.0).rr_s.std() for person in people]))
    assert spreads[0] > 1.5 * spreads[1]


def test_a_person_takes_little_time():
    simulate_person(0, 0, 82.0)
    times = []
    for index in range(5):
        started = time.process_time()
        simulate_person(0, index, 82.0)
        times.append(time.process_time() - started)
    assert min(times) < 0.06


@pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_record_comes_back_from_wfdb_as_it_went(tmp_path, index):
    import wfdb

    recording = simulate_person(5, index, 20.0)
    header = write_wfdb(recording, tmp_path)
    record, marks = wfdb.rdrecord(str(header.with_suffix(""))), wfdb.rdann(str(header.with_suffix("")), "atr")
    assert record.sig_name == [*LEADS, "Pleth"]
    assert record.units == ["mV"] * 12 + ["NU"]
    np.testing.assert_allclose(record.p_signal[:, :12].T, ecg_of(recording), atol=0.00051)
    ppg = recording.signals[12].samples
    np.testing.assert_allclose(record.p_signal[:, 12], ppg, atol=1e-4 * np.ptp(ppg))
    np.testing.assert_allclose(marks.sample / marks.fs, recording.r_peaks_s, atol=0.0021)
    assert set(marks.symbol) == {"N"}
    assert f"person: {recording.person}" in record.comments
    assert any("SYNTHETIC" in comment for comment in record.comments)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".atr", ".dat", ".hea"]


def signal_of(name, samples, fs_hz, kind=SignalKind.ECG):
    return Signal(name, kind, samples, fs_hz, "mV" if kind is SignalKind.ECG else "NU")


@pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")
def test_two_rates_and_gaps_survive_wfdb(tmp_path):
    import wfdb

    ecg, ppg = np.sin(np.arange(2000) / 9), np.cos(np.arange(1000) / 30)
    ecg[100:200], ppg[50:60] = np.nan, np.nan
    signals_ = (signal_of("II", ecg, 250.0), signal_of("Pleth", ppg, 125.0, SignalKind.PPG))
    header = write_wfdb(Recording("two-rates", "s", "p", signals_, Demographics()), tmp_path)
    record = wfdb.rdrecord(str(header.with_suffix("")), smooth_frames=False)
    np.testing.assert_allclose(record.e_p_signal[0], ecg, atol=0.00051)
    np.testing.assert_allclose(record.e_p_signal[1], ppg, atol=1e-4)
    assert "SYNTHETIC" not in header.read_text()


@pytest.mark.parametrize(
    "signals_",
    [
        (),
        (signal_of("I", np.zeros(100), 100.0), signal_of("II", np.zeros(100), 70.0)),
        (signal_of("I", np.zeros(100), 100.0), signal_of("II", np.zeros(90), 100.0)),
    ],
)
def test_what_does_not_fit_in_a_record_is_refused_and_leaves_nothing(tmp_path, signals_):
    with pytest.raises(InputError):
        write_wfdb(Recording("odd", "s", "p", signals_), tmp_path)
    assert not list(tmp_path.iterdir())


def digest(folder):
    files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_any_partition_of_the_people_gives_the_same_bytes(tmp_path):
    config = SimulateConfig(people=5, duration_s=12.0, seed=4)
    for name, batches in {"one": [range(5)], "many": [range(3, 5), range(1), range(1, 3)]}.items():
        for batch in batches:
            simulate.simulate_batch(config, "healthy", batch, str(tmp_path / name))
    assert digest(tmp_path / "one") == digest(tmp_path / "many")
    assert len(digest(tmp_path / "one")) == 15


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    config = SimulateConfig(people=2, duration_s=12.0)
    with pytest.raises(DatasetError, match="no space left"):
        simulate.simulate_batch(config, "healthy", range(2), str(tmp_path))
    assert not list(tmp_path.glob("*.hea"))
    assert not list(tmp_path.glob("truth/*.jsonl"))


@pytest.mark.parametrize("config", [SimulateConfig(people=0), SimulateConfig(duration_s=5.0), SimulateConfig(seed=-1)])
def test_a_recipe_that_cannot_work_is_refused(tmp_path, config):
    recipe = dataclasses.replace(demo(), simulate=config)
    with pytest.raises(ConfigError):
        simulate.run(recipe, Settings(P2ES_STORAGE=str(tmp_path)))


def test_an_archive_is_written_once_and_taken_up_where_it_stopped(tmp_path, local_ray):
    recipe = dataclasses.replace(demo(), simulate=SimulateConfig(people=18, duration_s=12.0, seed=4))
    settings = Settings(P2ES_STORAGE=str(tmp_path))
    first = simulate.run(recipe, settings)
    folder = Path(first.folder)
    before = digest(folder)
    names = (folder / "RECORDS").read_text().split()
    assert (first.people, first.reused) == (18, False)
    assert sorted(f"{name}.hea" for name in names) == sorted(path.name for path in folder.glob("*.hea"))
    truth = [json.loads(line) for path in sorted(folder.glob("truth/*")) for line in path.read_text().splitlines()]
    assert [row["record"] for row in truth] == names
    assert all(0.1 < row["delay_s"] < 0.7 for row in truth)
    assert simulate.run(recipe, settings).reused

    # What a killed run leaves: no list of records, and a batch half done.
    kept = (folder / f"{names[0]}.dat").stat().st_mtime_ns
    (folder / "RECORDS").unlink()
    (folder / "truth" / "0000016-2.jsonl").unlink()
    (folder / f"{names[17]}.hea").unlink()
    again = simulate.run(recipe, settings)
    assert not again.reused
    assert digest(folder) == before
    assert (folder / f"{names[0]}.dat").stat().st_mtime_ns == kept
