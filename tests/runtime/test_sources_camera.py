"""V4L2 cameras through OpenCV, against a fake of its VideoCapture that answers as the V4L2 backend does."""

from __future__ import annotations

import time

import numpy as np
import pytest
from edgeferry_runtime import opencv
from edgeferry_runtime.errors import SourceError, UsageError
from edgeferry_runtime.sources import camera, open_source

MJPG, YUYV = (sum(ord(c) << 8 * i for i, c in enumerate(name)) for name in ("MJPG", "YUYV"))


class Driver:
    """What one camera can do, and what was asked of it; by the V4L2 backend's rules (OpenCV's cap_v4l.cpp).

    Width and height take effect together; an unknown size becomes the nearest one; an unknown format is refused;
    with CONVERT_RGB 0 a frame is the driver's buffer, uint8 [1, bytes].
    """

    def __init__(self):
        self.sizes = [(160, 120), (320, 240), (640, 480), (1280, 720)]
        self.formats = [YUYV, MJPG]
        self.raw_supported = True
        self.padding = 0
        self.stamped = True
        self.frames_left = 10**9
        self.opens = True
        self.asked, self.released, self.opened = [], 0, 0

    def capture(self, device, backend):
        self.opened += self.opens
        self.device, self.backend = device, backend
        return Capture(self)


class Capture:
    def __init__(self, driver):
        self.driver = driver
        self.state = {"size": (640, 480), "format": driver.formats[0], "rgb": 1, "fps": 30.0}
        self.half = {}
        self.stamp = 0

    def isOpened(self):
        return self.driver.opens

    def set(self, prop, value):
        cv2, driver = opencv.load("tests"), self.driver
        driver.asked.append((prop, value))
        if prop == cv2.CAP_PROP_FOURCC:
            if value not in driver.formats:
                return False
            self.state["format"] = value
        elif prop in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT):
            self.half[prop] = int(value)
            if len(self.half) == 2:
                wanted = self.half[cv2.CAP_PROP_FRAME_WIDTH], self.half[cv2.CAP_PROP_FRAME_HEIGHT]
                self.state["size"] = min(driver.sizes, key=lambda s: abs(s[0] - wanted[0]) + abs(s[1] - wanted[1]))
                self.half = {}
        elif prop == cv2.CAP_PROP_CONVERT_RGB:
            if not value and not driver.raw_supported:
                return False
            self.state["rgb"] = value
        elif prop == cv2.CAP_PROP_FPS:
            self.state["fps"] = value
        return True

    def get(self, prop):
        cv2 = opencv.load("tests")
        return {
            cv2.CAP_PROP_FRAME_WIDTH: float(self.state["size"][0]),
            cv2.CAP_PROP_FRAME_HEIGHT: float(self.state["size"][1]),
            cv2.CAP_PROP_FOURCC: float(self.state["format"]),
            cv2.CAP_PROP_POS_MSEC: self.stamp if self.driver.stamped else 0.0,
        }[prop]

    def grab(self):
        time.sleep(0.005)
        self.stamp = time.monotonic() * 1000 - 7.0  # exposed 7 ms ago
        self.driver.frames_left -= 1
        return self.driver.frames_left >= 0

    def retrieve(self):
        cv2 = opencv.load("tests")
        width, height = self.state["size"]
        pixels = np.full((height, width, 3), 120, np.uint8)
        if self.state["rgb"]:
            return True, pixels
        if self.state["format"] == MJPG:
            data = cv2.imencode(".jpg", pixels)[1].reshape(1, -1)
            return True, np.concatenate([data, np.zeros((1, self.driver.padding), np.uint8)], axis=1)
        return True, np.zeros((1, height * width * 2), np.uint8)

    def release(self):
        self.driver.released += 1


@pytest.fixture
def driver(monkeypatch):
    cv2 = opencv.load("tests")
    driver = Driver()
    monkeypatch.setattr(cv2, "VideoCapture", driver.capture)
    monkeypatch.setattr(camera, "_check_access", lambda path: None)
    monkeypatch.setattr(camera.sys, "platform", "linux")
    return driver


def test_jpegs_come_undecoded_at_the_smallest_size_that_serves(driver):
    driver.padding = 5000
    cv2 = opencv.load("tests")
    with open_source("/dev/video3", want=(224, 224), encoded=True) as source:
        frame = source.read()
        assert frame.color == "jpeg"
        assert frame.pixels.ndim == 1
        assert bytes(frame.pixels[-2:]) == b"\xff\xd9"
        assert cv2.imdecode(frame.pixels, cv2.IMREAD_COLOR).shape == (240, 320, 3)
        age_ms = (time.monotonic_ns() - frame.captured_ns) / 1e6
        assert 7 <= age_ms < 2000
    assert driver.device == "/dev/video3"
    assert driver.backend == cv2.CAP_V4L2
    assert driver.released == driver.opened == 1


def test_jpegs_are_decoded_for_whoever_wants_pixels(driver):
    with open_source("3", want=(500, 100)) as source:
        frame = source.read()
        assert (frame.color, frame.pixels.shape) == ("bgr", (480, 640, 3))


