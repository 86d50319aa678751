"""The dataset and its storage over HTTP, against moto's server: an emulator of S3, not S3."""

import contextlib
import dataclasses
import os
import random
import subprocess
import sys
import threading
import time

import pytest
from conftest import moto_server

from p2es.errors import ConfigError, DatasetError, RemoteError
from p2es_platform import leases, maintenance, storage, versions
from p2es_platform.dataset import Dataset, PartWriter, commit, finished_part, whole_parts
from p2es_platform.differences import diff


def of_people(windows, *people):
    return [w for w in windows if w.person.endswith(tuple(f"{k:06d}" for k in people))]


def write(url, key, windows):
    with PartWriter(url, key, "simulated", rows=4) as writer:
        writer.add(windows)
        return writer.finish({w.recording: f"sha of {w.recording}" for w in windows}, len(windows))


def refusal(kind, action, *arguments, **options):
    with pytest.raises(kind) as refused:
        action(*arguments, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_files_in_a_bucket(bucket):
    url = storage.join(bucket, "a", "b.bin")
    assert not storage.exists(url)
    assert storage.size(url) is None
    assert storage.listing(storage.join(bucket, "a")) == []
    assert storage.find(bucket) == {}
    storage.create(url, b"one")
    storage.create(url, b"one")  # what a repeated put, whose first answer was lost, comes to
    with pytest.raises(FileExistsError):
        storage.create(url, b"two")
    assert storage.read_bytes(url) == b"one"
    storage.write_atomic(url, b"three")
    storage.write_atomic(storage.join(bucket, "a", "c", "d"), b"")
    assert storage.size(url) == 5
    assert storage.listing(storage.join(bucket, "a")) == ["b.bin", "c"]
    found = storage.find(storage.join(bucket, "a"))
    assert {name: info.bytes for name, info in found.items()} == {"b.bin": 5, "c/d": 0}
    assert all(info.age_s < 60 for info in found.values())
    storage.remove_all([url, storage.join(bucket, "none")])
    assert not storage.exists(url)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(url)


def test_a_file_in_many_parts_is_whole(bucket):
    data = random.Random(0).randbytes(1 << 20) * 110  # above 100 MB s3fs sends parts
    url = storage.join(bucket, "large")
    storage.write_atomic(url, data)
    assert storage.size(url) == len(data)
    assert storage.read_bytes(url) == data


def test_a_dataset_in_a_bucket_is_written_versioned_deleted_and_collected(bucket, twelve_windows, tmp_path):
    url, here = storage.join(bucket, "datasets", "d"), str(tmp_path / "d")
    for place in (url, here):
        with storage.writer_lock(place):
            first = commit(place, [write(place, "a", of_people(twelve_windows, 0, 2))], {"step_s": 10.0}, 0)
            second = [*first.parts, write(place, "b", of_people(twelve_windows, 1, 3))]
            commit(place, second, {"step_s": 10.0}, 1)
    dataset = Dataset.open(url)
    dataset.verify()
    assert dataset.manifest == Dataset.open(here).manifest
    assert storage.find(url).keys() | {".lock"} == storage.find(here).keys()
    assert len(dataset.store("train")) == 6
    assert dataset.people().num_rows == 4
    assert finished_part(url, "a") == first.parts[0]
    assert whole_parts(url, dataset.parts) == list(dataset.parts)
    assert diff(Dataset.open(url, 1), dataset).added["people"] == {
        "train of simulated": 1,
        "validation of simulated": 1,
    }

    person = of_people(twelve_windows, 0)[0].person
    done = maintenance.delete_person(url, person)
    assert (done.version, done.windows, done.purged) == (3, 3, (1, 2))
    assert Dataset.open(url).deleted == {person}
    Dataset.open(url).verify()
    write(url, "killed", of_people(twelve_windows, 0))
    assert not maintenance.collect(url).files
    assert len(maintenance.collect(url, grace_s=0).files) == 2
    Dataset.open(url).verify()


def test_of_many_writers_that_commit_at_once_one_wins(bucket, twelve_windows):
    url = storage.join(bucket, "d")
    parts = {k: write(url, f"part{k}", of_people(twelve_windows, k)) for k in range(4)}
    won, lost = [], []
    barrier = threading.Barrier(4)

    def race(k):
        barrier.wait()
        try:
            won.append(commit(url, [parts[k]], {}, 0).hash)
        except DatasetError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=race, args=(k,)) for k in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 3)
    assert all("another writer committed version 1" in line for line in lost)
    assert Dataset.open(url).hash == won[0]
    assert versions.numbers(url) == [1]


