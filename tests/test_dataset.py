import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from p2es.errors import DatasetError
from p2es.windows import decode, encode
from p2es_platform import storage, versions
from p2es_platform.dataset import Dataset, commit, finished_part, write_part


@pytest.fixture(scope="module")
def windows(twelve_windows):
    return twelve_windows


def of_people(windows, *people):
    return [w for w in windows if w.person.endswith(tuple(f"{k:06d}" for k in people))]


def part(url, key, windows, left_out=()):
    records = {w.recording: f"sha of {w.recording}" for w in windows}
    return write_part(url, key, "simulated", records, windows, left_out)


@pytest.fixture
def url(tmp_path, windows):
    url = str(tmp_path / "d")
    first, second = of_people(windows, 0, 2), of_people(windows, 1, 3)
    left_out = {"record": "x", "source": "s", "what": "window", "reason": "ppg_poor", "detail": "x", "count": 3}
    commit(url, [part(url, "a", first, [left_out]), part(url, "b", second)], {"step_s": 10.0})
    return url


def refusal(action, *arguments):
    with pytest.raises(DatasetError) as refused:
        action(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_was_written_is_read(url, windows):
    dataset = Dataset.open(url)
    for split in ("train", "validation", "test"):
        expected = decode(encode([w for w in windows if w.split == split]))
        found = [w for table in dataset.read_windows(split) for w in decode(table)]
        assert sorted(w.window_id for w in found) == sorted(w.window_id for w in expected)
        by_id = {w.window_id: w for w in expected}
        for window in found:
            np.testing.assert_array_equal(window.ecg, by_id[window.window_id].ecg)
            np.testing.assert_array_equal(window.ppg, by_id[window.window_id].ppg)
            assert window.demographics == by_id[window.window_id].demographics
    dataset.verify()


def test_windows_are_listed_and_chosen_by_their_place(url):
    """In the order in which the whole split is read, and with the same bits, from as many shards as it takes."""
    dataset = Dataset.open(url)
    whole, listed = dataset.store("train", channels=2), dataset.listed("train")
    np.testing.assert_array_equal(listed.window_id, whole.rest.window_id)
    np.testing.assert_array_equal(listed.has_ppg, whole.rest.ppg_mask.any(axis=1))
    rows = np.array([0, 2, len(whole) - 1])
    chosen, expected = dataset.chosen("train", rows, channels=2), whole.batch(rows)
    for name, values in vars(chosen.batch(np.arange(3))).items():
        np.testing.assert_array_equal(values, getattr(expected, name))
    assert "no nobody windows" in refusal(dataset.listed, "nobody")


def test_columns_are_read_alone(url):
    tables = list(Dataset.open(url).read_windows("train", ["person", "start_s"]))
    assert {tuple(table.column_names) for table in tables} == {("person", "start_s")}
    assert sum(table.num_rows for table in tables) == 6


def test_a_store_has_the_windows_and_a_limited_one_is_spread_over_them(url, windows):
    dataset = Dataset.open(url)
    store = dataset.store("train", channels=2)
    whole = {w.window_id: w for w in windows}
    batch = store.batch(np.arange(len(store)))
    for k, name in enumerate(batch.window_id):
        np.testing.assert_allclose(batch.ecg_mv[k], whole[str(name)].ecg, atol=1e-3)
        assert not batch.ppg[k, 1].any()
    few = dataset.store("train", limit=2)
    assert few.rest.window_id.tolist() == [store.rest.window_id[0], store.rest.window_id[-1]]
    assert len(set(few.person.tolist())) == 2


def test_batches_are_the_windows_of_a_split_in_order(url):
    dataset = Dataset.open(url)
    batches = list(dataset.batches("train", channels=2))
    store = dataset.store("train", channels=2)
    whole = store.batch(np.arange(len(store)))
    assert np.concatenate([batch.window_id for batch in batches]).tolist() == whole.window_id.tolist()
    found = np.concatenate([batch.ecg_mv for batch in batches])
    np.testing.assert_allclose(found, whole.ecg_mv, atol=1e-3)
    assert found.shape[1:] == (12, 1280)
    assert list(dataset.batches("none")) == []


def test_people_are_rows_with_what_is_known_of_them(url, windows):
    table = Dataset.open(url).people("train").to_pylist()
    people = {w.person: w.demographics for w in windows if w.split == "train"}
    assert [row["person"] for row in table] == sorted(people)
    for row in table:
        known = people[row["person"]]
        assert row["age_years"] == pytest.approx(known.age_years)
        assert row["height_cm"] == pytest.approx(known.height_cm)
        assert row["split"] == "train"
    assert Dataset.open(url).people().num_rows == 4


def test_a_field_that_one_recording_lacks_comes_from_another(tmp_path, windows):
    url = str(tmp_path / "d")
    first, *rest = of_people(windows, 0)
    unknown = dataclasses.replace(first, demographics=dataclasses.replace(first.demographics, height_cm=None))
    commit(url, [part(url, "a", [unknown, *rest])], {})
    (row,) = Dataset.open(url).people().to_pylist()
    assert row["height_cm"] == pytest.approx(first.demographics.height_cm)


def test_what_was_left_out_can_be_asked(url):
    (row,) = Dataset.open(url).quarantine().to_pylist()
    assert (row["record"], row["reason"], row["count"]) == ("x", "ppg_poor", 3)


def test_an_empty_split_says_what_to_do(tmp_path, windows):
    url = str(tmp_path / "d")
    commit(url, [part(url, "a", of_people(windows, 0))], {})
    dataset = Dataset.open(url)
    assert "ingest more" in refusal(dataset.store, "test")
    assert list(dataset.read_windows("test")) == []


def test_the_same_windows_are_the_same_bytes_and_the_same_hash(tmp_path, windows, url):
    other = str(tmp_path / "other")
    parts = [part(other, "b", of_people(windows, 1, 3)), part(other, "a", of_people(windows, 0, 2))]
    commit(other, parts, {"step_s": 10.0})
    assert Dataset.open(other).hash == Dataset.open(url).hash
    louder = [dataclasses.replace(w, ecg=w.ecg * np.float32(1.01)) for w in of_people(windows, 0, 2)]
    commit(other, [parts[0], part(other, "c", louder)], {"step_s": 10.0})
    assert Dataset.open(other).hash != Dataset.open(url).hash


def test_a_folder_without_manifest_is_no_dataset(tmp_path, windows):
    url = str(tmp_path / "d")
    part(url, "a", windows)
    assert "p2es ingest" in refusal(Dataset.open, url)


@pytest.mark.parametrize("change", [{"version": 3}, {"format": "else"}, {"schema_version": 99}])
def test_another_version_is_refused(url, change):
    path = Path(url) / versions.version_path(1)
    body = json.loads(path.read_text()) | change
    del body["checksum"]
    path.write_bytes(versions.seal(body))
    assert "ingest again" in refusal(Dataset.open, url)


def test_a_dataset_of_the_first_version_is_refused_by_name(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "p2es-dataset", "version": 1, "schema_version": 1}))
    assert "p2es-dataset 1 with window schema 1" in refusal(Dataset.open, str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "{}"])
