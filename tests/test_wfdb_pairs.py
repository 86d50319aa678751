"""Two WFDB records that are declared to be one recording."""

import shutil

import fsspec
import numpy as np
import pytest
from wfdb_files import ramp, write_record, write_segments

from p2es.errors import ConfigError, RecordError
from p2es.formats import ReadOptions, content_files, find_records, load_mapping, read, survey
from p2es.recording import SignalKind
from p2es_platform import archive

ECG = ["16 6990.5(100)/mV 16 0 0 0 0 lead_I", "16 6990.5(100)/mV 16 0 0 0 0 lead_II"]
PPG = ["16 1/au 16 0 0 0 0 carotid_880nm", "16 1/au 16 0 0 0 0 brachial_660nm"]
NAME = "10_18-12-33"


def write_pair(folder, name=NAME, *, samples=30_000, second=30_000, fs=1000):
    write_record(folder, f"{name}_ecg", ECG, samples=samples, fs=fs)
    return write_record(folder, f"{name}_ppg", PPG, samples=second, fs=fs)


def read_all(reference, options=None):
    skipped = []
    return list(read(reference, "s", skipped, options)), [error.reason for error in skipped]


def test_ecg_and_ppg_of_senssmarttech_are_one_recording_of_the_person(tmp_path):
    ppg = write_pair(tmp_path / "WFDB")
    write_pair(tmp_path / "WFDB", "7_09-01-02")
    first, other = find_records(str(tmp_path))
    assert [r.name for r in (first, other)] == [f"WFDB/{NAME}_ecg", "WFDB/7_09-01-02_ecg"]
    (recording,), skipped = read_all(first)
    assert skipped == []
    assert (recording.record, recording.person) == (f"WFDB/{NAME}_ecg", "10")
    assert list(recording.leads) == ["I", "II"]
    assert [s.name for s in recording.of_kind(SignalKind.PPG)] == ["carotid_880nm", "brachial_660nm"]
    np.testing.assert_allclose(recording.leads["II"].read(), (ramp(30_000, 2)[:, 1] - 100) / 6990.5, rtol=1e-5)
    np.testing.assert_array_equal(recording.signals[2].read(), ramp(30_000, 2)[:, 0])
    files = [path.name for path in content_files(first)]
    assert files == [f"{NAME}_ecg.hea", f"{NAME}_ecg.dat", f"{NAME}_ppg.hea", f"{NAME}_ppg.dat"]
    assert first.bytes == sum(path.stat().st_size for path in content_files(first))
    assert survey(tmp_path).companions[f"WFDB/{ppg.name}"] == first.name
    assert read_all(other)[0][0].person == "7"


def test_nothing_is_joined_that_nobody_declared(tmp_path):
    for name in ("x", "10", "10_18-12", "rest_10_18-12-33"):
        write_pair(tmp_path, name)
    references = find_records(str(tmp_path))
    assert len(references) == 8
    assert {len(read_all(reference)[0][0].signals) for reference in references} == {2}


def test_a_mapping_of_the_users_own_joins_others(tmp_path):
    (tmp_path / "mine.toml").write_text(MINE)
    own = (load_mapping(tmp_path / "mine.toml"),)
    folder = tmp_path / "a"
    write_pair(folder, "x1")
    for header in list(folder.glob("*.hea")):
        text = header.read_text().replace("_ecg", "-E").replace("_ppg", "-P")
        stem = header.stem.replace("_ecg", "-E").replace("_ppg", "-P")
        (folder / f"{stem}.hea").write_text(text)
        header.with_suffix(".dat").rename(folder / f"{stem}.dat")
        header.unlink()
    (reference,) = find_records(str(folder), mappings=own)
    (recording,), skipped = read_all(reference, ReadOptions(mappings=own))
    # Without a rule for people, the person is who the first record says.
    assert (recording.record, recording.person, len(recording.signals), skipped) == ("x1-E", "x1-E", 4, [])
    assert len(find_records(str(folder))) == 2


