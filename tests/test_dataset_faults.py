"""Power that fails, disks that fill, bits that flip, writers that are killed or are two."""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from p2es.errors import DatasetError
from p2es.windows import WINDOW_SCHEMA, encode
from p2es_platform import maintenance, storage, versions
from p2es_platform.dataset import Dataset, PartWriter, commit, finished_part
from p2es_platform.disk import FileInfo, LocalFiles


class Node:
    """A file: the bytes that are certain, and those that are written."""

    def __init__(self, written=b""):
        self.certain = b""
        self.written = written


class FailingDisk:
    """A disk that notes every step, and can give what is left of it when the power fails after any of them.

    What is not synced is lost or not: of each folder any of the changes of names, of each file any prefix of its new
    bytes. Names of folders that were not synced are lost with all below.
    """

    def __init__(self, files=None):
        self.steps = []
        self.start = {} if files is None else dict(files)
        self.folders = {"/"} | {parent for path in self.start for parent in _parents(path)}
        self.nodes = {path: Node() for path in self.start}
        for path, data in self.start.items():
            self.nodes[path].certain = self.nodes[path].written = data

    def write(self, path, data):
        assert _parent(path) in self.folders
        self.steps.append(("write", path, bytes(data)))
        self.nodes[path] = Node(bytes(data))

    def sync(self, path):
        self.steps.append(("sync", path))

    def sync_folder(self, path):
        assert path in self.folders
        self.steps.append(("sync_folder", path))

    def rename(self, old, new):
        self.steps.append(("rename", old, new))
        self.nodes[new] = self.nodes.pop(old)

    def link(self, old, new):
        if new in self.nodes:
            raise FileExistsError(new)
        self.steps.append(("link", old, new))
        self.nodes[new] = self.nodes[old]

    def unlink(self, path):
        if path not in self.nodes:
            raise FileNotFoundError(path)
        self.steps.append(("unlink", path))
        del self.nodes[path]

    def make_folder(self, path):
        assert _parent(path) in self.folders
        if path not in self.folders:
            self.steps.append(("make_folder", path))
            self.folders.add(path)

    def is_folder(self, path):
        return path in self.folders

    def names(self, path):
        inside = [p for p in [*self.nodes, *self.folders] if p != path and _parent(p) == path]
        return sorted({p.rsplit("/", 1)[-1] for p in inside})

    def info(self, path):
        return FileInfo(len(self.nodes[path].written), 1e9) if path in self.nodes else None

    def read(self, path):
        if path not in self.nodes:
            raise FileNotFoundError(path)
        return self.nodes[path].written

    def after_a_crash(self, steps, rng):
        """Give the files (path to bytes) of a disk whose power failed after so many steps."""
        nodes, pending = {}, {}
        folders = {parent for path in self.start for parent in _parents(path)} | {"/"}
        for path, data in self.start.items():
            nodes[path] = Node(data)
            nodes[path].certain = data
        certain_nodes = dict(nodes)
        for kind, path, *rest in self.steps[:steps]:
            if kind == "write":
                nodes[path] = Node(rest[0])
                pending.setdefault(_parent(path), []).append(("name", path, nodes[path]))
            elif kind == "sync":
                nodes[path].certain = nodes[path].written
            elif kind in ("rename", "link"):
                nodes[rest[0]] = nodes[path]
                pending.setdefault(_parent(path), []).append((kind, path, rest[0], nodes[path]))
                if kind == "rename":
                    del nodes[path]
            elif kind == "unlink":
                del nodes[path]
                pending.setdefault(_parent(path), []).append(("unlink", path))
            elif kind == "make_folder":
                pending.setdefault(_parent(path), []).append(("folder", path))
            elif kind == "sync_folder":
                for change in pending.pop(path, []):
                    _apply(change, certain_nodes, folders)
        for changes in pending.values():
            for change in changes:
                if rng.random() < 0.5:
                    _apply(change, certain_nodes, folders)
        return {
            path: node.certain if node.certain == node.written else node.written[: rng.randint(0, len(node.written))]
            for path, node in certain_nodes.items()
            if all(parent in folders for parent in _parents(path))
        }


def _apply(change, nodes, folders):
    kind, path, *rest = change
    if kind == "folder":
        folders.add(path)
    elif kind == "name":
        nodes[path] = rest[0]
    elif kind == "unlink":
        nodes.pop(path, None)
    else:
        nodes[rest[0]] = rest[1]
        if kind == "rename":
            nodes.pop(path, None)


def _parent(path):
    return path.rpartition("/")[0] or "/"


def _parents(path):
    parts = path.split("/")
    return ["/".join(parts[:k]) or "/" for k in range(1, len(parts))]


