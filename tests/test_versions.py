"""Versions of a dataset: made once, in order, sealed; and what two of them do not have in common."""

import dataclasses
import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2es.errors import DatasetError
from p2es.windows import SCHEMA_VERSION
from p2es_platform import storage, versions
from p2es_platform.dataset import Dataset, PartWriter, commit, finished_part, rewrite_part
from p2es_platform.differences import diff


def of_people(windows, *people):
    return [w for w in windows if w.person.endswith(tuple(f"{k:06d}" for k in people))]


def write(url, key, windows, left_out=0, rows=4):
    with PartWriter(url, key, "simulated", rows=rows) as writer:
        writer.add(windows)
        if left_out:
            row = {"record": key, "source": "simulated", "what": "window", "reason": "ppg_poor", "detail": "x"}
            writer.leave_out({**row, "count": left_out})
        return writer.finish({w.recording: f"sha of {w.recording}" for w in windows}, len(windows) + left_out)


def refusal(action, *arguments, **options):
    with pytest.raises(DatasetError) as refused:
        action(*arguments, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def url(tmp_path, twelve_windows):
    """Two versions: people 0 and 2, then 1 and 3 beside them."""
    url = str(tmp_path / "d")
    first = commit(url, [write(url, "a", of_people(twelve_windows, 0, 2), 3)], {"step_s": 10.0}, 0)
    commit(url, [*first.parts, write(url, "b", of_people(twelve_windows, 1, 3))], {"step_s": 10.0}, 1)
    return url


def test_every_commit_is_a_version_and_the_newest_is_opened(url):
    assert versions.numbers(url) == [1, 2]
    assert Dataset.open(url).version == 2
    assert Dataset.open(url, 1).rows("train") == 3
    assert Dataset.open(url).rows("train") == 6
    assert "it has 1, 2" in refusal(Dataset.open, url, 3)
    assert (Path(url) / "manifest.json").read_bytes() == (Path(url) / versions.version_path(2)).read_bytes()
    Dataset.open(url, 1).verify()


def test_a_commit_on_an_older_version_is_refused(url, twelve_windows):
    parts = [*Dataset.open(url, 1).parts, write(url, "c", of_people(twelve_windows, 1))]
    assert "another writer committed version 2" in refusal(commit, url, parts, {}, 1)
    assert "another writer" in refusal(commit, url, parts, {}, 0)
    assert versions.numbers(url) == [1, 2]


def test_of_writers_without_a_lock_one_commits(tmp_path, twelve_windows):
    url = str(tmp_path / "d")
    parts = {k: write(url, f"part{k}", of_people(twelve_windows, k)) for k in range(4)}
    barrier, won, lost = threading.Barrier(4), [], []

    def race(k):
        barrier.wait()
        try:
            won.append(commit(url, [parts[k]], {}, 0))
        except DatasetError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=race, args=(k,)) for k in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 3)
    assert Dataset.open(url).hash == won[0].hash


def test_a_commit_whose_copy_was_lost_stands(url, twelve_windows):
    """Killed between the version and manifest.json: the version is what counts."""
    (Path(url) / "manifest.json").unlink()
    assert Dataset.open(url).version == 2
    assert versions.exists(url)
    commit(url, Dataset.open(url).parts, {"step_s": 5.0})
    assert Dataset.open(url).version == 3


def test_a_part_that_lost_a_file_is_not_committed(url, twelve_windows):
    part = write(url, "c", [dataclasses.replace(w, recording="new") for w in of_people(twelve_windows, 0)])
    (Path(url) / part.shards[0].path).unlink()
    assert "not whole" in refusal(commit, url, [*Dataset.open(url).parts, part], {})


def test_a_person_cannot_come_in_on_the_other_side(url, twelve_windows):
    moved = [dataclasses.replace(w, split="test", recording="new") for w in of_people(twelve_windows, 0)]
    part = write(url, "c", moved)
    assert of_people(twelve_windows, 0)[0].person[:12] in refusal(commit, url, [*Dataset.open(url).parts, part], {})


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_one_bit_of_a_manifest_is_told(at, bit):
    raw = versions.seal(
        {"format": "p2es-dataset", "version": 2, "schema_version": SCHEMA_VERSION, "number": 1, "x": []}
    )
    changed = bytearray(raw)
    changed[at % len(raw)] ^= 1 << bit
    with pytest.raises(DatasetError):
        versions.unseal(bytes(changed), "it")


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False) | st.none()))
def test_what_is_sealed_is_unsealed(values):
    body = {**values, "format": "p2es-dataset", "version": 2, "schema_version": SCHEMA_VERSION}
    body.pop("checksum", None)
    opened = versions.unseal(versions.seal(body), "it")
    assert json.loads(json.dumps(body)) == {k: v for k, v in opened.items() if k != "checksum"}


