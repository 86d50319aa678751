import pickle
import shutil

import numpy as np
import pytest

from p2es.demographics import Sex
from p2es.errors import InputError, P2EsError, RecordError
from p2es.formats import RecordRef, content_files, find_records, read
from p2es.leads import LEADS
from p2es.recording import SignalKind
from p2es.simulator import simulate_person
from p2es.simulator.archive import write_wfdb

FS_HZ = 125


def write_header(folder, name, signals, *, comments=(), fs=FS_HZ, samples=1500, count=None):
    lines = [f"{name} {len(signals) if count is None else count} {fs} {samples}"]
    lines += [f"{name}.dat {line}" for line in signals]
    (folder / f"{name}.hea").write_text("\n".join([*lines, *(f"# {c}" for c in comments)]) + "\n")


def write_record(folder, name="r", signals=("16 200/mV 16 0 0 0 0 II", "16 1000/NU 16 0 0 0 0 PLETH"), **options):
    """Write a record whose counts are a ramp, so that every sample tells its place."""
    samples = options.get("samples", 1500)
    folder.mkdir(parents=True, exist_ok=True)
    write_header(folder, name, signals, **options)
    counts = np.stack([np.arange(samples) % 1000 + 10 * k for k in range(len(signals))], axis=1)
    counts.astype("<i2").tofile(folder / f"{name}.dat")
    return folder / f"{name}.hea"


def read_one(path, source="s"):
    (recording,) = read(find_records(str(path))[0], source)
    return recording


def refusal(path):
    with pytest.raises(RecordError) as refused:
        list(read(find_records(str(path))[0], "s"))
    assert "\n" not in str(refused.value)
    return refused.value.reason


def test_a_simulated_person_comes_back_from_wfdb(tmp_path):
    before = simulate_person(3, 7, 20.0)
    write_wfdb(before, tmp_path)
    after = read_one(tmp_path)
    assert (after.person, after.simulated, after.source) == (before.person, True, "s")
    assert set(after.leads) == set(LEADS)
    for lead, signal in before.leads.items():
        found = after.leads[lead]
        assert (found.unit, found.fs_hz) == ("mV", signal.fs_hz)
        np.testing.assert_allclose(found.samples, signal.samples, atol=0.6e-3)
    (ppg,), (truth,) = after.of_kind(SignalKind.PPG), before.of_kind(SignalKind.PPG)
    assert ppg.fs_hz == truth.fs_hz
    assert np.corrcoef(ppg.samples, truth.samples)[0, 1] > 0.99999
    np.testing.assert_allclose(after.r_peaks_s, before.r_peaks_s, atol=0.5 / ppg.fs_hz)
    known, stated = after.demographics.to_array(), before.demographics.to_array()
    np.testing.assert_allclose(known, stated, rtol=1e-4)


@pytest.mark.parametrize(("unit", "millivolt"), [("mV", 1.0), ("mv", 1.0), ("uV", 1e-3), ("V", 1e3)])
def test_units_of_voltage_become_millivolt(tmp_path, unit, millivolt):
    write_record(tmp_path, signals=(f"16 200/{unit} 16 0 0 0 0 II",))
    (signal,) = read_one(tmp_path).signals
    assert signal.unit == "mV"
    np.testing.assert_allclose(signal.samples, np.arange(1500) % 1000 / 200 * millivolt, rtol=1e-6)


@pytest.mark.parametrize("line", ["16 200/NU 16 0 0 0 0 II", "16 0/mV 16 0 0 0 0 II"])
def test_an_ecg_without_a_known_unit_is_kept_and_not_called_millivolt(tmp_path, line):
    write_record(tmp_path, signals=(line,))
    (signal,) = read_one(tmp_path).signals
    assert (signal.lead, signal.unit) == ("II", "unknown")


