"""A server between p2es and a store that breaks what a test tells it to: S3 fails, moto does not."""

from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import requests


class FaultyServer(ThreadingHTTPServer):
    """Passes requests on to `store`.

    Attributes
    ----------
    fault : callable
        Given the path of a GET and how often the whole file was asked for, "" or what to do: "500", "403", or "cut" in
        the middle.
    asked : Counter
        GETs of each whole file: neither heads, nor what is asked for again after a cut.
    """

    daemon_threads = True
    fault: Callable[[str, int], str]

    def __init__(self, store: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = store
        self.heal()

    def heal(self) -> None:
        """Work again, and forget what was asked."""
        self.fault = lambda _path, _count: ""
        self.asked: Counter[str] = Counter()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def _pass_on(self) -> None:
        path = self.path.split("?")[0]
        fault = ""
        if self.command == "GET":
            self.server.asked[path] += "Range" not in self.headers
            fault = self.server.fault(path, self.server.asked[path])
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault in {"500", "403"}:
            code = {"500": "InternalError", "403": "AccessDenied"}[fault]
            self._answer(int(fault), {}, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())
            return
        headers = {name: value for name, value in self.headers.items() if name != "Accept-Encoding"}
        url = self.server.store + self.path
        found = requests.request(self.command, url, headers=headers, data=body, timeout=30, stream=True)
        self._answer(found.status_code, dict(found.headers), found.raw.read(), cut=fault == "cut")

    def _answer(self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        own = {"content-length", "transfer-encoding", "connection"}
        for name, value in headers.items():
            if name.lower() not in own:
                self.send_header(name, value)
        size = headers.get("Content-Length", len(body)) if self.command == "HEAD" else len(body)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def faulty_server(store):
    """Run one in a thread."""
    server = FaultyServer(store)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