HOLD = """
import sys, time
from p2es_platform import storage
with storage.writer_lock(sys.argv[1], lease_s=float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(url, lease_s):
    command = [sys.executable, "-c", HOLD, url, str(lease_s)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_process_is_refused_until_the_lease_of_the_first_has_run_out(bucket):
    url = storage.join(bucket, "d")
    holder = hold(url, 4)
    try:
        # Longer than the lease: the first is renewing it.
        for _ in range(3):
            assert str(holder.pid) in refusal(DatasetError, storage.writer_lock(url, lease_s=4).__enter__)
            time.sleep(2)
    finally:
        holder.kill()
        holder.communicate(timeout=20)
    refusal(DatasetError, storage.writer_lock(url, lease_s=4).__enter__)
    deadline = time.monotonic() + 20
    while True:
        try:
            with storage.writer_lock(url, lease_s=4):
                break
        except DatasetError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    with storage.writer_lock(url):  # the block before gave it back
        pass


def test_a_writer_that_slept_too_long_is_told(bucket):
    url = storage.join(bucket, "d")
    with storage.writer_lock(url, lease_s=1.0) as held:
        held.check()
        other = leases._Lease(f"{url}/lease.json", lease_s=0.0)
        for _ in range(20):
            # Where the writer renews between the look and the put, the other is refused, and tries again.
            with contextlib.suppress(DatasetError):
                other.take()
                break
        assert held.lost.wait(10)
        assert "took this dataset over" in refusal(DatasetError, held.check)
    assert storage.exists(f"{url}/lease.json")
    other.release()
    assert not storage.exists(f"{url}/lease.json")


def test_a_bucket_that_is_not_there_is_told(bucket, twelve_windows):
    url = "s3://there-is-no-such-bucket/d"
    assert "no bucket there-is-no-such-bucket" in refusal(ConfigError, write, url, "a", of_people(twelve_windows, 0))
    assert "no bucket" in refusal(ConfigError, storage.writer_lock(url).__enter__)
    refusal((ConfigError, DatasetError), Dataset.open, url)


def test_a_server_that_does_not_answer_is_told(bucket, monkeypatch):
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    assert "does not answer" in refusal(RemoteError, storage.read_bytes, f"{bucket}/x")


def test_wrong_keys_are_told(bucket, monkeypatch):
    import s3fs

    with moto_server(INITIAL_NO_AUTH_ACTION_COUNT="0") as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        s3fs.S3FileSystem.clear_instance_cache()
        for action in (lambda: storage.write_atomic(f"{bucket}/x", b""), lambda: storage.read_bytes(f"{bucket}/x")):
            line = refusal(ConfigError, action)
            assert "AWS_ACCESS_KEY_ID" in line


def test_a_damaged_object_is_told(bucket, twelve_windows):
    url = storage.join(bucket, "d")
    dataset = commit(url, [write(url, "a", twelve_windows)], {}, 0)
    path = storage.join(url, dataset.shards("test")[0].path)
    whole = storage.read_bytes(path)
    storage.write_atomic(path, whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "corrupt" in refusal(DatasetError, list, dataset.read_windows("test"))
    storage.remove(path)
    assert "missing" in refusal(DatasetError, list, dataset.read_windows("test"))
    part = dataclasses.replace(dataset.parts[0], key="again", records={})
    assert "not whole" in refusal(DatasetError, commit, url, [part], {}, 1)