def test_an_unknown_chest_lead_is_kept_without_a_lead_and_other_signals_are_not(tmp_path):
    lines = [f"16 200/mV 16 0 0 0 0 {name}" for name in ("V", "MCL1", "avr", "vx")]
    lines += ["16 20/mmHg 16 0 0 0 0 ABP", "16 100/NU 16 0 0 0 0 pleth red"]
    write_record(tmp_path, signals=lines)
    found = {signal.name: (signal.kind, signal.lead) for signal in read_one(tmp_path).signals}
    assert found == {
        "V": (SignalKind.ECG, None),
        "MCL1": (SignalKind.ECG, None),
        "avr": (SignalKind.ECG, "aVR"),
        "pleth red": (SignalKind.PPG, None),
    }


def test_the_right_columns_are_read_beside_unread_ones(tmp_path):
    lines = ["16 20/mmHg 16 0 0 0 0 ABP", "16 200/mV 16 0 0 0 0 V1", "16 1/l 16 0 0 0 0 Resp", "16 1/NU 16 0 0 0 0 PPG"]
    write_record(tmp_path, signals=lines)
    v1, ppg = read_one(tmp_path).signals
    np.testing.assert_allclose(v1.samples * 200, np.arange(1500) % 1000 + 10, atol=1e-3)
    np.testing.assert_allclose(ppg.samples, np.arange(1500) % 1000 + 30, atol=1e-3)


def test_sentinels_become_missing(tmp_path):
    header = write_record(tmp_path)
    counts = np.fromfile(header.with_suffix(".dat"), "<i2")
    counts[20:40] = -32768
    counts.tofile(header.with_suffix(".dat"))
    for signal in read_one(tmp_path).signals:
        assert np.isnan(signal.samples).nonzero()[0].tolist() == list(range(10, 20))


@pytest.mark.parametrize(
    ("comments", "age", "sex", "height", "weight"),
    [
        (["Age: 63 Sex: M"], 63, Sex.MALE, None, None),
        (["<age>: 76 <sex>: F <diagnoses>: (none)"], 76, Sex.FEMALE, None, None),
        (["age: >89", "sex: female"], 90, Sex.FEMALE, None, None),
        (["Age: ??", "Sex: ?"], None, None, None, None),
        (["<gender>: male <height>: 178 <weight>: 83 <age>: 25 <bp_sys_start>: 113"], 25, Sex.MALE, 178, 83),
        (["69 M 1085 1629 x1", "Aldomet, Inderal"], 69, Sex.MALE, None, None),
        (["age: 5", "sex: 1", "height: 6", "weight: 700"], 5, None, None, None),
        (["Location: micu", "average: 12", "stage: 3"], None, None, None, None),
    ],
)
def test_demographics_are_found_as_archives_write_them(tmp_path, comments, age, sex, height, weight):
    write_record(tmp_path, comments=comments)
    found = read_one(tmp_path).demographics
    assert (found.age_years, found.sex, found.height_cm, found.weight_kg) == (age, sex, height, weight)


@pytest.mark.parametrize(
    ("place", "comments", "person"),
    [
        ("waves/p100/p10014354/81739927/81739927", [], "p10014354"),
        ("p00/p000020/p000020-2183-04-28-17-47", [], "p000020"),
        ("patient001/s0010_re", [], "patient001"),
        ("85594648/85594648_0003", [], "85594648"),
        ("s10_run", ["<filename>: s10_run <activity>: run"], "s10"),
        ("a/b/r1", ["person: somebody"], "somebody"),
        ("training/A0001", [], "A0001"),
    ],
)
def test_records_of_one_person_share_a_name(tmp_path, place, comments, person):
    header = tmp_path / f"{place}.hea"
    write_record(header.parent, header.stem, comments=comments)
    recording = read_one(tmp_path)
    assert (recording.person, recording.record) == (person, place)


