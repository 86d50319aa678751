import contextlib
import dataclasses
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import monitored

from p2es import segmenting
from p2es.errors import RecordError
from p2es.formats import find_records, read
from p2es.lead_laws import broken_or_noisy
from p2es.leads import LEADS, law_residuals
from p2es.recording import LazySamples, Recording, Signal, SignalKind
from p2es.segmenting import segment
from p2es.signals import bandpass_ecg, resample
from p2es.simulator import ECG_FS_HZ
from p2es.windows import ECG_SAMPLES, FS_HZ, MARGIN_SAMPLES, PPG_SAMPLES, decode, encode


def ids(*parts):
    return "/".join(parts)


def cut(recording, step_s=10.0, **options):
    return segment(recording, step_s=step_s, ids=ids, **options)


@pytest.fixture(scope="module")
def person():
    return monitored(1, 11, 62.0)


def only(recording, *names, ppg=True):
    kept = [s for s in recording.signals if s.lead in names or (ppg and s.kind is SignalKind.PPG)]
    return dataclasses.replace(recording, signals=tuple(kept))


def changed(recording, change, kind=None, lead=None):
    """Give the recording with `change(samples)` made to the signals of a kind or lead."""

    def applies(s):
        return (kind is None or s.kind is kind) and (lead is None or s.lead == lead)

    signals = [dataclasses.replace(s, samples=change(s.samples.copy())) if applies(s) else s for s in recording.signals]
    return dataclasses.replace(recording, signals=tuple(signals))


def gap(start_s, end_s, fs_hz):
    def change(samples):
        samples[int(start_s * fs_hz) : int(end_s * fs_hz)] = np.nan
        return samples

    return change


def test_windows_stand_on_their_step_and_leave_room_for_the_pulse(person):
    windows = cut(person).windows
    assert [w.start_s for w in windows] == [1.0, 11.0, 21.0, 31.0, 41.0, 51.0]
    assert all(w.ppg_mask.all() for w in windows[:-1])
    assert len({w.window_id for w in windows}) == 6
    assert [w.start_s for w in cut(person, step_s=25.0).windows] == [1.0, 26.0, 51.0]


def test_a_window_is_the_recording_at_that_time(person):
    from scipy import signal as scipy_signal

    window = cut(person).windows[2]
    sos = scipy_signal.butter(2, (0.5, 40), "bandpass", fs=FS_HZ, output="sos")
    for lead in ("II", "V3"):
        # The oracle resamples by its Fourier series, all sixty seconds at once.
        raw = person.leads[lead].read().astype(np.float64)
        expected = scipy_signal.sosfiltfilt(sos, scipy_signal.resample(raw, round(62 * FS_HZ)))
        expected = expected[round(window.start_s * FS_HZ) :][:ECG_SAMPLES]
        np.testing.assert_allclose(window.ecg[LEADS.index(lead)], expected, atol=0.01)


def test_the_laws_hold_in_every_window(person):
    for window in cut(person).windows:
        assert np.abs(law_residuals(window.ecg)).max() < 1e-3


@pytest.mark.parametrize(("first", "second"), [("II", "aVR"), ("II", "III"), ("I", "III")])
def test_two_limb_leads_of_a_monitor_make_six(person, first, second):
    whole, pair = cut(person).windows[1], cut(only(person, first, second)).windows[1]
    assert pair.lead_mask.tolist() == [True] * 6 + [False] * 6
    np.testing.assert_allclose(pair.ecg[:6], whole.ecg[:6], atol=0.02)
    assert not pair.ecg[6:].any()


def test_lead_iii_alone_stays_alone(person):
    window = cut(only(person, "III")).windows[0]
    assert [name for name, real in zip(LEADS, window.lead_mask, strict=True) if real] == ["III"]


def test_ecg_alone_and_ppg_alone_are_windows(person):
    ecg_only = cut(only(person, *LEADS, ppg=False)).windows
    assert [w.start_s for w in ecg_only] == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
    assert all(w.ppg is None and w.ppg_channels == () and w.delay_s is None for w in ecg_only)
    ppg_only = cut(only(person)).windows
    assert len(ppg_only) == 6
    assert all(w.ecg is None and not w.lead_mask.any() for w in ppg_only)
    for before, after in zip([*ecg_only, *ppg_only], decode(encode([*ecg_only, *ppg_only])), strict=True):
        assert (before.ecg is None, before.ppg is None) == (after.ecg is None, after.ppg is None)