def test_a_damaged_manifest_is_refused(url, text):
    (Path(url) / "manifest.json").write_text(text)
    Dataset.open(url).verify()
    (Path(url) / versions.version_path(1)).write_text(text)
    refusal(Dataset.open, url)


def test_any_flipped_byte_of_a_shard_is_found(url):
    dataset = Dataset.open(url)
    rng = np.random.default_rng(0)
    for shard in dataset.shards():
        path = Path(url) / shard.path
        whole = path.read_bytes()
        for at in rng.integers(0, len(whole), 5):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert shard.path in refusal(dataset.verify)
        path.write_bytes(whole)
    dataset.verify()


def test_a_cut_or_missing_shard_is_found_when_read_and_when_verified(url):
    dataset = Dataset.open(url)
    path = Path(url) / dataset.shards("test")[0].path
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "corrupt" in refusal(list, dataset.read_windows("test"))
    path.unlink()
    assert "missing" in refusal(list, dataset.read_windows("test"))
    assert "missing" in refusal(dataset.verify)


def test_a_part_is_finished_only_with_all_its_files(url):
    assert finished_part(url, "nothing") is None
    made = finished_part(url, "a")
    assert made == next(p for p in Dataset.open(url).parts if p.key == "a")
    path = Path(url) / made.shards[0].path
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert finished_part(url, "a") is None
    path.write_bytes(whole)
    (Path(url) / made.quarantine).unlink()
    assert finished_part(url, "a") is None


