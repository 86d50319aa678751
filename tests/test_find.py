import os
import pickle
import subprocess
import sys

import pytest
from archive_files import write_archive, write_master, write_record

from p2es.errors import InputError, RecordError
from p2es.formats import RecordRef, content_files, find_records, load_mapping, read, survey
from p2es.simulator import simulate_person
from p2es.simulator.archive import write_wfdb


def reason(reference):
    with pytest.raises(RecordError) as refused:
        list(read(reference, "s"))
    assert "\n" not in str(refused.value)
    assert os.sep + "tmp" not in str(refused.value)
    return refused.value.reason


@pytest.fixture
def mixed(tmp_path):
    """An archive with a file of every sort."""
    return write_archive(tmp_path / "archive")


def test_every_file_is_a_record_a_companion_a_document_or_hidden(mixed):
    found = survey(mixed)
    files = [p.relative_to(mixed).as_posix() for p in mixed.rglob("*") if p.is_file()]
    assert len(files) == len(found.records) + len(found.companions) + len(found.documents) + len(found.hidden)
    assert {r.name: r.format for r in found.records} == {
        "A1.mat": "matlab", "a/r": "wfdb", "all.zip": "unknown", "b_Signals.csv": "csv", "blob": "unknown",
        "c.parquet": "parquet", "empty.dat": "unknown", "m/m": "wfdb", "model.pkl": "unknown", "table.csv": "csv",
        "weights.pt": "unknown", "x.npy": "unknown",
    }  # fmt: skip
    assert found.companions == {
        "a/r.atr": "a/r", "a/r.dat": "a/r", "a/r.ii": "a/r", "m/mn.csv.gz": "m/m",
        "m/s1.hea": "m/m", "m/s1.dat": "m/m", "m/s2.hea": "m/m", "m/s2.dat": "m/m",
    }  # fmt: skip
    assert found.documents == sorted(
        ["README.md", "LICENSE.txt", "RECORDS", "SHA256SUMS.txt", "notes.txt", "page.html", "pic.pdf", "ludb.csv"]
    )
    assert found.hidden == [".hidden", ".part/p.dat", ".part/p.hea", "half.csv.partial"]


def test_what_no_reader_knows_says_why_when_it_is_read(mixed):
    said = {}
    for reference in survey(mixed).records:
        try:
            list(read(reference, "s"))
        except RecordError as error:
            said[reference.name] = (error.reason, str(error))
    assert {name: why for name, (why, _) in said.items()} == {
        "all.zip": "unknown_format", "blob": "unknown_format", "empty.dat": "unknown_format",
        "model.pkl": "unknown_format", "weights.pt": "unknown_format", "x.npy": "unknown_format", "table.csv": "layout",
    }  # fmt: skip
    for name in ("model.pkl", "weights.pt", "x.npy"):
        assert "can run code" in said[name][1]
    assert "unpack it" in said["all.zip"][1]


def test_the_bytes_of_a_reference_are_those_of_its_files(mixed):
    for reference in survey(mixed).records:
        files = content_files(reference)
        numerics = {"m/m": 32}.get(reference.name, 0)  # belong to it, but are none of its content
        assert reference.bytes == sum(file.stat().st_size for file in files) + numerics


def test_references_are_small_and_can_be_sent(mixed):
    references = find_records(str(mixed))
    assert pickle.loads(pickle.dumps(references)) == references
    assert max(len(pickle.dumps(reference)) for reference in references) < 500
    assert [r.name for r in references] == sorted(r.name for r in references)


def edf_head():
    """A header of one signal and no record, by the published table of fields."""
    fields = [
        ("0", 8),
        ("X X X X", 80),
        ("Startdate X X X X", 80),
        ("01.01.00", 8),
        ("00.00.00", 8),
        ("512", 8),
        ("", 44),
    ]
    fields += [("0", 8), ("1", 8), ("1", 4), ("ECG II", 16), ("", 80), ("mV", 8), ("-1", 8), ("1", 8), ("-32768", 8)]
    fields += [("32767", 8), ("", 80), ("250", 8), ("", 32)]
    return "".join(text.ljust(width) for text, width in fields).encode()


def test_the_format_is_known_by_content_and_not_by_the_ending(tmp_path):
    write = {
        "a.csv": b"\0" * 128 + b"DICM" + b"\0" * 100,
        "b.txt": b"Time [s], PLETH\n" + b"".join(b"%f, 1\n" % (k / 125) for k in range(100)),
        "c.dat": edf_head(),
        "d.bin": b"PAR1" + bytes(100),
        "e.txt": b'<?xml version="1.0"?>\n<AnnotatedECG xmlns="urn:hl7-org:v3"></AnnotatedECG>',
    }
    for name, data in write.items():
        (tmp_path / name).write_bytes(data)
    kinds = {reference.name: reference.format for reference in survey(tmp_path).records}
    assert kinds["b.txt"] == "csv"
    assert kinds["d.bin"] == "parquet"
    for name, key in {"a.csv": "dicom", "c.dat": "edf", "e.txt": "aecg"}.items():
        pytest.importorskip(f"p2es.formats.{key}")
        assert kinds[name] == key


