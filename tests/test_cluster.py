import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from p2es.errors import ConfigError, RemoteError
from p2es_platform import cluster
from p2es_platform.settings import Settings

_RUN = """
import os, sys, time, ray
from p2es_platform.cluster import connect
from p2es_platform.settings import Settings
settings = Settings(storage=sys.argv[1], ray_address=None)

@ray.remote
def told():
    return [os.environ.get(k) for k in ("P2ES_STORAGE", "MLFLOW_TRACKING_URI", "OMP_NUM_THREADS")]

with connect(settings, local_cpus=3, object_store_mb=100):
    print(ray.get_runtime_context().get_node_id(), int(ray.cluster_resources()["CPU"]), flush=True)
    print(*ray.get(told.remote()), flush=True)
    if len(sys.argv) > 2:
        time.sleep(120)
print(ray.is_initialized(), flush=True)
"""


def started(folder: Path, *more: str) -> subprocess.Popen:
    (folder / "t").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "P2ES_"))}
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, str(folder / "storage"), *more],
        env=environment | {"TMPDIR": str(folder / "t"), "HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes_of(folder: Path) -> list[str]:
    """Find what still runs with a folder of ours on its command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if str(folder).encode() in words:
            found.append(words.replace(b"\0", b" ").decode()[:120])
    return found


@pytest.fixture
def short():
    with tempfile.TemporaryDirectory(prefix="rc") as folder:
        yield Path(folder)


def gone_within(folder: Path, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while processes_of(folder) and time.monotonic() < until:
        time.sleep(0.3)
    return not processes_of(folder)


def test_a_local_ray_is_our_own_and_leaves_nothing(local_ray, short):
    import ray

    process = started(short)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    node, workers, after = out.splitlines()
    # Another Ray runs on this machine (the fixture's); it must not be joined.
    assert node.split()[0] != ray.get_runtime_context().get_node_id()
    assert node.split()[1] == "3"
    assert workers == f"{short}/storage sqlite:///{short}/storage/mlflow.db 1"
    assert after == "False"
    assert err == ""
    assert gone_within(short, 15), processes_of(short)
    assert list((short / "t").iterdir()) == []


def test_ctrl_c_ends_the_local_ray(short):
    process = started(short, "wait")
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        assert process.stdout.readline()
        assert processes_of(short)
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert gone_within(short, 15), processes_of(short)
    assert list((short / "t").iterdir()) == []


def test_a_ray_that_runs_is_used_and_left_running(local_ray, tmp_path):
    import ray

    node = ray.get_runtime_context().get_node_id()
    with cluster.connect(Settings(storage=str(tmp_path))):
        assert ray.get_runtime_context().get_node_id() == node
    assert ray.is_initialized()


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("127.0.0.1:9", RemoteError),
        ("ray://127.0.0.1:9", RemoteError),
        ("127.0.0.1:99999", RemoteError),
        ("bogus", ConfigError),
        ("host:port", ConfigError),
        (":6379", ConfigError),
    ],
)
def test_a_wrong_address_is_told_at_once(address, error):
    began = time.monotonic()
    with pytest.raises(error, match="RAY_ADDRESS") as caught:
        cluster.require_listener(address)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 6


def test_the_sockets_of_ray_have_room_below_any_temporary_folder(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = cluster._short_temp_dir()
    try:
        assert folder.is_dir()
        assert len(f"{folder}/session_2026-11-23_23-30-30_818444_1234567/sockets/plasma_store.1") <= 104
    finally:
        folder.rmdir()
