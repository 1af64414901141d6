"""Frame sources: where pictures come from, one small file a kind.

/dev/video0, 0                            a V4L2 or USB camera
v4l2:/dev/video0?size=640x480&fps=30&format=mjpg
picamera2:0?size=1280x720&fps=30&stream=lores   a camera on a Raspberry Pi's ribbon cable
rtsp://HOST/PATH                          a network camera, through OpenCV
http://HOST/PATH                          a network camera that sends JPEG pictures
FILE.avi, .mp4, ...                       a video file; FILE?realtime=1 plays it at its own rate, ?loop=1 for ever
FOLDER or FILE.jpg                        pictures, in the order of their names
folder:FOLDER?resume=FILE                 the same; goes on where it was interrupted
stdin:640x480:bgr                         raw frames from standard input; stdin:mjpeg for a row of JPEG files
synthetic:640x480[:FORMAT][@FPS]          moving bars, for trying out without a camera
replay:FOLDER[?realtime=1]                what was recorded
fault:stall@100x3,torn@50:SOURCE          a source that fails as it is told, for trying out recovery
@FILE                                     what the file's only line names: a password is not for the command line
"""

from __future__ import annotations

import importlib
import os
import re
from typing import Callable

from edgeferry_runtime.errors import SourceError, UsageError
from edgeferry_runtime.fields import did_you_mean
from edgeferry_runtime.sources.base import PICTURES, WAITING, Frame, FrameSource, Request
from edgeferry_runtime.sources.options import redacted

__all__ = ["PICTURES", "WAITING", "Frame", "FrameSource", "Request", "open_source"]

# What opens a source, by kind: a module of this package, and its function of (uri, request).
_OPENERS = {
    "v4l2": ("camera", "open_camera"),
    "picamera2": ("picamera", "open_picamera"),
    "picamera": ("picamera", "open_picamera"),
    "rtsp": ("stream", "open_rtsp"),
    "rtsps": ("stream", "open_rtsp"),
    "http": ("stream", "open_http"),
    "https": ("stream", "open_http"),
    "folder": ("folder", "open_folder"),
    "stdin": ("stdin", "open_stdin"),
    "synthetic": ("synthetic", "open_synthetic"),
    "replay": ("replay", "open_replay"),
    "fault": ("fault", "open_fault"),
}
_KINDS = (
    "Sources are a camera (/dev/video0, picamera2:0, rtsp://..., http://...), a video file, a folder of pictures, "
    "stdin:640x480:bgr, synthetic:640x480 and replay:FOLDER."
)


def open_source(
    uri: str, want: tuple[int, int] | None = None, encoded: bool = False, timeout_s: float = 2.0
) -> FrameSource:
    """Open what ``uri`` names; see the table above.

    Args:
        uri: of the source.
        want: (width, height) in pixels that its frames should cover, as the model's input; a camera is then asked
            for the smallest size that does.
        encoded: hand JPEG frames over as they come (color "jpeg"); otherwise they are decoded to "bgr".
        timeout_s: after so long without a frame a live source is opened anew.

    Raises:
        UsageError: it names no kind of source, or an option is wrong.
        SourceError: it cannot be opened.
        DependencyError: it needs a package that is absent.
    """
    source = _open(_from_file(uri[1:]) if uri.startswith("@") else uri, Request(want, timeout_s))
    source.encoded = encoded
    return source


def _from_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read(8193).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SourceError("@{}: cannot be read: {}".format(path, reason), "Check the path.") from None
    if len(lines) != 1 or not lines[0].strip() or len(lines[0]) > 8192:
        raise UsageError("@{}: holds no source".format(path), "Write one into it, as its only line.")
    return lines[0].strip()


def _open(uri: str, request: Request) -> FrameSource:
    scheme = re.match(r"([a-z][a-z0-9+-]+):", uri)  # two letters at least: C:\ is no scheme
    if scheme:
        if scheme.group(1) not in _OPENERS:
            raise UsageError(
                "{!r} is no kind of source{}".format(redacted(uri), did_you_mean(scheme.group(1), list(_OPENERS))),
                _KINDS,
            )
        return _opener(*_OPENERS[scheme.group(1)])(uri, request)
    # A path may hold a question mark; only where there is no such path does it begin the options.
    path = uri if os.path.exists(uri) else uri.partition("?")[0]
    if re.match(r"(/dev/video\d+|/dev/v4l/.+|\d+)\Z", path):
        return _opener("camera", "open_camera")(uri, request)
    if os.path.isdir(path) or path.lower().endswith(PICTURES):
        return _opener("folder", "open_folder")(uri, request)
    if os.path.exists(path):
        return _opener("video", "open_video")(uri, request)
    raise SourceError(
        "{}: no such file, folder or camera".format(redacted(uri)), "Check the path given with --source."
    )


def _opener(module: str, function: str) -> Callable[[str, Request], FrameSource]:
    opener: Callable[[str, Request], FrameSource] = getattr(
        importlib.import_module("edgeferry_runtime.sources." + module), function
    )
    return opener
