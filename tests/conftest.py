import shutil
import tempfile

import pytest


def pytest_configure(config):
    # ray.serve 2.60 says this of its own models at import, before any test's filter holds.
    config.addinivalue_line(
        "filterwarnings", "ignore:Using extra keyword arguments on `Field`:DeprecationWarning"
    )


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