MINE = """
name = "mine"
kind = "wfdb"
match = { file = "-E[.]hea$" }
beside = { replace = "-E.hea", by = "-P.hea" }
"""


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('match = { file = "-E[.]hea$" }', "", "match.file is missing"),
        ('beside = { replace = "-E.hea", by = "-P.hea" }', "", "beside is missing"),
        ("-P.hea", "-P.csv", "must end in .hea"),
        ('kind = "wfdb"', 'kind = "wfdb"\nrate = { fs_hz = 5.0 }', "rate is not known"),
        ('kind = "wfdb"', 'kind = "wfdb"\nmatch.columns = ["a"]', "no TOML"),
        ("-E[.]hea$", "-E[.hea$", "no regular expression"),
    ],
)
def test_a_pair_that_cannot_work_is_refused_with_its_key(tmp_path, old, new, what):
    (tmp_path / "mine.toml").write_text(MINE.replace(old, new))
    with pytest.raises(ConfigError, match=what):
        load_mapping(tmp_path / "mine.toml")


def break_second(folder, how):
    if how == "gone":
        (folder / f"{NAME}_ppg.hea").unlink()
    elif how == "cut":
        (folder / f"{NAME}_ppg.dat").write_bytes(b"")
    elif how == "longer":
        write_pair(folder, second=30_500)
    elif how == "segments":
        write_segments(folder, [("p1", 15_000, PPG), ("p2", 15_000, PPG)], name=f"{NAME}_ppg", fs=1000)
    elif how == "sums":
        lines = [line.replace(" 0 0 0 0 ", " 0 0 7 0 ") for line in PPG]
        write_record(folder, f"{NAME}_ppg", lines, samples=30_000, fs=1000)


@pytest.mark.parametrize(
    ("how", "signals", "told"),
    [
        ("gone", 2, "missing_file"), ("cut", 2, "truncated"), ("longer", 2, "header"), ("segments", 2, "header"),
        ("sums", 4, "checksum"),
    ],
)  # fmt: skip
def test_a_second_record_that_cannot_be_joined_is_told_and_costs_no_ecg(tmp_path, how, signals, told):
    write_pair(tmp_path)
    break_second(tmp_path, how)
    (reference,) = (r for r in find_records(str(tmp_path)) if r.name.endswith("_ecg"))
    (recording,), skipped = read_all(reference)
    assert (recording.person, len(recording.signals), skipped) == ("10", signals, [told])


def test_an_ecg_that_cannot_be_read_costs_no_ppg_and_two_that_cannot_are_refused(tmp_path):
    write_pair(tmp_path)
    (tmp_path / f"{NAME}_ecg.dat").unlink()
    (reference,) = find_records(str(tmp_path))
    (recording,), skipped = read_all(reference)
    assert (recording.person, [s.kind for s in recording.signals]) == ("10", [SignalKind.PPG] * 2)
    assert skipped == ["missing_file"]
    (tmp_path / f"{NAME}_ppg.dat").unlink()
    with pytest.raises(RecordError, match="signal file that is not there"):
        read_all(reference)


def test_a_pair_in_a_bucket_is_the_pair_of_the_folder(tmp_path):
    url = f"memory://{tmp_path.name}/pairs"
    write_pair(tmp_path / "a" / "b")
    files, root = fsspec.core.url_to_fs(url)
    for path in (tmp_path / "a").rglob("*.*"):
        files.pipe_file(f"{root}/{path.relative_to(tmp_path / 'a').as_posix()}", path.read_bytes())
    (here,), (there,) = find_records(str(tmp_path / "a")), archive.find(url)
    assert (here.name, here.bytes) == (there.name, there.bytes)
    before = archive.stamp(there)
    with archive.nearby(there) as copied:
        (mine,), (theirs,) = read_all(here)[0], read_all(copied)[0]
        assert [s.read().tolist() for s in mine.signals] == [s.read().tolist() for s in theirs.signals]
        assert (mine.person, mine.record) == (theirs.person, theirs.record)
    shutil.rmtree(tmp_path / "a")
    files.pipe_file(f"{root}/b/{NAME}_ppg.dat", b"other")
    assert archive.stamp(there) != before