def odd_headers():
    good = ["r 2 125 1500", "r.dat 16 200/mV 16 0 0 0 0 II", "r.dat 16 1000/NU 16 0 0 0 0 PLETH"]
    return {
        "rate not a number": ("rate", ["r 2 nan 1500", *good[1:]]),
        "rate infinite": ("rate", ["r 2 inf 1500", *good[1:]]),
        "rate zero": ("rate", ["r 2 0 1500", *good[1:]]),
        "rate missing": ("rate", ["r 2", *good[1:]]),
        "a billion signals": ("header", ["r 1000000000 125 1500", *good[1:]]),
        "a billion segments": ("header", ["r/1000000000 2 125 1500", "r1 100"]),
        "too many samples": ("header", ["r 2 125 99999999999999", *good[1:]]),
        "no signals": ("header", ["r 0 125 1500"]),
        "negative signals": ("header", ["r -2 125 1500", *good[1:]]),
        "lines missing": ("header", good[:2]),
        "empty": ("header", [""]),
        "only comments": ("header", ["# age: 5"]),
        "words": ("header", ["this is no header"]),
        "another folder": ("header", [good[0], "../r.dat 16 200/mV 16 0 0 0 0 II", good[2]]),
        "absolute path": ("header", [good[0], "/etc/passwd 16 200/mV 16 0 0 0 0 II", good[2]]),
        "unknown format": ("unreadable", [good[0], "r.dat 999 200/mV 16 0 0 0 0 II", good[2]]),
        "file missing": ("missing_file", [good[0], "x.dat 16 200/mV 16 0 0 0 0 II", good[2]]),
        "nothing of use": ("no_signal", [good[0], "r.dat 16 1/mmHg 16 0 0 0 0 ABP", "r.dat 16 1/l 16 0 0 0 0 Resp"]),
        "short lines": ("no_signal", [good[0], "r.dat", "r.dat 16"]),
    }


@pytest.mark.parametrize("case", odd_headers())
def test_odd_headers_are_refused_with_a_reason(tmp_path, case):
    reason, lines = odd_headers()[case]
    header = write_record(tmp_path)
    header.write_text("\n".join(lines) + "\n")
    assert refusal(tmp_path) == reason


@pytest.mark.parametrize("size", [0, 1, 3999, 4000, 4004])
def test_a_signal_file_cut_short_is_refused(tmp_path, size):
    header = write_record(tmp_path)
    data = header.with_suffix(".dat").read_bytes()
    header.with_suffix(".dat").write_bytes(data[:size])
    assert refusal(tmp_path) in {"truncated", "unreadable"}


def test_any_damage_to_a_header_is_a_record_error_or_a_recording(tmp_path):
    header = write_record(tmp_path, comments=["age: 50"])
    text = header.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(text)
        for at in rng.integers(0, len(text), rng.integers(1, 6)):
            damaged[at] = rng.integers(0, 256)
        header.write_bytes(bytes(damaged[: rng.integers(1, len(text) + 1)]))
        try:
            list(read(find_records(str(tmp_path))[0], "s"))
            outcomes.add("read")
        except RecordError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def write_segments(folder, layout):
    """Write a multi-segment record; `layout` has (name, samples, signals), or (None, samples, None) for a gap."""
    lines = [f"m/{len(layout)} 2 {FS_HZ} {sum(samples for _, samples, _ in layout)}"]
    for name, samples, signals in layout:
        lines.append(f"{name or '~'} {samples}")
        if signals:
            write_record(folder, name, signals, samples=samples)
    (folder / "m.hea").write_text("\n".join(lines) + "\n# age: 44\n# sex: F\n")


II, III = "16 200/mV 16 0 0 0 0 II", "16 100/mV 16 0 0 0 0 III"
PLETH = "16 1000/NU 16 0 0 0 0 PLETH"