URL = "failing:///d"


@pytest.fixture
def disk(monkeypatch):
    """Mount a disk at failing://."""

    def mount(files=None):
        made = FailingDisk(files)
        monkeypatch.setitem(storage.SCHEMES, "failing", LocalFiles(made))
        return made

    return mount


def of_people(windows, *people):
    return [w for w in windows if w.person.endswith(tuple(f"{k:06d}" for k in people))]


def write(url, key, windows, reason="ppg_poor", rows=2):
    with PartWriter(url, key, "simulated", rows=rows) as writer:
        writer.add(windows)
        writer.leave_out({"record": key, "source": "simulated", "what": "window", "reason": reason, "detail": "",
                          "count": 2})  # fmt: skip
        return writer.finish({w.recording: f"sha of {w.recording}" for w in windows}, len(windows) + 2)


def ingest(url, batches, rows=2):
    """What an ingest does: finished parts are found, others made, and all committed."""
    base = Dataset.open(url) if versions.exists(url) else None
    old = [] if base is None else list(base.parts)
    known = {record for part in old for record in part.records}
    parts = []
    for key, windows in batches.items():
        if not known.issuperset(w.recording for w in windows):
            parts.append(finished_part(url, key) or write(url, key, windows, rows=rows))
    return commit(url, [*old, *parts], {"step_s": 10.0}, 0 if base is None else base.version) if parts else base


def whole_versions(url):
    """Open every version there is; each must have all its files, each with its sha256. Gives their hashes."""
    found = {}
    for number in versions.numbers(url):
        dataset = Dataset.open(url, number)
        for shard in dataset.shards():
            assert hashlib.sha256(storage.read_bytes(storage.join(url, shard.path))).hexdigest() == shard.sha256
        assert all(part.rows == sum(s.rows for s in part.shards) for part in dataset.parts)
        assert dataset.quarantine().num_rows == len(dataset.parts)
        found[number] = dataset.hash
    if found:
        assert Dataset.open(url).version == max(found)
    return found


def crashes(disk, seeds):
    """Every step of what was done on a disk, each with several ways to lose what was not synced."""
    for steps, seed in itertools.product(range(len(disk.steps) + 1), range(seeds)):
        yield steps, disk.after_a_crash(steps, random.Random(f"{steps} {seed}"))


def test_power_lost_at_any_step_of_two_ingests_leaves_whole_versions(disk, twelve_windows):
    first, second = of_people(twelve_windows, 0, 2), of_people(twelve_windows, 1, 3)
    written = disk()
    done = {1: ingest(URL, {"a": first}).hash}
    committed = len(written.steps)
    done[2] = ingest(URL, {"a": first, "b": second}).hash
    count = 0
    for steps, files in crashes(written, seeds=14):
        disk(files)
        found = whole_versions(URL)
        assert found == {number: done[number] for number in found}
        assert steps < committed or 1 in found
        count += 1
        if count % 10 == 0:
            # And the next ingest, on what the crash left, comes to the same dataset.
            assert ingest(URL, {"a": first, "b": second}).hash == done[2]
            Dataset.open(URL).verify()
    assert count >= 1000


def test_power_lost_while_a_person_is_deleted_never_opens_a_torn_version(disk, twelve_windows):
    made = disk()
    ingest(URL, {"a": of_people(twelve_windows, 0, 2)})
    ingest(URL, {"a": of_people(twelve_windows, 0, 2), "b": of_people(twelve_windows, 1, 3)})
    person = of_people(twelve_windows, 0)[0].person
    start = {path: node.written for path, node in made.nodes.items()}
    deleting = disk(start)
    maintenance.delete_person(URL, person)
    for count, (steps, files) in enumerate(crashes(deleting, seeds=10)):
        disk(files)
        assert 2 in whole_versions(URL) or 3 in whole_versions(URL)
        if count % 10 == 0:
            done = maintenance.delete_person(URL, person)
            assert len(done.hashes) == 2
            left = {
                p for shard in Dataset.open(URL).shards() for p in Dataset.open(URL).read(shard)["person"].to_pylist()
            }
            assert person not in left
            assert versions.numbers(URL) == [3]
            assert not [path for path, data in disk_files().items() if person.encode() in data and "/shards/" in path]
            assert steps <= len(deleting.steps)
    assert count > 300


def disk_files():
    return {path: node.written for path, node in storage.SCHEMES["failing"].disk.nodes.items()}


