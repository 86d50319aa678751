"""What must not happen in an ingest: loss, repetition, leaks between people, names kept."""

import contextlib
import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from simulated import monitored

from p2es.errors import DatasetError, P2EsError
from p2es.recording import SignalKind
from p2es.simulator.archive import write_wfdb
from p2es_platform.dataset import Dataset
from p2es_platform.maintenance import delete_person
from pipelines import ingest
from pipelines.names import left_out, people_of
from pipelines.reading import split_of
from pipelines.recipes import IngestConfig, demo


def recipe(**changes):
    return dataclasses.replace(demo(), ingest=IngestConfig(**{"source": "tests", "task_records": 2, **changes}))


def run(settings, archive, name="d", **changes):
    return ingest.run(recipe(**changes), settings, archive=str(archive), name=name)


def add_people(folder, people, duration_s=32.0):
    for index in people:
        write_wfdb(monitored(5, index, duration_s), folder)


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "archive"
    add_people(folder, range(6))
    return folder


def shards(url):
    return {path.relative_to(url): path.read_bytes() for path in Path(url).glob("shards/*/*.parquet")}


ALONE = """
import dataclasses, sys
from p2es_platform.cluster import connect
from p2es_platform.settings import Settings
from pipelines import ingest
from pipelines.recipes import IngestConfig, demo
recipe = dataclasses.replace(demo(), ingest=IngestConfig(source="tests", task_records=2))
settings = Settings(storage=sys.argv[1], secret="a secret of the tests")
with connect(settings, local_cpus=int(sys.argv[3]), object_store_mb=100):
    print(ingest.run(recipe, settings, archive=sys.argv[2], name="d").url)
"""


@pytest.mark.slow
def test_one_worker_makes_the_bytes_of_four(local_ray, settings, archive, tmp_path):
    many = run(settings, archive).url
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "alone"), str(archive), "1"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert shards(done.stdout.split()[-1]) == shards(many)


def test_workers_that_are_killed_while_they_write_lose_and_repeat_nothing(local_ray, settings, archive):
    add_people(archive, range(6, 24), 62.0)
    whole = run(settings, archive, "whole", task_records=1)
    victims = []

    def kill() -> None:
        deadline = time.monotonic() + 60
        while len(victims) < 3 and time.monotonic() < deadline:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "ReadTask" in " ".join(process.cmdline()) or "ReadTask" in process.name():
                        process.kill()
                        victims.append(process.pid)
                        time.sleep(0.7)
                        break
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    result = run(settings, archive, "killed", task_records=1)
    killer.join()
    assert victims
    assert (result.windows, result.people) == (whole.windows, whole.people)
    assert shards(result.url) == shards(whole.url)
    Dataset.open(result.url).verify()


CANARIES = ("Canary Nightingale", "MRN-8675309", "1931-07-14", "canary-file")


def test_names_numbers_and_dates_of_an_archive_are_nowhere_in_the_dataset(local_ray, settings, archive):
    headers = sorted(archive.glob("*.hea"))
    text = re.sub(r"(?m)^# ?age:.*$", "# age: 94", headers[0].read_text())
    headers[0].write_text(text + "# Name: Canary Nightingale\n# MRN-8675309\n# born 1931-07-14\n")
    broken = archive / "canary-file-Nightingale.hea"
    broken.write_text("canary-file-Nightingale 1 nan 10\nx.dat 16 200/mV 16 0 0 0 0 II\n")
    (archive / "canary-file.csv").write_text("Canary Nightingale,MRN-8675309\n1,2\n")
    result = run(settings, archive)
    seen = b""
    for path in Path(result.url).rglob("*"):
        if path.is_file():
            seen += path.name.encode() + path.read_bytes()
            if path.suffix == ".parquet":
                seen += json.dumps(pq.read_table(io.BytesIO(path.read_bytes())).to_pylist(), default=str).encode()
    for canary in (*CANARIES, "Nightingale", "record-0000"):
        assert canary.encode() not in seen
    people = Dataset.open(result.url).people().to_pylist()
    assert max(person["age_years"] for person in people) == 90.0
    names = {line.record for line in left_out(Dataset.open(result.url), settings, "tests", str(archive))}
    assert {"canary-file-Nightingale", "canary-file.csv"} <= names


def twin_of(header, name, gain):
    """Write the record under another name and person, its samples halved and its gain with them, a little noise."""
    lines = header.read_text().splitlines()
    old = header.stem
    data = np.fromfile(header.with_suffix(".dat"), "<i2").astype(np.float64)
    noise = np.random.default_rng(0).normal(0, 2.0, data.size)
    (header.parent / f"{name}.dat").write_bytes(np.round(data * gain + noise).astype("<i2").tobytes())
    text = "\n".join(line.replace(old, name) for line in lines)
    (header.parent / f"{name}.hea").write_text("\n".join(
        line for line in text.splitlines() if "person" not in line.lower()) + f"\n# person: {name}\n")  # fmt: skip


