"""The whole command against a bucket: archive and storage over HTTP, on moto's server (an emulator of S3, not S3)."""

import os
import subprocess
import sys

import fsspec
import pytest

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
