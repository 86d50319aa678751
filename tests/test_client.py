import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from p2es.errors import InputError, RemoteError
from serve.client import Client
from serve.codec import ARROW, NPY, read_npy, write_arrow
from serve.schema import ErrorResponse, ModelInfo, TranslateResponse

PPG = np.sin(np.arange(1500) / 20)
ECG = np.random.default_rng(0).normal(size=(12, 1280)).astype(np.float32)


def good_answer():
    head = TranslateResponse(
        heart_rate_bpm=None,
        rhythm="unknown",
        ppg_quality=0.5,
        samples=1,
        evaluations=1,
        seed=0,
        model=ModelInfo(name="p2es", version="3", sha256="ab" * 32),
        request_id="r",
    )
    return 200, ARROW, write_arrow(head, {"ecg_mv": ECG})


def error_answer(status, message="why"):
    return (
        status,
        "application/json",
        ErrorResponse(error="e", message=message, request_id="r").model_dump_json().encode(),
    )


class Scripted(ThreadingHTTPServer):
    """A real HTTP server that gives its answers in order, the last one for ever."""

    def __init__(self, *answers):
        self.answers, self.seen = list(answers), []
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = self.server
        server.seen.append((self.path, dict(self.headers), body))
        answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
        if answer == "hang up":
            self.close_connection = True
            return
        if answer == "stall":
            threading.Event().wait(1.5)
            return
        status, kind, content = answer
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _answer  # noqa: N815

    def log_message(self, *_):
        pass


def translate(server, **options):
    with Client(server.url, options.pop("token", None), **options) as client:
        return client.translate(PPG, fs_hz=125)


def test_what_arrives_is_what_was_sent_and_back():
    with Scripted(good_answer()) as server:
        with Client(server.url + "/", "a token") as client:
            answer = client.translate(PPG, fs_hz=125, sex="F", age_years=40, seed=9)
        ((path, headers, body),) = server.seen
    np.testing.assert_array_equal(read_npy(body)[0], PPG.astype(np.float32))
    assert headers["Authorization"] == "Bearer a token"
    assert headers["Content-Type"] == NPY
    assert {"sex=F", "age_years=40", "seed=9", "fs_hz=125"} <= set(path.partition("?")[2].split("&"))
    assert "height_cm" not in path
    np.testing.assert_array_equal(answer.ecg_mv, ECG)
    assert answer.band_mv is None
    assert answer.heart_rate_bpm is None
    assert answer.synthetic
    assert "SYNTHETIC" in answer.notice
    assert answer.model["version"] == "3"


def test_known_leads_travel_as_json_with_null_for_nan():
    with Scripted(good_answer()) as server:
        with Client(server.url) as client:
            client.translate([np.nan, 1.0], fs_hz=25, known={"I": [np.nan, 0.5]})
        sent = json.loads(server.seen[0][2])
    assert sent["ppg"] == [None, 1.0]
    assert sent["known"] == {"I": [None, 0.5]}


@pytest.mark.parametrize(
    "fault", ["hang up", error_answer(429), error_answer(500), error_answer(502), error_answer(503)]
)
def test_a_passing_fault_is_retried_with_the_same_request(fault):
    with Scripted(fault, fault, good_answer()) as server:
        np.testing.assert_array_equal(translate(server).ecg_mv, ECG)
        assert len(server.seen) == 3
        assert len({(path, body) for path, _, body in server.seen}) == 1


@pytest.mark.parametrize("fault", ["hang up", error_answer(503, "starting")])
def test_a_lasting_fault_ends_in_one_line(fault):
    with Scripted(fault) as server:
        with pytest.raises(RemoteError) as caught:
            translate(server, retries=1)
        assert len(server.seen) == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_fault_of_the_input_is_told_once_in_the_endpoints_words(status):
    with Scripted(error_answer(status, "the PPG is flat:\n  choose another")) as server:
        with pytest.raises(InputError, match=r"^the PPG is flat: choose another$"):
            translate(server)
        assert len(server.seen) == 1


def test_a_wrong_token_is_told_without_repeating_it():
    with (
        Scripted(error_answer(401, "the token is missing or wrong")) as server,
        pytest.raises(RemoteError) as caught,
    ):
        translate(server, token="SECRET")
    assert "token" in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_a_stalled_endpoint_is_waited_for_once():
    with Scripted("stall") as server:
        with pytest.raises(RemoteError, match=r"did not answer within 0\.3 s"):
            translate(server, timeout_s=0.3)
        assert len(server.seen) == 1


@pytest.mark.parametrize(
    "answer",
    [
        (404, "text/html", b"<h1>Not Found</h1>"), (200, "text/html", b"<h1>Welcome</h1>"), (200, ARROW, b""),
        (302, "text/html", b""), (405, "application/json", b"[]"),
    ],
)  # fmt: skip
def test_another_server_is_told_apart(answer):
    with Scripted(answer) as server, pytest.raises(RemoteError, match="check the URL"):
        translate(server)


def test_nothing_there_is_told_in_one_line_without_the_password():
    with Scripted(good_answer()) as server:
        port = server.server_address[1]
    with pytest.raises(RemoteError) as caught:
        Client(f"http://me:SECRET@127.0.0.1:{port}", retries=0).translate(PPG, fs_hz=125)
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert not Client(f"http://127.0.0.1:{port}", retries=0).healthy()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", ""])
def test_a_url_that_cannot_work_is_refused_at_once(url):
    with pytest.raises(InputError, match="http://host"):
        Client(url)


def test_a_netrc_does_not_replace_the_token(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password other\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Scripted(good_answer()) as server:
        translate(server, token="mine")
        assert server.seen[0][1]["Authorization"] == "Bearer mine"


def test_the_client_imports_without_the_engines():
    engines = ["ray", "torch", "mlflow", "fastapi"]
    code = f"import sys, serve.client; print([name for name in {engines} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
