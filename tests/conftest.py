import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest


def pytest_configure(config):
    # ray.serve 2.60 says this of its own models at import, before any test's filter holds.
    config.addinivalue_line("filterwarnings", "ignore:Using extra keyword arguments on `Field`:DeprecationWarning")
    # ray.data 2.60 fills its DataContext with settings that it deprecates itself.
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:ray\\.data\\..*")
    # wfdb 4.3 calls pandas in a way that pandas 3 deprecates, already at its import.
    config.addinivalue_line("filterwarnings", "ignore:The inplace keyword:DeprecationWarning")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def local_ray():
    import ray

    folder = tempfile.mkdtemp(prefix="ray")
    ray.init(
        address="local",
        _temp_dir=folder,
        num_cpus=4,
        object_store_memory=150_000_000,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def recordings():
    folder = os.environ.get("P2ES_RECORDINGS")
    if not folder:
        pytest.skip("P2ES_RECORDINGS is not set: no real recordings to read")
    return Path(folder)


@pytest.fixture
def settings(tmp_path, monkeypatch):
    from p2es_platform.settings import Settings

    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "P2ES_STORAGE", "P2ES_SECRET", "P2ES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    return Settings(
        storage=str(tmp_path / "storage"),
        mlflow_tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        secret="a secret of the tests",
    )


class Several(list):
    """A list that hypothesis can print: windows write out their arrays."""

    def __repr__(self):
        return f"<{len(self)} windows>"


@pytest.fixture(scope="session")
def twelve_windows():
    """Three windows each of four people: two in train, one in test, one in validation."""
    from simulated import monitored

    from p2es.segmenting import segment

    def cut(index, split):
        recording = monitored(1, index, 32.0)
        return segment(recording, step_s=10.0, ids=lambda *parts: "/".join(parts), split=split).windows

    splits = ["train", "train", "test", "validation"]
    return Several(w for index, split in enumerate(splits) for w in cut(index, split))


@contextlib.contextmanager
def moto_server(**environment):
    """Run moto's S3 in a process of its own that answers HTTP, and give its address."""
    import requests

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {**os.environ, **environment}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                requests.get(f"{address}/moto-api/data.json", timeout=5)
                break
            except requests.ConnectionError:
                time.sleep(0.1)
        yield address
    finally:
        server.kill()
        server.wait(10)


@pytest.fixture(scope="session")
def s3_server():
    """The address of an S3-compatible server, for the session.

    It is moto's: an emulator, not S3. It knows no throttling, no lost answers and no limits of S3.
    """
    with moto_server() as address:
        yield address


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """The address of an empty bucket, and the environment that reaches it."""
    import fsspec
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"tests-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3").call_s3("create_bucket", Bucket=name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def simulated_store():
    """Two windows of each of 24 simulated people, cut as any recording is."""
    from p2es.segmenting import segment
    from p2es.simulator import simulate_person
    from p2es.windows import WindowStore, collate

    windows = [
        window
        for index in range(24)
        for window in segment(
            simulate_person(7, index, 22.5), step_s=10.0, ids=lambda *parts: "-".join(parts), split="train"
        ).windows
    ]
    return WindowStore.from_batches([collate(windows)])


@pytest.fixture(scope="session")
def trained(simulated_store):
    """A small model, trained for seconds: far from good, but no longer random. Gives the model and its losses."""
    from p2es.conditioning import Units
    from p2es.model import FitRecipe, P2Es
    from p2es.network import NetworkConfig
    from p2es.training import TrainConfig

    network = NetworkConfig(channels=(8, 8), pulse_channels=8, condition=16, prototypes=3)
    recipe = FitRecipe(network=network, train=TrainConfig(windows=16 * 150, batch=16), neighbours=4)
    model = P2Es.start(network, recipe.diffusion, Units.fit(simulated_store))
    losses = [step.losses["total"] for step in model.fit_steps(simulated_store, recipe)]
    model.denoiser.eval()
    return model, losses
