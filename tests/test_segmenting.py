import dataclasses

import numpy as np
import pytest

from p2es.errors import RecordError
from p2es.formats import find_records, read
from p2es.leads import LEADS, law_residuals
from p2es.recording import Recording, Signal, SignalKind
from p2es.segmenting import segment
from p2es.simulator import ECG_FS_HZ, PPG_FS_HZ, simulate_person
from p2es.windows import ECG_SAMPLES, FS_HZ, MARGIN_SAMPLES, PPG_SAMPLES, decode, encode


def ids(*parts):
    return "/".join(parts)


def cut(recording, step_s=10.0, **options):
    return segment(recording, step_s=step_s, ids=ids, **options)


@pytest.fixture(scope="module")
def person():
    return simulate_person(1, 4, 62.0)


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
    result = cut(changed(holed, gap(22, 29, PPG_FS_HZ), kind=SignalKind.PPG))
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
        recording = simulate_person(2, index, 62.0)
        window = cut(recording).windows[0]
        errors.append(window.delay_s - recording.provenance["delay_s"])
        assert window.delay_confidence > 0.3
    assert np.median(np.abs(errors)) < 0.02
    later = changed(person, lambda x: np.roll(x, round(0.2 * PPG_FS_HZ)), kind=SignalKind.PPG)
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
    from p2es.signals import resample

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
