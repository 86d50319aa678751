"""Training that is killed, starved, drained or diverges: it goes on to the bit, or fails cleanly."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from p2es.checkpoint import TrainingState
from p2es.errors import ModelError
from p2es.network import NetworkConfig
from p2es.training import TrainConfig
from p2es_platform.settings import Settings
from p2es_platform.tracking import connect
from pipelines import demo, train
from pipelines.recipes import GroupConfig, Recipe, Resources, ServeConfig, SimulateConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

# Not in step with the looks every 20 steps of 16 windows.
EVERY = 37 * 16
TINY = Recipe(
    name="tiny",
    simulate=SimulateConfig(people=40, duration_s=32.5),
    group=GroupConfig(neighbours=4, clusters=3),
    network=NetworkConfig(channels=(8, 8), pulse_channels=8, condition=16, prototypes=3),
    train=TrainConfig(windows=16 * 100, batch=16, checkpoint_windows=EVERY),
    serve=ServeConfig(evaluations=2),
    resources=Resources(cpus_per_worker=0.5),
)
TINY = dataclasses.replace(TINY, evaluate=dataclasses.replace(TINY.evaluate, calibration_windows=2))


@dataclasses.dataclass
class Storage:
    """A storage with its dataset and groups, and what a training left there."""

    folder: Path
    ready: demo.Prepared

    @property
    def settings(self):
        return Settings(storage=str(self.folder), secret="a secret of the tests", ray_address=None)

    def train(self, recipe=TINY):
        ready = demo.Prepared(*(str(self.folder / Path(url).relative_to(self.source)) for url in self.urls))
        return train.run(recipe, self.settings, dataset_url=ready.dataset_url, groups_url=ready.groups_url)

    @property
    def urls(self):
        return self.ready.dataset_url, self.ready.groups_url

    @property
    def source(self):
        return Path(self.ready.dataset_url).parents[1]

    def run_folder(self):
        return next((self.folder / "runs").iterdir())

    def checkpoints(self):
        """Those that Ray Train knows of: handed over by every rank."""
        known = [path.read_text() for path in (self.folder / "runs").glob("*/checkpoint_manager_snapshot.json")]
        found = sorted((self.folder / "runs").glob("*/checkpoint_*/commit.json"))
        return [path for path in found if any(path.parent.name in text for text in known)]

    def checkpoints_out_of_turn(self):
        """Those that no interval explains."""
        windows = [json.loads((path.parent / "state.json").read_text())["windows"] for path in self.checkpoints()]
        return [seen for seen in windows if seen % EVERY and seen < TINY.train.windows]

    def starts(self):
        return [json.loads(line) for line in (self.run_folder() / "starts.jsonl").read_text().splitlines()]

    def mlflow_run(self):
        client = connect(self.settings.tracking_uri)
        [run] = client.search_runs([client.get_experiment_by_name("p2es").experiment_id])
        return client, run


@pytest.fixture(scope="module")
def prepared(local_ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    settings = Settings(storage=str(folder), secret="a secret of the tests", ray_address=None)
    return Storage(folder, demo.prepare(TINY, settings, demo.Teller(lambda line: None)))


@pytest.fixture
def storage(prepared, tmp_path):
    folder = tmp_path / "storage"
    shutil.copytree(
        prepared.folder, folder, ignore=shutil.ignore_patterns("runs", "models", "mlflow.db", "mlartifacts")
    )
    return Storage(folder, prepared.ready)


def weights(trained):
    return (Path(trained.folder) / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def clean(prepared):
    """What an undisturbed training gives."""
    return weights(prepared.train())


def processes(name):
    """Our Ray's processes of a name."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline() and process.cmdline()[0].startswith(name):
                found.append(process)
    return found


@contextlib.contextmanager
def once_a_checkpoint_is_there(storage, act):
    """Do something as soon as there is a checkpoint, and say that it was done."""
    done = threading.Event()
    stop = threading.Event()

    def watch():
        while not stop.wait(0.05):
            if storage.checkpoints():
                act()
                done.set()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


def assert_one_run_each_step_once(storage):
    client, run = storage.mlflow_run()
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "windows")
    assert [m.step for m in history] == [1, 20, 40, 60, 80, 100]
    assert [m.value for m in history] == [16 * m.step for m in history]


@pytest.mark.parametrize("victim", ["ray::RayTrainWorker", "ray::TrainController"])
def test_after_the_kill_of_a_rank_or_the_controller_the_weights_are_the_same(storage, clean, victim):
    def kill():
        found = processes(victim)
        assert found, "nothing to kill"
        found[-1].kill()

    with once_a_checkpoint_is_there(storage, kill) as killed:
        trained = storage.train()
    assert killed.is_set()
    assert weights(trained) == clean
    starts = storage.starts()
    assert len(starts) == 2, starts
    assert starts[1]["windows"] >= EVERY
    assert_one_run_each_step_once(storage)


