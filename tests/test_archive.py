"""Archives in buckets: in the memory of fsspec, and over HTTP by moto's server, which is an emulator of S3."""

import errno
import os
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from archive_files import write_archive, write_master, write_record
from faulty_s3 import faulty_server

from p2es.errors import ConfigError, InputError, RecordError, RemoteError
from p2es.formats import find_records, read, survey
from p2es_platform import archive, storage


@pytest.fixture(params=["memory", "s3"])
def place(request):
    """The address of an empty folder in a bucket."""
    if request.param == "s3":
        pytest.importorskip("s3fs")
        return storage.join(request.getfixturevalue("bucket"), "archive")
    return f"memory://{uuid.uuid4().hex}/archive"


def upload(folder, url):
    files, root = fsspec.core.url_to_fs(url)
    for path in folder.rglob("*"):
        if path.is_file():
            files.pipe_file(f"{root}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def outcome(reference, source="s"):
    try:
        return [
            (r.record, r.person, r.demographics, [(s.name, s.fs_hz, s.read().tolist()) for s in r.signals])
            for r in read(reference, source)
        ]
    except RecordError as error:
        return str(error), error.reason


def test_a_bucket_holds_what_the_folder_holds(tmp_path, place):
    upload(write_archive(tmp_path / "archive"), place)
    here, there = survey(tmp_path / "archive"), archive.survey(place)
    strip = [(r.name, r.format, r.bytes) for r in here.records], here.companions, here.documents, here.hidden
    assert strip == (
        [(r.name, r.format, r.bytes) for r in there.records],
        there.companions,
        there.documents,
        there.hidden,
    )
    assert all(r.path.startswith(place) for r in there.records)
    assert archive.find(place) == there.records


def test_a_record_is_read_from_a_bucket_as_from_the_folder(tmp_path, place):
    folder = write_archive(tmp_path / "archive")
    t = np.arange(3000) * 2.0
    for name, column in (("1_1_ecg.csv", "lead_I"), ("1_1_ppg.csv", "carotid_880nm")):
        pd.DataFrame({"t": t, column: t, "lead_II": t}).to_csv(folder / name, index=False)
    upload(folder, place)
    for here, there in zip(find_records(str(folder)), archive.find(place), strict=True):
        with archive.nearby(there) as copied:
            assert outcome(copied) == outcome(here)
            assert Path(copied.path).exists()
        assert not Path(copied.path).exists()


def test_only_heads_are_fetched(tmp_path, monkeypatch):
    url = f"memory://{uuid.uuid4().hex}"
    files, root = fsspec.core.url_to_fs(url)
    write_record(tmp_path, "r", samples=500_000)
    upload(tmp_path, url)
    for k in range(600):
        files.pipe_file(f"{root}/x{k}.bin", bytes([k % 256]) * 20_000)
    fetched = []
    whole = type(files).cat_file

    def counted(self, path, start=None, end=None, **options):
        data = whole(self, path, start, end, **options)
        fetched.append(len(data))
        return data

    monkeypatch.setattr(type(files), "cat_file", counted)
    found = archive.survey(url)
    assert len(found.records) == 601
    assert max(fetched) <= 4096
    assert len(fetched) <= 602


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("/a", ["r"]),
        ("/a/r.hea", ["r"]),
        ("/a/r", ["r"]),
        ("/*/*.hea", ["a/r", "m/m"]),
        ("/RECORDS", ["a/r", "m/m"]),
        ("/b_Signals.csv", ["b_Signals.csv"]),
    ],
)
def test_a_part_of_a_bucket_may_be_asked_for(tmp_path, place, what, names):
    upload(write_archive(tmp_path / "archive"), place)
    assert [r.name for r in archive.find(place + what)] == names


def test_a_list_in_a_bucket_tells_what_is_not_there(tmp_path, place):
    write_record(tmp_path, "r")
    (tmp_path / "mine.txt").write_text("r\nnone\n")
    upload(tmp_path, place)
    one, two = archive.find(f"@{place}/mine.txt")
    assert (one.name, two.name) == ("none", "r")
    with archive.nearby(one) as copied, pytest.raises(RecordError, match="listed but not there"):
        list(read(copied, "s"))


@pytest.mark.parametrize("what", ["", "/nothing", "/nothing/*.hea"])
def test_nothing_in_a_bucket_says_what_to_do(place, what):
    with pytest.raises(InputError, match=": give "):
        archive.find(place + what)


def test_a_record_whose_files_are_missing_is_told_by_its_reader(tmp_path, place):
    write_record(tmp_path, "r")
    (tmp_path / "r.dat").unlink()
    write_master(tmp_path, "m", ["s1"])
    upload(tmp_path, place)
    reasons = {}
    for reference in archive.find(place):
        with archive.nearby(reference) as copied:
            reasons[reference.name] = outcome(copied)[1]
    assert reasons == {"r": "missing_file", "m": "missing_segment"}


def test_a_stamp_changes_with_any_file_of_the_record_and_with_no_other(tmp_path, place):
    folder = write_archive(tmp_path / "archive")
    upload(folder, place)
    for url in (str(folder), place):
        before = {r.name: archive.stamp(r) for r in archive.find(url)}
        assert {r.name: archive.stamp(r) for r in archive.find(url)} == before
        data = (folder / "m" / "s2.dat").read_bytes()
        if url == place:
            files, root = fsspec.core.url_to_fs(url)
            files.pipe_file(f"{root}/m/s2.dat", data[::-1])
        else:
            os.utime(folder / "m" / "s2.dat", ns=(1, 1))
        after = {r.name: archive.stamp(r) for r in archive.find(url)}
        assert {name for name in before if before[name] != after[name]} == {"m/m"}


