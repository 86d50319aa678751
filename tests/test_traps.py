"""The eleven traps of the real recordings (the README beside them), one test or more for each, on those recordings."""

from collections import Counter

import numpy as np
import pytest

from p2es.demographics import CAPPED_AGE_YEARS, Sex
from p2es.errors import RecordError
from p2es.formats import find_records, load_people, read, survey
from p2es.leads import LEADS, law_residuals
from p2es.recording import SignalKind
from p2es.segmenting import segment


def ids(*parts):
    return "-".join(parts)


def recordings_of(recordings, where, skipped=None):
    (reference,) = find_records(str(recordings / where))
    return list(read(reference, "traps", skipped))


def windows_of(recordings, where):
    return [w for r in recordings_of(recordings, where) for w in segment(r, step_s=10.0, ids=ids).windows]


def refused(recordings, where):
    with pytest.raises(RecordError) as error:
        recordings_of(recordings, where)
    return error.value.reason


# 1. The delay from R peak to pulse differs between devices and is stable inside a recording.
@pytest.mark.parametrize(
    ("where", "low_s", "high_s"),
    [
        ("wfdb/mixedsignals.hea", 0.36, 0.46),
        ("neurokit/bio_resting_5min_100hz.csv", 0.30, 0.38),
        ("bidmc/bidmc_01_Signals.csv", 0.45, 0.62),
        ("ncku/125_static_level1_20260113_164748_extended_poll.bin_align.csv", 0.45, 0.62),
    ],
)
def test_1_delay_of_each_device(recordings, where, low_s, high_s):
    (recording,) = recordings_of(recordings, where)
    windows = segment(recording, step_s=10.0, ids=ids).windows
    assert low_s <= windows[0].delay_s <= high_s
    assert windows[0].delay_confidence > 0.5
    middle = recording.duration_s / 2
    for start, stop in ((0.0, middle), (middle, recording.duration_s)):
        half = segment(recording.between(start, stop), step_s=10.0, ids=ids)
        assert abs(half.windows[0].delay_s - windows[0].delay_s) < 0.05


def test_1_delay_of_a_fast_heart_is_less_sure(recordings):
    # Above 110 bpm the pulse of the beat before fits as well; only the series of intervals can tell.
    fast = windows_of(recordings, "wfdb/a103l.hea")[0]
    assert fast.heart_rate_bpm > 110
    slow = windows_of(recordings, "neurokit/bio_resting_5min_100hz.csv")[0]
    assert fast.delay_confidence < slow.delay_confidence


# 2. LUDB's gains normalise each lead on its own.
def test_2_ludb_is_put_right_by_its_raw_steps_or_refused(recordings):
    outcome = Counter()
    for reference in find_records(str(recordings / "ludb"))[:40]:
        for recording in read(reference, "ludb"):
            try:
                windows = segment(recording, step_s=10.0, ids=ids).windows
            except RecordError as error:
                outcome[error.reason] += 1
                continue
            for window in windows:
                outcome["kept"] += 1
                assert "gains_repaired" in window.flags
                whole = window.lead_mask[:6].all()
                assert not whole or np.abs(law_residuals(window.ecg)).max() < 0.05
                assert np.abs(window.ecg).max() < 10.0
    assert outcome["kept"] >= 30
    assert set(outcome) <= {"kept", "lead_laws", "amplitude"}


# 3. Units.
def test_3_units_are_millivolt_or_unknown_and_a_pulse_in_millivolt_is_a_pulse(recordings):
    (georgia,) = recordings_of(recordings, "cinc2021/E07500.hea")
    assert {signal.unit for signal in georgia.of_kind(SignalKind.ECG)} == {"mV"}
    assert 0.05 < np.abs(georgia.leads["II"].read()).max() < 10.0
    for recording in recordings_of(recordings, "wfdb/multi-segment/041s/041s.hea"):
        assert [signal.name for signal in recording.of_kind(SignalKind.PPG)] == ["PLETH"]
    (ncku,) = recordings_of(recordings, "ncku/125_sample.csv")
    assert {signal.unit for signal in ncku.of_kind(SignalKind.ECG)} == {"unknown"}
    assert refused(recordings, "icu/TestICU.hea") == "no_signal"


# 4. Twelve bits that wrap around without a sentinel.
@pytest.mark.parametrize("where", ["wfdb/v102s.hea", "wfdb/multi-segment/fixed1/v102s.hea"])
def test_4_wrapped_converters_are_found(recordings, where):
    rejected, wrapped, kept = Counter(), [], 0
    for recording in recordings_of(recordings, where):
        cut = segment(recording, step_s=10.0, ids=ids)
        rejected.update(cut.rejected)
        rejected.update(cut.notes)
        kept += len(cut.windows)
        wrapped += [np.nanmax(np.append(w.lead_wrapped, w.ppg_wrapped or 0.0)) for w in cut.windows]
    assert any("wrapped" in reason for reason in rejected)
    assert all(share < 0.2 for share in wrapped)