@pytest.mark.parametrize("lacking", ["mjpg", "raw"])
def test_without_raw_jpeg_opencv_converts(driver, lacking):
    if lacking == "mjpg":
        driver.formats = [YUYV]
    else:
        driver.raw_supported = False
    with open_source("v4l2:/dev/video0?size=1280x720&fps=15", encoded=True) as source:
        frame = source.read()
        assert (frame.color, frame.pixels.shape) == ("bgr", (720, 1280, 3))
    assert (opencv.load("tests").CAP_PROP_FPS, 15.0) in driver.asked


def test_buffers_that_are_no_jpeg_fall_back_to_conversion(driver, monkeypatch):
    monkeypatch.setattr(camera, "is_whole_jpeg", lambda data: False)
    with open_source("v4l2:0?format=mjpg", encoded=True) as source:
        assert source.read().color == "bgr"


def test_yuyv_when_asked_for(driver):
    with open_source("v4l2:/dev/video0?format=yuyv", encoded=True) as source:
        assert source.read().color == "bgr"
    assert (opencv.load("tests").CAP_PROP_FOURCC, YUYV) in driver.asked


def test_a_driver_without_timestamps_gets_ours(driver):
    driver.stamped = False
    with open_source("0") as source:
        frame = source.read()
        assert 0 <= time.monotonic_ns() - frame.captured_ns < 2e9


def test_a_camera_that_is_pulled_out_comes_back(driver):
    driver.frames_left = 5
    with open_source("0", timeout_s=0.5) as source:
        deadline = time.monotonic() + 10
        while not source.outage and time.monotonic() < deadline:
            source.read(0.05)
        assert "gives no frames" in source.outage
        driver.opens = False  # unplugged: it cannot even be opened
        time.sleep(0.4)
        driver.opens, driver.frames_left = True, 10**9
        while not source.reopened and time.monotonic() < deadline:
            source.read(0.05)
        assert source.reopened == 1
    assert driver.released == driver.opened >= 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"opens": False}, "cannot be opened as a camera"),
        ({"frames_left": 0}, "gives no frames"),
        ({"sizes": [(320, 240)]}, "has no size of 640x480, the nearest is 320x240"),
    ],
)
def test_what_is_wrong_at_the_start_is_said(driver, change, words):
    vars(driver).update(change)
    with pytest.raises(SourceError, match=words) as caught:
        open_source("v4l2:/dev/video0?size=640x480")
    assert caught.value.remedy


def test_cameras_that_exist_are_named(monkeypatch):
    monkeypatch.setattr(camera.glob, "glob", lambda pattern: ["/dev/video2", "/dev/video0"])
    with pytest.raises(SourceError, match="/dev/video97: no such camera") as caught:
        open_source("/dev/video97")
    assert caught.value.remedy == "There is /dev/video0, /dev/video2."
    monkeypatch.setattr(camera.glob, "glob", lambda pattern: [])
    with pytest.raises(SourceError) as caught:
        open_source("v4l2:97")
    assert "picamera2:0" in caught.value.remedy


@pytest.mark.parametrize(
    ("offered", "want", "taken"),
    [
        ([(160, 120), (320, 240), (640, 480)], (96, 96), (160, 120)),
        ([(160, 120), (320, 240), (640, 480)], (224, 224), (320, 240)),
        ([(640, 480), (1280, 720)], (224, 224), (640, 480)),
        ([(640, 360), (1280, 720)], (224, 300), (640, 360)),
        ([(320, 240), (640, 480)], (1000, 1000), (640, 480)),  # none covers it: the largest
        ([(324, 244), (1000, 1000)], (224, 224), (324, 244)),  # none of the usual ones: what it took instead
    ],
)
def test_the_smallest_size_that_serves(offered, want, taken):
    now = []

    def confirm(size):
        now[:] = [min(offered, key=lambda s: abs(s[0] - size[0]) + abs(s[1] - size[1]))]
        return now[0]

    assert camera.smallest_size(want, confirm) == taken
    assert now == [taken]


def test_sizes_ascend():
    areas = [w * h for w, h in camera.SIZES]
    assert areas == sorted(areas)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("v4l2:0?sise=640x480", "did you mean 'size'"),
        ("v4l2:0?size=640", "must be a size such as"),
        ("v4l2:0?size=0x480", "sides of 1 to"),
        ("v4l2:0?fps=0", "must be a number above 0"),
        ("v4l2:0?fps=nan", "must be a number above 0"),
        ("v4l2:0?format=h264", "must be one of mjpg, yuyv"),
        ("v4l2:0?fps=1&fps=2", "fps is given twice"),
        ("/dev/video0?", "is no option"),
        ("v4l3:0", "did you mean 'v4l2'"),
    ],
)
def test_wrong_options(uri, words):
    with pytest.raises(UsageError, match=words) as caught:
        open_source(uri)
    assert caught.value.remedy