def test_versions_differ_by_what_was_added_and_taken_out(url, twelve_windows):
    one, two = Dataset.open(url, 1), Dataset.open(url)
    found = diff(one, two)
    assert found.added == {
        "windows": {"train of simulated": 3, "validation of simulated": 3},
        "recordings": {"train of simulated": 1, "validation of simulated": 1},
        "people": {"train of simulated": 1, "validation of simulated": 1},
    }
    assert not any(found.removed.values())
    back = diff(two, one)
    assert (back.removed, back.added) == (found.added, found.removed)
    assert diff(two, two).same
    gone = of_people(twelve_windows, 0)[:2]
    part = rewrite_part(url, two.parts[0], {w.window_id: "near_duplicate" for w in gone})
    three = commit(url, [part, two.parts[1]], {"step_s": 5.0})
    found = diff(two, three)
    assert found.removed == {"windows": {"train of simulated": 2}, "recordings": {}, "people": {}}
    assert found.configuration == {"step_s": (10.0, 5.0)}
    assert not any(found.added.values())


def test_windows_that_are_left_out_later_move_to_the_quarantine(url, twelve_windows):
    before = Dataset.open(url)
    part = before.parts[0]
    first, second, _ = of_people(twelve_windows, 0)
    assert second.enrolment == first.window_id
    made = rewrite_part(url, part, {first.window_id: "near_duplicate"}, "of another")
    after = commit(url, [made, before.parts[1]], {"step_s": 10.0})
    after.verify()
    assert (made.candidates, made.rows) == (part.candidates, part.rows - 1)
    assert made.quarantined == {"near_duplicate": 1, "ppg_poor": 3}
    assert made.people == part.people
    (row,) = (row for row in after.quarantine().to_pylist() if row["reason"] == "near_duplicate")
    assert (row["record"], row["detail"], row["count"], row["what"]) == (first.recording, "of another", 1, "window")
    tables = [table for table in after.read_windows("train", ["window_id", "enrolment"]) if table.num_rows]
    left = {row["window_id"]: row["enrolment"] for table in tables for row in table.to_pylist()}
    assert first.window_id not in left
    assert left[second.window_id] is None
    # The untouched version still has all of its files, and a resumed ingest finds what was read, not what was left.
    Dataset.open(url, 2).verify()
    assert finished_part(url, "a") == part
    assert "not all windows" in refusal(rewrite_part, url, part, {"nobody": "near_duplicate"})


def test_a_part_all_of_whose_windows_are_left_out_is_still_accounted_for(url, twelve_windows):
    before = Dataset.open(url)
    dropped = dict.fromkeys((w.window_id for w in of_people(twelve_windows, 1, 3)), "near_duplicate")
    made = rewrite_part(url, before.parts[1], dropped)
    assert (made.shards, made.candidates, made.quarantined, made.people) == ((), 6, {"near_duplicate": 6}, {})
    commit(url, [before.parts[0], made], {}).verify()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 7))
def test_the_bytes_do_not_depend_on_how_windows_were_handed_over(twelve_windows, sizes, rows):
    whole = write("memory://whole", "k", twelve_windows, rows=rows)
    with PartWriter("memory://pieces", "k", "simulated", rows=rows) as writer:
        left = list(twelve_windows)
        for size in sizes:
            writer.add(left[:size])
            left = left[size:]
        writer.add(iter(left))
        made = writer.finish({w.recording: f"sha of {w.recording}" for w in twelve_windows}, len(twelve_windows))
    assert made == whole
    assert all(shard.rows <= rows for shard in made.shards)
    assert storage.find("memory://whole").keys() == storage.find("memory://pieces").keys()


def test_windows_are_written_as_they_come(tmp_path, twelve_windows):
    """However many there are, a writer holds those of two shards a split: those that wait, and those just drawn."""
    url, window = str(tmp_path / "d"), twelve_windows[0]

    def many():
        for k in range(20):
            written = len(storage.listing(f"{url}/shards/train"))
            assert k - 2 * written <= 4
            yield dataclasses.replace(window, window_id=str(k))

    with PartWriter(url, "k", "simulated", rows=2) as writer:
        writer.add(many())
        assert writer.finish({}, 20).rows == 20


def test_a_writer_that_does_not_finish_leaves_nothing_that_counts(tmp_path, twelve_windows):
    url = str(tmp_path / "d")
    with PartWriter(url, "k", "simulated", rows=2) as writer:
        writer.add(twelve_windows)
    assert storage.listing(f"{url}/shards/train")
    assert finished_part(url, "k") is None
    assert "no dataset" in refusal(Dataset.open, url)
    assert write(url, "k", twelve_windows, rows=2) == finished_part(url, "k")