def test_links_that_leave_the_archive_are_refused_and_those_within_are_files(tmp_path):
    inside, outside = tmp_path / "archive", tmp_path / "outside"
    write_record(outside, "secret")
    write_record(inside, "r")
    (inside / "copy.hea").symlink_to(inside / "r.hea")
    (inside / "stolen.hea").symlink_to(outside / "secret.hea")
    (inside / "folder").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    (inside / "gone.csv").symlink_to(inside / "nothing")
    found = {reference.name: reference for reference in survey(inside).records}
    assert set(found) == {"r", "copy", "stolen", "folder", "loop", "gone.csv"}
    assert list(read(found["r"], "s"))
    assert {name: reason(found[name]) for name in ("stolen", "folder", "loop")} == dict.fromkeys(
        ("stolen", "folder", "loop"), "link"
    )
    assert all(content_files(found[name]) == [] for name in ("stolen", "folder", "loop"))
    assert reason(found["gone.csv"]) in {"unreadable", "no_permission", "layout", "unknown_format"}


def test_what_cannot_be_opened_does_not_end_the_survey(tmp_path):
    write_record(tmp_path, "r")
    write_record(tmp_path / "closed", "q")
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.hea")
    code = """
import os, sys
from p2es.formats import read, survey
from p2es.errors import RecordError
survey(sys.argv[1])
list(read(survey(sys.argv[1] + "/r.hea").records[0], "s"))
os.chmod(sys.argv[1] + "/secret.csv", 0); os.chmod(sys.argv[1] + "/closed", 0)
os.setuid(65534)
for reference in survey(sys.argv[1]).records:
    try:
        list(read(reference, "s")); print(reference.name, "read")
    except RecordError as error:
        print(reference.name, error.reason)
"""
    if os.getuid() != 0:
        code = code.replace("os.setuid(65534)\n", "")
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    (tmp_path / "closed").chmod(0o755)
    if "No module named" in done.stderr or "PermissionError" in done.stderr:
        pytest.skip("an unprivileged user of this machine cannot see the code")
    said = dict(line.split() for line in done.stdout.splitlines())
    assert said == {
        "r": "read",
        "closed": "no_permission",
        "secret.csv": "no_permission",
        "pipe": "unknown_format",
        "pipe.hea": "unknown_format",
    }


def test_a_record_may_be_named_by_its_header_or_without_the_ending(tmp_path):
    header = write_record(tmp_path)
    assert find_records(str(header)) == find_records(str(header.with_suffix(""))) == find_records(str(tmp_path))


def test_a_segment_that_is_asked_for_by_name_is_a_record(mixed):
    (reference,) = find_records(str(mixed / "m" / "s1.hea"))
    (recording,) = read(reference, "s")
    assert recording.record == "s1"


def test_a_glob_gives_what_matches_with_names_from_before_the_wildcard(mixed):
    assert [r.name for r in find_records(f"{mixed}/*/*.hea")] == ["a/r", "m/m"]
    assert [r.name for r in find_records(f"{mixed}/[bc]*")] == ["b_Signals.csv", "blob", "c.parquet"]
    assert [r.name for r in find_records(f"{mixed}/**/*.hea")] == ["a/r", "m/m"]
    with pytest.raises(InputError, match="nothing matches"):
        find_records(f"{mixed}/*.nothing")


def test_a_list_gives_what_it_names_and_tells_what_is_not_there(mixed):
    text = "# mine\na/r\nb_Signals.csv\n\na/none\n../outside/x\n/etc/passwd\n"
    (mixed.parent / "archive" / "list.txt").write_text(text)
    for where in (f"@{mixed}/list.txt", f"{mixed}/list.txt"):
        found = {reference.name: reference for reference in find_records(where)}
        assert set(found) == {"a/r", "b_Signals.csv", "a/none", "../outside/x", "/etc/passwd"}
        assert list(read(found["a/r"], "s"))
        assert reason(found["a/none"]) == "missing_file"
        assert reason(found["../outside/x"]) == reason(found["/etc/passwd"]) == "link"
    assert [r.name for r in find_records(f"{mixed}/RECORDS")] == ["a/r", "m/m"]


@pytest.mark.parametrize("place", ["missing", "empty", "documents"])
def test_nothing_to_read_says_what_to_do(tmp_path, place):
    (tmp_path / "empty").mkdir()
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=": give "):
        find_records(str(tmp_path / place))