def test_segments_may_change_leads_order_and_gain(tmp_path):
    write_segments(tmp_path, [("a", 1500, [II, PLETH]), (None, 500, None), ("b", 1600, [PLETH, III])])
    (reference,) = find_records(str(tmp_path))
    first, second = read(reference, "s")
    assert [list(r.leads) for r in (first, second)] == [["II"], ["III"]]
    assert first.record != second.record
    assert first.person == second.person == "m"
    assert second.demographics.age_years == 44
    np.testing.assert_allclose(second.leads["III"].samples * 100, np.arange(1600) % 1000 + 10, atol=1e-2)


def test_segments_that_are_not_there_are_told_and_the_others_read(tmp_path):
    write_segments(tmp_path, [("a", 1500, [II, PLETH]), ("b", 1500, [II, PLETH]), ("c", 1500, None), ("d", 1, None)])
    (tmp_path / "b.dat").unlink()
    skipped = []
    (recording,) = read(find_records(str(tmp_path))[0], "s", skipped)
    assert recording.record == "m/a"
    assert [error.reason for error in skipped] == ["missing_file", "missing_segment"]


def test_a_record_without_any_segment_is_refused(tmp_path):
    write_segments(tmp_path, [(None, 500, None), ("a", 1500, None)])
    assert refusal(tmp_path) == "missing_segment"


def test_the_content_of_a_record_is_all_its_files(tmp_path):
    write_segments(tmp_path, [("a", 1500, [II, PLETH]), ("b", 1500, [II, PLETH])])
    (reference,) = find_records(str(tmp_path))
    assert {path.name for path in content_files(reference)} == {"m.hea", "a.hea", "a.dat", "b.hea", "b.dat"}
    write_wfdb(simulate_person(0, 0, 12.0), tmp_path / "p")
    (one,) = find_records(str(tmp_path / "p"))
    assert {path.suffix for path in content_files(one)} == {".hea", ".dat", ".atr"}


def test_a_record_refers_to_itself_by_little_and_can_be_sent(tmp_path):
    write_record(tmp_path / "b")
    write_record(tmp_path / "a", "z")
    references = find_records(str(tmp_path))
    assert [reference.name for reference in references] == ["a/z", "b/r"]
    assert pickle.loads(pickle.dumps(references)) == references
    assert len(pickle.dumps(references[0])) < 500


def test_a_record_may_be_named_by_its_header_or_without_the_ending(tmp_path):
    header = write_record(tmp_path)
    assert find_records(str(header)) == find_records(str(header.with_suffix(""))) == find_records(str(tmp_path))


def test_what_an_interrupted_writer_left_is_no_record(tmp_path):
    write_record(tmp_path)
    write_record(tmp_path / ".person-7-x1")
    assert [reference.name for reference in find_records(str(tmp_path))] == ["r"]


@pytest.mark.parametrize("place", ["missing", "empty"])
def test_nothing_to_read_says_what_to_do(tmp_path, place):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=": give "):
        find_records(str(tmp_path / place))


def write_csv(path, header, columns, form="%.6g"):
    np.savetxt(path, np.stack(columns, axis=1), delimiter=", ", header=header, comments="", fmt=form)


@pytest.mark.parametrize("names", [["PLETH", "V", "AVR", "II"], ["II", "PLETH", "V"], ["MCL", "III", "PLETH", "ABP"]])
def test_csv_columns_are_found_by_name_whatever_their_order(tmp_path, names):
    t = np.arange(2000) / 125
    values = {name: np.sin(t * (k + 1)) for k, name in enumerate(names)}
    write_csv(tmp_path / "x_Signals.csv", "Time [s], " + ", ".join(names), [t, *values.values()])
    recording = read_one(tmp_path)
    assert recording.person == "x"
    assert {signal.name for signal in recording.signals} == set(names) - {"ABP"}
    for signal in recording.signals:
        assert signal.fs_hz == pytest.approx(125, rel=1e-4)
        np.testing.assert_allclose(signal.samples, values[signal.name], atol=1e-5)
    assert set(recording.leads) <= {"II", "III", "aVR"}