def test_the_same_heart_under_another_name_is_left_out_or_stops_the_run(local_ray, settings, archive):
    config = recipe().ingest
    header = min(archive.glob("*.hea"))
    mine = split_of(config, "person-000000")
    other = next(f"copy{k}" for k in range(100) if split_of(config, f"copy{k}") != mine)
    twin_of(header, other, 0.5)
    with pytest.raises(DatasetError, match=r"person [0-9a-f]{12} .* has the signals of [0-9a-f]{12}"):
        run(settings, archive, "strict", twins="fail")
    result = run(settings, archive)
    dataset = Dataset.open(result.url)
    dataset.verify()
    assert result.quarantined["near_duplicate"] == 3
    assert result.people == 6
    assert run(settings, archive).reused


def copy_of(header, name, gain):
    """Write the record under another name: with the same samples (`gain` 1), or as `twin_of` does."""
    if gain != 1.0:
        return twin_of(header, name, gain)
    shutil.copy(header.with_suffix(".dat"), header.parent / f"{name}.dat")
    # Other bytes of the header: what is the same is found by the windows, not by the files.
    text = header.read_text().replace(header.stem, name)
    return (header.parent / f"{name}.hea").write_text(text + "# more\n")


@pytest.mark.parametrize(("reason", "gain"), [("duplicate", 1.0), ("near_duplicate", 0.5)])
@pytest.mark.parametrize("appended", [False, True])
def test_what_is_there_twice_is_told_by_its_name_in_the_archive(local_ray, settings, archive, reason, gain, appended):
    # A name that comes last: of two new windows with the same samples the first by id stays, whichever that is.
    original = min(archive.glob("*.hea"))
    mine = split_of(recipe().ingest, "person-000000")
    name = next(f"z{k}" for k in range(100) if split_of(recipe().ingest, f"z{k}") != mine)
    if appended:
        run(settings, archive)
    copy_of(original, name, gain)
    dataset = Dataset.open(run(settings, archive).url)
    dataset.verify()
    told = [line for line in left_out(dataset, settings, "tests", str(archive)) if line.reason == reason]
    assert [(line.what, line.count) for line in told] == [("window", 3)]
    assert told[0].record in ({name} if appended else {name, original.stem})


def test_a_bit_that_fell_over_is_in_the_account_and_costs_no_window(local_ray, settings, archive):
    whole = run(settings, archive, "whole")
    victim = min(archive.glob("*.dat"))
    data = bytearray(victim.read_bytes())
    data[5001] ^= 1
    victim.write_bytes(data)
    result = run(settings, archive)
    assert (result.windows, result.quarantined) == (whole.windows, {"checksum": 1})
    (line,) = left_out(Dataset.open(result.url), settings, "tests", str(archive))
    assert (line.record, line.what, line.reason) == (victim.stem, "segment", "checksum")
    Dataset.open(result.url).verify()


def test_a_person_who_was_deleted_does_not_come_back(local_ray, settings, archive):
    url = run(settings, archive).url
    person = settings.hashed_id("tests", "person", "person-000001")
    delete_person(url, person)
    add_people(archive, [6])
    shutil.copy(next(archive.glob("*000001.hea")), archive / "again.hea")
    text = (archive / "again.hea").read_text()
    (archive / "again.hea").write_text(text.replace(next(archive.glob("*000001.hea")).stem, "again", 1) + "# more\n")
    result = run(settings, archive)
    assert result.people == 6
    assert result.quarantined["deleted"] == 1
    assert person not in {row["person"] for row in Dataset.open(url).people().to_pylist()}


def test_a_second_family_joins_a_dataset_and_keeps_its_own_split(local_ray, settings, archive, tmp_path):
    first = run(settings, archive)
    other = tmp_path / "other"
    add_people(other, range(20, 24))
    both = run(settings, other, source="elsewhere")
    dataset = Dataset.open(both.url)
    dataset.verify()
    assert both.people == first.people + 4
    assert sorted(dataset.manifest["ingest"]["sources"]) == ["elsewhere", "tests"]
    assert people_of(dataset, str(other), "elsewhere", settings) == [f"person-{k:06d}" for k in range(20, 24)]
    assert run(settings, archive).reused


def test_people_tables_and_mappings_are_read_and_belong_to_a_family(local_ray, settings, tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    recording = monitored(5, 0, 42.0)
    ecg, ppg = recording.leads["II"].read(), recording.of_kind(SignalKind.PPG)[0].read()
    rows = "\n".join(f"{k / 250:.4f},{x:.4f},{y:.4f}" for k, (x, y) in enumerate(zip(ecg, ppg, strict=True)))
    (folder / "p1.csv").write_text(f"seconds,chest,finger\n{rows}\n")
    with pytest.raises(DatasetError, match="layout"):
        run(settings, folder, "none")
    mapping = tmp_path / "mine.toml"
    mapping.write_text(MAPPING)
    result = run(settings, folder, mapping=(str(mapping),))
    assert result.windows == 4
    mapping.write_text(MAPPING + "\n# another\n")
    with pytest.raises(DatasetError, match="mapping"):
        run(settings, folder, mapping=(str(mapping),))
    with pytest.raises(P2EsError, match="key"):
        run(settings, folder, people=(str(mapping),))


MAPPING = """
name = "mine"
kind = "table"
[match]
columns = ["seconds", "chest", "finger"]
[time]
at = "seconds"
unit_s = 1.0
[[signals]]
at = "chest"
kind = "ecg"
unit = "mV"
lead = "II"
[[signals]]
at = "finger"
kind = "ppg"
unit = "NU"
"""