def test_a_person_in_two_splits_is_found(tmp_path, windows):
    url = str(tmp_path / "d")
    first, *rest = of_people(windows, 0)
    moved = [dataclasses.replace(w, split="test", recording="other") for w in rest]
    assert "test and train" in refusal(part, url, "a", [first, *moved])
    parts = [part(url, "a", [first]), part(url, "b", moved)]
    assert first.person[:12] in refusal(commit, url, parts, {})
    commit(url, [unpeopled(url, p) for p in parts], {})
    assert "test and train" in refusal(Dataset.open(url).verify)


def unpeopled(url, part):
    """A part of a writer that does not keep account of its people."""
    changed = dataclasses.replace(part, people={})
    storage.write_atomic(storage.join(url, changed.path), changed.to_bytes())
    return changed


def test_a_window_that_is_there_twice_is_found(tmp_path, windows):
    url = str(tmp_path / "d")
    commit(url, [part(url, "a", of_people(windows, 0) * 2)], {})
    assert "repeats" in refusal(Dataset.open(url).verify)


def test_a_record_is_not_committed_twice(url, windows):
    before = (Path(url) / "manifest.json").read_bytes()
    again = part(url, "c", of_people(windows, 0))
    assert "two parts" in refusal(commit, url, [*Dataset.open(url).parts, again], {})
    assert (Path(url) / "manifest.json").read_bytes() == before


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from p2es.errors import DatasetError
from p2es.segmenting import segment
from p2es.simulator import simulate_person
from p2es_platform.dataset import Dataset, commit, write_part
url = sys.argv[1]
windows = segment(simulate_person(0, 9, 32.0), step_s=10.0, ids=lambda *p: "/".join(p), split="train").windows
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    part = write_part(url, "new", "simulated", {"r": "d"}, windows, [])
    commit(url, [*Dataset.open(url).parts, part], {})
    print("written")
except DatasetError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_leaves_the_dataset_as_it_was(url):
    before = {path: path.read_bytes() for path in Path(url).rglob("*") if path.is_file()}
    done = subprocess.run([sys.executable, "-c", FULL_DISK, url], capture_output=True, text=True, check=True)
    assert "no space left" in done.stdout
    assert done.stdout.count("\n") == 1
    assert {path: path.read_bytes() for path in Path(url).rglob("*") if path.is_file()} == before
    Dataset.open(url).verify()


@pytest.fixture(params=["folder", "file", "memory"])
def root(request, tmp_path):
    if request.param == "memory":
        return f"memory://{tmp_path.name}"
    return f"file://{tmp_path}/x" if request.param == "file" else str(tmp_path / "x")


def test_a_dataset_may_lie_at_any_address(root, windows):
    url = storage.join(root, "datasets", "d")
    with storage.writer_lock(url):
        commit(url, [part(url, "a", windows)], {})
    dataset = Dataset.open(url)
    dataset.verify()
    assert len(dataset.store("train")) == 6
    assert finished_part(url, "a") is not None
