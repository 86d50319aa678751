"""Files in a folder or bucket: whole or not at all, created once, listed, removed; one writer at a time."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from p2es.errors import ConfigError, DatasetError
from p2es_platform import storage


def refusal(kind, action):
    with pytest.raises(kind) as refused:
        action()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture(params=["folder", "file", "memory"])
def root(request, tmp_path):
    if request.param == "memory":
        return f"memory://{tmp_path.name}"
    return f"file://{tmp_path}/x" if request.param == "file" else str(tmp_path / "x")


def test_files_behave_the_same_at_any_address(root):
    url = storage.join(root, "a", "b.bin")
    assert not storage.exists(url)
    assert storage.size(url) is None
    assert storage.listing(storage.join(root, "a")) == []
    storage.write_atomic(url, b"one")
    storage.write_atomic(url, b"three")
    assert storage.read_bytes(url) == b"three"
    assert storage.size(url) == 5
    assert storage.listing(storage.join(root, "a")) == ["b.bin"]
    storage.write_atomic(storage.join(root, "a", "c", "d"), b"")
    assert storage.listing(storage.join(root, "a")) == ["b.bin", "c"]
    found = storage.find(root)
    assert {name: info.bytes for name, info in found.items()} == {"a/b.bin": 5, "a/c/d": 0}
    assert all(0 <= info.age_s < 60 for info in found.values())
    assert storage.find(storage.join(root, "none")) == {}
    storage.remove(url)
    storage.remove_all([url, storage.join(root, "a", "c", "d")])
    assert not storage.exists(url)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(url)


def test_a_name_is_given_once(root):
    url = storage.join(root, "versions", "1.json")
    storage.create(url, b"one")
    with pytest.raises(FileExistsError):
        storage.create(url, b"two")
    assert storage.read_bytes(url) == b"one"
    assert storage.listing(storage.join(root, "versions")) == ["1.json"]


def test_of_threads_that_create_one_file_one_has_it_whole(tmp_path):
    url, won = str(tmp_path / "x" / "f"), []
    barrier = threading.Barrier(8)

    def race(k):
        barrier.wait()
        try:
            storage.create(url, bytes([k]) * 100_000)
            won.append(k)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=race, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (k,) = won
    assert storage.read_bytes(url) == bytes([k]) * 100_000
    assert storage.listing(str(tmp_path / "x")) == ["f"]


def test_a_relative_folder_is_below_the_working_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage.write_atomic("f", b"1")
    storage.write_atomic("a/b/f", b"2")
    assert sorted(storage.find(".")) == ["a/b/f", "f"]
    assert (tmp_path / "a" / "b" / "f").read_bytes() == b"2"


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    url = str(tmp_path / "f")
    storage.write_atomic(url, b"old")
    (tmp_path / "g").mkdir()
    with pytest.raises(OSError):
        storage.write_atomic(str(tmp_path / "g"), b"a folder has this name")
    assert sorted(storage.find(str(tmp_path))) == ["f"]


def test_an_unknown_kind_of_address_is_told():
    assert "nonsense://" in refusal(ConfigError, lambda: storage.read_bytes("nonsense://x/y"))


HOLD = """
import sys, time
from p2es_platform import storage
with storage.writer_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_is_dead(tmp_path):
    url = str(tmp_path / "d")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        assert "another process" in refusal(DatasetError, storage.writer_lock(url).__enter__)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(10)
        with storage.writer_lock(url):
            pass
    finally:
        holder.kill()
        holder.wait(10)
        holder.stdout.close()


WRITE_FOREVER = """
import sys
from p2es_platform import storage
k = 0
while True:
    storage.write_atomic(sys.argv[1], bytes([k % 256]) * 400_000)
    k += 1
"""


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path):
    path = tmp_path / "file"
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(path)])
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        writer.kill()
        writer.wait(10)
        data = path.read_bytes()
        assert len(data) == 400_000
        assert len(set(data)) == 1
