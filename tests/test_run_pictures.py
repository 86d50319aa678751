"""Curves, samples and system metrics of a run, as MLflow has them."""

import time

import mlflow
import numpy as np
import psutil
import pytest
from tracked import start, steps

from p2es.conditioning import Units
from p2es.diffusion import DiffusionConfig
from p2es.model import P2Es
from p2es.network import NetworkConfig
from p2es.training_plots import fixed_windows
from p2es_platform import system_metrics as monitoring
from p2es_platform.run_pictures import attach_curves, attach_samples, read_curves
from p2es_platform.system_metrics import system_metrics
from p2es_platform.tracking import Tracker

# MLflow 3.17 maps its tables in a way that SQLAlchemy 2.1 will drop.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{tmp_path}/mlflow.db"


def artifacts(tmp_path):
    return {path.name: path.read_bytes() for path in (tmp_path / "artifacts").rglob("*.png")}


def test_curves_are_drawn_of_what_the_run_has(uri, tmp_path):
    tracker = start(uri, tmp_path)
    assert not attach_curves(tracker)  # nothing logged, nothing drawn
    for step in range(1, 30):
        tracker.log(step, {"loss_total": 1 / step, "grad_norm": 1.0, "windows": 16.0 * step, "workers": 2.0})
    assert tracker.flush()
    curves = read_curves(tracker)
    assert sorted(curves) == ["grad_norm", "loss_total", "windows"]
    np.testing.assert_allclose(curves["loss_total"].value, 1 / np.arange(1, 30))
    np.testing.assert_array_equal(curves["windows"].step, np.arange(1, 30))
    assert attach_curves(tracker, "demo")
    assert tracker.finish("FINISHED")
    assert artifacts(tmp_path)["curves.png"].startswith(PNG)


def test_curves_that_cannot_be_read_cost_a_line(tmp_path, caplog):
    tracker = Tracker("http://127.0.0.1:9", "0" * 32)
    assert not attach_curves(tracker)
    assert "no learning curves" in caplog.text
    tracker.close()


def test_samples_are_artifacts_by_their_step(uri, tmp_path, simulated_store):
    network = NetworkConfig(channels=(8, 8), pulse_channels=8, condition=16, prototypes=3)
    model = P2Es.start(network, DiffusionConfig(), Units.fit(simulated_store))
    tracker = start(uri, tmp_path)
    attach_samples(tracker, model, fixed_windows(simulated_store, 2), step=1200, evaluations=2)
    attach_samples(tracker, model, fixed_windows(simulated_store, 2).take(slice(0)), step=1300)
    assert tracker.finish("FINISHED")
    assert list(artifacts(tmp_path)) == ["step-0001200.png"]


def test_system_metrics_have_mlflows_names_and_go_on_after_a_restart(uri, tmp_path):
    tracker = start(uri, tmp_path)
    for _ in range(2):
        with system_metrics(tracker, interval_s=0.05):
            time.sleep(0.5)
        assert tracker.flush()
        tracker = start(uri, tmp_path)
    run = mlflow.MlflowClient(tracking_uri=uri).get_run(tracker.run_id)
    names = {"cpu_utilization_percentage", "system_memory_usage_megabytes", "disk_usage_percentage"}
    assert {f"system/{name}" for name in names} <= set(run.data.metrics)
    assert 0 < run.data.metrics["system/system_memory_usage_megabytes"] <= psutil.virtual_memory().total / 1e6
    logged = steps(uri, tracker.run_id, "system/cpu_utilization_percentage")
    assert len(logged) >= 2
    assert logged == list(range(len(logged)))
    # They do not pass for steps of the training.
    assert tracker.next_step("loss") == 0


def test_system_metrics_that_fail_are_told_once_and_stop_nothing(uri, tmp_path, monkeypatch, caplog):
    def broken():
        raise OSError("no /proc here")

    monkeypatch.setattr(monitoring, "_monitors", broken)
    tracker = start(uri, tmp_path)
    with system_metrics(tracker, interval_s=0.01):
        time.sleep(0.1)
        tracker.log(1, {"loss": 1.0})
    assert tracker.finish("FINISHED")
    assert caplog.text.count("no /proc here") == 1
    assert steps(uri, tracker.run_id) == [1]