def test_ten_seconds_of_twelve_leads_are_one_window(person):
    short = changed(only(person, *LEADS, ppg=False), lambda x: x[: int(10 * ECG_FS_HZ)])
    (window,) = cut(short).windows
    assert window.start_s == 0
    assert window.lead_mask.all()


def test_a_recording_without_room_for_margins_has_them_masked(person):
    fs_hz = {s.name: s.fs_hz for s in person.signals}
    signals = tuple(dataclasses.replace(s, samples=s.samples[: int(10.5 * fs_hz[s.name])]) for s in person.signals)
    (window,) = cut(dataclasses.replace(person, signals=signals)).windows
    assert not window.ppg_mask[:MARGIN_SAMPLES].any()
    assert window.ppg_mask[MARGIN_SAMPLES : MARGIN_SAMPLES + ECG_SAMPLES].all()
    assert not window.ppg[:, ~window.ppg_mask].any()


def test_a_gap_costs_its_windows_and_no_other(person):
    holed = changed(person, gap(23, 24, ECG_FS_HZ), kind=SignalKind.ECG)
    result = cut(holed)
    assert [w.start_s for w in result.windows if w.ecg is None] == [21.0]
    assert result.rejected == {}
    assert result.notes == {"ecg_missing": 1}
    result = cut(changed(holed, gap(22, 29, ECG_FS_HZ), kind=SignalKind.PPG))
    assert [w.start_s for w in result.windows] == [1.0, 11.0, 31.0, 41.0, 51.0]
    assert result.rejected == {"ppg_missing": 1}


def test_a_lead_with_a_gap_is_given_by_the_others(person):
    result = cut(changed(person, gap(23, 24, ECG_FS_HZ), lead="aVL"))
    assert all(w.lead_mask.all() for w in result.windows)
    chest = cut(changed(person, gap(23, 24, ECG_FS_HZ), lead="V4"))
    assert [w.lead_mask.all() for w in chest.windows] == [True, True, False, True, True, True]


def test_a_dead_lead_beside_live_ones_is_absent(person):
    windows = cut(changed(person, np.zeros_like, lead="V2")).windows
    assert all(not w.lead_mask[LEADS.index("V2")] and w.lead_mask.sum() == 11 for w in windows)


@pytest.mark.parametrize(
    ("ecg", "reason"),
    [(np.zeros_like, "ecg_flat"), (lambda x: np.random.default_rng(0).standard_normal(x.size), "ecg_poor")],
)
def test_an_unusable_ecg_is_counted_by_its_reason(person, ecg, reason):
    result = cut(changed(only(person, "II", ppg=False), ecg))
    assert result.windows == ()
    assert result.rejected == {reason: 6}


@pytest.mark.parametrize(
    ("ppg", "reason"),
    [(np.zeros_like, "ppg_flat"), (lambda x: np.random.default_rng(0).standard_normal(x.size), "ppg_poor")],
)
def test_an_unusable_ppg_is_left_out_and_told_and_the_ecg_kept(person, ppg, reason):
    result = cut(changed(person, ppg, kind=SignalKind.PPG))
    assert result.notes == {reason: 6}
    assert result.rejected == {}
    assert all(w.ppg is None and w.lead_mask.all() for w in result.windows)


def test_a_recording_that_is_too_short_says_so(person):
    assert cut(changed(person, lambda x: x[:1200])).rejected == {"shorter_than_a_window": 1}


def test_the_pulse_delay_is_the_simulated_one_and_is_not_applied(person):
    errors = []
    for index in range(6):
        recording = monitored(2, index, 62.0)
        window = cut(recording).windows[0]
        errors.append(window.delay_s - recording.provenance["delay_s"])
        assert window.delay_confidence > 0.3
    assert np.median(np.abs(errors)) < 0.02
    later = changed(person, lambda x: np.roll(x, round(0.2 * ECG_FS_HZ)), kind=SignalKind.PPG)
    moved, still = cut(later).windows[2], cut(person).windows[2]
    assert moved.delay_s - still.delay_s == pytest.approx(0.2, abs=0.02)
    lag = np.argmax(np.correlate(moved.ppg[0], still.ppg[0], "full")) - (PPG_SAMPLES - 1)
    assert lag / FS_HZ == pytest.approx(0.2, abs=0.02)


