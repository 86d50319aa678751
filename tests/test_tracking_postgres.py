"""MLflow as a team runs it: a server over PostgreSQL, artifacts in a bucket (docs/operations.md)."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import moto_server
from mlflow_servers import PostgreSQL, end, free_port, postgres_programs, serve_mlflow
from tracked import start, status, steps, twice, waiting

from p2es_platform.tracking import Tracker

# MLflow 3.17 maps its tables in a way that SQLAlchemy 2.1 will drop.
pytestmark = [pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"), pytest.mark.slow]

SECRETS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def database():
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'p2es[mlflow-server]'")
    # Not below pytest's own folders: the user that runs PostgreSQL cannot enter those.
    folder = Path(tempfile.mkdtemp(prefix="p2es-postgres-"))
    folder.chmod(0o755)
    database = PostgreSQL(programs, folder)
    yield database
    database.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def deployment(database, tmp_path_factory):
    """The address of an MLflow server that alone knows the bucket and its secrets."""
    boto3 = pytest.importorskip("boto3")
    with moto_server() as s3, pytest.MonkeyPatch.context() as patch:
        for name, value in {**SECRETS, "MLFLOW_S3_ENDPOINT_URL": s3}.items():
            patch.setenv(name, value)
        bucket = boto3.client("s3", endpoint_url=s3)
        bucket.create_bucket(Bucket="mlflow")
        port = free_port()
        server = serve_mlflow(tmp_path_factory.mktemp("mlflow"), port, database.uri, "s3://mlflow/artifacts")
        for name in (*SECRETS, "MLFLOW_S3_ENDPOINT_URL"):
            patch.delenv(name)
        yield f"http://127.0.0.1:{port}", bucket
        end(server)


def test_a_run_is_read_back_from_the_database_and_the_bucket(deployment, tmp_path):
    uri, bucket = deployment
    assert not {"AWS_ACCESS_KEY_ID", "MLFLOW_S3_ENDPOINT_URL"} & set(os.environ)
    folder = tmp_path / "model"
    folder.mkdir()
    weights = np.random.default_rng(3).bytes(8_000_000)
    (folder / "model.safetensors").write_bytes(weights)
    tracker = start(uri, tmp_path, "whole", spool=tmp_path / "spool")
    for step in range(1, 801):
        tracker.log(step, {"loss_total": 1 / step, "grad_norm": float("nan"), "windows": 16.0 * step})
    tracker.attach("samples/step-0000001.png", b"picture")
    tracker.upload(folder, "model")
    assert tracker.finish("FINISHED")

    client = mlflow.MlflowClient(tracking_uri=uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.batch": "64", "train.rates.first": "0.1"}
    assert run.inputs.dataset_inputs[0].dataset.name == "demo"
    for key in ("loss_total", "grad_norm", "windows"):
        assert steps(uri, tracker.run_id, key) == list(range(1, 801))
    kept = {Path(item["Key"]).name: item["Size"] for item in bucket.list_objects_v2(Bucket="mlflow")["Contents"]}
    assert kept["model.safetensors"] == len(weights)
    assert {"recipe.json", "step-0000001.png"} <= set(kept)
    back = client.download_artifacts(tracker.run_id, "model/model.safetensors", str(tmp_path))
    assert Path(back).read_bytes() == weights
    # Nothing of it is on the machine that trained but what it wrote itself.
    assert not (tmp_path / "artifacts").exists()


def test_nothing_is_lost_or_doubled_while_the_database_is_gone(deployment, database, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    uri, _ = deployment
    spool = tmp_path / "spool"
    tracker = start(uri, tmp_path, "outage", spool=spool)
    tracker.log(1, {"loss": 1.0})
    assert tracker.flush()
    database.stop()
    try:
        for step in range(2, 5):
            tracker.log(step, {"loss": 1 / step})
        assert not tracker.flush()
        # A worker that is started meanwhile does not wait for the database either.
        began = time.monotonic()
        joined = Tracker.join(uri, tracker.run_id, spool=spool)
        assert time.monotonic() - began < 30
        for step in range(5, 8):
            joined.log(step, {"loss": 1 / step})
        assert not joined.close()
        assert len([name for name in waiting(spool) if name.endswith(".jsonl")]) == 2
    finally:
        database.start()
    assert tracker.finish("FINISHED")
    assert steps(uri, tracker.run_id) == list(range(1, 8))
    assert twice(uri, tracker.run_id) == []
    assert status(uri, tracker.run_id) == "FINISHED"
    assert waiting(spool) == []
