"""Results to a real web server: order, back-off, refusals, time-outs, tokens, redirects; and the outbox alone."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from edgeferry_runtime.errors import SinkError, UsageError
from edgeferry_runtime.results import Result
from edgeferry_runtime.sinks import open_sink
from edgeferry_runtime.sinks.outbox import Outbox
from edgeferry_runtime.sinks.webhook import WebhookSink
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.tasks.classify import Classification, ClassScore

FRAME = Frame(np.zeros((2, 2, 3), np.uint8), "bgr", 0, 0)
ANSWER = Classification((ClassScore(3, "cat", 0.75),))


def result(number):
    return Result(number, "", "pets-01234567", "int8", "fake", 0, 1e9, 2500.0, (1.0,) * 6, 0, ANSWER)


def wait_until(true, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


class Server(ThreadingHTTPServer):
    """Keeps (status, path, headers, parsed body) of every request; ``plan`` holds the next answers, then 200."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.port = self.server_address[1]
        self.requests = []
        self.plan = []
        self.location = ""
        self.body = b"thanks"
        self.connections = 0
        self.hang_up = False  # after each answer, without saying so
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def frames(self, status=200):
        return [body["frame"] for code, _, _, body in self.requests if code == status]

    def handle_error(self, request, client_address):
        """A client that left is no failure of the server."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.server.connections += 1

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = server.plan.pop(0) if server.plan else 200
        server.requests.append((status, self.path, dict(self.headers), body))
        if status == "hang":
            server.released.wait(60)
            self.close_connection = True
            return
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", server.location)
        self.send_header("Content-Length", str(len(server.body)))
        self.end_headers()
        self.wfile.write(server.body)
        self.close_connection = self.close_connection or server.hang_up

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture
def server():
    server = Server()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def hook(server, options="", path="/hook?room=1&x=%20"):
    return WebhookSink(f"webhook:http://127.0.0.1:{server.port}{path}#{options}", first_pause_s=0.02)


def test_results_arrive_in_order_on_one_connection(server):
    with hook(server) as sink:
        for number in range(50):
            sink.write(FRAME, result(number))
    assert server.frames() == list(range(50))
    assert server.connections == 1
    _, path, headers, body = server.requests[0]
    assert path == "/hook?room=1&x=%20"
    assert headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    assert body["classes"] == [{"index": 3, "label": "cat", "score": 0.75}]
    assert sink.state() == {"waiting": 0, "dropped": 0}
    assert sink.uri == f"webhook:http://127.0.0.1:{server.port}/..."
    sink.close()


def test_open_sink_opens_it(server):
    with open_sink(f"webhook:http://127.0.0.1:{server.port}#buffer=5") as sink:
        sink.write(FRAME, result(4))
    assert server.frames() == [4]
    assert server.requests[0][1] == "/"
    assert "#" not in sink.uri


@pytest.mark.parametrize("status", [500, 503, 408, 429])
def test_what_may_work_later_is_tried_again_in_order(server, status, caplog):
    server.plan = [200, status, status, status]
    with hook(server) as sink:
        for number in range(5):
            sink.write(FRAME, result(number))
        wait_until(lambda: server.frames() == [0, 1, 2, 3, 4])
    assert server.frames(status) == [1, 1, 1]
    assert sink.state() == {"waiting": 0, "dropped": 0}
    assert len([r for r in caplog.records if f"answers {status}" in r.message]) == 1
    assert "works again" in caplog.text


@pytest.mark.parametrize("status", [400, 401, 404, 410])
def test_what_never_works_is_dropped_and_named_once(server, status, caplog):
    server.plan = [status] * 3
    with hook(server) as sink:
        for number in range(5):
            sink.write(FRAME, result(number))
        wait_until(lambda: server.frames() == [3, 4])
    assert server.frames(status) == [0, 1, 2]
    assert sink.state() == {"waiting": 0, "dropped": 3}
    assert len([r for r in caplog.records if f"answers {status}" in r.message]) == 1
    assert "room=1" not in caplog.text


def test_a_redirect_is_not_followed(server, tmp_path, caplog):
    (tmp_path / "token").write_text("t0ken\n")
    elsewhere = Server()
    server.plan, server.location = [307, 302], f"http://127.0.0.1:{elsewhere.port}/"
    with hook(server, f"token_file={tmp_path / 'token'}") as sink:
        for number in range(3):
            sink.write(FRAME, result(number))
        wait_until(lambda: server.frames() == [2])
        assert sink.state()["dropped"] == 2
    assert elsewhere.requests == []
    assert "redirects are not followed" in caplog.text
    assert [headers["Authorization"] for _, _, headers, _ in server.requests] == ["Bearer t0ken"] * 3
    elsewhere.shutdown()
    elsewhere.server_close()


def test_a_server_that_hangs_is_given_up_after_the_time(server):
    server.plan = ["hang"]
    with hook(server, "timeout_s=0.3") as sink:
        sink.write(FRAME, result(0))
        sink.write(FRAME, result(1))
        wait_until(lambda: server.frames() == [0, 1])
    assert server.frames("hang") == [0]
    assert sink.state() == {"waiting": 0, "dropped": 0}


def test_a_connection_the_server_closed_while_idle_costs_no_pause(server):
    server.hang_up = True
    sink = WebhookSink(f"webhook:http://127.0.0.1:{server.port}/", first_pause_s=600)
    with sink:
        for number in range(5):
            sink.write(FRAME, result(number))
            wait_until(lambda n=number: server.frames() == list(range(n + 1)))
    assert server.connections == 5


def test_an_answer_that_is_long_does_not_spoil_the_next(server):
    server.body = b"x" * 200000
    with hook(server) as sink:
        for number in range(3):
            sink.write(FRAME, result(number))
    assert server.frames() == [0, 1, 2]


def test_a_server_that_is_away_keeps_the_newest(caplog):
    server = Server()
    port = server.port
    server.shutdown()
    server.server_close()
    sink = WebhookSink(f"webhook:http://127.0.0.1:{port}/#buffer=5", first_pause_s=600)
    sink.write(FRAME, result(0))
    wait_until(lambda: "error" in sink.state())
    for number in range(1, 20):
        sink.write(FRAME, result(number))
    assert sink.state()["waiting"] == 5
    assert sink.state()["dropped"] == 15
    assert "refused" in sink.state()["error"]
    started = time.monotonic()
    sink.close()
    assert time.monotonic() - started < 10
    assert sink.state()["waiting"] == 0
    assert sink.state()["dropped"] == 20
    assert len([r for r in caplog.records if "cannot be reached" in r.message]) == 1


# The outbox


def test_a_full_outbox_holds_the_writer_while_sending_works():
    gate, sent = threading.Semaphore(0), []

    def send(payload):
        gate.acquire()
        sent.append(payload)
        return True

    outbox = Outbox(send, limit=2)
    writer = threading.Thread(target=lambda: [outbox.put(b"%d" % n) for n in range(6)], daemon=True)
    writer.start()
    wait_until(lambda: len(outbox) == 2)
    time.sleep(0.1)
    assert writer.is_alive()  # one is in send's hand, two wait, the fourth is not taken
    assert len(outbox) == 2
    for _ in range(6):
        gate.release()
    writer.join(30)
    outbox.close(5)
    assert sent == [b"%d" % n for n in range(6)]
    assert outbox.dropped == 0


def test_pauses_grow_and_a_nudge_ends_them():
    times = []

    def send(_payload):
        times.append(time.monotonic())
        return False

    outbox = Outbox(send, limit=1, first_s=0.1, longest_s=600)
    outbox.put(b"a")
    wait_until(lambda: len(times) == 4)
    assert (np.diff(times) >= [0.05, 0.1, 0.2]).all()
    for calls in (5, 6, 7, 8, 9, 10, 11, 12):  # without nudges these would take minutes
        outbox.nudge()
        wait_until(lambda n=calls: len(times) >= n)
    outbox.close(5)
    assert outbox.dropped == 1


def test_close_is_bounded_when_send_hangs():
    release = threading.Event()
    outbox = Outbox(lambda _payload: release.wait(60), limit=10)
    for n in range(3):
        outbox.put(b"%d" % n)
    started = time.monotonic()
    outbox.close(0.2)
    assert time.monotonic() - started < 10
    assert outbox.dropped == 2  # the third is in send's hand
    outbox.put(b"late")
    assert outbox.dropped == 3
    release.set()


# Bad input


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("webhook:host/path", "no URL that begins with http"),
        ("webhook:ftp://host/path", "no URL that begins with http"),
        ("webhook:http:///path", "no URL that begins with http"),
        ("webhook:http://host:99999/", "no URL that begins with http"),
        ("webhook:http://host/a b", "no URL that begins with http"),
        ("webhook:http://host/a\r\nHost: evil", "no URL that begins with http"),
        ("webhook:http://[::1/", "no URL that begins with http"),
        ("webhook:http://host/#timeout=5", "did you mean 'timeout_s'"),
        ("webhook:http://host/#timeout_s=0", "timeout_s must be at least 0.1"),
        ("webhook:http://host/#buffer=none", "buffer must be a whole number"),
        ("webhok:http://host/", "did you mean 'webhook'"),
        ("http://host/", "is no sink"),
    ],
)
def test_urls_that_are_wrong(uri, words):
    with pytest.raises(UsageError, match=words):
        open_sink(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "webhook:https://me:hunter2@host/",
        "webhook:https://host/hunter2#buffer=x",
        "webhook:https://host/#token=hunter2",
        "webhook:https://host:x/hunter2",
        "https://me:hunter2@host/",
    ],
)
def test_no_message_repeats_a_secret(uri):
    with pytest.raises(UsageError) as caught:
        open_sink(uri)
    assert "hunter2" not in str(caught.value)


def test_tokens_that_cannot_be_used(tmp_path):
    for text, kind in (("", SinkError), ("a\nb", SinkError), ("a b", UsageError), ("é", UsageError)):
        (tmp_path / "token").write_text(text, encoding="utf-8")
        with pytest.raises(kind):
            open_sink(f"webhook:http://host/#token_file={tmp_path / 'token'}")
    with pytest.raises(SinkError, match="the token cannot be read: No such file"):
        open_sink(f"webhook:http://host/#token_file={tmp_path / 'absent'}")