def test_an_ecg_of_unknown_lead_and_unit_still_tells_the_delay(person):
    lead = person.leads["V5"]
    unknown = dataclasses.replace(lead, samples=lead.samples * 200, unit="unknown", lead=None)
    ppg = person.of_kind(SignalKind.PPG)
    window = cut(dataclasses.replace(person, signals=(unknown, *ppg))).windows[0]
    assert window.ecg is None
    assert window.delay_s == pytest.approx(cut(person).windows[0].delay_s, abs=0.03)


def test_gain_of_the_ppg_and_rate_of_the_recording_do_not_change_the_windows(person):
    before = cut(person).windows[2]
    loud = cut(changed(person, lambda x: 1000 * x - 5000, kind=SignalKind.PPG)).windows[2]
    np.testing.assert_allclose(loud.ppg, before.ppg, atol=2e-3)
    signals = tuple(
        dataclasses.replace(s, samples=resample(s.samples.astype(np.float64), s.fs_hz, 199.7), fs_hz=199.7)
        for s in person.signals
    )
    slow = cut(dataclasses.replace(person, signals=signals)).windows[2]
    assert np.corrcoef(slow.ppg[0], before.ppg[0])[0, 1] > 0.999
    assert np.corrcoef(slow.ecg[1], before.ecg[1])[0, 1] > 0.998


def test_leads_scaled_each_on_its_own_are_refused(person):
    with pytest.raises(RecordError, match="Einthoven") as refused:
        cut(changed(person, lambda x: 1.4 * x, lead="II"))
    assert refused.value.reason == "lead_laws"
    # Two leads cannot contradict each other.
    assert cut(only(changed(person, lambda x: 1.4 * x, lead="II"), "I", "II")).windows


def test_swapped_arms_break_no_law_and_mislabelled_leads_do(person):
    leads = person.leads
    names = {"I": "II", "II": "I"}
    swapped = tuple(
        dataclasses.replace(s, samples=leads[names[s.lead]].samples) if s.lead in names else s for s in person.signals
    )
    with pytest.raises(RecordError, match="Einthoven"):
        cut(dataclasses.replace(person, signals=swapped))


def test_a_recording_in_microvolt_called_millivolt_gives_no_target(person):
    result = cut(changed(only(person, "II", ppg=False), lambda x: 1000 * x))
    assert result.windows == ()
    assert result.rejected == {"amplitude": 6}


def test_a_recording_of_nothing_of_use_is_refused():
    noise = Signal("ECG 1", SignalKind.ECG, np.random.default_rng(0).standard_normal(5000), 100.0, "unknown")
    with pytest.raises(RecordError, match="neither"):
        cut(Recording("r", "s", "p", (noise,)))


def test_enrolment_names_an_earlier_window_with_all_leads(person):
    windows = cut(changed(person, gap(3, 4, ECG_FS_HZ), lead="V1")).windows
    assert [w.enrolment for w in windows] == [None, None, *[windows[1].window_id] * 4]


def test_annotated_beats_are_those_of_the_window(person):
    for window in cut(person).windows:
        absolute = window.start_s + window.r_peaks_s
        inside = (person.r_peaks_s >= window.start_s) & (person.r_peaks_s < window.start_s + 10)
        np.testing.assert_allclose(absolute, person.r_peaks_s[inside], atol=1e-5)


def test_real_recordings_give_windows_whose_delay_is_of_the_device(recordings):
    for folder, name, low, high in (
        ("wfdb", "mixedsignals", 0.38, 0.43),
        ("bidmc", "bidmc_01_Signals.csv", 0.5, 0.6),
        ("ncku", "125_static", 0.5, 0.6),
        ("neurokit", "bio", 0.32, 0.36),
        # 126 bpm: the pulse of the beat before would come 50 ms after the R peak, which no pulse does.
        ("wfdb", "a103l", 0.5, 0.56),
    ):
        reference = next(r for r in find_records(str(recordings / folder)) if r.name.startswith(name))
        (recording,) = read(reference, folder)
        windows = cut(recording).windows
        assert len(windows) >= 12
        assert low < windows[0].delay_s < high
        assert windows[0].delay_confidence > 0.5