def test_the_simulated_disk_does_lose_what_is_not_synced():
    """Were it too kind, the tests above would prove nothing: a writer that never syncs must be caught."""
    disk = FailingDisk()
    disk.make_folder("/d")
    disk.sync_folder("/")
    disk.write("/d/x.partial", b"12345678")
    disk.rename("/d/x.partial", "/d/x")
    left = [disk.after_a_crash(len(disk.steps), random.Random(seed)).get("/d/x") for seed in range(200)]
    assert {None, b"12345678"} < set(left)
    assert any(data and len(data) < 8 for data in left)


@pytest.fixture
def url(tmp_path, twelve_windows):
    url = str(tmp_path / "d")
    ingest(url, {"a": of_people(twelve_windows, 0, 2)}, rows=8)
    ingest(url, {"a": of_people(twelve_windows, 0, 2), "b": of_people(twelve_windows, 1, 3)}, rows=8)
    return url


def everything(url):
    """Use a dataset in every way: what an undamaged one gives."""
    dataset = Dataset.open(url)
    tables = [table for split in ("train", "validation", "test") for table in dataset.read_windows(split)]
    return dataset.manifest, pa.concat_tables(tables), dataset.people(), dataset.quarantine(), dataset.parts


def refused(use, *arguments):
    """Give what a typed error says; None when there was none. Any other error is the test's."""
    try:
        use(*arguments)
    except DatasetError as error:
        return str(error)
    return None


def damaged(data, rng):
    """Flip a bit, cut, lengthen, empty, or replace a stretch by zeros."""
    kind = rng.random()
    at = rng.randrange(len(data))
    if kind < 0.7:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind < 0.85:
        return data[:at]
    if kind < 0.9:
        return data + b"\0"
    length = rng.randrange(1, 64)
    return data[:at] + bytes(length) + data[at + length :]


@pytest.mark.slow
def test_any_damage_to_any_file_is_told_before_use(url):
    expected = everything(url)
    paths = sorted(p for p in Path(url).rglob("*") if p.is_file() and p.name != ".lock")
    rng, told = random.Random(0), 0
    for k in range(1050):
        path = paths[k % len(paths)]
        whole, times = path.read_bytes(), path.stat()
        changed = damaged(whole, rng)
        if changed == whole:
            continue
        path.write_bytes(changed)
        line = refused(everything, url)
        if line is None:
            assert everything(url) == expected, path
        else:
            assert "\n" not in line
            told += 1
        path.write_bytes(whole)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    # All but damage to manifest.json and the older version, which are not needed to read the newest one.
    assert told >= 1050 * (len(paths) - 3) / len(paths) - 30
    assert everything(url) == expected


