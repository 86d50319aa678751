import json
import math
import subprocess
import time
from pathlib import Path

import mlflow
import pytest
from tracked import DIGEST, history, start, status, steps

from p2es.errors import ConfigError, RemoteError
from p2es_platform import metric_sender, mlflow_client
from p2es_platform.dataset import Dataset, commit, write_part
from p2es_platform.run_description import DatasetDetails
from p2es_platform.tracking import Tracker

# MLflow 3.17 maps its tables in a way that SQLAlchemy 2.1 will drop.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


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
        worker.log(step, {"loss": 2 / step, "grad_norm": 1.0})
    assert worker.close()
    assert resumed.finish("FINISHED")

    assert resumed.run_id == first.run_id
    assert steps(uri, first.run_id) == list(range(1, 15))
    assert mlflow.MlflowClient(tracking_uri=uri).get_run(first.run_id).info.status == "FINISHED"


def test_a_failed_run_is_resumed_and_a_finished_one_stays_finished(uri, tmp_path):
    failed = start(uri, tmp_path)
    failed.finish("FAILED")
    resumed = start(uri, tmp_path)
    assert (resumed.run_id, status(uri, failed.run_id)) == (failed.run_id, "RUNNING")
    resumed.finish("FINISHED")
    assert start(uri, tmp_path).run_id == failed.run_id
    assert status(uri, failed.run_id) == "FINISHED"
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
    assert math.isnan(history(uri, tracker.run_id)[0].value)


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


def test_metrics_of_one_step_may_come_one_after_the_other(uri, tmp_path):
    tracker = start(uri, tmp_path)
    for step in range(1, 4):
        tracker.log(step, {"loss": 1.0})
        tracker.log(step, {"validation_loss": 2.0})
        tracker.log(step, {"loss": 9.0})  # once is enough
    assert tracker.flush()
    assert steps(uri, tracker.run_id) == steps(uri, tracker.run_id, "validation_loss") == [1, 2, 3]
    assert {metric.value for metric in history(uri, tracker.run_id)} == {1.0}


def test_a_restart_reads_no_histories(uri, tmp_path, monkeypatch):
    tracker = start(uri, tmp_path)
    tracker.log(500, {"loss": 1.0})
    tracker.log(3, {"system/cpu_utilization_percentage": 1.0})
    assert tracker.flush()
    monkeypatch.setattr(mlflow.MlflowClient, "get_metric_history", None)
    joined = Tracker.join(uri, tracker.run_id)
    assert (joined.next_step("loss"), joined.next_step("system/"), joined.next_step("other")) == (501, 4, 0)


def test_the_recipe_is_an_artifact_as_it_was_given(uri, tmp_path):
    params = {"train": {"batch": 64, "channels": (8, 16), "place": Path("a")}}
    start(uri, tmp_path, params=params)
    (found,) = (tmp_path / "artifacts").rglob("recipe.json")
    assert json.loads(found.read_text()) == {"train": {"batch": 64, "channels": [8, 16], "place": "a"}}


def test_a_file_that_is_attached_again_is_the_newer_one(uri, tmp_path):
    tracker = start(uri, tmp_path, spool=tmp_path / "spool")
    tracker.attach("samples/step-0000001.png", b"first")
    assert tracker.flush()
    tracker.attach("samples/step-0000001.png", b"second")
    tracker.attach("curves.png", b"curves")
    assert tracker.finish("FINISHED")
    found = {path.name: path.read_bytes() for path in (tmp_path / "artifacts").rglob("*.png")}
    assert found == {"step-0000001.png": b"second", "curves.png": b"curves"}


def test_the_dataset_is_an_input_with_its_windows_and_people(uri, tmp_path, twelve_windows):
    url = str(tmp_path / "archive")
    records = {window.recording: "sha" for window in twelve_windows}
    commit(url, [write_part(url, "a", "simulated", records, twelve_windows, [])], {})
    details = DatasetDetails.of(Dataset.open(url))
    tracker = start(uri, tmp_path, dataset_details=details)
    inputs = mlflow.MlflowClient(tracking_uri=uri).get_run(tracker.run_id).inputs.dataset_inputs
    found = {entry.tags[0].value: entry.dataset for entry in inputs}
    assert {entry.tags[0].key for entry in inputs} == {"mlflow.data.context"}
    assert (found["training"].name, found["validation"].name) == ("demo", "demo/validation")
    assert {dataset.source for dataset in found.values()} == {url}
    profiles = {context: json.loads(dataset.profile) for context, dataset in found.items()}
    assert (profiles["training"]["windows"], profiles["training"]["people"]) == (6, 2)
    assert (profiles["validation"]["windows"], profiles["validation"]["people"]) == (3, 1)
    assert json.loads(found["training"].schema)["columns"]["person"] == "string"


def test_logging_costs_the_training_less_than_a_fifth_of_a_millisecond(uri, tmp_path):
    tracker = start(uri, tmp_path, spool=tmp_path / "spool")
    metrics = {f"loss_{k}": 0.1 for k in range(12)}
    tracker.log(1, metrics)
    started = time.thread_time()
    for step in range(2, 402):
        tracker.log(step, metrics)
    # The thread's own time: the sender and other processes do not count.
    assert (time.thread_time() - started) / 400 < 2e-4
    assert tracker.flush()