def flags_of_real(folder):
    for reference in find_records(str(folder)):
        for recording in read(reference, folder.name):
            for window in cut(recording).windows:
                yield window, set(window.flags)


def test_the_gains_of_ludb_are_mended_and_those_of_no_other(recordings):
    """Its headers scale each lead on its own: the laws say that converter steps are microvolt (README, trap 2)."""
    found = list(flags_of_real(recordings / "ludb"))
    assert len(found) == 80
    assert all("gains_repaired" in flags for _, flags in found)
    residuals_mv = [np.abs(law_residuals(window.ecg)).max() for window, _ in found if window.lead_mask.all()]
    assert len(residuals_mv) >= 75
    # What steps of a microvolt leave.
    assert max(residuals_mv) < 0.003
    assert not any("gains_repaired" in flags for _, flags in flags_of_real(recordings / "cinc2021"))


def counted(result):
    return result.candidates == len(result.windows) + sum(result.rejected.values())


def in_stretches(recording, stretch_s=30.0, **options):
    """Cut with stretches so short that the recording takes several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmenting, "_STRETCH_S", stretch_s)
        parts = list(segmenting.cut(recording, **{"step_s": 10.0, "ids": ids, **options}))
    assert len(parts) > 1
    assert all(counted(part) for part in parts)
    return parts


def at_rates(recording, ecg_hz, ppg_hz, ppg_start_s=0.0):
    """Give two leads and the PPG at other rates, as irrational as they come."""
    signals = []
    for s in only(recording, "II", "V3").signals:
        fs_hz, start_s = (ecg_hz, 0.0) if s.lead else (ppg_hz, ppg_start_s)
        samples = resample(s.samples.astype(np.float64), s.fs_hz, fs_hz)
        signals.append(dataclasses.replace(s, samples=samples, fs_hz=fs_hz, start_s=start_s))
    return dataclasses.replace(recording, signals=tuple(signals))


@pytest.fixture(scope="module")
def longer():
    return monitored(7, 3, 150.0)


@pytest.mark.parametrize("rates", [(250.0, 250.0), (249.89, 124.945), (500.0, 62.4725), (360.0, 125.0)])
@pytest.mark.parametrize("holed", [False, True])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_a_window_of_a_stretch_is_the_window_of_the_whole(longer, rates, holed, offset):
    recording = at_rates(longer, *rates, ppg_start_s=0.123)
    recording = changed(recording, lambda x: x + offset)
    if holed:
        for kind, fs_hz in zip((SignalKind.ECG, SignalKind.PPG), rates, strict=True):
            for start_s, end_s in ((37.0, 37.1), (62.0, 63.5), (88.0, 113.0)):
                recording = changed(recording, gap(start_s, end_s, fs_hz), kind=kind)
    whole = cut(recording, step_s=7.3)
    parts = in_stretches(recording, step_s=7.3)
    windows = [window for part in parts for window in part.windows]
    assert [w.window_id for w in windows] == [w.window_id for w in whole.windows]
    assert sum(part.candidates for part in parts) == whole.candidates
    assert sum((Counter(part.rejected) for part in parts), Counter()) == Counter(whole.rejected)
    for part, of_whole in zip(windows, whole.windows, strict=True):
        assert (part.ecg is None, part.ppg is None) == (of_whole.ecg is None, of_whole.ppg is None)
        if part.ecg is not None:
            np.testing.assert_allclose(part.ecg, of_whole.ecg, atol=1e-5)
        if part.ppg is not None:
            np.testing.assert_array_equal(part.ppg_mask, of_whole.ppg_mask)
            np.testing.assert_allclose(part.ppg, of_whole.ppg, atol=1e-5)
    assert windows[0].delay_s == pytest.approx(whole.windows[0].delay_s, abs=0.01)


def test_lazy_samples_give_the_windows_of_samples_in_memory(longer):
    def lazy(s):
        samples = np.asarray(s.samples)
        return dataclasses.replace(s, samples=LazySamples(samples.size, lambda start, stop: samples[start:stop]))

    recording = only(longer, "I", "II")
    filed = dataclasses.replace(recording, signals=tuple(lazy(s) for s in recording.signals))
    table, of_file = (encode([w for part in in_stretches(r) for w in part.windows]) for r in (recording, filed))
    for column in ("window_id", "content", "fingerprint", "delay_s", "ppg_noise", "heart_rate_bpm"):
        assert table[column].equals(of_file[column])


def test_enrolment_reaches_over_stretches(longer):
    recording = changed(longer, gap(0, 35, ECG_FS_HZ), lead="V1")
    windows = [w for part in in_stretches(recording) for w in part.windows]
    first = next(w.window_id for w in windows if w.lead_mask.all())
    assert {w.enrolment for w in windows if w.start_s > 41} == {first}


@given(
    duration_s=st.floats(0.5, 60),
    step_s=st.sampled_from([2.5, 10.0, 17.3]),
    holes=st.lists(st.tuples(st.floats(0, 60), st.floats(0.01, 20), st.sampled_from(["ecg", "ppg", None])), max_size=5),
    value=st.sampled_from([np.nan, 0.0, np.inf, 3.0]),
)
@settings(max_examples=60, deadline=None)
def test_every_place_for_a_window_is_accounted_for(person, duration_s, step_s, holes, value):
    recording = changed(only(person, "I", "II", "III", "V2"), lambda x: x[: int(duration_s * 250)])
    for start_s, length_s, kind in holes:
        part = slice(int(start_s * 250), int((start_s + length_s) * 250))

        def hole(samples, part=part):
            samples[part] = value
            return samples

        recording = changed(recording, hole, kind=kind)
    result = cut(recording, step_s=step_s)
    samples = int(int(duration_s * 250) / 250 * FS_HZ + 1e-6)
    first = MARGIN_SAMPLES if samples >= ECG_SAMPLES + MARGIN_SAMPLES else 0
    places = max(len(range(first, samples - ECG_SAMPLES + 1, round(step_s * FS_HZ))), 1)
    assert result.candidates == places
    assert counted(result)
    for window in result.windows:
        assert window.ecg is None or np.isfinite(window.ecg).all()
        assert window.ppg is None or np.isfinite(window.ppg).all()


@given(
    fs_hz=st.floats(1.0, 100_000.0), size=st.integers(0, 4000), start_s=st.floats(0, 30), scale=st.floats(1e-30, 1e30),
    kinds=st.lists(st.sampled_from(["II", "V1", None, "PPG"]), min_size=1, max_size=3), seed=st.integers(0, 9),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_samples_at_any_rate_give_windows_or_a_reason(fs_hz, size, start_s, scale, kinds, seed):
    rng = np.random.default_rng(seed)
    signals = []
    for k, kind in enumerate(kinds):
        samples = rng.choice([0.0, 1.0, np.nan, scale, -scale], size) if seed % 2 else scale * rng.standard_normal(size)
        ecg = kind != "PPG"
        signals.append(
            Signal(f"s{k}", SignalKind.ECG if ecg else SignalKind.PPG, samples.astype(np.float32), fs_hz,
                   "mV", start_s * (k > 0), kind if ecg else None)
        )  # fmt: skip
    # Only this error may come, when nothing at all is of use.
    with contextlib.suppress(RecordError):
        assert counted(cut(Recording("r", "s", "p", tuple(signals))))


def with_gains(recording, gains):
    """Let a file say of each lead that it has a gain of its own, with the same converter steps."""
    signals = [
        dataclasses.replace(s, samples=np.round(s.samples * 1000) / gains[s.lead], gain=gains[s.lead]) if s.lead else s
        for s in recording.signals
    ]
    return dataclasses.replace(recording, signals=tuple(signals))


@given(seed=st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_wrong_gains_are_mended_by_the_steps_where_the_file_tells_them_and_refused_where_not(person, seed):
    drawn = 1000.0 * np.exp(np.random.default_rng(seed).uniform(-0.7, 0.7, 12))
    wrong = with_gains(person, dict(zip(LEADS, drawn, strict=True)))
    mended = cut(wrong)
    for window, truth in zip(mended.windows, cut(person).windows, strict=True):
        assert "gains_repaired" in window.flags
        np.testing.assert_allclose(window.ecg, truth.ecg, atol=2e-3)
    untold = tuple(dataclasses.replace(s, gain=None) for s in wrong.signals)
    with pytest.raises(RecordError) as refused:
        cut(dataclasses.replace(wrong, signals=untold))
    assert refused.value.reason == "lead_laws"
    # Steps of 0.1 microvolt would be taken for a heart ten times too large.
    tiny = [dataclasses.replace(s, gain=s.gain * 10) if s.gain else s for s in wrong.signals]
    with pytest.raises(RecordError, match="Einthoven"):
        cut(dataclasses.replace(wrong, signals=tuple(tiny)))


def test_a_stretch_that_breaks_the_laws_costs_its_windows(person):
    def louder(samples):
        samples[int(21.5 * ECG_FS_HZ) : int(34 * ECG_FS_HZ)] *= 1.6
        return samples

    result = cut(changed(person, louder, lead="II"))
    assert result.notes == {"lead_laws": 2}
    assert [w.start_s for w in result.windows if w.ecg is None] == [21.0, 31.0]
    assert cut(changed(only(person, *LEADS, ppg=False), louder, lead="II")).rejected == {"lead_laws": 2}


def test_exchanged_leads_are_named_in_the_refusal(person):
    leads = person.leads
    names = {"aVL": "aVF", "aVF": "aVL"}
    swapped = [
        dataclasses.replace(s, samples=leads[names[s.lead]].samples) if s.lead in names else s for s in person.signals
    ]
    with pytest.raises(RecordError, match="aVL and aVF seem to be exchanged"):
        cut(dataclasses.replace(person, signals=tuple(swapped)))


def overflowing(person, start_s=23.0):
    """Give lead V2 as a 12-bit converter has it that a movement of the electrode drives out of its range."""
    time_s = np.arange(person.leads["V2"].samples.size) / ECG_FS_HZ
    swing = 12.0 * np.exp(-0.5 * ((time_s - start_s) / 0.7) ** 2)
    return lambda x: ((np.round((x + swing) * 400) + 2048) % 4096 - 2048) / 400


def test_an_overflow_costs_its_own_windows_and_does_not_poison_the_next(person):
    wrapped = changed(only(person, "V2", ppg=False), overflowing(person), lead="V2")
    wrapped = dataclasses.replace(wrapped, signals=tuple(dataclasses.replace(s, gain=400.0) for s in wrapped.signals))
    result, clean = cut(wrapped), cut(only(person, "V2", ppg=False))
    assert result.rejected == {"ecg_wrapped": 1}
    assert [w.start_s for w in result.windows] == [0.0, 10.0, 30.0, 40.0, 50.0]
    for window in result.windows:
        same = next(w for w in clean.windows if w.start_s == window.start_s)
        # What stays is the swing's own foot, not a jump of ten millivolt through the filter.
        np.testing.assert_allclose(window.ecg[7], same.ecg[7], atol=0.05)


def test_a_clipped_ppg_and_a_clipped_lead_have_reasons_of_their_own(person):
    squeezed = changed(person, lambda x: np.clip(x, np.quantile(x, 0.25), np.quantile(x, 0.75)), kind=SignalKind.PPG)
    assert cut(squeezed).notes == {"ppg_clipped": 6}
    railed = changed(only(person, "II", ppg=False), lambda x: np.clip(x, -0.2, 0.25))
    assert cut(railed).rejected == {"ecg_clipped": 6}


def test_a_factor_is_flagged_and_a_wrong_unit_is_refused(person):
    assert all(w.flags == () for w in cut(person).windows)
    assert all("amplitude" in w.flags for w in cut(changed(person, lambda x: 5 * x, kind=SignalKind.ECG)).windows)
    assert all("amplitude" in w.flags for w in cut(changed(person, lambda x: x / 5, kind=SignalKind.ECG)).windows)
    assert all(w.flags == ("amplitude:V2",) for w in cut(changed(person, lambda x: 6 * x, lead="V2")).windows)
    for factor in (1e3, 1e-3):
        result = cut(changed(person, lambda x, f=factor: f * x, kind=SignalKind.ECG))
        assert result.notes == {"amplitude": 6}
        assert all(w.ecg is None for w in result.windows)


def test_a_dead_channel_beside_a_live_one_is_left_out(person):
    ppg = person.signals[12]
    dead = dataclasses.replace(ppg, name="red", samples=np.full(ppg.samples.size, np.nan))
    both = dataclasses.replace(person, signals=(*person.signals[:12], dead, ppg))
    result = cut(both)
    assert [w.ppg_channels for w in result.windows] == [("Pleth",)] * 6
    np.testing.assert_array_equal(result.windows[2].ppg, cut(person).windows[2].ppg)


def test_the_figures_of_a_window_say_what_it_is(person):
    window = cut(changed(person, gap(25, 26, ECG_FS_HZ), kind=SignalKind.PPG)).windows[2]
    assert window.ppg_missing == pytest.approx(1 / 12, abs=0.001)
    assert (window.ppg_flat, window.ppg_clipped, window.ppg_wrapped) == (0.0, 0.0, 0.0)
    assert window.ppg_noise < 0.3
    assert window.lead_noise.shape == window.lead_missing.shape == (12,)
    assert window.heart_rate_bpm == pytest.approx(60 / np.median(np.diff(window.r_peaks_s)), rel=0.03)
    alone = cut(only(person)).windows[2]
    assert alone.heart_rate_bpm == pytest.approx(window.heart_rate_bpm, rel=0.04)
    assert alone.lead_quality is None or np.isnan(alone.lead_quality).all()
    assert window.fingerprint


def test_real_wrapped_records_are_refused_as_wrapped(recordings):
    for name in ("v102s", "fixed1/v102s"):
        for reference in find_records(str(recordings / "wfdb")):
            if reference.name.endswith(name):
                for recording in read(reference, "wfdb", []):
                    result = cut(recording)
                    assert set(result.rejected) == {"ppg_wrapped"}
                    assert not result.windows


def test_dead_leads_of_a_real_record_are_not_in_its_mask(recordings):
    (reference,) = (r for r in find_records(str(recordings / "cinc2021")) if r.name.endswith("JS20004"))
    (recording,) = read(reference, "cinc2021")
    (window,) = cut(recording).windows
    assert [name for name, real in zip(LEADS, window.lead_mask, strict=True) if not real] == ["V2", "V4", "V6"]
    assert (window.lead_flat[[7, 9, 11]] == 1).all()


_A_DAY = """
import resource, sys
import numpy as np
from p2es.recording import LazySamples, Recording, Signal, SignalKind
from p2es.segmenting import cut