def test_masters_that_name_each_other_end(tmp_path):
    write_master(tmp_path, "a", ["b"])
    write_master(tmp_path, "b", ["a"])
    write_master(tmp_path, "c", ["c"])
    found = survey(tmp_path)
    assert len(found.records) + len(found.companions) == 3
    assert len(found.records) >= 2
    for reference in found.records:
        assert reason(reference)


def test_the_users_mapping_makes_a_table_a_record(tmp_path):
    (tmp_path / "m.toml").write_text(
        'name = "m"\nkind = "table"\n[match]\ncolumns = ["p"]\n[rate]\nfs_hz = 50.0\nsource = "x"\n'
        '[[signals]]\nat = "p"\nkind = "ppg"\n'
    )
    (tmp_path / "x.txt").write_text("p\n" + "1\n2\n" * 100)
    mapping = load_mapping(tmp_path / "m.toml")
    assert survey(tmp_path).documents == ["m.toml", "x.txt"]
    assert survey(tmp_path, (mapping,)).documents == ["m.toml"]
    assert [r.format for r in find_records(str(tmp_path), mappings=(mapping,))] == ["csv"]


def test_two_files_of_a_table_are_one_record(tmp_path):
    for name in ("1_1_ecg.csv", "1_1_ppg.csv", "2_1_ppg.csv"):
        (tmp_path / name).write_text("t,lead_I,lead_II\n0,1,1\n2,1,1\n4,1,1\n")
    found = survey(tmp_path)
    assert found.companions == {"1_1_ppg.csv": "1_1_ecg.csv"}
    assert [r.name for r in found.records] == ["1_1_ecg.csv", "2_1_ppg.csv"]
    assert [p.name for p in content_files(found.records[0])] == ["1_1_ecg.csv", "1_1_ppg.csv"]


def test_a_reference_of_no_reader_is_a_bug_and_not_an_empty_record(tmp_path):
    with pytest.raises(KeyError):
        read(RecordRef(str(write_record(tmp_path)), "nothing of ours", "x"), "s")


def test_a_simulated_archive_is_records_and_nothing_else(tmp_path):
    for k in range(3):
        write_wfdb(simulate_person(0, k, 12.0), tmp_path)
    found = survey(tmp_path)
    assert len(found.records) == 3
    assert not [r for r in found.records if r.format != "wfdb"]
    assert found.hidden == []


def test_every_real_file_is_accounted_for(recordings):
    found = survey(recordings)
    files = [path for path in recordings.rglob("*") if path.is_file()]
    assert len(files) == len(found.records) + len(found.companions) + len(found.documents) + len(found.hidden)
    assert found.hidden == []
    assert len(found.documents) == 13
    of = {}
    for reference in found.records:
        of.setdefault(reference.name.split("/")[0], []).append(reference)
    assert {folder: len(records) for folder, records in of.items()} == {
        "aecg": 8, "bidmc": 1, "cinc2021": 21, "cpsc2018": 6, "icu": 4, "ludb": 80, "mimic3": 1, "mimic4": 1,
        "ncku": 18, "neurokit": 1, "ptt_ppg_headers": 66, "wfdb": 21,
    }  # fmt: skip
    assert sum(reference.bytes for reference in found.records) <= sum(path.stat().st_size for path in files)
    refused = {}
    for reference in found.records:
        try:
            assert list(read(reference, "s"))
        except RecordError as error:
            refused[reference.name] = error.reason
    headers = {name for name in refused if name.startswith("ptt_ppg_headers/")}
    assert len(headers) == 66
    assert {refused.pop(name) for name in headers} == {"missing_file"}
    assert {name: why for name, why in refused.items() if not name.startswith("aecg/")} == {
        "icu/TestICU": "no_signal",
        "wfdb/100skew": "missing_file",
        "wfdb/multi-segment/s00001/s00001-2896-10-09-01-56": "no_segments",
        "wfdb/multi-segment/s00001/s00001-2896-10-09-01-56n": "no_signal",
        "wfdb/multi-segment/s00001/s00001-2896-10-10-00-31n": "no_signal",
        "wfdb/multi-segment/s25047/s25047-2704-05-04-10-44n": "no_signal",
    }


@pytest.mark.slow
def test_a_hundred_thousand_files_are_surveyed_in_seconds(tmp_path):
    import time

    for folder in range(100):
        (tmp_path / f"p{folder}").mkdir()
        for k in range(500):
            (tmp_path / f"p{folder}" / f"r{k}.hea").write_text(f"r{k} 1 125 9\nr{k}.dat 16 200/mV 16 0 0 0 0 II\n")
            (tmp_path / f"p{folder}" / f"r{k}.dat").write_bytes(bytes(18))
    began = time.monotonic()
    found = survey(tmp_path)
    took = time.monotonic() - began
    assert (len(found.records), len(found.companions)) == (50_000, 50_000)
    assert took < 60.0
