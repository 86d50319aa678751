import pickle

import numpy as np
import pytest

from p2es.errors import InputError, P2EsError, RecordError
from p2es.formats import RecordRef, content_files, find_records, read
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


def test_a_reference_of_no_reader_is_a_bug_and_not_an_empty_record(tmp_path):
    with pytest.raises(KeyError):
        read(RecordRef(str(tmp_path), "unknown", "x"), "s")
