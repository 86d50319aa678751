"""Deleting a person, collecting, verifying; the lists of splits; what `p2es dataset` prints."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2es.errors import DatasetError, InputError
from p2es.windows import WINDOW_SCHEMA
from p2es_platform import maintenance, mlflow_client, splits, storage, versions
from p2es_platform.dataset import Dataset, PartWriter, commit, rewrite_part
from p2es_platform.exposure import models_that_saw
from p2es_platform.verifying import problems
from pipelines import datasets

RULE = {"salt": "salt", "source": "simulated", "validation_share": 0.15, "test_share": 0.15}


def of_people(windows, *people):
    return [w for w in windows if w.person.endswith(tuple(f"{k:06d}" for k in people))]


def write(url, key, windows, left_out=(), **changes):
    with PartWriter(url, key, "simulated", rows=4) as writer:
        writer.add(windows)
        for row in left_out:
            writer.leave_out(row)
        tried = len(windows) + sum(row["count"] for row in left_out if row["what"] == "window")
        part = writer.finish({w.recording: f"sha of {w.recording}" for w in windows}, tried, {"ppg_poor": 1})
    return forged(url, part, **changes) if changes else part


def forged(url, part, **changes):
    """A part as a faulty writer would make it."""
    part = dataclasses.replace(part, **changes)
    storage.write_atomic(storage.join(url, part.path), part.to_bytes())
    return part


def rejected(person, count=2):
    return {"record": f"record of {person}", "source": "simulated", "what": "window", "reason": "ppg_flat",
            "detail": "", "count": count, "person": person}  # fmt: skip


def refusal(kind, action, *arguments, **options):
    with pytest.raises(kind) as refused:
        action(*arguments, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def people(twelve_windows):
    return [of_people(twelve_windows, k)[0].person for k in range(4)]


@pytest.fixture
def url(tmp_path, twelve_windows, people):
    """Three versions: people 0 and 2; 1 and 3 beside them; then without a window of 1."""
    url = str(tmp_path / "d")
    left_out = [rejected(people[0]), rejected(people[2], 1)]
    one = commit(url, [write(url, "a", of_people(twelve_windows, 0, 2), left_out)], RULE, 0)
    two = commit(url, [*one.parts, write(url, "b", of_people(twelve_windows, 1, 3))], RULE, 1)
    gone = of_people(twelve_windows, 1)[0].window_id
    commit(url, [two.parts[0], rewrite_part(url, two.parts[1], {gone: "near_duplicate"})], RULE, 2)
    return url


def bytes_that_say(url, text):
    return [path for path in Path(url).rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_deleted_person_is_gone_from_every_file_but_the_tombstone(url, people, twelve_windows):
    hashes = {Dataset.open(url, number).hash for number in (1, 2, 3)}
    others = [row for row in Dataset.open(url).people().to_pylist() if row["person"] != people[0]]
    write(url, "killed", [dataclasses.replace(w, recording="x") for w in of_people(twelve_windows, 0)])
    groups = Path(url) / "groups"
    groups.mkdir()
    for name, digest in (("old", Dataset.open(url, 1).hash), ("other", "0" * 64)):
        (groups / f"{name}.json").write_text(json.dumps({"dataset_hash": digest}))
        (groups / f"{name}.parquet").write_bytes(b"")
    done = maintenance.delete_person(url, people[0])
    assert (done.version, done.windows, done.purged) == (4, 3, (1, 2, 3))
    assert set(done.hashes) == hashes
    after = Dataset.open(url)
    after.verify()
    assert after.people().to_pylist() == others
    assert after.deleted == {people[0]}
    assert versions.numbers(url) == [4]
    assert {path.name for path in bytes_that_say(url, people[0])} == {"manifest.json", "000004.json"}
    assert all(people[0] not in json.dumps(part) for part in after.manifest["parts"])
    assert not [shard for shard in after.shards() if people[0] in after.read(shard)["person"].to_pylist()]
    assert [row["person"] for row in after.quarantine().to_pylist() if row["reason"] == "ppg_flat"] == [people[2]]
    assert sorted(path.name for path in groups.iterdir()) == ["other.json", "other.parquet"]


def test_a_deleted_person_cannot_come_back(url, people, twelve_windows):
    maintenance.delete_person(url, people[0])
    again = write(url, "c", [dataclasses.replace(w, recording="new") for w in of_people(twelve_windows, 0)])
    assert "was deleted" in refusal(DatasetError, commit, url, [*Dataset.open(url).parts, again], RULE)
    commit(url, Dataset.open(url).parts, RULE)
    assert Dataset.open(url).deleted == {people[0]}


def test_who_was_in_a_removed_version_stays_answerable(url, people):
    """The second person is deleted when the versions that had them are gone already, with the first."""
    hashes = {number: Dataset.open(url, number).hash for number in (1, 2, 3)}
    maintenance.delete_person(url, people[0])
    four = Dataset.open(url).hash
    assert not bytes_that_say(f"{url}/history", "person")
    done = maintenance.delete_person(url, people[3])
    assert set(done.hashes) == {hashes[2], hashes[3], four}
    assert set(maintenance.delete_person(url, people[0]).hashes) == set(hashes.values())


def test_a_deletion_is_repeated_without_another_version(url, people):
    first = maintenance.delete_person(url, people[2])
    again = maintenance.delete_person(url, people[2])
    assert (again.version, again.windows, again.hashes) == (first.version, 0, first.hashes)
    assert "check the id" in refusal(DatasetError, maintenance.delete_person, url, "nobody")


def test_models_that_saw_a_person_are_listed(url, people, settings):
    digest = Dataset.open(url).hash
    client = mlflow_client.connect(settings.tracking_uri)
    experiment = client.create_experiment("p2es")
    for name, tag in (("saw", digest), ("did-not", "0" * 64)):
        client.create_run(experiment, run_name=name, tags={"p2es.dataset_hash": tag})
    folder = Path(settings.path("models", "demo-1"))
    folder.mkdir(parents=True)
    (folder / "lineage.json").write_text(json.dumps({"dataset_hash": digest}))
    done = maintenance.delete_person(url, people[1])
    found = models_that_saw(done.hashes, settings)
    assert [(model.kind, model.name.split()[0]) for model in found] == [("run", "saw"), ("folder", "models/demo-1")]
    assert models_that_saw([], settings) == []


def test_collecting_removes_what_no_version_names_and_nothing_else(url, twelve_windows):
    leftover = write(url, "killed", of_people(twelve_windows, 0))
    (Path(url) / "shards" / "train" / ".x.parquet.123.partial").write_bytes(b"half")
    named = {path for path in storage.find(url) if "killed" not in path and not path.endswith(".partial")} | {".lock"}
    expected = {*leftover.files(), "shards/train/.x.parquet.123.partial"}
    assert maintenance.collect(url).spared == len(expected)
    plan = maintenance.collect(url, grace_s=0, dry_run=True)
    assert set(plan.files) == expected
    assert storage.find(url).keys() == named | expected
    done = maintenance.collect(url, grace_s=0)
    assert done.files == plan.files
    assert storage.find(url).keys() == named
    for number in versions.numbers(url):
        Dataset.open(url, number).verify()


def test_collecting_old_versions_keeps_the_newest_whole(url):
    before = Dataset.open(url)
    plan = maintenance.collect(url, keep_versions=1, grace_s=0, dry_run=True)
    done = maintenance.collect(url, keep_versions=1, grace_s=0)
    assert done.versions == plan.versions == (1, 2)
    assert done.files == plan.files != {}
    assert Dataset.open(url).manifest == before.manifest
    before.verify()
    assert [body["number"] for body in versions.remembered(url)] == [1, 2]
    assert "has no version 1" in refusal(DatasetError, Dataset.open, url, 1)
    assert "always stays" in refusal(DatasetError, maintenance.collect, url, keep_versions=0)


def test_a_running_writer_or_a_damaged_version_stops_collection_and_deletion(url, people):
    with storage.writer_lock(url):
        assert "another process" in refusal(DatasetError, maintenance.collect, url)
        assert "another process" in refusal(DatasetError, maintenance.delete_person, url, people[0])
    path = Path(url) / versions.version_path(1)
    path.write_bytes(path.read_bytes()[:-3])
    before = storage.find(url).keys()
    refusal(DatasetError, maintenance.collect, url, grace_s=0)
    assert "000001.json" in refusal(DatasetError, maintenance.delete_person, url, people[0])
    assert storage.find(url).keys() == before


def planted(tmp_path, parts):
    url = str(tmp_path / "planted")
    commit(url, parts(url), RULE, 0)
    return problems(Dataset.open(url))


def test_a_person_in_two_splits_is_named_by_hash(tmp_path, twelve_windows, people):
    moved = [dataclasses.replace(w, split="test", recording="x", window_id=f"x{w.window_id}")
             for w in of_people(twelve_windows, 0)]  # fmt: skip
    found = planted(tmp_path, lambda url: [write(url, "a", of_people(twelve_windows, 0)),
                                           write(url, "b", moved, people={})])  # fmt: skip
    assert any(people[0][:12] in line and "test and train" in line for line in found)


def test_the_same_signals_in_two_splits_are_found(tmp_path, twelve_windows, people):
    window = of_people(twelve_windows, 0)[0]
    copy = dataclasses.replace(window, person="copied", split="test", recording="x", window_id="x")
    if "content" not in WINDOW_SCHEMA.names:
        pytest.skip("windows have no digest of their content yet")
    found = planted(tmp_path, lambda url: [write(url, "a", [window]), write(url, "b", [copy])])
    (line,) = found
    assert people[0][:12] in line
    assert "copied" in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"candidates": 7}, "tried 7 windows, has 6 and left out 2"),
        ({"quarantined": {"ppg_flat": 1}}, "another quarantine"),
    ],
)
def test_counts_that_do_not_add_up_are_found(tmp_path, twelve_windows, people, changes, said):
    left_out = [rejected(people[1])]
    found = planted(tmp_path, lambda url: [write(url, "a", of_people(twelve_windows, 1, 3), left_out, **changes)])
    assert len(found) == 1
    assert said in found[0]


def test_rows_of_another_split_source_or_number_are_found(tmp_path, twelve_windows):
    def parts(url):
        part = write(url, "a", of_people(twelve_windows, 1))
        (shard,) = part.shards
        return [forged(url, part, shards=(dataclasses.replace(shard, split="test", rows=4),), people={}, candidates=4)]

    found = planted(tmp_path, parts)
    assert any("has 3 windows, the manifest says 4" in line for line in found)
    found = planted(
        tmp_path / "2",
        lambda url: [forged(url, write(url, "a", of_people(twelve_windows, 1)), shards=tuple(
            dataclasses.replace(s, source="else") for s in write(url, "a", of_people(twelve_windows, 1)).shards))],
    )  # fmt: skip
    assert any("another source than else" in line for line in found)


def test_verifying_names_every_problem_and_shows_progress(url):
    dataset = Dataset.open(url)
    for shard in dataset.shards():
        path = Path(url) / shard.path
        path.write_bytes(path.read_bytes()[::-1])
    seen = []
    found = problems(dataset, seen.append)
    assert seen == dataset.shards()
    assert all(any(shard.path in line for line in found) for shard in seen)
    assert "more)" in refusal(DatasetError, dataset.verify)


rules = st.builds(splits.SplitRule, st.text(), st.text(), st.floats(0, 0.5), st.floats(0, 0.5))


@settings(deadline=None)
@given(rules, st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20))
def test_a_split_list_is_read_back_and_right(rule, people):
    data = splits.write_list(rule, people)
    found, listed = splits.read_list(data)
    assert found == rule
    assert listed == {person: rule.split_of(person) for person in people}
    assert splits.wrong_rows(data) == []


def test_a_split_list_that_was_changed_is_found():
    rule = splits.SplitRule("salt", "mimic", 0.15, 0.15)
    data = splits.write_list(rule, [f"p{k}" for k in range(200)])
    moved = next(f"p{k}" for k in range(200) if rule.split_of(f"p{k}") == "train")
    assert splits.wrong_rows(data.replace(f'"{moved}","train"'.encode(), f'"{moved}","test"'.encode())) == [moved]
    assert len(splits.wrong_rows(data.replace(b'"salt": "salt"', b'"salt": "other"'))) > 50
    for broken in (
        b"",
        b"person,split\n",
        data.replace(b"list 1", b"list 2"),
        data + b"p7,train\n" * 2,
        b"\xff" + data,
    ):
        assert "no split list" in refusal(InputError, splits.read_list, broken)


def test_the_shares_of_a_split_are_what_the_rule_says():
    rule = splits.SplitRule("salt", "mimic", 0.15, 0.25)
    split = [rule.split_of(f"p{k}") for k in range(20_000)]
    assert split.count("test") / 20_000 == pytest.approx(0.25, abs=0.01)
    assert split.count("validation") / 20_000 == pytest.approx(0.15, abs=0.01)


def test_a_dataset_is_shown_in_words(url):
    text = str(datasets.show(url))
    assert re.search(r"windows +11 \(train 5, test 3, validation 3\)", text)
    assert re.search(r"tried +15 windows = 11 kept \+ 4 left out", text)
    assert re.search(r"windows left out +ppg_flat 3, near_duplicate 1", text)
    assert re.search(r"people +4 ", text)
    assert datasets.verify(url, quiet=True).ok
    listed = str(datasets.list_versions(url)).splitlines()
    assert [line.split()[0] for line in listed] == ["1", "2", "3"]
    assert "-1 windows: train of simulated 1" in str(datasets.diff(url, None))
    assert "+5 windows: validation of simulated 3, train of simulated 2" in str(datasets.diff(url, 1))
    assert str(datasets.diff(url, 3, 3)) == "nothing differs"
    assert "would remove 0 files" in str(datasets.collect(url, dry_run=True))


def test_a_person_is_deleted_by_the_archives_id(tmp_path, twelve_windows, settings):
    url = str(tmp_path / "hashed")
    names = {w.person: settings.hashed_id("simulated", "person", w.person) for w in twelve_windows}
    windows = [dataclasses.replace(w, person=names[w.person]) for w in twelve_windows]
    commit(url, [write(url, "a", windows)], RULE, 0)
    person = twelve_windows[0].person
    text = str(datasets.delete(url, person, "simulated", settings))
    assert "version 2 of hashed is without the person: 3 windows fewer" in text
    assert "no model saw the person" in text
    assert "backups" in text
    assert str(datasets.list_versions(url)).splitlines()[0].endswith("removed")


def test_a_published_split_list_is_checked_against_the_dataset(tmp_path, twelve_windows, settings):
    url, rule = str(tmp_path / "d"), splits.SplitRule(**RULE)
    people = {w.person for w in twelve_windows}
    windows = [dataclasses.replace(w, person=settings.hashed_id("simulated", "person", w.person),
                                   split=rule.split_of(w.person)) for w in twelve_windows]  # fmt: skip
    commit(url, [write(url, "a", windows)], RULE, 0)
    assert "4 people" in str(datasets.split_list(url, settings, source="simulated"))
    path = tmp_path / "splits.csv"
    path.write_bytes(splits.write_list(rule, [*people, "another"]))
    answer = datasets.split_list(url, settings, source="simulated", check=str(path))
    assert answer.ok
    assert "5 people, all 4 of the dataset" in str(answer)
    path.write_bytes(splits.write_list(dataclasses.replace(rule, test_share=0.85), sorted(people)[:3]))
    answer = datasets.split_list(url, settings, source="simulated", check=str(path))
    assert not answer.ok
    assert "1 people of the dataset are not in the list" in str(answer)
    assert "in another split" in str(answer)
    assert "cannot be read" in refusal(
        InputError, datasets.split_list, url, settings, source="simulated", check=str(tmp_path / "none")
    )
