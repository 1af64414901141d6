"""Frames that come as bytes: standard input, MJPEG over HTTP, RTSP that does not answer."""

from __future__ import annotations

import base64
import contextlib
import http.server
import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from edgeferry_runtime import opencv
from edgeferry_runtime.errors import SourceError, UsageError
from edgeferry_runtime.sources import WAITING, jpegs, open_source
from edgeferry_runtime.sources.jpegs import JpegStream
from edgeferry_runtime.sources.options import redacted
from edgeferry_runtime.sources.stdin import open_stdin
from hypothesis import given, settings
from hypothesis import strategies as st


def jpeg(level, size=(32, 24), *options):
    cv2 = opencv.load("tests")
    noise = np.random.default_rng(level).integers(0, 40, (size[1], size[0], 3), dtype=np.uint8)
    return cv2.imencode(".jpg", noise + np.uint8(level), list(options))[1].tobytes()


def stream_of(data, piece=65536):
    rest = [data]

    def receive(count):
        count = min(count, piece)
        part, rest[0] = rest[0][:count], rest[0][count:]
        return part

    return JpegStream(receive)


def all_of(stream):
    found = []
    while (data := stream.read()) is not None:
        found.append(data.tobytes())
    return found


# Cutting JPEG files out of bytes.


@pytest.fixture(scope="module")
def pictures():
    cv2 = opencv.load("tests")
    plain = [jpeg(i) for i in (0, 50, 100)]
    progressive = jpeg(150, (40, 40), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    restarts = jpeg(60, (80, 64), cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
    # A thumbnail in an APP1 segment is a JPEG inside a JPEG.
    small = jpeg(10)
    thumbnail = plain[0][:2] + b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small + plain[0][2:]
    return [*plain, progressive, restarts, thumbnail]


@pytest.mark.parametrize("piece", [1, 7, 1000, 65536])
@pytest.mark.parametrize("between", [b"", b"\r\n--frame\r\nContent-Length: 5\r\n\r\n", b"\xff\xff\xd8\x00"])
def test_every_picture_is_found_whole(pictures, piece, between):
    stream = stream_of(between + between.join(pictures), piece)
    assert all_of(stream) == pictures
    assert stream.damaged == 0


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_broken_streams_end_and_give_nothing_but_whole_pictures(pictures, data):
    content = bytearray(b"--frame\r\n\r\n".join(pictures))
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    found = []
    stream = stream_of(bytes(content), data.draw(st.sampled_from([13, 700, 65536])))
    try:
        found = all_of(stream)
    except SourceError as error:
        assert "inside a picture" in str(error)
    for picture in found:
        assert picture[:2] == b"\xff\xd8"
        assert picture[-2:] == b"\xff\xd9"


def test_a_torn_picture_is_counted_and_the_next_one_found(pictures):
    stream = stream_of(pictures[0] + pictures[1][:-60] + pictures[2])
    assert all_of(stream) == [pictures[0], pictures[2]]
    assert stream.damaged == 1


def test_what_never_becomes_a_picture_is_bounded(pictures, monkeypatch):
    with pytest.raises(SourceError, match="is no JPEG"):
        JpegStream(lambda count: b"header: x\r\n" * 500).read()
    monkeypatch.setattr(jpegs, "MAX_BYTES", 1 << 17)
    pieces = iter([pictures[0][:-2]])
    with pytest.raises(SourceError, match="more than 131072 bytes"):
        JpegStream(lambda count: next(pieces, bytes(5000))).read()


# Standard input.


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    with open(writing, "wb", buffering=0) as writer:
        yield reading, writer
    os.close(reading)


@pytest.mark.parametrize(
    ("color", "shape"),
    [("bgr", (4, 6, 3)), ("rgb", (4, 6, 3)), ("gray", (4, 6)), ("i420", (6, 6)), ("nv12", (6, 6))],
)
def test_raw_frames_in_order(pipe, color, shape):
    reading, writer = pipe
    frames = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    threading.Thread(target=lambda: (writer.write(frames.tobytes()), writer.close())).start()
    source = open_stdin(f"stdin:6x4:{color}", None, reading)
    assert not source.live
    for number, expected in enumerate(frames):
        frame = source.read()
        assert (frame.color, frame.number) == (color, number)
        np.testing.assert_array_equal(frame.pixels, expected)
    assert source.read() is None


def test_large_frames_come_in_many_pieces(pipe):
    reading, writer = pipe
    expected = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    threading.Thread(target=writer.write, args=(expected.tobytes(),)).start()
    np.testing.assert_array_equal(open_stdin("stdin:640x480:bgr", None, reading).read().pixels, expected)


def test_a_short_last_frame_is_an_error(pipe):
    reading, writer = pipe
    writer.write(bytes(24 + 5))
    writer.close()
    source = open_stdin("stdin:6x4:gray", None, reading)
    source.read()
    with pytest.raises(SourceError, match="inside a frame: 5 of 24 bytes") as caught:
        source.read()
    assert caught.value.remedy


@pytest.mark.skipif(os.name != "posix", reason="nobody can tell on Windows whether a pipe holds something")
def test_a_silent_writer_lets_the_loop_breathe(pipe):
    reading, writer = pipe
    source = open_stdin("stdin:6x4:gray", None, reading)
    assert source.read(0.01) is WAITING
    writer.write(bytes(24))
    assert source.read(5).number == 0


def test_jpegs_from_standard_input(pipe, pictures):
    reading, writer = pipe
    writer.write(pictures[0] + pictures[1][:-60] + pictures[2])
    writer.close()
    with open_stdin("stdin:mjpeg", None, reading) as source:
        source.encoded = True
        frames = list(iter(source.read, None))
        assert [f.pixels.tobytes() for f in frames] == [pictures[0], pictures[2]]
        assert [f.number for f in frames] == [0, 1]
        assert source.skipped == 1


def test_live_standard_input_gives_the_newest(pipe):
    from edgeferry_runtime.sources.base import Request

    reading, writer = pipe
    with open_stdin("stdin:6x4:gray?live=1", Request(), reading) as source:
        for level in range(10):
            writer.write(bytes([level]) * 24)
        deadline = time.monotonic() + 10
        while source.dropped < 9 and time.monotonic() < deadline:
            time.sleep(0.01)
        frame = source.read()
        assert (frame.number, frame.pixels[0, 0], source.dropped) == (9, 9, 9)
        writer.close()
        assert source.read() is None


def test_through_a_real_pipe():
    code = (
        "from edgeferry_runtime.sources import open_source\n"
        "print([int(f.pixels[0, 0]) for f in iter(open_source('stdin:6x4:gray').read, None)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=bytes([7]) * 24 + bytes([9]) * 24, capture_output=True
    )
    assert done.stdout.strip() == b"[7, 9]"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("stdin:640x480", "no source of standard input"),
        ("stdin:640x480:bgr24", "did you mean 'bgr'"),
        ("stdin:641x480:i420", "even sides"),
        ("stdin:640x481:nv12", "even sides"),
        ("stdin:0x480:bgr", "sides may be"),
        ("stdin:mjpg", "no source of standard input"),
        ("stdin:mjpeg?live=2", "must be 0 or 1"),
    ],
)
def test_wrong_uris_of_standard_input(uri, words):
    with pytest.raises(UsageError, match=words) as caught:
        open_source(uri)
    assert caught.value.remedy


