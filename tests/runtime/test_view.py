"""The live page over a real socket, on a real loop: what it says, what it refuses, what it survives."""

from __future__ import annotations

import http.client
import importlib.util
import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from edgeferry_runtime import Model, opencv
from edgeferry_runtime.errors import BackendError, DependencyError, EdgeferryError, UsageError
from edgeferry_runtime.sources.base import WAITING, Frame, FrameSource
from edgeferry_runtime.stats import LatencyStats
from edgeferry_runtime.view import server
from edgeferry_runtime.view.api import health
from edgeferry_runtime.view.predict import Predictor
from edgeferry_runtime.view.server import View
from edgeferry_runtime.view_config import ViewConfig

pytest.importorskip("uvicorn", reason="the extra `view` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `view` is not installed")

HERE = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("view_rig", HERE / "view_rig.py")
view_rig = importlib.util.module_from_spec(spec)
sys.modules["view_rig"] = view_rig
spec.loader.exec_module(view_rig)
page = view_rig.page

TOKEN = "the-token-of-these-tests"
BEARER = {"Authorization": "Bearer " + TOKEN}


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return str(path)


class Client:
    """Asks a page; each time on a connection of its own."""

    def __init__(self, view, headers=None):
        self.address, self.headers = view.address, headers or {}

    def ask(self, path, method="GET", body=None, **headers):
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            connection.request(method, path, body, {**self.headers, **headers})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def json(self, path, method="GET", body=None, **headers):
        status, _, said = self.ask(path, method, body, **headers)
        return status, json.loads(said)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def shown(bundle):
    """(rig, client) of a page without a token."""
    with page(bundle) as (rig, view):
        wait_for(lambda: rig.ready)
        yield rig, Client(view)


def test_several_models_each_have_their_own(bundle):
    with page(bundle, lanes=("finder", "reader")) as (_, view):
        client = Client(view)
        wait_for(lambda: len(client.json("/api/history?lane=reader")[1]["lanes"]["reader"]) > 0)
        assert list(client.json("/api/history")[1]["lanes"]) == ["finder", "reader"]
        assert list(client.json("/api/state")[1]["view"]["lanes"]) == ["finder", "reader"]
        assert client.json("/healthz")[1]["lanes"].keys() == {"finder", "reader"}
        for path in ("/picture.jpg", "/picture/finder.jpg", "/picture/reader.jpg"):
            assert client.ask(path)[2][:2] == b"\xff\xd8"
        for query in ("", "?model=finder", "?model=reader"):
            assert client.json("/api/predict" + query, "POST", picture()[1])[0] == 200
        assert b'edgeferry_frames_total{lane="reader"}' in client.ask("/metrics")[2]
        assert "did you mean 'reader'" in client.json("/api/predict?model=raeder", "POST", b"x")[1]["error"]


class Held(FrameSource):
    """Frames as long as the test lets them through."""

    live = True

    def __init__(self):
        self.flowing = threading.Event()
        self.number = -1

    def _read(self, timeout_s):
        if not self.flowing.wait(timeout_s):
            return WAITING
        time.sleep(0.02)
        self.number += 1
        return Frame(np.zeros((20, 30, 3), np.uint8), "bgr", self.number, time.monotonic_ns())


def test_the_page_and_its_files_hold_nothing_from_elsewhere(shown):
    _, client = shown
    status, headers, body = client.ask("/")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"
    files = set(re.findall(r'(?:src|href)="([a-z]+\.(?:css|js|svg))"', body.decode()))
    assert files == {"page.css", "page.js", "icon.svg"}
    for name in (*files, "chart.js", "parts.js"):
        status, headers, body = client.ask("/" + name)
        assert status == 200
        assert not re.search(rb"(?<!xmlns=\")https?://(?!www\.w3\.org/2000/svg)", body), name
        assert client.ask("/" + name, **{"If-None-Match": headers["etag"]})[0] == 304
    assert b"<noscript>" in client.ask("/")[2]


