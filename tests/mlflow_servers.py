"""Real MLflow servers to test against, and a real HTTP proxy that fails on demand."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import requests


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve_mlflow(folder: Path, port: int, backend: str | None = None, artifacts: str | None = None) -> subprocess.Popen:
    """Start `mlflow server`, over sqlite in the folder unless told else, and wait until it answers."""
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
        "--backend-store-uri": backend or f"sqlite:///{folder}/server.db",
        "--artifacts-destination": artifacts or str(folder / "served"),
    }
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *(part for option in options.items() for part in option)],
            start_new_session=True,
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                return process
        except requests.RequestException:
            time.sleep(0.25)
    end(process)
    raise AssertionError(f"the MLflow server did not start in 300 s: {(folder / 'server.log').read_text()[-2000:]}")


def end(process: subprocess.Popen) -> None:
    """Kill a server and its workers, as a crash does."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def failing_proxy(target: str):
    """An HTTP proxy before `target`; set `.mode` to `pass`, `error` (answers 500), `lose` (passes on, answers nothing).

    `.posts` counts the requests that write and reached the target.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if proxy.mode == "error":
                return self.give(500, b"the database is away", {})
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length")}
            got = requests.request(self.command, target + self.path, data=body, headers=headers, timeout=60)
            proxy.posts += self.command == "POST" and "log-batch" in self.path
            if proxy.mode == "lose" and self.command == "POST":
                self.close_connection = True
                return self.connection.shutdown(socket.SHUT_RDWR)
            return self.give(got.status_code, got.content, {"Content-Type": got.headers.get("Content-Type", "")})

        def give(self, status, body, headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

        def log_message(self, *arguments):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        mode, posts = "pass", 0

        def handle_error(self, request, client_address):
            pass  # The client was told by a closed connection; that is the point.

    proxy = Server(("127.0.0.1", 0), Handler)
    proxy.address = f"http://127.0.0.1:{proxy.server_port}"
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


class PostgreSQL:
    """A real PostgreSQL in a folder of its own, that is stopped and started at will."""

    def __init__(self, programs: Path, folder: Path) -> None:
        # It refuses to run as root, so there it runs as somebody who may write here only.
        self.user = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
        self.programs, self.folder, self.port = programs, folder, free_port()
        if self.user:
            shutil.chown(folder, "nobody", "nogroup")
        self.call("initdb", "-D", str(folder / "data"), "-U", "mlflow", "-A", "trust", "--no-sync", "-E", "UTF8")
        self.start()
        self.call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "mlflow", "mlflow")
        self.uri = f"postgresql://mlflow@127.0.0.1:{self.port}/mlflow"

    def call(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=120, **self.user,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder}"
        self.call("pg_ctl", "-D", "data", "-l", "postgres.log", "-w", "-o", options, "start")

    def stop(self, how: str = "immediate") -> None:
        """Stop it as a crash does: what was committed is found again in its log."""
        self.call("pg_ctl", "-D", "data", "-m", how, "-w", "stop")


def postgres_programs() -> Path | None:
    """Where PostgreSQL's programs are (Debian keeps them off the path), or None."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    needed = ("initdb", "pg_ctl", "postgres", "createdb")
    return next((place for place in places if all((place / name).exists() for name in needed)), None)