# HTTP.


class Camera(http.server.ThreadingHTTPServer):
    """Answers /stream with pictures; what it does wrong is told by attributes."""

    daemon_threads = True

    def __init__(self, pictures):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pictures = pictures
        self.lengths = "right"
        self.after = None  # how many pictures, and then what: "close", "hang", "drip", "torn"
        self.password = None
        self.requests = 0
        self.stopping = threading.Event()

    def url(self, path="/stream", login=""):
        return f"http://{login}127.0.0.1:{self.server_address[1]}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        camera = self.server
        camera.requests += 1
        if camera.password and self.headers.get("Authorization") != camera.password:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if not self.path.startswith("/stream"):
            self.send_response(404 if self.path == "/no" else 200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>")
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        with contextlib.suppress(OSError):
            self.pour(camera)

    def pour(self, camera):
        for i in range(10**9):
            if camera.stopping.is_set():
                return
            picture = camera.pictures[i % len(camera.pictures)]
            self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n")
            if camera.lengths != "absent":
                length = len(picture) if camera.lengths == "right" else 12345
                self.wfile.write(b"Content-Length: %d\r\n" % length)
            self.wfile.write(b"\r\n")
            if camera.after and i >= camera.after[0] and camera.requests == 1:
                fault = camera.after[1]
                if fault == "close":
                    return
                if fault == "hang":
                    camera.stopping.wait(30)
                    return
                if fault == "drip":
                    for byte in picture:
                        self.wfile.write(bytes([byte]))
                        camera.stopping.wait(0.05)
                    return
                picture = picture[:-100]
            self.wfile.write(picture + b"\r\n")
            camera.stopping.wait(0.01)


@pytest.fixture
def camera(pictures):
    server = Camera(pictures[:3])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.stopping.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("lengths", ["right", "wrong", "absent"])
def test_http_pictures_come_undecoded(camera, pictures, lengths):
    camera.lengths = lengths
    with open_source(camera.url(), encoded=True) as source:
        frames = [source.read() for _ in range(5)]
        assert source.live
    assert {f.pixels.tobytes() for f in frames} <= set(pictures[:3])
    assert all(f.color == "jpeg" for f in frames)
    assert frames[-1].number >= 4


def test_http_pictures_are_decoded_for_whoever_wants_pixels(camera):
    with open_source(camera.url()) as source:
        assert source.read().pixels.shape == (24, 32, 3)


@pytest.mark.parametrize("fault", ["close", "hang", "drip", "torn"])
def test_an_http_camera_that_fails_comes_back(camera, fault):
    camera.after = (5, fault)
    with open_source(camera.url(), encoded=True, timeout_s=0.5) as source:
        deadline = time.monotonic() + 15
        last, worst = time.monotonic(), 0.0
        while camera.requests < 2 or source.outage or source._count < 20:
            assert time.monotonic() < deadline
            if source.read(0.05) is not WAITING:
                worst, last = max(worst, time.monotonic() - last), time.monotonic()
        assert worst < 0.5 + 1
        assert source.reopened == 1
        # Whatever hung has ended by itself, long before its bytes have dripped in.
        while sum(t.name == "capture" for t in threading.enumerate()) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_user_and_password_are_sent_and_never_shown(camera, caplog):
    camera.password = "Basic " + base64.b64encode(b"user:geheim/1").decode()
    with open_source(camera.url(login="user:geheim%2F1@")) as source:
        assert source.read().color == "bgr"
    with pytest.raises(SourceError, match="answers 401") as caught:
        open_source(camera.url("/stream?token=geheim", "user:geheim@"))
    assert "geheim" not in str(caught.value)
    assert "USER:PASSWORD" in caught.value.remedy
    assert "geheim" not in caplog.text


@pytest.mark.parametrize(
    ("path", "words"),
    [("/no", "answers 404"), ("/page", "answers with text/html")],
)
def test_answers_that_are_no_stream(camera, path, words):
    with pytest.raises(SourceError, match=words) as caught:
        open_source(camera.url(path))
    assert caught.value.remedy


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_an_address_where_nobody_is_fails_soon_and_without_the_password(scheme, caplog, capfd):
    started = time.monotonic()
    with pytest.raises(SourceError, match=rf"{scheme}://\*\*\*@127.0.0.1:1/a\?\*\*\*: cannot be") as caught:
        open_source(f"{scheme}://user:geheim@127.0.0.1:1/a?key=geheim")
    assert time.monotonic() - started < 20
    printed = capfd.readouterr()
    assert "geheim" not in str(caught.value) + repr(caught.value) + caplog.text + printed.out + printed.err
    assert caught.value.remedy


@pytest.fixture
def rtsp():
    cv2 = opencv.load("tests")
    path = Path(__file__).with_name("fake_rtsp.py")
    spec = importlib.util.spec_from_file_location("fake_rtsp", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    halves = np.zeros((96, 128, 3), np.uint8)
    halves[:, :64], halves[:, 64:] = (0, 0, 250), (200, 100, 0)
    with module.RtspServer(cv2.imencode(".jpg", halves)[1].tobytes(), (128, 96)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.stopping.set()
        server.shutdown()
        thread.join()


def test_rtsp_frames(rtsp):
    with open_source(rtsp.url()) as source:
        frames = [source.read() for _ in range(5)]
        assert source.live
    assert (frames[0].color, frames[0].pixels.shape) == ("bgr", (96, 128, 3))
    assert np.abs(frames[0].pixels[40, 20].astype(int) - (0, 0, 250)).max() < 8
    assert np.abs(frames[0].pixels[40, 100].astype(int) - (200, 100, 0)).max() < 8
    assert frames[4].number >= 4


@pytest.mark.parametrize("fault", ["close", "hang"])
def test_an_rtsp_camera_that_fails_comes_back(rtsp, fault):
    rtsp.after = (30, fault)
    with open_source(rtsp.url(), timeout_s=1.0) as source:
        deadline = time.monotonic() + 30
        last, worst = time.monotonic(), 0.0
        while not source.reopened:
            assert time.monotonic() < deadline
            if source.read(0.05) is not WAITING:
                worst, last = max(worst, time.monotonic() - last), time.monotonic()
        assert rtsp.plays == 2
        assert worst < 1.0 + 1.0 + 2.0  # the time-out, the promised second, and FFmpeg's look at a new stream


def test_rtsp_user_and_password_are_sent_and_never_shown(rtsp, capfd):
    rtsp.login = "user:geheim"
    with open_source(rtsp.url("user:geheim@")) as source:
        assert source.read().pixels.shape == (96, 128, 3)
    with pytest.raises(SourceError, match="or refuses") as caught:
        open_source(rtsp.url("user:falsch@"))
    printed = capfd.readouterr()
    assert "falsch" not in str(caught.value) + printed.out + printed.err
    assert "geheim" not in printed.out + printed.err


def test_an_rtsp_server_that_never_answers_fails_in_bounded_time(capfd):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, and says nothing
        started = time.monotonic()
        with pytest.raises(SourceError, match="cannot be opened within"):
            open_source(f"rtsp://user:geheim@127.0.0.1:{server.getsockname()[1]}/live")
        assert time.monotonic() - started < 30
    printed = capfd.readouterr()
    assert "geheim" not in printed.out + printed.err


@pytest.mark.parametrize("url", ["http://", "http://host:port/x", "http://[::1/x"])
def test_addresses_that_are_none(url):
    with pytest.raises(SourceError, match="cannot be reached"):
        open_source(url)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://user:pa@ss@host/x", "rtsp://***@host/x"),
        ("http://u:a/b@host/x", "http://***@host/x"),
        ("http://host/x?user=a&password=b", "http://host/x?***"),
        ("rtsp://host/x", "rtsp://host/x"),
        ("/dev/video0", "/dev/video0"),
    ],
)
def test_what_is_shown_of_an_address(uri, shown):
    assert redacted(uri) == shown


def test_a_wrong_scheme_does_not_show_the_password():
    with pytest.raises(UsageError, match="did you mean 'rtsps'") as caught:
        open_source("rtps://user:geheim@host/x")
    assert "geheim" not in str(caught.value)


def test_options_for_streams_do_not_stay_in_the_environment(monkeypatch):
    # With them OpenCV loses the first frame of every video file that is opened afterwards.
    monkeypatch.delenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", raising=False)
    with pytest.raises(SourceError):
        open_source("rtsp://127.0.0.1:1/nobody", timeout_s=1)
    assert "OPENCV_FFMPEG_CAPTURE_OPTIONS" not in os.environ
