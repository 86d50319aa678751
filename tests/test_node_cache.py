"""The windows of a split, unpacked once on a machine."""

import multiprocessing
import os

import numpy as np
import pytest

from p2es.errors import DatasetError
from p2es.windows import WindowStore
from p2es_platform.dataset import Dataset
from p2es_platform.node_cache import node_store
from p2es_platform.parts import PartWriter
from p2es_platform.versions import commit


def dataset_of(url, windows, name="a"):
    with PartWriter(url, name, "simulated") as writer:
        writer.add(windows)
        part = writer.finish({}, candidates=len(windows))
    commit(url, [part], {})
    return Dataset.open(url)


@pytest.fixture
def dataset(tmp_path, twelve_windows):
    return dataset_of(str(tmp_path / "d"), twelve_windows)


def same(one, other):
    rows = np.arange(len(one))[::-1]
    for name, value in vars(one.batch(rows)).items():
        np.testing.assert_array_equal(value, getattr(other.batch(rows), name), err_msg=name)


def test_mapped_windows_are_those_in_memory(dataset, tmp_path):
    with node_store(dataset, "train", root=tmp_path / "cache") as store:
        assert isinstance(store.ecg, np.memmap)
        same(store, dataset.store("train"))
        assert len(store) == dataset.rows("train")
    with node_store(dataset, "train", channels=2, root=tmp_path / "cache") as store:
        same(store, dataset.store("train", channels=2))


def test_the_second_use_finds_the_files_of_the_first(dataset, tmp_path):
    with node_store(dataset, "train", root=tmp_path / "cache") as store:
        first = store.ecg.filename
    for shard in dataset.shards("train"):
        (tmp_path / "d" / shard.path).unlink()
    with node_store(dataset, "train", root=tmp_path / "cache") as store:
        assert store.ecg.filename == first
        assert len(store) == dataset.rows("train")


def test_what_nobody_uses_is_removed_and_what_is_used_stays(dataset, tmp_path):
    root = tmp_path / "cache"

    def made():
        return sorted(path.name for path in root.iterdir() if path.is_dir())

    with node_store(dataset, "train", root=root), node_store(dataset, "test", root=root):
        assert len(made()) == 2
    (root / "something.part").mkdir()
    with node_store(dataset, "validation", root=root):
        assert len(made()) == 1, "the two before were not in use any more"


def use(url, root, ready, results):
    dataset = Dataset.open(url)
    ready.wait()
    with node_store(dataset, "train", root=root) as store:
        results.put((os.getpid(), int(store.ecg.sum(dtype=np.int64)), len(store)))


def test_processes_that_come_together_share_one(dataset, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ready, results = spawn.Event(), spawn.Queue()
    workers = [spawn.Process(target=use, args=(dataset.url, tmp_path / "cache", ready, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    ready.set()
    found = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert len({item[1:] for item in found}) == 1
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [""]


def test_without_room_the_windows_are_held_in_memory(dataset, tmp_path, caplog, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WindowStore, "write", full)
    with node_store(dataset, "train", root=tmp_path / "cache") as store:
        assert not isinstance(store.ecg, np.memmap)
        same(store, dataset.store("train"))
    assert "No space left on device" in caplog.text
    assert not list((tmp_path / "cache").glob("*.part"))


def test_too_few_or_too_many_windows_are_an_error(dataset, tmp_path):
    for count in (dataset.rows("train") - 1, dataset.rows("train") + 1):
        with pytest.raises(DatasetError, match=f"of {count} windows"):
            WindowStore.write(tmp_path / str(count), count, dataset.batches("train"))
    with pytest.raises(DatasetError, match="no nothing windows"), node_store(dataset, "nothing"):
        pass