def test_a_folder_of_this_machine_is_read_where_it_lies(tmp_path):
    write_record(tmp_path, "r")
    (reference,) = archive.find(str(tmp_path))
    with archive.nearby(reference) as here:
        assert here == reference


@pytest.fixture
def faulty(s3_server, bucket, monkeypatch, tmp_path):
    """An archive behind a server that breaks on demand."""
    import s3fs

    upload(write_archive(tmp_path / "archive"), f"{bucket}/archive")
    with faulty_server(s3_server) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)
        s3fs.S3FileSystem.clear_instance_cache()
        yield server, f"{bucket}/archive"
    s3fs.S3FileSystem.clear_instance_cache()


def told(kind, action):
    with pytest.raises(kind) as refused:
        action()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def copied(reference):
    with archive.nearby(reference) as here:
        return Path(here.path).name


BREAKS = [
    ("500", RemoteError, "InternalError"),
    ("403", ConfigError, "does not allow"),
    ("cut", RemoteError, "Payload"),
]


@pytest.mark.parametrize(("how", "kind", "words"), BREAKS)
@pytest.mark.parametrize("what", [".hea", "blob"])
def test_a_store_that_breaks_while_heads_are_read_makes_no_file_unknown(faulty, how, kind, words, what):
    server, url = faulty
    server.fault = lambda path, _: how if path.endswith(what) else ""
    assert words in told(kind, lambda: archive.survey(url))
    server.heal()
    assert len(archive.survey(url).records) == 12


@pytest.mark.parametrize(("how", "kind", "words"), BREAKS)
def test_a_store_that_breaks_while_a_record_is_copied_is_no_fault_of_the_record(faulty, how, kind, words):
    server, url = faulty
    reference = next(r for r in archive.find(url) if r.name == "a/r")
    server.fault = lambda path, _: how if path.endswith(".dat") else ""
    assert words in told(kind, lambda: copied(reference))
    # Its samples are not asked for a stamp, its header is.
    archive.stamp(reference)
    server.fault = lambda path, _: how if path.endswith(".hea") else ""
    assert words in told(kind, lambda: archive.stamp(reference))
    server.heal()
    assert copied(reference) == "r.hea"


def test_an_archive_without_server_keys_or_bucket_says_what_to_mend(faulty, monkeypatch):
    import s3fs

    _, url = faulty
    assert "no bucket there-is-none" in told(ConfigError, lambda: archive.survey("s3://there-is-none/*/r.hea"))
    assert "there is no s3://there-is-none/a" in told(InputError, lambda: archive.survey("s3://there-is-none/a"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in NO_KEYS.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    assert "set AWS_ACCESS_KEY_ID" in told(ConfigError, lambda: archive.survey(url))


NO_KEYS = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_CONFIG_FILE": "/dev/null",
}


def test_a_file_that_goes_between_listing_and_copying_is_told_by_its_reader(tmp_path, monkeypatch):
    url = f"memory://{uuid.uuid4().hex}"
    write_record(tmp_path, "r")
    upload(tmp_path, url)
    (reference,) = archive.find(url)
    files, _ = fsspec.core.url_to_fs(url)
    whole = type(files).get_file

    def late(self, path, target, **options):
        if path.endswith(".dat"):
            raise FileNotFoundError(path)
        return whole(self, path, target, **options)

    monkeypatch.setattr(type(files), "get_file", late)
    with archive.nearby(reference) as here:
        assert outcome(here)[1] == "missing_file"


def test_a_full_disk_of_this_machine_is_not_the_records_fault(tmp_path, monkeypatch):
    url = f"memory://{uuid.uuid4().hex}"
    write_record(tmp_path, "r")
    upload(tmp_path, url)
    (reference,) = archive.find(url)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(type(fsspec.core.url_to_fs(url)[0]), "get_file", full)
    assert "set TMPDIR" in told(ConfigError, lambda: copied(reference))


PLACES = [
    "p000123/r",
    "Person_01/rec_1",
    "S2/rest",
    "waves/p10/p10014354/81739927/81739927",
    "monday/rest",
    "41",
    "x/12",
]


@pytest.mark.parametrize("root", ["archive", "p000999", "S7/rest"])
def test_people_are_the_same_wherever_the_archive_lies(tmp_path, place, root):
    # An archive's own folder may be called as a person's: of `p000999` not everybody is p000999.
    folder = tmp_path / root
    for name in PLACES:
        write_record((folder / name).parent, name.rpartition("/")[2])
    upload(folder, f"{place}/{root}")
    found = {}
    for reference in archive.find(f"{place}/{root}"):
        with archive.nearby(reference) as copied:
            found[reference.name] = outcome(copied)[0][1]
    assert found == {reference.name: outcome(reference)[0][1] for reference in find_records(str(folder))}
    assert found == {
        "p000123/r": "p000123", "Person_01/rec_1": "Person_01", "S2/rest": "S2", "monday/rest": "monday/rest",
        "waves/p10/p10014354/81739927/81739927": "p10014354", "41": "41", "x/12": "12",
    }  # fmt: skip
