"""The whole command against a bucket: archive and storage over HTTP, on moto's server (an emulator of S3, not S3)."""

import os
import subprocess
import sys

import fsspec
import pytest
from faulty_s3 import faulty_server

from p2es.simulator import simulate_person
from p2es.simulator.archive import write_wfdb
from p2es_platform.dataset import Dataset


@pytest.fixture
def archive(bucket, tmp_path):
    for index in range(4):
        write_wfdb(simulate_person(5, index, 32.0), tmp_path / "people")
    (tmp_path / "people" / "README.md").write_text("About these people.\n")
    (tmp_path / "people" / "broken.edf").write_bytes(b"0       " + b" " * 300)
    url = f"{bucket}/archive/people"
    fsspec.filesystem("s3").put(str(tmp_path / "people"), f"{bucket}/archive/", recursive=True)
    return url, tmp_path / "people"


def p2es(storage, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        env={**os.environ, "P2ES_STORAGE": str(storage), "P2ES_SECRET": "a secret of the tests"},
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip


@pytest.mark.slow
def test_an_archive_in_a_bucket_becomes_a_dataset_in_a_bucket(bucket, archive, tmp_path):
    url, folder = archive
    options = ("--ingest.source", "tests", "--ingest.name", "d")
    away = p2es(f"{bucket}/store", "ingest", url, *options)
    assert away.returncode == 0, away.stderr
    here = p2es(tmp_path / "store", "ingest", str(folder), *options)
    assert here.returncode == 0, here.stderr
    theirs, mine = Dataset.open(f"{bucket}/store/datasets/d"), Dataset.open(str(tmp_path / "store/datasets/d"))
    theirs.verify()
    assert theirs.hash == mine.hash
    assert theirs.rows("train") + theirs.rows("validation") + theirs.rows("test") == 12
    again = p2es(f"{bucket}/store", "ingest", url, *options)
    assert "(reused)" in again.stdout
    shown = p2es(f"{bucket}/store", "dataset", "verify", "d")
    assert (shown.returncode, "is whole" in shown.stdout) == (0, True), shown.stderr
    named = p2es(f"{bucket}/store", "dataset", "quarantine", "d", "--archive", url)
    assert "broken.edf" in named.stdout
    wrong = p2es(f"{bucket}/store", "ingest", f"{bucket}/nothing", *options)
    assert (wrong.returncode, wrong.stderr.count("there is no")) == (2, 1), wrong.stderr


OPTIONS = (
    "--ingest.source",
    "tests",
    "--ingest.name",
    "d",
    "--ingest.task-records",
    "1",
    "--resources.local-cpus",
    "1",
)


@pytest.mark.slow
def test_an_archive_whose_store_does_not_answer_ends_in_one_line(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    done = p2es(tmp_path / "store", "ingest", f"{bucket}/archive", *OPTIONS)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert "does not answer (EndpointConnectionError): check AWS_ENDPOINT_URL" in line


@pytest.mark.slow
def test_a_store_that_fails_while_workers_read_stops_the_run_and_the_next_goes_on(
    s3_server, archive, tmp_path, monkeypatch
):
    url, folder = archive
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    last = max(path.name for path in folder.glob("*.dat"))
    with faulty_server(s3_server) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        # The first time it is hashed.
        server.fault = lambda path, count: "cut" if path.endswith(last) and count > 1 else ""
        stopped = p2es(tmp_path / "store", "ingest", url, *OPTIONS)
        assert stopped.returncode == 2, stopped.stderr
        assert "Traceback" not in stopped.stderr
        assert "does not answer" in stopped.stderr.splitlines()[-1]
        place = tmp_path / "store" / "datasets" / "d"
        done = {path.name: path.stat().st_mtime_ns for path in place.glob("parts/*/*.json")}
        assert done
        assert not (place / "manifest.json").exists()
        server.heal()
        went_on = p2es(tmp_path / "store", "ingest", url, *OPTIONS)
        assert went_on.returncode == 0, went_on.stderr
        # What was hashed is not hashed again, and of what was read nothing is fetched. One part is of `broken.edf`.
        fetched = [server.asked[path] for path in server.asked if path.endswith(".dat")]
        assert max(fetched) == 1
        assert sum(fetched) in (4 - len(done), 5 - len(done))
    after = {path.name: path.stat().st_mtime_ns for path in place.glob("parts/*/*.json")}
    assert done.items() <= after.items()
    dataset = Dataset.open(str(place))
    dataset.verify()
    assert [(row["what"], row["reason"]) for row in dataset.quarantine().to_pylist()] == [("record", "unknown_format")]
    assert dataset.manifest["windows"] == 12