def test_a_damaged_newest_version_is_never_silently_an_older_one(url):
    path = Path(url) / versions.version_path(2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert Dataset.open(url).version == 2  # from the copy in manifest.json
    (Path(url) / "manifest.json").write_bytes(whole[:-7])
    with pytest.raises(DatasetError, match="version 1 is whole"):
        Dataset.open(url)
    assert Dataset.open(url, 1).version == 1
    path.unlink()
    assert Dataset.open(url).version == 1


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["arrow.py_extension_type", "ray.data.arrow_tensor", "ray.data.arrow_pickled_object"])
def test_a_shard_with_hostile_metadata_runs_nothing(tmp_path, twelve_windows, name):
    """Whoever can write the bucket can also write the manifest: the sha256 does not help here, reading must be safe."""
    import ray.data  # noqa: F401 - its extension types had the remote execution of CVE-2026-41486

    url, canary = str(tmp_path / "d"), tmp_path / "canary"
    part = write(url, "a", of_people(twelve_windows, 0), rows=8)
    table = encode(of_people(twelve_windows, 0))
    hostile = {b"ARROW:extension:name": name.encode(), b"ARROW:extension:metadata": pickle.dumps(Canary(str(canary)))}
    fields = [f.with_metadata(hostile) if f.name == "ecg" else f for f in WINDOW_SCHEMA]
    sink = io.BytesIO()
    pq.write_table(table.cast(pa.schema(fields, metadata=WINDOW_SCHEMA.metadata)), sink)
    data = sink.getvalue()
    shard = dataclasses.replace(part.shards[0], sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    storage.write_atomic(storage.join(url, shard.path), data)
    part = dataclasses.replace(part, shards=(shard,))
    storage.write_atomic(storage.join(url, part.path), part.to_bytes())
    dataset = commit(url, [part], {})
    for use in (lambda: list(dataset.read_windows("train")), dataset.verify):
        assert "\n" not in (refused(use) or "")
    assert not canary.exists()


def batches(windows, count, people=0):
    """As many batches of 36 windows each, from few: other ids, other recordings."""
    mine = of_people(windows, people)
    return {
        str(k): [
            dataclasses.replace(w, window_id=f"{k}-{j}-{w.window_id}", recording=f"{k}", enrolment=None)
            for j in range(12) for w in mine
        ]
        for k in range(count)
    }  # fmt: skip


# The windows come from a dataset: reading is quick, and simulating needs half of the packages.
FILL = """
import sys
sys.path.insert(0, sys.argv[3])
from test_dataset_faults import batches, ingest
from p2es.errors import DatasetError
from p2es.windows import decode
from p2es_platform.dataset import Dataset
windows = [w for table in Dataset.open(sys.argv[2]).read_windows("train") for w in decode(table)]
try:
    ingest(sys.argv[1], batches(windows, 4), rows=16)
except DatasetError as error:
    print(error)
    sys.exit(2)
"""


def run_script(script, *arguments):
    command = [sys.executable, "-c", script, *arguments, str(Path(__file__).parent)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_full_disk_keeps_what_was_there_and_the_run_goes_on_when_there_is_room(tmp_path, url, twelve_windows):
    mount = tmp_path / "small"
    mount.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(mount)]
    if subprocess.run(mounting, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        small = str(mount / "d")
        before = ingest(small, batches(twelve_windows, 1), rows=16)
        free = os.statvfs(mount)
        (mount / "ballast").write_bytes(bytes(free.f_bavail * free.f_bsize - 200_000))
        filling = run_script(FILL, small, url)
        said, errors = filling.communicate(timeout=100)
        assert filling.returncode == 2
        assert errors == ""
        assert said.startswith("no space left")
        assert said.count("\n") == 1
        assert not list(mount.rglob("*.partial"))
        now = Dataset.open(small)
        now.verify()
        assert now.manifest == before.manifest
        (mount / "ballast").unlink()
        done = ingest(small, batches(twelve_windows, 4), rows=16)
        done.verify()
        assert done.rows("train") == 4 * before.rows("train")
        assert done.hash == ingest(str(tmp_path / "elsewhere"), batches(twelve_windows, 4), rows=16).hash
    finally:
        subprocess.run(["umount", str(mount)], check=True)


WRITER = """
import sys
sys.path.insert(0, sys.argv[4])
from test_dataset_faults import batches, ingest
from p2es.windows import decode
from p2es_platform import storage
from p2es_platform.dataset import Dataset
windows = [w for table in Dataset.open(sys.argv[2]).read_windows("train") for w in decode(table)]
with storage.writer_lock(sys.argv[1]):
    print("writing", flush=True)
    for key, mine in batches(windows, int(sys.argv[3])).items():
        ingest(sys.argv[1], {key: mine}, rows=16)
print("done", flush=True)
"""


def start_writer(url, source, count):
    return run_script(WRITER, url, source, str(count))


def test_writers_that_are_killed_over_and_over_get_there_in_the_end(tmp_path, url):
    source, url, rng = url, str(tmp_path / "killed"), random.Random(0)
    seen = 0
    for _ in range(4):
        writer = start_writer(url, source, 25)
        assert writer.stdout.readline() == "writing\n"
        time.sleep(rng.uniform(0.02, 0.25))
        writer.send_signal(signal.SIGKILL)
        writer.communicate(timeout=20)
        if versions.exists(url):
            dataset = Dataset.open(url)
            dataset.verify()
            assert dataset.version >= seen
            seen = dataset.version
    writer = start_writer(url, source, 25)
    assert writer.communicate(timeout=60)[0].endswith("done\n")
    dataset = Dataset.open(url)
    dataset.verify()
    assert dataset.version == 25
    assert sum(len(part.records) for part in dataset.parts) == 25


def test_of_two_writers_at_once_the_second_is_told_at_once(tmp_path, url):
    source, url = url, str(tmp_path / "two")
    first = start_writer(url, source, 500)
    assert first.stdout.readline() == "writing\n"
    started = time.monotonic()
    second = start_writer(url, source, 1)
    _, errors = second.communicate(timeout=60)
    assert "another process is writing to two" in errors
    assert time.monotonic() - started < 20
    first.kill()
    first.communicate(timeout=20)


def test_an_age_that_went_backwards_changes_nothing(url, monkeypatch):
    """Versions are ordered by number: a clock that jumps to 1980 or 2100 does not matter."""
    for path in sorted(Path(url).rglob("*.json")):
        os.utime(path, (0, 0) if path.name == "000002.json" else (4e9, 4e9))
    monkeypatch.setattr(time, "time", lambda: 1e8)
    assert Dataset.open(url).version == 2
    assert maintenance.collect(url, keep_versions=1).versions == (1,)
    assert Dataset.open(url).version == 2
    json.loads((Path(url) / "manifest.json").read_text())
    assert np.isfinite(Dataset.open(url).store("train").rest.people).any()