def test_state_history_and_results_of_a_running_loop(shown):
    rig, client = shown
    wait_for(lambda: any(fps > 0 for _, fps, *_ in client.json("/api/history")[1]["lanes"][""]))
    status, state = client.json("/api/state")
    assert status == 200
    assert state["bundle"] == rig.models[0].identity
    own = state["view"]["lanes"][""]
    assert own["variant"] == "int8"
    assert own["versions"][0]["bundle"] == rig.models[0].identity
    assert own["versions"][0]["running"] is True
    assert (state["view"]["ready"], state["view"]["token"], state["view"]["writable"]) == (True, False, False)
    history = client.json("/api/history")[1]
    rows = [dict(zip(history["columns"], row, strict=True)) for row in history["lanes"][""]]
    assert all((row["fps"] > 0) is (row["invoke_ms"] > 0) for row in rows)
    assert client.json(f"/api/history?since={rows[-1]['time'] + 1e6}")[1]["lanes"][""] == []
    (line, *_), frames = client.json("/api/results?lane=")[1]["lanes"][""], rig.pipeline.tally.frames
    assert line["frame"] >= 0
    assert line["headline"].split()[0] in ("alpha", "beta", "gamma", "delta")
    wait_for(lambda: client.json("/api/results")[1]["lanes"][""][0]["frame"] > frames)


def test_the_stream_shows_one_picture_after_the_other_and_the_thread_sleeps_afterwards(shown):
    _, client = shown
    connection = http.client.HTTPConnection(*client.address, timeout=60)
    connection.request("GET", "/stream.mjpg")
    answer = connection.getresponse()
    assert answer.getheader("content-type").startswith("multipart/x-mixed-replace; boundary=")
    boundary = b"--" + answer.getheader("content-type").split("boundary=")[1].encode()
    assert answer.readline() == boundary + b"\r\n"
    pictures = []
    for _ in range(3):
        assert answer.readline() == b"content-type: image/jpeg\r\n"
        length = int(answer.readline().split(b":")[1])
        assert answer.readline() == b"\r\n"
        pictures.append(answer.read(length))
        assert answer.readline() + answer.readline() == b"\r\n" + boundary + b"\r\n"
    assert len(set(pictures)) == 3
    decoded = opencv.load("tests").imdecode(np.frombuffer(pictures[0], np.uint8), 1)
    assert decoded.shape == (240, 320, 3)
    connection.close()
    answer.close()
    status, headers, still = client.ask("/picture.jpg")
    assert (status, headers["content-type"], still[:2]) == (200, "image/jpeg", b"\xff\xd8")


def test_nobody_looks_nothing_is_drawn(shown, monkeypatch):
    rig, client = shown
    drawn = []
    monkeypatch.setattr("edgeferry_runtime.view.picture.encode", lambda *_: drawn.append(1) or b"jpeg")
    assert client.ask("/picture.jpg")[2] == b"jpeg"
    time.sleep(0.3)
    drawn.clear()
    frames = rig.pipeline.tally.frames
    wait_for(lambda: rig.pipeline.tally.frames > frames + 20)
    assert len(drawn) <= 1  # the one that was under way when the last one was answered


def test_no_picture_yet(bundle):
    source = Held()
    with page(bundle, source) as (_, view):
        status, said = Client(view).json("/picture.jpg")
        assert (status, said["ok"]) == (503, False)
        assert Client(view).json("/readyz")[0] == 503
        status, said = Client(view).json("/healthz")
        assert (status, said["reason"]) == (200, "starting")
        source.flowing.set()
        wait_for(lambda: Client(view).json("/readyz")[0] == 200)
        assert Client(view).json("/healthz")[1]["reason"] == "frames move"


