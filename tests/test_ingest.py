import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from simulated import monitored

from p2es.errors import DatasetError, InputError
from p2es.formats import ReadOptions, find_records, survey
from p2es.reasons import explain
from p2es.simulator.archive import write_wfdb
from p2es.windows import decode
from p2es_platform import storage
from p2es_platform.dataset import Dataset
from p2es_platform.settings import Settings
from pipelines import dataset_report, datasets, ingest, reading
from pipelines.names import left_out
from pipelines.reading import split_of
from pipelines.recipes import IngestConfig, demo

PEOPLE = 6


def recipe(**changes):
    return dataclasses.replace(demo(), ingest=IngestConfig(source="tests", task_records=2, **changes))


def add_people(folder, people):
    for index in people:
        write_wfdb(monitored(5, index, 32.0), folder)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """An archive of simulated people, not to be changed."""
    folder = tmp_path_factory.mktemp("people")
    add_people(folder, range(PEOPLE))
    return folder


@pytest.fixture
def archive(people, tmp_path):
    return Path(shutil.copytree(people, tmp_path / "archive"))


def run(settings, archive, name="d", **changes):
    return ingest.run(recipe(**changes), settings, archive=str(archive), name=name)


def refusal(action, *arguments, **options):
    with pytest.raises(DatasetError) as refused:
        action(*arguments, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def windows_of(dataset):
    return [w for split in ("train", "validation", "test") for t in dataset.read_windows(split) for w in decode(t)]


def test_an_archive_becomes_a_dataset_once(local_ray, settings, people):
    first = run(settings, people)
    assert (first.windows, first.people, first.quarantined, first.reused) == (3 * PEOPLE, PEOPLE, {}, False)
    dataset = Dataset.open(first.url)
    dataset.verify()
    windows = windows_of(dataset)
    assert all(w.simulated and w.lead_mask.all() and w.ppg is not None for w in windows)
    before = {path: path.stat().st_mtime_ns for path in Path(first.url).rglob("*") if path.name != ".lock"}
    second = run(settings, people)
    assert second == dataclasses.replace(first, reused=True)
    assert {path: path.stat().st_mtime_ns for path in Path(first.url).rglob("*") if path.name != ".lock"} == before


def test_what_is_new_is_added_and_what_was_there_stays(local_ray, settings, archive):
    old = Dataset.open(run(settings, archive).url)
    add_people(archive, range(PEOPLE, PEOPLE + 3))
    result = run(settings, archive)
    new = Dataset.open(result.url)
    new.verify()
    assert (result.windows, result.people) == (3 * (PEOPLE + 3), PEOPLE + 3)
    assert {s.sha256 for s in old.shards()} < {s.sha256 for s in new.shards()}
    assert old.hash != new.hash


def test_shards_are_the_same_bytes_with_and_without_ray_and_in_any_order(
    local_ray, settings, archive, people, tmp_path
):
    url = run(settings, people).url
    alone = tmp_path / "alone"
    how = json.dumps(ingest._how(recipe().ingest, settings), sort_keys=True)
    task = reading.ReadTask(recipe().ingest, settings, str(alone), how, ReadOptions())
    # The same files, made in another order, read by this process, the last batch first.
    records = ingest._new_records(find_records(str(archive)), [], task)
    for start in reversed(range(0, PEOPLE, 2)):
        task.part(records[start : start + 2])
    for shard in Dataset.open(url).shards():
        assert (alone / shard.path).read_bytes() == (Path(url) / shard.path).read_bytes()


def test_one_bad_record_costs_no_other(local_ray, settings, archive):
    names = [reference.name for reference in find_records(str(archive))]
    header = archive / f"{names[0]}.hea"
    record, signals, _, rest = header.read_text().split(" ", 3)
    header.write_text(f"{record} {signals} nan {rest}")
    (archive / f"{names[1]}.dat").unlink()
    (archive / "notes.csv").write_text("age,sex\n5,F\n")
    scaled = archive / f"{names[2]}.hea"
    lines = scaled.read_text().splitlines()
    # Names swapped between a limb and a chest lead: no gain puts that right.
    swapped = {" I": " V3", " V3": " I"}
    lines = [next((line.removesuffix(a) + b for a, b in swapped.items() if line.endswith(a)), line) for line in lines]
    scaled.write_text("\n".join(lines) + "\n")
    result = run(settings, archive)
    assert result.people == PEOPLE - 3
    dataset = Dataset.open(result.url)
    found = {(line.record, line.reason) for line in left_out(dataset, settings, "tests", str(archive))}
    assert {(names[0], "rate"), (names[1], "missing_file"), ("notes.csv", "layout"), (names[2], "lead_laws")} <= found
    assert result.records == PEOPLE + 1
    assert result.candidates == result.windows + sum(
        row["count"] for row in dataset.quarantine().to_pylist() if row["what"] == "window"
    )
    assert all(result.quarantined[reason] == 1 for reason in ("rate", "missing_file", "layout", "lead_laws"))
    assert run(settings, archive).reused


def test_a_copy_under_another_name_is_read_once(local_ray, settings, archive):
    (archive / "copy").mkdir()
    for path in list(archive.glob("*000003*")):
        shutil.copy(path, archive / "copy")
    result = run(settings, archive)
    Dataset.open(result.url).verify()
    assert (result.windows, result.quarantined) == (3 * PEOPLE, {"duplicate": 1})
    assert run(settings, archive).reused


def test_a_record_that_changed_is_not_mixed_with_what_it_was(local_ray, settings, archive):
    url = run(settings, archive).url
    before = (Path(url) / "manifest.json").read_bytes()
    header = next(archive.glob("*000002*.hea"))
    header.write_text(header.read_text() + "# age: 77\n")
    assert "changed" in refusal(run, settings, archive)
    assert (Path(url) / "manifest.json").read_bytes() == before


def test_one_dataset_is_of_one_configuration_and_one_secret(local_ray, settings, people):
    run(settings, people)
    assert "step_s" in refusal(run, settings, people, step_s=5.0)
    other = Settings(storage=settings.root, secret="another")
    assert "secret" in refusal(run, other, people)


def test_a_lost_shard_is_made_again_as_it_was(local_ray, settings, people):
    result = run(settings, people)
    dataset = Dataset.open(result.url)
    victim, other = dataset.shards()[:2]
    (Path(result.url) / victim.path).unlink()
    (Path(result.url) / other.path).write_bytes(b"short")
    again = run(settings, people)
    assert not again.reused
    assert Dataset.open(result.url).hash == dataset.hash
    Dataset.open(result.url).verify()


def test_only_hashed_ids_are_stored(local_ray, settings, people):
    url = run(settings, people).url
    for path in Path(url).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"person-0000" not in content
            assert b"record-0000" not in content
            assert str(people).encode() not in content
    dataset = Dataset.open(url)
    persons = {row["person"] for row in dataset.people().to_pylist()}
    assert persons == {settings.hashed_id("tests", "person", f"person-{k:06d}") for k in range(PEOPLE)}


def test_an_archive_without_any_window_says_why(local_ray, settings, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.hea").write_text("x 1 nan 10\nx.dat 16 200/mV 16 0 0 0 0 II\n")
    assert "rate (1)" in refusal(run, settings, tmp_path / "a")
    with pytest.raises(InputError):
        run(settings, tmp_path / "nothing")


def test_a_second_ingest_of_a_dataset_is_refused_while_one_runs(settings, people):
    with storage.writer_lock(settings.path("datasets", "d")):
        assert "another process" in refusal(run, settings, people)


def test_datasets_of_different_archives_have_different_names(tmp_path):
    names = [
        ingest._name(recipe(**changes), str(tmp_path / place / "data"))
        for place, changes in (("a", {}), ("b", {}), ("a", {"step_s": 5.0}), ("a", {"salt": "x"}))
    ]
    assert len(set(names)) == 4


def test_people_are_split_by_their_shares_whoever_else_is_there():
    config = recipe().ingest
    splits = Counter(split_of(config, f"p{k}") for k in range(20_000))
    assert splits["test"] / 20_000 == pytest.approx(config.test_share, abs=0.01)
    assert splits["validation"] / 20_000 == pytest.approx(config.validation_share, abs=0.01)
    more = dataclasses.replace(config, test_share=config.test_share + 0.1)
    moved = [
        (split_of(config, f"p{k}"), split_of(more, f"p{k}")) for k in range(2000) if split_of(config, f"p{k}") == "test"
    ]
    assert {after for _, after in moved} == {"test"}


def test_the_split_depends_on_salt_and_source_and_person():
    config = recipe().ingest

    def splits(config):
        return [split_of(config, f"p{k}") for k in range(200)]

    assert splits(config) == splits(config)
    assert splits(config) != splits(dataclasses.replace(config, salt="other"))
    assert splits(config) != splits(dataclasses.replace(config, source="other"))


INGEST = """
import dataclasses, sys
from pipelines import ingest
from pipelines.recipes import IngestConfig, demo
from p2es_platform.cluster import connect
from p2es_platform.settings import Settings
root, archive = sys.argv[1:]
recipe = dataclasses.replace(demo(), ingest=IngestConfig(source="tests", task_records=1))
settings = Settings(storage=root, secret="a secret of the tests")
with connect(settings, local_cpus=1, object_store_mb=100):
    print("running", flush=True)
    ingest.run(recipe, settings, archive=archive, name="d")
print("ended", flush=True)
"""


def test_a_killed_ingest_resumes_and_gives_the_same_dataset(local_ray, settings, archive):
    add_people(archive, range(PEOPLE, PEOPLE + 18))
    whole = ingest.run(
        dataclasses.replace(demo(), ingest=IngestConfig(source="tests", task_records=1)),
        settings, archive=str(archive), name="whole",
    )  # fmt: skip
    url = Path(settings.path("datasets", "d"))
    killed = subprocess.Popen(
        [sys.executable, "-c", INGEST, settings.root, str(archive)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while len(list(url.glob("parts/*/*.json"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(killed.pid, signal.SIGKILL)
        output, _ = killed.communicate(timeout=20)
        assert output == "running\n"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(killed.pid, signal.SIGKILL)
    finished = {str(path): path.stat().st_mtime_ns for path in url.glob("parts/*/*.json")}
    assert 3 <= len(finished) < PEOPLE + 18
    assert "no dataset" in refusal(Dataset.open, str(url))
    # A worker of the killed run may still be writing: its file is whole, and the same as ours, or not there.
    resumed = ingest.run(
        dataclasses.replace(demo(), ingest=IngestConfig(source="tests", task_records=1)),
        settings, archive=str(archive), name="d",
    )  # fmt: skip
    assert (resumed.windows, resumed.people) == (whole.windows, whole.people)
    dataset = Dataset.open(str(url))
    dataset.verify()
    assert dataset.hash == Dataset.open(whole.url).hash
    assert {name: Path(name).stat().st_mtime_ns for name in finished} == finished


def test_a_full_disk_reaches_the_user_as_one_line(settings, people):
    script = """
import json, resource, signal, sys, dataclasses
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from p2es.formats import ReadOptions, find_records, survey
from p2es_platform.settings import Settings
from pipelines.reading import ReadTask, Record
from pipelines.recipes import IngestConfig
settings = Settings(storage=sys.argv[1], secret="x")
task = ReadTask(IngestConfig(source="tests"), settings, settings.path("datasets", "d"), "how", ReadOptions())
records = [Record(r, r.name, r.name) for r in find_records(sys.argv[2])]
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
row = {"row": 0, "batch": json.dumps([dataclasses.asdict(r) for r in records])}
print(task(row)["error"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, settings.root, str(people)], capture_output=True, text=True, check=True
    )
    assert "no space left" in done.stdout
    assert done.stdout.count("\n") == 1
    assert not [path for path in Path(settings.root).rglob("*.p*") if path.is_file()]


def test_a_pulse_that_is_upside_down_is_turned_flagged_and_counted(local_ray, settings, tmp_path):
    recording = monitored(5, 1, 42.0)
    ppg = dataclasses.replace(recording.signals[12], samples=-recording.signals[12].samples)
    write_wfdb(dataclasses.replace(recording, signals=(*recording.signals[:12], ppg)), tmp_path / "down")
    write_wfdb(recording, tmp_path / "up")
    turned, upright = (run(settings, tmp_path / way, name=way) for way in ("down", "up"))
    assert turned.quarantined == {"ppg_turned": 4}
    assert (turned.windows, turned.candidates) == (upright.windows, upright.candidates)
    for mine, truth in zip(*(windows_of(Dataset.open(result.url)) for result in (turned, upright)), strict=True):
        assert mine.flags == ("ppg_turned:Pleth",)
        # 16 bits of the file and of the dataset.
        assert np.abs(mine.ppg - truth.ppg).max() < 2e-3
    Dataset.open(turned.url).verify()
    page = dataset_report.run(turned.url, settings, tmp_path / "report.html").read_text()
    assert "ppg_turned:Pleth" in page
    assert explain("ppg_turned") in page
    assert "Changed and kept" in page
    assert "changed, kept         ppg_turned" in str(datasets.show(turned.url))


def test_every_file_of_the_real_archives_is_accounted_for(recordings):
    for folder in sorted(path for path in recordings.iterdir() if path.is_dir()):
        found = survey(str(folder))
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        named = {Path(record.path).relative_to(folder).as_posix() for record in found.records}
        assert named | set(found.companions) | set(found.documents) | set(found.hidden) == files
        assert len(named) + len(found.companions) + len(found.documents) + len(found.hidden) == len(files)


REAL = {
    # Folder: records, window positions, windows, and what else was left out.
    "aecg": (8, 7, 1, {"no_signal", "shorter_than_a_window", "duplicate"}),
    "bidmc": (1, 47, 47, {"ppg_poor"}),
    "cinc2021": (21, 21, 21, set()),
    "cpsc2018": (6, 6, 6, set()),
    "icu": (4, 87, 80, {"no_signal", "duplicate", "ecg_missing"}),
    "ludb": (80, 80, 80, set()),
    "ncku": (18, 257, 244, {"ppg_poor", "duplicate"}),
    "neurokit": (1, 29, 29, set()),
    "wfdb": (21, 650, 491, {"missing_file", "missing_segment", "no_signal", "ppg_wrapped", "duplicate", "amplitude"}),
}


def test_real_archives_become_datasets_and_what_cannot_is_told(local_ray, settings, recordings):
    for folder, (records, candidates, windows, reasons) in REAL.items():
        config = IngestConfig(source=folder)
        result = ingest.run(dataclasses.replace(demo(), ingest=config), settings, archive=str(recordings / folder))
        dataset = Dataset.open(result.url)
        dataset.verify()
        rejected = sum(row["count"] for row in dataset.quarantine().to_pylist() if row["what"] == "window")
        assert (result.records, result.candidates) == (records, candidates)
        # A threshold may fall the other way by a window on another machine's arithmetic; the accounts may not.
        assert abs(result.windows - windows) <= max(1, windows // 100)
        assert result.candidates == result.windows + rejected
        assert reasons <= set(result.quarantined)
    for folder, reason in (("ptt_ppg_headers", "missing_file"), ("mimic3", "ecg_missing"), ("ptbxl", "people")):
        with pytest.raises((DatasetError, InputError), match=reason):
            run(settings, recordings / folder, name=folder)


@pytest.mark.slow
def test_hours_of_intensive_care_become_a_dataset(local_ray, settings, recordings):
    result = run(settings, recordings / "mimic4")
    Dataset.open(result.url).verify()
    assert result.windows > 2000
    assert result.people == 1


def test_an_archive_in_a_bucket_is_the_same_dataset(local_ray, settings, archive, recordings_of_segments):
    shutil.copytree(recordings_of_segments, archive / "p000123")
    here = run(settings, archive)
    away = Settings(storage=f"file://{settings.root}-away", secret=settings.secret)
    there = run(away, f"file://{archive}")
    assert there.url.startswith("file://")
    assert dataclasses.replace(there, url="") == dataclasses.replace(here, url="")
    Dataset.open(there.url).verify()
    assert Dataset.open(there.url).hash == Dataset.open(here.url).hash
    assert run(away, f"file://{archive}").reused
    with pytest.raises(InputError, match="there is no"):
        run(away, f"file://{archive}/none")


@pytest.fixture
def recordings_of_segments(tmp_path):
    """A record of two segments in one folder."""
    folder = tmp_path / "segments"
    for index in (40, 41):
        recording = dataclasses.replace(monitored(5, index, 32.0), record=f"part{index}")
        write_wfdb(recording, folder)
    length = (folder / "part40.hea").read_text().split()[3]
    lines = [f"p000123-2137-01-01/2 13 250 {2 * int(length)}", f"part40 {length}", f"part41 {length}"]
    (folder / "p000123-2137-01-01.hea").write_text("\n".join(lines) + "\n")
    return folder