# 5. Rates.
def test_5_several_rates_in_a_record_and_a_rate_that_only_the_times_tell(recordings):
    (mixed,) = recordings_of(recordings, "wfdb/mixedsignals.hea")
    rates = {signal.name: signal.fs_hz for signal in mixed.signals}
    assert rates["II"] == pytest.approx(4 * 62.4725)
    assert rates["Pleth"] == pytest.approx(2 * 62.4725)
    assert mixed.leads["II"].end_s == pytest.approx(mixed.of_kind(SignalKind.PPG)[0].end_s, abs=0.02)
    (bidmc,) = recordings_of(recordings, "bidmc/bidmc_01_Signals.csv")
    assert bidmc.signals[0].fs_hz == pytest.approx(125.0, rel=1e-3)
    (ncku,) = recordings_of(recordings, "ncku/125_sample.csv")
    assert ncku.signals[0].fs_hz == pytest.approx(50.0, rel=0.01)


# 6. Names of leads.
def test_6_unknown_leads_stay_unknown(recordings):
    names = {}
    for folder in ("wfdb", "bidmc", "neurokit", "ncku"):
        for reference in find_records(str(recordings / folder)):
            try:
                for recording in read(reference, folder):
                    names |= {s.name.strip(): s.lead for s in recording.of_kind(SignalKind.ECG)}
            except RecordError:
                continue
    assert names["V"] is None
    assert names["AVR"] == "aVR"
    assert names["ii"] == "II"
    assert names.get("MCL1") is None
    assert names["ECG"] is None
    assert {names[name] for name in names if name.startswith("ECG ")} <= {None}


# 7. What is missing.
def test_7_flat_leads_beside_live_ones_are_not_there(recordings):
    (window,) = windows_of(recordings, "cinc2021/JS20004.hea")
    mask = dict(zip(LEADS, window.lead_mask, strict=True))
    assert [name for name in LEADS if not mask[name]] == ["V2", "V4", "V6"]
    assert window.lead_flat[LEADS.index("V2")] == pytest.approx(1.0)


def test_7_a_record_without_a_length_is_the_record_with_one(recordings):
    (with_length,) = recordings_of(recordings, "wfdb/a103l.hea")
    (without,) = recordings_of(recordings, "wfdb/a103l-no-len.hea")
    for mine, theirs in zip(without.signals, with_length.signals, strict=True):
        np.testing.assert_array_equal(mine.read(), theirs.read())


def test_7_records_without_a_pulse_or_without_an_ecg_say_which(recordings):
    (ecg_only,) = recordings_of(recordings, "wfdb/s0010_re.hea")
    assert ecg_only.of_kind(SignalKind.PPG) == ()
    assert set(ecg_only.leads) == set(LEADS)
    skipped = []
    found = recordings_of(recordings, "wfdb/multi-segment/p000878", skipped)
    assert any(r.of_kind(SignalKind.PPG) and not r.of_kind(SignalKind.ECG) for r in found)


# 8. Segments that are not there, hold one sample, or change their leads.
@pytest.mark.parametrize("name", ["s00001", "s25047", "p000878"])
def test_8_no_recording_crosses_a_change_of_leads(recordings, name):
    leads, reasons = set(), set()
    for reference in find_records(str(recordings / "wfdb" / "multi-segment" / name)):
        skipped = []
        try:
            found = list(read(reference, "wfdb", skipped))
        except RecordError as error:
            reasons.add(error.reason)
            continue
        for recording in found:
            leads.add(tuple(signal.name for signal in recording.signals))
            assert all(signal.samples.size > 1 for signal in recording.signals)
    assert leads
    assert reasons <= {"no_segments", "missing_segment", "missing_file", "rate", "no_signal"}


# 9. Odd headers.
def test_9_offsets_and_skew(recordings):
    (alarm,) = recordings_of(recordings, "wfdb/a103l.hea")
    # The initial values that the header states are those that are read: the byte offset is right.
    first = [signal.read(0, 1)[0] for signal in alarm.signals]
    assert first[0] == pytest.approx(-171 / 7247, abs=1e-4)
    (skewed,) = recordings_of(recordings, "wfdb/test01_00s_skew.hea")
    (plain,) = recordings_of(recordings, "wfdb/test01_00s.hea")
    np.testing.assert_array_equal(skewed.signals[1].read(0, 3000), plain.signals[1].read(3, 3003))
    assert refused(recordings, "wfdb/100skew.hea") == "missing_file"


# 10. People.
def test_10_people_as_archives_write_them(recordings):
    (ptb,) = recordings_of(recordings, "wfdb/s0010_re.hea")
    assert (ptb.demographics.age_years, ptb.demographics.sex) == (81.0, Sex.FEMALE)
    (transit,) = survey(str(recordings / "ptt_ppg_headers" / "s1_run.hea")).records
    with pytest.raises(RecordError):
        list(read(transit, "ptt"))
    table = load_people(recordings / "ptbxl" / "ptbxl_database_subset3028.csv")
    ages = [row.demographics.age_years for row in table.rows.values() if row.demographics.age_years is not None]
    assert len(table.rows) > 3000
    assert max(ages) == CAPPED_AGE_YEARS
    heights = [row.demographics.height_cm for row in table.rows.values()]
    assert 0.1 < np.mean([height is not None for height in heights]) < 0.6
    assert {row.demographics.sex for row in table.rows.values()} <= {Sex.FEMALE, Sex.MALE, None}


def test_10_a_birth_date_becomes_an_age_and_is_dropped(recordings):
    (recording,) = recordings_of(recordings, "aecg/subject1_0.xml")
    assert recording.demographics.sex is Sex.MALE
    assert 0.0 < recording.demographics.age_years <= CAPPED_AGE_YEARS
    assert not any("19" in str(value) and len(str(value)) >= 8 for value in recording.provenance.values())
