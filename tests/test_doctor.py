import os
import socket
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from p2es_platform import doctor, mlflow_client
from p2es_platform.settings import Settings

# MLflow 3.17 maps its tables in a way that SQLAlchemy 2.1 will drop.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

NAMES = ["python", "p2es", "ray", "torch", "faiss", "mlflow", "storage", "endpoint", "readers"]


def look(settings: Settings) -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.checks(settings)}


def places(tmp_path: Path, **changes) -> Settings:
    return Settings(**{"storage": str(tmp_path / "storage"), "endpoint": "http://127.0.0.1:9"} | changes)


def test_a_new_machine_is_ok_and_nothing_is_left_behind(tmp_path, monkeypatch):
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    started = time.monotonic()
    found = look(places(tmp_path))
    assert list(found) == NAMES
    assert all(check.ok for check in found.values()), found
    assert all("\n" not in check.detail for check in found.values())
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - started < 20


def test_everything_wrong_is_told_and_nothing_is_raised(tmp_path):
    broken = places(
        tmp_path,
        storage="nosuchprotocol://bucket",
        ray_address="127.0.0.1:9",
        mlflow_tracking_uri="http://user:hunter2@127.0.0.1:9",
        endpoint="not an address",
    )
    started = time.monotonic()
    found = look(broken)
    assert [name for name, check in found.items() if not check.ok] == ["ray", "mlflow", "storage"]
    assert "hunter2" not in repr(found)
    assert time.monotonic() - started < 15


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_storage_without_permission_is_told(tmp_path):
    (tmp_path / "storage").mkdir(mode=0o500)
    check = look(places(tmp_path))["storage"]
    assert not check.ok
    assert "P2ES_STORAGE" in check.hint


@pytest.mark.parametrize("below", ["", "/storage"])
def test_a_storage_that_is_a_file_is_told(tmp_path, below):
    (tmp_path / "file").write_text("not a folder")
    check = look(places(tmp_path, storage=f"{tmp_path}/file{below}"))["storage"]
    assert not check.ok
    assert "not a folder" in check.detail


def test_a_full_disk_is_told_before_it_hurts(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_FREE_GB", 1e9)
    check = look(places(tmp_path))["storage"]
    assert not check.ok
    assert "GB free" in check.detail
    assert "P2ES_STORAGE" in check.hint


def test_a_bucket_is_written_read_and_left_as_it_was(tmp_path):
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe_file("/doctored/kept", b"1")
    check = look(places(tmp_path, storage="memory://doctored", mlflow_tracking_uri=f"sqlite:///{tmp_path}/m.db"))
    assert check["storage"].ok, check["storage"]
    assert fs.ls("/doctored", detail=False) == ["/doctored/kept"]


def test_the_database_is_asked_whether_it_can_be_written(tmp_path):
    path = tmp_path / "mlflow.db"
    settings = places(tmp_path, mlflow_tracking_uri=f"sqlite:///{path}")
    assert "first use" in look(settings)["mlflow"].detail
    mlflow_client.connect(f"sqlite:///{path}")
    before = path.read_bytes()
    assert look(settings)["mlflow"].ok
    assert path.read_bytes() == before
    writer = sqlite3.connect(path)
    try:
        writer.execute("BEGIN IMMEDIATE")
        busy = look(settings)["mlflow"]
        assert not busy.ok
        assert "locked" in busy.detail
    finally:
        writer.close()
    path.write_bytes(b"no database at all, but long enough to have a header" * 40)
    assert not look(settings)["mlflow"].ok
    sqlite3.connect(tmp_path / "other.db").close()
    (tmp_path / "other.db").touch()
    assert not look(places(tmp_path, mlflow_tracking_uri=f"sqlite:///{tmp_path}/other.db"))["mlflow"].ok


def test_an_endpoint_that_answers_is_said(tmp_path):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert "answers 200" in look(places(tmp_path, endpoint=url))["endpoint"].detail
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_cluster_that_listens_is_told_from_one_that_does_not(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert look(places(tmp_path, ray_address=address))["ray"].ok
    gone = look(places(tmp_path, ray_address=address))["ray"]
    assert not gone.ok
    assert address in gone.detail


def test_a_library_that_does_not_import_is_one_failed_check(tmp_path, monkeypatch):
    def broken(name):
        raise ImportError(f"{name}: undefined\nsymbol")

    monkeypatch.setattr(doctor, "import_module", broken)
    found = look(places(tmp_path))
    assert [name for name, check in found.items() if not check.ok] == ["ray", "torch", "faiss"]
    assert "torch: undefined symbol" in found["torch"].detail