hours = float(sys.argv[1])
minute = monitored(3, 5, 60.0)

def filed(signal):
    def load(start, stop):
        return np.take(signal.samples, np.arange(start, stop) % signal.samples.size).astype(np.float32)
    samples = LazySamples(int(hours * 3600 * 250), load)
    return Signal(signal.name, signal.kind, samples, 250.0, signal.unit, lead=signal.lead)

recording = Recording("r", "s", "p", tuple(filed(minute.signals[k]) for k in (0, 1, 12)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
windows = sum(len(part.windows) for part in cut(recording, step_s=10.0, ids=lambda *parts: "/".join(parts)))
print(windows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_a_day_takes_no_more_memory_than_an_hour():
    growth_mb = []
    for hours in (1, 24):
        told = subprocess.run(
            [sys.executable, "-c", _A_DAY, str(hours)], capture_output=True, text=True, check=True, timeout=300
        )
        windows, mb = told.stdout.split()
        assert int(windows) >= hours * 360 - 2
        growth_mb.append(float(mb))
    assert growth_mb[1] < 100
    assert growth_mb[1] < growth_mb[0] + 20


@pytest.mark.parametrize("gain", [16.0, 29.0, 64.0])
def test_coarse_steps_do_not_break_the_lead_laws(gain):
    fine = monitored(5, 3, 62.0)
    signals = tuple(
        s
        if s.kind is SignalKind.PPG
        else dataclasses.replace(s, samples=(np.round(s.read() * gain) / gain).astype(np.float32), gain=gain)
        for s in fine.signals
    )
    coarse = segment(dataclasses.replace(fine, signals=signals), step_s=10.0, ids=lambda *parts: "-".join(parts))
    assert all(window.lead_mask[:6].all() for window in coarse.windows)
    assert len(coarse.windows) == len(segment(fine, step_s=10.0, ids=lambda *parts: "-".join(parts)).windows)


def noisy(recording, noise_mv, seed=0):
    """Give each limb lead noise of its own, `noise_mv` RMS in the band that is stored."""
    rng = np.random.default_rng(seed)

    def with_noise(signal):
        if signal.lead not in LEADS[:6]:
            return signal
        noise = bandpass_ecg(rng.standard_normal(signal.samples.size), ECG_FS_HZ)
        return dataclasses.replace(signal, samples=signal.samples + noise_mv * noise / noise.std())

    return dataclasses.replace(recording, signals=tuple(map(with_noise, recording.signals)))


@pytest.mark.parametrize("names", [LEADS, ("I", "II", "III"), ("II", "aVR", "aVF", "V1")])
def test_noise_of_the_converters_is_no_break_of_the_lead_laws(person, names):
    result = cut(noisy(only(person, *names), 0.02))
    assert "lead_laws" not in result.notes
    assert len(result.windows) == 6
    for window in result.windows:
        assert window.lead_mask[:6].all()
        assert "lead_laws_noise" in window.flags
    assert not any("lead_laws_noise" in window.flags for window in cut(noisy(only(person, *names), 0.005)).windows)


def test_noise_beyond_what_converters_have_breaks_the_lead_laws(person):
    with pytest.raises(RecordError, match="Einthoven"):
        cut(noisy(person, 0.05))


def test_noise_hides_no_wrong_gain_unit_or_name(person):
    loud = noisy(person, 0.02)
    quiet = dict(zip(("aVL", "aVF"), ("aVF", "aVL"), strict=True))
    exchanged = [
        dataclasses.replace(s, samples=loud.leads[quiet[s.lead]].samples) if s.lead in quiet else s
        for s in loud.signals
    ]
    wrong = [
        dataclasses.replace(loud, signals=tuple(exchanged)),
        changed(loud, lambda x: -x, lead="aVL"),
        changed(loud, lambda x: 1.6 * x, lead="II"),
        changed(loud, lambda x: 0.5 * x, lead="I"),
        changed(loud, lambda x: 1000 * x, lead="II"),
        changed(loud, lambda x: np.roll(x, 4), lead="II"),
    ]
    for recording in wrong:
        with pytest.raises(RecordError) as refused:
            cut(recording)
        assert refused.value.reason == "lead_laws"


def test_real_limb_leads_take_noise_and_show_what_is_wrong(recordings):
    """With noise they are kept and flagged; with a wrong gain or exchanged leads they are not, as without noise."""
    kept = refused = 0
    for folder in ("cinc2021", "cpsc2018"):
        for reference in find_records(str(recordings / folder)):
            (recording,) = read(reference, folder)
            in_file = {name: (s.fs_hz, s.read().astype(np.float64)) for name, s in recording.leads.items()}
            limb = resample(np.stack([in_file[name][1] for name in LEADS[:6]]), in_file["I"][0], FS_HZ)
            limb = bandpass_ecg(limb, FS_HZ)[:, :ECG_SAMPLES]
            own = bandpass_ecg(np.random.default_rng(1).standard_normal(limb.shape), FS_HZ)
            loud = limb + 0.02 * own / own.std(axis=1, keepdims=True)
            assert not broken_or_noisy(LEADS[:6], limb)[0]
            assert not broken_or_noisy(LEADS[:6], limb)[1]
            kept += not broken_or_noisy(LEADS[:6], loud)[0]
            for wrong in (loud[[0, 1, 2, 3, 5, 4]], loud * np.array([1, 1.6, 1, 1, 1, 1])[:, None]):
                refused += bool(broken_or_noisy(LEADS[:6], wrong)[0])
    assert kept == 27
    assert refused == 54