@contextlib.contextmanager
def driver(storage, tmp_path, how="alone", **environment):
    """A training in a process group of its own, with a Ray of its own: see train_driver.py."""
    log = (tmp_path / "driver.log").open("w")
    temp = tempfile.mkdtemp(prefix="r")
    command = [sys.executable, str(Path(__file__).with_name("train_driver.py")), temp, str(storage.folder)]
    process = subprocess.Popen(
        [*command, *storage.urls, how],
        env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        everything = (
            [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            if (process.poll() is None)
            else []
        )
        for one in everything:
            with contextlib.suppress(psutil.Error):
                one.kill()
        process.wait(30)
        log.close()
        shutil.rmtree(temp, ignore_errors=True)


def wait_for_a_checkpoint(storage, process, tmp_path):
    deadline = time.monotonic() + 200
    while not storage.checkpoints():
        assert process.poll() is None, (tmp_path / "driver.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_after_the_kill_of_the_whole_job_the_next_run_goes_on(storage, clean, tmp_path):
    with driver(storage, tmp_path) as process:
        wait_for_a_checkpoint(storage, process, tmp_path)
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in tree:
            with contextlib.suppress(psutil.Error):
                one.kill()
        process.wait(30)
    trained = storage.train()
    assert weights(trained) == clean
    starts = storage.starts()
    assert [start["step"] > 0 for start in starts] == [False, True]
    assert_one_run_each_step_once(storage)


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(storage, clean):
    """Killed between the files of an upload, or a disk that lost the end of one: the older checkpoint is taken."""
    torn = []

    def act():
        while len(storage.checkpoints()) < 2:
            time.sleep(0.02)
        newest = storage.checkpoints()[-1].parent
        (newest / "state.safetensors").write_bytes((newest / "state.safetensors").read_bytes()[:1000])
        torn.append(newest)
        processes("ray::RayTrainWorker")[-1].kill()

    with once_a_checkpoint_is_there(storage, act) as killed:
        trained = storage.train()
    assert killed.is_set()
    assert weights(trained) == clean
    assert storage.starts()[1]["windows"] > 0
    assert torn


def test_a_training_that_diverges_fails_once_and_keeps_the_last_good_checkpoint(storage):
    wild = dataclasses.replace(
        TINY, train=dataclasses.replace(TINY.train, learning_rate=1e4, warmup_share=1.0, checkpoint_windows=16)
    )
    with pytest.raises(ModelError, match="diverged at step"):
        storage.train(wild)
    _, run = storage.mlflow_run()
    assert run.info.status == "FAILED"
    assert not (storage.folder / "models").exists()
    assert len(storage.starts()) == 1, "it would diverge again"
    for commit in storage.checkpoints():
        state = TrainingState.load(commit.parent)
        assert all(value.isfinite().all() for value in state.tensors.values())
    with pytest.raises(ModelError, match="diverged at step"):
        storage.train(wild)


def test_a_job_told_to_stop_ends_at_once_and_goes_on_later(storage, clean, tmp_path):
    """SIGTERM, as a scheduler sends it before it takes the machine; with the signal handler of the command."""
    with driver(storage, tmp_path) as process:
        wait_for_a_checkpoint(storage, process, tmp_path)
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
        _, alive = psutil.wait_procs(below, timeout=30)
        assert not alive, "nothing goes on running"
    _, run = storage.mlflow_run()
    assert run.info.status == "KILLED"
    [*_, newest] = storage.checkpoints()
    assert TrainingState.load(newest.parent).about["run_id"] == run.info.run_id
    assert weights(storage.train()) == clean
    assert storage.starts()[1]["windows"] > 0
    assert_one_run_each_step_once(storage)


def test_with_failing_calls_between_rays_processes_it_ends_equal_or_fails_cleanly(storage, clean, tmp_path):
    with driver(storage, tmp_path, RAY_testing_rpc_failure="*=20:10:10") as process:
        status = process.wait(400)
    if status == 0:
        [model] = (storage.folder / "models").iterdir()
        assert (model / "model.safetensors").read_bytes() == clean
    else:
        assert not list((storage.folder / "models").glob("*/config.json"))


def test_with_a_node_less_it_goes_on_with_fewer_workers(storage, tmp_path):
    with driver(storage, tmp_path, "elastic") as process:
        status = process.wait(500)
    assert status == 0, (tmp_path / "driver.log").read_text()
    starts = storage.starts()
    assert [start["workers"] for start in starts] == [2, 1]
    assert starts[1]["windows"] >= EVERY
    assert_one_run_each_step_once(storage)
    [model] = (storage.folder / "models").iterdir()
    assert json.loads((model / "lineage.json").read_text())["windows"] == TINY.train.windows


def test_a_node_that_is_announced_to_leave_is_left_with_a_checkpoint_of_the_moment(storage, clean, tmp_path):
    with driver(storage, tmp_path, "drain") as process:
        status = process.wait(500)
    assert status == 0, (tmp_path / "driver.log").read_text()
    starts = storage.starts()
    assert [start["workers"] for start in starts] == [2, 2], (tmp_path / "driver.log").read_text()
    assert starts[1]["windows"] % EVERY, "the checkpoint is that of the warning, not one that was due"
    [model] = (storage.folder / "models").iterdir()
    assert (model / "model.safetensors").read_bytes() == clean
