import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from ray.job_submission import JobDetails, JobStatus, JobType

from p2es.errors import ConfigError, RemoteError
from p2es_platform import jobs
from p2es_platform.registry import folder_sha256
from p2es_platform.settings import Settings


def at(address: str | None) -> Settings:
    return Settings(ray_address=address)


def without_ray(**changes: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "P2ES_", "PYTHON"))} | changes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "error", "says"),
    [
        (None, ConfigError, "set RAY_ADDRESS"),
        ("127.0.0.1:6379", ConfigError, "takes no jobs"),
        ("auto", ConfigError, "takes no jobs"),
        ("http://", ConfigError, "takes no jobs"),
        ("http://127.0.0.1:9", RemoteError, "correct it"),
        ("http://no-such-host.invalid:8265", RemoteError, "correct it"),
    ],
)
def test_an_address_that_takes_no_jobs_is_told_in_one_line(address, error, says):
    started = time.monotonic()
    with pytest.raises(error, match=says) as caught:
        jobs.submit(at(address), ["doctor"])
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 15


def test_the_code_that_is_shipped_imports_without_the_checkout(tmp_path):
    code = jobs.pack_code(tmp_path / "code")
    assert {p.name for p in code.iterdir()} >= {"p2es", "p2es_platform", "pipelines", "serve"}
    assert not (code / "platform").exists()  # it would shadow the standard library's
    where = "import p2es, p2es_platform.jobs, pipelines.cli, serve, platform; print(p2es.__file__, platform.system())"
    done = subprocess.run(
        [sys.executable, "-c", where], cwd=code, env=without_ray(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(code))


def test_an_installed_copy_ships_the_same_code_as_the_checkout(tmp_path):
    from_checkout = jobs.pack_code(tmp_path / "first")
    script = (
        "import sys; from pathlib import Path; from p2es_platform import jobs;"
        "assert Path(jobs.__file__).is_relative_to(sys.argv[1]); jobs.pack_code(Path(sys.argv[2]))"
    )
    again = tmp_path / "second"
    done = subprocess.run(
        [sys.executable, "-B", "-c", script, str(from_checkout), str(again)],
        env=without_ray(PYTHONPATH=str(from_checkout)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert folder_sha256(again) == folder_sha256(from_checkout)


def details(status: JobStatus, code: int | None) -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION, entrypoint="x", status=status, driver_exit_code=code, message="pip failed\nbadly"
    )


def test_the_exit_status_is_the_commands_own():
    assert jobs._exit_status(details(JobStatus.SUCCEEDED, 0), "j") == 0
    assert jobs._exit_status(details(JobStatus.FAILED, 2), "j") == 2
    assert jobs._exit_status(details(JobStatus.STOPPED, None), "j") == 130
    with pytest.raises(RemoteError, match="j could not be run: pip failed badly"):
        jobs._exit_status(details(JobStatus.FAILED, None), "j")
    with pytest.raises(RemoteError, match="goes on"):
        jobs._exit_status(details(JobStatus.RUNNING, None), "j")


class Breaking:
    """A log that breaks off and begins anew, as Ray's does after a lost connection."""

    def __init__(self, text: str, breaks: list[int]) -> None:
        self.text, self.breaks = text, breaks

    async def tail_job_logs(self, job):
        end = self.breaks.pop(0) if self.breaks else None
        for start in range(0, len(self.text) if end is None else end, 3):
            yield self.text[start : min(start + 3, end) if end is not None else start + 3]
        if end is not None:
            raise RuntimeError("WebSocket connection closed unexpectedly")


def test_a_log_that_breaks_off_goes_on_where_it_broke(monkeypatch):
    async def at_once(seconds):
        return None

    monkeypatch.setattr(jobs.asyncio, "sleep", at_once)
    text, got = "one two three four five", []
    jobs.asyncio.run(jobs._tail(Breaking(text, [7, 2, 20]), "j", got.append))
    assert "".join(got) == text
    with pytest.raises(RemoteError, match="may still run"):
        jobs.asyncio.run(jobs._tail(Breaking(text, [4] * 9), "j", got.append))


@dataclass(frozen=True)
class Cluster:
    address: str
    token: str
    python: Path
    temp: Path
    port: int

    def p2es(self, *argv: str, token: str | None = "", **changes: str) -> subprocess.CompletedProcess:
        """Run the command line of this checkout against the cluster; token None sends none."""
        environment = without_ray(RAY_ADDRESS=self.address, P2ES_STORAGE=str(self.temp / "storage"), **changes)
        if token is not None:
            environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token or self.token}
        return subprocess.run(
            [sys.executable, "-m", "pipelines.cli", *argv],
            env=environment | {"HOME": str(self.temp)},
            cwd=self.temp,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )


def ours(temp: Path) -> list[int]:
    """Find the processes that were started with the cluster's own folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(temp).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def other_environment(folder: Path) -> Path:
    """Make an environment that has the dependencies but not this checkout."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    packages = next((folder / "lib").glob("python*/site-packages"))
    # The .pth files inside a folder that a .pth names are not read: the editable p2es is one of them.
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    for module, there in (("ray", True), ("p2es", False), ("p2es_platform", False)):
        done = subprocess.run(
            [str(python), "-c", f"import {module}"], env=without_ray(), cwd=folder, capture_output=True, check=False
        )
        assert (done.returncode == 0) == there, module
    return python


@pytest.fixture(scope="module")
def cluster():
    temp = Path(tempfile.mkdtemp(prefix="rj"))
    python, token = other_environment(temp / "env"), secrets.token_hex(32)
    port, dashboard = free_port(), free_port()
    options = {
        "--port": port,
        "--dashboard-port": dashboard,
        "--dashboard-host": "127.0.0.1",
        "--dashboard-agent-listen-port": free_port(),
        "--dashboard-agent-grpc-port": free_port(),
        "--ray-client-server-port": free_port(),
        "--metrics-export-port": free_port(),
        "--node-ip-address": "127.0.0.1",
        "--temp-dir": temp / "r",
        "--num-cpus": 2,
        "--object-store-memory": 100_000_000,
    }
    arguments = [str(part) for option in options.items() for part in option]
    start = "from ray.scripts.scripts import main; main()"
    log = (temp / "head.log").open("wb")
    head = subprocess.Popen(
        [str(python), "-c", start, "start", "--head", "--block", "--disable-usage-stats", *arguments],
        env=without_ray(
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN=token,
            HOME=str(temp),
            PATH=f"{python.parent}:/usr/bin:/bin",
            OMP_NUM_THREADS="1",
        ),
        cwd=temp,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    made = Cluster(f"http://127.0.0.1:{dashboard}", token, python, temp, port)
    try:
        wait_until_ready(made, head)
        yield made
    finally:
        log.close()
        end(head, temp)


def wait_until_ready(made: Cluster, head: subprocess.Popen) -> None:
    for _ in range(240):
        assert head.poll() is None, (made.temp / "head.log").read_text()
        try:
            headers = {"Authorization": f"Bearer {made.token}"}
            if requests.get(f"{made.address}/api/version", headers=headers, timeout=2).status_code == 200:
                return
        except requests.RequestException:
            pass
        time.sleep(0.5)
    raise AssertionError((made.temp / "head.log").read_text())


def end(head: subprocess.Popen, temp: Path) -> None:
    """End what was started here, by id; never `ray stop`, which ends every Ray of the machine."""
    os.killpg(head.pid, signal.SIGTERM)
    try:
        head.wait(timeout=5)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
    for _ in range(20):
        if not ours(temp / "r"):
            break
        time.sleep(0.5)
    for pid in ours(temp / "r"):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(temp, ignore_errors=True)


@pytest.mark.slow
def test_a_command_runs_on_a_cluster_that_has_no_checkout(cluster):
    done = cluster.p2es("submit", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "submitted as p2es-doctor-" in done.stdout
    assert str(cluster.python.parent) in done.stdout  # the doctor that spoke is the cluster's
    assert f":{cluster.port}, which listens" in done.stdout, done.stdout
    assert cluster.token not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_job_can_be_followed_later_listed_and_stopped(cluster):
    script = (
        "import os, sys; from p2es_platform import jobs; from p2es_platform.settings import Settings;"
        "job = jobs.submit(Settings(), [], entrypoint=sys.argv[1]); print(job);"
        "sys.exit(jobs.follow(Settings(), job) if len(sys.argv) > 2 else 0)"
    )
    failing = run_script(cluster, script, 'python -c "import p2es_platform; print(6*7); raise SystemExit(3)"', "wait")
    assert failing.returncode == 3, failing.stderr
    assert "42" in failing.stdout
    running = run_script(cluster, script, "sleep 300").stdout.strip()
    listed = cluster.p2es("jobs", "list")
    assert running in listed.stdout
    assert "sleep 300" in listed.stdout
    assert cluster.p2es("jobs", "stop", running).returncode == 0
    follow = (
        "import sys; from p2es_platform import jobs; from p2es_platform.settings import Settings;"
        "sys.exit(jobs.follow(Settings(), sys.argv[1]))"
    )
    assert run_script(cluster, follow, running).returncode == 130


def run_script(cluster: Cluster, script: str, *argv: str) -> subprocess.CompletedProcess:
    environment = without_ray(
        RAY_ADDRESS=cluster.address,
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=cluster.token,
        P2ES_STORAGE=str(cluster.temp / "storage"),
        HOME=str(cluster.temp),
    )
    return subprocess.run(
        [sys.executable, "-c", script, *argv],
        env=environment,
        cwd=cluster.temp,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.slow
def test_a_job_starts_tasks_that_import_what_was_shipped(cluster):
    work = (
        "import ray\n"
        "from p2es_platform.cluster import connect\n"
        "from p2es_platform.settings import Settings\n"
        "import numpy as np\n"
        "from p2es_platform.neighbours import k_nearest\n"
        "with connect(Settings()):\n"
        "    x = np.arange(40, dtype='f4').reshape(20, 2)\n"
        "    print('nearest', k_nearest(x, x, 1, shards=2)[0].ravel()[:2].tolist())\n"
    )
    path = cluster.temp / "work.py"
    path.write_text(work)
    script = (
        "import sys; from p2es_platform import jobs; from p2es_platform.settings import Settings;"
        "job = jobs.submit(Settings(), [], entrypoint=sys.argv[1]); sys.exit(jobs.follow(Settings(), job))"
    )
    done = run_script(cluster, script, f"python {path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nearest [1, 0]" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "0" * 64])
def test_a_missing_or_wrong_token_is_told_in_one_line(cluster, token):
    done = cluster.p2es("submit", "doctor", token=token)
    assert done.returncode == 2
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("action", ["logs", "stop"])
def test_an_unknown_job_is_told_in_one_line(cluster, action):
    done = cluster.p2es("jobs", action, "p2es-train-000000")
    assert done.returncode == 2
    assert "p2es jobs list" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
