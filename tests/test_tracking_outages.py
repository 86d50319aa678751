"""MLflow away, locked, failing, or not answering; and processes that die meanwhile (F9 of the reference)."""

import contextlib
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time

import mlflow
import pytest
import requests
from mlflow_servers import end, failing_proxy, free_port, serve_mlflow
from tracked import start, status, steps, twice, waiting

from p2es.errors import RemoteError
from p2es_platform import metric_sender, tracking
from p2es_platform.tracking import Tracker, send_spool

pytestmark = [
    # MLflow's server is a dozen processes, which on two busy cores take minutes to start.
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # MLflow 3.17 maps its tables in a way that SQLAlchemy 2.1 will drop.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An MLflow server in a process of its own, over sqlite; 10 s to start."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    process = serve_mlflow(folder, port)
    yield f"http://127.0.0.1:{port}"
    end(process)


@pytest.fixture
def proxy(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with failing_proxy(server) as proxy:
        yield proxy


@pytest.fixture
def spool(tmp_path):
    return tmp_path / "spool"


@pytest.fixture
def fingerprint(request):
    return request.node.name


def test_nothing_is_lost_or_doubled_while_the_server_answers_500(proxy, spool, tmp_path, fingerprint, caplog):
    tracker = start(proxy.address, tmp_path, fingerprint, spool=spool)
    tracker.log(1, {"loss": 1.0})
    assert tracker.flush()
    proxy.mode = "error"
    for step in range(2, 6):
        tracker.log(step, {"loss": 1 / step})
        assert not tracker.flush()
    tracker.attach("samples/one.png", b"picture")
    assert not tracker.flush()
    assert caplog.text.count("does not take what is logged") == 1
    proxy.mode = "pass"
    tracker.log(6, {"loss": 0.1})
    assert tracker.flush()
    assert "answers again" in caplog.text
    assert steps(proxy.address, tracker.run_id) == [1, 2, 3, 4, 5, 6]
    assert waiting(spool) == []
    client = mlflow.MlflowClient(tracking_uri=proxy.address)
    assert [entry.path for entry in client.list_artifacts(tracker.run_id, "samples")] == ["samples/one.png"]


def test_a_batch_whose_answer_was_lost_is_there_once(proxy, spool, tmp_path, fingerprint):
    tracker = start(proxy.address, tmp_path, fingerprint, spool=spool)
    before, proxy.mode = proxy.posts, "lose"
    tracker.log(1, {"loss": 1.0, "grad_norm": float("nan")})
    tracker.log(2, {"loss": 0.5, "grad_norm": float("inf")})
    assert not tracker.flush()
    assert proxy.posts > before  # MLflow has it, and nobody knows
    assert steps(proxy.address, tracker.run_id) == [1, 2]
    proxy.mode = "pass"
    tracker.log(3, {"loss": 0.25, "grad_norm": 1.0})
    assert tracker.flush()
    for key in ("loss", "grad_norm"):
        assert steps(proxy.address, tracker.run_id, key) == [1, 2, 3]


# Logs steps 1 to 9 and says so; the last words are not read before it is killed.
KILLED_WORKER = """
import sys, time
from pathlib import Path
from p2es_platform.tracking import Tracker
uri, run_id, spool = sys.argv[1:]
tracker = Tracker.join(uri, run_id, spool=Path(spool))
for step in range(1, 10):
    tracker.log(step, {"loss": 1 / step, "grad_norm": 1.0})
    if step == 4:
        sent = tracker.flush()
        print("sent" if sent else "kept", flush=True)
        sys.stdin.readline()
tracker.attach("samples/one.png", b"picture")
tracker.flush()
print("logged", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def worker(uri, run_id, spool):
    command = [sys.executable, "-c", KILLED_WORKER, uri, run_id, str(spool)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("first", ["pass", "error"])
def test_a_worker_killed_during_an_outage_loses_nothing(first, proxy, spool, tmp_path, fingerprint):
    driver = start(proxy.address, tmp_path, fingerprint, spool=spool)
    proxy.mode = first
    with worker(proxy.address, driver.run_id, spool) as process:
        assert process.stdout.readline().strip() == {"pass": "sent", "error": "kept"}[first]
        proxy.mode = "error"
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline().strip() == "logged"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert any(name.endswith(".jsonl") for name in waiting(spool))

    # Its successor begins while MLflow is still away, at the checkpoint of step 6, a moment later.
    resumed = Tracker.join(proxy.address, driver.run_id, spool=spool)
    for step in range(7, 13):
        resumed.log(step, {"loss": 2 / step, "grad_norm": 1.0})
    assert not resumed.flush()
    proxy.mode = "pass"
    assert resumed.close()
    assert driver.finish("FINISHED")
    for key in ("loss", "grad_norm"):
        assert steps(proxy.address, driver.run_id, key) == list(range(1, 13))
    client = mlflow.MlflowClient(tracking_uri=proxy.address)
    assert [entry.path for entry in client.list_artifacts(driver.run_id, "samples")] == ["samples/one.png"]
    assert waiting(spool) == []


def test_a_training_that_ends_during_an_outage_is_ended_later(proxy, spool, tmp_path, fingerprint, caplog):
    driver = start(proxy.address, tmp_path, fingerprint, spool=spool)
    rank0 = Tracker.join(proxy.address, driver.run_id, spool=spool)
    proxy.mode = "error"
    rank0.log(1, {"loss": 1.0})
    assert not rank0.close()
    started = time.monotonic()
    assert not driver.finish("FINISHED", patience_s=3.0)
    assert 3.0 <= time.monotonic() - started < 30.0
    lines = [record.getMessage() for record in caplog.records if "end of the run" in record.getMessage()]
    assert len(lines) == 2  # that it tries, and where what waits is
    assert str(spool) in lines[1]
    assert "\n" not in lines[1]
    with pytest.raises(RemoteError):
        send_spool(proxy.address, spool)
    proxy.mode = "pass"
    assert status(proxy.address, driver.run_id) == "RUNNING"
    assert send_spool(proxy.address, spool) == [driver.run_id]
    assert status(proxy.address, driver.run_id) == "FINISHED"
    assert steps(proxy.address, driver.run_id) == [1]
    assert waiting(spool) == []
    assert send_spool(proxy.address, spool) == []


def test_the_same_command_again_sends_what_was_left(proxy, spool, tmp_path, fingerprint):
    driver = start(proxy.address, tmp_path, fingerprint, spool=spool)
    proxy.mode = "error"
    driver.log(1, {"loss": 1.0})
    assert not driver.finish("FAILED", patience_s=0.1)
    proxy.mode = "pass"
    again = start(proxy.address, tmp_path, fingerprint, spool=spool)
    assert again.run_id == driver.run_id
    assert steps(proxy.address, again.run_id) == [1]
    assert waiting(spool) == []
    assert again.finish("FINISHED")
    assert status(proxy.address, again.run_id) == "FINISHED"


def test_finish_waits_for_a_server_that_comes_back(proxy, spool, tmp_path, fingerprint, monkeypatch):
    driver = start(proxy.address, tmp_path, fingerprint, spool=spool)
    proxy.mode = "error"
    driver.log(1, {"loss": 1.0})
    # Between two tries the server recovers.
    monkeypatch.setattr(tracking.time, "sleep", lambda s: setattr(proxy, "mode", "pass"))
    assert driver.finish("FINISHED", patience_s=30.0)
    assert status(proxy.address, driver.run_id) == "FINISHED"
    assert steps(proxy.address, driver.run_id) == [1]


def test_logging_does_not_wait_for_a_server_that_does_not_answer(proxy, spool, tmp_path, fingerprint, monkeypatch):
    monkeypatch.setattr(metric_sender, "_SEND_EVERY_S", 0.0)
    tracker = start(proxy.address, tmp_path, fingerprint, spool=spool)
    proxy.mode = "error"
    tracker._sender._next_send = 0.0
    longest = 0.0
    for step in range(1, 200):
        started = time.monotonic()
        tracker.log(step, {"loss": 1.0})
        longest = max(longest, time.monotonic() - started)
    # One try takes 2 s and more; a busy machine may take away a process for a while.
    assert longest < 1.0
    proxy.mode = "pass"
    assert tracker.finish("FINISHED")
    assert steps(proxy.address, tracker.run_id) == list(range(1, 200))


@contextlib.contextmanager
def locked(path):
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield other
    finally:
        other.execute("ROLLBACK")
        other.close()


def test_a_locked_sqlite_costs_the_training_nothing(tmp_path, spool, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = start(uri, tmp_path, spool=spool)
    tracker._sender._next_send = 0.0
    with locked(tmp_path / "mlflow.db"):
        started = time.monotonic()
        for step in range(1, 21):
            tracker.log(step, {"loss": 1 / step})
        assert time.monotonic() - started < 1.0
        assert not tracker.flush(timeout_s=2.0)
    assert tracker.flush()
    assert steps(uri, tracker.run_id) == list(range(1, 21))


@pytest.mark.slow  # MLflow itself waits 20 s for a locked sqlite before it gives up.
def test_a_sqlite_that_is_locked_for_longer_than_mlflow_waits(tmp_path, spool, caplog):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = start(uri, tmp_path, spool=spool)
    with locked(tmp_path / "mlflow.db"):
        tracker.log(1, {"loss": 1.0})
        assert not tracker.flush()
        tracker.log(2, {"loss": 0.5})
        joined = Tracker.join(uri, tracker.run_id, spool=spool)
        joined.log(3, {"loss": 0.4})
    assert "database is locked" in caplog.text
    assert "Traceback" not in caplog.text
    assert joined.close()
    assert tracker.finish("FINISHED")
    assert steps(uri, tracker.run_id) == [1, 2, 3]


def _write(uri, run_id, key, folder):
    tracker = Tracker.join(uri, run_id, spool=folder)
    for step in range(1, 301):
        tracker.log(step, {key: float(step), f"{key}_too": 0.5})
        if step % 30 == 0:
            tracker.flush()
    raise SystemExit(not tracker.close())


def test_several_processes_write_to_one_sqlite_at_once(tmp_path, spool):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    driver = start(uri, tmp_path, spool=spool)
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write, args=(uri, driver.run_id, key, spool)) for key in ("loss", "system/cpu")]
    for writer in writers:
        writer.start()
    for k in range(20):
        driver.log(k, {"driver": 1.0})
        driver.attach(f"samples/{k}.png", b"picture")
        driver.flush()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert driver.finish("FINISHED")
    for key in ("loss", "loss_too", "system/cpu", "system/cpu_too"):
        assert steps(uri, driver.run_id, key) == list(range(1, 301))
    assert steps(uri, driver.run_id, "driver") == list(range(20))
    assert twice(uri, driver.run_id) == []


@pytest.mark.slow
def test_training_goes_on_while_the_server_is_gone_and_nothing_is_lost(tmp_path, spool, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    server = serve_mlflow(tmp_path, port)
    try:
        tracker = start(uri, tmp_path, spool=spool)
        tracker.log(1, {"loss": 1.0})
        assert tracker.flush()
        end(server)
        with pytest.raises(requests.ConnectionError):
            requests.get(uri, timeout=5)
        tracker.log(2, {"loss": 0.5})
        assert not tracker.flush()
        tracker.log(3, {"loss": 0.4})
        assert not tracker.flush()
        assert caplog.text.count("does not take what is logged") == 1
        # A worker that starts afresh meanwhile goes on, too.
        joined = Tracker.join(uri, tracker.run_id, spool=spool)
        joined.log(4, {"loss": 0.3})
        server = serve_mlflow(tmp_path, port)
        assert joined.close()
        assert tracker.finish("FINISHED")
        assert steps(uri, tracker.run_id) == [1, 2, 3, 4]
        assert status(uri, tracker.run_id) == "FINISHED"
    finally:
        end(server)
