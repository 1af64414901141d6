"""Frames of network cameras: RTSP through OpenCV's FFmpeg, and MJPEG over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import os
import time
from typing import Any, Iterator

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import SourceError
from edgeferry_runtime.sources.base import FrameSource, Request
from edgeferry_runtime.sources.device import Device, Grab
from edgeferry_runtime.sources.jpegs import JpegStream
from edgeferry_runtime.sources.live import LiveSource
from edgeferry_runtime.sources.options import redacted

__all__ = ["HttpDevice", "RtspDevice", "open_http", "open_rtsp"]

_OPEN_S = 5.0
# Over UDP a lossy network gives torn pictures; FFmpeg's own buffers would add seconds of age.
_VARIABLE = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_FFMPEG_OPTIONS = "rtsp_transport;tcp|fflags;nobuffer|flags;low_delay"


def open_rtsp(uri: str, request: Request) -> FrameSource:
    """A network camera, live, through OpenCV; H.264 and H.265 are decoded by FFmpeg, every frame.

    Args:
        uri: "rtsp://[USER:PASSWORD@]HOST[:PORT]/PATH"; neither user, password nor query appear in any message.

    Raises:
        SourceError: it cannot be reached, refuses, or this OpenCV has no FFmpeg.
        DependencyError: OpenCV is absent.
    """
    opencv.load("reading RTSP")
    return LiveSource(redacted(uri), lambda: RtspDevice(uri, request.timeout_s), request.timeout_s)


def open_http(uri: str, request: Request) -> FrameSource:
    """A network camera that answers a GET with JPEG after JPEG (multipart/x-mixed-replace), live.

    Args:
        uri: "http://[USER:PASSWORD@]HOST[:PORT]/PATH", Basic and Digest authentication; https as well.

    Raises:
        SourceError: it cannot be reached, refuses, or answers with something else.
    """
    return LiveSource(redacted(uri), lambda: HttpDevice(uri, request.timeout_s), request.timeout_s)


@contextlib.contextmanager
def _low_delay() -> Iterator[None]:
    """FFmpeg's options for streams, there only while one is opened: with them, files lose their first frame.

    OpenCV takes them from the environment alone.  What the user has set there stays.
    """
    absent = _VARIABLE not in os.environ
    if absent:
        os.environ[_VARIABLE] = _FFMPEG_OPTIONS
    try:
        yield
    finally:
        if absent:
            os.environ.pop(_VARIABLE, None)


class RtspDevice(Device):
    """An RTSP stream that has been opened.

    Raises:
        SourceError: it cannot be.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        cv2 = opencv.load("reading RTSP")
        self._name = redacted(url)
        if not cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
            raise SourceError(
                "{}: this OpenCV was built without FFmpeg, it reads no RTSP".format(self._name),
                "Install one that has it: pip install opencv-python-headless",
            )
        with _low_delay():
            self._capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, _timeouts(cv2, timeout_s))
        if not self._capture.isOpened():
            raise SourceError(
                "{}: cannot be opened within {:.0f} s, or refuses".format(self._name, _OPEN_S),
                "Check address, path, user and password: ffprobe -rtsp_transport tcp rtsp://...",
            )

    def grab(self) -> Grab:
        ok = self._capture.grab()
        now = time.monotonic_ns()
        if ok:
            ok, pixels = self._capture.retrieve()
        if not ok:
            raise SourceError("{}: gives no more frames".format(self._name), "Check camera and network.")
        return Grab(pixels, "bgr", now)

    def close(self) -> None:
        self._capture.release()


def _timeouts(cv2: Any, timeout_s: float) -> list[int]:
    if not hasattr(cv2, "CAP_PROP_READ_TIMEOUT_MSEC"):  # OpenCV before 4.5.2: 30 s, built in
        return []
    milliseconds = int(_OPEN_S * 1000), int(timeout_s * 1000)
    return [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds[0], cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds[1]]


class HttpDevice(Device):
    """An HTTP answer that never ends, and holds JPEG files.

    Raises:
        SourceError: there is none.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._name = redacted(url)
        self._timeout_s = timeout_s
        self._deadline = 0.0
        self._response = _get(url, self._name, max(timeout_s, _OPEN_S))
        kind = self._response.headers.get_content_type()
        if kind.startswith("text/") or kind in ("application/json", "image/jpeg"):
            self.close()
            raise SourceError(
                "{}: answers with {}, not with a stream of pictures".format(self._name, kind),
                "Find the path of its MJPEG stream: a browser shows it as a moving picture.",
            )
        self._jpegs = JpegStream(self._receive)

    def grab(self) -> Grab:
        self._deadline = time.monotonic() + self._timeout_s
        try:
            data = self._jpegs.read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise SourceError("{}: {}".format(self._name, _words(error)), "Check camera and network.") from None
        if data is None:
            raise SourceError("{}: the camera ended the stream".format(self._name), "Check the camera.")
        return Grab(data, "jpeg", time.monotonic_ns())

    def _receive(self, count: int) -> bytes:
        # Each read has its own time-out; bytes that drip in would never let it pass.
        if time.monotonic() > self._deadline:
            raise SourceError("no whole picture within {:.1f} s".format(self._timeout_s))
        piece: bytes = self._response.read1(count)
        return piece

    def close(self) -> None:
        self._response.close()


def _get(url: str, name: str, timeout_s: float) -> Any:
    # Imported here: it takes longer than the rest of this package, and only this kind of source needs it.
    import urllib.error
    import urllib.parse
    import urllib.request

    class CloseRefusals(urllib.request.BaseHandler):
        """The handlers that then try again with a password leave the refusal's connection open."""

        handler_order = 100  # before them

        def http_error_401(self, request: Any, answer: Any, *rest: Any) -> None:
            answer.close()

    try:
        parts = urllib.parse.urlsplit(url)
        plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        user, password = (urllib.parse.unquote(text or "") for text in (parts.username, parts.password))
        if user:
            passwords.add_password(None, plain, user, password)
        handlers = urllib.request.HTTPBasicAuthHandler(passwords), urllib.request.HTTPDigestAuthHandler(passwords)
        return urllib.request.build_opener(CloseRefusals, *handlers).open(plain, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        remedy = "Put user and password before the host: http://USER:PASSWORD@HOST/..."
        raise SourceError(
            "{}: answers {} {}".format(name, error.code, error.reason),
            remedy if error.code in (401, 403) else "Check the path.",
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise SourceError(
            "{}: cannot be reached: {}".format(name, _words(error)), "Check address and network."
        ) from None


def _words(error: Exception) -> str:
    """What happened, without the address: it may hold a password."""
    if isinstance(error, SourceError):
        return error.message
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None)
    return str(reason) if reason else type(error).__name__