def test_a_csv_without_header_gets_its_rate_from_its_ticks_and_no_millivolt(tmp_path):
    k = np.arange(1000)
    columns = [k + 1714, 11890944 + 160 * k, 1300 + k % 7, 8192 + k % 5, 8192 - k % 5, 8192 + k % 3]
    write_csv(tmp_path / "125_static.csv", "", columns, form="%.6f")
    (tmp_path / "125_static.csv").write_text((tmp_path / "125_static.csv").read_text().lstrip("\n"))
    recording = read_one(tmp_path)
    assert recording.person == "125"
    assert all(signal.fs_hz == pytest.approx(50.0) for signal in recording.signals)
    assert [signal.kind for signal in recording.signals] == [SignalKind.PPG] + [SignalKind.ECG] * 3
    assert recording.leads == {}
    assert {signal.unit for signal in recording.of_kind(SignalKind.ECG)} == {"unknown"}


@pytest.mark.parametrize(
    ("time", "reason"),
    [
        (np.zeros(500), "rate"),
        (np.arange(500)[::-1] / 125, "rate"),
        (np.where(np.arange(500) == 77, np.nan, np.arange(500) / 125), "rate"),
        (np.arange(500) / 125 + (np.arange(500) > 250) * 3.0, "time_gaps"),
    ],
)
def test_a_time_column_that_gives_no_rate_is_refused(tmp_path, time, reason):
    write_csv(tmp_path / "a.csv", "Time [s], PLETH", [time, np.sin(np.arange(500))])
    assert refusal(tmp_path) == reason


@pytest.mark.parametrize("text", ["age,sex\n5,F\n", "", "\0\0\0", "ECG,PPG,RSP\n1,2,3\n"])
def test_a_csv_of_no_declared_layout_is_told(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    assert refusal(tmp_path) == "layout"


def test_every_real_recording_is_read_or_refused_with_a_reason(recordings):
    read_well, refused = set(), {}
    for folder in ("wfdb", "mimic3", "icu", "bidmc", "cinc2021", "neurokit"):
        for reference in find_records(str(recordings / folder)):
            try:
                for recording in read(reference, folder):
                    assert recording.duration_s > 0
                    assert all(s.unit == "mV" for s in recording.leads.values())
                    read_well.add(reference.name)
            except P2EsError as error:
                refused[reference.name] = error.reason
    assert {"mixedsignals", "s0010_re", "a103l", "HR06000", "bidmc_01_Signals.csv"} <= read_well
    assert refused["100skew"] == "missing_file"
    assert refused["bio_resting_5min_100hz.csv"] == "layout"


def test_real_multi_rate_and_flac_records_agree_with_wfdb(recordings):
    wfdb = pytest.importorskip("wfdb")
    path = recordings / "wfdb" / "mixedsignals"
    recording = read_one(path)
    record = wfdb.rdrecord(str(path), smooth_frames=False)
    assert {s.name: round(s.fs_hz, 3) for s in recording.signals} == {
        "II": 249.89, "III": 249.89, "V": 249.89, "Pleth": 124.945,
    }  # fmt: skip
    for signal in recording.signals:
        np.testing.assert_allclose(signal.samples, record.e_p_signal[record.sig_name.index(signal.name)], rtol=1e-6)


def test_a_real_record_that_loses_a_file_is_refused(recordings, tmp_path):
    for path in (recordings / "wfdb").glob("mixedsignals*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "mixedsignals_p.dat").write_bytes((tmp_path / "mixedsignals_p.dat").read_bytes()[:500])
    assert refusal(tmp_path) == "unreadable"
    (tmp_path / "mixedsignals_p.dat").unlink()
    assert refusal(tmp_path) == "missing_file"


def test_a_reference_of_no_reader_is_a_bug_and_not_an_empty_record(tmp_path):
    with pytest.raises(KeyError):
        read(RecordRef(str(tmp_path), "unknown", "x"), "s")