def test_a_loop_that_stands_still_is_not_well(bundle, monkeypatch):
    monkeypatch.setattr("edgeferry_runtime.view.api.health", lambda *a: health(*a, limit_s=0.3))
    source = Held()
    source.flowing.set()
    with page(bundle, source) as (rig, view):
        wait_for(lambda: rig.ready)
        source.flowing.clear()
        wait_for(lambda: Client(view).json("/healthz")[0] == 503)
        assert "no frame was done for" in Client(view).json("/healthz")[1]["reason"]
        source.flowing.set()
        wait_for(lambda: Client(view).json("/healthz")[0] == 200)


@pytest.mark.parametrize(
    ("arguments", "ok"),
    [
        ((False, None, {"": 99.0}), True),
        ((True, None, {"": 9.0}), True),
        ((True, None, {"": 11.0}), False),
        ((True, None, {"a": 11.0, "b": 0.1}), True),
        ((True, None, {"a": 11.0, "b": 12.0}), False),
        ((True, 2.0, {"": 99.0}), True),  # the watchdog knows that no frame was due
        ((True, 12.0, {"": 0.0}), False),
        ((True, None, {}), True),
    ],
)
def test_what_counts_as_well(arguments, ok):
    assert health(*arguments)[0] is ok


def test_metrics_are_prometheus_and_add_up(shown):
    from prometheus_client.parser import text_string_to_metric_families

    rig, client = shown
    rig.extra["drift"] = {"alarm": True, "verdict": "alarm"}
    before = rig.pipeline.tally.frames
    status, headers, body = client.ask("/metrics")
    after = rig.pipeline.tally.frames
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    samples = {
        (s.name, *sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(body.decode())
        for s in family.samples
    }
    lane = ("lane", "")
    assert before <= samples["edgeferry_frames_total", lane] <= after
    assert samples["edgeferry_frames_lost_total", lane, ("reason", "unread")] >= 0
    assert samples["edgeferry_ready",] == 1
    assert samples["edgeferry_resident_memory_bytes",] > 1e7
    assert samples["edgeferry_alarm", lane, ("part", "drift")] == 1
    model = rig.models[0]
    ran = {"variant": "int8", "backend": model.backend_name, "delegate": model.delegate}
    info = {"lane": "", "bundle": model.identity, **ran}
    assert samples["edgeferry_model_info", *sorted(info.items())] == 1
    for name, more in (("edgeferry_frame_age_seconds", ()), ("edgeferry_stage_seconds", (("stage", "invoke"),))):
        buckets = [
            (float(dict(key[1:])["le"]), value)
            for key, value in samples.items()
            if key[0] == name + "_bucket" and set(more) <= set(key)
        ]
        counts = [count for _, count in sorted(buckets)]
        assert counts == sorted(counts)
        assert counts[-1] == samples[name + "_count", lane, *more]
        assert before <= counts[-1] <= after
        assert samples[name + "_sum", lane, *more] > 0


def test_buckets_count_each_sample_on_its_side():
    from edgeferry_runtime.view.metrics import cumulative

    stats, samples = LatencyStats(), [0.5, 3, 63.9, 64.1, 1023, 1025, 2e6, 9e6, 1e12]
    for microseconds in samples:
        stats.add(microseconds)
    for edge, count in cumulative(stats):
        assert count == sum(us / 1e6 <= float(edge) for us in samples), edge


def picture(size=(40, 60), ending=".png"):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return pixels, opencv.load("tests").imencode(ending, pixels)[1].tobytes()


def test_a_picture_sent_in_gives_what_the_model_says_of_it(shown, bundle):
    rig, client = shown
    pixels, png = picture()
    with Model.open(bundle, threads=1) as model:
        expected = model(pixels, "bgr").to_json()
    status, said = client.json("/api/predict", "POST", png)
    assert status == 200
    assert said["classes"] == expected["classes"]
    assert said["bundle"] == rig.models[0].identity
    assert set(said["stages_us"]) == {"capture", "decode", "preprocess", "wait", "invoke", "postprocess"}
    jpeg = picture(ending=".jpg")[1]
    assert client.json("/api/predict?model=", "POST", jpeg)[1]["stages_us"]["decode"] > 0


def test_a_picture_is_answered_by_the_version_that_runs(shown, make_bundle):
    rig, client = shown
    png = picture()[1]
    assert client.json("/api/predict", "POST", png)[1]["bundle"] == rig.models[0].identity
    rig.swap(make_bundle(seed=5))
    wait_for(lambda: client.json("/api/predict", "POST", png)[1]["bundle"] == rig.models[1].identity)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("", b"", 400, "there is no picture"),
        ("", b"hello", 400, "neither a JPEG nor a PNG"),
        ("", b"\xff\xd8\xff\xe0" + b"x" * 200, 400, "no whole JPEG"),
        ("", b"\x89PNG\r\n\x1a\n" + b"x" * 8, 400, "neither"),
        ("", b"\x89PNG\r\n\x1a\n" + b"\0" * 8 + b"\0\0\xff\xff" * 2 + b"\0" * 50, 400, "25 million are the most"),
        ("", b"\x89PNG\r\n\x1a\n" + b"\0" * 8 + b"\0\0\0\x09" * 2 + b"\0" * 50, 400, "can be decoded"),
        ("?model=tyni", b"x", 404, "no model 'tyni'"),
    ],
)
def test_what_is_no_picture_is_refused(shown, path, body, status, words):
    rig, client = shown
    got, said = client.json("/api/predict" + path, "POST", body)
    assert (got, said["ok"]) == (status, False)
    assert words in said["error"]
    frames = rig.pipeline.tally.frames
    wait_for(lambda: rig.pipeline.tally.frames > frames)


