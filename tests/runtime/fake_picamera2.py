"""A picamera2 without a camera: shapes, strides, limits and errors as in picamera2 0.3.36 on a Raspberry Pi 4.

Source: raspberrypi/picamera2, picamera2/picamera2.py and request.py.
"""

from __future__ import annotations

import time

import numpy as np

FORMATS = {"BGR888": 3, "RGB888": 3, "XBGR8888": 4, "XRGB8888": 4, "YUV420": 1}
SENSOR_RGB = (200, 100, 50)  # what the camera sees, everywhere


class World:
    """What is the matter with the cameras; one for each test."""

    def __init__(self):
        self.models = ["imx219"]
        self.busy = False
        self.stride_extra = 64  # bytes behind each row, at least
        self.period_s = 0.005
        self.hang = None  # an Event: one capture_request waits for it, as one without a time-out does
        self.fail_after = None
        self.open = self.unreleased = self.worst = self.frames = 0


world = World()


def align(value, step):
    return -(-value // step) * step


class Picamera2:
    def __init__(self, camera_num=0):
        if world.busy:
            raise RuntimeError("Camera __init__ sequence did not complete.")
        world.open += 1
        self.started = self.closed = False
        self.camera_config = None

    @staticmethod
    def global_camera_info():
        return [{"Model": model, "Num": i} for i, model in enumerate(world.models)]

    def create_video_configuration(
        self, main=None, lores=None, raw=None, buffer_count=6, controls=None, queue=True
    ):
        config = {"main": {"size": (1280, 720), "format": "XBGR8888", **(main or {})}, "lores": None, "raw": raw}
        if lores is not None:
            config["lores"] = {"size": config["main"]["size"], "format": "YUV420", **lores}
        return {**config, "buffer_count": buffer_count, "controls": controls or {}, "queue": queue}

    def configure(self, config):
        for name in ("main", "lores"):
            stream = config[name]
            if stream is None:
                continue
            if stream["format"] not in FORMATS:
                raise RuntimeError(f"Bad format {stream['format']} in stream {name}")
            if any(side % 2 for side in stream["size"]):
                raise RuntimeError(f"width and height should be even in stream {name}")
        lores, main = config["lores"], config["main"]
        if lores is not None:
            if lores["size"][0] > main["size"][0] or lores["size"][1] > main["size"][1]:
                raise RuntimeError("lores stream dimensions may not exceed main stream")
            if lores["format"] != "YUV420":
                raise RuntimeError("lores stream must be YUV")
        for stream in (main, lores):
            if stream is not None:
                stream["stride"] = align(stream["size"][0] * FORMATS[stream["format"]] + world.stride_extra, 64)
        self.camera_config = config

    def camera_configuration(self):
        return self.camera_config

    def start(self):
        if self.camera_config is None:
            raise RuntimeError("Camera has not been configured")
        self.started = True

    def capture_request(self, wait=None):
        hang, world.hang = world.hang, None
        if hang is not None:
            hang.wait(30)
        time.sleep(world.period_s)
        if world.fail_after is not None and world.frames >= world.fail_after:
            if wait is not True:
                time.sleep(min(wait, 0.05))
            raise TimeoutError()
        if world.unreleased >= self.camera_config["buffer_count"]:
            raise TimeoutError("no buffer left")
        world.frames += 1
        return CompletedRequest(self)

    def stop(self):
        self.started = False

    def close(self):
        world.open -= not self.closed
        self.closed = True


class CompletedRequest:
    def __init__(self, camera):
        self.config = camera.camera_config
        self.references = 1
        self.stamp = time.monotonic_ns() - 20_000_000
        world.unreleased += 1
        world.worst = max(world.worst, world.unreleased)

    def get_metadata(self):
        return {"SensorTimestamp": self.stamp, "ExposureTime": 10_000}

    def release(self):
        self.references -= 1
        if self.references < 0:
            raise RuntimeError("CompletedRequest: lock now has negative ref_count")
        world.unreleased -= 1


class MappedArray:
    def __init__(self, request, stream, reshape=True, write=True):
        self.config = request.config[stream]
        assert request.references > 0, "mapped after release"

    def __enter__(self):
        (width, height), stride, form = self.config["size"], self.config["stride"], self.config["format"]
        if form == "YUV420":
            self.buffer = i420_buffer(width, height, stride)
            self.array = self.buffer.reshape(height * 3 // 2, stride)
            return self
        pixel = {"BGR888": SENSOR_RGB, "RGB888": SENSOR_RGB[::-1]}[form]
        self.buffer = np.full(height * stride, 255, np.uint8)
        rows = self.buffer.reshape(height, stride)[:, : width * 3]
        rows[:] = np.tile(np.array(pixel, np.uint8), width)
        self.array = rows.reshape(height, width, 3)
        return self

    def __exit__(self, *exc):
        self.buffer[:] = 0  # the memory goes back to the camera, which writes into it
        del self.array


def i420_buffer(width, height, stride):
    """Planes of ramps with rows of ``stride`` and ``stride / 2`` bytes; the padding is 255."""
    planes = []
    for w, h, row, base in (
        (width, height, stride, 0),
        (width // 2, height // 2, stride // 2, 50),
        (width // 2, height // 2, stride // 2, 150),
    ):
        plane = np.full((h, row), 255, np.uint8)
        plane[:, :w] = base + (np.arange(h)[:, None] + np.arange(w)) % 50
        planes.append(plane.reshape(-1))
    return np.concatenate(planes)
