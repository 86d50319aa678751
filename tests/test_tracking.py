import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
import requests

from p2es.errors import ConfigError, RemoteError
from p2es_platform import metric_sender, mlflow_client
from p2es_platform.tracking import Tracker

# MLflow 3.17 maps its tables in a way that SQLAlchemy 2.1 will drop.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

DIGEST = "0123456789abcdef" * 2


def start(uri: str, root: Path, fingerprint: str = "aa", **changes) -> Tracker:
    arguments = {
        "experiment": "p2es",
        "name": "demo-aa",
        "fingerprint": fingerprint,
        "params": {"train": {"batch": 64, "rates": {"first": 0.1}}},
        "tags": {"p2es.recipe": "demo"},
        "dataset_name": "demo",
        "dataset_digest": DIGEST,
        "artifact_root": str(root / "artifacts"),
    }
    return Tracker.start(uri, **arguments | changes)


def steps(uri: str, run_id: str, key: str = "loss") -> list[int]:
    return [m.step for m in mlflow.MlflowClient(tracking_uri=uri).get_metric_history(run_id, key)]


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_a_restart_goes_on_in_the_same_run_and_logs_no_step_twice(uri, tmp_path):
    first = start(uri, tmp_path)
    for step in range(1, 11):
        first.log(step, {"loss": 1 / step, "grad_norm": 1.0})
    assert first.flush()

    resumed = start(uri, tmp_path)
    worker = Tracker.join(uri, resumed.run_id)
    for step in range(6, 15):  # from the checkpoint at step 5
        worker.log(step, {"loss": 1 / step, "grad_norm": 1.0})
    assert worker.flush()
    resumed.finish("FINISHED")

    assert resumed.run_id == first.run_id
    assert steps(uri, first.run_id) == list(range(1, 15))
    assert mlflow.MlflowClient(tracking_uri=uri).get_run(first.run_id).info.status == "FINISHED"


def test_a_failed_run_is_resumed_and_a_finished_one_stays_finished(uri, tmp_path):
    client = mlflow.MlflowClient(tracking_uri=uri)
    failed = start(uri, tmp_path)
    failed.finish("FAILED")
    resumed = start(uri, tmp_path)
    assert (resumed.run_id, client.get_run(failed.run_id).info.status) == (failed.run_id, "RUNNING")
    resumed.finish("FINISHED")
    assert start(uri, tmp_path).run_id == failed.run_id
    assert client.get_run(failed.run_id).info.status == "FINISHED"
    assert start(uri, tmp_path, fingerprint="bb").run_id != failed.run_id


def test_the_run_says_what_was_trained_on_what(uri, tmp_path):
    tracker = start(uri, tmp_path)
    start(uri, tmp_path, params={"train": {"batch": 128, "new": 1}})  # a changed value must not break a resume
    run = mlflow.MlflowClient(tracking_uri=uri).get_run(tracker.run_id)
    assert run.data.params == {"train.batch": "64", "train.rates.first": "0.1", "train.new": "1"}
    assert run.data.tags["p2es.recipe"] == "demo"
    assert [(i.dataset.name, i.dataset.digest) for i in run.inputs.dataset_inputs] == [("demo", DIGEST)]
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    if head.returncode == 0:
        assert run.data.tags["p2es.git_commit"].removesuffix("-dirty") == head.stdout.strip()


def test_large_batches_keep_steps_whole(uri, tmp_path):
    tracker = start(uri, tmp_path)
    for step in range(1, 402):
        tracker.log(step, {key: float(step) for key in "abc"})
    assert tracker.flush()
    assert all(steps(uri, tracker.run_id, key) == list(range(1, 402)) for key in "abc")


@pytest.mark.parametrize(("per_step", "limit"), [(3, 10), (7, 10), (10, 10), (12, 10), (1, 10)])
def test_a_batch_ends_between_two_steps(per_step, limit):
    metrics = [mlflow.entities.Metric(str(k), 0.0, 0, step) for step in range(8) for k in range(per_step)]
    count = metric_sender._whole_steps(metrics, limit)
    assert 0 < count <= limit
    assert per_step > limit or count % per_step == 0


def test_an_infinite_loss_is_not_stored_as_a_number(uri, tmp_path):
    tracker = start(uri, tmp_path)
    tracker.log(1, {"loss": math.inf})
    assert tracker.flush()
    history = mlflow.MlflowClient(tracking_uri=uri).get_metric_history(tracker.run_id, "loss")
    assert math.isnan(history[0].value)


def test_a_folder_is_uploaded_below_the_given_root(uri, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"\x00\x01")
    tracker = start(uri, tmp_path)
    tracker.upload(folder, "model")
    found = list((tmp_path / "artifacts").rglob("weights.bin"))
    assert [path.read_bytes() for path in found] == [b"\x00\x01"]


def test_unusable_addresses_give_one_line_without_the_password(tmp_path):
    started = time.monotonic()
    with pytest.raises(RemoteError) as caught:
        mlflow_client.connect("http://user:hunter2@127.0.0.1:9")
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 10
    with pytest.raises(ConfigError, match="not an address"):
        mlflow_client.connect("mlruns")
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(RemoteError, match="cannot be used"):
        mlflow_client.connect(f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(RemoteError, match="no run"):
        Tracker.join(f"sqlite:///{tmp_path}/other.db", "0" * 32)


def serve_mlflow(folder: Path, port: int) -> subprocess.Popen:
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
        "--backend-store-uri": f"sqlite:///{folder}/server.db",
        "--artifacts-destination": str(folder / "served"),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *(part for option in options.items() for part in option)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
    )
    for _ in range(240):
        try:
            if requests.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                return process
        except requests.RequestException:
            time.sleep(0.25)
    end(process)
    raise AssertionError("the MLflow server did not start in 60 s")


def end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_training_goes_on_while_the_server_is_gone_and_nothing_is_lost(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    server = serve_mlflow(tmp_path, port)
    try:
        tracker = start(uri, tmp_path)
        tracker.log(1, {"loss": 1.0})
        assert tracker.flush()
        end(server)
        tracker.log(2, {"loss": 0.5})
        assert not tracker.flush()
        tracker.log(3, {"loss": 0.4})
        assert not tracker.flush()
        assert caplog.text.count("does not take the metrics") == 1
        server = serve_mlflow(tmp_path, port)
        assert tracker.flush()
        assert steps(uri, tracker.run_id) == [1, 2, 3]
    finally:
        end(server)