def test_a_large_body_is_refused_before_it_is_read(shown):
    rig, client = shown
    with socket.create_connection(client.address, timeout=60) as connection:
        head = "POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 104857600\r\n\r\n"
        connection.sendall(head.encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 413
        assert answer.getheader("connection") == "close"
        assert json.loads(answer.read())["error"] == "the body is larger than 8192 KiB"
    # One that does not say how long it is.
    with socket.create_connection(client.address, timeout=60) as connection:
        head = "POST /api/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        sent = 0
        try:
            for _ in range(100):
                connection.sendall(chunk)
                sent += 1
        except OSError:
            pass
        assert sent < 20
    frames = rig.pipeline.tally.frames
    wait_for(lambda: rig.pipeline.tally.frames > frames)
    assert client.json("/healthz")[0] == 200


def test_a_model_that_fails_is_opened_anew_and_the_loop_goes_on(bundle, monkeypatch):
    opened = []

    def open_model(lane):
        model = Model.open(bundle, threads=1)
        opened.append(model)
        if len(opened) == 1:
            monkeypatch.setattr(model, "invoke", lambda: (_ for _ in ()).throw(BackendError("device lost")))
        return model

    with page(bundle) as (_, view):
        view._open_model = open_model
        wait_for(lambda: Client(view).json("/readyz")[0] == 200)
        status, said = Client(view).json("/api/predict", "POST", picture()[1])
        assert (status, said["error"]) == (500, "device lost")
        assert Client(view).json("/api/predict", "POST", picture()[1])[0] == 200
    assert len(opened) == 2


def test_more_pictures_than_a_queue_holds_are_refused(shown, monkeypatch):
    _, client = shown
    let_go, begun = threading.Event(), threading.Event()
    real = Predictor._run

    def slow(self, *arguments):
        begun.set()
        let_go.wait(60)
        return real(self, *arguments)

    monkeypatch.setattr(Predictor, "_run", slow)
    png, statuses = picture()[1], []
    threads = [
        threading.Thread(target=lambda: statuses.append(client.ask("/api/predict", "POST", png)[0]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    begun.wait(60)
    wait_for(lambda: len(statuses) == 3)
    assert statuses == [429] * 3
    let_go.set()
    for thread in threads:
        thread.join(60)
    assert sorted(statuses) == [200] * 5 + [429] * 3


def test_commands(bundle, token_file):
    def fail(arguments):
        raise EdgeferryError("the candidate failed its goldens", "Look at it.")

    def wrong(arguments):
        raise UsageError("bundle must be a path")

    given = []
    with page(bundle, token_file=token_file) as (rig, view):
        rig.commands.update(reload=lambda a: given.append(a) or {"swap": "checking"}, promote=fail, record=wrong)
        rig.commands["abandon"] = lambda a: 1 / 0
        client = Client(view, BEARER)
        command = "/api/command/"
        assert client.json(command + "reload", "POST", b'{"bundle": "/x"}') == (
            200,
            {"ok": True, "swap": "checking"},
        )
        assert client.json(command + "reload", "POST")[0] == 200
        assert given == [{"bundle": "/x"}, {}]
        assert client.json(command + "promote", "POST") == (
            409, {"ok": False, "error": "the candidate failed its goldens", "remedy": "Look at it."}
        )  # fmt: skip
        assert client.json(command + "record", "POST")[0] == 400
        assert client.json(command + "abandon", "POST")[0] == 500
        assert "did you mean 'reload'" in client.json(command + "relaod", "POST")[1]["error"]
        for body in (b"[1]", b"{", b'{"a": NaN}', b"\xff"):
            assert client.json(command + "reload", "POST", body)[0] == 400
        assert client.json(command + "reload", "POST", b" " * 70000)[0] == 413
        assert Client(view).json(command + "reload", "POST")[0] == 401
        assert Client(view).json("/api/predict", "POST", b"x")[0] == 401
        assert Client(view).json("/api/state")[1]["view"]["writable"] is False
        assert client.json("/api/state")[1]["view"]["writable"] is True
        assert len(given) == 2


def test_without_a_token_nothing_is_written(shown):
    rig, client = shown
    rig.commands["reload"] = lambda arguments: pytest.fail("it was done")
    status, said = client.json("/api/command/reload", "POST")
    assert status == 403
    assert "view.token_file" in said["remedy"]


def test_open_to_others_everything_needs_the_token(bundle, token_file):
    with page(bundle, listen="0.0.0.0:0", token_file=token_file) as (_, view):
        stranger, client = Client(view), Client(view, BEARER)
        for path in ("/", "/api/state", "/healthz", "/metrics", "/stream.mjpg", "/page.js"):
            assert stranger.ask(path)[0] == 401, path
        assert b"locked" in stranger.ask("/")[2]
        assert stranger.ask("/?token=wrong-wrong-wrong-wrong")[0] == 401
        assert client.ask("/api/state")[0] == 200
        status, headers, _ = stranger.ask("/?token=" + TOKEN)
        assert (status, headers["location"]) == (303, "./")
        cookie = headers["set-cookie"].split(";")[0]
        assert stranger.ask("/api/state", Cookie=cookie)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/stream/other.mjpg", 404),
        ("GET", "/api/history?lane=other", 404),
        ("GET", "/api/history?since=now", 400),
        ("GET", "/api/predict", 405),
        ("POST", "/api/state", 405),
        ("DELETE", "/", 405),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/page.py", 404),
        ("GET", "/static/page.html", 404),
        ("HEAD", "/api/state", 200),
    ],
)
def test_other_ways_in(shown, method, path, status):
    _, client = shown
    got, headers, body = client.ask(path, method)
    assert got == status
    assert headers["x-content-type-options"] == "nosniff"
    assert bool(body) is (method != "HEAD")


def test_a_state_that_cannot_be_told_is_one_answer_that_fails(shown, caplog, monkeypatch):
    rig, client = shown
    with caplog.at_level(logging.ERROR, "edgeferry"):
        monkeypatch.setattr(rig, "state", lambda: 1 / 0)
        wait_for(lambda: client.ask("/api/state")[0] == 500)
        assert client.ask("/api/state")[0] == 500
    assert len([r for r in caplog.records if "/api/state" in r.message]) == 1
    monkeypatch.setattr(rig, "state", lambda: {"fps": float("nan")})
    wait_for(lambda: client.json("/api/state")[1].get("fps", 0) is None)


IDLE = """
import socket, sys, time
address, kept = (sys.argv[1], int(sys.argv[2])), int(sys.argv[3])
idle = [socket.create_connection(address, timeout=60) for _ in range(1000)]
for one in idle:
    one.setblocking(False)
def closed(one):
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
gone, ends = set(), time.monotonic() + 60
while len(gone) < 1000 - kept and time.monotonic() < ends:
    gone.update(i for i, one in enumerate(idle) if i not in gone and closed(one))
    time.sleep(0.05)
print(len(gone), flush=True)
sys.stdin.read()
"""


def test_a_thousand_idle_connections_hold_up_nobody(shown, monkeypatch):
    monkeypatch.setattr(server, "HEADER_S", 1000)
    rig, client = shown
    host, port = client.address
    # A process of its own: both ends together would be more files than one process may open in many places.
    command = [sys.executable, "-c", IDLE, host, str(port), str(server.CONNECTIONS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as idle:
        assert int(idle.stdout.readline()) >= 1000 - server.CONNECTIONS  # closed as they came
        frames = rig.pipeline.tally.frames
        wait_for(lambda: rig.pipeline.tally.frames > frames + 10)
    wait_for(lambda: is_well(client))


def is_well(client):
    try:
        return client.ask("/healthz")[0] == 200
    except (OSError, http.client.HTTPException):  # others have all connections still
        return False


def closed(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_a_head_that_never_ends_and_a_reader_that_takes_nothing_are_let_go(bundle, monkeypatch):
    monkeypatch.setattr(server, "HEADER_S", 0.3)
    monkeypatch.setattr(server, "STALLED_S", 0.3)
    with page(bundle, "synthetic:640x480@30") as (rig, view):
        wait_for(lambda: rig.ready)
        slow, silent = (socket.create_connection(view.address, timeout=60) for _ in range(2))
        slow.sendall(b"GET / HTTP/1.1\r\nHost: local")
        greedy = socket.socket()
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.connect(view.address)
        greedy.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with slow, silent, greedy:
            wait_for(lambda: closed(slow) and closed(silent))
            wait_for(lambda: view._app.streams == 1)
            wait_for(lambda: view._app.streams == 0)


def test_a_port_in_use_is_said_at_the_start():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}: Address already in use") as caught:
            View(ViewConfig(listen=f"127.0.0.1:{port}"))
        assert "choose another port" in caught.value.remedy


def test_what_a_page_may_not_begin_with(tmp_path):
    with pytest.raises(UsageError, match="so others could look on"):
        View(ViewConfig(listen="0.0.0.0:0"))
    with pytest.raises(UsageError, match="must be ADDRESS:PORT"):
        View(ViewConfig(listen="x"))
    with pytest.raises(UsageError, match="cannot be read"):
        View(ViewConfig(listen="0.0.0.0:0", token_file=str(tmp_path / "absent")))
    with pytest.raises(UsageError, match=r"192\.0\.2\.1"):
        (tmp_path / "token").write_text(TOKEN)
        View(ViewConfig(listen="192.0.2.1:0", token_file=str(tmp_path / "token")))


@pytest.mark.parametrize("package", ["uvicorn", "prometheus_client"])
def test_an_absent_package_is_named_with_its_install_line(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError) as caught:
        View(ViewConfig(listen="127.0.0.1:0"))
    assert "edgeferry-runtime[view]" in caught.value.remedy


def test_it_ends_while_somebody_looks(bundle):
    with page(bundle) as (rig, view):
        wait_for(lambda: rig.ready)
        connection = http.client.HTTPConnection(*view.address, timeout=60)
        connection.request("GET", "/stream.mjpg")
        answer = connection.getresponse()
        assert answer.readline()
        view.close()
        view.close()
        assert not view._thread.is_alive()
        while answer.readline():
            pass
        connection.close()
